# SPDX-License-Identifier: Apache-2.0
"""Keeps the page to itself: a temporary folder of its own, bounded requests and log, nothing loaded from elsewhere.

`private_folder` must run before gradio is imported, which reads its settings then.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

LOGGED_CHARACTERS = 8000  # of the beginning and of the end of what is written at once: tracebacks stay whole

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# gradio puts styles and small scripts into the page and builds templates from text, hence "unsafe"; whatever they do,
# the browser asks no other host. A Space is shown inside a frame of another site, so frames are not limited.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


def private_folder() -> str:
    """Let gradio keep uploads in a fresh folder, removed when the process ends; analytics off. The folder's path."""
    folder = tempfile.mkdtemp(prefix="edvit_space_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # how containers end: else nothing is removed
    os.environ.setdefault("MPLCONFIGDIR", folder)  # gradio's matplotlib would write to the home folder
    # With another backend it would load pyplot and list the machine's fonts at the first event, for seconds.
    os.environ["MPLBACKEND"] = "agg"
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime's, which also writes to the home folder
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return folder


class BoundedLog:
    """A stream for the log that leaves out the middle of what is written at once, where that is long.

    gradio prints what a malformed request held, all of it, with the traceback of its error; and not by way of
    `logging`, so that a filter there would not see it.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # of a copy that is being made: asking itself for it would never end
            raise AttributeError(name)
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """All of a short text, the beginning and the end of a long one."""
        left_out = len(text) - 2 * LOGGED_CHARACTERS
        if left_out > 0:
            begin, end = text[:LOGGED_CHARACTERS], text[-LOGGED_CHARACTERS:]
            self.stream.write(f"{begin} [{left_out} characters left out] {end}")
        else:
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Each of them bounded."""
        for line in lines:
            self.write(line)


def bound_log() -> None:
    """Bound what this process writes to its log; before `logging` and uvicorn take hold of the streams.

    A process may have none (pythonw, a service): then there is nothing to bound.
    """
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:
            setattr(sys, name, BoundedLog(stream))


class Guard:
    """ASGI middleware: the headers above on every answer, and no request with a larger body than `max_bytes`."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer 413 before anything is read where the length is told; cut the body off where it is not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_bytes:
            await _too_large(with_headers)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            # A body of no told length that does not end is given up as if the sender had left.
            return {"type": "http.disconnect"} if seen > self.max_bytes else message

        await self.app(scope, bounded, with_headers)


async def _too_large(send: Send) -> None:
    body = b'{"detail":"This is larger than the page takes."}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
