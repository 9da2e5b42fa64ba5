# SPDX-License-Identifier: Apache-2.0
"""What of a recipe says on which data an ensemble is measured: a whole recipe, or its `dataset` section alone."""

import os
from dataclasses import dataclass, field
from typing import Any, cast

from edvit_hf.data import DatasetConfig
from edvit_hf.evaluation.evaluator import EvaluateConfig
from edvit_hf.recipe.faults import read_completely
from edvit_hf.recipe.overrides import place_of
from edvit_hf.recipe.places import with_whole_paths
from edvit_hf.recipe.schema import Recipe, find_recipe, load_recipe, read_recipe_file
from edvit_hf.strict import RECIPE, read_strictly
from edvit_hf.tasks import Task


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """A recipe that only names data.

    Attributes:
        name: Of the file, without its ending.
        dataset: Where the data are.
        task: What they are; None: whatever the ensemble classifies.
        evaluate: Batch size and number of subsets.
    """

    name: str
    dataset: DatasetConfig
    task: Task | None = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


_SECTIONS = {"dataset", "task", "evaluate"}


def load_data_recipe(recipe: str | os.PathLike[str]) -> Recipe | DataRecipe:
    """Read what a recipe says of data: a file with `dataset` (and `task`, `evaluate`) alone, or a whole recipe.

    Raises:
        RecipeError: As `load_recipe`.
    """
    path = find_recipe(recipe)
    data = read_recipe_file(path)
    if not set(data) <= _SECTIONS:
        return load_recipe(path)

    def build(sections: dict[str, Any]) -> DataRecipe:
        whole, _ = with_whole_paths(sections, path.parent.resolve())
        return cast(DataRecipe, read_strictly(DataRecipe, {**whole, "name": path.stem}, form=RECIPE))

    built: DataRecipe = read_completely(data, build, DataRecipe, lambda keys: place_of(keys, path, {}), path.name)
    return built
