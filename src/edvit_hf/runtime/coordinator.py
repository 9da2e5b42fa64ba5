# SPDX-License-Identifier: Apache-2.0
"""The coordinator: asks sub-models through any engine, waits no longer than it may, and fuses nothing it cannot trust.

It owns all that makes a degraded answer trustworthy, whatever carries the requests: deadline, availability mask,
circuit breakers with probes, quorum, version handshake, checks of values, duplicates, and a bounded line of requests.
"""

import itertools
import logging
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edvit_hf.errors import DataError, EDViTError, QuorumError
from edvit_hf.manifest import Manifest
from edvit_hf.runtime.breaker import Breakers, UsualTimes
from edvit_hf.runtime.clock import Clock, MonotonicClock
from edvit_hf.runtime.engines import (
    ON_REQUEST,
    Engine,
    Pending,
    ProbeResponse,
    Reason,
    SubModelRequest,
    SubModelResponse,
)
from edvit_hf.runtime.exchange import DEFAULT_MAX_DEVIATIONS, Exchange, ResponseCheck, reason_of, too_few
from edvit_hf.runtime.waiting_line import RequestLine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CoordinatorConfig:
    """How long to wait, for whom, and how many at a time.

    Attributes:
        deadline_ms: From the call to the fused answer's features, line included; None waits for every sub-model.
        quorum: Fewest sub-models in an answer. None: half of those that were asked for, rounded up: what the caller
            leaves out, or did not load, is no fault.
        misses_to_open: Failures in a row after which a sub-model is left alone; None: never.
        probe_pause_s: From then to the first probe; doubles with each that fails.
        longest_probe_pause_s: The most it doubles to.
        probe_timeout_s: A probe without an answer by then has failed.
        max_deviations: See `ResponseCheck`; None switches the check of ranges off.
        max_in_flight: Requests served at a time.
        max_queued: Requests that may wait for a place; one more is turned away at once.
    """

    deadline_ms: float | None = None
    quorum: int | None = None
    misses_to_open: int | None = 2
    probe_pause_s: float = 1.0
    longest_probe_pause_s: float = 5.0
    probe_timeout_s: float = 1.0
    max_deviations: float | None = DEFAULT_MAX_DEVIATIONS
    max_in_flight: int = 1
    max_queued: int = 64

    def __post_init__(self) -> None:
        """Check ranges."""
        positive = {name: value for name, value in vars(self).items() if name != "max_queued" and value is not None}
        wrong = [name for name, value in positive.items() if not value > 0]
        wrong += [] if self.max_queued >= 0 else ["max_queued"]
        if wrong:
            raise EDViTError(
                f"Expected positive values, got {', '.join(f'{name}={getattr(self, name)}' for name in wrong)}. "
                "Nothing could be answered with them. Correct them, or leave them out for the defaults."
            )


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What came of one request.

    Attributes:
        request_id: Its own.
        responses: By sub-model, checked.
        missing: Why each other sub-model is missing.
        asked_ms: From asking to the last response that counts, or to the deadline.
    """

    request_id: str
    responses: Mapping[int, SubModelResponse]
    missing: Mapping[int, Reason]
    asked_ms: float


class Coordinator:
    """Asks the sub-models of one ensemble through one engine. Safe to call from several threads."""

    def __init__(
        self, manifest: Manifest, engine: Engine, config: CoordinatorConfig | None = None, *, clock: Clock | None = None
    ) -> None:
        self.config = config = CoordinatorConfig() if config is None else config
        self.engine = engine
        self._clock = MonotonicClock() if clock is None else clock
        self._content_hash = manifest.ensemble.content_hash
        self._num_sub_models = len(manifest.sub_models)
        self._check = ResponseCheck(manifest, max_deviations=config.max_deviations)
        self._line = RequestLine(self._clock, max_in_flight=config.max_in_flight, max_queued=config.max_queued)
        self._breakers = Breakers(
            range(self._num_sub_models),
            misses_to_open=config.misses_to_open,
            first_pause=config.probe_pause_s,
            longest_pause=config.longest_probe_pause_s,
            on_open=partial(_if_alive, weakref.ref(self), Coordinator._schedule_probe),
        )
        self._usual = UsualTimes(config.deadline_ms)
        self._name, self._numbers = uuid.uuid4().hex, itertools.count()  # of requests
        self._counts: Counter[str] = Counter()
        self._missing: Counter[tuple[int, Reason]] = Counter()
        self._counting = threading.Lock()
        self.is_closed = False

    def gather(
        self, inputs: Mapping[str, np.ndarray], absent: Collection[int] = (), *, deadline_ms: float | None = None
    ) -> Gathered:
        """Ask every sub-model that may take part, and return what came in time.

        Args:
            inputs: Prepared, by name; B rows each.
            absent: Sub-models to leave out. They are not asked.
            deadline_ms: Instead of the configured one; positive.

        Raises:
            QuorumError: Too few answered well; raised as soon as that is certain, at the deadline at the latest.
            OverloadedError: Too many requests; raised at once, or at the deadline if its turn does not come.
            DataError: A sub-model says that the input is at fault.
            EDViTError: The coordinator is closed.
        """
        if self.is_closed:
            raise EDViTError("Expected an open runtime, got one that was closed. Nobody computes. Load it again.")
        begin = self._clock.now()
        limit = self.config.deadline_ms if deadline_ms is None else deadline_ms
        deadline = None if limit is None else begin + limit / 1e3
        try:
            with self._line.enter(deadline):
                admitted = self._clock.now()
                exchange = self._ask(inputs, absent, deadline)
                ended = self._clock.now()
                self._judge(exchange, limit)
        except EDViTError as error:
            self._count("failed" if isinstance(error, QuorumError) else "refused")
            raise
        self._count("degraded" if exchange.missing else "ok")
        return Gathered(
            request_id=exchange.request.request_id,
            responses=exchange.responses,
            missing=exchange.missing,
            asked_ms=1e3 * (ended - admitted),
        )

    def status(self) -> dict[str, Any]:
        """Counters since the start, breakers, the line and the engine: JSON-able."""
        with self._counting:
            missing = [{"sub_model": i, "reason": why, "count": n} for (i, why), n in sorted(self._missing.items())]
            counts = {name: self._counts[name] for name in ("ok", "degraded", "failed", "refused", "dropped")}
        return {
            "requests": counts,
            "missing": missing,
            "breakers": self._breakers.states(),
            "queue": self._line.status(),
            "engine": self.engine.status(),
        }

    def close(self) -> None:
        """Close the engine; no probe is sent any more."""
        self.is_closed = True
        self.engine.close()

    def _ask(self, inputs: Mapping[str, np.ndarray], absent: Collection[int], deadline: float | None) -> Exchange:
        """Send the request to everybody who may take part, and wait."""
        budget = None if deadline is None else 1e3 * (deadline - self._clock.now())
        name, version = f"{self._name}-{next(self._numbers)}", self._content_hash
        request = SubModelRequest(request_id=name, content_hash=version, budget_ms=budget, inputs=inputs)
        quorum, on_dropped = self.config.quorum, partial(self._count, "dropped")
        exchange = Exchange(
            request, self._check, self._num_sub_models, quorum, on_dropped, clock=self._clock, deadline=deadline
        )
        reachable = self.engine.sub_models
        for index in range(self._num_sub_models):
            if index in absent:
                exchange.miss(index, "absent")
            elif index not in reachable:
                exchange.miss(index, "not loaded")
        asked = [index for index in reachable if index not in absent]
        exchange.expect(asked)
        for index in asked:
            if self._breakers.is_open(index):
                exchange.miss(index, "breaker")
                continue
            try:
                exchange.sent(index, self.engine.submit(index, request))
            except DataError as error:
                exchange.fail(error)
                break
            except Exception as error:  # an engine's own fault must cost one sub-model, not the answer
                exchange.miss(index, reason_of(index, error))
        exchange.wait()
        return exchange

    def _judge(self, exchange: Exchange, limit_ms: float | None) -> None:
        """Tell the breakers what came of it; raise what the input or too few answers call for.

        A sub-model that had too little time (see `UsualTimes`), or that its engine had not begun, is missing from the
        answer but does not count as failing.
        """
        if exchange.error is not None:
            raise exchange.error
        for index in exchange.responses:
            self._breakers.success(index)
            self._usual.note(index, exchange.milliseconds[index] / exchange.request.batch_size)
        for index, reason in exchange.missing.items():
            if reason in (*ON_REQUEST, "breaker"):
                continue
            logger.warning("sub-model %d is missing from an answer: %s", index, reason)
            had_time = index not in exchange.never_started and self._usual.is_fair(index, exchange.request, limit_ms)
            is_fault = reason != "deadline" or had_time
            if is_fault and self._breakers.miss(index, at_once=reason == "unavailable"):
                logger.warning("sub-model %d is left alone until it answers a probe", index)
        with self._counting:
            self._missing.update(exchange.missing.items())
        if len(exchange.responses) < exchange.needed:
            raise QuorumError(too_few(exchange), exchange.missing)

    def _schedule_probe(self, index: int, pause: float) -> None:
        # The clock must not keep a runtime alive that everybody else has forgotten.
        probe = partial(_if_alive, weakref.ref(self), Coordinator._probe, index)
        self._clock.call_at(self._clock.now() + pause, probe)

    def _probe(self, index: int) -> None:
        """Ask for a sign of life; whichever comes first, the answer or the time-out, decides."""
        if self.is_closed:
            return
        decided = threading.Lock()
        breakers, content_hash = self._breakers, self._content_hash  # what is on its way must not hold the coordinator

        def decide(good: bool) -> bool:
            is_first = decided.acquire(blocking=False)
            if is_first:
                breakers.probed(index, good=good)
            return is_first

        def arrived(pending: Pending[ProbeResponse]) -> None:
            try:
                response = pending.result()
                is_good = response.sub_model == index and response.content_hash == content_hash
            except BaseException as error:  # whatever it is, it is no sign of life
                logger.info("sub-model %d did not answer a probe: %s", index, error)
                is_good = False
            decide(is_good)

        def give_up() -> None:
            if decide(False):
                pending.cancel()  # or those that hang would pile up

        try:
            pending = self.engine.probe(index)
        except Exception as error:  # as above
            logger.info("sub-model %d cannot be probed: %s", index, error)
            decide(False)
            return
        pending.add_done_callback(arrived)
        self._clock.call_at(self._clock.now() + self.config.probe_timeout_s, give_up)

    def _count(self, name: str) -> None:
        with self._counting:
            self._counts[name] += 1


def _if_alive(coordinator: "weakref.ref[Coordinator]", call: Callable[..., None], *arguments: Any) -> None:
    found = coordinator()
    if found is not None:
        call(found, *arguments)
