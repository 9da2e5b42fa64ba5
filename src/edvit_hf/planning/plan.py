# SPDX-License-Identifier: Apache-2.0
"""The plan as data: what each sub-model keeps and costs, and which device runs it. Standard library only."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edvit_hf.architectures.axes import Widths
from edvit_hf.architectures.costs import BYTES_PER_PARAMETER
from edvit_hf.storage import MIB, write_json

# Of `plan.json`: raised with its fields, so that the plan stage of an older work folder runs anew; not with a field
# whose default is what an older plan means.
PLAN_FORMAT = 3  # links that are not stated are assumed


@dataclass(frozen=True, kw_only=True)
class SubModelPlan:
    """What one sub-model costs and where it runs."""

    index: int  # its number
    device: str  # where it runs
    classes: list[int]  # its class group: what it votes over
    parameters: int  # number of them (exact)
    bytes: int  # of the weights in fp32, without a file's header (exact)
    macs: int  # multiply-accumulates for one input (exact)
    predicted_ms: float | None  # on all cores of its device, alone; None where nothing tells the device's speed
    energy_mj: float | None = None  # watts of the device times `predicted_ms`; None where either is not known
    # Heads kept in every layer; None where ratios were given, the sub-model is not cut from the teacher, or the
    # ensemble is a finished one
    keep_heads: int | None = None
    # Model type of a sub-model that is built from its own config; None of one cut from the teacher
    from_scratch: str | None = None
    widths: Widths | None = None  # its sizes; None of a finished ensemble without a config
    file_bytes: dict[str, int] = field(default_factory=dict)  # precision -> size of its `model.safetensors` (exact)
    # What it takes of its device's memory budget: `bytes`, or those of the published file chosen there
    held_bytes: int = 0
    variant: str | None = None  # name of the published file chosen for the device
    file: str | None = None  # that file, relative to the ensemble folder
    feature_bytes: int = 0  # what it sends to the coordinator
    # Most bytes of activations alive at once (an estimate), beside the weights
    peak_activation_bytes: int | None = None
    # Classes that it is cut for, where they are others than it votes over (`distill.votes: all`)
    focus: list[int] | None = None

    @property
    def knows(self) -> str:
        """What it answers, in words."""
        if self.focus is None:
            return f"classes {self.classes}"
        return f"cut for classes {self.focus}, votes over {len(self.classes)}"


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A second copy of a sub-model on a spare device, held ready but not part of the predicted latency."""

    index: int
    device: str
    held_bytes: int = 0
    predicted_ms: float | None = None
    variant: str | None = None
    file: str | None = None
    macs: int | None = None  # for one input
    energy_mj: float | None = None  # for one input on that device; None where not known


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """What one device carries, replicas and (on the coordinator) the fusion head included, beside its budgets."""

    name: str  # of the device
    profile: str  # of its kind of hardware
    quantization: str  # the int8 preset that suits it
    sub_models: list[int]  # indices of the sub-models that run there
    replicas: list[int]  # indices of the sub-models it holds a second copy of
    bytes: int  # of all those weights
    macs: int  # for one input, as if the replicas ran too
    energy_mj: float | None  # the same, for energy; None where not known
    peak_activation_bytes: int | None  # largest of any sub-model there; they run one after another
    budgets: dict[str, float | None]  # `memory_mib`, `macs`, `energy_mj` as the fleet file gives them; None for none
    compute_ms: float | None  # sum over its sub-models; None where its speed is not known
    link_ms: float  # until their features have arrived
    # What bound the weights: that budget, or else the memory of the profile; None for no limit
    memory_limit_mib: float | None = None

    @property
    def total_ms(self) -> float | None:
        """Computing and sending; None where the speed is not known."""
        return None if self.compute_ms is None else self.compute_ms + self.link_ms


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Keep, predicted costs and placement of every sub-model."""

    teacher: dict[str, int | None]  # its parameters, bytes and macs; None where a published ensemble does not tell them
    sub_models: list[SubModelPlan]  # in order of their index
    devices: list[DevicePlan]  # in the order of the fleet
    replicas: list[Replica] = field(default_factory=list)  # second copies on spare devices
    # Heads kept in the largest sub-model; where ratios were given or it is built from scratch, the number of the
    # teacher's heads whose cut is nearest in size
    keep_heads: int | None = None
    num_heads: int | None = None  # heads of the teacher; both None of a published ensemble
    hidden_size: int | None = None  # residual channels of the largest sub-model
    intermediate_size: int | None = None  # FFN units of the largest sub-model; both None where its sizes are not known
    attention: str = "whole"  # how attention shrinks: "whole", "thin" or "merged"
    fusion_parameters: int  # of the fusion head
    # Parameters, bytes, macs, size_ratio and macs_ratio of the largest sub-model if it had the teacher's outputs
    # instead of those of its class group: the form in which papers compare. None of a published ensemble.
    same_head: dict[str, float] | None = None
    fleet: str  # its name
    coordinator: str | None = None  # device that fuses; None for a machine outside the fleet
    total_mib: float | None = None  # the fleet's budget for all weights
    # Predicted from input to answer: the slowest device, the uplink and the fusion head; None where a device's speed is
    # not known
    latency_ms: float | None = None
    uplink_ms: float = 0.0  # the uplink's part
    fusion_ms: float | None = None  # the fusion head's part
    # Objective of the fleet ("latency" or "spread"), most_on_one_device (sub-models on the device that runs the most),
    # most_classes_lost (classes that nobody knows while one device is absent, of the worst one, before replicas),
    # method ("exact" or "greedy"), objective_ms (slowest device and uplink), greedy_ms (the same of the greedy
    # placement; None where greedy finds none), gap (relative, to the proven bound), seconds
    placement: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what was assumed or left out

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """Rebuild a plan from `to_dict`."""
        sub_models = [
            SubModelPlan(**{**entry, "widths": None if entry["widths"] is None else Widths(**entry["widths"])})
            for entry in data["sub_models"]
        ]
        devices = [DevicePlan(**entry) for entry in data["devices"]]
        replicas = [Replica(**entry) for entry in data["replicas"]]
        return cls(**{**data, "sub_models": sub_models, "devices": devices, "replicas": replicas})

    def save(self, path: Path) -> None:
        """Write the plan as JSON, by write-then-rename."""
        write_json(path, self.to_dict())

    def with_focus(self, focus_groups: Sequence[Sequence[int]] | None) -> "Plan":
        """The same, each sub-model with the classes that it is cut for; None where that is what it votes over."""
        if focus_groups is None:
            return self
        told = [
            replace(s, focus=None if set(focus) == set(s.classes) else list(focus))
            for s, focus in zip(self.sub_models, focus_groups, strict=True)
        ]
        return replace(self, sub_models=told)

    @property
    def largest(self) -> SubModelPlan:
        """The sub-model with the most parameters."""
        return max(self.sub_models, key=lambda s: s.parameters)

    @property
    def size_ratio(self) -> float | None:
        """Teacher parameters over the parameters of the largest sub-model; None where the teacher's are not known."""
        parameters = self.teacher["parameters"]
        return None if parameters is None else parameters / self.largest.parameters

    @property
    def macs_ratio(self) -> float | None:
        """Teacher MACs over those of the largest sub-model; None where the teacher's are not known."""
        macs = self.teacher["macs"]
        return None if macs is None else macs / self.largest.macs

    @property
    def keep_text(self) -> str:
        """What stays, in words."""
        keeps = sorted({s.keep_heads for s in self.sub_models if s.keep_heads is not None})
        if not keeps and self.hidden_size is None:
            return f"{len(self.sub_models)} sub-models"
        num_new, total = sum(s.from_scratch is not None for s in self.sub_models), len(self.sub_models)
        new = f", {num_new} of {total} sub-models from scratch" if num_new else ""
        if not keeps:
            return f"{self.hidden_size} residual channels in the largest sub-model{new}"
        heads = str(keeps[0]) if len(keeps) == 1 else f"{keeps[0]} to {keeps[-1]}"
        return f"keep {heads} of {self.num_heads} heads{new}"

    @property
    def pruning_key(self) -> str:
        """All that pruning depends on: the keep where one number says it, else every sub-model's widths."""
        keeps = {s.keep_heads for s in self.sub_models}
        return str(self.keep_heads) if keeps == {self.keep_heads} else str([s.widths for s in self.sub_models])

    def __str__(self) -> str:
        sizes = f" (hidden {self.hidden_size}, FFN {self.intermediate_size} in the largest)"
        lines = [f"plan: {self.keep_text}{'' if self.intermediate_size is None else sizes}"]
        if self.teacher["parameters"] is not None:
            lines.append(f"teacher     {_sizes(self.teacher['parameters'], self.teacher['macs'] or 0)}")
        lines += [
            f"sub-model {s.index:<2}{_sizes(s.parameters, s.macs)}  on {s.device}, {s.knows}"
            + ("" if s.from_scratch is None else f", {s.from_scratch} from scratch")
            for s in self.sub_models
        ]
        lines += [f"replica of sub-model {r.index} on {r.device}" for r in self.replicas]
        if self.size_ratio is not None and self.macs_ratio is not None:
            lines.append(
                f"largest sub-model: {self.size_ratio:.1f} times smaller than the teacher, "
                f"{self.macs_ratio:.1f} times fewer MACs"
            )
        if self.latency_ms is not None:
            lines.append(f"predicted from input to answer: {self.latency_ms:.1f} ms")
        return "\n".join(lines + self.notes)


def _sizes(parameters: int, macs: int) -> str:
    return f"{parameters:>12,} parameters {BYTES_PER_PARAMETER * parameters / MIB:8.2f} MiB {macs / 1e6:10.2f} MMACs"
