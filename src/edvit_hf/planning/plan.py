# SPDX-License-Identifier: Apache-2.0
"""The plan as data: what each sub-model keeps and costs, and which device runs it. Standard library only."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf.architectures.axes import Widths
from edvit_hf.architectures.costs import BYTES_PER_PARAMETER
from edvit_hf.storage import MIB, write_json

# Of `plan.json`: raised with its fields, so that the plan stage of an older work folder runs anew; not with a field
# whose default is what an older plan means.
PLAN_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class SubModelPlan:
    """What one sub-model costs and where it runs.

    Attributes:
        index: Its number.
        device: Where it runs.
        classes: Its class group.
        parameters: Number of them (exact).
        bytes: Of the weights in fp32, without a file's header (exact).
        macs: Multiply-accumulates for one input (exact).
        predicted_ms: On all cores of its device, alone; None where nothing tells the device's speed.
        energy_mj: Watts of the device times `predicted_ms`; None where either is not known.
        keep_heads: Heads kept in every layer; None where ratios were given, the sub-model is not cut from the teacher,
            or the ensemble is a finished one.
        from_scratch: Model type of a sub-model that is built from its own config; None of one cut from the teacher.
        widths: Its sizes; None of a finished ensemble without a config.
        file_bytes: Precision -> size of its `model.safetensors` (exact).
        held_bytes: What it takes of its device's memory budget: `bytes`, or those of the published file chosen there.
        variant: Name of the published file chosen for the device.
        file: That file, relative to the ensemble folder.
        feature_bytes: What it sends to the coordinator.
        peak_activation_bytes: Most bytes of activations alive at once (an estimate), beside the weights.
    """

    index: int
    device: str
    classes: list[int]
    parameters: int
    bytes: int
    macs: int
    predicted_ms: float | None
    energy_mj: float | None = None
    keep_heads: int | None = None
    from_scratch: str | None = None
    widths: Widths | None = None
    file_bytes: dict[str, int] = field(default_factory=dict)
    held_bytes: int = 0
    variant: str | None = None
    file: str | None = None
    feature_bytes: int = 0
    peak_activation_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A second copy of a sub-model on a spare device, held ready but not part of the predicted latency."""

    index: int
    device: str
    held_bytes: int = 0
    predicted_ms: float | None = None
    variant: str | None = None
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """What one device carries, replicas and (on the coordinator) the fusion head included, beside its budgets.

    Attributes:
        name: Of the device.
        profile: Of its kind of hardware.
        quantization: The int8 preset that suits it.
        sub_models: Indices of the sub-models that run there.
        replicas: Indices of the sub-models it holds a second copy of.
        bytes: Of all those weights.
        macs: For one input, as if the replicas ran too.
        energy_mj: The same, for energy; None where not known.
        peak_activation_bytes: Largest of any sub-model there; they run one after another.
        budgets: `memory_mib`, `macs`, `energy_mj` as the fleet file gives them; None for none.
        memory_limit_mib: What bound the weights: that budget, or else the memory of the profile; None for no limit.
        compute_ms: Sum over its sub-models; None where its speed is not known.
        link_ms: Until their features have arrived.
    """

    name: str
    profile: str
    quantization: str
    sub_models: list[int]
    replicas: list[int]
    bytes: int
    macs: int
    energy_mj: float | None
    peak_activation_bytes: int | None
    budgets: dict[str, float | None]
    compute_ms: float | None
    link_ms: float
    memory_limit_mib: float | None = None

    @property
    def total_ms(self) -> float | None:
        """Computing and sending; None where the speed is not known."""
        return None if self.compute_ms is None else self.compute_ms + self.link_ms


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Keep, predicted costs and placement of every sub-model.

    Attributes:
        teacher: Its parameters, bytes and macs; None where a published ensemble does not tell them.
        same_head: Parameters, bytes, macs, size_ratio and macs_ratio of the largest sub-model if it had the teacher's
            outputs instead of those of its class group: the form in which papers compare. None of a published ensemble.
        sub_models: In order of their index.
        devices: In the order of the fleet.
        replicas: Second copies on spare devices.
        keep_heads: Heads kept in the largest sub-model; where ratios were given or it is built from scratch, the number
            of the teacher's heads whose cut is nearest in size.
        num_heads: Heads of the teacher; both None of a published ensemble.
        hidden_size: Residual channels of the largest sub-model.
        intermediate_size: FFN units of the largest sub-model; both None where its sizes are not known.
        attention: How attention shrinks: "whole", "thin" or "merged".
        fusion_parameters: Of the fusion head.
        fleet: Its name.
        coordinator: Device that fuses; None for a machine outside the fleet.
        total_mib: The fleet's budget for all weights.
        latency_ms: Predicted from input to answer: the slowest device, the uplink and the fusion head; None where a
            device's speed is not known.
        uplink_ms: The uplink's part.
        fusion_ms: The fusion head's part.
        placement: method ("exact" or "greedy"), objective_ms (slowest device and uplink), greedy_ms (the same of the
            greedy placement; None where greedy finds none), gap (relative, to the proven bound), seconds.
        notes: What was assumed or left out.
    """

    teacher: dict[str, int | None]
    sub_models: list[SubModelPlan]
    devices: list[DevicePlan]
    replicas: list[Replica] = field(default_factory=list)
    keep_heads: int | None = None
    num_heads: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    attention: str = "whole"
    fusion_parameters: int
    same_head: dict[str, float] | None = None
    fleet: str
    coordinator: str | None = None
    total_mib: float | None = None
    latency_ms: float | None = None
    uplink_ms: float = 0.0
    fusion_ms: float | None = None
    placement: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

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
            f"sub-model {s.index:<2}{_sizes(s.parameters, s.macs)}  on {s.device}, classes {s.classes}"
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
