# SPDX-License-Identifier: Apache-2.0
"""One request, or one probe, on its way through the Ray engine: which endpoint is asked, and what came of it."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from edvit_hf.errors import EDViTError
from edvit_hf.runtime.engines import ProbeResponse, SubModelRequest, SubModelResponse, UnavailableError
from edvit_hf.runtime.engines.ray_actor import ERRORS, Sent

if TYPE_CHECKING:
    from edvit_hf.runtime.engines.ray import RayEngine

logger = logging.getLogger(__name__)

PROBE_SECONDS, PROBE_PAUSE_SECONDS = 10.0, 0.1
# Asking the next endpoint is never done on Ray's own thread, which brings the answers of all others.
_later = ThreadPoolExecutor(2, "edvit-ray")


class Asked(Future[SubModelResponse]):
    """One request to one sub-model: an endpoint that is known to be gone is followed by the next one."""

    def __init__(self, engine: "RayEngine", index: int, request: SubModelRequest) -> None:
        super().__init__()
        self._engine, self._index, self._request = engine, index, request
        self._left = list(engine.routes.order(index))
        self._asked: str | None = None
        self._begin = time.monotonic()
        self._problem = "no device holds it"

    def ask(self) -> None:
        """Ask the next endpoint that can be asked."""
        while self._left:
            device = self._left.pop(0)
            budget, request = self._budget(), self._request
            inputs = self._engine.travelling(request)
            begin = time.perf_counter()
            try:
                arguments = (request.content_hash, request.request_id, inputs, budget)
                future = self._engine.call(self._index, device, "run", *arguments)
            except Exception as error:  # Ray's many kinds: the actor is gone, or has too many calls waiting
                self._gone(device, str(error))
                continue
            self._asked = device
            future.add_done_callback(partial(self._arrived, device, begin))
            return
        self._fail(
            UnavailableError(f"Sub-model {self._index} cannot be reached now: {self._problem:.500}. See `status()`.")
        )

    def cancel(self) -> bool:
        """See `Pending`: nobody waits any more. Whether it had begun on the device is not known."""
        if not self.done():
            device = self._asked
            if device is not None:
                self._engine.missed(self._index, device)
            super().cancel()
        return False

    def _budget(self) -> float | None:
        whole = self._request.budget_ms
        return None if whole is None else max(0.0, whole - 1e3 * (time.monotonic() - self._begin))

    def _gone(self, device: str, problem: str) -> None:
        self._problem = f"{device}: {problem.strip().partition(chr(10))[0]}"
        self._engine.routes.failed(self._index, device)

    def _arrived(self, device: str, begin: float, future: Future[Sent]) -> None:
        total_ms = 1e3 * (time.perf_counter() - begin)
        try:
            sent = future.result()
        except BaseException as error:  # the process died, or its machine is gone
            self._gone(device, str(error) or type(error).__name__)
            _later.submit(self.ask)
            return
        if sent[0] == "unavailable":
            self._gone(device, sent[1])
            _later.submit(self.ask)
            return
        if sent[0] != "ok":
            self._fail(_error(sent))
            return
        _, sub_model, content_hash, request_id, features, logits, compute_ms = sent
        self._engine.routes.answered(self._index, device)
        self._engine.note(self._index, device, compute_ms, total_ms)
        response = SubModelResponse(
            request_id=request_id,
            sub_model=sub_model,
            content_hash=content_hash,
            features=features,
            logits=logits,
            compute_ms=compute_ms,
        )
        if self.set_running_or_notify_cancel_once():
            self.set_result(response)

    def set_running_or_notify_cancel_once(self) -> bool:
        """Whether somebody still waits."""
        return not self.cancelled() and self.set_running_or_notify_cancel()

    def _fail(self, error: EDViTError) -> None:
        if self.set_running_or_notify_cancel_once():
            self.set_exception(error)


class Probing(Future[ProbeResponse]):
    """A sign of life of one sub-model: all its endpoints are asked, and asked again, until one is well."""

    def __init__(
        self, engine: "RayEngine", index: int, devices: Sequence[str] | None = None, *, tries: int = 1000
    ) -> None:
        super().__init__()
        self._engine, self._index = engine, index
        self._devices = engine.routes.order(index) if devices is None else tuple(devices)
        self._tries = dict.fromkeys(self._devices, tries)
        self._until = time.monotonic() + PROBE_SECONDS
        self._decided = threading.Lock()

    def ask(self) -> None:
        """Ask all endpoints at once."""
        for device in self._devices:
            self._ask(device)

    def cancel(self) -> bool:
        """See `Pending`."""
        if not self.done():
            for device in self._devices:
                self._engine.missed(self._index, device)
            super().cancel()
        return False

    def _ask(self, device: str) -> None:
        if self.done() or self._engine.is_closed:
            return
        self._tries[device] -= 1
        try:
            future = self._engine.call(self._index, device, "probe", group="probe")
        except Exception as error:  # as in `Asked.ask`
            self._again(device, error)
            return
        future.add_done_callback(partial(self._arrived, device))

    def _arrived(self, device: str, future: Future[Sent]) -> None:
        try:
            sent = future.result()
            if sent[0] != "ok":
                raise _error(sent)
        except BaseException as error:  # as in `Asked._arrived`
            self._again(device, error)
            return
        self._engine.routes.answered(self._index, device)
        if self._decided.acquire(blocking=False) and not self.cancelled() and self.set_running_or_notify_cancel():
            self.set_result(ProbeResponse(sub_model=sent[1], content_hash=sent[2]))

    def _again(self, device: str, error: BaseException) -> None:
        """Ask once more in a moment: an actor that is being restarted refuses at once."""
        if self._tries[device] > 0 and time.monotonic() < self._until:
            timer = threading.Timer(PROBE_PAUSE_SECONDS, self._ask, (device,))
            timer.daemon = True
            timer.start()
            return
        self._tries[device] = 0
        if any(self._tries.values()) or not self._decided.acquire(blocking=False):
            return
        if not self.cancelled() and self.set_running_or_notify_cancel():
            self.set_exception(UnavailableError(f"Sub-model {self._index} gives no sign of life: {error}"))


def _error(sent: Sent) -> EDViTError:
    return ERRORS.get(sent[0], EDViTError)(sent[1])
