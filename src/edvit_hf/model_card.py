"""The model card of an ensemble: typed data -> Jinja template -> README.md with figures.

The data come in three blocks: what the user may give (`CardText`), what the run fills (`CardRun`) and what
never changes (the constants below). A value that no run has measured is printed as "not measured", never left
blank.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edvit_hf.card_figures import draw_figures
from edvit_hf.card_tables import (
    NOT_MEASURED,
    absent_finding,
    absent_table,
    environment_table,
    group_names,
    group_table,
    has_int8,
    label_names,
    own_vote_finding,
    result_row,
    results_table,
    splitting_finding,
    stage_table,
    sub_model_table,
    variant_table,
    whole_onnx_finding,
)
from edvit_hf.card_words import TASK_WORDS, architecture, known_data, making_table
from edvit_hf.errors import EDViTError, MissingExtraError
from edvit_hf.tasks import TASKS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

logger = logging.getLogger(__name__)

LIBRARY_NAME = "transformers"
TAGS = ("edvit", "edge", "ensemble", "pruning", "distillation", "onnx")
CITATIONS: tuple[tuple[str, str, str], ...] = (
    ("ED-ViT", "2410.11650", "split by classes, class-wise pruning, placement on devices, fusion"),
    ("DeViT", "2309.05015", "decomposition of a vision transformer and distillation of the sub-models"),
    ("OMT", "2407.05941", "the staircase between tokens and latency, and token pruning from it"),
)
_TEMPLATE = "ensemble.md.j2"
_RECIPE_TEXTS = {
    "title": "model_name",
    "license": "licence",
    "repo_id": "repo_id",
    "language": "language",
    "intended_use": "intended_use",
}
_LOCAL_FOLDER = "path/to/this/folder"
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_BUILDERS = {"parquet", "imagefolder", "audiofolder", "csv", "json", "digits"}


@dataclass(frozen=True, kw_only=True)
class CardText:
    """What the user may give: words and identifiers that no run can know.

    Args:
        model_name (`str`): Title of the card.
        repo_id (`str`, *optional*): Hub id the folder will be pushed to; without it the code blocks load a local
            folder.
        licence (`str`): Hub licence identifier of the weights.
        dataset_name (`str`, *optional*): Readable name of the dataset. Default: its path.
        dataset_id (`str`, *optional*): Hub id of the dataset when the run read it from a local folder.
        dataset_licence (`str`, *optional*): Licence and origin of the data, in words.
        intended_use (`str`, *optional*): A sentence or two on what the ensemble is meant for.
        limits (`str`, *optional*): Further limits that only the owner knows.
        language (`str`, *optional*): ISO 639-1 code, for text.
        extra_tags (`Sequence[str]`): Further Hub tags.
    """

    model_name: str
    repo_id: str | None = None
    licence: str = "apache-2.0"
    dataset_name: str | None = None
    dataset_id: str | None = None
    dataset_licence: str | None = None
    intended_use: str | None = None
    limits: str | None = None
    language: str | None = None
    extra_tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("model_name", "repo_id", "licence"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise EDViTError(f"`{name}` of a card must not be empty: the Hub shows it. Give a text.")


@dataclass(frozen=True, kw_only=True)
class CardRun:
    """What the run fills: the contents of results.json, manifest.json and the recipe, as plain mappings."""

    results: Mapping[str, Any]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [key for key in ("task", "class_groups", "rows") if key not in self.results]
        if missing:
            raise EDViTError(
                f"The results of a card need the keys task, class_groups and rows; {', '.join(missing)} "
                f"missing. Without them a card would claim nothing. Pass what the evaluate stage wrote to "
                "results.json."
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
        manifest: Mapping[str, Any] | None = None,
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
        text = {
            "model_name": f"ED-ViT ensemble, {results.get('recipe') or 'unnamed recipe'}",
            **given,
            **text,
        }
        run = CardRun(results=results, manifest=manifest or {}, recipe=recipe)
        return cls(text=CardText(**text), run=run)

    @property
    def base_model(self) -> str | None:
        """Hub id of the checkpoint the teacher was tuned from; None for one from scratch or a local one."""
        teacher = self.run.recipe.get("teacher") or {}
        checkpoint = teacher.get("checkpoint") if isinstance(teacher, Mapping) else None
        if not checkpoint or not _HUB_ID.match(str(checkpoint)) or Path(str(checkpoint)).exists():
            return None
        return str(checkpoint)

    @property
    def dataset_name(self) -> str:
        """Readable name of the dataset: the user's, else a known one, else its local folder or path."""
        known = known_data(self.run.dataset)
        return self.text.dataset_name or (known.name if known else self._dataset_path or NOT_MEASURED)

    @property
    def dataset_licence(self) -> str:
        """Licence and origin of the data, in words."""
        known = known_data(self.run.dataset)
        unknown = "Licence of the data: not recorded by this run; see its own page."
        return self.text.dataset_licence or (known.licence if known else unknown)

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
        return str(path) if path and path not in _BUILDERS and _HUB_ID.match(str(path)) else None

    def metadata(self) -> "ModelCardData":
        """The YAML block, with `model-index` results, through the classes of huggingface_hub.

        Raises:
            MissingExtraError: If huggingface_hub is not installed.
        """
        try:
            from huggingface_hub import ModelCardData
        except ImportError as error:
            raise MissingExtraError("Rendering a model card", "train", "huggingface_hub") from error
        results = self._eval_results()
        return ModelCardData(
            language=self.text.language,
            license=self.text.licence,
            library_name=LIBRARY_NAME,
            pipeline_tag=self.run.results["task"],
            tags=[*TAGS, *self.text.extra_tags],
            datasets=[self.dataset_id] if self.dataset_id else None,
            metrics=["accuracy", "f1"],
            base_model=self.base_model,
            base_model_relation="finetune" if self.base_model else None,
            model_name=self.text.model_name,
            eval_results=results or None,
        )

    def _eval_results(self) -> list["EvalResult"]:
        """The ensemble's measured figures in the Hub's form: fractions."""
        from huggingface_hub import EvalResult

        ensemble = result_row(self.run.results, "ensemble")
        metrics = [("accuracy", "Accuracy", "accuracy"), ("f1", "Macro F1", "macro_f1")]
        return [
            EvalResult(
                task_type=self.run.results["task"],
                dataset_type=self.dataset_id or self._dataset_path or "unnamed",
                dataset_name=self.dataset_name,
                dataset_split="test",
                metric_type=metric,
                metric_name=name,
                metric_value=round(float(ensemble[key]), 6),
            )
            for metric, name, key in metrics
            if ensemble.get(key) is not None
        ]


def render_card(card: CardData, *, figures: Mapping[str, str] | None = None) -> str:
    """Render the whole README.md.

    Args:
        card (`CardData`): What to say.
        figures (`Mapping[str, str]`, *optional*): Figure name (`size`, `absent`, `groups`) -> path relative
            to the card. A figure that is not named is left out of the text.

    Returns:
        `str`: YAML block and markdown, ending in one newline; it parses as a `huggingface_hub.ModelCard`.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("Rendering a model card", "train", "jinja2") from error

    environment = Environment(
        loader=FileSystemLoader(template_path().parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    body = environment.get_template(_TEMPLATE).render(**_variables(card), figures=figures or {})
    return f"---\n{card.metadata().to_yaml()}\n---\n\n{body.strip()}\n"


def _variables(card: CardData) -> dict[str, Any]:
    """What the template may name; a misspelt name there is an error (StrictUndefined)."""
    results, manifest, recipe = card.run.results, card.run.manifest, card.run.recipe
    ensemble = result_row(results, "ensemble")
    return {
        "text": card.text,
        "location": card.text.repo_id or _LOCAL_FOLDER,
        "results": results,
        "words": TASK_WORDS[results["task"]],
        "architecture": architecture(results["task"], recipe),
        "making_table": making_table(recipe),
        "is_distilled": (recipe.get("distill") or {}).get("objective") != "none",
        "num_test_items": card.run.dataset.get("num_test_items"),
        "dataset_id": card.dataset_id,
        "dataset_name": card.dataset_name,
        "dataset_licence": card.dataset_licence,
        "base_model": card.base_model,
        "not_measured": NOT_MEASURED,
        "num_sub_models": len(results["class_groups"]),
        "num_labels": len(label_names(results)),
        "example_sub_model": f"{len(results['class_groups']) - 1:02d}",
        "example_indices": [0] if len(results["class_groups"]) < 3 else [0, 2],
        "last_index": len(results["class_groups"]) - 1,
        "group_names": group_names(results),
        "ensemble": ensemble,
        "results_table": results_table(results),
        "splitting_finding": splitting_finding(results),
        "absent_table": absent_table(results),
        "absent_finding": absent_finding(results),
        "group_table": group_table(results),
        "sub_model_table": sub_model_table(results, manifest),
        "variant_table": variant_table(manifest),
        "stage_table": stage_table(results),
        "environment_table": environment_table(results),
        "own_vote_finding": own_vote_finding(manifest),
        "whole_onnx_finding": whole_onnx_finding(manifest),
        "has_int8": has_int8(manifest),
        "citations": CITATIONS,
    }


def template_path() -> Path:
    """The template: inside the installed package, or `model_cards/` of a source checkout.

    Raises:
        EDViTError: If neither exists (an incomplete installation).
    """
    here = Path(__file__).resolve()
    for candidate in (here.parent / "templates" / _TEMPLATE, here.parents[2] / "model_cards" / _TEMPLATE):
        if candidate.is_file():
            return candidate
    raise EDViTError(
        f"The card template {_TEMPLATE} is neither in the package nor in model_cards/ of a checkout. "
        f"No card can be rendered without it. Install edvit_hf again."
    )


def write_card(ensemble_dir: str | Path, card: CardData) -> Path:
    """Write README.md and the figures under assets/ into an ensemble folder; returns the path of README.md.

    Every file appears by write-then-rename, the README last, so that a card never points at a missing figure.
    """
    from huggingface_hub import ModelCard

    root = Path(ensemble_dir)
    if not root.is_dir():
        raise EDViTError(
            f"{root} is not a folder: a card is written beside the ensemble it describes. Export it first."
        )
    figures = draw_figures(card.run.results, root / "assets")
    content = render_card(card, figures={name: f"assets/{path.name}" for name, path in figures.items()})
    ModelCard(content)  # raises on a YAML block that the Hub's client would refuse
    target = root / "README.md"
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(target)
    logger.info("card: wrote %s with %d figures", target, len(figures))
    return target
