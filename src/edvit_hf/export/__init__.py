# SPDX-License-Identifier: Apache-2.0
"""A saved ensemble becomes ONNX files that have passed their gates, and the manifest that vouches for them.

Comes in: the ensemble's folder, inputs, measures on its splits. Goes out: files in that folder. `recipe`, `published`
and Optimum's command call it. Names load when first touched: before that neither torch nor onnx is loaded.
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

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
