# SPDX-License-Identifier: Apache-2.0
"""Reads a request's body: no more bytes and no longer than allowed, whatever its headers promise."""

import asyncio
import contextlib
from collections.abc import Iterator

from starlette.requests import Request

from edvit_hf.serving.limits import Limits
from edvit_hf.serving.refusals import RefusedError, bad_request, encoded, overloaded, too_large, too_slow

_DISCARDED_BYTES = 1 << 20
_DISCARDED_SECONDS = 1.0


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


class DisconnectedError(Exception):
    """The client has gone: nobody waits for an answer."""


async def read_body(request: Request, limits: Limits, share: BudgetShare) -> bytes:
    """The whole body.

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
            return await _collected(request, limits, share)
    except TimeoutError:
        raise too_slow() from None
    except RefusedError as refusal:
        if refusal.close and "expect" not in request.headers:
            await _discard(request)
        raise


async def _collected(request: Request, limits: Limits, share: BudgetShare) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
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
