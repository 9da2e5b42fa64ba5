"""Whether a sub-model that missed a deadline had a fair time: whoever asks for too much must not have it shut out."""

from edvit_hf.runtime.messages import SubModelRequest

_WEIGHT = 0.2  # of the newest time in the running mean
_TIMES_THE_USUAL = 3.0
_SHARE_OF_THE_DEADLINE = 0.5


class Patience:
    """Knows how long each sub-model usually takes, and whether a budget that it missed was enough.

    Deadlines may come from anybody: those of one caller that no device can meet must not open breakers for all others.
    """

    def __init__(self, deadline_ms: float | None) -> None:
        """Take the deadline that the runtime was set up with: whoever misses that one is late; None: there is none."""
        self._deadline_ms = deadline_ms
        self._usual_ms: dict[int, float] = {}

    def note(self, index: int, milliseconds: float) -> None:
        """It has answered, so long after it was asked, for each item."""
        usual = self._usual_ms.get(index, milliseconds)
        self._usual_ms[index] = (1 - _WEIGHT) * usual + _WEIGHT * milliseconds

    def is_fair(self, index: int, request: SubModelRequest, limit_ms: float | None) -> bool:
        """Whether a sub-model that missed the request's deadline had the time for it.

        The request must not have waited in line for more than half of its deadline. A deadline shorter than the
        runtime's own, or where that has none, must leave three times what the sub-model usually takes; before it has
        ever answered, any will do, or one that hangs from the start would never be left alone.

        Args:
            index: The sub-model.
            request: Its budget is what was left when it was asked.
            limit_ms: The request's whole deadline.
        """
        budget_ms = request.budget_ms
        if budget_ms is None or limit_ms is None:
            return True
        if budget_ms < _SHARE_OF_THE_DEADLINE * limit_ms:
            return False
        if self._deadline_ms is not None and limit_ms >= self._deadline_ms:
            return True
        return budget_ms >= _TIMES_THE_USUAL * request.batch_size * self._usual_ms.get(index, 0.0)
