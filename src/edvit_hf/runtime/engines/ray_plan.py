# SPDX-License-Identifier: Apache-2.0
"""What a placement means in Ray's words: labels that pin, numbers that count, and whether a cluster is as planned.

Comes in: a placement, and the nodes of a cluster as `ray.nodes()` tells of them. Goes out: labels and resources of each
device and of each sub-model on it, by one rule, so that the plan and the cluster cannot drift. Imports nothing of Ray.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edvit_hf.errors import EDViTError, did_you_mean
from edvit_hf.manifest.placement import PlacedDevice, PlacedFile, PlacementFile

DEVICE_LABEL = "edvit-device"
NAMESPACE = "edvit"
# Ray counts in whole numbers, so units are small: KiB, thousands of multiply-accumulates, microjoules.
MEMORY, MACS, ENERGY = "edvit_memory_kib", "edvit_kmacs", "edvit_energy_uj"
_BYTES_PER_KIB, _KIB_PER_MIB, _PER_THOUSAND = 1024, 1024, 1000


class PlacementMismatchError(EDViTError):
    """A cluster is not the one that was planned for. The message names both; join the devices as planned."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """One sub-model on one device: what one actor holds."""

    index: int
    device: str
    file: str | None  # inside the ensemble folder; None: whatever suits the device
    profile: str
    resources: dict[str, int]  # what it takes of the device's numbers
    is_replica: bool = False
    is_spare: bool = False  # a second process beside the first, which answers while that one is being restarted

    @property
    def endpoint(self) -> str:
        """What routes and figures call it."""
        return f"{self.device} (spare)" if self.is_spare else self.device

    def actor_name(self, content_hash: str) -> str:
        """Of the actor: the version is part of it, so that two versions can stand side by side."""
        return f"edvit-{content_hash[:16]}-{self.index}-{self.device}{'-spare' if self.is_spare else ''}"


def device_of(placement: PlacementFile, name: str) -> PlacedDevice:
    """A device of the placement.

    Raises:
        EDViTError: The placement has none of that name.
    """
    if name not in placement.devices:
        raise EDViTError(
            f"Expected the name of a device of fleet {placement.fleet!r}, got {name!r}; it has "
            f"{', '.join(placement.devices)}. Nothing is planned for it.{did_you_mean(name, placement.devices)} "
            "Correct the name, or plan again with the device in the fleet file."
        )
    return placement.devices[name]


def node_labels(name: str) -> dict[str, str]:
    """Labels of the node that a device is."""
    return {DEVICE_LABEL: name}


def node_resources(placement: PlacementFile | None, name: str) -> dict[str, int]:
    """Numbers of the node that a device is: its budgets, rounded up; no budget, no number.

    They are the fleet's alone, so that another plan for the same fleet needs no device to join again. Without a
    placement there are none.
    """
    if placement is None:
        return {}
    device = device_of(placement, name)
    budgets = {
        MEMORY: None if device.memory_mib is None else device.memory_mib * _KIB_PER_MIB,
        MACS: None if device.macs is None else device.macs / _PER_THOUSAND,
        ENERGY: None if device.energy_mj is None else device.energy_mj * _PER_THOUSAND,
    }
    return {key: math.ceil(amount) for key, amount in budgets.items() if amount is not None}


def seats(placement: PlacementFile, *, spares: bool = False) -> list[Seat]:
    """What every actor of a placement holds: each sub-model on its own device first, then the replicas.

    With `spares` there is a second one beside each, which takes as much of the device's memory.
    """
    found = [
        seat_of(placement, name, entry, is_replica=is_replica)
        for name, device in placement.devices.items()
        for is_replica, entries in ((False, device.sub_models), (True, device.replicas))
        for entry in entries
    ]
    if spares:
        found += [
            replace(s, is_spare=True, resources={k: v for k, v in s.resources.items() if k == MEMORY}) for s in found
        ]
    return sorted(found, key=lambda seat: (seat.index, seat.is_replica, seat.is_spare))


def seat_of(placement: PlacementFile, name: str, entry: PlacedFile, *, is_replica: bool) -> Seat:
    """One file on one device; it takes only what the device has a budget of, rounded down: what was planned fits."""
    needs = {
        MEMORY: None if entry.bytes is None else entry.bytes / _BYTES_PER_KIB,
        MACS: None if entry.macs is None else entry.macs / _PER_THOUSAND,
        ENERGY: None if entry.energy_mj is None else entry.energy_mj * _PER_THOUSAND,
    }
    counted = node_resources(placement, name)
    return Seat(
        index=entry.index,
        device=name,
        file=entry.file,
        profile=placement.devices[name].profile,
        resources={key: math.floor(need) for key, need in needs.items() if need is not None and key in counted},
        is_replica=is_replica,
    )


def joined(nodes: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Device -> the living nodes that joined under its name: one, unless two devices took the same."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for node in nodes:
        name = node.get("Labels", {}).get(DEVICE_LABEL)
        if node.get("Alive") and name is not None:
            found.setdefault(name, []).append(node)
    return found


def mismatches(placement: PlacementFile, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a cluster contradicts the placement, a sentence each. A device that has not joined does not."""
    found = []
    for name, alike in joined(nodes).items():
        if len(alike) > 1:
            addresses = ", ".join(str(node["NodeManagerAddress"]) for node in alike)
            found.append(
                f"{len(alike)} devices joined as {name!r}: {addresses}; the plan has one. Which of them answers would "
                "be chance. Have each join under its own name."
            )
        if name not in placement.devices:
            continue
        planned = node_resources(placement, name)
        there = {k: v for k, v in alike[0].get("Resources", {}).items() if k in (MEMORY, MACS, ENERGY)}
        if {k: float(v) for k, v in planned.items()} != {k: float(v) for k, v in there.items()}:
            found.append(
                f"device {name!r}: the plan of fleet {placement.fleet!r} gives it {_told(planned)}, the node at "
                f"{alike[0]['NodeManagerAddress']} joined with {_told(there)}. What it may hold would be decided by "
                f"chance. Have it join again with this placement: edvit device join HEAD --name {name} --placement ..."
            )
    return found


def check_cluster(placement: PlacementFile, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise `PlacementMismatchError` if the cluster contradicts the placement."""
    found = mismatches(placement, nodes)
    if found:
        raise PlacementMismatchError("Expected a cluster as planned, got another: " + "; ".join(found))


def unknown_devices(placement: PlacementFile, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Devices that the placement names and the cluster does not have (now)."""
    there = joined(nodes)
    return [name for name, device in placement.devices.items() if device.sub_models and name not in there]


def _told(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{key}={value:.0f}" for key, value in sorted(amounts.items())) or "no budgets"
