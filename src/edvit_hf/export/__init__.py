"""Export: a trained ensemble -> one ONNX file per sub-model and variant, the fusion head, and the manifest.

Importing this package loads neither torch nor onnx; `export_ensemble` does when first touched.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edvit_hf.export.config import ExportConfig

if TYPE_CHECKING:
    from edvit_hf.export.ensemble import export_ensemble

__all__ = ["ExportConfig", "export_ensemble"]


def __getattr__(name: str) -> Any:
    if name != "export_ensemble":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return importlib.import_module("edvit_hf.export.ensemble").export_ensemble
