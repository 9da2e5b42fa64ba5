# SPDX-License-Identifier: Apache-2.0
"""Keeps the page to itself: a temporary folder of its own, bounded requests and log, nothing loaded from elsewhere.

`private_folder` must run before gradio is imported, which reads its settings then.
"""

import atexit
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from page.hosts import NAMES_VARIABLE, Hosts
from page.uploads import Upload, Uploads
from page.visitors import visitor_address

LOGGED_CHARACTERS = 8000  # of the beginning and of the end of what is written at once: tracebacks stay whole

_OBEYED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

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
        """All of a short text, the beginning and the end of a long one, with nothing that a terminal obeys."""
        length = len(text)
        text = _OBEYED.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
        left_out = len(text) - 2 * LOGGED_CHARACTERS
        if left_out > 0:
            begin, end = text[:LOGGED_CHARACTERS], text[-LOGGED_CHARACTERS:]
            self.stream.write(f"{begin} [{left_out} characters left out] {end}")
        else:
            self.stream.write(text)
        return length

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
    """ASGI middleware: headers on every answer, names by which the page is called, sizes of requests, and uploads."""

    def __init__(self, app: Any, max_bytes: int, hosts: Hosts | None = None, uploads: Uploads | None = None) -> None:
        """Guard an application.

        Args:
            app: ASGI.
            max_bytes: Largest body of one request.
            hosts: By what names it may be called; None: any.
            uploads: Counts what visitors send; None: nobody does.
        """
        self.app, self.max_bytes, self.hosts, self.uploads = app, max_bytes, hosts, uploads

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse before anything is read where the headers tell; cut the body off where they do not."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        self._tell_visitor(scope)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            await (self.app(scope, receive, send) if refusal is None else send({"type": "websocket.close"}))
            return
        upload: Upload | None = None
        if refusal is None and self.uploads is not None and _is_upload(scope):
            visitor = scope["client"][0] if scope["client"] else ""
            upload = self.uploads.begin(visitor, int(headers.get(b"content-length", "0")))
            refusal = None if upload is not None else (429, "You have sent many files. Wait some minutes.")
        if refusal is not None:
            await _refuse(with_headers, *refusal)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            part = message.get("body", b"")
            seen += len(part)
            is_taken = upload is None or upload.add(part)
            # A body of no told length that does not end is given up as if the sender had left.
            return message if seen <= self.max_bytes and is_taken else {"type": "http.disconnect"}

        await self.app(scope, bounded, with_headers)

    def _tell_visitor(self, scope: Message) -> None:
        """Put who asks where everything behind looks for it, gradio's requests included."""
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        is_space = self.hosts is not None and self.hosts.is_space
        visitor = visitor_address((scope.get("client") or (None,))[0], forwarded, is_space=is_space)
        scope["client"] = None if visitor is None else (visitor, 0)

    def _refusal(self, scope: Message, headers: Mapping[bytes, str]) -> tuple[int, str] | None:
        """Status and sentence where the headers tell that nobody should answer."""
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if self.hosts is not None:
            if not self.hosts.takes(host):
                return 403, (
                    "This page is not called by that name. Use its address, or have who runs it add the name to "
                    f"{NAMES_VARIABLE}."
                )
            is_asking = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
            if is_asking and self.hosts.is_foreign(origin, host):
                return 403, "A page of another site may not ask here. Open this page itself."
        length = headers.get(b"content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > self.max_bytes:
            return 413, "This is larger than the page takes."
        return None


def _is_upload(scope: Message) -> bool:
    return scope["method"] == "POST" and str(scope["path"]).rstrip("/").endswith("/upload")


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
