"""Datasets of images, sounds and texts: loading, splits in RAM, class-group views, replayable augmentation.

Names load lazily: `DatasetConfig` and `Augmentation`, which a recipe is made of, need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import named_extra

if TYPE_CHECKING:
    from edvit_hf.data.audio_split import AudioSplit, CachedFeatures, FeatureStore
    from edvit_hf.data.augmentation import Augmentation
    from edvit_hf.data.class_groups import class_group_indices, class_group_labels
    from edvit_hf.data.config import EMBEDDED_DATASET, DatasetConfig
    from edvit_hf.data.decoding import CACHE_LIMIT_BYTES
    from edvit_hf.data.image_split import CachedPixels, ImageSplit, PixelStore
    from edvit_hf.data.mix import mix_batch
    from edvit_hf.data.modalities import AudioConfig, TextConfig
    from edvit_hf.data.split import Split, iterate_batches
    from edvit_hf.data.task import TaskData, load_task
    from edvit_hf.data.text_split import SpecialTokens, TextSplit, TokenStore
    from edvit_hf.data.tokenizer import train_tokenizer

_OWNERS = {
    "audio_split": ("AudioSplit", "CachedFeatures", "FeatureStore"),
    "augmentation": ("Augmentation",),
    "class_groups": ("class_group_indices", "class_group_labels"),
    "config": ("EMBEDDED_DATASET", "DatasetConfig"),
    "decoding": ("CACHE_LIMIT_BYTES",),
    "image_split": ("CachedPixels", "ImageSplit", "PixelStore"),
    "modalities": ("AudioConfig", "TextConfig"),
    "split": ("Split", "iterate_batches"),
    "mix": ("mix_batch",),
    "task": ("TaskData", "load_task"),
    "text_split": ("SpecialTokens", "TextSplit", "TokenStore"),
    "tokenizer": ("train_tokenizer",),
}
_MODULE_OF = {name: module for module, names in _OWNERS.items() for name in names}

__all__ = [
    "CACHE_LIMIT_BYTES",
    "EMBEDDED_DATASET",
    "AudioConfig",
    "AudioSplit",
    "Augmentation",
    "CachedFeatures",
    "CachedPixels",
    "DatasetConfig",
    "FeatureStore",
    "ImageSplit",
    "PixelStore",
    "SpecialTokens",
    "Split",
    "TaskData",
    "TextConfig",
    "TextSplit",
    "TokenStore",
    "class_group_indices",
    "class_group_labels",
    "iterate_batches",
    "load_task",
    "mix_batch",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    with named_extra("Reading a dataset", "train"):
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
