# SPDX-License-Identifier: Apache-2.0
"""Threads of the local engine: each runs its jobs one after the other and ends with the engine."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import onnxruntime


class Lane:
    """One thread, its queue of jobs, and the job that runs.

    Adding and closing only use operations that may interrupt each other: a collected engine is closed by the garbage
    collector, in the middle of whatever any thread is doing.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: a job was added; False: end
        self.current: Job | None = None

    def start(self, name: str) -> None:
        """Begin to run jobs."""
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def add(self, job: "Job") -> None:
        """Queue a job."""
        self._jobs.append(job)
        self._turns.put(True)

    def drop(self, job: "Job") -> None:
        """Forget a job that was cancelled, and its inputs, however long the one before it takes."""
        with contextlib.suppress(ValueError):
            self._jobs.remove(job)

    def close(self) -> None:
        """Cancel what waits, and let the thread end after the job that runs."""
        for job in list(self._jobs):
            job.cancel()
        self._turns.put(False)

    def _serve(self) -> None:
        while self._turns.get():
            try:
                self.current = self._jobs.popleft()
            except IndexError:  # it was dropped
                continue
            self.current.run()
            self.current = None  # or its inputs and features would live until the next one comes


class Job(Future[Any]):
    """One run of a sub-model on a lane. Cancelling it once it runs stops the run at its next operator."""

    def __init__(self, index: int, lane: Lane, work: Callable[[onnxruntime.RunOptions], Any]) -> None:
        super().__init__()
        self.index = index
        self.options = onnxruntime.RunOptions()
        self._lane = lane
        self._work = work

    def cancel(self) -> bool:
        """See `Pending`: False also where it waited for an earlier run of the same sub-model that does not stop."""
        if not super().cancel():
            self.options.terminate = True
            return False
        self._lane.drop(self)
        before = self._lane.current
        return before is None or before.index != self.index or not before.options.terminate

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


def close_all(lanes: Sequence[Lane]) -> None:
    """Close every lane."""
    for lane in lanes:
        lane.close()
