"""The trip: a recipe's values, and `run`, which takes them through every stage in order.

Names load lazily: reading a recipe and planning from it need neither torch nor transformers, running it does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import named_extra

if TYPE_CHECKING:
    from edvit_hf.recipe.running import STAGES, StageRecord, run
    from edvit_hf.recipe.schema import Recipe, find_recipe, load_recipe, packaged_recipes

_OWNERS = {
    "running": ("STAGES", "StageRecord", "run"),
    "schema": ("Recipe", "find_recipe", "load_recipe", "packaged_recipes"),
}
_MODULE_OF = {name: module for module, names in _OWNERS.items() for name in names}

__all__ = ["STAGES", "Recipe", "StageRecord", "find_recipe", "load_recipe", "packaged_recipes", "run"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    with named_extra("Running a recipe", "train,export"):
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
