"""Datasets: loading, splits in RAM, class-group views, replayable augmentation."""

from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.class_groups import class_group_indices, class_group_labels
from edvit_hf.data.config import EMBEDDED_DATASET, DatasetConfig
from edvit_hf.data.split import CachedPixels, ImageSplit, PixelStore, iterate_batches
from edvit_hf.data.task import CACHE_LIMIT_BYTES, TaskData, load_task

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
