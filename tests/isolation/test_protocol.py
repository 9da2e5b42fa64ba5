# SPDX-License-Identifier: Apache-2.0
"""Messages between processes: what is sent arrives, and nothing else is taken."""

import io
import json
import struct

import numpy as np
import pytest

from edvit_hf.isolation.protocol import Message, ProtocolError, as_bytes, receive, send


class Raw(io.BytesIO):
    """Hands over a few bytes at a time, as pipes do."""

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:7])


def raw(header, payload=b"", *, magic=b"EDV1", header_bytes=None, payload_bytes=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    sizes = (
        len(content) if header_bytes is None else header_bytes,
        len(payload) if payload_bytes is None else payload_bytes,
    )
    return Raw(struct.pack("<4sIQ", magic, *sizes) + content + payload)


def header(*arrays, kind="k", values=None):
    return {"kind": kind, "values": {} if values is None else values, "arrays": list(arrays)}


def test_messages_arrive_one_after_the_other_and_then_the_end():
    file = Raw()
    send(file, Message("first", {"a": [1, None]}, {"x": as_bytes(b"abc")}))
    send(file, Message("second"))
    file.seek(0)
    first, second = receive(file, 100), receive(file, 100)
    assert (first.kind, first.values, first.arrays["x"].tobytes()) == ("first", {"a": [1, None]}, b"abc")
    assert (second.kind, second.values, second.arrays) == ("second", {}, {})
    assert receive(file, 100) is None


@pytest.mark.parametrize(
    "file",
    [
        raw(header(), magic=b"EDV2"),
        raw(header(["x", "uint8", [200]]), bytes(200)),
        raw(header(["x", "uint8", [200]]), payload_bytes=1 << 60),
        raw(header(), header_bytes=0xFFFFFFFF),
        raw(header(), header_bytes=90),
        raw(header(["x", "uint8", [3]]), bytes(2)),
        raw(header(["x", "uint8", [3]]), bytes(2), payload_bytes=3),
        raw(header(["x", "object", [1]]), bytes(8)),
        raw(header(["x", "float32", [-1]]), bytes(4)),
        raw(header(["x", "float32", [1.0]]), bytes(4)),
        raw(header(["x", "float32", [True]]), bytes(4)),
        raw(header(["x", "float32", "1"]), bytes(4)),
        raw(header(["x", ["float32"], [1]]), bytes(4)),
        raw(header(["x", "float32", [1] * 9]), bytes(4)),
        raw(header(["x", "float32", [1 << 47, 1 << 47, 0]])),
        raw(header([3, "float32", [1]]), bytes(4)),
        raw(header(["x", "float32"]), bytes(4)),
        raw(header(*[[str(n), "uint8", [0]] for n in range(1025)])),
        raw({"kind": "k", "values": {}}),
        raw(header(kind=3)),
        raw(header(values=[1])),
        raw(b"[" * 90_000),
        raw(b"\xff\xfe"),
        raw(b"3"),
        raw(b"null"),
        Raw(b"EDV1"),
    ],
)
def test_what_is_no_message_is_refused(file):
    with pytest.raises(ProtocolError, match="Expected"):
        receive(file, 100)


@pytest.mark.parametrize(
    "message",
    [
        Message("k", arrays={"x": np.zeros(1, object)}),
        Message("k", arrays={"x": np.zeros(1, "complex64")}),
        Message("k", {"long": "x" * (1 << 20)}),
        Message("k", arrays={str(n): np.zeros(0, np.uint8) for n in range(1025)}),
    ],
)
def test_what_the_other_side_would_not_take_is_not_sent(message):
    file = Raw()
    with pytest.raises(ProtocolError, match="Expected"):
        send(file, message)
    assert not file.getvalue()
