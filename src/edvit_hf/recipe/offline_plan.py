# SPDX-License-Identifier: Apache-2.0
"""`edvit plan RECIPE`: what each device would carry, from sizes alone, with no training and no download."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from edvit_hf import planning
from edvit_hf.costs import ModelShape
from edvit_hf.errors import RecipeError
from edvit_hf.planning import PlacementMethod
from edvit_hf.recipe.groups import groups_before_training
from edvit_hf.recipe.rounds import check_rounds
from edvit_hf.recipe.schema import Recipe, packaged_recipes


def plan_recipe(
    recipe: Recipe,
    *,
    num_classes: int | None = None,
    fleet: Path | None = None,
    placement: PlacementMethod = "auto",
) -> planning.Plan:
    """The plan of a recipe before any of it has run.

    Args:
        recipe (`Recipe`): Its teacher's sizes come from `from_scratch`, a local checkpoint folder or `config`.
        num_classes: Number of classes; None where the recipe tells it.
        fleet: Another fleet file than the recipe's.
        placement: See `planning.plan`.

    Raises:
        RecipeError: The number of classes or the teacher's sizes are not known.
        BudgetError: No plan fits the fleet.
    """
    if fleet is not None:
        recipe = dataclasses.replace(recipe, fleet=str(fleet.resolve()))
    num_classes = num_classes or recipe.dataset.num_labels or _given_classes(recipe)
    if num_classes is None:
        raise RecipeError(
            f"the number of classes of dataset {recipe.dataset.path!r} is not known without loading it. "
            "The cost of the heads depends on it. Write `dataset.num_labels`, or pass --num-classes."
        )
    groups, note = groups_before_training(recipe, num_classes)
    shape = ModelShape.from_config(_teacher_config(recipe), num_labels=num_classes)
    result = plan_groups(recipe, shape, groups, placement=placement)
    return result if note is None else dataclasses.replace(result, notes=[note, *result.notes])


def plan_groups(
    recipe: Recipe, shape: ModelShape, groups: list[list[int]], *, placement: PlacementMethod = "auto"
) -> planning.Plan:
    """The plan for given sizes and class groups under the recipe's keep and fleet.

    Raises:
        BudgetError: No plan fits the fleet.
        RecipeError: More pruning rounds than there are heads to remove.
    """
    prune = recipe.prune
    result = planning.plan(
        shape, groups, planning.load_fleet(recipe.fleet_path),
        keep=prune.keep_heads if prune.keep_ratios is None else prune.keep_ratios,
        fusion_hidden_size=recipe.fuse.hidden_size, attention=prune.attention, placement=placement,
    )  # fmt: skip
    check_rounds(shape, result, prune.rounds)
    return result


def find_fleet(fleet: str | os.PathLike[str]) -> Path:
    """The path of a fleet given as a file or as the name of a packaged one (`ten_raspberry_pi_4b`).

    Raises:
        RecipeError: Neither exists; names the packaged ones.
    """
    path = Path(fleet)
    if path.is_file():
        return path
    folder = packaged_recipes() / "fleets"
    packaged = folder / f"{path.stem}.yaml"
    if path.parent == Path() and packaged.is_file():
        return packaged
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    raise RecipeError(f"fleet {str(fleet)!r} does not exist. Give a YAML file or one of the packaged names: {known}.")


def _given_classes(recipe: Recipe) -> int | None:
    groups = recipe.split.class_groups
    return None if groups is None else sum(map(len, groups))


def _teacher_config(recipe: Recipe) -> dict[str, Any]:
    teacher, images = recipe.teacher, {"image_size": recipe.dataset.image_size, "num_channels": 3}
    local = Path(teacher.checkpoint or "") / "config.json"
    if teacher.from_scratch is not None:
        return {**images, **teacher.from_scratch}
    if teacher.checkpoint is not None and local.is_file():
        config: dict[str, Any] = json.loads(local.read_text(encoding="utf-8"))
        return config
    if teacher.config is not None:
        return {**images, **teacher.config}
    raise RecipeError(
        f"the sizes of `teacher.checkpoint` {teacher.checkpoint!r} are not here: {local} does not exist and the recipe "
        "has no `teacher.config`. Planning downloads nothing. Write the checkpoint's sizes as `teacher.config` (its "
        "model_type, hidden_size, ...), give a local folder, or run the teacher stage first."
    )
