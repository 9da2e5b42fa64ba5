# SPDX-License-Identifier: Apache-2.0
"""Open Inference Protocol v2 over gRPC: names of models, tensors as messages, and what our own workers add to both.

Comes in: arrays or messages of `tritonclient`'s generated code. Goes out: the other. The engine (`engines.oip`) and the
worker (`fleet.worker`) speak through it.

A model's name carries the version of the ensemble, so that a server with another version has no model of that name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edvit_hf.errors import DataError

DATATYPES = {"FP32": "float32", "FP16": "float16", "UINT8": "uint8", "INT32": "int32", "INT64": "int64"}
"""Datatype of the protocol -> numpy's name of it: all that an ensemble's inputs and outputs are of."""
DATATYPE_OF = {name: datatype for datatype, name in DATATYPES.items()}

PLATFORM = "edvit_hf"
"""What our own workers say that they are, in a model's metadata followed by the version of this package."""
MAX_MESSAGE_BYTES = 256 * 2**20
REASON_KEY = "edvit-reason"
"""Trailing metadata of a refusal by our worker: `version`, `not held` or `input`."""
TOKEN_KEY = "authorization"

_NAME = re.compile(r"edvit-([0-9a-f]{16})-(\d{1,6})")
_HASH_DIGITS = 16
_MOST_DIMENSIONS = 8
_TYPED = {"FP32": "fp32_contents", "UINT8": "uint_contents", "INT32": "int_contents", "INT64": "int64_contents"}


def model_name(content_hash: str, index: int) -> str:
    """Name under which a server offers sub-model `index` of one version of an ensemble."""
    return f"edvit-{content_hash[:_HASH_DIGITS]}-{index}"


@dataclass(frozen=True)
class NamedModel:
    """What the name of a model says: the first digits of the content hash, and the sub-model."""

    version: str
    index: int

    @classmethod
    def parse(cls, name: str) -> "NamedModel | None":
        """None for a name of another kind."""
        found = _NAME.fullmatch(name)
        return None if found is None else cls(found[1], int(found[2]))

    def is_of(self, content_hash: str) -> bool:
        """Whether it is of this version."""
        return content_hash.startswith(self.version)


@dataclass(frozen=True)
class Packed:
    """An array as it is sent."""

    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    @classmethod
    def of(cls, values: np.ndarray) -> "Packed":
        """Raises `KeyError` for a type that the protocol is not used with here."""
        return cls(DATATYPE_OF[values.dtype.name], values.shape, np.ascontiguousarray(values).tobytes())


def put(message: Any, contents: Any, arrays: Mapping[str, Packed]) -> None:
    """Add tensors to the `inputs` or `outputs` of a message, and their bytes to its raw contents."""
    for name, packed in arrays.items():
        tensor = message.add()
        tensor.name, tensor.datatype = name, packed.datatype
        tensor.shape.extend(packed.shape)
        contents.append(packed.raw)


def taken(tensors: Iterable[Any], contents: Iterable[bytes]) -> dict[str, np.ndarray]:
    """The arrays of a message by name, read only.

    Raises:
        DataError: A datatype is unknown, a shape is not positive, or there are more or fewer bytes than it needs.
    """
    messages, raw, found = list(tensors), list(contents), dict[str, np.ndarray]()
    if raw and len(raw) != len(messages):
        raise DataError(
            f"Expected the bytes of {len(messages)} tensors, got {len(raw)}. Which belongs to which is unknown. Send "
            "it again."
        )
    for place, tensor in enumerate(messages):
        dtype, shape = DATATYPES.get(tensor.datatype), tuple(tensor.shape)
        if dtype is None or len(shape) > _MOST_DIMENSIONS or any(size < 1 for size in shape) or tensor.name in found:
            raise DataError(
                f"Expected a tensor of {', '.join(DATATYPES)} with positive sizes, once, got {tensor.datatype!r:.20} "
                f"{shape!s:.80}. Its numbers cannot be read. Send what the model's metadata asks for."
            )
        count = math.prod(shape)
        if raw and len(raw[place]) != count * np.dtype(dtype).itemsize:
            raise _cut(count, shape, f"{len(raw[place])} bytes")
        values = np.frombuffer(raw[place], dtype) if raw else _typed(tensor, dtype)
        if values.size != count:
            raise _cut(count, shape, f"{values.size}")
        found[tensor.name] = values.reshape(shape)
    return found


def _cut(count: int, shape: tuple[int, ...], got: str) -> DataError:
    return DataError(
        f"Expected {count} numbers of a tensor {shape!s:.80}, got {got}. The message was cut, or is of another kind. "
        "Send it again."
    )


def _typed(tensor: Any, dtype: str) -> np.ndarray:
    """Numbers that a server wrote one by one instead of as bytes; allowed by the protocol."""
    field = _TYPED.get(tensor.datatype)
    return np.asarray([] if field is None else getattr(tensor.contents, field), dtype)


def parameter(parameters: Any, name: str) -> Any:
    """The value of one parameter of a message; None where it is not there."""
    if name not in parameters:
        return None
    choice = parameters[name].WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameters[name], choice)
