"""The model card of an ensemble: typed data -> Jinja template -> README.md with figures.

The data come in three blocks (`card_data`): what the user may give (`CardText`), what the run fills (`CardRun`) and
what never changes (the constants there and below). A value that no run has measured is printed as "not measured",
never left blank.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edvit_hf.card.absences import absent_entries, absent_finding, absent_table
from edvit_hf.card.data import CardData, CardRun, CardText
from edvit_hf.card.exports import (
    ensemble_ms,
    exports_finding,
    fidelity_table,
    files_table,
    gates_table,
    has_int8,
    own_vote_finding,
    pull_options,
    whole_table,
)
from edvit_hf.card.figures import draw_figures
from edvit_hf.card.javascript import PACKAGES, javascript, whole_graph
from edvit_hf.card.sources import source_line, sources_table, stage_table, versions_line
from edvit_hf.card.tables import (
    NOT_MEASURED,
    cost_table,
    glance_table,
    group_names,
    group_table,
    label_names,
    result_row,
    results_table,
    splitting_finding,
    sub_model_table,
)
from edvit_hf.card.words import TASK_WORDS, architecture, making_table
from edvit_hf.errors import EDViTError, MissingExtraError

logger = logging.getLogger(__name__)

__all__ = ["NOT_MEASURED", "CardData", "CardRun", "CardText", "render_card", "template_path", "write_card"]

CITATIONS: tuple[tuple[str, str, str], ...] = (
    ("ED-ViT", "2410.11650", "split by classes, class-wise pruning, placement on devices, fusion"),
    ("DeViT", "2309.05015", "decomposition of a vision transformer and distillation of the sub-models"),
)
_TEMPLATE = "ensemble.md.j2"
_LOCAL_FOLDER = "path/to/this/folder"


def render_card(card: CardData, *, figures: Mapping[str, str] | None = None) -> str:
    """Render the whole README.md.

    Args:
        card (`CardData`): What to say.
        figures (`Mapping[str, str]`, *optional*): Figure name (`size`, `latency`, `absent`, `groups`) -> path relative
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
    task, last = results["task"], len(results["class_groups"]) - 1
    location = card.text.repo_id or _LOCAL_FOLDER
    names = group_names(results)
    feature_sizes = {entry.index: entry.feature_size for entry in manifest.sub_models} if manifest else {}
    return {
        "text": card.text,
        "location": location,
        "results": results,
        "words": TASK_WORDS[task],
        "architecture": architecture(task, recipe),
        "glance_table": glance_table(results, card.dataset_name, absent_entries(results, manifest)),
        "making_table": making_table(recipe),
        "is_distilled": (recipe.get("distill") or {}).get("objective") != "none",
        "num_test_items": card.run.dataset.get("num_test_items"),
        "dataset_id": card.dataset_id,
        "dataset_name": card.dataset_name,
        "dataset_licence": card.dataset_licence,
        "base_model": card.base_model,
        "not_measured": NOT_MEASURED,
        "num_sub_models": last + 1,
        "num_labels": len(label_names(results)),
        "example_sub_model": f"{last:02d}",
        "example_indices": [0] if last < 2 else [0, 2],
        "last_index": last,
        "ensemble": result_row(results, "ensemble"),
        "sub_model_table": sub_model_table(results, feature_sizes),
        "results_table": results_table(results),
        "cost_table": cost_table(results, ensemble_ms(manifest, results)),
        "splitting_finding": splitting_finding(results),
        "absent_table": absent_table(results, manifest),
        "absent_finding": absent_finding(results, manifest),
        "group_table": group_table(results),
        "exports_finding": exports_finding(manifest),
        "files_table": files_table(manifest),
        "fidelity_table": fidelity_table(manifest, names),
        "gates_table": gates_table(manifest, names),
        "whole_table": whole_table(manifest),
        "own_vote_finding": own_vote_finding(manifest),
        "has_int8": has_int8(manifest),
        "pull_options": pull_options(manifest),
        "source_line": source_line(results),
        "sources_table": sources_table(results, manifest),
        "stage_table": stage_table(results),
        "versions_line": versions_line(results),
        "javascript": javascript(task, manifest, last),
        "javascript_packages": " ".join(PACKAGES[task]),
        "has_whole_graph": whole_graph(manifest) is not None,
        "citations": CITATIONS,
    }


def template_path() -> Path:
    """The template: inside the installed package, or `model_cards/` of a source checkout.

    Raises:
        EDViTError: If neither exists (an incomplete installation).
    """
    here = Path(__file__).resolve()
    for candidate in (here.parents[1] / "templates" / _TEMPLATE, here.parents[3] / "model_cards" / _TEMPLATE):
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
    figures = draw_figures(card.run.results, root / "assets", card.run.manifest)
    content = render_card(card, figures={name: f"assets/{path.name}" for name, path in figures.items()})
    ModelCard(content)  # raises on a YAML block that the Hub's client would refuse
    target = root / "README.md"
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(target)
    logger.info("card: wrote %s with %d figures", target, len(figures))
    return target
