"""Training: one Accelerate loop, three objectives (classify, distil, fuse) and the data each of them reads.

Names load lazily, so that a recipe can be checked with `edvit_hf.training.config` without importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edvit_hf.training.checkpoints import TrainLog
    from edvit_hf.training.config import DistillConfig, FuseConfig, TrainConfig
    from edvit_hf.training.epoch_data import ClassifyData, DistillData, EpochData, FuseData, epoch_order
    from edvit_hf.training.loop import train
    from edvit_hf.training.objectives import (
        Objective,
        classify_objective,
        distill_objective,
        fuse_objective,
        group_distribution,
    )
    from edvit_hf.training.teacher import teacher_logits
    from edvit_hf.training.threads import use_all_cores

_OWNERS = {
    "checkpoints": ("TrainLog",),
    "config": ("TrainConfig", "DistillConfig", "FuseConfig"),
    "epoch_data": ("ClassifyData", "DistillData", "EpochData", "FuseData", "epoch_order"),
    "loop": ("train",),
    "objectives": (
        "Objective",
        "classify_objective",
        "distill_objective",
        "fuse_objective",
        "group_distribution",
    ),
    "teacher": ("teacher_logits",),
    "threads": ("use_all_cores",),
}
_MODULE_OF = {name: module for module, names in _OWNERS.items() for name in names}

__all__ = [
    "ClassifyData",
    "DistillConfig",
    "DistillData",
    "EpochData",
    "FuseConfig",
    "FuseData",
    "Objective",
    "TrainConfig",
    "TrainLog",
    "classify_objective",
    "distill_objective",
    "epoch_order",
    "fuse_objective",
    "group_distribution",
    "teacher_logits",
    "train",
    "use_all_cores",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
