# SPDX-License-Identifier: Apache-2.0
"""Which values of a recipe are read only under others, and the refusal of one that would stay unread."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import RecipeError
from edvit_hf.recipe.strategies import candidates_of, refuse_overridden

if TYPE_CHECKING:
    from edvit_hf.recipe.schema import Recipe

_DEKD_KEYS = ("hard", "hard_weight", "relation_weights")
_JOINT_KEYS = (
    *("joint_epochs", "joint_patience", "joint_learning_rate", "joint_batch_size", "joint_views"),
    *("token_weight", "vote_weight"),
)
READ_ONLY_WITH: tuple[tuple[str, tuple[str, ...], "Callable[[Recipe], bool]", str], ...] = (
    ("split", ("similarity", "samples_per_class"), lambda r: r.split.strategy == "similarity", "strategy: similarity"),
    ("prune", ("compensation_samples",), lambda r: r.prune.compensate, "compensate: true"),
    ("prune", ("round_epochs",), lambda r: r.prune.rounds > 1, "rounds` above `1"),
    ("distill", ("focus_weight",), lambda r: r.distill.votes == "all", "votes: all"),
    ("distill", ("feature_weight",), lambda r: r.distill.objective == "kd", "objective: kd"),
    ("distill", _DEKD_KEYS, lambda r: r.distill.objective == "dekd", "objective: dekd"),
    ("fuse", ("other",), lambda r: r.fuse.kind != "mlp", "kind: average` or `kind: residual"),
    ("evaluate", ("rivals",), lambda r: r.evaluate.baselines, "baselines: true"),
    ("fuse", ("feedback_weight",), lambda r: r.fuse.joint and r.fuse.kind != "mlp", "joint: true` and `kind: average"),
    (
        "fuse",
        ("diversity_weight",),
        lambda r: r.fuse.joint and r.votes_over_all,
        "joint: true` and `distill.votes: all",
    ),
    ("fuse", _JOINT_KEYS, lambda r: r.fuse.joint, "joint: true"),
    ("auto", ("tries", "min_gap"), lambda r: r.strategy == "auto", "strategy: auto"),
)
"""Section, its keys that are read only under a condition on the recipe, that condition, and how it is written."""


def refuse_unread(recipe: "Recipe", data: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for a value that is written although the others leave it unread, whatever the strategy."""
    meant = list(candidates_of(recipe).values())
    for section, keys, is_read, condition in READ_ONLY_WITH:
        key = next((key for key in keys if key in (data.get(section) or {})), None)
        if key is not None and not any(is_read(each) for each in (recipe, *meant)):
            raise RecipeError(
                f"recipe key `{section}.{key}` is read only with `{condition}`, which this recipe does not say. It "
                f"would be ignored silently. Remove it, or write `{condition}`."
            )
    refuse_overridden(recipe, data)
