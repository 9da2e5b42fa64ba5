"""Export: a trained ensemble -> ONNX files of its sub-models, of the fusion head and of the whole, and the manifest.

Importing this package loads neither torch nor onnx; names other than `ExportConfig` do when first touched.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edvit_hf.export.config import ExportConfig

if TYPE_CHECKING:
    from edvit_hf.export.accuracy import Judge, Judgement
    from edvit_hf.export.ensemble import export_ensemble
    from edvit_hf.export.variants import CalibrationItems

_MODULE_OF = {
    "CalibrationItems": "variants",
    "Judge": "accuracy",
    "Judgement": "accuracy",
    "export_ensemble": "ensemble",
}

__all__ = ["CalibrationItems", "ExportConfig", "Judge", "Judgement", "export_ensemble"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
