# SPDX-License-Identifier: Apache-2.0
"""Limits on connections, which uvicorn leaves to a proxy: how many, and how long one may take to ask and to read.

A subclass of uvicorn's h11 protocol, chosen over httptools because h11 bounds the headers that it collects, is there
wherever uvicorn is, and is strict about what it takes.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from edvit_hf.serving.limits import Limits
from edvit_hf.serving.refusals import RefusedError, bad_request, too_slow

# Large headers are read whole, so that a refusal is not lost with what is left unread; large bodies in small pieces.
_HEADER_BYTES, _BODY_BYTES = 1 << 18, 1 << 14


class GuardedProtocol(H11Protocol):
    """One connection. `limits` is set on a subclass: uvicorn makes the objects."""

    limits: Limits
    _timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`. One connection too many is told so and closed."""
        super().connection_made(transport)
        # `pause_writing` as soon as the client leaves anything unread; with high=0 TLS would pause for ever.
        transport.set_write_buffer_limits(high=1, low=0)
        self._watch()
        if len(self.connections) > self.limits.max_connections:
            message = "Too many connections are open. Ask again later."
            self._refuse(RefusedError(503, "too_many_connections", message, retry_after_ms=1000.0, close=True))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_refused:
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._read_at_once(_BODY_BYTES)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_watching()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`. Closing would wait for the client too, so whoever does not read is cut off."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Uvicorn's hook: the connection is ready for the next request."""
        super().on_response_complete()
        self._read_at_once(_HEADER_BYTES)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's hook for what is no HTTP: our JSON instead of its text."""
        request = bad_request("The request is not written as HTTP, or its headers are too long.")
        self._refuse(RefusedError(400, request.code, str(request), close=True))

    def _read_at_once(self, count: int) -> None:
        """How much asyncio reads before other connections have their turn."""
        if hasattr(self.transport, "max_size"):
            self.transport.max_size = count

    def _watch(self) -> None:
        """Run the timer while nothing is being answered: headers that come too slowly, bodies nobody reads."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.is_closing():
            self._stop_watching()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.limits.send_seconds, self._too_slow)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_waiting_for_reader(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.cycle is None and not self.transport.is_closing():
            self._refuse(too_slow())
        else:
            self.transport.close()

    def _refuse(self, refusal: RefusedError) -> None:
        """Answer in place of the application, unless that has begun to, and close."""
        self._is_refused = True
        self._stop_watching()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            headers, body = refusal.raw("")
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(b"HTTP/1.1 %d \r\n%s\r\n%s" % (refusal.status, lines, body))
        self.transport.close()


def guarded_protocol(limits: Limits) -> Any:
    """The class that uvicorn makes connections with."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})
