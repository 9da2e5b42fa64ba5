# SPDX-License-Identifier: Apache-2.0
"""The child's side: limits itself, makes its job, and answers one question after the other until the pipe ends.

`process.Child` starts it; nobody calls it by hand.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

from edvit_hf.errors import EDViTError
from edvit_hf.isolation.limits import ChildLimits, allow_cpu, apply
from edvit_hf.isolation.protocol import Message, ProtocolError, receive, send

LONGEST_TEXT = 4000
"""Characters of an error that are told to the parent."""


class Job(Protocol):
    """What a child does. Made once, with the setup that the parent sends; then asked any number of times.

    Errors derived from `EDViTError` are told to the parent, which raises them again. After any other one the child
    ends: nobody knows what it has left behind.
    """

    def answer(self, question: Message, /) -> Message:
        """Answer one question."""


def main(told: Mapping[str, Any]) -> None:
    """Run until the parent closes the pipe.

    Args:
        told: `entry` ("module:name" of what makes the job), `parent` (its process id), `limits` (of `ChildLimits`),
            `max_bytes` (most bytes of a question's arrays).
    """
    questions, answers = _take_pipes()
    module, _, name = told["entry"].partition(":")
    make: Callable[[Message], Job] = getattr(importlib.import_module(module), name)
    limits = ChildLimits(**told["limits"])
    apply(limits, told["parent"])
    job: Job | None = None
    while True:
        question = receive(questions, told["max_bytes"])
        if question is None:
            return
        allow_cpu(limits.cpu_seconds)
        number, asked = question.values["number"], Message(question.kind, question.values["values"], question.arrays)
        try:
            if job is None:
                job, answer = make(asked), Message("ready")
            else:
                answer = job.answer(asked)
            values = {"number": number, "kind": answer.kind, "values": dict(answer.values)}
            answer = Message("answer", values, answer.arrays)
        except EDViTError as error:
            answer = _told(error, number)
        except BaseException as error:  # a panic of a library in Rust is no `Exception`
            answer = _told(error, number, ends=True)
        del question, asked  # their memory is free before the next ones come
        try:
            send(answers, answer)
        except ProtocolError as error:
            send(answers, _told(error, number))
        if answer.values.get("ends"):
            return


def _told(error: BaseException, number: int, *, ends: bool = False) -> Message:
    """An error as a message; `quotes` tells that its text may hold sentences of another library."""
    values = {
        "number": number,
        "class": type(error).__name__,
        "text": str(error)[:LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8"),
        "quotes": error.__cause__ is not None,
        "ends": ends,
        "memory": isinstance(error, MemoryError),
    }
    return Message("error", values)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the protocol alone: what a library prints would be taken for an answer."""
    questions, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return questions, answers
