# SPDX-License-Identifier: Apache-2.0
"""The bounded line of requests before the sub-models: first come, first served, and refused before it is too late."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from edvit_hf.errors import OverloadedError
from edvit_hf.runtime.clock import Clock

_WEIGHT = 0.2  # of the newest service time in the running mean


class ServiceTime:
    """Running mean of how long requests are served, and the wait that it lets expect. In any unit of time."""

    def __init__(self) -> None:
        self.mean = 0.0

    def note(self, taken: float) -> None:
        """Count one request that was served."""
        self.mean = taken if not self.mean else (1 - _WEIGHT) * self.mean + _WEIGHT * taken

    def expected_wait(self, waiting: int, in_flight: int, max_in_flight: int) -> float:
        """Until a request that comes now gets its turn; those being served are half done on average."""
        return self.mean * (waiting + in_flight / 2) / max_in_flight


class RequestLine:
    """Lets `max_in_flight` requests through at a time and at most `max_queued` wait."""

    def __init__(self, clock: Clock, *, max_in_flight: int, max_queued: int) -> None:
        self._clock = clock
        self._max_in_flight, self._max_queued = max_in_flight, max_queued
        self._condition = threading.Condition()
        self._waiting: deque[object] = deque()
        self._in_flight = 0
        self._service = ServiceTime()
        self.rejected = 0

    @contextlib.contextmanager
    def enter(self, deadline: float | None) -> Iterator[None]:
        """Hold a place while the block runs; `deadline` is on the clock, None waits as long as it takes.

        Raises:
            OverloadedError: The line is full, or is so long that this request would not be served by its deadline, or
                its turn did not come by then.
        """
        self._take_place(deadline)
        begin = self._clock.now()
        try:
            yield
        finally:
            with self._condition:
                self._service.note(self._clock.now() - begin)
                self._in_flight -= 1
                self._condition.notify_all()

    def status(self) -> dict[str, int]:
        """Requests being served, waiting and turned away so far."""
        return {"in_flight": self._in_flight, "queued": len(self._waiting), "rejected": self.rejected}

    def _take_place(self, deadline: float | None) -> None:
        ticket = object()
        with self._condition:
            if self._in_flight >= self._max_in_flight or self._waiting:
                self._refuse_hopeless(deadline)
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._in_flight >= self._max_in_flight:
                    if deadline is not None and self._clock.now() >= deadline:
                        raise self._overloaded("its turn did not come by its deadline")
                    self._clock.wait(self._condition, deadline)
                self._in_flight += 1
            finally:
                self._waiting.remove(ticket)
                self._condition.notify_all()

    def _refuse_hopeless(self, deadline: float | None) -> None:
        if len(self._waiting) >= self._max_queued:
            raise self._overloaded(f"{len(self._waiting)} requests wait already, the most that may")
        if deadline is not None and self._clock.now() + self._expected_wait() + self._service.mean > deadline:
            raise self._overloaded("the line before it is longer than its deadline")

    def _expected_wait(self) -> float:
        """Until a request that comes now gets its turn, seconds."""
        return self._service.expected_wait(len(self._waiting), self._in_flight, self._max_in_flight)

    def _overloaded(self, why: str) -> OverloadedError:
        self.rejected += 1
        retry_after_ms = 1e3 * max(self._service.mean, self._expected_wait())
        return OverloadedError(
            f"Expected a free place, got a busy runtime: {why}. Answering anyway would make every answer late. "
            f"Ask again in {retry_after_ms:.0f} ms, less often, or allow a longer deadline.",
            retry_after_ms=retry_after_ms,
        )
