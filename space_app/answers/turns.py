# SPDX-License-Identifier: Apache-2.0
"""Turns: what one visitor asks is answered in order and one at a time, whatever others ask meanwhile."""

import contextlib
import threading
from collections.abc import Iterator

from edvit_hf.runtime import MonotonicClock
from edvit_hf.runtime.waiting_line import RequestLine

MAX_WAITING = 4
"""Events of one visitor that may wait for the one before; more are refused at once: they hold nobody's place."""


class Turns:
    """A line for each visitor. There is none for those who ask nothing."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._clock = MonotonicClock()
        self._lock = threading.Lock()
        self._lines: dict[str, tuple[RequestLine, int]] = {}  # and how many are in it

    @contextlib.contextmanager
    def enter(self, visitor: str | None) -> Iterator[None]:
        """Wait for the visitor's turn, and hold it while the block runs. Whoever is unknown waits for nobody.

        Raises:
            OverloadedError: Too many of this visitor's wait already.
        """
        if visitor is None:
            yield
            return
        line = self._join(visitor)
        try:
            with line.enter(None):
                yield
        finally:
            self._leave(visitor)

    def __len__(self) -> int:
        """Visitors who are at something."""
        return len(self._lines)

    def _join(self, visitor: str) -> RequestLine:
        with self._lock:
            line, count = self._lines.get(visitor) or (
                RequestLine(self._clock, max_in_flight=1, max_queued=self._max_waiting),
                0,
            )
            self._lines[visitor] = line, count + 1
            return line

    def _leave(self, visitor: str) -> None:
        with self._lock:
            line, count = self._lines[visitor]
            if count == 1:
                del self._lines[visitor]
            else:
                self._lines[visitor] = line, count - 1
