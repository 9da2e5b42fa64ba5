# SPDX-License-Identifier: Apache-2.0
"""Datasets of images, sounds and texts: loading, splits in RAM, class-group views, replayable augmentation.

Comes in: the `dataset` and `augmentation` sections of a recipe. Goes out: train, validation and test splits that read
alike whatever the task. Training, `published` and the recipe call it. Names load lazily: `DatasetConfig` and
`Augmentation` need no torch.

```python
from edvit_hf.data import Augmentation, DatasetConfig, iterate_batches, load_task

config = DatasetConfig(path="digits", image_size=8, max_train_samples=200, max_test_samples=60)
data = load_task(config, Augmentation(shift=0.05), task="image-classification")
batch = next(iterate_batches(data.test, 16))
print(data.label_names, batch["inputs"]["pixel_values"].shape, batch["labels"])
```
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.data.audio_split import AudioSplit
    from edvit_hf.data.augmentation import Augmentation
    from edvit_hf.data.class_groups import class_group_indices, class_group_labels
    from edvit_hf.data.config import EMBEDDED_DATASET, DatasetConfig
    from edvit_hf.data.decoding import CACHE_LIMIT_BYTES
    from edvit_hf.data.image_split import ImageSplit
    from edvit_hf.data.mix import mix_batch
    from edvit_hf.data.modalities import AudioConfig, TextConfig
    from edvit_hf.data.retokenised import with_vocabulary
    from edvit_hf.data.split import ArrayStore, Split, Store, iterate_batches
    from edvit_hf.data.task import TaskData, TestData, load_task, load_test
    from edvit_hf.data.text_split import SpecialTokens, TextSplit, TokenStore
    from edvit_hf.data.tokenizer import train_tokenizer

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "audio_split": ("AudioSplit",),
        "augmentation": ("Augmentation",),
        "class_groups": ("class_group_indices", "class_group_labels"),
        "config": ("EMBEDDED_DATASET", "DatasetConfig"),
        "decoding": ("CACHE_LIMIT_BYTES",),
        "image_split": ("ImageSplit",),
        "modalities": ("AudioConfig", "TextConfig"),
        "retokenised": ("with_vocabulary",),
        "split": ("ArrayStore", "Split", "Store", "iterate_batches"),
        "mix": ("mix_batch",),
        "task": ("TaskData", "TestData", "load_task", "load_test"),
        "text_split": ("SpecialTokens", "TextSplit", "TokenStore"),
        "tokenizer": ("train_tokenizer",),
    },
    needs=("Reading a dataset", "train"),
)
