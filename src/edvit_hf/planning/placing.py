# SPDX-License-Identifier: Apache-2.0
"""Which device runs which sub-model: the paper's greedy, and an exact search (integer programming) that starts from it.

Works on arrays alone, N sub-models x D devices, which `costs.py` fills.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from edvit_hf.errors import named_extra

TOLERANCE = 1e-9  # relative, for sums of floats


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Costs, limits and times of N sub-models on D devices."""

    costs: Mapping[str, np.ndarray]  # kind of budget -> (N, D) what sub-model i takes of it on device d
    limits: Mapping[str, np.ndarray]  # kind of budget -> (D,) budgets, inf for none
    # Kind of budget -> (D,) what is taken already (the fusion head, on the coordinator)
    reserved: Mapping[str, np.ndarray]
    total_kind: str  # the kind whose sum over all devices has a limit too
    total_limit: float  # that limit, inf for none
    total_reserved: float  # what is taken of it already
    busy_ms: np.ndarray  # (N, D) milliseconds that sub-model i keeps device d busy, sending its feature included
    fixed_ms: np.ndarray  # (D,) milliseconds that device d adds once if it runs anything (the delay of its link)
    # (N, D) milliseconds that sub-model i's input takes on the shared uplink if it runs on device d
    remote_ms: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """N sub-models, D devices."""
        return self.busy_ms.shape[0], self.busy_ms.shape[1]

    def takes_first(self, item: int, device: int) -> bool:
        """Whether a device that runs nothing yet has room for a sub-model."""
        return all(
            self.reserved[kind][device] + self.costs[kind][item, device] <= limit[device] * (1 + TOLERANCE)
            for kind, limit in self.limits.items()
        )

    def load(self, kind: str, placement: Sequence[int]) -> np.ndarray:
        """(D,) what each device carries of a kind of budget."""
        load = self.reserved[kind].astype(float)
        np.add.at(load, list(placement), self.costs[kind][np.arange(len(placement)), list(placement)])
        return load

    def total(self, placement: Sequence[int]) -> float:
        """What all devices carry together of the kind that has a limit in all."""
        own = self.costs[self.total_kind][np.arange(len(placement)), list(placement)].sum()
        return float(own) + self.total_reserved

    def fits(self, placement: Sequence[int]) -> bool:
        """Whether every budget holds."""
        below = all(np.all(self.load(k, placement) <= limit * (1 + TOLERANCE)) for k, limit in self.limits.items())
        return below and self.total(placement) <= self.total_limit * (1 + TOLERANCE)

    def device_ms(self, placement: Sequence[int]) -> np.ndarray:
        """(D,) busy time of each device and its link; 0 for a device that runs nothing."""
        busy = np.zeros(self.shape[1])
        np.add.at(busy, list(placement), self.busy_ms[np.arange(len(placement)), list(placement)])
        used = np.isin(np.arange(self.shape[1]), list(placement))
        return busy + np.where(used, self.fixed_ms, 0)

    def uplink_ms(self, placement: Sequence[int]) -> float:
        """Time of all inputs on the shared uplink, one after another."""
        return float(self.remote_ms[np.arange(len(placement)), list(placement)].sum())

    def objective(self, placement: Sequence[int]) -> float:
        """What the search minimises: the slowest device plus the uplink, in milliseconds."""
        return float(self.device_ms(placement).max()) + self.uplink_ms(placement)

    @property
    def lower_bound(self) -> float:
        """A latency that no placement can beat, by arithmetic: the slowest sub-model where it is fastest."""
        return float((self.busy_ms + self.fixed_ms + self.remote_ms).min(axis=1).max())

    @cached_property
    def kinds_of_items(self) -> list[list[int]]:
        """Sub-models that cost the same everywhere, together: the search counts them instead of naming them."""
        rows = [*self.costs.values(), self.busy_ms, self.remote_ms]
        return _positions_by_key([tuple(tuple(row[i]) for row in rows) for i in range(self.shape[0])])

    @cached_property
    def kinds_of_devices(self) -> list[list[int]]:
        """Devices that are the same in every respect, together."""
        tables = [*self.costs.values(), self.busy_ms, self.remote_ms]
        vectors = [*self.limits.values(), *self.reserved.values(), self.fixed_ms]
        keys = [
            (*(tuple(table[:, d]) for table in tables), *(float(vector[d]) for vector in vectors))
            for d in range(self.shape[1])
        ]
        return _positions_by_key(keys)


def _positions_by_key(keys: Sequence[Any]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


@dataclass
class TimeBudget:
    """Seconds that the exact searches of one plan may take together."""

    limit_s: float
    spent_s: float = field(default=0.0)

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self.limit_s - self.spent_s)


@dataclass(frozen=True)
class SearchOutcome:
    """The placement that an exact search found, and whether it is proven best."""

    placement: list[int] | None  # device of each sub-model; None if there is none, or none was found in time
    is_proven: bool  # whether the search ended by itself: no placement then means that none exists
    bound: float = 0.0  # lower bound of the objective
    # With `raise_budgets`: kind -> (D,) added to the limit of each device ("total": (1,))
    raised: Mapping[str, np.ndarray] = field(default_factory=dict)


def greedy(problem: Problem) -> list[int] | None:
    """The most expensive sub-model first, each to the device with the most remaining compute that holds it.

    Remaining compute is counted in multiply-accumulates: what is left of the device's MAC budget, or what its energy
    budget allows, whichever is less. Devices without such a budget come first, the one that would be done soonest.

    Returns:
        The device of each sub-model, or None where one finds no place (another order might still find one).

    Source: ED-ViT (2410.11650), placement; EC-SNN (IJCAI-24, Algorithm 1). Differs: ties are broken by predicted
    time, which the papers do not speak of.
    """
    num_items, num_devices = problem.shape
    used = {kind: reserved.astype(float) for kind, reserved in problem.reserved.items()}
    busy, chosen = np.zeros(num_devices), np.full(num_items, -1)
    macs = problem.costs["macs"]
    for item in sorted(range(num_items), key=lambda i: (-float(macs[i].max()), i)):
        fitting = [
            d
            for d in range(num_devices)
            if all(used[k][d] + problem.costs[k][item, d] <= problem.limits[k][d] * (1 + TOLERANCE) for k in used)
        ]
        if not fitting:
            return None
        done = busy + problem.busy_ms[item] + np.where(busy > 0, 0, problem.fixed_ms) + problem.remote_ms[item]
        best = min(fitting, key=lambda d: (-_remaining_macs(problem, used, item, d), done[d], d))
        for kind, costs in problem.costs.items():
            used[kind][best] += costs[item, best]
        busy[best] += problem.busy_ms[item, best] + (0 if busy[best] > 0 else problem.fixed_ms[best])
        chosen[item] = best
    placement = [int(d) for d in chosen]
    return placement if problem.fits(placement) else None


def _remaining_macs(problem: Problem, used: Mapping[str, np.ndarray], item: int, device: int) -> float:
    left = float(problem.limits["macs"][device] - used["macs"][device])
    energy = float(problem.costs["energy_mj"][item, device])
    if np.isfinite(problem.limits["energy_mj"][device]) and energy > 0:
        allowed = float(problem.limits["energy_mj"][device] - used["energy_mj"][device])
        left = min(left, allowed / energy * float(problem.costs["macs"][item, device]))
    return left


def has_solver() -> bool:
    """Whether scipy is here."""
    try:
        with named_extra("Exact placement", "plan"):
            import scipy.optimize  # noqa: F401
    except ImportError:
        return False
    return True


def feasible(problem: Problem, time_budget: TimeBudget, *, exact: bool) -> SearchOutcome:
    """Some placement within the budgets: greedy's, and where it finds none, the exact search's."""
    start = greedy(problem)
    if start is not None or not exact:
        return SearchOutcome(start, is_proven=start is not None)
    return _Program(problem).solve(time_budget)


def fastest(problem: Problem, start: Sequence[int], time_budget: TimeBudget) -> SearchOutcome:
    """The placement that minimises the latency, searched below the latency of `start`; never worse than `start`."""
    objective = problem.objective(start)
    if objective <= problem.lower_bound * (1 + TOLERANCE):
        return SearchOutcome(list(start), is_proven=True, bound=objective)
    found = _Program(problem, latency=True, cutoff=objective).solve(time_budget)
    bound = min(max(found.bound, problem.lower_bound), objective)
    if found.placement is None or problem.objective(found.placement) >= objective * (1 - TOLERANCE):
        # An ended search without a better placement proves `start` the best.
        return SearchOutcome(list(start), found.is_proven, objective if found.is_proven else bound)
    objective = problem.objective(found.placement)
    return SearchOutcome(found.placement, found.is_proven, objective if found.is_proven else min(bound, objective))


def raise_budgets(problem: Problem, kinds: Sequence[str], time_budget: TimeBudget) -> SearchOutcome:
    """The smallest rise of budgets that makes room: of the limits of `kinds` ("total" is the limit in all).

    The sum of the rises is minimal (of several kinds: each relative to its largest cost), so lowering any raised limit
    again leaves no placement.
    """
    found = _Program(problem, raised=tuple(kinds)).solve(time_budget)
    if found.placement is None:
        return found
    raised: dict[str, np.ndarray] = {}
    for kind in kinds:
        if kind == "total":
            raised[kind] = np.array([max(0.0, problem.total(found.placement) - problem.total_limit)])
        else:
            raised[kind] = np.maximum(0.0, problem.load(kind, found.placement) - problem.limits[kind])
    return replace(found, raised=raised)


class _Program:
    """The integer program: y[k, d] = how many sub-models of kind k device d runs.

    Further variables: used[d] (for the delay of the link), the latency of the slowest device, and rises of limits.
    Rows are scaled to about 1, since the solver's tolerance is absolute; what it returns is checked exactly.
    """

    def __init__(
        self, problem: Problem, *, latency: bool = False, cutoff: float | None = None, raised: Sequence[str] = ()
    ) -> None:
        self.problem, self.raised = problem, tuple(raised)
        self.items = problem.kinds_of_items
        self.first = [group[0] for group in self.items]
        num_devices = problem.shape[1]
        self.num_counts = len(self.items) * num_devices
        self.used_at, self.slowest_at = self.num_counts, self.num_counts + num_devices
        self.rises_at = {kind: self.slowest_at + 1 + i * num_devices for i, kind in enumerate(self.raised)}
        self.size = self.slowest_at + 1 + len(self.raised) * num_devices
        self.rows: list[np.ndarray] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.objective = np.zeros(self.size)
        self.time_scale = cutoff or 1.0
        self._place_all()
        self._keep_budgets()
        self._break_symmetry()
        if latency:
            self._minimise_latency(cutoff)
        for kind, start in self.rises_at.items():
            self.objective[start : start + num_devices] = 1.0 if kind != "total" else [1.0] + [0.0] * (num_devices - 1)

    def _row(self, low: float, high: float) -> np.ndarray:
        row = np.zeros(self.size)
        self.rows.append(row)
        self.low.append(low)
        self.high.append(high)
        return row

    def _counts(self, row: np.ndarray) -> np.ndarray:
        """A view of the row's counts, (kinds of sub-models, devices)."""
        return row[: self.num_counts].reshape(len(self.items), -1)

    def _place_all(self) -> None:
        for kind, group in enumerate(self.items):
            self._counts(self._row(len(group), len(group)))[kind] = 1

    def _keep_budgets(self) -> None:
        problem = self.problem
        for kind, limits in problem.limits.items():
            costs = problem.costs[kind][self.first]
            for device in np.flatnonzero(np.isfinite(limits)):
                scale = float(costs[:, device].max()) or 1.0
                row = self._row(-np.inf, float(limits[device] - problem.reserved[kind][device]) / scale)
                self._counts(row)[:, device] = costs[:, device] / scale
                if kind in self.rises_at:
                    row[self.rises_at[kind] + device] = -1
        if np.isfinite(problem.total_limit):
            costs = problem.costs[problem.total_kind][self.first]
            scale = float(costs.max())
            row = self._row(-np.inf, (problem.total_limit - problem.total_reserved) / scale)
            self._counts(row)[:] = costs / scale
            if "total" in self.rises_at:
                row[self.rises_at["total"]] = -1

    def _break_symmetry(self) -> None:
        """Of devices that are alike, the first runs at least as many sub-models as the next."""
        for group in self.problem.kinds_of_devices:
            for first, second in itertools.pairwise(group):
                counts = self._counts(self._row(0, np.inf))
                counts[:, first], counts[:, second] = 1, -1

    def _minimise_latency(self, cutoff: float | None) -> None:
        problem, num_items = self.problem, self.problem.shape[0]
        for device in range(problem.shape[1]):
            slowest = self._row(0, np.inf)
            slowest[self.slowest_at] = 1
            self._counts(slowest)[:, device] = -problem.busy_ms[self.first, device] / self.time_scale
            if problem.fixed_ms[device] > 0:
                slowest[self.used_at + device] = -problem.fixed_ms[device] / self.time_scale
                used = self._row(0, np.inf)
                used[self.used_at + device] = num_items
                self._counts(used)[:, device] = -1
        self._counts(self.objective)[:] = problem.remote_ms[self.first] / self.time_scale
        self.objective[self.slowest_at] = 1
        if cutoff is not None:
            self._row(-np.inf, cutoff / self.time_scale)[:] = self.objective

    def solve(self, time_budget: TimeBudget) -> SearchOutcome:
        """Run the solver; what it finds is checked against the budgets exactly before it counts."""
        with named_extra("Exact placement", "plan"):
            from scipy.optimize import Bounds, LinearConstraint, milp
        if time_budget.left_s <= 0:
            return SearchOutcome(None, is_proven=False)
        num_devices, started = self.problem.shape[1], time.perf_counter()
        highest = np.full(self.size, np.inf)
        self._counts(highest)[:] = np.array([[len(group)] for group in self.items])
        highest[self.used_at : self.slowest_at] = 1
        integrality = np.zeros(self.size)
        integrality[: self.used_at + num_devices] = 1
        result = milp(
            self.objective,
            integrality=integrality,
            bounds=Bounds(0, highest),
            constraints=LinearConstraint(np.array(self.rows), self.low, self.high),
            options={"time_limit": time_budget.left_s, "mip_rel_gap": 0.0},
        )
        time_budget.spent_s += time.perf_counter() - started
        bound = (result.mip_dual_bound or 0.0) * self.time_scale
        if result.x is None:
            return SearchOutcome(None, is_proven=result.status == 2, bound=bound)
        placement = self._read(result.x)
        if not self.raised and not self.problem.fits(placement):
            return SearchOutcome(None, is_proven=False, bound=bound)
        return SearchOutcome(placement, is_proven=result.status == 0, bound=bound)

    def _read(self, values: np.ndarray) -> list[int]:
        """Counts back to names: the sub-models of a kind go to the devices in order."""
        placement = [0] * self.problem.shape[0]
        counts = np.rint(self._counts(values)).astype(int)
        for group, row in zip(self.items, counts, strict=True):
            for item, device in zip(group, np.repeat(np.arange(len(row)), row), strict=True):
                placement[item] = int(device)
        return placement
