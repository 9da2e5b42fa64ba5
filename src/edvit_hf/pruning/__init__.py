# SPDX-License-Identifier: Apache-2.0
"""Class-wise structured pruning: score the units of a teacher, plan which stay, cut a smaller model, compensate.

Comes in: a stock teacher and samples of a class group. Goes out: scores, a plan that prints, a smaller stock model of
the same class. `recipe` calls it. Names load when first touched: `edvit_hf.pruning.config` is read without torch.
"""

from typing import TYPE_CHECKING

from edvit_hf import lazy

if TYPE_CHECKING:
    from edvit_hf.pruning.compensation import compensate
    from edvit_hf.pruning.config import PruneConfig
    from edvit_hf.pruning.cut import prune
    from edvit_hf.pruning.models import ARCHITECTURES, Architecture, architecture_of
    from edvit_hf.pruning.plan import PruningPlan, make_plan
    from edvit_hf.pruning.score import UnitScores, unit_scores

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "models": ("ARCHITECTURES", "Architecture", "architecture_of"),
        "compensation": ("compensate",),
        "config": ("PruneConfig",),
        "score": ("UnitScores", "unit_scores"),
        "plan": ("PruningPlan", "make_plan"),
        "cut": ("prune",),
    },
)
