"""Export: a trained ensemble -> ONNX files of its sub-models, of the fusion head and of the whole, and the manifest.

Importing this package loads neither torch nor onnx; names other than `ExportConfig` do when first touched.
"""

from typing import TYPE_CHECKING

from edvit_hf import lazy

if TYPE_CHECKING:
    from edvit_hf.export.config import ExportConfig
    from edvit_hf.export.ensemble import export_ensemble
    from edvit_hf.export.gates import SplitAnswers, SplitMeasure
    from edvit_hf.export.variants import CalibrationItems

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "config": ("ExportConfig",),
        "variants": ("CalibrationItems",),
        "gates": ("SplitAnswers", "SplitMeasure"),
        "ensemble": ("export_ensemble",),
    },
)
