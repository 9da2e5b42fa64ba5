"""`edvit plan RECIPE`: what each device would carry, from sizes alone, with no training and no download."""

import json
from pathlib import Path
from typing import Any

from edvit_hf import planning, splitting
from edvit_hf.errors import RecipeError
from edvit_hf.recipe.schema import Recipe

KNOWN_NUM_CLASSES = {"digits": 10, "ylecun/mnist": 10, "uoft-cs/cifar10": 10}


def plan_recipe(recipe: Recipe, *, num_classes: int | None = None) -> planning.Plan:
    """The plan of a recipe before any of it has run.

    Args:
        recipe (`Recipe`): Its teacher must be `from_scratch` or a local checkpoint folder.
        num_classes: Number of classes; None where the recipe tells it.

    Raises:
        RecipeError: The number of classes or the teacher's sizes are not known.
        BudgetError: No plan fits the fleet.
    """
    if num_classes is None:
        num_classes = KNOWN_NUM_CLASSES.get(recipe.dataset.path)
    if num_classes is None:
        raise RecipeError(
            f"the number of classes of dataset {recipe.dataset.path!r} is not known without loading it. "
            "The cost of the heads depends on it. Pass --num-classes."
        )
    groups = splitting.split_classes(num_classes, recipe.split)
    shape = planning.EncoderShape.from_config(_teacher_config(recipe), num_labels=num_classes)
    return plan_groups(recipe, shape, groups)


def plan_groups(recipe: Recipe, shape: planning.EncoderShape, groups: list[list[int]]) -> planning.Plan:
    """The plan for given sizes and class groups under the recipe's keep and fleet."""
    keep = recipe.prune.keep_heads
    return planning.plan(
        shape, groups, planning.load_fleet(recipe.fleet_path),
        keep_heads=None if keep == "auto" else keep, fusion_hidden_size=recipe.fuse.hidden_size,
    )  # fmt: skip


def _teacher_config(recipe: Recipe) -> dict[str, Any]:
    teacher = recipe.teacher
    if teacher.from_scratch is not None:
        return {"image_size": recipe.dataset.image_size, "num_channels": 3, **teacher.from_scratch}
    local = Path(teacher.checkpoint or "") / "config.json"
    if not local.is_file():
        raise RecipeError(
            f"the sizes of `teacher.checkpoint` {teacher.checkpoint!r} are not here: {local} does not exist. "
            "Planning downloads nothing. Give a local folder, or run the teacher stage first."
        )
    config: dict[str, Any] = json.loads(local.read_text(encoding="utf-8"))
    return config
