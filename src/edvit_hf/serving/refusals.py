# SPDX-License-Identifier: Apache-2.0
"""What a caller is told instead of an answer: a status, a code, a sentence. Never paths, stack traces or versions.

Messages of the library's errors are written for whoever runs it: they name files and quote other libraries. Here they
become sentences for whoever asks.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edvit_hf.errors import DataError, DeadlineError, EDViTError, OverloadedError, QuorumError
from edvit_hf.isolation import IsolationError
from edvit_hf.tasks import Task

# The end of a message that tells a Python caller what else could be passed.
_FOR_PYTHON = re.compile(r" (Give an (image|audio) file \(|Call the ensemble with ).*$", re.DOTALL)
_SEND = {
    "image-classification": "Send a whole PNG, JPEG, WebP, GIF or BMP image.",
    "audio-classification": "Send a whole WAV, FLAC, OGG, MP3, AIFF or AU sound.",
    "text-classification": "Send a text as UTF-8.",
}
_LONGEST_MESSAGE = 500


class RefusedError(EDViTError):
    """A request that gets no answer.

    Attributes:
        status: Of HTTP.
        code: For programs; stable.
        retry_after_ms: When asking again may help; None: it will not.
        missing: Why sub-models are missing, where that is the reason.
        headers: To send with it, beside Retry-After.
        close: Whether the connection is of no use any more.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_ms: float | None = None,
        missing: Mapping[int, str] | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_ms = status, code, retry_after_ms
        self.missing, self.close = dict(missing or {}), close
        self.headers = dict(headers or {})
        if retry_after_ms is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_ms / 1e3)))
        if close:
            self.headers["connection"] = "close"

    def body(self, request_id: str) -> bytes:
        """The JSON that is sent."""
        error: dict[str, Any] = {"code": self.code, "message": str(self), "request_id": request_id}
        if self.retry_after_ms is not None:
            error["retry_after_ms"] = round(self.retry_after_ms, 1)
        if self.missing:
            error["missing"] = [{"sub_model": index, "reason": why} for index, why in sorted(self.missing.items())]
        return json.dumps({"error": error}).encode()

    def raw(self, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body as ASGI sends them."""
        body = self.body(request_id)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.headers}
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()], body


def refusal_of(error: Exception, task: Task, retry_quorum_ms: float = 1000.0) -> RefusedError:
    """What a caller is told about an error of the library; anything unexpected is an internal one.

    `retry_quorum_ms` tells when a device may be back after a lost quorum, or a late fusion head be in time.
    """
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, OverloadedError):
        return overloaded(error.retry_after_ms)
    if isinstance(error, QuorumError):
        message = (
            "Too few sub-models answered in time: an answer would be a guess. Ask again later, or allow a longer "
            "deadline_ms if you set one."
        )
        return RefusedError(503, "too_few_sub_models", message, retry_after_ms=retry_quorum_ms, missing=error.missing)
    if isinstance(error, DeadlineError):
        message = (
            "The sub-models' answers were not joined in time. Ask again later, or allow a longer deadline_ms if you "
            "set one."
        )
        return RefusedError(503, "too_late", message, retry_after_ms=retry_quorum_ms)
    if isinstance(error, IsolationError):
        return _without_process(error)
    if isinstance(error, DataError):
        return RefusedError(422, "unreadable_input", _for_callers(error, task))
    return internal()


def _without_process(error: IsolationError) -> RefusedError:
    """No process could read the input: nothing is wrong with it."""
    if error.why == "closed":
        return stopping()
    if error.why == "busy":
        return overloaded(1000.0)
    return RefusedError(503, "not_ready", "The server cannot answer now. Ask again later.", retry_after_ms=1000.0)


def _for_callers(error: DataError, task: Task) -> str:
    """The error's own sentences where they are all ours; they may quote another library where it has a cause."""
    if error.__cause__ is not None:
        return f"The input cannot be read: it is damaged, cut short, or of a kind that is not supported. {_SEND[task]}"
    text, cut = _FOR_PYTHON.subn("", str(error))
    return f"{text[:_LONGEST_MESSAGE]} {_SEND[task]}" if cut else text[:_LONGEST_MESSAGE]


def escaped(text: str) -> str:
    """Text for a log, on one line: what is no visible ASCII is written as a number, and moves no cursor."""
    return text.encode("unicode_escape").decode("ascii")


def bad_request(message: str) -> RefusedError:
    """The request is not written as it must be."""
    return RefusedError(400, "bad_request", message)


def overloaded(retry_after_ms: float) -> RefusedError:
    """More requests than can be answered in time."""
    message = "More requests come than can be answered in time. Ask again later, and less often."
    return RefusedError(503, "overloaded", message, retry_after_ms=retry_after_ms)


def stopping() -> RefusedError:
    """The server ends."""
    message = "The server is stopping. Ask again in a moment, or ask another one."
    return RefusedError(503, "stopping", message, retry_after_ms=1000.0, close=True)


def internal() -> RefusedError:
    """A fault of the server."""
    return RefusedError(500, "internal", "The server failed. Its log tells why under this request_id.")


def too_large(limit: int, *, more: bool = True) -> RefusedError:
    """The body has more bytes than are taken; `more` of it is still to come."""
    message = f"The body has more than {limit} bytes, the most that is taken here."
    return RefusedError(413, "too_large", message, close=more)


def too_slow() -> RefusedError:
    """The request did not arrive in time."""
    return RefusedError(
        408, "too_slow", "The request did not arrive in time. Send it faster, or send less.", close=True
    )


def encoded() -> RefusedError:
    """The body is compressed: unpacked it could be of any size."""
    message = "Compressed bodies are not taken here. Send the body as it is, without a Content-Encoding."
    headers = {"accept-encoding": "identity"}
    return RefusedError(415, "unsupported_media_type", message, headers=headers, close=True)


def unsupported(got: str, takes: Sequence[str]) -> RefusedError:
    """The body is of a kind that this ensemble has no use for."""
    message = f"The content type {got[:80]!r} is not taken here. Send one of: {', '.join(takes)}."
    return RefusedError(415, "unsupported_media_type", message)
