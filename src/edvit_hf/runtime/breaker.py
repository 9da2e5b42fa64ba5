# SPDX-License-Identifier: Apache-2.0
"""Circuit breakers: which misses count, and who is not asked until it has shown a sign of life."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edvit_hf.runtime.engines import SubModelRequest

_WEIGHT = 0.2  # of the newest time in the running mean
_TIMES_THE_USUAL = 3.0
_SHARE_OF_THE_DEADLINE = 0.5


@dataclass
class _Breaker:
    misses: int = 0  # in a row
    is_open: bool = False
    pause: float = 0.0  # seconds until the next probe


class Breakers:
    """One breaker for each sub-model.

    It opens after `misses_to_open` misses in a row, or at once where the engine says that the sub-model cannot be
    reached; the first good probe closes it. The pause before a probe doubles, up to `longest_pause`, with each bad
    probe and whenever a sub-model that passed its probe goes on failing.
    """

    def __init__(
        self,
        indices: Iterable[int],
        *,
        misses_to_open: int | None,
        first_pause: float,
        longest_pause: float,
        on_open: Callable[[int, float], None],
    ) -> None:
        """Start with all closed; pauses are in seconds, and with `misses_to_open` None no breaker ever opens.

        `on_open` is called with the index and the pause until a probe is due, after a bad probe too; without the lock.
        """
        self._states = {index: _Breaker(pause=first_pause) for index in indices}
        self._misses_to_open = misses_to_open
        self._first, self._longest = first_pause, longest_pause
        self._on_open = on_open
        self._lock = threading.Lock()

    def is_open(self, index: int) -> bool:
        """Whether the sub-model is not to be asked."""
        return self._states[index].is_open

    def success(self, index: int) -> None:
        """Note that a sub-model answered well."""
        with self._lock:
            state = self._states[index]
            if not state.is_open:  # an answer to an older request says nothing about now
                state.misses, state.pause = 0, self._first

    def miss(self, index: int, *, at_once: bool = False) -> bool:
        """Note a miss; `at_once`: the engine knows that the sub-model is gone. True if this opened the breaker."""
        with self._lock:
            state = self._states[index]
            state.misses += 1
            limit = self._misses_to_open
            if state.is_open or limit is None or not (at_once or state.misses >= limit):
                return False
            state.is_open = True
            pause = state.pause
            state.pause = min(self._longest, 2 * state.pause)
        self._on_open(index, pause)
        return True

    def probed(self, index: int, *, good: bool) -> None:
        """Note that a probe came back, or did not in time."""
        with self._lock:
            state = self._states[index]
            if not state.is_open:
                return
            if good:
                # The next miss opens it again: a sign of life is less than an answer.
                state.is_open, state.misses = False, (self._misses_to_open or 1) - 1
                return
            pause = state.pause
            state.pause = min(self._longest, 2 * state.pause)
        self._on_open(index, pause)

    def states(self) -> dict[int, str]:
        """`open` or `closed` for each sub-model."""
        return {index: "open" if state.is_open else "closed" for index, state in self._states.items()}


class UsualTimes:
    """Knows how long each sub-model usually takes, and whether a budget that it missed was enough.

    Deadlines may come from anybody: those of one caller that no device can meet must not open breakers for all others.
    """

    def __init__(self, deadline_ms: float | None) -> None:
        """Take the deadline that the runtime was set up with: whoever misses that one is late; None: there is none."""
        self._deadline_ms = deadline_ms
        self._usual_ms: dict[int, float] = {}

    def note(self, index: int, milliseconds: float) -> None:
        """Note how long after it was asked a sub-model answered, per item."""
        usual = self._usual_ms.get(index, milliseconds)
        self._usual_ms[index] = (1 - _WEIGHT) * usual + _WEIGHT * milliseconds

    def is_fair(self, index: int, request: SubModelRequest, limit_ms: float | None) -> bool:
        """Whether a sub-model that missed the request's deadline had the time for it.

        The request must not have waited in line for more than half of its deadline. A deadline shorter than the
        runtime's own, or where that has none, must leave three times what the sub-model usually takes; before it has
        ever answered, any will do, or one that hangs from the start would never be left alone. The request's budget is
        what was left of its whole deadline `limit_ms` when the sub-model was asked.
        """
        budget_ms = request.budget_ms
        if budget_ms is None or limit_ms is None:
            return True
        if budget_ms < _SHARE_OF_THE_DEADLINE * limit_ms:
            return False
        if self._deadline_ms is not None and limit_ms >= self._deadline_ms:
            return True
        return budget_ms >= _TIMES_THE_USUAL * request.batch_size * self._usual_ms.get(index, 0.0)
