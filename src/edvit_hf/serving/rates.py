"""How often one client may ask: a token bucket each, in a table that cannot grow without end."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class Rates:
    """A bucket for each client: `rate` requests a second, and `burst` at once. Not for several threads."""

    def __init__(
        self, rate: float, *, burst: float | None = None, max_clients: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
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
