# SPDX-License-Identifier: Apache-2.0
"""Engines carry a request to sub-model i and bring its features back; this is their contract with the coordinator.

Comes in: a `SubModelRequest`. Goes out: a `Pending` that brings a `SubModelResponse`. An engine may reach a sub-model
in this process, as `engines.local` does, or over a network. All judgement (deadlines, masks, breakers, versions,
values) is the coordinator's. Only the runtime calls engines; nothing in this file knows of onnxruntime.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from edvit_hf.errors import EDViTError

Reason = Literal[
    "absent",  # the caller left it out
    "not loaded",  # this engine does not have it
    "breaker",  # it failed before and has not answered a probe since: it was not asked
    "deadline",  # no answer in time
    "unavailable",  # the engine cannot reach it
    "failed",  # it answered with an error
    "identity",  # another sub-model answered, or it answered another request and nothing else came
    "version",  # it runs another version of the ensemble
    "shape",  # features or votes of another size
    "not finite",  # features or votes with NaN or infinities
    "out of range",  # features far from everything seen in training
]
"""Why a sub-model is missing from an answer."""

ON_REQUEST: tuple[Reason, ...] = ("absent", "not loaded")
"""Reasons that are somebody's decision and no fault."""


class UnavailableError(EDViTError):
    """An engine cannot reach a sub-model, and knows it at once: the breaker opens without waiting for a second miss."""


class VersionError(EDViTError):
    """A device holds another version of the ensemble than the one asked for, or of this package; it did not answer."""


class LateError(EDViTError, TimeoutError):
    """A device gave up at the end of the request's budget: nobody waits for its answer any more."""


@dataclass(frozen=True, kw_only=True)
class SubModelRequest:
    """One batch of prepared inputs for one sub-model. Only plain values and arrays: it can be sent as it is.

    Attributes:
        request_id: Comes back with the response.
        content_hash: The version of the ensemble that the coordinator fuses with.
        budget_ms: What is left until the coordinator stops waiting; None: it waits.
        inputs: By name, as the graphs take them; B rows each.
    """

    request_id: str
    content_hash: str
    budget_ms: float | None
    inputs: Mapping[str, np.ndarray]

    @property
    def batch_size(self) -> int:
        """B."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, kw_only=True)
class SubModelResponse:
    """What one sub-model sends back.

    Attributes:
        request_id: Of the request.
        sub_model: Which sub-model computed it.
        content_hash: The version of the ensemble that it belongs to.
        features: (B, d) float32.
        logits: (B, |group| + 1) float32, its own vote; the last is "other".
        compute_ms: The run itself, without queue and network.
    """

    request_id: str
    sub_model: int
    content_hash: str
    features: np.ndarray
    logits: np.ndarray
    compute_ms: float


@dataclass(frozen=True, kw_only=True)
class ProbeResponse:
    """Sign of life of one sub-model: who it is and which version it runs."""

    sub_model: int
    content_hash: str


Reply = TypeVar("Reply", covariant=True)


class Pending(Protocol[Reply]):
    """An answer on its way: a `concurrent.futures.Future` is one.

    An engine whose transport delivers more than once may call the callback for each message; the coordinator takes
    the first that belongs to its request.
    """

    def add_done_callback(self, call: Callable[[Any], object], /) -> None:
        """Have `call` called with what has arrived, from any thread; at once if it is here."""
        ...

    def result(self) -> Reply:
        """What arrived. Raises what the engine raised instead; asked for only after it is here."""
        ...

    def done(self) -> bool:
        """Whether nothing more will come."""
        ...

    def cancel(self) -> bool:
        """Stop the work where that is possible: nobody waits for it.

        True only if it had not begun, for no fault of this sub-model's: others were before it.
        """
        ...


class Engine(Protocol):
    """Carries requests to sub-models. Safe to call from several threads."""

    @property
    def sub_models(self) -> Sequence[int]:
        """Those it can carry requests to, in the order in which it wants to be asked."""
        ...

    def submit(self, index: int, request: SubModelRequest, /) -> Pending[SubModelResponse]:
        """Send a request to a sub-model, without waiting.

        A `DataError`, raised or as the result, says that the input is at fault; `UnavailableError` that the sub-model
        cannot be reached now; `VersionError` that its device runs another version; `LateError` that its device gave up
        when the budget was over; anything else that it failed.
        """
        ...

    def probe(self, index: int, /) -> Pending[ProbeResponse]:
        """Ask a sub-model for a sign of life, without waiting. Raises and results as for `submit`."""
        ...

    def status(self) -> dict[str, object]:
        """What the engine tells about itself, JSON-able."""
        ...

    def close(self) -> None:
        """Free what it holds. Calling it again does nothing."""
        ...
