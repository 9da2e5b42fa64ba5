"""Split a Vision-Transformer-family classifier by classes into small sub-models for edge devices.

Importing this package loads neither torch nor transformers: public names are resolved when first touched, and
touching a model class registers it with the Transformers Auto classes.
"""

import os
from typing import TYPE_CHECKING

from edvit_hf.lazy import lazy

__version__ = "0.1.0"

# Where onnxruntime is imported it would otherwise leave an id of the device in the user's cache, for reports of use to
# its maker. A device that should send them sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from edvit_hf.auto import (
        EDViTConfig,
        EDViTForAudioClassification,
        EDViTForImageClassification,
        EDViTForSequenceClassification,
        EDViTModel,
    )
    from edvit_hf.manifest import Manifest
    from edvit_hf.recipe import Recipe
    from edvit_hf.runtime import EDViTRuntime

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "auto": (
            "EDViTConfig",
            "EDViTForAudioClassification",
            "EDViTForImageClassification",
            "EDViTForSequenceClassification",
            "EDViTModel",
        ),
        "manifest": ("Manifest",),
        "recipe": ("Recipe",),
        "runtime": ("EDViTRuntime",),
    },
)
__all__ += ["__version__"]
