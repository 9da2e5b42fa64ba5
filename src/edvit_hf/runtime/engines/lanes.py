# SPDX-License-Identifier: Apache-2.0
"""Threads that run graphs: each runs its jobs one after the other and ends with its owner, or with the process.

A thread that comes back from onnxruntime while the interpreter ends is torn out of C++ code, which aborts the process
after a right answer. So whatever still runs is stopped and waited for at exit, and not for ever.
"""

import atexit
import contextlib
import ctypes
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import onnxruntime

CLOSE_SECONDS, EXIT_SECONDS = 1.0, 5.0
"""How long closing and the end of the process wait for operators that were told to stop: they stop after themselves."""


class Lane:
    """One thread, its queue of jobs, and the job that runs.

    Adding and closing only use operations that may interrupt each other: a collected engine is closed by the garbage
    collector, in the middle of whatever any thread is doing.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: a job was added; False: end
        self._thread: threading.Thread | None = None
        self.current: Job | None = None

    def start(self, name: str) -> None:
        """Begin to run jobs."""
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        _alive.add(self)
        self._thread.start()

    def add(self, job: "Job") -> None:
        """Queue a job."""
        self._jobs.append(job)
        self._turns.put(True)

    def drop(self, job: "Job") -> None:
        """Forget a job that was cancelled, and its inputs, however long the one before it takes."""
        with contextlib.suppress(ValueError):
            self._jobs.remove(job)

    def close(self) -> None:
        """Cancel what waits, stop the job that runs at its next operator, and let the thread end after it."""
        for job in [*self._jobs, *filter(None, [self.current])]:
            job.cancel()
        self.end()

    def end(self) -> None:
        """Let the thread end after the jobs it has."""
        self._turns.put(False)

    def join(self, until: float) -> bool:
        """Wait for the end of a closed lane, until that time of the monotonic clock. Whether it has ended."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():  # a job may close its own lane
            return True
        thread.join(max(0.0, until - time.monotonic()))
        return not thread.is_alive()

    def _serve(self) -> None:
        try:
            while self._turns.get():
                try:
                    self.current = self._jobs.popleft()
                except IndexError:  # it was dropped
                    continue
                self.current.run()
                self.current = None  # or its inputs and features would live until the next one comes
        finally:
            _alive.discard(self)


class Job(Future[Any]):
    """One run of a graph on a lane. Cancelling it once it runs stops the run at its next operator."""

    def __init__(
        self,
        index: int,
        lane: Lane,
        work: Callable[[onnxruntime.RunOptions], Any],
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.index = index
        self.options = onnxruntime.RunOptions()
        self._lane = lane
        self._work = work
        self._on_stop = on_stop

    def cancel(self) -> bool:
        """See `Pending`: False also where it waited for an earlier run of the same sub-model that does not stop."""
        if not super().cancel():
            self.stop()
            return False
        self._lane.drop(self)
        before = self._lane.current
        return before is None or before.index != self.index or not before.options.terminate

    def stop(self) -> None:
        """Stop the run at its next operator."""
        self.options.terminate = True
        self._on_stop()

    def run(self) -> None:
        """Do the work, unless it was cancelled."""
        if not self.set_running_or_notify_cancel():
            return
        try:
            result = self._work(self.options)
        except BaseException as error:  # whoever waits for the result gets it; the lane must go on
            self.set_exception(error)
        else:
            self.set_result(result)


def within(seconds: float, job: Job) -> Any:
    """What a job that was added to its lane comes to; one that takes longer is stopped, and not waited for.

    Raises:
        TimeoutError: It takes longer. And what the job raises.
    """
    try:
        return job.result(max(0.0, seconds))
    except BaseException:  # an interruption too: nobody waits any more
        job.cancel()
        raise


def run_within(seconds: float, name: str, work: Callable[[], Any], on_stop: Callable[[], None]) -> Any:
    """What `work` returns, done on a thread of its own; see `within`."""
    lane = Lane()
    job = Job(0, lane, lambda _: work(), on_stop)
    lane.start(name)
    lane.add(job)
    lane.end()
    return within(seconds, job)


def close_all(lanes: Iterable[Lane]) -> None:
    """Close every lane."""
    for lane in lanes:
        lane.close()


def join_all(lanes: Sequence[Lane], seconds: float) -> bool:
    """Wait for the end of closed lanes, for so long in all. Whether all have ended."""
    until = time.monotonic() + seconds
    return all(lane.join(until) for lane in lanes)


def stop_everything(seconds: float) -> bool:
    """Stop what runs on any lane of this process and wait for its end, for so long in all. Whether all have ended."""
    lanes = list(_alive)
    close_all(lanes)
    return join_all(lanes, seconds)


def at_rest(seconds: float) -> bool:
    """Wait until no lane of this process runs anything, for so long at most. Whether that is so."""
    until = time.monotonic() + seconds
    while any(lane.current is not None for lane in list(_alive)):
        if time.monotonic() >= until:
            return False
        time.sleep(0.002)
    return True


_alive: set[Lane] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alive.clear)  # threads are not copied


@atexit.register
def _stop_at_exit() -> None:
    has_stopped = stop_everything(EXIT_SECONDS)
    # Whatever other libraries' threads do from here on, what was said is written.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if has_stopped:
        return
    # An operator goes on. Its thread is to wait where C++ would abort the process, and libraries that are still in use
    # are not torn down; the exit code is kept. What the system lacks of this is left out.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.on_exit(library._exit, None)
        ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(library.pause)
