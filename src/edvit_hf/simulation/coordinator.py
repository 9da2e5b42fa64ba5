# SPDX-License-Identifier: Apache-2.0
"""A simulated coordinator: line, processor, uplink, deadline, quorum and breakers of the runtime's, in simulated time.

Limits are the runtime's own `CoordinatorConfig`, breakers its own `Breakers`; who is tried first follows its replicas.
"""

import math
from collections import deque
from collections.abc import Generator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import simpy

from edvit_hf.runtime.breaker import Breakers, UsualTimes
from edvit_hf.runtime.engines import SubModelRequest
from edvit_hf.runtime.waiting_line import ServiceTime
from edvit_hf.simulation.config import SimulationConfig
from edvit_hf.simulation.devices import SimulatedDevices
from edvit_hf.simulation.fleet import FleetModel
from edvit_hf.simulation.outages import Outages
from edvit_hf.simulation.tally import Tally

Steps: TypeAlias = Generator[simpy.Event, Any, None]
Decision: TypeAlias = Generator[simpy.Event, Any, bool]
_ONE_INPUT = {"": np.zeros(1)}


class Shared:
    """Something that serves one at a time, first come, first served, and how long it was busy."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env, self._turn = env, simpy.Resource(env, capacity=1)
        self.busy = 0.0

    def use(self, milliseconds: float, deadline: float = math.inf) -> Decision:
        """Hold it for so long; given up at the deadline. Whether it was done by then."""
        if milliseconds <= 0:
            return True
        with self._turn.request() as turn:
            if deadline < math.inf:
                yield turn | self._env.timeout(max(0.0, deadline - self._env.now))
                if not turn.triggered:
                    return False
            else:
                yield turn
            held = min(milliseconds, max(0.0, deadline - self._env.now))
            yield self._env.timeout(held)
            self.busy += held
        return held == milliseconds


class SimulatedCoordinator:
    """One coordinator over one copy of the fleet."""

    def __init__(
        self,
        env: simpy.Environment,
        model: FleetModel,
        config: SimulationConfig,
        tally: Tally,
        *,
        group: int,
        uplink: Shared,
        outages: Outages,
    ) -> None:
        self._env, self._model, self._config, self._tally = env, model, config, tally
        self.serving = config.serving
        self.cpu, self.uplink = Shared(env), uplink
        self.devices = SimulatedDevices(model, config, outages, group)
        self._limit = self.serving.deadline_ms or math.inf
        self._in_flight, self._waiting = 0, deque[simpy.Event]()
        self._service = ServiceTime()
        count = len(model.endpoints)
        self._is_open, self._has_missed = np.zeros(count, bool), np.zeros(count, bool)
        self._breakers = Breakers(
            range(count),
            misses_to_open=self.serving.misses_to_open,
            first_pause=self.serving.probe_pause_s,
            longest_pause=self.serving.longest_probe_pause_s,
            on_open=self._opened,
        )
        self._usual = UsualTimes(self.serving.deadline_ms)
        self._at = model.own
        self._suspected: set[int] = set()

    def request(self, number: int) -> Steps:
        """One request, from its arrival to its end."""
        begin = self._env.now
        deadline = begin + self._limit
        if not (yield from self._admitted(deadline)):
            self._tally.note("rejected", begin, self._env.now)
            return
        served = self._env.now
        missing = yield from self._exchange(number, deadline)
        self._leave(served)
        if missing is None:
            self._tally.note("failed", begin, self._env.now)
            return
        yield from self.cpu.use(self._model.fusion_ms)
        self._tally.note("degraded" if missing else "whole", begin, self._env.now)

    def _admitted(self, deadline: float) -> Decision:
        """Whether the request's turn comes: see `RequestLine`, whose rules these are."""
        most = self.serving.max_in_flight
        if self._in_flight < most and not self._waiting:
            self._in_flight += 1
            return True
        wait = self._service.expected_wait(len(self._waiting), self._in_flight, most)
        if len(self._waiting) >= self.serving.max_queued or self._env.now + wait + self._service.mean > deadline:
            return False
        ticket = self._env.event()
        self._waiting.append(ticket)
        if deadline < math.inf:
            yield ticket | self._env.timeout(max(0.0, deadline - self._env.now))
        else:
            yield ticket
        if not ticket.triggered:
            self._waiting.remove(ticket)
        return ticket.triggered

    def _leave(self, begin: float) -> None:
        """Give the place to the next in line."""
        self._service.note(self._env.now - begin)
        if self._waiting:
            self._waiting.popleft().succeed()
        else:
            self._in_flight -= 1

    def _exchange(self, number: int, deadline: float) -> Generator[simpy.Event, Any, int | None]:
        """Ask, wait, judge; how many are missing, or None where too few are there."""
        asked, count = np.flatnonzero(~self._is_open), len(self._is_open)
        needed = self.serving.quorum or max(1, math.ceil(count / 2))
        if len(asked) < needed:
            return None
        began, work = self._env.now, self._config.work
        yield from self.cpu.use((work.request_ms + len(asked) * work.sub_model_ms) / 2)
        at = self._at[asked]
        sending = self._model.uplink_ms * int(self._model.is_remote[at].sum())
        if self._env.now < deadline and (yield from self.uplink.use(sending, deadline)):
            arrived = self.devices.run(asked, at, self._env.now, deadline, number)
        else:
            arrived = np.full(len(asked), np.inf)
        is_late = arrived > deadline
        end = deadline if is_late.any() else float(arrived.max())
        yield self._env.timeout(max(0.0, end - self._env.now))
        self._judge(asked, at, is_late, deadline - began)
        answered = len(asked) - int(is_late.sum())
        yield from self.cpu.use((work.request_ms + answered * work.sub_model_ms) / 2)
        return count - answered if answered >= needed else None

    def _judge(self, asked: np.ndarray, at: np.ndarray, is_late: np.ndarray, budget_ms: float) -> None:
        """Tell the breakers, and whose replica is asked next time."""
        for index in asked[self._has_missed[asked] & ~is_late]:
            self._breakers.success(int(index))
            self._has_missed[index] = False
        if not is_late.any():
            return
        request = SubModelRequest(request_id="", content_hash="", budget_ms=budget_ms, inputs=_ONE_INPUT)
        for index, device in zip(asked[is_late].tolist(), at[is_late].tolist(), strict=True):
            if self._usual.is_fair(index, request, self.serving.deadline_ms):
                self._has_missed[index] = True
                self._suspect(index, device)
                self._breakers.miss(index)
        self._is_open[asked] = [self._breakers.is_open(int(index)) for index in asked]

    def _suspect(self, index: int, device: int) -> None:
        """Ask elsewhere first, where there is elsewhere, until the device shows a sign of life."""
        if len(self._model.endpoints[index]) > 1 and device not in self._suspected:
            self._suspected.add(device)
            self._route()
            self._env.process(self._watch(device))

    def _watch(self, device: int) -> Steps:
        while True:
            yield self._env.timeout(1e3 * self.serving.probe_pause_s)
            if self.devices.outages.is_up(device, self._env.now):
                self._suspected.discard(device)
                self._route()
                return

    def _route(self) -> None:
        for index, devices in enumerate(self._model.endpoints):
            if len(devices) > 1:
                self._at[index] = next((device for device in devices if device not in self._suspected), devices[0])

    def _opened(self, index: int, pause_s: float) -> None:
        self._env.process(self._probe(index, pause_s))

    def _probe(self, index: int, pause_s: float) -> Steps:
        """A sign of life of any device that holds the sub-model closes its breaker."""
        yield self._env.timeout(1e3 * pause_s)
        is_up = partial(self.devices.outages.is_up, now=self._env.now)
        good = any(is_up(device) for device in self._model.endpoints[index])
        if not good:
            yield self._env.timeout(1e3 * self.serving.probe_timeout_s)
        self._breakers.probed(index, good=good)
        self._is_open[index] = self._breakers.is_open(index)
