# SPDX-License-Identifier: Apache-2.0
"""Training: one Accelerate loop, five objectives (classify, distil, lockstep, fuse, joint), the data each reads.

Comes in: a model, items of one epoch at a time, an objective and a `TrainConfig`. Goes out: the trained model and a
log; an interrupted run resumes to the same bits. The recipe calls it. Names load lazily: configs need no torch.
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.training.absences import absence_masks, fit_temperatures, shares_right
    from edvit_hf.training.checkpoints import TrainLog
    from edvit_hf.training.config import DistillConfig, FuseConfig, TrainConfig, joint_config
    from edvit_hf.training.epoch_data import (
        Batch,
        ClassifyData,
        DistillData,
        EpochData,
        FuseData,
        JointData,
        LockstepData,
    )
    from edvit_hf.training.features import FeatureMapping, MatchedModel, matching_objective
    from edvit_hf.training.joint import JointModel, joint_objective
    from edvit_hf.training.loading import epoch_batches, epoch_order
    from edvit_hf.training.lockstep import Lockstep, lockstep_objective
    from edvit_hf.training.loop import train
    from edvit_hf.training.objectives import (
        Focus,
        Objective,
        classify_objective,
        distill_objective,
        fuse_objective,
        group_distribution,
    )
    from edvit_hf.training.processes import my_share, process_state
    from edvit_hf.training.teacher import TeacherOutputs, teacher_outputs
    from edvit_hf.training.threads import use_all_cores

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "absences": ("absence_masks", "fit_temperatures", "shares_right"),
        "checkpoints": ("TrainLog",),
        "config": ("DistillConfig", "FuseConfig", "TrainConfig", "joint_config"),
        "epoch_data": ("Batch", "ClassifyData", "DistillData", "EpochData", "FuseData", "JointData", "LockstepData"),
        "features": ("FeatureMapping", "MatchedModel", "matching_objective"),
        "loading": ("epoch_batches", "epoch_order"),
        "joint": ("JointModel", "joint_objective"),
        "lockstep": ("Lockstep", "lockstep_objective"),
        "loop": ("train",),
        "objectives": (
            "Focus",
            "Objective",
            "classify_objective",
            "distill_objective",
            "fuse_objective",
            "group_distribution",
        ),
        "processes": ("my_share", "process_state"),
        "teacher": ("TeacherOutputs", "teacher_outputs"),
        "threads": ("use_all_cores",),
    },
)
