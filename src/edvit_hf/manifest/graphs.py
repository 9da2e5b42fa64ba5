# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file holds, read from its protobuf without onnx: a device has only numpy and onnxruntime.

Comes in: the bytes of a file. Goes out: whether they lead to other files, and how many nodes have to run. Only the
messages that may hold tensors or nodes are entered (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); everything
else is passed over by its length, weights too.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from edvit_hf.errors import ManifestError
from edvit_hf.manifest.hashes import ListedFile, check_relative_path, verify_file, verify_open

MAX_NODES = 200_000  # after functions are written out; twelve layers have about a thousand
_MAX_DEPTH = 32  # of graphs within nodes
_MAX_FIELDS = 400_000  # below a second of reading; twelve layers have about ten thousand

# Message -> its fields that hold other messages.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10
_NODE_KIND, _NODE_DOMAIN = 4, 7
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclass
class _Body:
    """The nodes of the main graph, or of a function, with those of the graphs inside them."""

    num_nodes: int = 0
    calls: dict[tuple[bytes, bytes], int] = field(default_factory=dict)  # kind of node -> how many


def check_graph(content: bytes | memoryview, name: str) -> None:
    """Refuse a graph with weights in another file, or with more nodes than any model has.

    onnxruntime follows a path to other weights, even to a file elsewhere on this machine, and no hash of the manifest
    covers what it finds there. The exporter here never writes such files.

    Raises:
        ManifestError: It does or has, or is no ONNX.
    """
    try:
        refers, num_nodes = _read(memoryview(content))
    except ValueError as fault:
        raise ManifestError(
            f"{name}: expected an ONNX graph, got {fault}. It is damaged, or made to harm its reader. Fetch or export "
            "the ensemble again."
        ) from fault
    if refers:
        raise ManifestError(
            f"{name}: expected a graph that holds its weights itself, got one that refers to another file. What is "
            "there is covered by no hash and could be any file of this machine. Export the ensemble again."
        )
    if num_nodes > MAX_NODES:
        raise ManifestError(
            f"{name}: expected at most {MAX_NODES} nodes, got {num_nodes:.3g} with its functions written out. Opening "
            "it would not end, or fill the memory. Do not use this ensemble."
        )


class CheckedGraph:
    """A checked ONNX file that may be opened as long as this object lives, even after the block that checked it.

    Whoever opens it may have been given up by those who wait for it, and would find another file under the number of
    a handle that was closed meanwhile: so it has one of its own.

    Attributes:
        path: What to open. On Linux it leads to the file that was checked, whatever is renamed over its name.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._handle = os.dup(file.fileno())
        held = Path(f"/proc/self/fd/{self._handle}")
        self.is_held = held.exists()
        self.path = str(held if self.is_held else path)

    def __del__(self) -> None:
        os.close(self._handle)


@contextlib.contextmanager
def verified_graph(root: Path, listed: ListedFile) -> Iterator[CheckedGraph]:
    """Check one ONNX file as `verify_file` and `check_graph` do, and yield what is to be opened.

    What is opened is what was checked: when the block ends it must not have been written to since.

    Raises:
        ManifestError: It is missing, altered or no graph to open.
    """
    path = root / check_relative_path(listed.file, "`file`")
    if not path.is_file():
        verify_file(root, listed)  # says what is wrong
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        verify_open(file, listed)
        check_graph(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), listed.file)
        graph = CheckedGraph(file, path)
        yield graph
        now = os.fstat(file.fileno())
        if not graph.is_held and not os.path.samestat(path.stat(), now):
            raise ManifestError(f"{listed.file} was replaced while it was opened. Load the ensemble again.")
        if (before.st_ctime_ns, before.st_size) != (now.st_ctime_ns, now.st_size):
            verify_open(file, listed)


def verify_graph(root: Path, listed: ListedFile) -> None:
    """Check one ONNX file like `verified_graph`, without opening it."""
    with verified_graph(root, listed):
        pass


def _read(content: memoryview) -> tuple[bool, float]:
    """Whether any tensor lies in another file, and the number of nodes."""
    main = _Body()
    functions: dict[tuple[bytes, bytes], _Body] = {}
    waiting: list[tuple[str, memoryview, _Body, int]] = [("model", content, main, 0)]
    num_fields = num_nodes = 0
    while waiting:
        kind, message, body, depth = waiting.pop()
        if depth > _MAX_DEPTH * 3:  # graph, node, attribute
            raise ValueError(f"graphs more than {_MAX_DEPTH} deep inside each other")
        if kind == "function":
            body = _Body()
        name = domain = b""
        for number, value in _fields(message):
            num_fields += 1
            if num_fields > _MAX_FIELDS:
                raise ValueError(f"more than {_MAX_FIELDS} entries")
            if kind == "tensor":
                if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                    return True, 0
            elif isinstance(value, memoryview):
                inside = _INSIDE[kind].get(number)
                if inside is not None:
                    waiting.append((inside, value, body, depth + 1))
                elif number == (_NODE_KIND if kind == "node" else _FUNCTION_NAME):
                    name = bytes(value)
                elif number == (_NODE_DOMAIN if kind == "node" else _FUNCTION_DOMAIN):
                    domain = bytes(value)
        key = (b"" if domain == b"ai.onnx" else domain, name)  # two words for the same
        if kind == "node":
            num_nodes += 1
            if num_nodes > MAX_NODES:
                return False, num_nodes
            body.num_nodes += 1
            body.calls[key] = body.calls.get(key, 0) + 1
        elif kind == "function":
            if key in functions:  # which of them is meant depends on the reader
                raise ValueError(f"two functions called {key[1][:64]!r}")
            functions[key] = body
    return False, _written_out(main, functions)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field; those of a fixed width come as 0.

    Raises:
        ValueError: The bytes are no protobuf, or of a kind that ONNX does not use.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        value: int | memoryview = 0
        if wire == _VARINT:
            value, at = _varint(message, at)
        elif wire == _LENGTH:
            length, at = _varint(message, at)
            value = message[at : at + length]
            at += length
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"bytes that no ONNX file holds (wire type {wire})")
        if at > end or not 0 < number < 2**29:
            raise ValueError("bytes that end early or are none of its format")
        yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in base 128, the least digit first, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("bytes that end early or are none of its format")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _written_out(main: _Body, functions: Mapping[tuple[bytes, bytes], _Body]) -> float:
    """Nodes of the main graph when every call of a function is its nodes; infinite where functions call themselves.

    Every body is looked at twice, so that this takes no longer than reading the file did.
    """
    sizes: dict[int, float] = {}
    under_way: set[int] = set()
    stack = [main]
    while stack:  # no recursion: a chain of functions may be long
        body = stack[-1]
        if id(body) in sizes:  # several call it
            stack.pop()
            continue
        called = [(functions[key], count) for key, count in body.calls.items() if key in functions]
        missing = [each for each, _ in called if id(each) not in sizes]
        if any(id(each) in under_way for each in missing):
            return float("inf")
        if missing:
            under_way.add(id(body))
            stack += missing
            continue
        sizes[id(body)] = body.num_nodes + sum(min(sizes[id(each)], 1e18) * count for each, count in called)
        under_way.discard(id(body))
        stack.pop()
    return sizes[id(main)]
