"""Cost model, budget search and placement: how much of the teacher each device carries.

Works from sizes alone (no weights, no torch), so `edvit plan` answers before anything is trained.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edvit_hf.errors import BudgetError, RecipeError, did_you_mean
from edvit_hf.profiles import load_profiles
from edvit_hf.storage import write_json

logger = logging.getLogger(__name__)

MIB = 2**20
BYTES_PER_PARAMETER = 4  # fp32 safetensors


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of a ViT classifier that decide its cost."""

    hidden_size: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    num_layers: int
    num_patches: int
    patch_values: int  # channels x patch height x patch width
    num_labels: int
    qkv_bias: bool = True

    @property
    def parameters(self) -> int:
        """Number of parameters of the stock `ViTForImageClassification` of this shape (exact)."""
        d, a, f = self.hidden_size, self.num_heads * self.head_dim, self.intermediate_size
        attention = 3 * (d * a + (a if self.qkv_bias else 0)) + a * d + d
        ffn = d * f + f + f * d + d
        embeddings = self.patch_values * d + d + d + (self.num_patches + 1) * d
        return embeddings + self.num_layers * (attention + ffn + 4 * d) + 2 * d + d * self.num_labels + self.num_labels

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input: convolution, linear maps and the two attention products (exact)."""
        d, a, f, tokens = (
            self.hidden_size,
            self.num_heads * self.head_dim,
            self.intermediate_size,
            self.num_patches + 1,
        )
        layer = tokens * (4 * d * a + 2 * d * f) + 2 * tokens * tokens * a
        return self.num_patches * self.patch_values * d + self.num_layers * layer + d * self.num_labels

    @property
    def bytes(self) -> int:
        """Bytes of the weights in fp32, without the file header."""
        return self.parameters * BYTES_PER_PARAMETER

    @classmethod
    def from_config(cls, config: dict[str, Any], *, num_labels: int) -> "EncoderShape":
        """Read the shape from a stock ViT config as a dict.

        Raises:
            RecipeError: If the config is not of a ViT, or its sizes do not divide.
        """
        if config.get("model_type", "vit") != "vit":
            raise RecipeError(
                f"planning knows the costs of model_type 'vit', got {config.get('model_type')!r}. "
                "A wrong cost would place sub-models on devices that cannot hold them. Use a ViT teacher."
            )
        d, heads = int(config.get("hidden_size", 768)), int(config.get("num_attention_heads", 12))
        image, patch = int(config.get("image_size", 224)), int(config.get("patch_size", 16))
        if d % heads and "head_dim" not in config:
            raise RecipeError(
                f"`hidden_size` {d} is no multiple of `num_attention_heads` {heads}: heads would be unequal. "
                "Choose sizes that divide."
            )
        if image % patch:
            raise RecipeError(
                f"`image_size` {image} is no multiple of `patch_size` {patch}: the border would be cut off. "
                "Choose sizes that divide."
            )
        return cls(
            hidden_size=d,
            num_heads=heads,
            head_dim=int(config.get("head_dim", d // heads)),
            intermediate_size=int(config.get("intermediate_size", 3072)),
            num_layers=int(config.get("num_hidden_layers", 12)),
            num_patches=(image // patch) ** 2,
            patch_values=int(config.get("num_channels", 3)) * patch * patch,
            num_labels=num_labels,
            qkv_bias=bool(config.get("qkv_bias", True)),
        )

    def keep(self, keep_heads: int, *, num_labels: int) -> "EncoderShape":
        """The shape after keeping `keep_heads` heads and the same share of residual channels and FFN units.

        Source: the working reading of ED-ViT's ratios (2410.11650): d' = kept heads x head size, one share for all.
        """
        if not 1 <= keep_heads <= self.num_heads:
            raise RecipeError(
                f"`prune.keep_heads` must lie between 1 and the teacher's {self.num_heads} heads, got {keep_heads}. "
                "It is the number of heads that stay in every layer, not the number cut."
            )
        share = keep_heads / self.num_heads
        return EncoderShape(
            hidden_size=round(self.hidden_size * share),
            num_heads=keep_heads,
            head_dim=self.head_dim,
            intermediate_size=max(1, round(self.intermediate_size * share)),
            num_layers=self.num_layers,
            num_patches=self.num_patches,
            patch_values=self.patch_values,
            num_labels=num_labels,
            qkv_bias=self.qkv_bias,
        )


def fusion_parameters(feature_sizes: Sequence[int], num_labels: int, hidden_size: int) -> int:
    """Parameters of the fusion head on concatenated features and presence bits (exact)."""
    inputs = sum(feature_sizes) + len(feature_sizes)
    if hidden_size == 0:
        return inputs * num_labels + num_labels
    return inputs * hidden_size + hidden_size + hidden_size * num_labels + num_labels


@dataclass(frozen=True, kw_only=True)
class Device:
    """A named member of a fleet. `memory_mib` and `macs` are budgets for one device; `None` means no limit."""

    name: str
    profile: str
    memory_mib: float | None = None
    macs: int | None = None
    link_mbit_per_s: float | None = None
    link_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The devices that run one ensemble together, and the budget they share."""

    devices: tuple[Device, ...]
    total_mib: float | None = None
    name: str = "unnamed"

    def __post_init__(self) -> None:
        if not self.devices:
            raise RecipeError("a fleet needs at least one device, got none. Add a device to the fleet file.")
        names = [device.name for device in self.devices]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise RecipeError(
                f"device names must be unique in a fleet, got {doubled} more than once. "
                "The placement names devices. Rename them."
            )
        profiles = load_profiles()
        for device in self.devices:
            if device.profile not in profiles:
                raise RecipeError(
                    f"device {device.name!r} has the unknown profile {device.profile!r}; known: {sorted(profiles)}. "
                    "The profile decides which exported variant fits."
                )
            _refuse_empty_budgets(device, ("memory_mib", "macs"), f"device {device.name!r}")
        _refuse_empty_budgets(self, ("total_mib",), f"fleet {self.name!r}")


def _refuse_empty_budgets(owner: Device | Fleet, labels: Sequence[str], where: str) -> None:
    for label in labels:
        budget = getattr(owner, label)
        if budget is not None and not 0 < budget < math.inf:
            raise RecipeError(f"{where}: `{label}` must be above 0, got {budget}. Leave it out for no limit.")


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file (`recipes/fleets/*.yaml`) strictly.

    Raises:
        RecipeError: Missing file, broken YAML, unknown or missing keys, wrong types, duplicate names, unknown
            profiles or impossible budgets.
    """
    if not path.is_file():
        raise RecipeError(f"fleet file {path} does not exist. Without it nothing can be placed. Correct `fleet`.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"fleet file {path} is no readable YAML: {error}. Correct the file.") from error
    where = f"fleet file {path}"
    values = _checked(data, _FLEET_KINDS, ("devices",), where)
    entries = [
        _checked(entry, _DEVICE_KINDS, ("name", "profile"), f"{where}, devices[{i}]")
        for i, entry in enumerate(values.pop("devices"))
    ]
    return Fleet(devices=tuple(Device(**entry) for entry in entries), name=path.stem, **values)


_NUMBER = (int, float)
_FLEET_KINDS: dict[str, tuple[type, ...]] = {"devices": (list,), "total_mib": _NUMBER}
_DEVICE_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "profile": (str,), "memory_mib": _NUMBER, "macs": (int,), "link_mbit_per_s": _NUMBER,
    "link_ms": _NUMBER,
}  # fmt: skip


def _checked(data: Any, kinds: dict[str, tuple[type, ...]], required: Sequence[str], where: str) -> dict[str, Any]:
    """The mapping itself if it holds only known keys, every required one, and values of the right type."""
    if not isinstance(data, dict):
        raise RecipeError(f"{where} must be a mapping with the keys {sorted(kinds)}, got {data!r}. Correct the file.")
    for key, value in data.items():
        if key not in kinds:
            raise RecipeError(
                f"{where}: unknown key `{key}`.{did_you_mean(str(key), kinds)} "
                f"Valid keys here: {', '.join(sorted(kinds))}. An ignored key would silently mean no limit."
            )
        optional = key not in required
        if not (value is None and optional) and (not isinstance(value, kinds[key]) or isinstance(value, bool)):
            names = " or ".join(kind.__name__ for kind in kinds[key])
            raise RecipeError(f"{where}: `{key}` must be of type {names}, got {value!r}. Correct the value.")
    missing = [key for key in required if key not in data]
    if missing:
        raise RecipeError(f"{where}: the key `{missing[0]}` is missing and has no default. Add it.")
    return dict(data)


@dataclass(frozen=True)
class SubModelPlan:
    """What one sub-model costs and where it runs."""

    index: int
    class_group: list[int]
    device: str
    keep_heads: int
    parameters: int
    bytes: int
    macs: int
    predicted_ms: float | None


@dataclass(frozen=True)
class Plan:
    """Keep ratio, predicted costs and placement of every sub-model."""

    teacher: dict[str, int]
    keep_heads: int
    num_heads: int
    hidden_size: int
    intermediate_size: int
    sub_models: list[SubModelPlan]
    fusion_parameters: int
    fleet: str
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """Rebuild a plan from `to_dict`."""
        sub_models = [SubModelPlan(**entry) for entry in data["sub_models"]]
        return cls(**{**data, "sub_models": sub_models})

    def save(self, path: Path) -> None:
        """Write the plan as JSON, by write-then-rename."""
        write_json(path, self.to_dict())

    @property
    def size_ratio(self) -> float:
        """Teacher parameters over the parameters of the largest sub-model."""
        return self.teacher["parameters"] / max(s.parameters for s in self.sub_models)

    def __str__(self) -> str:
        largest = max(self.sub_models, key=lambda s: s.parameters)
        lines = [
            f"plan: keep {self.keep_heads} of {self.num_heads} heads in every sub-model "
            f"(hidden {self.hidden_size}, FFN {self.intermediate_size})",
            f"teacher    {self.teacher['parameters']:>12,} parameters {self.teacher['bytes'] / MIB:8.2f} MiB "
            f"{self.teacher['macs'] / 1e6:10.2f} MMACs",
        ]
        lines += [
            f"sub-model {s.index} {s.parameters:>11,} parameters {s.bytes / MIB:8.2f} MiB {s.macs / 1e6:10.2f} MMACs"
            f"  on {s.device}, classes {s.class_group}"
            for s in self.sub_models
        ]
        lines.append(
            f"largest sub-model: {self.size_ratio:.1f} times smaller than the teacher, "
            f"{self.teacher['macs'] / largest.macs:.1f} times fewer MACs"
        )
        return "\n".join(lines + self.notes)


def plan(
    teacher: EncoderShape,
    class_groups: Sequence[Sequence[int]],
    fleet: Fleet,
    *,
    keep_heads: int | None,
    fusion_hidden_size: int,
) -> Plan:
    """Choose the keep (if `keep_heads` is None: the largest that fits) and place every sub-model on a device.

    Args:
        teacher (`EncoderShape`): Sizes of the teacher.
        class_groups: Classes of each sub-model; each gets one output more for "other".
        fleet (`Fleet`): Devices with budgets.
        keep_heads: Heads kept in every layer, or None for the largest uniform keep that fits every budget.
        fusion_hidden_size: Hidden width of the fusion head, which counts for the total budget.

    Raises:
        BudgetError: No keep (or not the given one) fits; names the binding budget.

    Source: ED-ViT (2410.11650) outer loop over heads and greedy assignment; the pseudo-code follows EC-SNN
    (IJCAI-24, Algorithm 1), with the device budgets reset in every round, which the printed version omits.
    """
    reasons: list[str] = []
    candidates = [keep_heads] if keep_heads is not None else list(range(teacher.num_heads, 0, -1))
    for keep in candidates:
        shapes = [teacher.keep(keep, num_labels=_sub_model_labels(group, class_groups)) for group in class_groups]
        fusion = fusion_parameters([s.hidden_size for s in shapes], teacher.num_labels, fusion_hidden_size)
        try:
            devices = _place(shapes, fleet, fusion)
        except BudgetError as error:
            reasons.append(f"keep {keep}: {error}")
            continue
        return Plan(
            teacher={"parameters": teacher.parameters, "bytes": teacher.bytes, "macs": teacher.macs},
            keep_heads=keep,
            num_heads=teacher.num_heads,
            hidden_size=shapes[0].hidden_size,
            intermediate_size=shapes[0].intermediate_size,
            sub_models=[
                SubModelPlan(i, list(group), device.name, keep, s.parameters, s.bytes, s.macs, _predicted_ms(s, device))
                for i, (group, s, device) in enumerate(zip(class_groups, shapes, devices, strict=True))
            ],
            fusion_parameters=fusion,
            fleet=fleet.name,
        )
    raise BudgetError(
        f"no plan fits the fleet {fleet.name!r} of {len(fleet.devices)} devices. {reasons[-1]} "
        "Raise that budget, add a device or use fewer heads (`prune.keep_heads: auto` finds the largest keep)."
    )


def _sub_model_labels(group: Sequence[int], class_groups: Sequence[Sequence[int]]) -> int:
    """A sub-model votes over its group and "other"; a single group that holds every class has no "other"."""
    return len(group) + 1 if len(class_groups) > 1 else len(group)


def _place(shapes: list[EncoderShape], fleet: Fleet, fusion: int) -> list[Device]:
    """Greedy: the most expensive sub-model first, each to the device with the most free compute that holds it."""
    total_mib = (sum(s.bytes for s in shapes) + fusion * BYTES_PER_PARAMETER) / MIB
    if fleet.total_mib is not None and total_mib > fleet.total_mib:
        raise BudgetError(
            f"all sub-models and the fusion head need {total_mib:.2f} MiB, `total_mib` is {fleet.total_mib}."
        )
    used_bytes = {device.name: 0 for device in fleet.devices}
    used_macs = {device.name: 0 for device in fleet.devices}
    chosen: dict[int, Device] = {}
    for index in sorted(range(len(shapes)), key=lambda i: (-shapes[i].macs, i)):
        shape = shapes[index]
        fitting = [
            device
            for device in fleet.devices
            if _fits(used_bytes[device.name] + shape.bytes, device.memory_mib and device.memory_mib * MIB)
            and _fits(used_macs[device.name] + shape.macs, device.macs)
        ]
        if not fitting:
            raise BudgetError(
                f"sub-model {index} needs {shape.bytes / MIB:.2f} MiB and {shape.macs / 1e6:.2f} MMACs; "
                f"no device has that much left (largest free memory "
                f"{max(_free_mib(d, used_bytes) for d in fleet.devices):.2f} MiB)."
            )
        best = min(fitting, key=lambda d: (used_macs[d.name], fleet.devices.index(d)))
        used_bytes[best.name] += shape.bytes
        used_macs[best.name] += shape.macs
        chosen[index] = best
    return [chosen[i] for i in range(len(shapes))]


def _fits(needed: float, budget: float | None) -> bool:
    return budget is None or needed <= budget


def _free_mib(device: Device, used_bytes: dict[str, int]) -> float:
    return float("inf") if device.memory_mib is None else device.memory_mib - used_bytes[device.name] / MIB


def _predicted_ms(shape: EncoderShape, device: Device) -> float | None:
    """Compute time from the profile's sustained speed; None where the profile states none."""
    gflops = load_profiles()[device.profile].sustained_gflops
    return None if gflops is None else round(2 * shape.macs / (gflops * 1e9) * 1e3, 3)
