# SPDX-License-Identifier: Apache-2.0
"""The labelled items that a finished ensemble is measured on: where they are, and whose figures they therefore make.

What prepares them, and which class is which number, is the ensemble's own matter. A recipe, or what `results.json`
records of one, only says where the items are.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edvit_hf.card.rows import no_verdict, verdict
from edvit_hf.data import Augmentation, DatasetConfig, TaskData, TestData, load_task, load_test
from edvit_hf.data.config import dataset_from_values
from edvit_hf.data.processors import processor_of
from edvit_hf.errors import RecipeError
from edvit_hf.evaluation.evaluator import EvaluateConfig
from edvit_hf.manifest import Manifest
from edvit_hf.storage import read_json_object, write_json
from edvit_hf.tasks import Task
from edvit_hf.transforms.reading import read_preprocessor

logger = logging.getLogger(__name__)

PLACES_NAME = "local_data.json"
"""Beside an ensemble's folder, never in it: where on this machine its data lay. It is not published."""

_WHY = "Without it nothing can be measured. Fetch or export the folder again."
_BUILDERS = ("parquet", "csv", "imagefolder", "audiofolder")
_FOLDER_KEYS = tuple(field.name for field in dataclasses.fields(DatasetConfig) if field.name.endswith("_dir"))
# What of a dataset's section decides which rows are the test rows; the rest says how inputs are prepared.
_ROW_KEYS: tuple[str, ...] = (
    *("path", "name", "revision", "local_name", "input_column", "label_column", "label_names", "on_error"),
    *("train_split", "test_split", "test_fraction", "group_column", "group_pattern", "test_groups"),
    *("max_test_samples", "streaming", "seed"),
)


class MeasuredBy(Protocol):
    """What of a recipe tells how an ensemble is measured: where its items are, batch size and number of subsets."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def task(self) -> Task | None: ...  # noqa: D102
    @property
    def dataset(self) -> DatasetConfig: ...  # noqa: D102
    @property
    def evaluate(self) -> EvaluateConfig: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished ensemble and who says what it is measured on.

    Attributes:
        folder: Of the ensemble.
        task: What it classifies.
        label_names: Of its classes, by id.
        recipe: Names the data; None: `results.json` in the folder does.
        data_dir: Local folder of the data, in place of what either of them names.
        origin: Folder that this one is a copy of, where it is one: what was noted beside that one holds.
    """

    folder: Path
    task: Task
    label_names: Sequence[str]
    recipe: MeasuredBy | None = None
    data_dir: Path | None = None
    origin: Path | None = None

    @classmethod
    def of_manifest(cls, folder: Path, recipe: MeasuredBy | None, data_dir: Path | None) -> "Measured":
        """Of a folder with a manifest. Raises `ManifestError`."""
        manifest = Manifest.load(folder)
        names = manifest.label_names
        return cls(folder=folder, task=manifest.ensemble.task, label_names=names, recipe=recipe, data_dir=data_dir)

    def config(self, *, test_alone: bool = False) -> DatasetConfig:
        """Where the data are, on this machine; `test_alone`: only the folder of the test rows need be here.

        Raises:
            RecipeError: Nothing names a dataset, its folder is not here, or the recipe is of another task.
        """
        if self.recipe is None:
            beside = self.folder if self.origin is None else self.origin
            return _located(recorded_dataset(self.folder), beside, self.data_dir, test_alone=test_alone)
        if self.recipe.task not in (None, self.task):
            raise RecipeError(
                f"Expected a recipe of the task {self.task}, which is that of {self.folder}, got {self.recipe.name!r} "
                f"of {self.recipe.task}. Its inputs are none of the ensemble's. Name a recipe of this task."
            )
        config = _replaced(self.recipe.dataset, self.data_dir, test_alone=test_alone)
        others = _prepared_otherwise(config, self.task, self.folder)
        if others:
            message = "data: recipe %s says %s otherwise than the ensemble, whose own processor prepares the inputs"
            logger.warning(message, self.recipe.name, ", ".join(others))
        return config

    def test(self) -> tuple[TestData, dict[str, Any]]:
        """The test rows, and what a record of figures says of them: see `data_record`.

        Raises:
            RecipeError: See `config`. And what `load_test` raises.
        """
        config = self.config(test_alone=True)
        data = load_test(config, task=self.task, label_names=self.label_names, processor_dir=self.folder)
        return data, data_record(config, len(data.test), data.skipped, data.fingerprint)

    def whole(self) -> tuple[TaskData, dict[str, Any]]:
        """The rows of every role, for an export: it gates on validation rows. And what a record says of the test rows.

        Raises:
            RecipeError: See `config`. And what `load_task` raises, also if the data have other classes.
        """
        config = self.config()
        if self.task != "text-classification":
            processor_of(config.as_the_model(), self.task, self.folder, is_required=True)
        found = load_task(config.as_the_model(), Augmentation(), task=self.task, processor_dir=self.folder)
        data = found.numbered_as(self.label_names)
        record = data_record(config, len(data.test), data.skipped.get("test", 0), data.fingerprint("test"))
        return data, record

    def is_own(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of the rows that the ensemble's results were measured on."""
        dataset = _results(self.folder).get("dataset")
        recorded = dataset.get("test") if isinstance(dataset, Mapping) else None
        if isinstance(recorded, Mapping) and recorded.get("fingerprint"):
            return bool(recorded["fingerprint"] == record["fingerprint"])
        # Results of an earlier version: what they say of the rows must agree.
        if not isinstance(dataset, Mapping) or dataset.get("num_test_items") != record["num_items"]:
            return False
        return self.recipe is None or _rows_of(self.recipe.dataset) == _rows_of(recorded_dataset(self.folder))

    @property
    def options(self) -> list[str]:
        """What a command line says of the data; folders of this machine are not told."""
        words = [] if self.recipe is None else ["--recipe", self.recipe.name]
        return words + ([] if self.data_dir is None else ["--data-dir", self.data_dir.resolve().name])


def data_record(config: DatasetConfig, num_items: int, num_skipped: int, fingerprint: str) -> dict[str, Any]:
    """What figures say of the rows that made them, JSON-able: name, configuration, split, number, fingerprint."""
    split = config.test_split or f"{config.test_fraction:g} of {config.train_split}, seed {config.seed}"
    if config.test_groups:
        split = f"groups {', '.join(map(str, config.test_groups))}"
    if config.max_test_samples is not None:
        split += f", at most {config.max_test_samples}"
    return {
        "name": data_name(config),
        "config": config.name,
        "revision": config.revision,
        "split": split,
        "num_items": num_items,
        "num_skipped": num_skipped,
        "fingerprint": fingerprint,
    }


def data_name(config: DatasetConfig) -> str:
    """What the test rows of a dataset are called: its path, or their folder's name where the path is a file format."""
    if config.test_data_dir is not None:
        return Path(config.test_data_dir).expanduser().resolve().name
    if config.path not in _BUILDERS:
        is_folder = config.path.startswith("~") or Path(config.path).is_absolute()
        return Path(config.path).name if is_folder else config.path
    folders = [Path(each).expanduser().resolve().name for each in _folders(config, "data_dir")]
    return config.local_name or " + ".join(dict.fromkeys(folders)) or config.path


def recorded_dataset(folder: Path) -> DatasetConfig:
    """The dataset that `results.json` in an ensemble's folder records.

    Raises:
        RecipeError: There is no such file, or it says nothing of it.
    """
    try:
        return dataset_from_values(_results(folder)["recipe_values"]["dataset"])
    except (KeyError, TypeError) as error:
        raise RecipeError(
            f"{folder} does not say which dataset it was measured on (no results.json with recipe values). "
            "Accuracy needs labelled items. Name the recipe: --recipe recipes/NAME.yaml."
        ) from error


def recorded_verdict(folder: Path) -> str:
    """What to deploy and why, as the run that made the ensemble found it; empty where its results do not say.

    Raises:
        RecipeError: The results are damaged.
    """
    return verdict(_results(folder))


def missing_verdict(folder: Path) -> str:
    """Why the results do not say what to deploy, as a sentence; empty where they do. Raises as `recorded_verdict`."""
    return no_verdict(_results(folder))


def _results(folder: Path) -> Mapping[str, Any]:
    """What `results.json` holds; empty where there is none. Raises `RecipeError` where it is damaged."""
    path = folder / "results.json"
    return read_json_object(path, "an ensemble's results", error=RecipeError) if path.exists() else {}


def save_places(folder: Path, config: DatasetConfig) -> None:
    """Note in a folder where on this machine the data lie: results tell no folders, and the next command needs them."""
    places = {key: [_absolute(each) for each in _folders(config, key)] for key in _FOLDER_KEYS}
    root = os.environ.get("EDVIT_DATA_DIR")
    if root and config.local_name and (Path(root).expanduser() / config.local_name).is_dir():
        places["data_dir"] = [_absolute(str(Path(root) / config.local_name))]
    write_json(folder / PLACES_NAME, {key: found for key, found in places.items() if found})


def _absolute(folder: str) -> str:
    return str(Path(folder).expanduser().resolve())


def _folders(config: DatasetConfig, key: str) -> list[str]:
    """The folders that a dataset names under a key: none, one or several."""
    value = getattr(config, key)
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _lies_apart(config: DatasetConfig) -> bool:
    """Whether the test rows can be read without the training rows: from their own folder, under names of their own."""
    return config.test_data_dir is not None and config.label_names is None


def _replaced(config: DatasetConfig, data_dir: Path | None, *, test_alone: bool) -> DatasetConfig:
    """The same dataset, read from a folder that the command line names: that of the test rows where they lie apart."""
    if data_dir is None:
        return config
    if not data_dir.is_dir():
        raise RecipeError(f"Expected an existing folder of data, got {str(data_dir)!r}. Correct --data-dir.")
    if test_alone and _lies_apart(config):
        return dataclasses.replace(config, test_data_dir=str(data_dir))
    folders: dict[str, Any] = {**dict.fromkeys(_FOLDER_KEYS), "data_dir": str(data_dir)}  # this one holds all of it
    return dataclasses.replace(config, **folders, local_name=None)


def _located(config: DatasetConfig, folder: Path, data_dir: Path | None, *, test_alone: bool = False) -> DatasetConfig:
    """A recorded dataset with its folders as they are on this machine: results tell of a folder its name alone.

    Looked at in this order: the command line, EDVIT_DATA_DIR, what the run noted beside the ensemble's folder, the path
    as it is recorded.

    Raises:
        RecipeError: A folder is at none of them.
    """
    if data_dir is not None:
        return _replaced(config, data_dir, test_alone=test_alone)
    root, noted = os.environ.get("EDVIT_DATA_DIR"), _noted_places(folder)
    is_below_root = root and config.local_name and (Path(root).expanduser() / config.local_name).is_dir()
    is_apart = is_below_root or (test_alone and _lies_apart(config))  # the other rows are found when they are opened
    found: dict[str, Any] = {}
    for key in ("test_data_dir",) if is_apart else _FOLDER_KEYS:
        recorded = _folders(config, key)
        places = noted.get(key, [])
        if not recorded and places and all(Path(place).is_dir() for place in places):
            found[key] = places[0] if len(places) == 1 else tuple(places)  # it was below EDVIT_DATA_DIR
            continue
        here = [
            _found_folder(each, root, place) for each, place in zip(recorded, _padded(places, recorded), strict=True)
        ]
        if here:
            found[key] = here[0] if isinstance(getattr(config, key), str) else tuple(here)
    return dataclasses.replace(config, **found)


def _padded(places: Sequence[str], recorded: Sequence[str]) -> list[str | None]:
    return list(places) if len(places) == len(recorded) else [None] * len(recorded)


def _found_folder(recorded: str, root: str | None, noted: str | None) -> str:
    below = None if root is None else str(Path(root).expanduser() / Path(recorded).name)
    candidates = [each for each in (below, noted, recorded) if each is not None]
    for each in candidates:
        if Path(each).expanduser().is_dir():
            return each
    raise RecipeError(
        f"Expected the data that the ensemble was made with in a folder {Path(recorded).name!r}, found none in "
        f"{', '.join(candidates)}. Accuracy needs its labelled items. Name the folder with --data-dir, or set the "
        "environment variable EDVIT_DATA_DIR to the folder that holds it."
    )


def _noted_places(folder: Path) -> dict[str, list[str]]:
    """What `save_places` noted beside an ensemble's folder; empty where it is not there or says nothing usable."""
    path = folder.resolve().parent / PLACES_NAME
    if not path.is_file():
        return {}
    why = "Remove it and name the folder with --data-dir."
    values = read_json_object(path, "the places of data", why, error=RecipeError)
    lists = {key: value for key, value in values.items() if isinstance(value, list)}
    return {key: value for key, value in lists.items() if all(isinstance(each, str) for each in value)}


def _rows_of(config: DatasetConfig) -> dict[str, Any]:
    """What decides which rows are the test rows; of folders their names, as results record them."""
    values = {key: getattr(config, key) for key in _ROW_KEYS}
    return {**values, **{key: [Path(each).name for each in _folders(config, key)] for key in _FOLDER_KEYS}}


def _prepared_otherwise(config: DatasetConfig, task: Task, folder: Path) -> list[str]:
    """What a recipe says of preparing inputs that the ensemble's processor says otherwise."""
    if task != "text-classification":
        own, said = read_preprocessor(folder, "what prepares the inputs", _WHY), config.written_preprocessor(task)
        return [name for key, (name, value) in said.items() if value != own.get(key, value)]
    longest = None if config.text is None else config.text.max_length
    own = read_preprocessor(folder / "tokenizer_config.json", "a tokenizer's settings", _WHY)
    return ["text.max_length"] if longest not in (None, own.get("model_max_length")) else []
