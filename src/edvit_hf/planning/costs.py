# SPDX-License-Identifier: Apache-2.0
"""What sub-models cost on the devices of a fleet: bytes, multiply-accumulates, energy, milliseconds, links."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edvit_hf.architectures.costs import BYTES_PER_PARAMETER, ModelShape, fusion_parameters
from edvit_hf.errors import RecipeError
from edvit_hf.hardware.latency import ms_at, predicted_ms
from edvit_hf.planning.fleet import ASSUMED_LINK_MS, ASSUMED_MBIT_PER_S, BUDGETS, Device, Fleet
from edvit_hf.planning.problem import Problem
from edvit_hf.storage import MIB
from edvit_hf.tasks import FUSION_READS, FusionKind

UNKNOWN_PENALTY = 1.001  # on assumed times: where it costs nothing, devices of known speed are used first
NOMINAL_GFLOPS = 10.0  # of every device of a fleet in which no speed is known: only decides what goes where
FEATURE_BYTES = 4  # float32


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one sub-model costs, wherever it runs."""

    classes: tuple[int, ...]  # its class group
    parameters: int  # number of them
    bytes: int  # of the weights in fp32
    macs: int  # multiply-accumulates for one input
    feature_bytes: int  # what it sends to the coordinator: its features, where nothing else is said (`sending`)
    input_bytes: int  # what it is sent
    shape: ModelShape | None = None  # its sizes, where they are known: what latencies are predicted from
    # Device -> bytes of the exported file chosen there, which then count instead of `bytes`
    bytes_on: Mapping[str, int] = field(default_factory=dict)
    keep_heads: int | None = None  # heads kept in every layer, where heads were counted

    @classmethod
    def of_shape(cls, shape: ModelShape, classes: Sequence[int], keep_heads: int | None) -> "Load":
        """The costs of a sub-model of this shape."""
        return cls(
            classes=tuple(classes),
            parameters=shape.parameters,
            bytes=shape.bytes,
            macs=shape.macs,
            feature_bytes=FEATURE_BYTES * shape.widths.residual,
            input_bytes=input_bytes(shape),
            shape=shape,
            keep_heads=keep_heads,
        )

    def sending(self, fusion_kind: FusionKind, vote_size: int) -> "Load":
        """The same with the bytes that this kind of fusion has sent: features, its vote of so many labels, or both."""
        sizes = {"features": self.feature_bytes, "votes": FEATURE_BYTES * vote_size}
        return replace(self, feature_bytes=sum(sizes[name] for name in FUSION_READS[fusion_kind]))

    def bytes_at(self, device: Device) -> int:
        """What its weights take of the device's memory."""
        return self.bytes_on.get(device.name, self.bytes)

    def ms_on(self, device: Device) -> float | None:
        """Predicted milliseconds on all cores of the device, None where nothing tells them.

        Without `shape` fitted coefficients cannot be used. The `sustained_gflops` beside them is a peak that only one
        large product reaches: as a prediction it would be many times too fast, and draw every sub-model there.
        """
        if self.shape is not None:
            return predicted_ms(self.shape, device.hardware, all_cores=True)
        return None if device.hardware.latency is not None else ms_at(self.macs, device.hardware.sustained_gflops)


@dataclass(frozen=True, kw_only=True)
class FusionCosts:
    """The fusion head on the concatenated features; an average of votes has no parameters."""

    parameters: int

    @classmethod
    def of(cls, loads: Sequence[Load], num_labels: int, hidden_size: int, *, kind: str = "mlp") -> "FusionCosts":
        """The costs of what fuses these sub-models: `mlp`, `residual` (the same beside an average) or `average`.

        Their `feature_bytes` must be those of the features alone.
        """
        if kind == "average":
            return cls(parameters=0)
        widths = [load.feature_bytes // FEATURE_BYTES for load in loads]
        return cls(parameters=fusion_parameters(widths, num_labels, hidden_size))

    @property
    def bytes(self) -> int:
        """Of its weights in fp32."""
        return self.parameters * BYTES_PER_PARAMETER

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input; the biases are counted too, as everywhere here."""
        return self.parameters

    def ms_on(self, device: Device | None) -> float | None:
        """Milliseconds from the device's sustained speed."""
        return None if device is None else ms_at(self.macs, device.hardware.sustained_gflops)


@dataclass(frozen=True, kw_only=True)
class FleetCosts:
    """The loads of one cut on one fleet."""

    fleet: Fleet  # the devices
    loads: tuple[Load, ...]  # N sub-models
    fusion: FusionCosts  # their fusion head
    known_ms: np.ndarray  # (N, D) predicted milliseconds, NaN where nothing tells them

    @classmethod
    def of(cls, fleet: Fleet, loads: Sequence[Load], fusion: FusionCosts) -> "FleetCosts":
        """Predict every sub-model on every device, once for each pair of unlike ones.

        Raises:
            RecipeError: A device has an energy budget, but nothing tells how long a sub-model takes there.
        """
        cache: dict[tuple[int, str], float | None] = {}
        sizes = [(load.macs, None if load.shape is None else load.shape.widths) for load in loads]
        numbers = {size: i for i, size in enumerate(dict.fromkeys(sizes))}
        known = np.full((len(loads), len(fleet.devices)), np.nan)
        for i, load in enumerate(loads):
            for d, device in enumerate(fleet.devices):
                key = (numbers[sizes[i]], device.profile)
                if key not in cache:
                    cache[key] = load.ms_on(device)
                known[i, d] = np.nan if cache[key] is None else cache[key]
        for d, device in enumerate(fleet.devices):
            if device.energy_mj is not None and np.isnan(known[:, d]).any():
                raise RecipeError(
                    f"device {device.name!r}: `energy_mj` is watts times predicted milliseconds, but the sizes of the "
                    "sub-models are not known, which its latency model needs. The budget could not be checked. Give a "
                    "`macs` budget instead, or the ensemble's folder with its config.json."
                )
        return cls(fleet=fleet, loads=tuple(loads), fusion=fusion, known_ms=known)

    @property
    def is_known(self) -> np.ndarray:
        """(D,) whether the speed of each device is known."""
        known: np.ndarray = ~np.isnan(self.known_ms).any(axis=0)
        return known

    @property
    def assumed_ms(self) -> np.ndarray:
        """(N, D) with a little more than the slowest known device's time where a device's own is not known.

        All devices are equal if no speed is known.
        """
        if not self.is_known.any():
            nominal = [ms_at(load.macs, NOMINAL_GFLOPS) for load in self.loads]
            return np.repeat(np.array(nominal)[:, None], len(self.fleet.devices), axis=1)
        slowest = self.known_ms[:, self.is_known].max(axis=1)[:, None]
        return np.where(self.is_known, self.known_ms, slowest * UNKNOWN_PENALTY)

    @property
    def fusion_device(self) -> Device | None:
        """Where the fusion head is timed: on the coordinator, else on the slowest device with a known GFLOP/s."""
        for device in self.fleet.devices:
            if device.name == self.fleet.coordinator and device.hardware.sustained_gflops is not None:
                return device
        speeds = [(d.hardware.sustained_gflops, i) for i, d in enumerate(self.fleet.devices)]
        known = [(speed, i) for speed, i in speeds if speed is not None]
        return self.fleet.devices[min(known)[1]] if known else None

    @property
    def fusion_ms(self) -> float | None:
        """Milliseconds of the fusion head."""
        return self.fusion.ms_on(self.fusion_device)

    def link_ms(self, placement: Sequence[int], device: int) -> float:
        """Milliseconds until the answers of a device's sub-models have arrived."""
        own = [load for load, d in zip(self.loads, placement, strict=True) if d == device]
        entry = self.fleet.devices[device]
        if not own or entry.name == self.fleet.coordinator:
            return 0.0
        return entry.message_ms + sum(transfer_ms(load.feature_bytes, entry.mbit_per_s) for load in own)

    def predicted_ms(self, item: int, device: int) -> float | None:
        """Milliseconds of a sub-model on a device, None where nothing tells them."""
        ms = float(self.known_ms[item, device])
        return None if np.isnan(ms) else ms

    def energy_mj(self, item: int, device: int) -> float | None:
        """Watts times predicted milliseconds, None where either is not known."""
        watts, ms = self.fleet.devices[device].hardware.watts, self.predicted_ms(item, device)
        return None if watts is None or ms is None else watts * ms

    def problem(self) -> Problem:
        """The arrays that the placement searches work on."""
        fleet, devices, loads = self.fleet, self.fleet.devices, self.loads
        shape = (len(loads), len(devices))
        remote = np.array([device.name != fleet.coordinator for device in devices])
        link = [[transfer_ms(load.feature_bytes, device.mbit_per_s) for device in devices] for load in loads]
        uplink = [transfer_ms(load.input_bytes, fleet.input_mbit_per_s) for load in loads]
        energy = [[self.energy_mj(i, d) or 0.0 for d in range(shape[1])] for i in range(shape[0])]
        limits = {kind: [getattr(device, kind) for device in devices] for kind in BUDGETS}
        memory = [device.memory_limit_mib for device in devices]
        limits["memory_mib"] = [None if limit is None else limit * MIB for limit in memory]
        return Problem(
            costs={
                "memory_mib": np.array([[load.bytes_at(device) for device in devices] for load in loads], dtype=float),
                "macs": np.broadcast_to(np.array([[float(load.macs)] for load in loads]), shape),
                "energy_mj": np.array(energy),
            },
            limits={k: np.array([np.inf if v is None else v for v in row], dtype=float) for k, row in limits.items()},
            reserved=self._reserved(),
            total_kind="memory_mib",
            total_limit=np.inf if fleet.total_mib is None else fleet.total_mib * MIB,
            total_reserved=float(self.fusion.bytes),
            busy_ms=self.assumed_ms + np.array(link) * remote,
            fixed_ms=np.array([device.message_ms for device in devices]) * remote,
            remote_ms=np.array(uplink)[:, None] * remote,
        )

    def _reserved(self) -> dict[str, np.ndarray]:
        """What the fusion head takes of the coordinator's budgets."""
        is_coordinator = np.array([device.name == self.fleet.coordinator for device in self.fleet.devices])
        energy = 0.0
        for device in self.fleet.devices:
            if device.name == self.fleet.coordinator:
                energy = (device.hardware.watts or 0.0) * (self.fusion.ms_on(device) or 0.0)
        amounts = {"memory_mib": self.fusion.bytes, "macs": self.fusion.macs, "energy_mj": energy}
        return {kind: amount * is_coordinator.astype(float) for kind, amount in amounts.items()}

    def notes(self) -> list[str]:
        """What the predictions leave out or assume."""
        notes = [*self._notes_on_speed(), *self._notes_on_links()]
        tokens = sorted({load.shape.tokens for load in self.loads if load.shape is not None and load.shape.is_text})
        if tokens:
            notes.append(f"all costs are those of texts of {_names([str(count) for count in tokens])} tokens")
        lacking = [str(i) for i, load in enumerate(self.loads) if load.input_bytes == 0]
        if lacking:
            notes.append(f"the input size of sub-models {_names(lacking)} is not known: sending counts as no time")
        return notes

    def _notes_on_speed(self) -> list[str]:
        devices, notes = self.fleet.devices, []
        unknown = [device for device, known in zip(devices, self.is_known, strict=True) if not known]
        pace = "a little slower than the slowest known one" if len(unknown) < len(devices) else "equally fast"
        assumed = f"placed as if {pace}, and latencies are not predicted"
        blank = [device.name for device in unknown if device.hardware.latency is None]
        if blank:
            notes.append(f"no speed is known of {_names(blank)}: {assumed}; `edvit profile` measures a device")
        unused = [device.name for device in unknown if device.hardware.latency is not None]
        if unused:
            notes.append(
                f"the latency model of {_names(unused)} needs sizes of the sub-models that their files do not tell: "
                f"{assumed}; give the ensemble's folder with its config.json"
            )
        known = [device for device, is_known in zip(devices, self.is_known, strict=True) if is_known]
        measured = [device.name for device in known if device.hardware.latency is not None]
        published = [device.name for device in known if device.hardware.latency is None]
        if measured and published:
            notes.append(
                f"speeds are not of one kind: {_names(measured)} by a measured latency model, {_names(published)} by "
                "published GFLOP/s, most often double-precision Linpack, which is slow for fp32; `edvit profile` on "
                "every device makes them comparable"
            )
        if self.fusion_ms is None:
            notes.append("the fusion head's time is not known and counts as none")
        elif self.fusion_device is not None and self.fusion_device.name != self.fleet.coordinator:
            reason = "no `coordinator` is given" if self.fleet.coordinator is None else "the coordinator's is not known"
            notes.append(f"the fusion head is timed at the speed of {self.fusion_device.name}, the slowest: {reason}")
        return notes

    def _notes_on_links(self) -> list[str]:
        notes = []
        elsewhere = [device for device in self.fleet.devices if device.name != self.fleet.coordinator]
        for key, assumed in (("link_ms", ASSUMED_LINK_MS), ("link_mbit_per_s", ASSUMED_MBIT_PER_S)):
            silent = [device.name for device in elsewhere if getattr(device, key) is None]
            if silent:
                notes.append(
                    f"link not stated: `{key}` of {_names(silent)} is assumed to be {assumed:g} (a modest Wi-Fi)"
                )
        if self.fleet.uplink_mbit_per_s is None and elsewhere:
            notes.append(
                f"link not stated: `uplink_mbit_per_s` is assumed to be {ASSUMED_MBIT_PER_S:g} (a modest Wi-Fi)"
            )
        return notes


def input_bytes(shape: ModelShape) -> int:
    """Bytes of one input as it travels: uint8 RGB pixels, a float32 spectrogram, or int32 token ids."""
    read, table = shape.config.get, shape.architecture
    if table.main_input == "pixel_values":
        size = table.value(shape.config, "image_size")
        height, width = (size, size) if isinstance(size, int | float) else size
        return int(height) * int(width) * int(read("num_channels") or 3)
    if table.main_input == "input_values":
        return 4 * int(table.value(shape.config, "num_mel_bins")) * int(table.value(shape.config, "max_length"))
    return 4 * shape.tokens


def transfer_ms(size: float, mbit_per_s: float) -> float:
    """Milliseconds that so many bytes take on a link of that rate, its delay aside."""
    return 8 * size / mbit_per_s / 1e3


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
