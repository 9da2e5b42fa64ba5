# SPDX-License-Identifier: Apache-2.0
"""Split a Vision-Transformer-family classifier by classes into small sub-models for edge devices.

Comes in, through the names below: a recipe, a manifest, or an ensemble's folder or Hub id. Goes out: a finished
ensemble, or its answers. Users import from here; the rooms take only the version.

Importing this package loads neither torch nor transformers: public names are resolved when first touched, and
touching a model class registers it with the Transformers Auto classes.

```python
from edvit_hf import EDViTRuntime

with EDViTRuntime.from_pretrained("space_app/model/digits") as runtime:  # or a Hub id
    print(runtime("space_app/examples/digits/3_0023.png").label)
```
"""

import os
from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

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
