# SPDX-License-Identifier: Apache-2.0
"""Jobs for child processes that do what strangers' inputs make decoders do."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from edvit_hf.errors import DataError, EDViTError, OverloadedError
from edvit_hf.isolation import decoding
from edvit_hf.isolation.protocol import Message


class Decoder(decoding.Decoder):
    """Prepares inputs, but for those that say what else to do."""

    def answer(self, question: Message) -> Message:
        source = bytes(question.arrays["source"])
        if source.startswith(b"do:"):
            return getattr(Misbehaving(question), source[3:].decode())(question)
        if source == b"lie":
            return Message(
                "read", arrays={name: np.zeros((1, 5), np.int64) for name in ("input_ids", "attention_mask")}
            )
        if source == b"lie about the number":
            return Message("read", arrays={"pixel_values": np.zeros((2, 3, 4, 4), np.float32)})
        return super().answer(question)


class Panic(BaseException):
    """What a library written in Rust raises: no `Exception`."""


class Misbehaving:
    """Does what the question says."""

    def __init__(self, setup: Message) -> None:
        if setup.values.get("refuses"):
            raise DataError("this job is not made")
        if setup.values.get("hangs"):
            time.sleep(60)
        self.factor = setup.values.get("factor", 1)

    def answer(self, question: Message) -> Message:
        return getattr(self, question.kind)(question)

    def double(self, question):
        return Message(
            "doubled",
            {"text": "ä\ud800" if question.values.get("odd") else "ä"},
            {name: self.factor * array for name, array in question.arrays.items()},
        )

    def refuse(self, question):
        try:
            raise ValueError("/secret/path of another library")
        except ValueError as error:
            raise DataError("Expected a picture, got none.") from error

    def refuse_with_ours(self, question):
        raise DataError("Expected a picture, got none.")

    def refuse_with_more_than_a_text(self, question):
        raise OverloadedError("too much", retry_after_ms=3)

    def refuse_with_a_class_of_its_own(self, question):
        class OwnError(EDViTError):
            pass

        raise OwnError("own")

    def fail(self, question):
        raise ZeroDivisionError("inside")

    def panic(self, question):
        raise Panic("index out of bounds")

    def exit(self, question):
        sys.exit(0)

    def die(self, question):
        os._exit(7)

    def crash(self, question):
        ctypes.string_at(0)

    def be_killed(self, question):
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short

    def swell(self, question):
        return Message("swollen", {"bytes": int(np.ones(1 << 28).nbytes)})

    def compute(self, question):
        while True:
            pass

    def sleep(self, question):
        time.sleep(question.values.get("seconds", 60))
        return Message("slept")

    def say_too_much(self, question):
        return Message("much", arrays={"x": np.zeros(1 << 22, np.float32)})

    def say_much_too_much(self, question):
        return Message("much", arrays={"x": np.zeros(1 << 26, np.uint8)})

    def say_nonsense(self, question):
        return Message("odd", arrays={"x": np.zeros(2, "datetime64[s]")})

    def print(self, question):
        os.write(1, b"EDV1 this is what a library prints" * 1000)
        sys.stdout.write("and Python\n")
        sys.stdout.flush()
        return Message("printed")

    def write(self, question):
        try:
            Path(question.values["path"]).write_text("x")
        except OSError as error:
            return Message("refused", {"error": error.strerror})
        return Message("written")

    def look_around(self, question):
        import resource

        limits = {name: resource.getrlimit(getattr(resource, name))[1] for name in ("RLIMIT_CORE", "RLIMIT_NPROC")}
        modules = sorted({"torch", "onnxruntime", "transformers"} & set(sys.modules))
        values = {"environment": dict(os.environ), "folder": str(Path.cwd()), "modules": modules, **limits}
        return Message("seen", {**values, "open": len(list(Path("/proc/self/fd").iterdir())), "parent": os.getppid()})
