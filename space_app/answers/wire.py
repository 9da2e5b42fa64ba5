# SPDX-License-Identifier: Apache-2.0
"""Readings and answers as messages between the page and its child processes; what a child says is checked.

An ensemble of a stranger may have taken over its child: nothing but finite numbers of the right shapes gets out of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from answers.digit_form import FORM_SIDES
from answers.reading import Reading
from edvit_hf.isolation import Message
from edvit_hf.isolation.protocol import ProtocolError
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import Answer
from edvit_hf.runtime.engines import Reason
from edvit_hf.tasks import unknown_classes, vote_sizes
from edvit_hf.transforms.images import MAX_SIDE

MAX_TOKENS, MAX_TEXT, MAX_TOKEN_TEXT = 20_000, 1000, 100
MAX_SEEN_SIDE = 4096
MAX_MILLISECONDS, MAX_SENT_BYTES = 1e9, 1 << 50
_INPUT = "input:"


def reading_message(reading: Reading) -> Message:
    """A reading, to send."""
    arrays = {f"{_INPUT}{name}": values for name, values in reading.inputs.items()}
    if reading.seen is not None:
        arrays["seen"] = reading.seen
    return Message("reading", {"tokens": list(reading.tokens), "remark": reading.remark}, arrays)


def reading_of(message: Message) -> Reading:
    """A reading, as it came.

    Raises:
        ProtocolError: It is none.
    """
    tokens, remark = message.values.get("tokens"), message.values.get("remark")
    seen = message.arrays.get("seen")
    _check(isinstance(remark, str) and len(remark) <= MAX_TEXT, "remark")
    _check(isinstance(tokens, list) and len(tokens) <= MAX_TOKENS, "tokens")
    _check(all(type(each) is str for each in tokens or ()), "tokens")
    is_picture = seen is None or (seen.ndim == 3 and seen.shape[2] == 3 and seen.dtype == np.uint8)
    _check(is_picture and (seen is None or 0 < min(seen.shape) <= max(seen.shape) <= MAX_SEEN_SIDE), "picture")
    inputs = {name.removeprefix(_INPUT): a for name, a in message.arrays.items() if name.startswith(_INPUT)}
    _check(bool(inputs) and all(len(values) == 1 for values in inputs.values() if values.ndim), "inputs")
    shown = tuple(_encodable(each[:MAX_TOKEN_TEXT]) for each in tokens or ())
    return Reading(inputs=inputs, seen=seen, tokens=shown, remark=_encodable(str(remark)))


def inputs_message(kind: str, inputs: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Message:
    """A question about prepared inputs."""
    return Message(kind, values, {f"{_INPUT}{name}": array for name, array in inputs.items()})


def inputs_of(message: Message) -> dict[str, np.ndarray]:
    """The prepared inputs of a question."""
    return {name.removeprefix(_INPUT): a for name, a in message.arrays.items() if name.startswith(_INPUT)}


def answer_message(answer: Answer, without: Sequence[np.ndarray] = ()) -> Message:
    """An answer for one input, and what it would be without further sub-models, to send."""
    arrays = {"probabilities": answer.probabilities, **{f"without:{i}": each for i, each in enumerate(without)}}
    arrays |= {f"vote:{i}": votes for i, votes in enumerate(answer.vote_logits) if votes is not None}
    values = {
        "present": list(answer.present),
        "missing": [[index, reason] for index, reason in answer.missing.items()],
        "milliseconds": list(answer.milliseconds),
        "bytes_sent": list(answer.bytes_sent),
        "fusion_milliseconds": answer.fusion_milliseconds,
        "total_milliseconds": answer.total_milliseconds,
    }
    return Message("answer", values, arrays)


def described_of(message: Message) -> tuple[bool, int]:
    """What an ensemble says of itself, as it came: whether it reads drawings, and the side of its pictures.

    Raises:
        ProtocolError: It is none.
    """
    can_draw, side = message.values.get("can_draw"), message.values.get("side")
    _check(type(can_draw) is bool and type(side) is int and 0 <= side <= MAX_SIDE, "description")
    _check(not can_draw or side in FORM_SIDES, "description")  # drawings are scaled to it in the page's process
    return bool(can_draw), int(side or 0)


def answer_of(message: Message, manifest: Manifest, num_without: int = 0) -> tuple[Answer, list[np.ndarray]]:
    """An answer as it came, of an ensemble with that manifest.

    Raises:
        ProtocolError: It is none.
    """
    try:
        return _answer_of(message, manifest, num_without)
    except (TypeError, ValueError, OverflowError) as error:  # of what is looked at before it is checked
        raise ProtocolError(f"Expected an answer from a child process, got something else: {error!s:.200}") from error


def _answer_of(message: Message, manifest: Manifest, num_without: int) -> tuple[Answer, list[np.ndarray]]:
    values, count, names = message.values, len(manifest.sub_models), tuple(manifest.label_names)
    present, missing = values.get("present"), values.get("missing")
    _check(isinstance(present, list) and len(present) == count and all(type(p) is bool for p in present), "present")
    _check(isinstance(missing, list) and all(isinstance(m, list) and len(m) == 2 for m in missing), "missing")
    _check(all(type(index) is int and type(reason) is str for index, reason in missing or ()), "missing")
    reasons: dict[int, Reason] = dict(missing or ())
    absent = [index for index, there in enumerate(present or ()) if not there]
    is_each_once = sorted(index for index, _ in missing or ()) == absent
    _check(is_each_once and set(reasons.values()) <= set(get_args(Reason)), "missing")
    times, sent = values.get("milliseconds"), values.get("bytes_sent")
    _check(isinstance(times, list) and len(times) == count, "times")
    _check(isinstance(sent, list) and len(sent) == count, "bytes")
    _check(all(type(each) is int and 0 <= each <= MAX_SENT_BYTES for each in sent or ()), "bytes")
    tables = [_table(message, "probabilities", [len(names)])]
    tables += [_table(message, f"without:{i}", [len(names)]) for i in range(num_without)]
    votes = [
        _table(message, f"vote:{entry.index}", vote_sizes(entry.class_group, len(names))) if there else None
        for entry, there in zip(manifest.sub_models, present or (), strict=True)
    ]
    unknown = unknown_classes(manifest.class_groups, present or ())
    answer = Answer(
        label_names=names,
        probabilities=tables[0],
        vote_logits=tuple(votes),
        present=tuple(present or ()),
        missing=reasons,
        missing_classes=tuple(names[c] for c in unknown),
        milliseconds=tuple(_time(t) if there else None for t, there in zip(times or (), present or (), strict=True)),
        bytes_sent=tuple(sent or ()),
        fusion_milliseconds=_time(values.get("fusion_milliseconds")),
        total_milliseconds=_time(values.get("total_milliseconds")),
    )
    return answer, tables[1:]


def _table(message: Message, name: str, widths: Sequence[int]) -> np.ndarray:
    found = message.arrays.get(name)
    if found is None or found.ndim != 2 or len(found) != 1 or found.shape[1] not in widths or found.dtype.kind != "f":
        raise ProtocolError(f"Expected {name} of one row and {widths} columns, got something else.")
    _check(bool(np.isfinite(found).all()), name)
    return found


def _time(value: Any) -> float:
    _check(type(value) in (int, float) and 0 <= value <= MAX_MILLISECONDS, "times")  # which no NaN is
    return float(value)


def _encodable(text: str) -> str:
    """JSON can hold halves of letters, which nothing can be sent with."""
    return text.encode("utf-8", "replace").decode()


def _check(is_right: bool, what: str) -> None:
    if not is_right:
        raise ProtocolError(f"Expected {what} of the promised form from a child process, got something else.")
