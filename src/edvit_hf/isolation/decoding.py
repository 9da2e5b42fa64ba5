# SPDX-License-Identifier: Apache-2.0
"""Strangers' images, sounds and texts are prepared in child processes.

`Decoders` is the parent's side and looks like a transform; `Decoder` is the job in each child. The child is told the
transform's values once and then gets encoded files and texts; it answers the arrays of the model's forward.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Self

import numpy as np

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.isolation.limits import ChildLimits
from edvit_hf.isolation.pool import STUCK_SECONDS, Pool
from edvit_hf.isolation.process import MAX_BYTES, Child, IsolationError
from edvit_hf.isolation.protocol import Message, as_bytes
from edvit_hf.strict import number
from edvit_hf.tasks import GRAPH_INPUTS, Task
from edvit_hf.transforms import AudioTransform, ImageTransform, TextTransform, Transform, source_inputs
from edvit_hf.transforms.images import load_readers

SECONDS = 10.0
"""For one input, where nothing else is said."""
MIB = 1 << 20
_BYTES_A_PIXEL = 24  # Pillow keeps 4 of RGB; transparency is composited from four such pictures
_BASE_BYTES = 384 * MIB  # libraries, sounds, texts
_BYTES_A_LETTER = 16  # of a tokenizer.json, while it is read
_NO_ANSWER = ("time", "memory", "died", "nonsense")
_WHAT_HAPPENED = {
    "time": "one that takes longer",
    "memory": "one that takes more",
    "died": "one at which the process that read it ended",
    "nonsense": "one at which the process that read it failed",
}


class Decoders:
    """A transform for inputs of strangers: what they send is read by child processes, within a time and a memory.

    Attributes:
        task: Of the transform.
        seconds: That one input may take.
        memory_bytes: That one input may take.
    """

    entry = "edvit_hf.isolation.decoding:Decoder"
    """What makes the job in a child."""

    def __init__(
        self,
        transform: Transform,
        *,
        max_bytes: int = 64 * MIB,
        seconds: float = SECONDS,
        memory_bytes: int | None = None,
        workers: int = 2,
        spares: int = 1,
    ) -> None:
        """Start the children.

        Args:
            transform: What prepares inputs; its own limits hold in the child.
            max_bytes: Of an encoded file or a text.
            seconds: Wall-clock time of one input; its CPU time is limited to the same.
            memory_bytes: Of one input. Default: what the transform's limits allow at most.
            workers: Inputs that are read at a time.
            spares: Children that are ready besides.

        Raises:
            EDViTError: The children do not start.
        """
        number("seconds", seconds, "(0, 86400]", "every input would be refused, or none ever", EDViTError)
        self.task: Task = transform.task
        self.seconds = seconds
        self.memory_bytes = memory_bytes or memory_of(transform, max_bytes)
        setup = describe(transform)
        limits = ChildLimits(memory_bytes=self.memory_bytes, cpu_seconds=seconds, niceness=0)
        most = max(max_bytes, sum(array.nbytes for array in setup.arrays.values()))
        most_answered = _answer_bytes(transform)

        def start() -> Child:
            return Child(self.entry, setup, limits=limits, max_bytes=most, max_answer_bytes=most_answered)

        self.pool = Pool(start, workers=workers, spares=spares)

    def inputs(self, source: bytes | str) -> dict[str, np.ndarray]:
        """What the graphs take of an encoded file or a text: see `transforms.source_inputs`.

        Raises:
            DataError: It cannot be read, or not within the limits.
            IsolationError: No child can read it now.
        """
        is_text = isinstance(source, str)
        content = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
        try:
            answer = self.pool.ask(
                Message("read", {"is_text": is_text}, {"source": as_bytes(content)}), seconds=self.seconds
            )
        except IsolationError as error:
            if error.why not in _NO_ANSWER:
                raise
            raise DataError(
                f"Expected an input that is read within {self.seconds:g} s and {self.memory_bytes // MIB} MiB, got "
                f"{_WHAT_HAPPENED[error.why]}. It could keep others from being answered. Send a smaller or simpler one."
            ) from None
        return self._checked(answer.arrays)

    def why_not_ready(self) -> str | None:
        """What keeps inputs from being read soon; None: nothing does."""
        return self.pool.why_not_ready()

    def close(self) -> None:
        """End the children."""
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One item of the inputs' names; shape and values are checked where they are answered."""
        names = GRAPH_INPUTS[self.task]
        if set(arrays) != set(names) or any(array.ndim < 2 or len(array) != 1 for array in arrays.values()):
            raise DataError(
                f"Expected one input with {', '.join(names)}, got something else from the process that read it. "
                "Its answer cannot be trusted. Send another file."
            )
        return dict(arrays)


class DecodersInProcess:
    """The same for inputs that nobody strange sends: read in this process, without limits on time and memory."""

    def __init__(self, transform: Transform, *, workers: int = 2) -> None:
        self._transform, self._workers = transform, workers
        self._begun: dict[object, float] = {}

    def inputs(self, source: bytes | str) -> dict[str, np.ndarray]:
        """See `transforms.source_inputs`."""
        mark = object()
        self._begun[mark] = time.monotonic()
        try:
            return source_inputs(self._transform, source)
        finally:
            del self._begun[mark]

    def why_not_ready(self) -> str | None:
        """What keeps inputs from being read soon; None: nothing does."""
        now = time.monotonic()
        if sum(now - begin > STUCK_SECONDS for begin in list(self._begun.values())) < self._workers:
            return None
        return f"all inputs that are read have taken more than {STUCK_SECONDS:g} s"

    def close(self) -> None:
        """Nothing to free."""


class Decoder:
    """The job of a child that prepares inputs. See `child.Job`."""

    def __init__(self, setup: Message) -> None:
        """Build the transform, and load what reads its inputs."""
        self._transform = transform_of(setup)
        load_libraries(self._transform.task)

    def answer(self, question: Message) -> Message:
        """Prepare one input."""
        content = question.arrays["source"].data
        source = bytes(content).decode("utf-8", "surrogatepass") if question.values["is_text"] else content
        return Message("read", arrays=source_inputs(self._transform, source))


def describe(transform: Transform) -> Message:
    """A transform as a message. Raises EDViTError for a class of somebody else's: a child could not build it."""
    if isinstance(transform, TextTransform):
        return Message("text-classification", transform.options, {"tokenizer": as_bytes(transform.serialised.encode())})
    if isinstance(transform, (ImageTransform, AudioTransform)):
        return Message(transform.task, asdict(transform))
    raise EDViTError(
        f"Expected an ImageTransform, AudioTransform or TextTransform, got {type(transform).__name__}. A child process "
        "could not build it. Prepare inputs in this process instead."
    )


def transform_of(setup: Message) -> Transform:
    """The transform that a message describes."""
    if setup.kind == "text-classification":
        return TextTransform.from_serialised(bytes(setup.arrays["tokenizer"]).decode(), **setup.values)
    kind: Any = ImageTransform if setup.kind == "image-classification" else AudioTransform
    lists = {each.name for each in fields(kind) if isinstance(setup.values.get(each.name), list)}
    return kind(**{name: tuple(value) if name in lists else value for name, value in setup.values.items()})


def load_libraries(task: Task) -> None:
    """Import what reads inputs of a task now, so that no input waits for it."""
    if task == "image-classification":
        load_readers()
    elif task == "audio-classification":
        import soundfile  # noqa: F401
        import soxr  # noqa: F401


def _answer_bytes(transform: Transform) -> int:
    """Of one prepared input, at most."""
    if isinstance(transform, TextTransform):
        return 16 * transform.max_length
    if isinstance(transform, AudioTransform):
        return 4 * transform.max_length * transform.num_mel_bins
    if isinstance(transform, ImageTransform):
        return 12 * (transform.max_pixels if transform.size is None else math.prod(transform.size))
    return MAX_BYTES


def memory_of(transform: Transform, max_bytes: int) -> int:
    """What reading one input may take, with the transform's own limits: bytes beyond the loaded libraries."""
    pixels = transform.max_pixels if isinstance(transform, ImageTransform) else 0
    if isinstance(transform, ImageTransform) and transform.size is None:
        pixels *= 3  # arrays of doubles in the picture's own size
    words = _BYTES_A_LETTER * len(transform.serialised) if isinstance(transform, TextTransform) else 0
    return _BASE_BYTES + _BYTES_A_PIXEL * pixels + words + 4 * max_bytes
