# SPDX-License-Identifier: Apache-2.0
"""Class-wise structured pruning: score the units of a teacher, plan which stay, cut a smaller stock model.

Names resolve when first touched, so that `edvit_hf.pruning.config` can be read without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edvit_hf.pruning.axes import ARCHITECTURES, Architecture, architecture_of
    from edvit_hf.pruning.compensation import compensate
    from edvit_hf.pruning.config import PruneConfig
    from edvit_hf.pruning.importance import UnitScores, unit_scores
    from edvit_hf.pruning.plan import PruningPlan, make_plan
    from edvit_hf.pruning.surgery import masked_forward, prune

_PUBLIC = {
    "ARCHITECTURES": "axes",
    "Architecture": "axes",
    "architecture_of": "axes",
    "compensate": "compensation",
    "PruneConfig": "config",
    "UnitScores": "importance",
    "unit_scores": "importance",
    "PruningPlan": "plan",
    "make_plan": "plan",
    "masked_forward": "surgery",
    "prune": "surgery",
}

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "PruneConfig",
    "PruningPlan",
    "UnitScores",
    "architecture_of",
    "compensate",
    "make_plan",
    "masked_forward",
    "prune",
    "unit_scores",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edvit_hf.pruning' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"edvit_hf.pruning.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
