# SPDX-License-Identifier: Apache-2.0
"""The fleet as the simulation sees it: how long what takes where, read from a plan and a fleet file, and capacities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edvit_hf.errors import RecipeError
from edvit_hf.planning.costs import transfer_ms
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.plan import Plan, Replica, SubModelPlan
from edvit_hf.simulation.config import SimulationConfig

_QUARTILE = 0.6744897501960817  # of a standard normal distribution
_NAMED = 4
DEVICES, CPU, UPLINK, LINE = "slowest device", "coordinator CPU", "coordinator uplink", "requests in flight"


@dataclass(frozen=True, kw_only=True)
class FleetModel:
    """One ensemble of N sub-models on D devices behind one coordinator. Times in milliseconds.

    Attributes:
        name: Of the fleet.
        devices: Names, D.
        endpoints: Of each sub-model the devices that hold it: its own, then those of its replicas.
        service_ms: (N, D) median of one run alone; NaN where the device does not hold the sub-model.
        back_ms: (N, D) until an answer has arrived, the delay of the link once: as the plan counts it.
        uplink_ms: Of one input on the uplink.
        is_remote: (D,) whether inputs reach the device over the uplink.
        fusion_ms: Of the fusion head, on the coordinator.
        watts: (D,) while computing; NaN where not known.
        spread: (D, 2) log of how much shorter and longer runs are than the median: of the lower and the upper half.
        notes: What is assumed or left out.
    """

    name: str
    devices: tuple[str, ...]
    endpoints: tuple[tuple[int, ...], ...]
    service_ms: np.ndarray
    back_ms: np.ndarray
    uplink_ms: float
    is_remote: np.ndarray
    fusion_ms: float
    watts: np.ndarray
    spread: np.ndarray
    notes: tuple[str, ...] = ()

    @classmethod
    def of_plan(cls, plan: Plan, fleet: Fleet) -> "FleetModel":
        """What a plan says of its fleet: times, links, replicas, watts.

        Raises:
            RecipeError: The speed of a device that runs or holds something is not known.
        """
        place = {device.name: number for number, device in enumerate(fleet.devices)}
        count, size = len(plan.sub_models), len(fleet.devices)
        service, back = np.full((count, size), np.nan), np.full((count, size), np.nan)
        endpoints: list[list[int]] = [[] for _ in range(count)]
        feature_bytes = {entry.index: entry.feature_bytes for entry in plan.sub_models}
        unknown: dict[str, None] = {}
        entries: list[SubModelPlan | Replica] = [*plan.sub_models, *plan.replicas]
        for entry in entries:
            number = place[entry.device]
            device = fleet.devices[number]
            endpoints[entry.index].append(number)
            if entry.predicted_ms is None:
                unknown[entry.device] = None
                continue
            service[entry.index, number] = entry.predicted_ms
            sent = transfer_ms(feature_bytes[entry.index], device.mbit_per_s) + device.message_ms
            back[entry.index, number] = 0.0 if entry.device == fleet.coordinator else sent
        if unknown:
            raise RecipeError(_without_speed(fleet.name, list(unknown)))
        remote = sum(entry.device != fleet.coordinator for entry in plan.sub_models)
        spread = [spread_of(device) for device in fleet.devices]
        watts = [device.hardware.watts for device in fleet.devices]
        return cls(
            name=fleet.name,
            devices=tuple(place),
            endpoints=tuple(tuple(each) for each in endpoints),
            service_ms=service,
            back_ms=back,
            uplink_ms=plan.uplink_ms / max(1, remote),
            is_remote=np.array([device.name != fleet.coordinator for device in fleet.devices]),
            fusion_ms=plan.fusion_ms or 0.0,
            watts=np.array([np.nan if value is None else value for value in watts]),
            spread=np.array([(0.0, 0.0) if each is None else each for each in spread]),
            notes=(*plan.notes, *_notes_on_spread(fleet.devices, spread)),
        )

    @property
    def own(self) -> np.ndarray:
        """(N,) the device that each sub-model runs on."""
        return np.array([devices[0] for devices in self.endpoints])

    def busy_ms(self) -> np.ndarray:
        """(D,) mean milliseconds that one request keeps each device busy, replicas aside."""
        rows = np.arange(len(self.endpoints))
        mean = np.array([_mean(*self.spread[device]) for device in self.own])
        busy = np.zeros(len(self.devices))
        np.add.at(busy, self.own, self.service_ms[rows, self.own] * mean)
        return busy

    def idle_ms(self, config: SimulationConfig) -> float:
        """From an input to its answer where nothing else runs, nothing is late, and every run takes the median."""
        rows = np.arange(len(self.endpoints))
        busy, back = np.zeros(len(self.devices)), np.zeros(len(self.devices))
        np.add.at(busy, self.own, self.service_ms[rows, self.own])
        np.maximum.at(back, self.own, self.back_ms[rows, self.own])
        return self.work_ms(config) + self._sending_ms + float((busy + back).max()) + self.fusion_ms

    def work_ms(self, config: SimulationConfig) -> float:
        """Milliseconds that one request keeps the coordinator's processor busy, fusion aside."""
        return config.work.request_ms + len(self.endpoints) * config.work.sub_model_ms

    @property
    def _sending_ms(self) -> float:
        return self.uplink_ms * int(self.is_remote[self.own].sum())

    def capacities(self, config: SimulationConfig) -> dict[str, float]:
        """Requests a second that each resource could serve if it were the only limit; all coordinators together."""
        most = config.serving.max_in_flight / max(1e-9, self.idle_ms(config))
        each = {
            DEVICES: 1 / max(1e-9, float(self.busy_ms().max())),
            CPU: 1 / max(1e-9, self.work_ms(config) + self.fusion_ms),
            UPLINK: 1 / self._sending_ms if self._sending_ms else math.inf,
            LINE: most,
        }
        shared = {UPLINK} if config.one_uplink else set()
        return {name: 1e3 * value * (1 if name in shared else config.coordinators) for name, value in each.items()}

    def limit(self, config: SimulationConfig) -> str:
        """What gives out first as requests become more."""
        capacities = self.capacities(config)
        first = min(capacities, key=capacities.__getitem__)
        return f"{first} ({self.devices[int(self.busy_ms().argmax())]})" if first == DEVICES else first


def spread_of(device: Device) -> tuple[float, float] | None:
    """Log of how far runs lie below and above the median, from the quartiles that `edvit profile` measured there.

    Each half of the distribution is taken for one of a lognormal: tails are extrapolated. None of an unmeasured device.
    """
    provenance: dict[str, Any] = device.hardware.provenance or {}
    fits = provenance.get("fits") or []
    rows = fits[-1].get("measurements", []) if fits else []
    found = [
        (math.log(row["median_ms"] / row["lower_ms"]), math.log(row["upper_ms"] / row["median_ms"]))
        for row in rows
        if {"median_ms", "lower_ms", "upper_ms"} <= row.keys() and row["lower_ms"] > 0
    ]
    if not found:
        return None
    below, above = np.median(np.array(found), axis=0) / _QUARTILE
    return max(0.0, float(below)), max(0.0, float(above))


def _mean(below: float, above: float) -> float:
    """Of a run's time over its median."""
    lower = math.exp(below**2 / 2) * (1 - math.erf(below / math.sqrt(2)))
    upper = math.exp(above**2 / 2) * (1 + math.erf(above / math.sqrt(2)))
    return (lower + upper) / 2


def _without_speed(fleet: str, names: Sequence[str]) -> str:
    return (
        f"fleet {fleet!r}: expected devices of known speed, got none of {_told(names)}. How long a request keeps them "
        "busy would be a guess, and so would all that follows from it. Run `edvit profile --output NAME.yaml` on each "
        "kind of device and name that file as its `profile` in the fleet file."
    )


def _notes_on_spread(devices: Sequence[Device], spread: Sequence[tuple[float, float] | None]) -> list[str]:
    silent = [device.name for device, each in zip(devices, spread, strict=True) if each is None]
    if not silent:
        return []
    return [f"how much times vary on {_told(silent)} is not known: every run takes its predicted time"]


def _told(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
