# SPDX-License-Identifier: Apache-2.0
"""Registers the model classes with the Transformers Auto classes and finds those of a task; loaded at the first use.

Comes in: a task. Goes out: the class of its ensembles, or of its stock classifiers. Whoever loads a model with
Transformers imports it; export, recipe and `published` call it. It needs torch.

```python
import edvit_hf.auto
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("work/digits/09_card/ensemble")  # or a Hub id
print(type(model).__name__, len(model.sub_models))
```
"""

from pathlib import Path
from typing import Any

from edvit_hf.errors import named_extra
from edvit_hf.tasks import TASKS, Task

with named_extra("Using a model class", "torch"):
    from transformers import AutoConfig, AutoModel

    from edvit_hf.configuration_edvit import EDViTConfig
    from edvit_hf.files_edvit import check_weight_files, weight_files
    from edvit_hf.modeling_edvit import (
        STOCK_AUTO_CLASSES,
        EDViTForAudioClassification,
        EDViTForImageClassification,
        EDViTForSequenceClassification,
        EDViTModel,
    )

_ENSEMBLE_CLASSES: dict[Task, Any] = {
    "image-classification": EDViTForImageClassification,
    "audio-classification": EDViTForAudioClassification,
    "text-classification": EDViTForSequenceClassification,
}


def ensemble_class(task: Task) -> Any:
    """Return the class of ensembles that do `task`, for example EDViTForImageClassification."""
    return _ENSEMBLE_CLASSES[task]


def stock_auto_class(task: Task) -> Any:
    """Return the Transformers class that loads a stock classifier for `task`, for example a teacher or a sub-model."""
    return STOCK_AUTO_CLASSES[task]


def load_stock(task: Task, source: str | Path, *, revision: str | None = None, **options: Any) -> tuple[Any, Any]:
    """Load a stock classifier for `task` from a folder or a Hub id, and return it with the loader's report.

    Weights are read from safetensors alone and must be floats: the stock loader opens pickles where it finds nothing
    else, and casts integers. No code of a repository is run. `options` are those of the stock `from_pretrained`.

    Raises:
        OSError: If there are no safetensors.
        ValueError: If they are damaged or no floats, or an adapter lies there instead of a model.
    """
    revision = revision or "main"
    check_weight_files(weight_files(str(source), revision=revision), source)
    options |= {"revision": revision, "use_safetensors": True, "trust_remote_code": False}
    model, report = stock_auto_class(task).from_pretrained(source, output_loading_info=True, **options)
    return model, report


AutoConfig.register("edvit", EDViTConfig, exist_ok=True)
AutoModel.register(EDViTConfig, EDViTModel, exist_ok=True)
for _task in TASKS:
    stock_auto_class(_task).register(EDViTConfig, ensemble_class(_task), exist_ok=True)
