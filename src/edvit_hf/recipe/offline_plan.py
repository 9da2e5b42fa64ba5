# SPDX-License-Identifier: Apache-2.0
"""`edvit plan RECIPE`: what each device would carry, from sizes alone, with no training and no download."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.architectures.tables import check_keys
from edvit_hf.errors import RecipeError
from edvit_hf.planning import keep_search
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.planning.keep_search import PlacementMethod
from edvit_hf.planning.plan import Plan
from edvit_hf.recipe.from_scratch import sub_model_shapes
from edvit_hf.recipe.groups import groups_before_training
from edvit_hf.recipe.rounds import check_rounds
from edvit_hf.recipe.schema import Recipe, packaged_recipes


def plan_recipe(
    recipe: Recipe, *, num_classes: int | None = None, fleet: Path | None = None, placement: PlacementMethod = "auto"
) -> Plan:
    """The plan of a recipe before any of it has run.

    Args:
        recipe (`Recipe`): Its teacher's sizes come from `from_scratch`, a local checkpoint folder or `config`.
        num_classes: Number of classes, at least 2; None where the recipe tells it.
        fleet: Another fleet file than the recipe's.
        placement: See `keep_search.plan`.

    Raises:
        RecipeError: The number of classes or the teacher's sizes are not known, or cannot be.
        PruningError: The teacher's config has a key or a size that no model can have.
        BudgetError: No plan fits the fleet.
    """
    if fleet is not None:
        recipe = dataclasses.replace(recipe, fleet=str(fleet.resolve()))
    if num_classes is not None and num_classes < 2:
        raise RecipeError(
            f"the number of classes must be at least 2, got {num_classes}. Fewer leave nothing to tell apart. Correct "
            "--num-classes."
        )
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
) -> Plan:
    """The plan for given sizes and class groups under the recipe's keep and fleet.

    Raises:
        BudgetError: No plan fits the fleet.
        RecipeError: More pruning rounds than there are heads to remove, or a sub-model from scratch that does not fit
            the teacher.
    """
    prune = recipe.prune
    result = keep_search.plan(
        shape, groups, load_fleet(recipe.fleet_path),
        keep=prune.keep_heads if prune.keep_ratios is None else prune.keep_ratios,
        from_scratch=sub_model_shapes(recipe, shape),
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
    if recipe.dataset.label_names is not None:
        return len(recipe.dataset.label_names)
    groups = recipe.split.class_groups
    return None if groups is None else sum(map(len, groups))


def _teacher_config(recipe: Recipe) -> dict[str, Any]:
    teacher = recipe.teacher
    local = Path(teacher.checkpoint or "") / "config.json"
    if teacher.from_scratch is not None:
        return _written_config(recipe, teacher.from_scratch, "teacher.from_scratch")
    if teacher.checkpoint is not None and local.is_file():
        return _stored_config(local)
    if teacher.config is not None:
        return _written_config(recipe, teacher.config, "teacher.config")
    raise RecipeError(
        f"the sizes of `teacher.checkpoint` {teacher.checkpoint!r} are not here: {local} does not exist and the recipe "
        "has no `teacher.config`. Planning downloads nothing. Write the checkpoint's sizes as `teacher.config` (its "
        "model_type, hidden_size, ...), give a local folder, or run the teacher stage first."
    )


def _written_config(recipe: Recipe, values: dict[str, Any], where: str) -> dict[str, Any]:
    """A config from the recipe: a key that its model type does not have would silently mean the stock default."""
    check_keys(values, where)
    return {**recipe.input_sizes, **values}


def _stored_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"`teacher.checkpoint`: {path} is no readable JSON: {error}. Fetch it again.") from error
    if not isinstance(config, dict):
        raise RecipeError(
            f"`teacher.checkpoint`: {path} must hold a JSON object, got {type(config).__name__}. The teacher's sizes "
            "are not known without it. Fetch it again."
        )
    return config
