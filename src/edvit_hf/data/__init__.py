"""Datasets: loading, splits in RAM, class-group views, replayable augmentation.

Names load lazily: `DatasetConfig` and `Augmentation`, which a recipe is made of, need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import named_extra

if TYPE_CHECKING:
    from edvit_hf.data.augmentation import Augmentation
    from edvit_hf.data.class_groups import class_group_indices, class_group_labels
    from edvit_hf.data.config import EMBEDDED_DATASET, DatasetConfig
    from edvit_hf.data.split import CachedPixels, ImageSplit, PixelStore, iterate_batches
    from edvit_hf.data.task import CACHE_LIMIT_BYTES, TaskData, load_task

_OWNERS = {
    "augmentation": ("Augmentation",),
    "class_groups": ("class_group_indices", "class_group_labels"),
    "config": ("EMBEDDED_DATASET", "DatasetConfig"),
    "split": ("CachedPixels", "ImageSplit", "PixelStore", "iterate_batches"),
    "task": ("CACHE_LIMIT_BYTES", "TaskData", "load_task"),
}
_MODULE_OF = {name: module for module, names in _OWNERS.items() for name in names}

__all__ = [
    "CACHE_LIMIT_BYTES",
    "EMBEDDED_DATASET",
    "Augmentation",
    "CachedPixels",
    "DatasetConfig",
    "ImageSplit",
    "PixelStore",
    "TaskData",
    "class_group_indices",
    "class_group_labels",
    "iterate_batches",
    "load_task",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    with named_extra("Reading a dataset", "train"):
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
