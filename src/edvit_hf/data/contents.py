# SPDX-License-Identifier: Apache-2.0
"""What data are by their content: rows that two splits share, whose figures a measurement is, which file changed.

A row's content is what its input holds: the bytes of the encoded file, the values of an array, the characters of a
text. Names of files, their order and where they lie do not count. Nothing is decoded. `input_digests` gives one digest
per row; `shared_rows` compares those of two splits, `fingerprint` makes one of a whole split with its class names.
"""

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.data.columns import RawItems
from edvit_hf.errors import DataError
from edvit_hf.storage import read_json, write_json
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)

UNREADABLE = b""
"""Digest of an input that is missing or cannot be read: it is equal to no other."""

_READ_ROWS = 512  # encoded items held in memory at a time
_PIECE = 1 << 20  # bytes of a file held in memory at a time
_SETTLED_NS = 2_000_000_000  # a file that was written less than this ago may change again within one tick of its clock


def input_digests(items: RawItems, rows: np.ndarray, task: Task) -> list[bytes]:
    """A digest of each row's input, 16 bytes, in the order of `rows`; `UNREADABLE` for an empty cell or missing file.

    Equal inputs have equal digests whether a file lies on disk or its bytes lie in a table; files are read in pieces.

    Args:
        items: Of a `RawSplit`.
        rows: (N,) int64, in the numbering of that split: `Role.rows`, or `np.arange` for all.
        task: Says whether a string is a text or the path of a file.

    Raises:
        DataError: An input of a type that no transform reads.
    """
    found: list[bytes] = []
    for start in range(0, len(rows), _READ_ROWS):
        found += [_digest(item, task) for item in items.read(rows[start : start + _READ_ROWS])]
    return found


def fingerprint(digests: Sequence[bytes], labels: Sequence[str]) -> str:
    """Hex SHA-256 over the rows' inputs and class names: equal for the same rows in any order, under any file names.

    Args:
        digests: One per row, of `input_digests`.
        labels: Name of each row's class: a number would mean another class in another order.
    """
    kinds = {name: hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16) for name in set(labels)}
    names = {name: kind.digest() for name, kind in kinds.items()}
    rows = sorted(names[label] + digest for label, digest in zip(labels, digests, strict=True))
    whole = hashlib.sha256()
    for row in rows:
        whole.update(len(row).to_bytes(1, "big") + row)
    return whole.hexdigest()


def shared_rows(these: Sequence[bytes], others: Sequence[bytes]) -> list[int]:
    """Places in `others` of the rows whose input is also among `these`; what cannot be read is never shared."""
    known = set(these) - {UNREADABLE}
    return [place for place, digest in enumerate(others) if digest in known]


class FileHashes:
    """SHA-256 of files. A file is read again only if its size, times or inode changed.

    The time of the last change of its inode is among them: no copy and no `touch` sets that back. A file that was
    written within the last two seconds is not remembered, because a clock that ticks slowly may hide the next change.

    Args:
        path: JSON file that keeps what is known between runs (`save` writes it); None keeps nothing. One that is
            missing or damaged is begun anew: it only saves time.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known = _known_hashes(path)
        self._is_new = False

    def of(self, file: Path) -> str:
        """Hex SHA-256 of a file, read in pieces. Raises `OSError` where it cannot be read."""
        key, before = os.fspath(file.absolute()), _state(file)
        known = self._known.get(key)
        if known is not None and known[:-1] == before:
            return str(known[-1])
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if _state(file) == before and max(before[1:3]) + _SETTLED_NS < time.time_ns():
            self._known[key], self._is_new = [*before, digest], True
        return digest

    def save(self) -> None:
        """Write what is known, for the next run; nothing where nothing is new."""
        if self._path is not None and self._is_new:
            write_json(self._path, self._known)


def _state(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _known_hashes(path: Path | None) -> dict[str, list[Any]]:
    if path is None or not path.is_file():
        return {}
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        logger.warning("data: %s is not readable (%s): every file is hashed again", path, error)
        return {}
    entries = values.items() if isinstance(values, Mapping) else ()
    return {name: entry for name, entry in entries if _is_entry(entry)}


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 5 or not isinstance(entry[-1], str) or len(entry[-1]) != 64:
        return False
    return all(type(value) is int for value in entry[:-1])


def _digest(item: Any, task: Task) -> bytes:
    """Of one input; its kind goes in first, so that no text is taken for the file of the same bytes."""
    if item is None:
        return UNREADABLE
    if isinstance(item, str) and task == "text-classification":
        return _of(b"text", item.encode("utf-8", "surrogatepass"))
    if isinstance(item, bytes | bytearray | memoryview):
        return _of(b"file", item)
    if isinstance(item, str | os.PathLike):
        return _digest_of_file(Path(item))
    if isinstance(item, np.ndarray):
        return _of(f"array {item.dtype.str} {item.shape}".encode(), np.ascontiguousarray(item).tobytes())
    raise DataError(
        f"Expected an encoded file, its path, an array or a text as input, got {type(item).__name__}. What a row holds "
        "could not be compared with another. Store the inputs as encoded files."
    )


def _of(kind: bytes, content: Any) -> bytes:
    whole = hashlib.blake2b(kind + b"\0", digest_size=16)
    whole.update(content)
    return whole.digest()


def _digest_of_file(path: Path) -> bytes:
    whole = hashlib.blake2b(b"file\0", digest_size=16)
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                whole.update(piece)
    except OSError:
        return UNREADABLE
    return whole.digest()
