"""The trip: a recipe's values, and `run`, which takes them through every stage in order."""

from edvit_hf.recipe.running import STAGES, StageRecord, run
from edvit_hf.recipe.schema import Recipe, find_recipe, load_recipe, packaged_recipes

__all__ = ["STAGES", "Recipe", "StageRecord", "find_recipe", "load_recipe", "packaged_recipes", "run"]
