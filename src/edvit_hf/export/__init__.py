"""Export: a trained ensemble -> ONNX files of its sub-models, of the fusion head and of the whole, and the manifest.

Comes in: a saved ensemble, what to write, and judges of its accuracy. Goes out: files that passed their gates, all of
them or none. The recipe, `published` and Optimum's command call it. Names but `ExportConfig` load torch when first
touched.
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
