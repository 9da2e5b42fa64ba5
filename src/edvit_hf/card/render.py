# SPDX-License-Identifier: Apache-2.0
"""The model card of an ensemble: typed data -> Jinja template -> README.md with figures.

The template calls the functions of `tables`, `rivals`, `exports`, `sources`, `words` and `javascript` by name. A value
that no run has measured is printed as "not measured", never left blank.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edvit_hf.card import exports, forms, javascript, other_data, rivals, sources, tables, words
from edvit_hf.card.data import CardData
from edvit_hf.card.figures import draw_figures
from edvit_hf.card.markup import NOT_MEASURED, plain
from edvit_hf.errors import EDViTError, named_extra
from edvit_hf.hub.listed import made_from
from edvit_hf.storage import whole_file

logger = logging.getLogger(__name__)

CITATIONS: tuple[tuple[str, str, str], ...] = (
    ("ED-ViT", "2410.11650", "split by classes, class-wise pruning, placement on devices, fusion"),
    ("DeViT", "2309.05015", "decomposition of a vision transformer and distillation of the sub-models"),
)
_TEMPLATE = "ensemble.md.j2"
_LOCAL_FOLDER = "path/to/this/folder"


def render_card(card: CardData, *, figures: Mapping[str, str] | None = None) -> str:
    """Render the whole README.md.

    Args:
        card: What to say.
        figures: Figure name (`size`, `latency`, `absent`, `groups`, `rivals`, `gap`) -> path relative to the card. A
            figure that is not named is left out of the text.

    Returns:
        `str`: YAML block and markdown, ending in one newline; it parses as a `huggingface_hub.ModelCard`.
    """
    with named_extra("Rendering a model card", "train"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_path().parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["plain"] = plain
    body = environment.get_template(_TEMPLATE).render(**_variables(card), figures=figures or {})
    return f"---\n{card.metadata().to_yaml()}\n---\n\n{body.strip()}\n"


def _variables(card: CardData) -> dict[str, Any]:
    """What the template may name; a misspelt name there is an error (StrictUndefined)."""
    results, manifest, recipe = card.run.results, card.run.manifest, card.run.recipe
    last = len(results["class_groups"]) - 1
    return {
        "card": card,
        "results": results,
        "manifest": manifest,
        "recipe": recipe,
        "tables": tables,
        "exports": exports,
        "sources": sources,
        "rivals": rivals,
        "words": words,
        "javascript": javascript,
        "other_data": other_data,
        "task_words": words.TASK_WORDS[results["task"]],
        "location": card.text.repo_id or _LOCAL_FOLDER,
        "group_names": tables.group_names(results),
        "forms": forms,
        "form": forms.form_of(results, manifest, recipe),
        "is_distilled": (recipe.get("distill") or {}).get("objective") != "none",
        "num_test_items": card.run.dataset.get("num_test_items"),
        "not_measured": NOT_MEASURED,
        "num_sub_models": last + 1,
        "num_labels": len(tables.label_names(results)),
        "example_sub_model": f"{last:02d}",
        "example_indices": [0] if last < 2 else [0, 2],
        "last_index": last,
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
    with named_extra("Rendering a model card", "train"):
        from huggingface_hub import ModelCard

    root = Path(ensemble_dir)
    if not root.is_dir():
        raise EDViTError(
            f"{root} is not a folder: a card is written beside the ensemble it describes. Export it first."
        )
    figures = draw_figures(card.run.results, root / "assets", card.run.manifest)
    content = render_card(card, figures={name: f"assets/{path.name}" for name, path in figures.items()})
    content = content.replace("\n---\n", f"\nmade_from: {made_from(root)}\n---\n", 1)  # says when it is stale
    ModelCard(content)  # raises on a YAML block that the Hub's client would refuse
    target = root / "README.md"
    with whole_file(target) as partial:
        partial.write_text(content, encoding="utf-8")
    logger.info("card: wrote %s with %d figures", target, len(figures))
    return target
