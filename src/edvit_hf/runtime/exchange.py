# SPDX-License-Identifier: Apache-2.0
"""One request to all sub-models: what arrives for it, whether that may be fused, and when nothing more is awaited."""

import logging
import math
import threading
from collections.abc import Callable, Collection
from functools import partial

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.manifest import Manifest, SubModelEntry
from edvit_hf.runtime.clock import Clock
from edvit_hf.runtime.engines import (
    ON_REQUEST,
    LateError,
    Pending,
    Reason,
    SubModelRequest,
    SubModelResponse,
    UnavailableError,
    VersionError,
)
from edvit_hf.tasks import FUSION_READS, vote_sizes

logger = logging.getLogger(__name__)

DEFAULT_MAX_DEVIATIONS = 100.0
_MAX_VOTE = 1e4  # of a logit; the difference of two that no float32 softmax tells from certainty is about 100


class ResponseCheck:
    """Judges responses by the manifest.

    A feature is out of range if it lies more than `max_deviations` times its standard deviation in training (or the
    sub-model's median one, if that is larger: some features hardly vary there) from its mean. It is there for scales
    that are wrong by orders of magnitude. After a layer norm no sound feature comes near it. Where votes are averaged,
    a vote is out of range that no softmax needs, and that alone would outweigh all others.
    """

    def __init__(self, manifest: Manifest, *, max_deviations: float | None = DEFAULT_MAX_DEVIATIONS) -> None:
        self._content_hash = manifest.ensemble.content_hash
        self._entries = manifest.sub_models
        self._num_labels = len(manifest.label_names)
        averages = "votes" in FUSION_READS[manifest.fusion.kind] and max_deviations is not None
        self._max_vote = _MAX_VOTE if averages else None
        self._bounds = [None if max_deviations is None else _bounds(e, max_deviations) for e in manifest.sub_models]

    def reason_against(self, index: int, request: SubModelRequest, response: SubModelResponse) -> Reason | None:
        """Why the response of sub-model `index` to this request must not be fused; None: it may be."""
        if response.sub_model != index:
            return "identity"
        if response.content_hash != self._content_hash:
            return "version"
        entry = self._entries[index]
        features, logits = response.features, response.logits
        usual = vote_sizes(entry.class_group, self._num_labels)
        votes = usual if entry.vote_size is None else [entry.vote_size]
        for values, sizes in ((features, [entry.feature_size]), (logits, votes)):
            is_table = isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind == "f"
            if not is_table or values.shape[0] != request.batch_size or values.shape[1] not in sizes:
                return "shape"
        if not (np.isfinite(features).all() and np.isfinite(logits).all()):
            return "not finite"
        if self._max_vote is not None and np.abs(logits).max(initial=0.0) > self._max_vote:
            return "out of range"
        bounds = self._bounds[index]
        if bounds is not None and not ((features >= bounds[0]) & (features <= bounds[1])).all():
            return "out of range"
        return None


def _bounds(entry: SubModelEntry, max_deviations: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest value of each feature; None where the manifest knows no spread."""
    deviations, mean = np.asarray(entry.feature_std), np.asarray(entry.feature_mean)
    typical = float(np.median(deviations)) or float(deviations.max())
    if typical == 0:
        return None
    reach = max_deviations * np.maximum(deviations, typical)
    return mean - reach, mean + reach


class Exchange:
    """One request, and what arrives for it, from whatever thread, until it is closed."""

    def __init__(
        self,
        request: SubModelRequest,
        check: ResponseCheck,
        num_sub_models: int,
        quorum: int | None,
        on_dropped: Callable[[], None],
        *,
        clock: Clock,
        deadline: float | None = None,
    ) -> None:
        """Start with nothing asked.

        Args:
            request: Goes to every sub-model.
            check: Judges each response.
            num_sub_models: Of the ensemble.
            quorum: Fewest in an answer; None: half of those asked, rounded up.
            on_dropped: Called for each message that is a copy, late, or of another request.
            clock: Of the coordinator.
            deadline: On the clock; None waits for everybody. A later response is not taken, even before `wait` ends.
        """
        self.request = request
        self.responses: dict[int, SubModelResponse] = {}
        self.milliseconds: dict[int, float] = {}  # from here to each response
        self.missing: dict[int, Reason] = {}
        self.never_started: set[int] = set()  # late because of what came before them: no fault of theirs
        self.error: DataError | None = None
        self.num_sub_models = num_sub_models
        self.needed = 1
        self._check, self._quorum, self._on_dropped = check, quorum, on_dropped
        self._clock, self._deadline, self._begin = clock, deadline, clock.now()
        self._pending: dict[int, Pending[SubModelResponse]] = {}
        self._outstanding: set[int] = set()
        self._changed = threading.Condition()
        self._is_closed = False

    @property
    def possible(self) -> int:
        """Sub-models that have answered or still may."""
        return len(self.responses) + len(self._outstanding)

    def expect(self, asked: Collection[int]) -> None:
        """Note which sub-models may take part: the quorum is counted over them."""
        self._outstanding = set(asked)
        self.needed = max(1, math.ceil(len(asked) / 2)) if self._quorum is None else self._quorum

    def sent(self, index: int, pending: Pending[SubModelResponse]) -> None:
        """Note that the request is on its way to a sub-model."""
        self._pending[index] = pending
        pending.add_done_callback(partial(self._arrived, index))

    def miss(self, index: int, reason: Reason) -> None:
        """Note why a sub-model will not be in the answer."""
        with self._changed:
            self._outstanding.discard(index)
            self.missing[index] = reason
            self._changed.notify_all()

    def fail(self, error: DataError) -> None:
        """Note that the input is at fault: no sub-model can answer."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until everything is here, nothing more can help, or the deadline; then close and stop the late."""
        with self._changed:
            while self._outstanding and self.error is None and self._can_reach_quorum():
                if self._deadline is not None and self._clock.now() >= self._deadline:
                    break
                self._clock.wait(self._changed, self._deadline)
            self._is_closed = True
            late = sorted(self._outstanding)
            if self.error is None and self._can_reach_quorum():
                self.missing.update(dict.fromkeys(late, "deadline"))
                self._outstanding.clear()
            self.missing = dict(sorted(self.missing.items()))
        for index in late:
            if index in self._pending and self._pending[index].cancel():
                self.never_started.add(index)

    def _can_reach_quorum(self) -> bool:
        return self.possible >= self.needed

    def _arrived(self, index: int, pending: Pending[SubModelResponse]) -> None:
        """Take the first message of a sub-model that belongs to this request, drop all others."""
        try:
            response = pending.result()
            if not isinstance(response, SubModelResponse):
                raise TypeError(f"a {type(response).__name__} instead of a response")
        except BaseException as error:  # a cancelled future may raise outside of Exception
            self._broke(index, error)
            return
        with self._changed:
            belongs, now = response.request_id == self.request.request_id, self._clock.now()
            is_late = self._is_closed or (self._deadline is not None and now > self._deadline)
            if is_late or index not in self._outstanding or not belongs:
                self._on_dropped()
                if not belongs and index in self._outstanding and self._pending[index].done():
                    self.miss(index, "identity")
                return
            reason = self._check.reason_against(index, self.request, response)
            if reason is not None:
                self.miss(index, reason)
                return
            self._outstanding.discard(index)
            self.responses[index], self.milliseconds[index] = response, 1e3 * (now - self._begin)
            self._changed.notify_all()

    def _broke(self, index: int, error: BaseException) -> None:
        with self._changed:
            if self._is_closed or index not in self._outstanding:
                return
            if isinstance(error, DataError):
                self.fail(error)
            else:
                self.miss(index, reason_of(index, error))


def reason_of(index: int, error: BaseException) -> Reason:
    """What an engine's error says about a sub-model."""
    told: dict[type[BaseException], Reason] = {
        UnavailableError: "unavailable",
        VersionError: "version",
        LateError: "deadline",
    }
    for kind, reason in told.items():
        if isinstance(error, kind):
            return reason
    logger.warning("sub-model %d failed: %s: %s", index, type(error).__name__, error)
    return "failed"


def too_few(exchange: Exchange) -> str:
    """The message for a missed quorum."""
    reasons = "; ".join(f"{index} {reason}" for index, reason in exchange.missing.items())
    if not exchange.responses and not set(exchange.missing.values()) - set(ON_REQUEST):
        return (
            f"No sub-model is present: all {exchange.num_sub_models} are absent or not loaded ({reasons}). An answer "
            "would be a guess. Let at least one of them take part."
        )
    possible = exchange.possible
    lead = "No sub-model is present" if not possible else f"Only {possible} of {exchange.num_sub_models} can be present"
    return (
        f"{lead}, and an answer needs at least {exchange.needed}; missing: {reasons}. An answer would be a guess. "
        "Bring the devices back, allow more time, or lower the quorum."
    )
