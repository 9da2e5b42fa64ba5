# SPDX-License-Identifier: Apache-2.0
"""How much is let in: a rate for each client, and one line for all, before anything of a request is read.

The coordinator has a line of its own and judges every request that gets there. This one is for those that would not:
turning them away must cost next to nothing, or the rejected would slow the accepted down.
"""

import contextlib
import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator

from edvit_hf.serving.refusals import overloaded

_WEIGHT = 0.2  # of the newest service time in the running mean
_SHORTEST_WINDOW = 1.0  # seconds over which the offered load is measured
_LASTING = 1.5  # load from which nobody may wait
_MOST_ARRIVALS = 8192


class Line:
    """One request is answered, up to `max_queued` wait; under lasting overload nobody does.

    A burst is worth waiting for: after it the line is empty again. Where more has come for a while than can be
    answered, waiting helps nobody: the line would stay full, and every answer late by all of it. So the load that is
    offered (the seconds that those took who were answered, and arrivals times seconds an answer for the others)
    decides whether anybody may wait. It counts those that are turned away too: what is accepted says nothing about what
    comes. A few clients that each wait for their answer before they ask again offer a load of 1 however long they go
    on, and may wait; from 1.5 on nobody may. The load is taken over a second, or over twice what a full line takes if
    that is longer.

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
        self._served: deque[tuple[float, float]] = deque(maxlen=_MOST_ARRIVALS)  # when, seconds

    @property
    def load(self) -> float:
        """Offered, as a share of what can be answered."""
        window = max(_SHORTEST_WINDOW, 2 * self.max_queued * self.service)
        oldest = self._clock() - window
        while self._arrivals and self._arrivals[0] < oldest:
            self._arrivals.popleft()
        while self._served and self._served[0][0] < oldest:
            self._served.popleft()
        # Those that were served count with what they took: one that takes long, once, is no reason to turn others away.
        waiting = max(0, len(self._arrivals) - len(self._served))
        return (sum(taken for _, taken in self._served) + waiting * self.service) / window

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
            self._served.append((now, taken))
            self.service = taken if not self.service else (1 - _WEIGHT) * self.service + _WEIGHT * taken


class Rates:
    """A token bucket for each client: `rate` requests a second, and `burst` at once. Not for several threads."""

    def __init__(
        self,
        rate: float,
        *,
        burst: float | None = None,
        max_clients: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with full buckets.

        Args:
            rate: Requests a second; 0: any number.
            burst: At once. Default: twice the rate, at least 1.
            max_clients: Remembered; the one that has been quiet for longest is forgotten first.
            clock: Seconds, monotonic.
        """
        self._rate, self._clock, self._max_clients = rate, clock, max_clients
        self._burst = max(1.0, 2 * rate if burst is None else burst)
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # what is left, when

    def take(self, client: Hashable) -> float | None:
        """Let one request through (None), or say in how many seconds it would be."""
        if not self._rate:
            return None
        now = self._clock()
        left, then = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        wait = None if left >= 1 else (1 - left) / self._rate
        self._buckets[client] = (left - 1 if wait is None else left, now)
        if len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        return wait

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._buckets)


def client_of(address: str | None) -> str:
    """Whom an address belongs to: itself, or its /64, since one machine may have all addresses of that."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return str(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
