"""Split a Vision-Transformer-family classifier by classes into small sub-models for edge devices.

Importing this package loads neither torch nor transformers: public names are resolved when first touched, and
touching a model class registers it with the Transformers Auto classes.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from edvit_hf._version import __version__

# Where onnxruntime is imported it would otherwise leave an id of the device in the user's cache, for reports of use to
# its maker. A device that should send them sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from edvit_hf.configuration_edvit import EDViTConfig
    from edvit_hf.manifest import Manifest
    from edvit_hf.modeling_edvit import (
        EDViTForAudioClassification,
        EDViTForImageClassification,
        EDViTForSequenceClassification,
        EDViTModel,
    )
    from edvit_hf.recipe import Recipe
    from edvit_hf.runtime import EDViTRuntime

_PUBLIC = {
    "EDViTConfig": "edvit_hf.auto",
    "EDViTModel": "edvit_hf.auto",
    "EDViTForAudioClassification": "edvit_hf.auto",
    "EDViTForImageClassification": "edvit_hf.auto",
    "EDViTForSequenceClassification": "edvit_hf.auto",
    "EDViTRuntime": "edvit_hf.runtime",
    "Manifest": "edvit_hf.manifest",
    "Recipe": "edvit_hf.recipe",
}

__all__ = [
    "EDViTConfig",
    "EDViTForAudioClassification",
    "EDViTForImageClassification",
    "EDViTForSequenceClassification",
    "EDViTModel",
    "EDViTRuntime",
    "Manifest",
    "Recipe",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edvit_hf' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
