# SPDX-License-Identifier: Apache-2.0
"""Child processes of the page: those that read visitors' files, and one for each ensemble that a visitor named.

What hangs, swells or crashes there ends there. `start` switches it on, as app.py does; without it everything happens in
this process, which is for one's own files.
"""

import contextlib
import logging
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from answers.reading import Kind, Reading, Taker
from answers.runtimes import VisitorError
from answers.turns import Places
from answers.wire import answer_of, described_of, inputs_message, reading_of
from edvit_hf.errors import DataError, EDViTError, OverloadedError
from edvit_hf.isolation import Child, ChildLimits, IsolationError, Message, Pool, as_bytes
from edvit_hf.isolation.protocol import ProtocolError
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import Answer, MonotonicClock
from edvit_hf.runtime.waiting_line import RequestLine
from edvit_hf.storage import MIB

logger = logging.getLogger(__name__)

READERS, SPARE_READERS = 3, 1
"""Files that are read at a time, and processes that wait to take the place of one that was ended."""
READ_SECONDS, WAIT_SECONDS = 5.0, 5.0
"""For reading one file, and for a process to be free; then its visitor is told to try again."""
OPEN_SECONDS, ASK_SECONDS, DEADLINE_MS = 45.0, 8.0, 5_000
"""For opening an ensemble of a stranger, and for each question to it: then its process is ended. It is asked to answer
by the deadline, so that one slow sub-model is missing from an answer and does not end the process."""
READER_LIMITS = ChildLimits(memory_bytes=768 * MIB, cpu_seconds=READ_SECONDS)
ENSEMBLE_LIMITS = ChildLimits(memory_bytes=1536 * MIB, cpu_seconds=OPEN_SECONDS, may_start_threads=True)
MAX_MESSAGE_BYTES = 64 * MIB
MAX_READING = READERS + 3
"""Visitors whose files are read, or wait for a reader; more are told at once, so that the others' places stay free."""
MAX_IN_LINE, MAX_ASKED = 2, 5
"""Visitors who wait for one ensemble of a stranger, and who are at or wait for any: the others' places stay free."""
MAX_EACH = 2
"""Of the readers' places, and of those at ensembles of strangers, what one address holds: one reader stays free."""

TOO_MUCH = "This file takes too long or too much memory to be read here. Choose a smaller or simpler one."
READERS_BUSY = "Many files are read at this moment. Try again in a few seconds."
GONE = "This ensemble took too long or too much memory, so it was closed. Open it again, or choose another one."
TOO_LARGE = (
    "This ensemble takes too long or too much memory to be opened here. Run it on a machine of your own: "
    "edvit space run."
)

_PAGE = str(Path(__file__).resolve().parents[1])
_lock = threading.Lock()
_readers: Pool | None = None
_asked = Places(MAX_ASKED, MAX_EACH)
_reading = Places(MAX_READING, MAX_EACH)


def start(takers: Sequence[tuple[Path, Taker]] = ()) -> None:
    """Start the processes that read files, for ensembles in these folders first.

    Raises:
        EDViTError: They do not start.
    """
    global _readers
    setup = Message("setup", {"takers": [_taker_values(folder, taker) for folder, taker in takers]})

    def reader() -> Child:
        return _child("answers.jobs:ReadingJob", setup, READER_LIMITS)

    with _lock:
        if _readers is None:
            _readers = Pool(reader, workers=READERS, spares=SPARE_READERS)


def stop() -> None:
    """End them."""
    global _readers
    with _lock:
        readers, _readers = _readers, None
    if readers is not None:
        readers.close()


def is_on() -> bool:
    """Whether strangers' files and ensembles get processes of their own."""
    return _readers is not None


def read(folder: Path, taker: Taker, kind: Kind, content: bytes) -> Reading:
    """Read a stranger's file for an ensemble whose own files, in `folder`, can be trusted.

    Raises:
        DataError: A sentence for the visitor.
    """
    readers = _readers
    question = Message(kind, {"taker": _taker_values(folder, taker)}, {"content": as_bytes(content)})
    try:
        with _reading.hold_mine():
            if readers is None:
                raise IsolationError("Expected processes that read files, got none.", "closed")
            return reading_of(readers.ask(question, seconds=READ_SECONDS, wait_seconds=WAIT_SECONDS))
    except OverloadedError as error:
        raise DataError(READERS_BUSY) from error
    except (IsolationError, ProtocolError) as error:
        logger.warning("a file was not read: %s", error)
        is_busy = isinstance(error, IsolationError) and error.why in ("busy", "closed", "start")
        raise DataError(READERS_BUSY if is_busy else TOO_MUCH) from error


def _child(entry: str, setup: Message, limits: ChildLimits) -> Child:
    if _PAGE not in sys.path:  # where a child finds `answers`: it takes no relative folder over
        sys.path.append(_PAGE)
    quiet = {"ORT_DISABLE_TELEMETRY": "1"}  # which would write to the home folder
    return Child(
        entry, setup, limits=limits, max_bytes=MAX_MESSAGE_BYTES, start_seconds=OPEN_SECONDS, environment=quiet
    )


def _taker_values(folder: Path, taker: Taker) -> dict[str, Any]:
    options = {"can_draw": taker.can_draw, "hears_words": taker.hears_words}
    return {"folder": str(folder), "task": taker.task, **options}


class IsolatedEnsemble:
    """An ensemble of a stranger in a process of its own. It is asked like an `EDViTRuntime`, for one input at a time.

    Attributes:
        manifest: Of it, checked.
        can_draw: Whether it reads digits in the form of drawings.
        side: Of the pictures that it takes, in px; 0 where that is not fixed.
    """

    def __init__(self, folder: Path, manifest: Manifest, title: str) -> None:
        """Open the ensemble of a folder, which is not needed afterwards.

        Raises:
            VisitorError: A sentence for the visitor.
        """
        self.manifest = manifest
        self.label_names = tuple(manifest.label_names)
        self.task = manifest.ensemble.task
        setup = Message("setup", {"folder": str(folder), "title": title, "deadline_ms": DEADLINE_MS})
        try:
            self._child = _child("answers.jobs:EnsembleJob", setup, ENSEMBLE_LIMITS)
            with contextlib.ExitStack() as unless_described:
                unless_described.callback(self._child.close)
                told = self._child.ask(Message("describe"), seconds=ASK_SECONDS)
                self.can_draw, self.side = described_of(told)
                unless_described.pop_all()
        except (IsolationError, ProtocolError) as error:
            logger.warning("could not open %s: %s", title, error)
            raise VisitorError(TOO_LARGE) from error
        except EDViTError as error:  # the child's sentence
            raise VisitorError(str(error)) from error
        self._line = RequestLine(MonotonicClock(), max_in_flight=1, max_queued=MAX_IN_LINE)
        self.close = weakref.finalize(self, self._child.close)  # it ends when nobody holds it

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._child.is_alive

    def read(self, kind: Kind, content: bytes) -> Reading:
        """Read what a visitor gave.

        Raises:
            DataError: A sentence for the visitor.
        """
        try:
            return reading_of(self._ask(Message(kind, arrays={"content": as_bytes(content)})))
        except OverloadedError as error:
            raise DataError(READERS_BUSY) from error
        except VisitorError as error:
            raise DataError(str(error)) from error
        except ProtocolError as error:
            raise DataError(self._ended(error)) from error

    def predict(self, inputs: Mapping[str, np.ndarray], absent: Sequence[int] = ()) -> Answer:
        """See `EDViTRuntime.predict`. Raises `VisitorError` where the process is gone."""
        return self._predict(inputs, absent, None)[0]

    def predict_without(
        self, inputs: Mapping[str, np.ndarray], subsets: Iterable[Sequence[int]], absent: Sequence[int] = ()
    ) -> tuple[Answer, list[np.ndarray]]:
        """See `EDViTRuntime.predict_without`. Raises `VisitorError` where the process is gone."""
        return self._predict(inputs, absent, [list(subset) for subset in subsets])

    def _predict(
        self, inputs: Mapping[str, np.ndarray], absent: Sequence[int], subsets: list[list[int]] | None
    ) -> tuple[Answer, list[np.ndarray]]:
        question = inputs_message("predict", inputs, {"absent": list(absent), "subsets": subsets})
        try:
            return answer_of(self._ask(question), self.manifest, len(subsets or ()))
        except ProtocolError as error:
            raise VisitorError(self._ended(error)) from error

    def _ask(self, question: Message) -> Message:
        """Raises `VisitorError` where the process is gone, `OverloadedError` where too many ask, and what it raises."""
        clock = MonotonicClock()
        try:
            with _asked.hold_mine(), self._line.enter(clock.now() + 2 * ASK_SECONDS):
                return self._child.ask(question, seconds=ASK_SECONDS)
        except IsolationError as error:
            raise VisitorError(self._ended(error)) from error

    def _ended(self, error: Exception) -> str:
        logger.warning("an ensemble of a visitor was closed: %s", error)
        self.close()
        return GONE
