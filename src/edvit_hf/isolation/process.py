# SPDX-License-Identifier: Apache-2.0
"""The parent's side of one child process: starts it, asks it, and ends it when it takes too long or speaks nonsense.

    class Doubler:                                     # in the module mine.jobs, which the child imports
        def __init__(self, setup: Message) -> None:
            self.factor = setup.values["factor"]

        def answer(self, question: Message) -> Message:
            return Message("doubled", arrays={"x": self.factor * question.arrays["x"]})

    limits = ChildLimits(memory_bytes=512 << 20, cpu_seconds=5.0)
    with Child("mine.jobs:Doubler", Message("setup", {"factor": 2}), limits=limits) as child:
        answer = child.ask(Message("double", arrays={"x": np.ones(3, np.float32)}), seconds=2.0)
        answer.arrays["x"]                             # array([2., 2., 2.], dtype=float32)

The child is a fresh interpreter, never a fork: this process may have threads and open sockets, and a child must have
none of them. It sees no variable of this process's environment but those it cannot work without.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, TypeAlias, cast

import edvit_hf.errors
from edvit_hf.errors import EDViTError
from edvit_hf.isolation.limits import ChildLimits
from edvit_hf.isolation.protocol import Message, ProtocolError, receive, send

MAX_BYTES = 1 << 28
"""Most bytes of arrays in a question and in an answer, where nothing else is said: 256 MiB."""
START_SECONDS = 60.0
"""For a child to be loaded, where nothing else is said."""
_PIPE_BYTES = 1 << 20
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "EDVIT_NUM_THREADS")
_SET = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# glibc: what prepared inputs need is kept, what a large picture needed is given back at once.
_SET |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 22), "MALLOC_TRIM_THRESHOLD_": str(1 << 24), "MALLOC_ARENA_MAX": "2"}
_BOOT = (
    "import json, sys; told = json.loads(sys.argv[1]); sys.path[:] = told['path']; "
    "from edvit_hf.isolation.child import main; main(told)"
)


Why: TypeAlias = Literal["time", "memory", "died", "nonsense", "closed", "start", "busy"]


class IsolationError(EDViTError):
    """A child process did not answer: its question is to be refused, and the child is gone.

    Attributes:
        why: "time", "memory", "died", "nonsense" (what it said is no answer), "closed", "busy" (no child was free, see
            `Pool`), or "start" (it never got so far as to be asked).
        is_from_outside: Whether somebody else ended the child: the system, where memory is short, or a person. The
            question need not be the reason.
    """

    def __init__(self, message: str, why: Why = "died", *, is_from_outside: bool = False) -> None:
        super().__init__(message)
        self.why, self.is_from_outside = why, is_from_outside


class QuotedError(Exception):
    """Stands for the cause of an error that was raised in a child: its text may hold another library's words."""


class Child:
    """One child process with one job. One thread asks it at a time; `close` may be called by any."""

    def __init__(
        self,
        entry: str,
        setup: Message | None = None,
        *,
        limits: ChildLimits | None = None,
        max_bytes: int = MAX_BYTES,
        max_answer_bytes: int | None = None,
        start_seconds: float = START_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process and wait until its job is made.

        Args:
            entry: "module:name" of what makes the job; called in the child with the setup. See `child.Job`.
            setup: What the job is made with.
            limits: What the child may take. Making the job is under them too.
            max_bytes: Most bytes of arrays in a question.
            max_answer_bytes: In an answer. Default: the same.
            start_seconds: After so long it is given up.
            environment: Variables for the child besides those it needs.

        Raises:
            IsolationError: It does not start, or not in time.
            EDViTError: What making the job raises.
        """
        self._lock = threading.Lock()
        self._max_answer_bytes = max_bytes if max_answer_bytes is None else max_answer_bytes
        self._is_closed = False
        self._asked = 0
        told = {
            "entry": entry,
            "parent": os.getpid(),
            "limits": asdict(limits or ChildLimits()),
            "max_bytes": max_bytes,
            "path": _import_path(),
        }
        try:
            self._process = _spawner(os.getpid()).submit(_start, told, dict(environment or {})).result()
        except (OSError, RuntimeError) as error:
            raise IsolationError(
                f"Expected a child process to start, got: {error}. Inputs of strangers would have to be read in this "
                "process. Free memory and processes, or switch isolation off.",
                "start",
            ) from error
        self._questions, self._answers = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        try:
            self.ask(setup or Message("setup"), seconds=start_seconds)
        except IsolationError as error:
            raise IsolationError(
                f"Expected a child process to get ready, got one that did not: {error}", "start"
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return not self._is_closed and self._process.poll() is None

    def ask(self, question: Message, *, seconds: float) -> Message:
        """What the child's job answers.

        Args:
            question: For the job.
            seconds: Wall-clock time after which the child is killed.

        Raises:
            IsolationError: No answer came; the child is gone.
            EDViTError: What the job raised.
        """
        watch = _Watch(seconds, self._kill)
        try:
            with watch:
                if self._is_closed:
                    raise OSError("it was closed")
                self._asked += 1
                numbered = Message(question.kind, {"number": self._asked, "values": question.values}, question.arrays)
                send(self._questions, numbered)
                answer = receive(self._answers, self._max_answer_bytes)
                if answer is None:
                    raise OSError("it ended")
            if answer.kind not in ("answer", "error") or answer.values["number"] != self._asked:
                raise ProtocolError(f"Expected the answer to question {self._asked}, got {answer.kind!r:.40}.")
            if answer.kind == "answer":
                return Message(str(answer.values["kind"]), dict(answer.values["values"]), answer.arrays)
        except (OSError, ProtocolError, KeyError, TypeError, ValueError) as error:
            raise self._failed(watch, seconds, error) from error
        except BaseException:
            self.close()  # the next answer would be that to this question
            raise
        finally:
            if watch.has_expired:
                self.close()
        raise self._told(answer.values)

    def close(self) -> None:
        """End it at once."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._kill()
        for pipe in (self._questions, self._answers):
            pipe.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kill(self) -> None:
        self._process.kill()

    def _failed(self, watch: "_Watch", seconds: float, error: Exception) -> IsolationError:
        was_closed = self._is_closed
        self.close()
        if was_closed:
            return IsolationError("Expected a child process that can be asked, got one that was closed.", "closed")
        if watch.has_expired:
            return IsolationError(f"Expected an answer within {seconds:g} s, got none. The process was ended.", "time")
        code = self._process.returncode
        if isinstance(error, OSError) or (isinstance(error, ProtocolError) and "got an end" in str(error)):
            why: Why = "time" if code == -_SIGXCPU else "died"
            told = f"Expected an answer, got the end of the process (exit code {code})."
            return IsolationError(told, why, is_from_outside=code == -_SIGKILL)
        return IsolationError(f"Expected an answer, got something else. The process was ended. {error}", "nonsense")

    def _told(self, values: Mapping[str, Any]) -> EDViTError:
        """The error that the child tells of."""
        name, text = str(values.get("class"))[:100], str(values.get("text"))[:4000]
        if values.get("ends") is not False:
            self.close()
            if values.get("memory") is True:
                return IsolationError("Expected a question that the child's memory is enough for, got more.", "memory")
            return IsolationError(f"Expected an answer, got a failure of the child: {name}: {text}", "died")
        kind = getattr(edvit_hf.errors, name, None)
        if not isinstance(kind, type) or not issubclass(kind, EDViTError):
            kind = EDViTError
        try:
            error: EDViTError = kind(text)
        except TypeError:  # one that takes more than a text
            error = EDViTError(text)
        if values.get("quotes") is not False:
            error.__cause__ = QuotedError()
        return error


class _Watch:
    """Calls `act` once if the block takes longer than `seconds`, and never after it."""

    def __init__(self, seconds: float, act: Any) -> None:
        self.has_expired = False
        self._is_over, self._act, self._lock = False, act, threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def _expire(self) -> None:
        with self._lock:
            if not self._is_over:
                self.has_expired = True
                self._act()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True


_SIGKILL, _SIGXCPU = (9, 24) if sys.platform != "win32" else (1 << 30, 1 << 30)  # there is nothing like them


@lru_cache(maxsize=1)
def _spawner(process_id: int) -> ThreadPoolExecutor:
    """The thread that starts children. Linux ends a child when the thread that started it ends: this one never does."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"edvit-spawn-{process_id}")


def _start(told: Mapping[str, Any], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, json.dumps(told)]
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    process = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(sys.executable).anchor,
        env={**kept, **_SET, **environment},
        start_new_session=True,  # Ctrl-C in a terminal is the parent's
    )
    _widen(process.stdin, process.stdout)
    return process


def _import_path() -> list[str]:
    """Where this process finds modules; the folder that it was started in is none of them."""
    own = str(Path(edvit_hf.errors.__file__).resolve().parents[1])
    return list(dict.fromkeys([own, *(str(Path(place).absolute()) for place in sys.path if place)]))


def _widen(*pipes: Any) -> None:
    """Let prepared inputs through at once instead of in parts of 64 KiB."""
    if sys.platform == "linux":
        import fcntl

        for pipe in pipes:
            try:
                fcntl.fcntl(pipe.fileno(), 1031, _PIPE_BYTES)  # F_SETPIPE_SZ
            except OSError:  # the system's own limit is lower
                return
