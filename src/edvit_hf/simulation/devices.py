# SPDX-License-Identifier: Apache-2.0
"""Simulated devices: each runs what it was sent one after another, is away now and then, and answers over its link."""

import numpy as np

from edvit_hf.simulation.config import SimulationConfig
from edvit_hf.simulation.fleet import FleetModel
from edvit_hf.simulation.outages import Outages


class SimulatedDevices:
    """The devices of one fleet. Requests reach each in the order in which they were sent.

    Whoever is away says nothing, and what it was doing or had in line is lost. What nobody waits for any more is not
    begun, and stopped if it runs. Times in milliseconds.
    """

    def __init__(self, model: FleetModel, config: SimulationConfig, outages: Outages, group: int) -> None:
        self._model, self._config, self._group = model, config, group
        self.outages = outages
        self._free_at = np.zeros(len(model.devices))
        self.busy = np.zeros(len(model.devices))

    def run(self, items: np.ndarray, at: np.ndarray, now: float, deadline: float, number: int) -> np.ndarray:
        """When the answers of these sub-models arrive, (n,); infinite where none comes.

        Args:
            items: (n,) sub-models that are asked.
            at: (n,) the device that each is asked at.
            now: When the inputs have arrived.
            deadline: When nobody waits any more.
            number: Of the request: with seed and group it decides all that is drawn.
        """
        draw = np.random.default_rng((self._config.seed, self._group, number, 2))
        service = self._model.service_ms[items, at] * self._drawn_spread(draw, at)
        there, back = (self._repeated(draw, at) for _ in range(2))
        done = np.full(len(items), np.inf)
        for turn in _turns(at):
            ended = self._run_one_each(at[turn], now + there[turn], service[turn], now, deadline)
            done[turn] = ended + self._model.back_ms[items[turn], at[turn]] + back[turn]
        return done

    def _run_one_each(
        self, at: np.ndarray, arrived: np.ndarray, service: np.ndarray, now: float, deadline: float
    ) -> np.ndarray:
        """When each of these devices, all different, has run its sub-model; infinite where it does not."""
        begins, ends = (times[at] for times in self.outages.at(now))
        start = np.maximum(arrived, self._free_at[at])
        stop = np.minimum(start + service, deadline)
        is_begun = start < deadline
        is_lost = (begins < np.where(is_begun, stop, arrived)) & (ends > arrived)
        until = np.where(is_lost, np.maximum(start, np.minimum(stop, begins)), stop)
        self.busy[at] += np.where(is_begun, until - start, 0.0)
        self._free_at[at] = np.where(is_lost, ends, np.where(is_begun, stop, self._free_at[at]))
        return np.where(is_begun & ~is_lost & (start + service <= deadline), stop, np.inf)

    def _drawn_spread(self, draw: np.random.Generator, at: np.ndarray) -> np.ndarray:
        normal = draw.standard_normal(len(at))
        below, above = self._model.spread[at].T
        scaled: np.ndarray = np.exp(normal * np.where(normal < 0, below, above))
        return scaled

    def _repeated(self, draw: np.random.Generator, at: np.ndarray) -> np.ndarray:
        """Milliseconds until a message of each gets through, beyond those of one that does at once."""
        if self._config.loss == 0:
            return np.zeros(len(at))
        losses = draw.geometric(1 - self._config.loss, len(at)) - 1
        waited = self._config.retry_ms * (2.0 ** np.minimum(losses, 30) - 1)
        return np.where(self._model.is_remote[at], waited, 0.0)


def _turns(at: np.ndarray) -> list[np.ndarray]:
    """Positions in `at` in groups without a device twice: the first of every device, then the second, and so on."""
    order = np.argsort(at, kind="stable")
    first = np.searchsorted(at[order], at[order], side="left")
    rank = np.empty(len(at), int)
    rank[order] = np.arange(len(at)) - first
    return [np.flatnonzero(rank == turn) for turn in range(int(rank.max(initial=-1)) + 1)]
