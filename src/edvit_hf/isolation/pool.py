# SPDX-License-Identifier: Apache-2.0
"""Several children with the same job: one that was ended is replaced, and a spare one is ready meanwhile."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from edvit_hf.errors import EDViTError
from edvit_hf.isolation.process import Child, IsolationError
from edvit_hf.isolation.protocol import Message

logger = logging.getLogger(__name__)

STUCK_SECONDS = 1.0
"""A pool whose children have all been at work for so long does not look ready: nobody knows when one will be free."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0  # between attempts to start a child, in seconds


class Pool:
    """Asks whichever child is free. Safe to share between threads; not between processes that were forked.

    At most `workers` are asked at a time; `spares` more are kept ready. A child that was ended, because it took too
    long or crashed, is replaced by a thread of the pool's own: no question waits for that unless all spares are gone.
    """

    def __init__(self, start: Callable[[], Child], *, workers: int = 2, spares: int = 1) -> None:
        """Start the first child and wait for it; the others follow meanwhile.

        Args:
            start: Makes a child.
            workers: Asked at a time.
            spares: Kept ready besides.

        Raises:
            EDViTError: The first child does not start: see `Child`.
        """
        if workers < 1 or spares < 0:
            raise EDViTError(f"Expected at least one worker and no fewer than 0 spares, got {workers} and {spares}.")
        self._make = start
        self._wanted = workers + spares
        self._places = threading.Semaphore(workers)
        self._workers = workers
        self._changed = threading.Condition()
        self._idle: deque[Child] = deque([start()])
        self._busy: dict[Child, float] = {}
        self._is_closed = False
        self._last_error: Exception | None = None
        self.replaced = 0
        self._keeper = threading.Thread(target=self._keep, name="edvit-isolation", daemon=True)
        self._keeper.start()

    def ask(self, question: Message, *, seconds: float, wait_seconds: float | None = None) -> Message:
        """What a child answers.

        Args:
            question: For the job.
            seconds: That the child may take; then it is killed and replaced.
            wait_seconds: For a child to be free. Default: `seconds`.

        Raises:
            IsolationError: No child was free ("busy"), or the one that was asked did not answer.
            EDViTError: What the job raised.
        """
        end = time.monotonic() + (seconds if wait_seconds is None else wait_seconds)
        if not self._places.acquire(timeout=max(0.0, end - time.monotonic())):
            raise _busy()
        try:
            try:
                return self._asked(question, seconds, end)
            except IsolationError as error:
                if not error.is_from_outside:
                    raise
            return self._asked(question, seconds, end)  # once more, as the question may have had no part in it
        finally:
            self._places.release()

    def why_not_ready(self) -> str | None:
        """What keeps this pool from answering soon; None: nothing does."""
        now = time.monotonic()
        with self._changed:
            self._drop_dead()
            if self._is_closed:
                return "the processes for inputs are closed"
            if not self._idle and not self._busy:
                return f"no process for inputs lives ({self._last_error or 'they are being started'})"
            stuck = sum(now - begin > STUCK_SECONDS for begin in self._busy.values())
            if stuck >= self._workers or (stuck and not self._idle):
                return f"all processes for inputs have been at work for more than {STUCK_SECONDS:g} s"
        return None

    def pids(self) -> tuple[int, ...]:
        """Process ids of the children that live."""
        with self._changed:
            return tuple(child.pid for child in (*self._idle, *self._busy))

    def close(self) -> None:
        """End all children; questions that are being answered fail."""
        with self._changed:
            self._is_closed = True
            children = (*self._idle, *self._busy)
            self._changed.notify_all()
        for child in children:
            child.close()
        self._keeper.join(timeout=1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _asked(self, question: Message, seconds: float, end: float) -> Message:
        child = self._take(end)
        try:
            return child.ask(question, seconds=seconds)
        finally:
            self._give_back(child)

    def _take(self, end: float) -> Child:
        with self._changed:
            while True:
                if self._is_closed:
                    raise IsolationError("Expected processes for inputs, got a pool that was closed.", "closed")
                self._drop_dead()
                if self._idle:
                    child = self._idle.popleft()
                    self._busy[child] = time.monotonic()
                    return child
                if not self._changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    raise _busy()

    def _give_back(self, child: Child) -> None:
        with self._changed:
            del self._busy[child]
            if child.is_alive and not self._is_closed:
                self._idle.append(child)
            self._changed.notify_all()

    def _drop_dead(self) -> None:
        """Forget idle children that have ended by themselves, or were ended from outside."""
        dead = [child for child in self._idle if not child.is_alive]
        for child in dead:
            self._idle.remove(child)
            child.close()
        if dead:
            self._changed.notify_all()

    def _rest(self, seconds: float) -> None:
        """Wait for so long, whoever is given back meanwhile, unless this pool is closed."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._is_closed and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def _keep(self) -> None:
        """Start children until there are as many as wanted, whenever one is gone."""
        pause, is_first = _SHORTEST_PAUSE, self._wanted - 1
        while True:
            with self._changed:
                self._drop_dead()
                while not self._is_closed and len(self._idle) + len(self._busy) >= self._wanted:
                    self._changed.wait(1.0)  # one that was ended from outside tells nobody
                    self._drop_dead()
                if self._is_closed:
                    return
            try:
                child = self._make()
            except Exception as error:  # whatever it is: this thread must go on
                self._last_error = error
                logger.warning("a process for inputs does not start: %s", error)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause, self._last_error = _SHORTEST_PAUSE, None
            with self._changed:
                if self._is_closed:
                    child.close()
                    return
                if is_first > 0:
                    is_first -= 1
                else:
                    self.replaced += 1
                self._idle.append(child)
                self._changed.notify_all()


def _busy() -> IsolationError:
    return IsolationError("Expected a free process for this input, got none in time: all are at work.", "busy")
