# SPDX-License-Identifier: Apache-2.0
"""The coordinator's clock: monotonic seconds, waiting until a moment, and calls at a set time."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger(__name__)


class Clock(Protocol):
    """Seconds that only grow, waiting, and calls at a later time."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        """Wait, holding `condition`, until it is notified or the time is `until`. May return early."""
        ...

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """Have `call` called at that time or soon after, on a thread of the clock's. It must be quick."""
        ...


class MonotonicClock:
    """The machine's monotonic clock: setting the time of day or a suspended machine moves no deadline."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def now(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        """See `Clock`."""
        remaining = None if until is None else until - self.now()
        if remaining is None or remaining > 0:
            condition.wait(None if remaining is None else min(remaining, threading.TIMEOUT_MAX))

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """See `Clock`. One thread serves all calls; it ends when there is none left."""
        with self._changed:
            heapq.heappush(self._calls, (when, next(self._numbers), call))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="edvit-clock", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while self._calls and self._calls[0][0] > self.now():
                    self.wait(self._changed, self._calls[0][0])
                if not self._calls:
                    self._thread = None
                    return
                _, _, call = heapq.heappop(self._calls)
            try:
                call()
            except Exception:  # or no later call would ever be made
                logger.exception("a call at a set time failed")
            del call  # or what it refers to would live until the next one
