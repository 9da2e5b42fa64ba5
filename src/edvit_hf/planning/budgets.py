# SPDX-License-Identifier: Apache-2.0
"""Nothing fits a fleet: which budget binds, and the nearest value of it that makes room."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from edvit_hf.planning.costs import FleetCosts
from edvit_hf.planning.fleet import BUDGETS, MIB
from edvit_hf.planning.placing import Clock, Problem, greedy, raise_budgets

NEAREST_SECONDS = 2.0  # of the exact searches for one message
_NAMED = 6  # budgets in one message


def nearest_budgets(costs: FleetCosts, *, exact: bool) -> tuple[str, dict[str, float]]:
    """Which budget binds, and the nearest value of it that makes room, all else unchanged.

    Budgets are tried one kind at a time; where no single kind makes room, all are raised together, each as little as
    will do.

    Returns:
        A sentence, and dotted budget name -> value (see `BudgetError.nearest`), both empty where none was found.
    """
    problem, clock = costs.problem(), Clock(NEAREST_SECONDS)
    kinds = [kind for kind in BUDGETS if np.isfinite(problem.limits[kind]).any()]
    kinds += ["total"] if np.isfinite(problem.total_limit) else []
    options: list[tuple[float, list[tuple[str, float, float]]]] = []
    for chosen in [[kind] for kind in kinds] + ([kinds] if len(kinds) > 1 else []):
        if len(chosen) > 1 and options:
            break
        raised = raise_budgets(problem, chosen, clock).raised if exact else _raise_all(problem, chosen)
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
