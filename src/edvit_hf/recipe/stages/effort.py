# SPDX-License-Identifier: Apache-2.0
"""How long models train: item passes that are fair for a rival, and what a training took, from its log."""

import dataclasses
from pathlib import Path
from typing import Any

from edvit_hf.data import class_group_indices
from edvit_hf.planning.plan import Plan
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json_object
from edvit_hf.training import DistillConfig

COMPUTE_CAP = (
    2.0  # a rival that costs more per item than one device's share trains with at most so many times its compute
)
LOG_FILE = "training_log.json"


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a training took.

    Attributes:
        passes_per_device: Item passes of the device whose models had the most.
        passes: Of all devices together.
        seconds: Spent in training, on one machine, all models together; None where no log tells.
    """

    passes_per_device: int
    passes: int
    seconds: float | None

    def to_row(self) -> dict[str, Any]:
        """As a row of `results.json` states it."""
        minutes = None if self.seconds is None else round(self.seconds / 60, 2)
        return {"passes": {"per_device": self.passes_per_device, "total": self.passes}, "minutes": minutes}


def on_fullest_device(plan: Plan, figure: str) -> int:
    """The largest sum of "parameters" or "macs" over the sub-models of one device."""
    return max(on_devices(plan, [getattr(s, figure) for s in plan.sub_models]))


def on_devices(plan: Plan, values: list[int]) -> list[int]:
    """Sums of what the sub-models have, for each device that carries some."""
    sums: dict[str, int] = {}
    for sub_model, value in zip(plan.sub_models, values, strict=True):
        sums[sub_model.device] = sums.get(sub_model.device, 0) + value
    return list(sums.values())


def sub_models_by_device(plan: Plan) -> list[list[int]]:
    """Which sub-models answer no more when a device is absent, for each device that carries some."""
    found: dict[str, list[int]] = {}
    for sub_model in plan.sub_models:
        found.setdefault(sub_model.device, []).append(sub_model.index)
    return list(found.values())


def num_devices(plan: Plan, asked: int | None = None) -> int:
    """How many devices are compared: those that carry sub-models; of a single one all that hold it, or so many."""
    if asked is not None and len(plan.sub_models) == 1:
        return asked
    devices = {sub_model.device for sub_model in plan.sub_models}
    if len(plan.sub_models) == 1:
        devices |= {replica.device for replica in plan.replicas}
    return len(devices)


def items_of_an_epoch(trip: Trip) -> list[int]:
    """How many training items each sub-model sees in an epoch of its distillation."""
    labels, ratio = trip.data.train.labels, trip.recipe.distill.negatives_per_positive
    return [
        len(class_group_indices(labels, group, negatives_per_positive=ratio, seed=0, epoch=0))
        for group in trip.class_groups
    ]


def planned_passes(trip: Trip) -> list[int]:
    """Item passes of each sub-model as the recipe states them: pruning rounds and joint tuning train too."""
    distill, prune, fuse = trip.recipe.distill, trip.recipe.prune, trip.recipe.fuse
    epochs = distill.epochs + (prune.rounds - 1) * prune.round_epochs
    joint = fuse.joint_epochs * len(trip.data.train) if fuse.joint else 0
    return [epochs * items + joint for items in items_of_an_epoch(trip)]


def all_passes(trip: Trip) -> int:
    """Epochs over all items that are as long as the training of all sub-models together."""
    return max(1, round(sum(planned_passes(trip)) / len(trip.data.train)))


def fair_budget(trip: Trip, macs: int) -> DistillConfig:
    """The distillation config with the epochs that are fair for a plain model of `macs` per item.

    As long as a device trains that sees every item: distillation, pruning rounds and joint tuning, whatever the split,
    so that one plain model serves every strategy. `evaluate.baseline_epochs` says otherwise. What costs more per item
    than one device's share makes as many passes as fit `COMPUTE_CAP` times that compute; the row's note states them.
    """
    distill, prune, fuse = trip.recipe.distill, trip.recipe.prune, trip.recipe.fuse
    own = distill.epochs + (prune.rounds - 1) * prune.round_epochs + (fuse.joint_epochs if fuse.joint else 0)
    epochs = trip.recipe.evaluate.baseline_epochs or own
    affordable = min(1.0, COMPUTE_CAP * on_fullest_device(trip.plan, "macs") / macs)
    return of_all_classes(dataclasses.replace(distill, epochs=max(1, round(affordable * epochs))))


def of_all_classes(config: DistillConfig) -> DistillConfig:
    """The config with what a model of all classes does not read at its default: the same model serves every split."""
    return dataclasses.replace(config, votes="group", focus_weight=1.0, negatives_per_positive=1.0)


def rival_effort(trip: Trip, folders: list[Path], config: DistillConfig) -> Effort:
    """What plain models took, one on each device, each logged in its folder: as many epochs as their logs have."""
    logs = [read_log(folder / LOG_FILE) for folder in folders]
    passes = [epochs * len(trip.data.train) for epochs in epochs_done(folders, config)]
    return Effort(max(passes), sum(passes), _seconds(logs))


def epochs_done(folders: list[Path], config: DistillConfig) -> list[int]:
    """How many epochs each log has, which `patience` may have ended early; without a log those of the config."""
    logs = [read_log(folder / LOG_FILE) for folder in folders]
    return [config.epochs if log is None else len(log) for log in logs]


def as_long_as_all(trip: Trip, done: int) -> bool:
    """Whether so many epochs over all items are as long as what the logs say of all sub-models together."""
    return done >= max(1, round(ensemble_effort(trip).passes / len(trip.data.train)))


def teacher_effort(trip: Trip) -> Effort | None:
    """What the teacher took here; None of one that was not trained here."""
    log = read_log(trip.folders["teacher"] / LOG_FILE)
    passes = 0 if log is None else len(log) * len(trip.data.train)
    return Effort(passes, passes, _seconds([log])) if passes else None


def ensemble_effort(trip: Trip) -> Effort:
    """What the sub-models took, every pruning round and the joint tuning included, and in seconds the fusion head too.

    Where a log is not there, the recipe's epochs are taken.
    """
    prune, distill, items = trip.recipe.prune, trip.recipe.distill, items_of_an_epoch(trip)
    stages = [(f"retrain_round{n}", prune.round_epochs) for n in range(1, prune.rounds)] + [("distill", distill.epochs)]
    passes, logs = [0] * len(items), []
    for stage, epochs in stages:
        for index, count in enumerate(items):
            training = trip.folders[stage] / "training"
            log = read_log(training / f"{index:02d}" / LOG_FILE)
            together = read_log(training / "00" / LOG_FILE) if distill.objective == "dekd" else None  # in lockstep
            known = log if together is None else together
            passes[index] += count * (epochs if known is None else len(known))
            if together is None or index == 0:
                logs.append(known)
    path = trip.folders["fuse"] / LOG_FILE
    fused = read_json_object(path, "the log of a training") if path.is_file() else {}
    parts = {name: _epochs(log) for name, log in fused.items()}
    logs += [log for log in parts.values() if log is not None] if path.is_file() else [None]  # an average trains none
    if trip.recipe.fuse.joint:
        joint = parts.get("joint")
        more = trip.recipe.fuse.joint_epochs if joint is None else len(joint)
        passes = [each + more * len(trip.data.train) for each in passes]
    devices = on_devices(trip.plan, passes)
    return Effort(max(devices), sum(passes), _seconds(logs))


def read_log(path: Path) -> list[dict[str, Any]] | None:
    """The epochs that a training logged; None without a log."""
    return _epochs(read_json_object(path, "the log of a training")) if path.is_file() else None


def _epochs(log: Any) -> list[dict[str, Any]] | None:
    epochs = log.get("epochs") if isinstance(log, dict) else None
    return epochs if isinstance(epochs, list) and epochs else None


def _seconds(logs: list[list[dict[str, Any]] | None]) -> float | None:
    """Of all epochs of all logs; None where one is missing: a part would read as the whole."""
    known = [log for log in logs if log is not None]
    if not known or len(known) < len(logs):
        return None
    return float(sum(epoch.get("seconds", 0.0) for log in known for epoch in log))
