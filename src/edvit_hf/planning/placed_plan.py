# SPDX-License-Identifier: Apache-2.0
"""Sub-models of known cost + fleet -> placed plan: the fastest placement, replicas on spare devices, all figures.

Where nothing fits: which budget binds, and the nearest value of it that makes room.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from edvit_hf.errors import BudgetError, MissingExtraError, RecipeError
from edvit_hf.planning.costs import FleetCosts
from edvit_hf.planning.failures import classes_lost, knowledge, notes_on_failure, parted
from edvit_hf.planning.fleet import BUDGETS
from edvit_hf.planning.placing import evened, fastest, feasible, greedy, raise_budgets, spread_out
from edvit_hf.planning.plan import DevicePlan, Plan, Replica, SubModelPlan
from edvit_hf.planning.problem import TOLERANCE, Problem
from edvit_hf.planning.program import TimeBudget, has_solver
from edvit_hf.storage import MIB

PlacementMethod = Literal["auto", "exact", "greedy"]
# Limits of the exact searches of one plan: for whether a keep fits, and for the fastest placement.
FEASIBILITY_SECONDS, PLACEMENT_SECONDS = 0.3, 0.5
NEAREST_SECONDS = 2.0  # of the exact searches for one message about budgets
_NAMED = 6  # budgets in one message


def search_method(placement: PlacementMethod) -> tuple[bool, list[str]]:
    """Whether to search exactly, and a note where that was wished for and cannot be."""
    if placement not in ("auto", "exact", "greedy"):
        raise RecipeError(f"`placement` must be auto, exact or greedy, got {placement!r}. Leave it out for auto.")
    if placement == "greedy" or has_solver():
        return placement != "greedy", []
    if placement == "exact":
        raise MissingExtraError("Exact placement", "plan", "scipy")
    return False, ["scipy is not installed: the placement is the greedy one (pip install 'edvit_hf[plan]')"]


def place_loads(costs: FleetCosts, *, placement: PlacementMethod = "auto") -> Plan:
    """Place finished sub-models: no keep is chosen, and what only a teacher tells stays empty.

    Raises:
        BudgetError: They do not fit.
        MissingExtraError: "exact" was asked for and scipy is not installed.
    """
    exact, notes = search_method(placement)
    return place(costs, exact=exact, notes=notes)


def place(costs: FleetCosts, *, exact: bool, notes: Sequence[str] = (), start: Sequence[int] | None = None) -> Plan:
    """Place given sub-models within every budget, with replicas on spare devices and all figures.

    The placement is the fastest; with the fleet's `objective: spread` the fastest of those that crowd devices least, in
    which sub-models that know the same classes are then swapped apart.
    With `exact` the search goes on from the greedy placement; `start` is one that fits, where one was found before.

    Raises:
        BudgetError: Nothing fits.
    """
    started = time.perf_counter()
    problem, notes = goal(costs), [*notes, *costs.notes()]
    first = greedy(problem)
    if first is None and start is None:
        start = feasible(problem, TimeBudget(FEASIBILITY_SECONDS), exact=exact).placement
    if first is None and start is None:
        sentence, nearest = nearest_budgets(costs, exact=exact)
        raise BudgetError(
            f"these {len(costs.loads)} sub-models do not fit the fleet {costs.fleet.name!r}. {sentence} "
            "Or add devices.",
            nearest,
        )
    chosen, bound = list(first if first is not None else start or ()), problem.lower_bound
    if problem.crowding_limit is not None:
        chosen = min((list(p) for p in (first, start) if p is not None), key=problem.crowding)
        apart = spread_out(problem, chosen, TimeBudget(FEASIBILITY_SECONDS), exact=exact)
        chosen = apart.placement or chosen
        problem = replace(problem, crowding_limit=problem.crowding(chosen))
        notes += [] if apart.is_proven else ["whether sub-models can be spread further was not found out"]
    if exact:
        found = fastest(problem, chosen, TimeBudget(PLACEMENT_SECONDS))
        chosen, bound = found.placement or chosen, found.bound
        if not found.is_proven:
            notes.append("the search for the fastest placement stopped at its time limit; `gap` bounds what it missed")
    knows = knowledge([load.classes for load in costs.loads])
    if problem.crowding_limit is not None:
        chosen = evened(problem, parted(problem, evened(problem, chosen), knows))
    objective = problem.objective(chosen)
    replicas = _replicas(problem, costs, chosen)
    notes += notes_on_failure(problem, costs, chosen, replicas)
    summary = {
        "objective": costs.fleet.objective,
        "most_on_one_device": int(problem.counts(chosen).max()),
        "most_classes_lost": int(classes_lost(knows, chosen, problem.shape[1]).max()),
        "method": "exact" if exact else "greedy",
        "objective_ms": round(objective, 6),
        "greedy_ms": None if first is None else round(problem.objective(first), 6),
        "gap": round(max(0.0, 1 - bound / objective), 6) if objective > 0 else 0.0,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return _assemble(costs, problem, chosen, replicas, summary, notes)


def goal(costs: FleetCosts) -> Problem:
    """The placement problem under the fleet's objective; with "spread" it counts how devices are crowded."""
    limit = len(costs.loads) ** 2 if costs.fleet.objective == "spread" else None  # all on one device: no limit yet
    return replace(costs.problem(), crowding_limit=limit)


def _replicas(problem: Problem, costs: FleetCosts, placement: Sequence[int]) -> list[tuple[int, int]]:
    """(sub-model, device): one second copy on each device that runs nothing, within all budgets.

    The sub-model with the fewest copies comes first, then the one whose own device is the slowest.
    """
    copies, result, total = [1] * len(placement), [], problem.total(placement)
    slowness = problem.device_ms(placement)
    spare = [d for d in range(problem.shape[1]) if d not in placement]
    for device in sorted(spare, key=lambda d: (float(problem.busy_ms[:, d].sum()), d)):
        for item in sorted(range(len(placement)), key=lambda i: (copies[i], -slowness[placement[i]], i)):
            added = total + float(problem.costs[problem.total_kind][item, device])
            if problem.takes_first[item, device] and added <= problem.total_limit * (1 + TOLERANCE):
                total = added
                copies[item] += 1
                result.append((item, device))
                break
    return sorted(result)


def _assemble(
    costs: FleetCosts,
    problem: Problem,
    placement: Sequence[int],
    replicas: Sequence[tuple[int, int]],
    summary: Mapping[str, object],
    notes: list[str],
) -> Plan:
    fleet = costs.fleet
    sub_models = [_sub_model(costs, i, d) for i, d in enumerate(placement)]
    rows = [_device(costs, problem, placement, replicas, d) for d in range(len(fleet.devices))]
    totals = [row.total_ms for row in rows if row.sub_models]
    uplink, fusion = problem.uplink_ms(placement), costs.fusion_ms
    known = [total for total in totals if total is not None]
    latency = max(known) + uplink + (fusion or 0.0) if len(known) == len(totals) else None
    widths = max(sub_models, key=lambda s: s.parameters).widths
    return Plan(
        teacher={"parameters": None, "bytes": None, "macs": None},
        sub_models=sub_models,
        devices=rows,
        replicas=[_replica(costs, i, d) for i, d in replicas],
        hidden_size=None if widths is None else widths.residual,
        intermediate_size=None if widths is None else widths.ffn,
        fusion_parameters=costs.fusion.parameters,
        fleet=fleet.name,
        coordinator=fleet.coordinator,
        total_mib=fleet.total_mib,
        latency_ms=_rounded(latency),
        uplink_ms=round(uplink, 3),
        fusion_ms=_rounded(fusion),
        placement=dict(summary),
        notes=notes,
    )


def _sub_model(costs: FleetCosts, index: int, device: int) -> SubModelPlan:
    load, shape = costs.loads[index], costs.loads[index].shape
    return SubModelPlan(
        index=index,
        device=costs.fleet.devices[device].name,
        classes=list(load.classes),
        parameters=load.parameters,
        bytes=load.bytes,
        macs=load.macs,
        predicted_ms=_rounded(costs.predicted_ms(index, device)),
        energy_mj=_rounded(costs.energy_mj(index, device)),
        keep_heads=load.keep_heads,
        widths=None if shape is None else shape.widths,
        file_bytes={} if shape is None else {"fp32": shape.file_bytes("fp32"), "fp16": shape.file_bytes("fp16")},
        held_bytes=load.bytes_at(costs.fleet.devices[device]),
        feature_bytes=load.feature_bytes,
        peak_activation_bytes=None if shape is None else shape.peak_activation_bytes,
    )


def _replica(costs: FleetCosts, index: int, device: int) -> Replica:
    entry, ms = costs.fleet.devices[device], _rounded(costs.predicted_ms(index, device))
    load = costs.loads[index]
    return Replica(
        index=index,
        device=entry.name,
        held_bytes=load.bytes_at(entry),
        predicted_ms=ms,
        macs=load.macs,
        energy_mj=_rounded(costs.energy_mj(index, device)),
    )


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
        name=entry.name,
        profile=entry.hardware.name,
        quantization=entry.hardware.quantization,
        sub_models=own,
        replicas=copies,
        bytes=int(carried["memory_mib"]),
        macs=int(carried["macs"]),
        energy_mj=None if None in energies else round(carried["energy_mj"], 3),
        peak_activation_bytes=max((s.peak_activation_bytes for s in shapes if s is not None), default=None),
        budgets={kind: getattr(entry, kind) for kind in BUDGETS},
        memory_limit_mib=entry.memory_limit_mib,
        compute_ms=_rounded(float(costs.known_ms[own, device].sum())) if costs.is_known[device] else None,
        link_ms=round(costs.link_ms(placement, device), 3),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def nearest_budgets(costs: FleetCosts, *, exact: bool) -> tuple[str, dict[str, float]]:
    """Which budget binds, and the nearest value of it that makes room, all else unchanged.

    Budgets are tried one kind at a time; where no single kind makes room, all are raised together, each as little as
    will do. Returns a sentence, and dotted budget name -> value (see `BudgetError.nearest`), both empty where none was
    found.
    """
    problem, time_budget = costs.problem(), TimeBudget(NEAREST_SECONDS)
    kinds = [kind for kind in BUDGETS if np.isfinite(problem.limits[kind]).any()]
    kinds += ["total"] if np.isfinite(problem.total_limit) else []
    options: list[tuple[float, list[tuple[str, float, float]]]] = []
    for chosen in [[kind] for kind in kinds] + ([kinds] if len(kinds) > 1 else []):
        if len(chosen) > 1 and options:
            break
        raised = raise_budgets(problem, chosen, time_budget).raised if exact else _raise_all(problem, chosen)
        values = list(_raised_values(costs, problem, raised))
        if values:
            options.append((sum(new / old - 1 for _, new, old in values), values))
    if not options:
        return "Which budget binds was not found in time.", {}
    _, values = min(options, key=lambda option: option[0])
    implied = {f"devices.{d.name}.memory_mib" for d in costs.fleet.devices if d.memory_mib is None}
    parts = [
        f"`{name}` must be at least {_figure(name, new)} instead of {_plain(name, old)}"
        + (" (the memory of its profile)" if name in implied else "")
        for name, new, old in values
    ]
    manner = "" if exact else " (by the greedy placement; with scipy installed the smallest value is found)"
    more = f" and {len(parts) - _NAMED} budgets more" if len(parts) > _NAMED else ""
    sentence = f"What binds: {'; '.join(parts[:_NAMED])}{more}, all other budgets unchanged{manner}."
    return sentence, {name: new for name, new, _ in values}


def _raised_values(
    costs: FleetCosts, problem: Problem, raised: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, float, float]]:
    """Dotted name, new value and old value of every raised budget, in the units of a fleet file."""
    for kind, rises in raised.items():
        unit = MIB if kind in ("memory_mib", "total") else 1
        for device in np.flatnonzero(rises > 0):
            name = "total_mib" if kind == "total" else f"devices.{costs.fleet.devices[device].name}.{kind}"
            old = problem.total_limit if kind == "total" else problem.limits[kind][device]
            yield name, float(old + rises[device]) / unit, float(old) / unit


def _figure(name: str, value: float) -> str:
    """A budget rounded up, so that what the message says is enough."""
    if name.endswith("macs"):
        return str(int(np.ceil(value)))
    return f"{np.ceil(value * 1000) / 1000:.3f}"


def _plain(name: str, value: float) -> str:
    """A budget as a fleet file may write it: no exponents, which it would refuse for `macs`."""
    return str(int(value)) if name.endswith("macs") else f"{value:.12g}"


def _raise_all(problem: Problem, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Without a solver: all budgets of `kinds` raised by one common factor, the smallest that greedy can use."""

    def scaled(factor: float) -> Problem:
        limits = {k: limit * (factor if k in kinds else 1) for k, limit in problem.limits.items()}
        return replace(problem, limits=limits, total_limit=problem.total_limit * (factor if "total" in kinds else 1))

    high = 2.0
    while greedy(scaled(high)) is None:
        high *= 2
        if high > 2**60:
            return {}
    low = 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if greedy(scaled(middle)) is not None else (middle, high)
    rises = {
        k: np.where(np.isfinite(limit), limit, 0) * (high - 1) for k, limit in problem.limits.items() if k in kinds
    }  # (a device without such a budget keeps none)
    return rises | ({"total": np.array([problem.total_limit * (high - 1)])} if "total" in kinds else {})
