# SPDX-License-Identifier: Apache-2.0
"""Values of a recipe that cannot hold together although each is possible: refused when the recipe is made."""

from typing import TYPE_CHECKING

from edvit_hf.data import DatasetConfig
from edvit_hf.errors import RecipeError

if TYPE_CHECKING:
    from edvit_hf.recipe.schema import Recipe


def check_joint_terms(recipe: "Recipe") -> None:
    """Raise `RecipeError` where a term of the joint tuning compares votes that cannot be compared."""
    fuse = recipe.fuse
    if fuse.joint and fuse.feedback_weight and fuse.kind == "mlp":
        raise RecipeError(
            f"`fuse.feedback_weight` is read only with `fuse.kind: average` or `residual`, got {fuse.feedback_weight} "
            "with `mlp`: it draws every vote to the average of all votes, and a head on features averages none. Choose "
            "one of these kinds, remove the weight, or take a `strategy` whose fusion averages (generalists)."
        )
    if fuse.joint and fuse.diversity_weight and not recipe.votes_over_all:
        raise RecipeError(
            f"`fuse.diversity_weight` is read only with votes over all classes, got {fuse.diversity_weight} with votes "
            "over class groups: it compares probabilities place by place, which would be of different classes. Write "
            f"`distill.votes: all` or `split.coverage: {recipe.split.num_sub_models}`, or remove the weight."
        )


def check_vocabulary(recipe: "Recipe") -> None:
    """Raise `RecipeError` where the sub-models' vocabulary cannot be smaller than the teacher's."""
    if recipe.task != "text-classification":
        raise RecipeError(
            f"`prune.vocabulary` cuts the words that sub-models know, but the task is {recipe.task}, whose models read "
            "none. It would be ignored silently. Remove it."
        )
    if recipe.distill.objective == "dekd":
        raise RecipeError(
            "`distill.objective: dekd` compares relations between the same tokens of teacher and sub-model, but "
            "`prune.vocabulary` gives them other tokens. Use `objective: kd`, or remove `vocabulary`."
        )


def refuse_equal_splits(dataset: DatasetConfig) -> None:
    """Raise `RecipeError` where one split has two roles: a test on what was learnt says nothing."""
    roles = ("train_split", "validation_split", "test_split")
    named = [(role, getattr(dataset, role)) for role in roles if getattr(dataset, role) is not None]
    for place, (role, name) in enumerate(named):
        for other, same in named[:place]:
            if name == same:
                raise RecipeError(
                    f"`dataset.{other}` and `dataset.{role}` are both {name!r}: the same rows would be learnt or "
                    "chosen by, and then tell how well. Name another split, or write `test_split: null` to hold out "
                    "`test_fraction` of the training rows (`validation_split: null` carves those rows out by itself)."
                )
