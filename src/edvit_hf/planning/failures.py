# SPDX-License-Identifier: Apache-2.0
"""What the failure of a device costs: the sub-models that it runs, and the classes that nobody else knows.

Class groups may overlap. Sub-models that know the same classes then had better run on different devices.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from edvit_hf.planning.costs import FleetCosts
from edvit_hf.planning.problem import Problem

MAX_PARTED = 64  # sub-models; of more, swaps are not tried
_NAMED = 6  # devices in one note


def knowledge(class_groups: Sequence[Sequence[int]]) -> np.ndarray:
    """(N, C) bool: which sub-model knows which class."""
    places = {label: place for place, label in enumerate(sorted({c for group in class_groups for c in group}))}
    knows = np.zeros((len(class_groups), len(places)), bool)
    for row, group in zip(knows, class_groups, strict=True):
        row[[places[label] for label in group]] = True
    return knows


def classes_lost(knows: np.ndarray, placement: Sequence[int], num_devices: int) -> np.ndarray:
    """(D,) number of classes that nobody knows while that device is absent, before any replica stands in."""
    here = np.zeros((num_devices, knows.shape[1]), int)
    np.add.at(here, list(placement), knows)
    lost: np.ndarray = ((here > 0) & (here == knows.sum(axis=0))).sum(axis=1)
    return lost


def parted(problem: Problem, placement: Sequence[int], knows: np.ndarray) -> list[int]:
    """Swap sub-models between devices, or move them, while the failure of a device then leaves fewer classes unknown.

    Within all budgets and without crowding; of equal ones the fastest. Disjoint groups gain nothing, and more than
    `MAX_PARTED` sub-models are left as they are.
    """
    result, num_devices = list(placement), problem.shape[1]
    if len(result) > MAX_PARTED or knows.sum(axis=0).max(initial=0) < 2:
        return result
    lost = int(classes_lost(knows, result, num_devices).sum())
    while lost > 0:
        options = []
        for trial in _neighbours(problem, result):
            left = int(classes_lost(knows, trial, num_devices).sum())
            if left < lost and problem.fits(trial):
                options.append((left, problem.objective(trial), trial))
        if not options:
            break
        lost, _, result = min(options)
    return result


def _neighbours(problem: Problem, placement: list[int]) -> list[list[int]]:
    """Every swap of two sub-models, and every move to a device with exactly one fewer, which crowds as much."""
    found = []
    for i, j in itertools.combinations(range(len(placement)), 2):
        if placement[i] != placement[j]:
            found.append([placement[j] if k == i else placement[i] if k == j else d for k, d in enumerate(placement)])
    counts = problem.counts(placement)
    for i, home in enumerate(placement):
        for device in np.flatnonzero(counts == counts[home] - 1):
            found.append([int(device) if k == i else d for k, d in enumerate(placement)])
    return found


def notes_on_failure(
    problem: Problem, costs: FleetCosts, placement: Sequence[int], replicas: Sequence[tuple[int, int]]
) -> list[str]:
    """What the failure of a device would cost where other placements would lose less."""
    names, counts = [device.name for device in costs.fleet.devices], problem.counts(placement)
    if len(placement) == 1:
        lacking = [name for d, name in enumerate(names) if d != placement[0] and (0, d) not in replicas]
        note = "one sub-model: each device that carries it answers on its own"
        return [f"{note}; no room on {', '.join(lacking[:_NAMED])}" if lacking else note] if len(names) > 1 else []
    crowded, empty = int(counts.argmax()), np.flatnonzero(counts == 0)
    own = [i for i, d in enumerate(placement) if d == crowded]
    idle = [names[d] for d in empty if problem.takes_first[own, d].any()]
    if costs.fleet.objective == "spread" or len(own) < 2 or not idle:
        return []
    more = f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else ""
    return [
        f"{names[crowded]} runs {len(own)} of {len(placement)} sub-models, which its failure takes away, while "
        f"{', '.join(idle[:_NAMED])}{more} could run some: the fastest placement; `objective: spread` of the fleet "
        "(`edvit plan --objective spread`) gives each device as few as it can"
    ]
