# SPDX-License-Identifier: Apache-2.0
"""Reads a request's body: no more bytes and no longer than allowed, whatever its headers promise."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

from starlette.requests import Request

from edvit_hf.serving.limits import Limits
from edvit_hf.serving.refusals import RefusedError, bad_request, encoded, overloaded, too_large, too_slow

_DISCARDED_BYTES = 1 << 20
_DISCARDED_SECONDS = 1.0
_PIECE_BYTES, _REST_SECONDS = 1 << 16, 0.004
_RECENT_SECONDS = 0.25


class Budget:
    """Bytes of all bodies that are held at a time. For the thread of the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    @contextlib.contextmanager
    def share(self) -> Iterator["BudgetShare"]:
        """What one request takes, given back at the end of the block."""
        share = BudgetShare(self)
        try:
            yield share
        finally:
            share.release()


class BudgetShare:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._own = budget, 0

    def add(self, count: int) -> None:
        """Hold more; raises a `RefusedError` where all requests together would hold too much."""
        if self._budget.held + count > self._budget.limit:
            raise overloaded(1000.0)
        self._budget.held += count
        self._own += count

    def release(self) -> None:
        """Give everything back."""
        self._budget.held -= self._own
        self._own = 0


class Turns:
    """Lets small requests pass between the pieces of large ones. For the thread of the event loop only.

    Reading ten megabytes keeps the loop and the sender's core busy for as long as it takes to answer several small
    requests, and the sockets behind it fill again at once. So while others ask too, all bodies together rest after
    each piece: some 15 MB a second are read. Nobody rests for a client that is alone.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._seen: dict[object, float] = {}

    def begin(self, client: object) -> None:
        """A request of a connection, by anything that names it."""
        now = time.monotonic()
        self._seen = {each: at for each, at in self._seen.items() if now - at < _RECENT_SECONDS}
        self._seen[client] = now

    async def rest(self, client: object) -> None:
        """Wait, if others have asked a moment ago."""
        since = time.monotonic() - _RECENT_SECONDS
        if any(at > since for each, at in self._seen.items() if each != client):
            async with self._turn:
                await asyncio.sleep(_REST_SECONDS)


class DisconnectedError(Exception):
    """The client has gone: nobody waits for an answer."""


async def read_body(request: Request, limits: Limits, share: BudgetShare, turns: Turns) -> bytes:
    """The whole body, read in turn with those of others.

    Raises:
        RefusedError: Compressed, too large (at once if Content-Length says so, else as soon as it is), too slow, or too
            much is held.
        DisconnectedError: The client went away before its end.
    """
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
        raise bad_request("Content-Length is no whole number of bytes.")
    try:
        if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise encoded()
        if int(declared) > limits.max_bytes:
            raise too_large(limits.max_bytes)
        async with asyncio.timeout(limits.send_seconds):
            return await _collected(request, limits, share, turns)
    except TimeoutError:
        raise too_slow() from None
    except RefusedError as refusal:
        if refusal.close and "expect" not in request.headers:
            await _discard(request)
        raise


async def _collected(request: Request, limits: Limits, share: BudgetShare, turns: Turns) -> bytes:
    parts: list[bytes] = []
    size, piece, more = 0, 0, True
    turns.begin(request.client)
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > limits.max_bytes:
            raise too_large(limits.max_bytes, more=more)
        share.add(len(part))
        parts.append(part)
        piece += len(part)
        if more and piece >= _PIECE_BYTES:
            await turns.rest(request.client)
            piece = 0
    return b"".join(parts)


async def _discard(request: Request) -> None:
    """Read on for a while: a client that is cut off while it sends never sees why."""
    size, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDED_SECONDS):
            while more and size < _DISCARDED_BYTES:
                message = await request.receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
