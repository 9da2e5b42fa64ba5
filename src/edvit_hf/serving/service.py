# SPDX-License-Identifier: Apache-2.0
"""Answers requests with one ensemble: decodes bodies and runs the ensemble on few threads, not on the event loop's."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from edvit_hf.errors import EDViTError, named_extra
from edvit_hf.isolation.decoding import Decoders, DecodersInProcess, load_libraries
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.inputs import probe_inputs
from edvit_hf.serving.bodies import Budget, DisconnectedError, Turns, read_body
from edvit_hf.serving.limits import ServeConfig
from edvit_hf.serving.metrics import Metrics
from edvit_hf.serving.questions import Options, check_question, media_type, parse_question
from edvit_hf.serving.refusals import RefusedError, escaped, refusal_of, stopping
from edvit_hf.serving.replies import predict_reply
from edvit_hf.serving.throttle import Line
from edvit_hf.transforms import FORMATS_OF_STRANGERS, AudioTransform, ImageTransform, Transform

logger = logging.getLogger(__name__)

_DECODERS = 2  # at a time: a large image takes hundreds of MB while it is decoded
_WARM_UPS = 3
_WARM_UP_MS = 60_000.0
_DEADLINE_TIMES = 10  # what an answer takes at the start
_SHORTEST_DEADLINE_MS = 1000.0
_CLIENT_GONE = 499  # nobody sees it but the log

T = TypeVar("T")


@dataclass
class RequestState:
    """What the admission and the handlers know of one request, for its reply, its log line and the metrics."""

    request_id: str
    begin: float = field(default_factory=time.perf_counter)
    result: str = "ok"

    @property
    def milliseconds(self) -> float:
        """Since its first line."""
        return 1e3 * (time.perf_counter() - self.begin)


class Service:
    """Answers requests with a runtime. Its coroutines and `line` belong to one event loop.

    Attributes:
        runtime: Closed by `close`. Its coordinator must answer one request at a time (the default).
        config: Limits and deadlines.
        deadline_ms: What is allowed a request when it asks for no less, counted from the prepared input.
        is_stopping: Set when the server is told to stop.
    """

    def __init__(self, runtime: EDViTRuntime, config: ServeConfig) -> None:
        """Make threads and counters, and load what decodes inputs; `warm_up` answers for the first time.

        Raises:
            MissingExtraError: What decodes this ensemble's inputs is not installed.
            EDViTError: The runtime answers several requests at a time.
        """
        if runtime.coordinator.config.max_in_flight != 1:
            raise EDViTError(
                f"Expected a runtime that answers one request at a time, got max_in_flight="
                f"{runtime.coordinator.config.max_in_flight}. The line could not tell how long a wait is. Leave "
                "`max_in_flight` at 1."
            )
        self.runtime, self.config = runtime, config
        self.deadline_ms = config.deadline_ms or _DEADLINE_TIMES * _SHORTEST_DEADLINE_MS
        self.is_stopping = False
        self.line = Line(config.max_queued)
        self.budget = Budget(config.limits.max_held_bytes)
        self.turns = Turns()
        self.metrics = Metrics(runtime, self.line, self.why_not_ready)
        self._decoders = _decoders_of(_limited(runtime.transform, config), config)
        self._decoding = ThreadPoolExecutor(_DECODERS, thread_name_prefix="edvit-decode")
        self._answerers = ThreadPoolExecutor(1 + config.max_queued, thread_name_prefix="edvit-answer")
        self._running: set[Future[Any]] = set()

    def warm_up(self) -> None:
        """Answer a made-up input a few times: the first request finds everything loaded, and times are known."""
        inputs, times = probe_inputs(self.runtime.task, self.runtime.input_shape), []
        try:
            for _ in range(_WARM_UPS):
                begin = time.perf_counter()
                self.runtime.predict(inputs, deadline_ms=self.config.deadline_ms or _WARM_UP_MS)
                times.append(time.perf_counter() - begin)
        except EDViTError as error:
            logger.warning("the ensemble does not answer yet: %s", error)
            return
        self.line.service = min(times)
        if self.config.deadline_ms is None:
            self.deadline_ms = max(_SHORTEST_DEADLINE_MS, _DEADLINE_TIMES * 1e3 * max(times))

    def why_not_ready(self) -> str | None:
        """What keeps this server from answering, for its log; None: nothing does."""
        coordinator = self.runtime.coordinator
        if self.is_stopping:
            return "stopping"
        if coordinator.is_closed:
            return "closed"
        loaded, breakers = self.runtime.loaded, coordinator.status()["breakers"]
        quorum = coordinator.config.quorum or max(1, math.ceil(len(loaded) / 2))
        live = sum(breakers[index] != "open" for index in loaded)
        if live < quorum:
            return f"{live} sub-models of {len(loaded)} answer, {quorum} must"
        return self._decoders.why_not_ready()

    async def predict(self, request: Request) -> Response:
        """Answer POST /predict. Raises a `RefusedError` for whatever gets no answer."""
        state: RequestState = request.scope["edvit"]
        try:
            return Response(await self._content(request, state), media_type="application/json")
        except DisconnectedError:
            state.result = "disconnected"
            return Response(status_code=_CLIENT_GONE)
        except EDViTError as error:
            refusal = refusal_of(error, self.runtime.task, 1e3 * self.runtime.coordinator.config.probe_pause_s)
            if not isinstance(error, RefusedError):
                level = logging.INFO if refusal.status < 500 else logging.WARNING
                logger.log(level, "%s: %s", state.request_id, escaped(str(error)))  # it may quote what was sent
            raise refusal from error

    def close(self, patience_s: float = 1.0) -> bool:
        """Stop answering and free the runtime. False if a thread is still at work after `patience_s`."""
        self.is_stopping = True
        for pool in (self._decoding, self._answerers):
            pool.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()
        self.runtime.close()
        return not wait(list(self._running), patience_s).not_done

    async def _content(self, request: Request, state: RequestState) -> bytes:
        content_type, query = request.headers.get("content-type"), request.scope.get("query_string", b"")
        media_type(self.runtime.task, content_type)  # before anything is read
        with self.budget.share() as share:
            body = await read_body(request, self.config.limits, share, self.turns)
            with self.line.place():
                arrived = time.perf_counter()
                options, inputs = await self._on(self._decoding, self._prepare, content_type, query, body)
                del body
                share.release()
                prepare_ms = 1e3 * (time.perf_counter() - arrived)
                return await self._on(self._answerers, self._answer, state, options, inputs, prepare_ms)

    def _prepare(self, content_type: str | None, query: bytes, body: bytes) -> tuple[Options, dict[str, np.ndarray]]:
        runtime, limits = self.runtime, self.config.limits
        question = parse_question(runtime.task, content_type, query, body, limits.max_characters)
        num_sub_models = len(runtime.manifest.sub_models)
        check_question(runtime.task, question, num_sub_models, runtime.loaded, limits.max_characters)
        return question.options, self._decoders.inputs(question.source)

    def _answer(self, state: RequestState, options: Options, inputs: dict[str, np.ndarray], prepare_ms: float) -> bytes:
        # From here on: what decoding takes is bounded by the limits of an input and by the line, and devices that are
        # quick enough must not be masked because a picture was large.
        deadline_ms = min(self.deadline_ms, options.deadline_ms or self.deadline_ms)
        begin = time.perf_counter()
        answer = self.runtime.predict(inputs, absent=options.absent, deadline_ms=deadline_ms)
        answer_ms = 1e3 * (time.perf_counter() - begin)
        total_ms = state.milliseconds  # read last: it holds the others
        times = {"total": total_ms, "prepare": prepare_ms, "answer": answer_ms, "fusion": answer.fusion_milliseconds}
        reply = predict_reply(
            self.runtime, answer, request_id=state.request_id, top_k=options.top_k, milliseconds=times
        )
        state.result = "degraded" if answer.degraded else "ok"
        self.metrics.answered(answer, total_ms / 1e3)
        return json.dumps(reply).encode()

    async def _on(self, pool: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
        try:
            future = pool.submit(_without_panics, call, *arguments)
        except RuntimeError:  # shut down
            raise stopping() from None
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(future)


def _without_panics(call: Callable[..., T], *arguments: Any) -> T:
    """What a library written in Rust raises where it fails is no `Exception`, and would end the event loop."""
    try:
        return call(*arguments)
    except Exception:
        raise
    except BaseException as panic:
        raise RuntimeError(f"{type(panic).__name__}: {panic}") from panic


def _limited(transform: Transform, config: ServeConfig) -> Transform:
    if isinstance(transform, ImageTransform):
        most = min(transform.max_pixels, config.limits.max_pixels)
        return replace(transform, max_pixels=most, formats=FORMATS_OF_STRANGERS)
    if isinstance(transform, AudioTransform):
        return replace(transform, max_seconds=min(transform.max_seconds, config.limits.max_seconds))
    return transform


def _decoders_of(transform: Transform, config: ServeConfig) -> Decoders | DecodersInProcess:
    """What reads inputs; a missing package is told at the start, not at the first request."""
    with named_extra("Reading what is sent", "serve"):
        load_libraries(transform.task)
    if config.decode_in_process:
        return DecodersInProcess(transform, workers=_DECODERS)
    limits = config.limits
    longest = max(limits.max_bytes, 4 * limits.max_characters)
    return Decoders(transform, max_bytes=longest, seconds=limits.decode_seconds, workers=_DECODERS)
