"""The line in front of the runtime, looked at before anything of a request is read or decoded.

The coordinator has a line of its own and judges every request that gets there. This one is for those that would not:
turning them away must cost next to nothing, or the rejected would slow the accepted down.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

from edvit_hf.serving.refusals import overloaded

_WEIGHT = 0.2  # of the newest service time in the running mean
_SHORTEST_WINDOW = 1.0  # seconds over which the offered load is measured
_LASTING = 1.5  # load from which nobody may wait
_MOST_ARRIVALS = 8192


class Line:
    """One request is answered, up to `max_queued` wait; under lasting overload nobody does.

    A burst is worth waiting for: after it the line is empty again. Where more has come for a while than can be
    answered, waiting helps nobody: the line would stay full, and every answer late by all of it. So the load that is
    offered (arrivals a second times seconds an answer) decides whether anybody may wait. It counts those that are
    turned away too: what is accepted says nothing about what comes. A few clients that each wait for their answer
    before they ask again offer a load of 1 however long they go on, and may wait; from 1.5 on nobody may. The load is
    taken over a second, or over twice what a full line takes if that is longer.

    For the thread of the event loop only.
    """

    def __init__(self, max_queued: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_queued = max_queued
        self.inside = 0
        self.rejected = 0
        self.service = 0.0  # running mean, seconds
        self._clock = clock
        self._left = clock()  # when the last one did
        self._arrivals: deque[float] = deque(maxlen=_MOST_ARRIVALS)

    @property
    def load(self) -> float:
        """Offered, as a share of what can be answered."""
        window = max(_SHORTEST_WINDOW, 2 * self.max_queued * self.service)
        oldest = self._clock() - window
        while self._arrivals and self._arrivals[0] < oldest:
            self._arrivals.popleft()
        return len(self._arrivals) * self.service / window

    def arrive(self) -> None:
        """Count a request, and turn it away if there is no place.

        Raises:
            RefusedError: Overloaded.
        """
        self._arrivals.append(self._clock())
        self.check()

    def check(self) -> None:
        """Raise a `RefusedError` if there is no place."""
        if self.inside and self.inside > (0 if self.load > _LASTING else self.max_queued):
            self.rejected += 1
            raise overloaded(1e3 * max(self.service * self.inside, 0.001))

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place while the block runs. Raises what `check` raises."""
        self.check()
        begin = self._clock()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            now = self._clock()
            taken = now - max(begin, self._left)  # they are answered one after the other
            self._left = now
            self.service = taken if not self.service else (1 - _WEIGHT) * self.service + _WEIGHT * taken
