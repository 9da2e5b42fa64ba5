# SPDX-License-Identifier: Apache-2.0
"""How much visitors may leave here: bytes and files of each, and of all; the oldest make room for new ones."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_FILES_AT_ONCE = 10
"""In one request."""
YOUNGEST_SECONDS = 10.0
"""Younger files are still to be read."""
_MARK = b"filename="


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """The most that is taken.

    Attributes:
        each_bytes: Of one visitor, within `seconds`.
        each_files: Of one visitor, within `seconds`.
        all_bytes: Of all; beyond that the oldest files are removed.
        all_files: Of all.
        seconds: How long an upload counts.
    """

    each_bytes: int = 256 * 2**20
    each_files: int = 600
    all_bytes: int = 512 * 2**20
    all_files: int = 2000
    seconds: float = 600.0


class Uploads:
    """Counts what is sent. Safe to call from several threads."""

    def __init__(
        self, folder: Path, limits: UploadLimits | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._limits, self._now = folder, limits or UploadLimits(), now
        self._lock = threading.Lock()
        self._sent: dict[str, deque[Upload]] = {}

    def begin(self, visitor: str, promised: int) -> "Upload | None":
        """Begin to count a request that promises so many bytes; None where the visitor has sent enough."""
        with self._lock:
            self._forget()
            sent = self._sent.get(visitor, ())
            is_much = sum(each.size for each in sent) + promised > self._limits.each_bytes
            if is_much or sum(each.files for each in sent) >= self._limits.each_files:
                return None
            upload = Upload(self._now())
            self._sent.setdefault(visitor, deque()).append(upload)
        self._make_room()
        return upload

    def _forget(self) -> None:
        before = self._now() - self._limits.seconds
        for visitor, sent in list(self._sent.items()):
            while sent and sent[0].begin < before:
                sent.popleft()
            if not sent:
                del self._sent[visitor]

    def _make_room(self) -> None:
        """Remove the oldest files where there are too many, or too large ones: what they show was read already."""
        found = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                with contextlib.suppress(OSError):
                    path = Path(folder, name)
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
        found.sort(key=lambda each: each[0])
        size, count = sum(each[1] for each in found), len(found)
        for modified, its_size, path in found:
            is_enough = size <= self._limits.all_bytes and count <= self._limits.all_files
            if is_enough or modified > time.time() - YOUNGEST_SECONDS:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            size, count = size - its_size, count - 1


class Upload:
    """One request."""

    def __init__(self, begin: float) -> None:
        self.begin, self.size, self.files = begin, 0, 0
        self._tail = b""

    def add(self, part: bytes) -> bool:
        """Count a part of its body. Whether that is still one to take."""
        self.size += len(part)
        self.files += (self._tail + part).count(_MARK)
        self._tail = part[1 - len(_MARK) :] if len(part) >= len(_MARK) else (self._tail + part)[1 - len(_MARK) :]
        return self.files <= MAX_FILES_AT_ONCE
