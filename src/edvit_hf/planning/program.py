# SPDX-License-Identifier: Apache-2.0
"""A placement problem as an integer program, for scipy's solver, within a budget of seconds."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edvit_hf.errors import named_extra
from edvit_hf.planning.problem import Problem


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


def has_solver() -> bool:
    """Whether scipy is here."""
    try:
        with named_extra("Exact placement", "plan"):
            import scipy.optimize  # noqa: F401
    except ImportError:
        return False
    return True


class Program:
    """The integer program: y[k, d] = how many sub-models of kind k device d runs.

    Further variables: used[d] (for the delay of the link), the latency of the slowest device, rises of limits, and the
    squares of the numbers of sub-models, where these are bounded.
    Rows are scaled to about 1, since the solver's tolerance is absolute; what it returns is checked exactly.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        latency: bool = False,
        spread: bool = False,
        cutoff: float | None = None,
        raised: Sequence[str] = (),
    ) -> None:
        self.problem, self.raised = problem, tuple(raised)
        self.items = problem.kinds_of_items
        self.first = [group[0] for group in self.items]
        num_devices = problem.shape[1]
        self.num_counts = len(self.items) * num_devices
        self.used_at, self.slowest_at = self.num_counts, self.num_counts + num_devices
        self.rises_at = {kind: self.slowest_at + 1 + i * num_devices for i, kind in enumerate(self.raised)}
        self.squares_at = self.slowest_at + 1 + len(self.raised) * num_devices
        self.size = self.squares_at + (0 if problem.crowding_limit is None else num_devices)
        self.rows: list[np.ndarray] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self.objective = np.zeros(self.size)
        self.time_scale = cutoff or 1.0
        self._place_all()
        self._keep_budgets()
        self._break_symmetry()
        if problem.crowding_limit is not None:
            self._keep_apart(problem.crowding_limit)
        if spread:
            self.objective[self.squares_at :] = 1.0
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

    def _keep_apart(self, limit: int) -> None:
        """Bound the sum of the squares of the numbers; between whole numbers chords stand for the parabola, exactly."""
        num_items, num_devices = self.problem.shape
        least, more = divmod(num_items, num_devices)
        others = max(1, num_devices - 1)
        # So many on one device leave even the most even rest above the limit.
        most = next(n for n in range(num_items, 0, -1) if n == 1 or n * n + (num_items - n) ** 2 / others <= limit)
        is_even = limit == more * (least + 1) ** 2 + (num_devices - more) * least**2
        for device in range(num_devices):
            self._counts(self._row(least if is_even else 0, least + (more > 0) if is_even else most))[:, device] = 1
            for n in () if is_even else range(most):
                chord = self._row(-n * (n + 1), np.inf)
                self._counts(chord)[:, device] = -(2 * n + 1)
                chord[self.squares_at + device] = 1
        if not is_even:
            self._row(-np.inf, limit)[self.squares_at :] = 1

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
