# SPDX-License-Identifier: Apache-2.0
"""Doubles for the runtime: an engine that computes nothing, one that makes another misbehave, and a simulated clock.

With them tests and benchmarks show what the coordinator does when devices are slow, dead, damaged or of another
version, without any network.
"""

import heapq
import itertools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from edvit_hf.errors import EDViTError
from edvit_hf.manifest import Manifest
from edvit_hf.runtime.clock import Clock
from edvit_hf.runtime.engines import Engine, Pending, ProbeResponse, SubModelRequest, SubModelResponse, UnavailableError

_OTHER_VERSION = "0" * 64


class StubEngine:
    """Answers at once, with features drawn around what the manifest says of them; the same for the same request."""

    def __init__(self, manifest: Manifest, *, seed: int = 0) -> None:
        """Answer for every sub-model of the manifest."""
        self._manifest = manifest
        self._seed = seed
        self.sub_models: Sequence[int] = range(len(manifest.sub_models))

    def submit(self, index: int, request: SubModelRequest, /) -> Future[SubModelResponse]:
        """See `Engine`."""
        entry = self._manifest.sub_models[index]
        rng = np.random.default_rng((self._seed, index))
        noise = rng.standard_normal((request.batch_size, entry.feature_size)).clip(-3, 3)
        features = np.asarray(entry.feature_mean) + np.asarray(entry.feature_std) * noise
        logits = rng.standard_normal((request.batch_size, self._manifest.vote_sizes[index]))
        response = SubModelResponse(
            request_id=request.request_id,
            sub_model=index,
            content_hash=self._manifest.ensemble.content_hash,
            features=features.astype(np.float32),
            logits=logits.astype(np.float32),
            compute_ms=0.0,
        )
        return _here(response)

    def probe(self, index: int, /) -> Future[ProbeResponse]:
        """See `Engine`."""
        return _here(ProbeResponse(sub_model=index, content_hash=self._manifest.ensemble.content_hash))

    def status(self) -> dict[str, object]:
        """See `Engine`."""
        return {"engine": "stub"}

    def close(self) -> None:
        """See `Engine`."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """How one sub-model misbehaves. Shares are of its requests, in 0..1.

    Attributes:
        latency_ms: Added to every answer, probes included.
        jitter_ms: Up to so much more, uniformly.
        is_hung: Nothing is answered, probes neither.
        is_unavailable: The engine says at once that it is gone, to probes too.
        loss: Answers that never come.
        duplicate: Answers that come twice, and once more as the first answer to the next request.
        not_finite: Answers with a NaN or an infinity in features or votes.
        wrong_shape: Answers with one feature too many.
        wrong_scale: Answers a million times too large.
        stale: Answers by another version of the ensemble.
        swapped: Answers in the name of another sub-model.
    """

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    is_hung: bool = False
    is_unavailable: bool = False
    loss: float = 0.0
    duplicate: float = 0.0
    not_finite: float = 0.0
    wrong_shape: float = 0.0
    wrong_scale: float = 0.0
    stale: float = 0.0
    swapped: float = 0.0


class FaultyEngine:
    """Wraps any engine; every sub-model misbehaves in its own seeded way, which can be changed at any time."""

    def __init__(
        self, inner: Engine, clock: Clock, faults: Mapping[int, Faults] | None = None, *, seed: int = 0
    ) -> None:
        """Wrap an engine.

        Args:
            inner: Answers truly. On a simulated clock it has to answer at once.
            clock: That of the coordinator; latencies pass on it.
            faults: By sub-model; without any it is sound.
            seed: Of what happens when.
        """
        self._inner, self._clock = inner, clock
        self.faults = dict(faults or {})
        self._random = {index: random.Random(f"{seed}-{index}") for index in inner.sub_models}
        self._left_over: dict[int, SubModelResponse] = {}
        self._lock = threading.Lock()
        self.done: dict[str, int] = {}
        """How often each kind of fault was done."""

    @property
    def sub_models(self) -> Sequence[int]:
        """See `Engine`."""
        return self._inner.sub_models

    def submit(self, index: int, request: SubModelRequest, /) -> "Pending[SubModelResponse]":
        """See `Engine`."""
        faults = self.faults.get(index, Faults())
        if faults.is_unavailable:
            raise UnavailableError(f"Sub-model {index} cannot be reached.")
        channel = _Channel()
        if faults.is_hung:
            return channel
        with self._lock:
            left_over = self._left_over.pop(index, None)
        if left_over is not None:
            self._later(index, faults, partial(channel.deliver, _here(left_over)))
        self._inner.submit(index, request).add_done_callback(partial(self._answered, index, faults, channel))
        return channel

    def probe(self, index: int, /) -> "Pending[ProbeResponse]":
        """See `Engine`."""
        faults = self.faults.get(index, Faults())
        if faults.is_unavailable:
            raise UnavailableError(f"Sub-model {index} cannot be reached.")
        channel = _Channel()
        if not faults.is_hung:

            def answered(pending: Pending[ProbeResponse]) -> None:
                self._later(index, faults, partial(channel.deliver, pending))

            self._inner.probe(index).add_done_callback(answered)
        return channel

    def status(self) -> dict[str, object]:
        """See `Engine`."""
        return {"engine": "faulty", "inner": self._inner.status(), "faults_done": dict(self.done)}

    def close(self) -> None:
        """See `Engine`."""
        self._inner.close()

    def _answered(self, index: int, faults: Faults, channel: "_Channel", pending: Pending[SubModelResponse]) -> None:
        """The true answer is here: spoil it, and send it on once, twice or never."""
        try:
            response = pending.result()
        except BaseException:  # passed on as it is
            self._later(index, faults, partial(channel.deliver, pending))
            return
        if self._happens(index, "loss", faults.loss):
            return
        response = self._spoilt(index, faults, response)
        self._later(index, faults, partial(channel.deliver, _here(response)))
        if self._happens(index, "duplicate", faults.duplicate):
            self._later(index, faults, partial(channel.deliver, _here(response)))
            with self._lock:
                self._left_over[index] = response

    def _spoilt(self, index: int, faults: Faults, response: SubModelResponse) -> SubModelResponse:
        if self._happens(index, "not_finite", faults.not_finite):
            features, logits = response.features.copy(), response.logits.copy()
            row = features if self._random[index].random() < 0.5 else logits
            row[self._random[index].randrange(len(row)), 0] = self._random[index].choice((np.nan, np.inf, -np.inf))
            response = replace(response, features=features, logits=logits)
        if self._happens(index, "wrong_shape", faults.wrong_shape):
            response = replace(response, features=np.pad(response.features, ((0, 0), (0, 1))))
        if self._happens(index, "wrong_scale", faults.wrong_scale):
            scale = np.float32(1e6)
            response = replace(response, features=response.features * scale, logits=response.logits * scale)
        if self._happens(index, "stale", faults.stale):
            response = replace(response, content_hash=_OTHER_VERSION)
        if self._happens(index, "swapped", faults.swapped):
            response = replace(response, sub_model=(index + 1) % len(self._inner.sub_models))
        return response

    def _happens(self, index: int, name: str, share: float) -> bool:
        if share == 0 or self._random[index].random() >= share:
            return False
        with self._lock:
            self.done[name] = self.done.get(name, 0) + 1
        return True

    def _later(self, index: int, faults: Faults, call: Callable[[], None]) -> None:
        delay = faults.latency_ms + faults.jitter_ms * self._random[index].random()
        if delay == 0:
            call()
        else:
            self._clock.call_at(self._clock.now() + delay / 1e3, call)


class _Channel:
    """A `Pending` through which any number of messages may come, or none."""

    def __init__(self) -> None:
        self._calls: list[Callable[[Any], object]] = []
        self._arrived: list[Any] = []
        self._lock = threading.Lock()

    def add_done_callback(self, call: Callable[[Any], object], /) -> None:
        """See `Pending`."""
        with self._lock:
            self._calls.append(call)
            arrived = list(self._arrived)
        for message in arrived:
            call(message)

    def deliver(self, message: Any) -> None:
        """One message is here: something with a `result`."""
        with self._lock:
            self._arrived.append(message)
            calls = list(self._calls)
        for call in calls:
            call(message)

    def result(self) -> Any:
        """See `Pending`."""
        return self._arrived[0].result()

    def done(self) -> bool:
        """See `Pending`: more may come."""
        return False

    def cancel(self) -> bool:
        """See `Pending`: what was sent was begun."""
        return False


def _here(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class SimulatedClock:
    """Time that passes only while somebody waits: hours of faults in milliseconds, and always the same.

    For one thread: what is due runs inside `wait` and `advance`.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        """See `Clock`."""
        return self._now

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        """See `Clock`: go to the next call that is due, or to `until`."""
        del condition  # held by this very thread, which also notifies it
        if self._calls and (until is None or self._calls[0][0] <= until):
            self._run_next()
        elif until is not None:
            self._now = max(self._now, until)
        else:
            raise EDViTError(
                "Expected something that will happen while the simulated time passes, got nothing and no deadline. "
                "The wait would never end. Set a deadline."
            )

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        """See `Clock`."""
        heapq.heappush(self._calls, (when, next(self._numbers), call))

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due on the way is done."""
        until = self._now + seconds
        while self._calls and self._calls[0][0] <= until:
            self._run_next()
        self._now = until

    def _run_next(self) -> None:
        when, _, call = heapq.heappop(self._calls)
        self._now = max(self._now, when)
        call()
