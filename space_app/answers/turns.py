# SPDX-License-Identifier: Apache-2.0
"""Who is answered when: what one visitor asks in order, and nobody holds all the places.

Turns go by session, which a browser chooses for itself. Places go by address, which nobody chooses.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

from edvit_hf.errors import OverloadedError
from edvit_hf.runtime import MonotonicClock
from edvit_hf.runtime.waiting_line import RequestLine

MAX_WAITING = 4
"""Events of one visitor that may wait for the one before; more are refused at once: they hold nobody's place."""


_address: ContextVar[str | None] = ContextVar("address", default=None)


@contextlib.contextmanager
def asking(address: str | None) -> Iterator[None]:
    """Whatever the block asks for is asked for by this address."""
    token = _address.set(address)
    try:
        yield
    finally:
        _address.reset(token)


class Places:
    """So many places, of which one address holds a part at most; safe to use from several threads."""

    def __init__(self, total: int, each: int) -> None:
        self._total, self._each = total, each
        self._lock = threading.Lock()
        self._held: Counter[str | None] = Counter()

    @contextlib.contextmanager
    def hold(self, address: str | None) -> Iterator[None]:
        """Hold a place while the block runs. Who is unknown shares in all of them.

        Raises:
            OverloadedError: There is none, or none for this address.
        """
        with self._lock:
            is_much = address is not None and self._held[address] >= self._each
            if is_much or self._held.total() >= self._total:
                raise OverloadedError("Expected a free place, got others who hold it.", retry_after_ms=1e3)
            self._held[address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[address] -= 1
                self._held += Counter()  # keeps those that hold some

    def hold_mine(self) -> contextlib.AbstractContextManager[None]:
        """Hold a place for whoever is `asking`."""
        return self.hold(_address.get())

    def __len__(self) -> int:
        """Places that are held."""
        return self._held.total()


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
