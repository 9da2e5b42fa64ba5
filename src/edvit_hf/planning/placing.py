# SPDX-License-Identifier: Apache-2.0
"""Which device runs which sub-model: the paper's greedy, and an exact search (integer programming) that starts from it.

Works on arrays alone, N sub-models x D devices, which `costs.py` fills.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edvit_hf.planning.problem import TOLERANCE, Problem
from edvit_hf.planning.program import Program, SearchOutcome, TimeBudget


def greedy(problem: Problem) -> list[int] | None:
    """The most expensive sub-model first, each to the device with the most remaining compute that holds it.

    Remaining compute is counted in multiply-accumulates: what is left of the device's MAC budget, or what its energy
    budget allows, whichever is less. Devices without such a budget come first, the one that would be done soonest.
    Where sub-models are to be spread, the device with the fewest of them comes before all that.

    Returns:
        The device of each sub-model, or None where one finds no place (another order might still find one).

    Source: ED-ViT (2410.11650), placement; EC-SNN (IJCAI-24, Algorithm 1). Differs: ties are broken by predicted
    time, which the papers do not speak of.
    """
    num_items, num_devices = problem.shape
    used = {kind: reserved.astype(float) for kind, reserved in problem.reserved.items()}
    busy, chosen = np.zeros(num_devices), np.full(num_items, -1)
    counts, is_spread = np.zeros(num_devices, int), problem.crowding_limit is not None
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
        numbers = counts if is_spread else np.zeros(num_devices, int)
        best = min(fitting, key=lambda d: (numbers[d], -_remaining_macs(problem, used, item, d), done[d], d))
        counts[best] += 1
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


def feasible(problem: Problem, time_budget: TimeBudget, *, exact: bool) -> SearchOutcome:
    """Some placement within the budgets: greedy's, and where it finds none, the exact search's."""
    start = greedy(problem)
    if start is not None or not exact:
        return SearchOutcome(start, is_proven=start is not None)
    return Program(problem).solve(time_budget)


def fastest(problem: Problem, start: Sequence[int], time_budget: TimeBudget) -> SearchOutcome:
    """The placement that minimises the latency, searched below the latency of `start`; never worse than `start`."""
    objective = problem.objective(start)
    if objective <= problem.lower_bound * (1 + TOLERANCE):
        return SearchOutcome(list(start), is_proven=True, bound=objective)
    found = Program(problem, latency=True, cutoff=objective).solve(time_budget)
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
    found = Program(problem, raised=tuple(kinds)).solve(time_budget)
    if found.placement is None:
        return found
    raised: dict[str, np.ndarray] = {}
    for kind in kinds:
        if kind == "total":
            raised[kind] = np.array([max(0.0, problem.total(found.placement) - problem.total_limit)])
        else:
            raised[kind] = np.maximum(0.0, problem.load(kind, found.placement) - problem.limits[kind])
    return replace(found, raised=raised)


def spread_out(problem: Problem, start: Sequence[int], time_budget: TimeBudget, *, exact: bool) -> SearchOutcome:
    """The placement that crowds devices least, searched from `start` on: by single moves, with `exact` by the solver.

    Whatever ends the search, no device is left that runs two or more while another could take one of them and have
    fewer still.
    """
    start = evened(problem, start)
    crowding = problem.crowding(start)
    if crowding <= problem.least_crowding or not exact:
        return SearchOutcome(start, is_proven=crowding <= problem.least_crowding, bound=problem.least_crowding)
    found = Program(replace(problem, crowding_limit=crowding - 1), spread=True).solve(time_budget)
    if found.placement is None:  # an ended search without one proves `start` the best
        return SearchOutcome(start, found.is_proven, crowding if found.is_proven else problem.least_crowding)
    return replace(found, placement=evened(problem, found.placement))


def evened(problem: Problem, placement: Sequence[int]) -> list[int]:
    """Move sub-models, one at a time, to devices that have at least two fewer and room, until none can be moved."""
    result, at = list(placement), np.arange(len(placement))
    while problem.crowding(result) > problem.least_crowding:
        counts, devices = problem.counts(result), np.array(result)
        may = problem.takes_first & (counts[devices][:, None] >= counts + 2)
        for kind, limits in problem.limits.items():
            may &= problem.load(kind, result) + problem.costs[kind] <= limits * (1 + TOLERANCE)
        costs = problem.costs[problem.total_kind]
        total = problem.total(result) - costs[at, devices][:, None] + costs
        may &= total <= problem.total_limit * (1 + TOLERANCE)
        if not may.any():
            break
        gain = np.where(may, counts[devices][:, None] - counts, 0)
        best = np.argwhere(gain == gain.max())
        busy = problem.busy_ms + problem.fixed_ms
        item, device = min(best, key=lambda pair: (float(busy[tuple(pair)]), tuple(pair)))
        result[item] = int(device)
    return result
