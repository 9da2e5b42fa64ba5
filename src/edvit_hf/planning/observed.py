# SPDX-License-Identifier: Apache-2.0
"""What a running fleet was seen to need, in place of what was predicted: compute and network times by device.

Comes in: `edvit fleet status --format json`, or the `status()` of a runtime. Goes out: costs from which the same
searches propose a better placement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.planning.costs import FleetCosts
from edvit_hf.planning.fleet import Fleet
from edvit_hf.storage import read_json_object
from edvit_hf.strict import is_finite

_REMEDY = "Make it with `edvit fleet status --placement placement.json --format json`, after the fleet has answered."


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What one sub-model took on one device."""

    sub_model: int
    device: str
    compute_ms: float  # of one answer
    network_ms: float | None = None  # the rest of the time until the answer was there; None where it was not seen


def read_observed(path: Path) -> list[Observed]:
    """The observations of a status file.

    Raises:
        DataError: It is no such file, or nothing was observed yet.
    """
    data = read_json_object(path, "a status", f"There is nothing to plan better with. {_REMEDY}", error=DataError)
    engine = data.get("engine")
    rows: list[Any] = list(engine.get("observed", [])) if isinstance(engine, Mapping) else []
    devices = data.get("devices")
    for device in devices if isinstance(devices, list) else []:
        if isinstance(device, Mapping):
            reach = {} if device.get("reach_ms") is None else {"network_ms": device["reach_ms"]}
            rows += [{**reach, **row} for row in device.get("observed", []) if isinstance(row, Mapping)]
    found = [_row(path, row) for row in rows]
    if not found:
        raise DataError(f"{path.name}: expected times of devices, got none. There is nothing to plan with. {_REMEDY}")
    return found


def with_observed(costs: FleetCosts, observed: Sequence[Observed]) -> FleetCosts:
    """Costs with the observed times in place of predicted ones.

    On a device where some sub-models were observed, the others take as much longer or shorter than predicted as those
    did (the median); without a prediction, by their multiply-accumulates. Of a device's links the observed network time
    is the delay of a message.

    Raises:
        DataError: A device or a sub-model is not of this fleet or ensemble.
    """
    names = [device.name for device in costs.fleet.devices]
    _check_known(observed, names, len(costs.loads))
    known, macs = costs.known_ms.copy(), np.array([float(load.macs) for load in costs.loads])
    devices = list(costs.fleet.devices)
    for d, name in enumerate(names):
        rows = [row for row in observed if row.device == name]
        if not rows:
            continue
        seen = {row.sub_model: row.compute_ms for row in rows}
        ratios = [ms / costs.known_ms[i, d] for i, ms in seen.items() if not np.isnan(costs.known_ms[i, d])]
        if ratios:
            known[:, d] *= float(np.median(ratios))
        else:
            known[:, d] = macs * float(np.median([ms / macs[i] for i, ms in seen.items()]))
        for i, ms in seen.items():
            known[i, d] = ms
        delays = [row.network_ms for row in rows if row.network_ms is not None]
        if delays:
            devices[d] = replace(devices[d], link_ms=float(np.median(delays)))
    return replace(costs, fleet=_with_devices(costs.fleet, devices), known_ms=known)


def observed_note(observed: Sequence[Observed]) -> str:
    """A line for the plan: whose times are not predicted."""
    names = list(dict.fromkeys(row.device for row in observed))
    return f"times of {', '.join(names[:4])}{'...' if names[4:] else ''} are as observed, not predicted"


def _with_devices(fleet: Fleet, devices: Sequence[Any]) -> Fleet:
    return replace(fleet, devices=tuple(devices))


def _check_known(observed: Sequence[Observed], names: Sequence[str], num_sub_models: int) -> None:
    for row in observed:
        if row.device not in names or not 0 <= row.sub_model < num_sub_models:
            raise DataError(
                f"Expected times of devices {', '.join(names)} and of {num_sub_models} sub-models, got sub-model "
                f"{row.sub_model} on {row.device!r}. They are of another fleet or ensemble. {_REMEDY}"
            )


def _is_at_least_0(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value) and value >= 0


def _row(path: Path, row: Any) -> Observed:
    values = row if isinstance(row, Mapping) else {}
    found: tuple[Any, ...] = tuple(values.get(k) for k in ("sub_model", "device", "compute_ms", "network_ms"))
    index, device, compute, network = found
    fits = _is_at_least_0(compute) and compute > 0 and (network is None or _is_at_least_0(network))
    if not (isinstance(index, int) and isinstance(device, str) and fits):
        raise DataError(
            f"{path.name}: expected `sub_model`, `device`, `compute_ms` and `network_ms` of an answer, got "
            f"{row!s:.200}. No time can be told from it. {_REMEDY}"
        )
    return Observed(sub_model=index, device=device, compute_ms=float(compute), network_ms=network)
