# SPDX-License-Identifier: Apache-2.0
"""What a model card is rendered from: what the user may give, what the run fills, and the metadata of both."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edvit_hf.card.markup import NOT_MEASURED
from edvit_hf.card.rows import result_row
from edvit_hf.card.words import known_data
from edvit_hf.errors import EDViTError, named_extra
from edvit_hf.hub.source import is_hub_id
from edvit_hf.manifest import Manifest
from edvit_hf.storage import read_json_object
from edvit_hf.tasks import TASKS
from edvit_hf.terminal import visible

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

LIBRARY_NAME = "transformers"
TAGS = ("edvit", "edge", "ensemble", "pruning", "distillation", "onnx")
RESULTS_NAME = "results.json"
_RECIPE_TEXTS = {"title": "model_name", **{name: name for name in ("license", "repo_id", "language", "intended_use")}}
_is_repository = partial(is_hub_id, with_owner=True)
_FORMS: dict[str, tuple[Callable[[str], Any], str]] = {
    # What the Hub's own check of a card's metadata asks for; only the Hub has the lists of valid names.
    "license": (re.compile(r"[a-z0-9][a-z0-9.-]*").fullmatch, "one of the Hub's identifiers such as apache-2.0"),
    "language": (re.compile(r"[a-z]{2,3}").fullmatch, "an ISO 639 code such as en"),
    "repo_id": (_is_repository, "OWNER/NAME"),
    "dataset_id": (_is_repository, "OWNER/NAME"),
}
_BUILDERS = {"parquet", "imagefolder", "audiofolder", "csv", "json", "digits"}


@dataclass(frozen=True, kw_only=True)
class CardText:
    """What the user may give: words and identifiers that no run can know.

    Args:
        model_name: Title of the card.
        repo_id: Hub id the folder will be pushed to; without it the code blocks load a local folder.
        license: Hub license identifier of the weights.
        dataset_name: Readable name of the dataset. Default: its path.
        dataset_id: Hub id of the dataset when the run read it from a local folder.
        dataset_license: License and origin of the data, in words.
        intended_use: A sentence or two on what the ensemble is meant for.
        limits: Further limits that only the owner knows.
        language: ISO 639-1 code, for text.
        extra_tags: Further Hub tags.
    """

    model_name: str
    repo_id: str | None = None
    license: str = "apache-2.0"
    dataset_name: str | None = None
    dataset_id: str | None = None
    dataset_license: str | None = None
    intended_use: str | None = None
    limits: str | None = None
    language: str | None = None
    extra_tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("model_name", "repo_id", "license"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise EDViTError(f"`{name}` of a card must not be empty: the Hub shows it. Give a text.")
        for name, (form, example) in _FORMS.items():
            value = getattr(self, name)
            if value is not None and not form(value):
                raise EDViTError(
                    f"`{name}` of a card must be {example}, got {value!r}. The Hub refuses a card whose metadata it "
                    "does not know. Correct it."
                )


@dataclass(frozen=True, kw_only=True)
class CardRun:
    """What the run fills: results.json and the recipe as plain mappings, and the manifest of what was exported."""

    results: Mapping[str, Any]
    manifest: Manifest | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [key for key in ("task", "class_groups", "rows") if key not in self.results]
        if missing:
            raise EDViTError(
                f"The results of a card need the keys task, class_groups and rows; {', '.join(missing)} "
                f"missing. Without them a card would claim nothing. Pass what the evaluate stage wrote to "
                "results.json."
            )
        if self.manifest and self.manifest.class_groups != [list(group) for group in self.results["class_groups"]]:
            raise EDViTError(
                f"The results speak of the class groups {self.results['class_groups']}, the manifest of "
                f"{self.manifest.class_groups}. They are of two ensembles, and a card of both would be wrong. Pass the "
                "results.json and the manifest.json of one folder."
            )
        if self.results["task"] not in TASKS:
            raise EDViTError(
                f"The task of a card must be one of {', '.join(TASKS)}, got {self.results['task']!r}. The Hub would "
                "file the model where nobody looks for it. Correct the results."
            )

    @property
    def dataset(self) -> Mapping[str, Any]:
        """The dataset block of the results, with the name of the local folder from the recipe; empty when absent."""
        local_name = (self.recipe.get("dataset") or {}).get("local_name")
        return {"local_name": local_name, **(self.results.get("dataset") or {})}


@dataclass(frozen=True, kw_only=True)
class CardData:
    """Everything a card is rendered from: the user's block and the run's block."""

    text: CardText
    run: CardRun

    @classmethod
    def from_run(
        cls,
        results: Mapping[str, Any],
        manifest: Manifest | None = None,
        recipe: Mapping[str, Any] | None = None,
        **text: Any,
    ) -> Self:
        """Card data from what a run wrote.

        Without a recipe, the values that the results recorded are taken. The texts come from its `card` block
        (title, license, repo_id, language, intended_use); keyword arguments, named as the fields of `CardText`,
        come before it.
        """
        recipe = recipe or results.get("recipe_values") or {}
        block = recipe.get("card") or {}
        given = {name: block[key] for key, name in _RECIPE_TEXTS.items() if block.get(key) is not None}
        text = {"model_name": f"ED-ViT ensemble, {results.get('recipe') or 'unnamed recipe'}", **given, **text}
        run = CardRun(results=results, manifest=manifest, recipe=recipe)
        return cls(text=CardText(**text), run=run)

    @classmethod
    def from_folder(cls, ensemble_dir: str | Path, **text: Any) -> Self:
        """Card data of a finished ensemble folder, from its results.json and manifest.json.

        With `write_card` this renews a card after another export or a measured latency, or for the repository that
        the folder is pushed to (`repo_id=...`).

        Raises:
            EDViTError: If a file is missing or invalid.
        """
        root = Path(ensemble_dir)
        path = root / RESULTS_NAME
        if not path.is_file():
            raise EDViTError(
                f"Expected {RESULTS_NAME} in {root}, found none. A card without results would claim nothing. Name the "
                "folder that a finished run wrote (`09_card/ensemble`), or run the evaluate stage first."
            )
        results = read_json_object(
            path, "an ensemble's results", "A card is made from them. Run the evaluate stage again.", error=EDViTError
        )
        return cls.from_run(results, Manifest.load(root), **text)

    @property
    def base_model(self) -> str | None:
        """Hub id of the checkpoint the teacher was tuned from; None for one from scratch or a local one."""
        teacher = self.run.recipe.get("teacher") or {}
        checkpoint = teacher.get("checkpoint") if isinstance(teacher, Mapping) else None
        if not checkpoint or not _is_repository(str(checkpoint)) or Path(str(checkpoint)).exists():
            return None
        return str(checkpoint)

    @property
    def dataset_name(self) -> str:
        """Readable name of the dataset: the user's, else a known one, else its local folder or path."""
        known = known_data(self.run.dataset)
        return self.text.dataset_name or (known.name if known else self._dataset_path or NOT_MEASURED)

    @property
    def dataset_license(self) -> str:
        """License and origin of the data, in words."""
        known = known_data(self.run.dataset)
        unknown = "Licence of the data: not recorded by this run; see its own page."
        return self.text.dataset_license or (known.license if known else unknown)

    @property
    def _dataset_path(self) -> str:
        """Path of the dataset; where that is only the name of a file format, its local folder."""
        path, local_name = self.run.dataset.get("path"), self.run.dataset.get("local_name")
        return str(local_name if local_name and (path in _BUILDERS or not path) else path or "")

    @property
    def dataset_id(self) -> str | None:
        """Hub id of the dataset; None for an embedded or local one whose id the user did not give."""
        path = self.run.dataset.get("path")
        if self.text.dataset_id is not None:
            return self.text.dataset_id
        return str(path) if path and path not in _BUILDERS and _is_repository(str(path)) else None

    def metadata(self) -> "ModelCardData":
        """The YAML block, with `model-index` results, through the classes of huggingface_hub.

        Raises:
            MissingExtraError: If huggingface_hub is not installed.
        """
        with named_extra("Rendering a model card", "train"):
            from huggingface_hub import ModelCardData
        return ModelCardData(
            language=self.text.language,
            license=self.text.license,
            library_name=LIBRARY_NAME,
            pipeline_tag=self.run.results["task"],
            tags=[*TAGS, *self.text.extra_tags],
            datasets=[self.dataset_id] if self.dataset_id else None,
            metrics=["accuracy", "f1"],
            base_model=self.base_model,
            base_model_relation="finetune" if self.base_model else None,
            model_name=visible(self.text.model_name),
            eval_results=self._eval_results() or None,
        )

    def _eval_results(self) -> list["EvalResult"]:
        """The ensemble's measured figures in the Hub's form: fractions."""
        from huggingface_hub import EvalResult

        ensemble = result_row(self.run.results, "ensemble")
        metrics = [("accuracy", "Accuracy", "accuracy"), ("f1", "Macro F1", "macro_f1")]
        return [
            EvalResult(
                task_type=self.run.results["task"],
                dataset_type=visible(self.dataset_id or self._dataset_path or "unnamed"),
                dataset_name=visible(self.dataset_name),
                dataset_split="test",
                metric_type=metric,
                metric_name=name,
                metric_value=round(float(ensemble[key]), 6),
            )
            for metric, name, key in metrics
            if ensemble.get(key) is not None
        ]
