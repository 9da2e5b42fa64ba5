# SPDX-License-Identifier: Apache-2.0
"""Sub-models of known cost + fleet -> placed plan: the fastest placement, replicas on spare devices, all figures."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from edvit_hf.errors import BudgetError
from edvit_hf.planning.budgets import nearest_budgets
from edvit_hf.planning.costs import FleetCosts
from edvit_hf.planning.fleet import BUDGETS
from edvit_hf.planning.placing import Clock, Problem, fastest, feasible, greedy
from edvit_hf.planning.plan import DevicePlan, Plan, Replica, SubModelPlan

# Limits of the exact searches of one plan: for whether a keep fits, and for the fastest placement.
FEASIBILITY_SECONDS, PLACEMENT_SECONDS = 0.3, 0.5


def place(
    costs: FleetCosts, *, exact: bool, notes: Sequence[str] = (), start: Sequence[int] | None = None
) -> Plan:  # fmt: skip
    """Place given sub-models: the fastest placement that holds every budget, replicas on spare devices, all figures.

    Args:
        costs (`FleetCosts`): Of the sub-models on the fleet.
        exact: Search on from the greedy placement.
        notes: What is known already.
        start: A placement that fits, where one was found before.

    Raises:
        BudgetError: Nothing fits.
    """
    started = time.perf_counter()
    problem, notes = costs.problem(), [*notes, *costs.notes()]
    first = greedy(problem)
    if first is None and start is None:
        start = feasible(problem, Clock(FEASIBILITY_SECONDS), exact=exact).placement
    if first is None and start is None:
        sentence, nearest = nearest_budgets(costs, exact=exact)
        raise BudgetError(
            f"these {len(costs.loads)} sub-models do not fit the fleet {costs.fleet.name!r}. {sentence} "
            "Or add devices.",
            nearest,
        )
    chosen, bound = list(first if first is not None else start or ()), problem.lower_bound
    if exact:
        found = fastest(problem, chosen, Clock(PLACEMENT_SECONDS))
        chosen, bound = found.placement or chosen, found.bound
        if not found.is_proven:
            notes.append("the search for the fastest placement stopped at its time limit; `gap` bounds what it missed")
    objective = problem.objective(chosen)
    summary = {
        "method": "exact" if exact else "greedy",
        "objective_ms": round(objective, 6),
        "greedy_ms": None if first is None else round(problem.objective(first), 6),
        "gap": round(max(0.0, 1 - bound / objective), 6) if objective > 0 else 0.0,
        "seconds": round(time.perf_counter() - started, 3),
    }
    replicas = _replicas(problem, costs, chosen)
    return _assemble(costs, problem, chosen, replicas, summary, notes)


def _replicas(problem: Problem, costs: FleetCosts, placement: Sequence[int]) -> list[tuple[int, int]]:
    """(sub-model, device): one second copy on each device that runs nothing, within all budgets.

    The sub-model with the fewest copies comes first, then the one whose own device is the slowest.
    """
    extended, copies = list(range(len(placement))), [1] * len(placement)
    devices, result = list(placement), []
    slowness = problem.device_ms(placement)
    spare = [d for d in range(problem.shape[1]) if d not in placement]
    for device in sorted(spare, key=lambda d: (float(problem.busy_ms[:, d].sum()), d)):
        for item in sorted(range(len(placement)), key=lambda i: (copies[i], -slowness[placement[i]], i)):
            if problem.taking([*extended, item]).fits([*devices, device]):
                extended, devices = [*extended, item], [*devices, device]
                copies[item] += 1
                result.append((item, device))
                break
    return sorted(result)


def _assemble(
    costs: FleetCosts, problem: Problem, placement: Sequence[int], replicas: Sequence[tuple[int, int]],
    summary: Mapping[str, object], notes: list[str],
) -> Plan:  # fmt: skip
    devices, fleet = costs.fleet.devices, costs.fleet
    sub_models = [_sub_model(costs, i, d) for i, d in enumerate(placement)]
    rows = [_device(costs, problem, placement, replicas, d) for d in range(len(devices))]
    totals = [row.total_ms for row in rows if row.sub_models]
    uplink, fusion = problem.uplink_ms(placement), costs.fusion_ms
    known = [total for total in totals if total is not None]
    latency = max(known) + uplink + (fusion or 0.0) if len(known) == len(totals) else None
    widths = max(sub_models, key=lambda s: s.parameters).widths
    return Plan(
        teacher={"parameters": None, "bytes": None, "macs": None}, sub_models=sub_models, devices=rows,
        replicas=[_replica(costs, i, d) for i, d in replicas], hidden_size=None if widths is None else widths.residual,
        intermediate_size=None if widths is None else widths.ffn, fusion_parameters=costs.fusion.parameters,
        fleet=fleet.name, coordinator=fleet.coordinator, total_mib=fleet.total_mib, latency_ms=_rounded(latency),
        uplink_ms=round(uplink, 3), fusion_ms=_rounded(fusion), placement=dict(summary), notes=notes,
    )  # fmt: skip


def _sub_model(costs: FleetCosts, index: int, device: int) -> SubModelPlan:
    load, ms = costs.loads[index], float(costs.known_ms[index, device])
    shape = load.shape
    return SubModelPlan(
        index=index, device=costs.fleet.devices[device].name, classes=list(load.classes),
        parameters=load.parameters, bytes=load.bytes, macs=load.macs,
        predicted_ms=None if np.isnan(ms) else round(ms, 3), energy_mj=_rounded(costs.energy_mj(index, device)),
        keep_heads=load.keep_heads, widths=None if shape is None else shape.widths,
        file_bytes={} if shape is None else {"fp32": shape.file_bytes("fp32"), "fp16": shape.file_bytes("fp16")},
        held_bytes=load.bytes_at(costs.fleet.devices[device]), feature_bytes=load.feature_bytes,
        peak_activation_bytes=None if shape is None else shape.peak_activation_bytes,
    )  # fmt: skip


def _replica(costs: FleetCosts, index: int, device: int) -> Replica:
    ms = float(costs.known_ms[index, device])
    entry = costs.fleet.devices[device]
    held = costs.loads[index].bytes_at(entry)
    return Replica(index=index, device=entry.name, held_bytes=held, predicted_ms=None if np.isnan(ms) else round(ms, 3))


def _device(
    costs: FleetCosts, problem: Problem, placement: Sequence[int], replicas: Sequence[tuple[int, int]], device: int
) -> DevicePlan:
    entry = costs.fleet.devices[device]
    own = [i for i, d in enumerate(placement) if d == device]
    copies = [i for i, d in replicas if d == device]
    carried = {
        kind: float(problem.reserved[kind][device] + problem.costs[kind][[*own, *copies], device].sum())
        for kind in BUDGETS
    }
    energies = [costs.energy_mj(i, device) for i in [*own, *copies]]
    shapes = [load.shape for load in (costs.loads[i] for i in [*own, *copies])]
    return DevicePlan(
        name=entry.name, profile=entry.hardware.name, quantization=entry.hardware.quantization,
        sub_models=own, replicas=copies, bytes=int(carried["memory_mib"]), macs=int(carried["macs"]),
        energy_mj=None if None in energies else round(carried["energy_mj"], 3),
        peak_activation_bytes=max((s.peak_activation_bytes for s in shapes if s is not None), default=None),
        budgets={kind: getattr(entry, kind) for kind in BUDGETS}, memory_limit_mib=entry.memory_limit_mib,
        compute_ms=_rounded(float(costs.known_ms[own, device].sum())) if costs.is_known[device] else None,
        link_ms=round(costs.link_ms(placement, device), 3),
    )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
