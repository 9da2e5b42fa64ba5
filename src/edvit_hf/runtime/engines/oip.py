# SPDX-License-Identifier: Apache-2.0
"""The engine for many machines without a cluster: Open Inference Protocol v2 over gRPC, to any server that speaks it.

Devices run `edvit worker`, or Triton, KServe's server or OpenVINO Model Server with the models that `edvit export
--server` writes. Calls go through the generated client of `tritonclient`. As with every engine, judgement is the
coordinator's; here it is found out whom to ask, and in which type inputs travel.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from edvit_hf.errors import EDViTError
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import PlacementFile, load_placement
from edvit_hf.runtime.device import preprocessing_hash
from edvit_hf.runtime.engines import ProbeResponse, SubModelRequest, SubModelResponse, UnavailableError
from edvit_hf.runtime.engines.oip_calls import Binding, Call
from edvit_hf.runtime.engines.oip_links import ClientTls, Link, close_links, error_of
from edvit_hf.runtime.engines.oip_wire import model_name
from edvit_hf.runtime.engines.routes import Prober, Routes
from edvit_hf.runtime.engines.workers import check_workers, placed_routes
from edvit_hf.tokens import FLEET_TOKEN, check_token
from edvit_hf.transforms import Transform

logger = logging.getLogger(__name__)

_HANDSHAKE_SECONDS = 3.0
_LONG_PAUSE_SECONDS, _SHORT_PAUSE_SECONDS = 5.0, 0.5  # until workers that have nothing are asked again


class OIPEngine:
    """Carries requests to sub-models on other machines. Safe to call from several threads.

    Where several devices have a sub-model, one that is known at once not to be reachable is followed by the next
    within the same request; one that hangs is asked last from the next request on, until it answers a probe.

    It is bound to one version of an ensemble by `EDViTRuntime.from_pretrained`; for another version take `again()`.
    """

    def __init__(
        self,
        workers: Mapping[str, str],
        *,
        placement: PlacementFile | str | Path | None = None,
        token: str | None = None,
        tls: ClientTls | None = None,
        keepalive_s: float | None = 2.0,
        probe_pause_s: float = 1.0,
    ) -> None:
        """Take addresses; nothing is sent before the engine is bound.

        Args:
            workers: Name of a device -> its `host:port`.
            placement: Which device runs which sub-model, and which can stand in; a placement.json or its path. None:
                the workers are asked what they have.
            token: What the workers ask for. Default: the variable EDVIT_FLEET_TOKEN, if it is set.
            tls: Certificates; None: nothing is encrypted.
            keepalive_s: So often a worker that has a request is asked whether it is still there; None: never, for a
                server that takes this amiss.
            probe_pause_s: Between probes of devices for which another one stands in.

        Raises:
            EDViTError: An address is none, two devices have the same one, or the token cannot be sent.
            ManifestError: The placement cannot be read.
        """
        self.workers = check_workers(workers)
        self._placement = load_placement(Path(placement)) if isinstance(placement, (str, Path)) else placement
        token = os.environ.get(FLEET_TOKEN) if token is None else token
        self._token = None if token is None else check_token(token)
        self._options: dict[str, Any] = {"tls": tls, "keepalive_s": keepalive_s, "probe_pause_s": probe_pause_s}
        self._names = {address: name for name, address in self.workers.items()}
        self._links = {a: Link(a, token=self._token, tls=tls, keepalive_s=keepalive_s) for a in self._names}
        self._routes = Routes({})
        self._binding: Binding | None = None
        self._content_hash = ""
        self._prober: Prober | None = None
        self._calls: set[Call] = set()
        self._looked = 0.0  # when workers were asked what they have
        self._is_closed = False
        self._stop = weakref.finalize(self, close_links, list(self._links.values()))

    def again(self, placement: PlacementFile | str | Path | None = None) -> "OIPEngine":
        """An engine to the same workers that is bound to nothing yet: for another version of the ensemble."""
        return OIPEngine(self.workers, placement=placement, token=self._token, **self._options)

    @property
    def sub_models(self) -> Sequence[int]:
        """See `Engine`: all of the ensemble. Those that nobody has are missing as unavailable."""
        return self._routes.sub_models

    def bind(self, manifest: Manifest, transform: Transform) -> None:
        """Learn which version is asked for and how its inputs travel, and whom to ask: called by `from_pretrained`.

        Workers that cannot be reached now are found later. What they say about themselves that does not fit is logged.

        Raises:
            EDViTError: The engine is bound to another version, or the placement is of another ensemble or names other
                devices than there are workers.
        """
        version = manifest.ensemble.content_hash
        if self._content_hash not in ("", version):
            raise EDViTError(
                f"Expected an engine that is free or bound to version {version[:12]}..., got one bound to "
                f"{self._content_hash[:12]}.... Answers of two versions must not meet. Take `engine.again()`."
            )
        self._content_hash = version
        nobody: dict[int, Sequence[str]] = dict.fromkeys(range(len(manifest.sub_models)), ())
        placement = self._placement
        self._routes = Routes(nobody if placement is None else placed_routes(placement, self.workers, manifest))
        self._binding = Binding(self._links, self._routes, transform, preprocessing_hash(manifest))
        self._discover(_HANDSHAKE_SECONDS)
        pause_s = self._options["probe_pause_s"]
        self._prober = self._prober or Prober(self._routes, self._sign_of_life, pause_s=pause_s, name="edvit-oip")

    def submit(self, index: int, request: SubModelRequest, /) -> Future[SubModelResponse]:
        """See `Engine`."""
        self._bound()
        self._look_again()
        if not self._routes.order(index):
            raise self._nobody(index)
        call = Call(self._bound(), index, request)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        call.ask_next()
        return call

    def probe(self, index: int, /) -> Future[ProbeResponse]:
        """See `Engine`: the first endpoint that says that it is ready is a sign of life."""
        self._bound()
        order = self._routes.order(index)
        if not order:
            self._look_again(_SHORT_PAUSE_SECONDS)
            raise self._nobody(index)
        answer: Future[ProbeResponse] = Future()
        answer.set_running_or_notify_cancel()
        left, lock = [len(order)], threading.Lock()

        def arrived(endpoint: str, pending: Future[ProbeResponse]) -> None:
            error = pending.exception()
            if error is None:
                self._routes.answered(index, endpoint)
            with lock:
                left[0] -= 1
                if answer.done():
                    return
                if error is None:
                    answer.set_result(pending.result())
                elif left[0] == 0:
                    answer.set_exception(error)

        for endpoint in order:
            pending = self._sign_of_life(index, endpoint)
            pending.add_done_callback(lambda pending, endpoint=endpoint: arrived(endpoint, pending))  # type: ignore[misc]
        return answer

    def ready(self, seconds: float = _HANDSHAKE_SECONDS) -> frozenset[int]:
        """Sub-models of this version that some worker has and runs, asked now: for changing versions."""
        self._bound()
        if self._placement is None:
            self._discover(seconds)
        until = time.monotonic() + seconds
        pending = {i: self.probe(i) for i in self.sub_models if self._routes.order(i)}
        found = set()
        for index, each in pending.items():
            try:
                each.result(max(0.0, until - time.monotonic()))
                found.add(index)
            except Exception as error:  # it is not ready
                logger.info("sub-model %d is not ready: %s", index, error)
        return frozenset(found)

    def status(self) -> dict[str, object]:
        """See `Engine`; never a token."""
        return {
            "engine": "oip",
            "workers": dict(self.workers),
            "content_hash": self._content_hash,
            "routes": self._routes.status(),
        }

    def close(self) -> None:
        """See `Engine`."""
        self._is_closed = True
        for call in list(self._calls):
            call.cancel()
        if self._prober is not None:
            self._prober.close()
        self._stop()

    def _bound(self) -> Binding:
        if self._is_closed or self._binding is None:
            state = "closed" if self._is_closed else "not bound to any ensemble"
            raise UnavailableError(
                f"Expected an engine that is bound and open, got one that is {state}. Pass it to "
                "`EDViTRuntime.from_pretrained(..., engine=engine)`."
            )
        return self._binding

    def _nobody(self, index: int) -> UnavailableError:
        return UnavailableError(f"No worker of {', '.join(self.workers)} has sub-model {index} of this version.")

    def _look_again(self, pause_s: float = _LONG_PAUSE_SECONDS) -> None:
        """Ask workers that have nothing of this version, as far as is known, once more; without waiting."""
        if time.monotonic() - self._looked >= pause_s:
            self._discover(0.0)

    def _sign_of_life(self, index: int, endpoint: str) -> Future[ProbeResponse]:
        """Ask one endpoint whether it is ready to run one sub-model of this version."""
        answer: Future[ProbeResponse] = Future()
        answer.set_running_or_notify_cancel()
        version = self._content_hash

        def arrived(rpc: Any) -> None:
            try:
                is_ready = rpc.result().ready
            except BaseException as error:  # of grpc, which has many
                answer.set_exception(error_of(error, endpoint, index))
                return
            if is_ready:
                answer.set_result(ProbeResponse(sub_model=index, content_hash=version))
            else:
                answer.set_exception(UnavailableError(f"{endpoint} is not ready to run sub-model {index}."))

        self._links[endpoint].ready(model_name(version, index), _HANDSHAKE_SECONDS).add_done_callback(arrived)
        return answer

    def _discover(self, seconds: float) -> None:
        """Ask workers of which nothing is known what they have of this version; wait for it for so long at most.

        Answers that come later still add routes.
        """
        self._looked = time.monotonic()
        if self._placement is not None:
            return
        known = {address for index in self.sub_models for address in self._routes.order(index)}
        asked = []
        for address in [each for each in self._links if each not in known]:
            for index in self.sub_models:
                pending = self._sign_of_life(index, address)
                pending.add_done_callback(_found(self._routes, index, address, list(self._links)))
                asked.append((address, pending))
        done = wait([pending for _, pending in asked], seconds).done
        if not seconds:
            return
        for address in {address for address, _ in asked}:
            own = [pending for name, pending in asked if name == address]
            if all(pending not in done or pending.exception() is not None for pending in own):
                why = next((pending.exception() for pending in own if pending in done), "it does not answer")
                logger.warning("worker %s at %s has nothing to ask it for: %s", self._names[address], address, why)


def _found(routes: Routes, index: int, address: str, addresses: Sequence[str]) -> Callable[[Future[Any]], None]:
    def arrived(pending: Future[Any]) -> None:
        if pending.exception() is None:
            routes.add(index, address, addresses)

    return arrived
