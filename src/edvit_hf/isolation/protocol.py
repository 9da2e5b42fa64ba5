# SPDX-License-Identifier: Apache-2.0
"""What a child process and its parent say to each other: JSON and raw arrays over a pipe, bounded on both sides.

One message is

    prefix    16 bytes: b"EDV1", bytes of the header (uint32), bytes of the payload (uint64), little-endian
    header    UTF-8 JSON: {"kind": text, "values": {...}, "arrays": [[name, dtype, [sizes]], ...]}
    payload   the arrays in that order, C-contiguous, nothing between them

Neither side believes the other: the sizes are compared with limits before anything is reserved, the types of arrays are
a short list, and shapes must fill the payload exactly. Nothing here is ever pickled.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from edvit_hf.errors import EDViTError

MAX_HEADER_BYTES = 1 << 20
"""Of the JSON. Long texts travel as arrays of bytes."""
MAX_ARRAYS = 1024
"""Of a message."""
_PREFIX = struct.Struct("<4sIQ")
_MAGIC = b"EDV1"
_TYPES = ("uint8", "bool", "int32", "int64", "float16", "float32", "float64")
_MOST_DIMENSIONS, _MOST_VALUES = 8, 1 << 48


class ProtocolError(EDViTError):
    """The other side does not speak as it must, or says more than it may."""


@dataclass(frozen=True)
class Message:
    """One message, in either direction.

    Attributes:
        kind: What it is.
        values: What JSON can hold.
        arrays: By name; bytes are arrays of uint8 (see `as_bytes`).
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def as_bytes(content: bytes | bytearray | memoryview) -> np.ndarray:
    """Bytes as the array that a message carries; nothing is copied."""
    return np.frombuffer(content, np.uint8)


def send(file: BinaryIO, message: Message) -> None:
    """Write a message to an unbuffered file.

    Raises:
        ProtocolError: An array is of a type that is not sent, or the header would be too long.
        OSError: The other side is gone.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in message.arrays.items()}
    listed = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    for name, kind, _ in listed:
        if kind not in _TYPES:
            raise ProtocolError(
                f"Expected arrays of {', '.join(_TYPES)}, got {kind} in {name!r}. Others are not sent between "
                "processes. Convert it first."
            )
    header = json.dumps({"kind": message.kind, "values": dict(message.values), "arrays": listed}).encode()
    if len(header) > MAX_HEADER_BYTES or len(listed) > MAX_ARRAYS:
        raise ProtocolError(
            f"Expected a message with at most {MAX_HEADER_BYTES} bytes of JSON and {MAX_ARRAYS} arrays, got "
            f"{len(header)} bytes and {len(listed)} arrays. The other side would not take it. Send long values as "
            "arrays of bytes."
        )
    _write(file, _PREFIX.pack(_MAGIC, len(header), sum(array.nbytes for array in arrays.values())) + header)
    for array in arrays.values():
        _write(file, array.reshape(-1).view(np.uint8).data)


def receive(file: BinaryIO, max_bytes: int) -> Message | None:
    """Read a message from an unbuffered file; None where the other side has ended between two messages.

    Args:
        file: The other side.
        max_bytes: Most bytes of arrays; no more is reserved.

    Raises:
        ProtocolError: What comes is no message, is longer than allowed, or ends in the middle.
    """
    prefix = _read(file, _PREFIX.size, may_end=True)
    if not prefix:
        return None
    magic, header_bytes, payload_bytes = _PREFIX.unpack(prefix)
    if magic != _MAGIC or header_bytes > MAX_HEADER_BYTES or payload_bytes > max_bytes:
        raise ProtocolError(
            f"Expected a message with at most {MAX_HEADER_BYTES} bytes of JSON and {max_bytes} bytes of arrays, got "
            f"{magic!r} with {header_bytes} and {payload_bytes}. What was asked is damaged or asks for too much."
        )
    kind, values, listed = _header(_read(file, header_bytes))
    sizes = [_bytes_of(*each) for each in listed]
    if sum(sizes) != payload_bytes:
        raise ProtocolError(f"Expected arrays of {payload_bytes} bytes together, got {sum(sizes)}.")
    payload, place, arrays = _read(file, payload_bytes), 0, {}
    for (name, dtype, shape), size in zip(listed, sizes, strict=True):
        arrays[name] = np.frombuffer(payload, np.uint8, size, place).view(dtype).reshape(shape)
        place += size
    return Message(kind, values, arrays)


def _header(content: bytes | bytearray) -> tuple[str, dict[str, Any], list[tuple[str, str, list[int]]]]:
    try:
        header = json.loads(content.decode("utf-8"))
        kind, values, listed = header["kind"], header["values"], header["arrays"]
        listed = [(name, dtype, shape) for name, dtype, shape in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f"Expected a header with kind, values and arrays, got something else: {error}") from error
    is_whole = isinstance(kind, str) and isinstance(values, dict) and len(listed) <= MAX_ARRAYS
    if not is_whole or any(type(name) is not str for name, _, _ in listed):
        raise ProtocolError("Expected a header with kind, values and named arrays, got something else.")
    return kind, values, listed


def _bytes_of(name: str, dtype: Any, shape: Any) -> int:
    is_shape = isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS
    if dtype not in _TYPES or not is_shape or not all(type(size) is int and size >= 0 for size in shape):
        raise ProtocolError(f"Expected an array's type and sizes for {name[:40]!r}, got something else.")
    if math.prod(max(1, size) for size in shape) > _MOST_VALUES:  # numpy counts them even where one size is 0
        raise ProtocolError(f"Expected an array of at most {_MOST_VALUES} values for {name[:40]!r}, got more.")
    return int(np.dtype(dtype).itemsize) * math.prod(shape)


def _write(file: BinaryIO, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while len(rest):
        rest = rest[file.write(rest) :]


def _read(file: BinaryIO, count: int, *, may_end: bool = False) -> bytearray:
    content = bytearray(count)
    place, view = 0, memoryview(content)
    while place < count:
        found = file.readinto(view[place:])  # type: ignore[attr-defined]
        if not found:
            if may_end and not place:
                return bytearray()
            raise ProtocolError(f"Expected {count} bytes, got an end after {place}.")
        place += found
    return content
