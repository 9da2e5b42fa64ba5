# SPDX-License-Identifier: Apache-2.0
"""Split a Vision-Transformer-family classifier by classes into small sub-models for edge devices.

Comes in, through the names below: a recipe, a manifest, or an ensemble's folder or Hub id. Goes out: a finished
ensemble, or its answers. Users import from here; the rooms take only `lazy` and the version.

Importing this package loads neither torch nor transformers: public names are resolved when first touched, and
touching a model class registers it with the Transformers Auto classes.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import named_extra

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


def lazy(
    package: str, owners: Mapping[str, Sequence[str]], *, needs: tuple[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package whose names load when they are first touched.

    An `if TYPE_CHECKING:` block beside the call imports the same names for type checkers; a test compares the two.

    Args:
        package: `__name__` of the package.
        owners: Module of the package -> the public names that it defines.
        needs: What needs an extra, and which (see `errors.named_extra`), where a module imports optional packages.

    Raises:
        AttributeError: From `__getattr__`: the package has no such name. `MissingExtraError`: the extra is missing.
    """
    module_of = {name: module for module, names in owners.items() for name in names}
    public = sorted(module_of)

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; public names: {', '.join(public)}")
        if needs is None:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        with named_extra(*needs):
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return load, lambda: list(public), public


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
