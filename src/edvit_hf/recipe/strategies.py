# SPDX-License-Identifier: Apache-2.0
"""Strategies: what the devices do for each other, each a preset of recipe values and nothing else.

Comes in: a recipe and the name of a strategy. Goes out: the recipe that says it in its own keys. A light module:
`edvit plan` asks it before anything is trained. Which one to take is measured by `recipe.choosing`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from edvit_hf.errors import RecipeError
from edvit_hf.strict import number, one_of
from edvit_hf.tasks import LEAST_GAP

if TYPE_CHECKING:
    from edvit_hf.recipe.schema import Recipe

Strategy = Literal["split", "replicas", "copies", "overlap", "generalists", "auto"]
Tried = Literal["split", "copies", "overlap", "generalists"]
BASE: Strategy = "replicas"
"""What every other strategy must beat: one plain model of a device's size, the same on every device."""


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """What `strategy: auto` tries besides replicas, and when it is worth trying.

    Attributes:
        tries: Strategies to train, each as long per device as the plain model: all are trained, one is kept.
        min_gap: Share of the validation items by which one plain model of all devices' size together must be ahead of
            one of a device's size, at the upper end of a paired 95 % interval. Where it certainly is not, nothing is
            tried: a small model already does what a large one does. -1: all are tried.
    """

    tries: tuple[Tried, ...] = ("generalists", "overlap")
    min_gap: float = LEAST_GAP

    def __post_init__(self) -> None:
        if not self.tries or len(set(self.tries)) != len(self.tries):
            raise RecipeError(
                f"`auto.tries` must name strategies, each once, got {list(self.tries)}. Without any there is nothing "
                "to choose from: write `strategy: replicas` for that."
            )
        for name in self.tries:
            one_of("auto.tries", name, get_args(Tried), "it is trained and compared")
        number("auto.min_gap", self.min_gap, "[-1, 1]", "it is a share of the validation items")


def as_strategy(recipe: "Recipe", name: Strategy) -> "Recipe":
    """The recipe with the values of a strategy; every other value stays.

    All train as long per device: where there is no joint tuning, its epochs are added to those of the distillation, and
    where an epoch holds a part of the items, since a sub-model sees its group and as many others, there are more.

    Raises:
        RecipeError: The strategy and the recipe contradict each other.
    """
    one_of("strategy", name, get_args(Strategy), "it says what the devices do for each other")
    if name in ("split", "auto"):
        return recipe
    if recipe.split.class_groups is not None:
        raise RecipeError(
            f"`strategy: {name}` makes its own class groups, but `split.class_groups` gives some. Both cannot hold. "
            "Remove one of them."
        )
    return dataclasses.replace(_PRESETS[name](recipe), strategy="split", asked=name)


def _replicas(recipe: "Recipe") -> "Recipe":
    split = dataclasses.replace(recipe.split, num_sub_models=1, coverage=1, strategy="balanced", sizes="equal")
    prune = dataclasses.replace(recipe.prune, **_of_one(recipe))
    devices = recipe.evaluate.devices or recipe.split.num_sub_models
    evaluate = dataclasses.replace(recipe.evaluate, devices=devices)
    return _without_joint_tuning(
        dataclasses.replace(recipe, split=split, prune=prune, evaluate=evaluate), votes="group"
    )


def _copies(recipe: "Recipe") -> "Recipe":
    count = recipe.split.num_sub_models
    split = dataclasses.replace(recipe.split, coverage=count, strategy="balanced", sizes="equal")
    return _without_joint_tuning(dataclasses.replace(recipe, split=split), votes="group")


def _overlap(recipe: "Recipe") -> "Recipe":
    _refuse_fewer(recipe, "overlap", 2)
    split = dataclasses.replace(recipe.split, coverage=max(2, recipe.split.coverage))
    fuse = dataclasses.replace(
        recipe.fuse, kind="mlp", other=None, joint=True, feedback_weight=0.0, diversity_weight=0.0
    )
    seen = split.coverage / split.num_sub_models * (1 + recipe.distill.negatives_per_positive)
    epochs = round(recipe.distill.epochs / min(1.0, seen))
    distill = dataclasses.replace(recipe.distill, votes="group", focus_weight=1.0, epochs=epochs)
    return dataclasses.replace(recipe, split=split, fuse=fuse, distill=distill)


def _generalists(recipe: "Recipe") -> "Recipe":
    _refuse_fewer(recipe, "generalists", 2)
    fuse = dataclasses.replace(recipe.fuse, kind="residual", joint=True)
    return dataclasses.replace(recipe, fuse=fuse, distill=dataclasses.replace(recipe.distill, votes="all"))


_PRESETS = {"replicas": _replicas, "copies": _copies, "overlap": _overlap, "generalists": _generalists}


def _without_joint_tuning(recipe: "Recipe", votes: Literal["group", "all"]) -> "Recipe":
    more = recipe.fuse.joint_epochs if recipe.fuse.joint else 0
    distill = dataclasses.replace(recipe.distill, votes=votes, focus_weight=1.0, epochs=recipe.distill.epochs + more)
    fuse = dataclasses.replace(recipe.fuse, kind="average", other=None, joint=False)
    return dataclasses.replace(recipe, distill=distill, fuse=fuse)


def candidates_of(recipe: "Recipe") -> dict[Strategy, "Recipe"]:
    """The recipes that a recipe stands for: with `strategy: auto` those that are tried, else its own.

    Raises:
        RecipeError: One of them contradicts the recipe, before anything is trained.
    """
    names: tuple[Strategy, ...] = (BASE, *recipe.auto.tries) if recipe.strategy == "auto" else (recipe.strategy,)
    return {name: as_strategy(recipe, name) for name in names}


def refuse_overridden(recipe: "Recipe", data: Mapping[str, Any]) -> None:
    """Raise `RecipeError` where a written value is not that of the strategy that the recipe names."""
    if recipe.strategy in ("split", "auto"):
        return
    changed = as_strategy(recipe, recipe.strategy)
    for section, key in _SET_BY_STRATEGIES:
        written, own = getattr(getattr(recipe, section), key), getattr(getattr(changed, section), key)
        if key in (data.get(section) or {}) and written != own:
            raise RecipeError(
                f"`{section}.{key}` is {written!r}, but `strategy: {recipe.strategy}` makes it {own!r}. Both cannot "
                "hold. Remove the key, or say `strategy: split` and write every value yourself."
            )


_SET_BY_STRATEGIES = (
    *(("split", "coverage"), ("distill", "votes"), ("distill", "focus_weight"), ("fuse", "kind"), ("fuse", "other")),
    *(("fuse", "feedback_weight"), ("fuse", "diversity_weight")),
)


def _of_one(recipe: "Recipe") -> dict[str, Any]:
    """Lists of one value per sub-model, cut to the first: replicas are one model."""
    prune = recipe.prune
    return {
        name: (listed[0],) if name == "from_scratch" else min(listed)
        for name in ("keep_heads", "from_scratch")
        if isinstance(listed := getattr(prune, name), tuple)
    }


def _refuse_fewer(recipe: "Recipe", name: str, least: int) -> None:
    if recipe.split.num_sub_models < least:
        raise RecipeError(
            f"`strategy: {name}` needs `split.num_sub_models` of at least {least}, got {recipe.split.num_sub_models}: "
            "a lone sub-model shares nothing with others. Use `strategy: replicas`."
        )
