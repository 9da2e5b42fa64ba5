# SPDX-License-Identifier: Apache-2.0
"""Find a dataset (embedded, local folder, Hub) and open its splits without decoding an input yet."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.data.columns import KINDS, RawSplit, input_column, raw_split
from edvit_hf.data.config import EMBEDDED_DATASET, DatasetConfig
from edvit_hf.data.listing import list_folder
from edvit_hf.data.sound_folder import open_sound_folder
from edvit_hf.data.split import ArrayStore
from edvit_hf.data.subsets import stratified_split
from edvit_hf.errors import DataError, MissingExtraError
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)

_FILE_BUILDERS = ("parquet", "csv")
_FOLDER_BUILDERS: dict[Task, str] = {"image-classification": "imagefolder", "audio-classification": "audiofolder"}
_BUILDERS = (*_FILE_BUILDERS, *_FOLDER_BUILDERS.values())
_CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}  # the word "None" in a text is a word

SHUFFLE_BUFFER = 10_000
"""Encoded rows from which a streamed dataset is drawn."""


def open_splits(
    config: DatasetConfig, task: Task = "image-classification", *, only: Sequence[str] | None = None
) -> dict[str, RawSplit]:
    """Open the training split and, where they are named, the test and the validation split; or the `only` ones.

    Raises:
        DataError: The dataset, a split or a column is missing, or a column has an unfit type.
    """
    folder = _local_folder(config)
    if config.path == EMBEDDED_DATASET and folder is None:
        return _open_digits(config, task)
    splits = _load_dataset(config, task, folder)
    where = str(folder) if folder is not None else config.path
    named = (config.train_split, config.test_split, config.validation_split) if only is None else only
    wanted = [name for name in named if name is not None]
    for name in wanted:
        if name not in splits:
            raise DataError(
                f"Expected a split named {name!r} in {where}, got only: {', '.join(splits) or 'none'}. "
                "Training, validation and test rows must be told apart. "
                "Set `train_split`, `test_split` or `validation_split` to one of these"
                f"{', or `test_split: null` to hold out training rows' if name == config.test_split else ''}."
            )
    opened = {}
    for name in wanted:
        rows = _first_rows(splits[name], name, config, task)
        # In a local csv an empty cell is the only way to write an empty text.
        is_csv = folder is not None and getattr(splits[name], "builder_name", None) == "csv"
        blank = "" if is_csv and task == "text-classification" else None
        opened[name] = raw_split(name, rows, config, task, folder, blank=blank)
    return opened


def local_folders(config: DatasetConfig) -> list[Path]:
    """The local folders that a dataset is read from, in the order of their rows; none where it comes from elsewhere.

    Raises:
        DataError: A folder that is named does not exist.
    """
    folder = _local_folder(config)
    return [] if folder is None else [folder]


def local_files(config: DatasetConfig) -> list[Path]:
    """Every file of the folders of `local_folders`, each below one of them, sorted; hidden and foreign ones left out.

    Raises:
        DataError: A folder does not exist or cannot be read.
    """
    return [folder / name for folder in local_folders(config) for name in list_folder(folder).files]


def _local_folder(config: DatasetConfig) -> Path | None:
    """Return the folder that replaces the Hub, if there is one: EDVIT_DATA_DIR first, then `data_dir`."""
    root = os.environ.get("EDVIT_DATA_DIR")
    if root and config.local_name:
        folder = Path(root).expanduser() / config.local_name
        if folder.is_dir():
            logger.info("data: reading %s (EDVIT_DATA_DIR is set)", folder)
            return folder
        logger.warning("data: EDVIT_DATA_DIR is set but has no folder %s; going on without it", config.local_name)
    if config.data_dir is None:
        if config.path in _BUILDERS:
            raise DataError(
                f"Expected `data_dir` beside path {config.path!r}, got none: the builder has nothing to read. Set "
                "`data_dir` to a local folder, or `local_name` and the environment variable EDVIT_DATA_DIR."
            )
        return None
    folder = Path(config.data_dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"Expected `data_dir` to be an existing folder, got {config.data_dir!r}. Correct the path.")
    return folder


def _load_dataset(config: DatasetConfig, task: Task, folder: Path | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"Loading the dataset {config.path!r}", "train", "datasets") from error
    try:
        if folder is None:
            return datasets.load_dataset(config.path, config.name, revision=config.revision, streaming=config.streaming)
        builder, files = _local_builder(config.path, task, folder)
        if builder == "audiofolder":
            return open_sound_folder(folder)
        options = _CSV_OPTIONS if builder == "csv" else {}
        where: dict[str, Any] = {"data_files": files} if files else {"data_dir": str(folder.resolve())}
        return datasets.load_dataset(builder, streaming=config.streaming, **where, **options)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise _load_error(config, folder, error) from error


def _local_builder(path: str, task: Task, folder: Path) -> tuple[str, dict[str, list[str]]]:
    """Name the builder that reads a folder, and its files by split (none for folders of classes)."""
    folders = _FOLDER_BUILDERS.get(task)
    if path in _FOLDER_BUILDERS.values():
        return path, {}
    candidates = [path] if path in _FILE_BUILDERS else ["parquet"] if folders else list(_FILE_BUILDERS)
    for builder in candidates:
        files = _files_by_split(folder, builder)
        if files:
            return builder, files
    if folders and path not in _FILE_BUILDERS:
        return folders, {}
    raise DataError(
        f"Expected {' or '.join(candidates)} files named like train-00000-of-00001.{candidates[0]} in {folder}, got "
        f"none. Correct `data_dir`{f', or use path {folders!r} for folders of {KINDS[task]} files' if folders else ''}."
    )


def _files_by_split(folder: Path, extension: str) -> dict[str, list[str]]:
    """Group files by split, the name's part before the first hyphen or dot."""
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob(f"*.{extension}")):
        split = re.sub(r"\W", "_", re.split(r"[-.]", path.name)[0])
        files.setdefault(split, []).append(str(path))
    return files


def _load_error(config: DatasetConfig, folder: Path | None, error: Exception) -> DataError:
    reason = f"{error} ({error.__cause__})" if error.__cause__ is not None else str(error)
    if "torchcodec" in reason:
        return DataError(
            f"Expected sounds that are stored as encoded files in parquet, got another layout in {config.path!r}, for "
            "which `datasets` needs the package torchcodec. Name the parquet copy that the Hub keeps (`revision: "
            "refs/convert/parquet`), or download the sound files and give their folder as `data_dir`."
        )
    if folder is not None:
        return DataError(
            f"Expected a readable dataset in {folder}, got: {reason}. Every file of the folder must be "
            "whole. Fetch the damaged file again or remove it."
        )
    local_name = config.local_name or "<local_name>"
    return DataError(
        f"Expected the dataset {config.path!r} from the Hub, got: {reason}. If this machine is offline, put the "
        f"parquet files into a folder and either set `data_dir` to it or call it {local_name} (`local_name`) and set "
        "the environment variable EDVIT_DATA_DIR to its parent. If not, check the id, `name` and `revision`, and "
        "whether the dataset asks for a login or runs a loading script (no longer supported)."
    )


def _first_rows(rows: Any, name: str, config: DatasetConfig, task: Task) -> Any:
    """Take the first rows of a shuffled stream into RAM, undecoded; what is no stream stays as it is."""
    import datasets

    if not isinstance(rows, datasets.IterableDataset):
        return rows
    try:
        features = rows.features or datasets.Dataset.from_list(list(rows.take(100))).features  # csv: known when read
        column = config.input_column or input_column(features, config.label_column, task)
        # Audio as plain bytes: the feature would ask for the package that decodes it even where it does not decode.
        struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        for kind, plain in ((datasets.Image, datasets.Image(decode=False)), (datasets.Audio, struct)):
            if isinstance(features.get(column), kind):
                rows = rows.cast_column(column, plain)
                features = datasets.Features({**features, column: plain})
        limit = config.max_train_samples if name == config.train_split else config.max_test_samples
        taken = list(rows.shuffle(seed=config.seed, buffer_size=SHUFFLE_BUFFER).take(limit))
        return datasets.Dataset.from_list(taken, features=features)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise _load_error(config, _local_folder(config), error) from error


def _open_digits(config: DatasetConfig, task: Task) -> dict[str, RawSplit]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("The embedded digits dataset", "train", "scikit-learn") from error
    if task != "image-classification":
        raise DataError(f"The embedded digits are images, got the task {task}. Name another dataset in `path`.")
    if config.validation_split is not None:
        raise DataError("The embedded digits have no validation split. Leave `validation_split` out.")
    if config.has_groups:
        raise DataError("The embedded digits do not say who wrote them. Leave `group_column` and `group_pattern` out.")
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 16 grey levels to 8 bits
    labels = digits.target.astype(np.int64)
    parts = {config.train_split: np.arange(len(labels))}
    if config.test_split is not None:
        train, test = stratified_split(labels, config.test_fraction, seed=(config.seed, 0))
        parts = {config.train_split: train, config.test_split: test}
    names = [str(digit) for digit in range(10)]
    return {
        name: RawSplit(name, labels[rows].tolist(), names, ArrayStore(pixels[rows])) for name, rows in parts.items()
    }
