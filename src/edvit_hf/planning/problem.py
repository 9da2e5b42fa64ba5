# SPDX-License-Identifier: Apache-2.0
"""Costs, limits and times of N sub-models on D devices as arrays: `costs.py` fills them, `placing.py` searches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

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
    # With a value sub-models are spread before they are fast: the most that the squares of the numbers of sub-models
    # per device may sum to. None: it does not matter how many a device runs
    crowding_limit: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """N sub-models, D devices."""
        return self.busy_ms.shape[0], self.busy_ms.shape[1]

    @cached_property
    def takes_first(self) -> np.ndarray:
        """(N, D) whether a device that runs nothing yet has room for a sub-model."""
        result = np.ones(self.shape, bool)
        for kind, limit in self.limits.items():
            result &= self.reserved[kind] + self.costs[kind] <= limit * (1 + TOLERANCE)
        return result

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
        is_spread = self.crowding_limit is None or self.crowding(placement) <= self.crowding_limit
        return is_spread and below and self.total(placement) <= self.total_limit * (1 + TOLERANCE)

    def counts(self, placement: Sequence[int]) -> np.ndarray:
        """(D,) number of sub-models that each device runs."""
        return np.bincount(list(placement), minlength=self.shape[1])

    def crowding(self, placement: Sequence[int]) -> int:
        """The sum of the squares of the numbers of sub-models per device: the less, the more evenly they are spread."""
        return int((self.counts(placement) ** 2).sum())

    @cached_property
    def least_crowding(self) -> int:
        """A crowding that no placement can go below: even numbers on all devices that have room for any sub-model."""
        devices = max(1, int(self.takes_first.any(axis=0).sum()))
        least, more = divmod(self.shape[0], devices)
        return more * (least + 1) ** 2 + (devices - more) * least**2

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
        """A latency that no placement can beat, by arithmetic: the slowest sub-model where it is fastest.

        The inputs of all others come to it on the uplink, each where that takes least.
        """
        own, sending = (self.busy_ms + self.fixed_ms + self.remote_ms).min(axis=1), self.remote_ms.min(axis=1)
        return float((own - sending).max() + sending.sum())

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
