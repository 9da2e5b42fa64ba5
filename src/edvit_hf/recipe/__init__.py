# SPDX-License-Identifier: Apache-2.0
"""The trip: a recipe's values, and `run`, which takes them through every stage in order.

Comes in: a YAML file. Goes out: a work directory with a folder for each stage, the last one ready to push. The command
line calls it. Names load lazily: reading a recipe and planning from it need no torch, running it does.
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.recipe.data_recipe import DataRecipe, load_data_recipe
    from edvit_hf.recipe.running import STAGES, StageRecord, run
    from edvit_hf.recipe.schema import Recipe, find_recipe, load_recipe, packaged_recipes

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "data_recipe": ("DataRecipe", "load_data_recipe"),
        "running": ("STAGES", "StageRecord", "run"),
        "schema": ("Recipe", "find_recipe", "load_recipe", "packaged_recipes"),
    },
    needs=("Running a recipe", "train,export"),
)
