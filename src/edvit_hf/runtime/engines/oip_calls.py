# SPDX-License-Identifier: Apache-2.0
"""One request to one sub-model over the Open Inference Protocol: from endpoint to endpoint until one answers."""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import numpy as np

from edvit_hf.errors import DataError, EDViTError, named_extra
from edvit_hf.runtime.engines import LateError, SubModelRequest, SubModelResponse, UnavailableError, VersionError
from edvit_hf.runtime.engines.oip_links import Link, Served, error_of, same_release
from edvit_hf.runtime.engines.oip_wire import NamedModel, Packed, model_name, parameter, put, taken
from edvit_hf.runtime.engines.routes import Routes
from edvit_hf.transforms import Transform
from edvit_hf.transforms.travelling import travelling

with named_extra("The Open Inference Protocol", "oip"):
    from tritonclient.grpc import service_pb2

_PACKED_KEPT = 4  # requests whose bytes are at hand: a coordinator has few at a time
_MOSTLY = 0.8  # of its budget: who is cancelled later than that was late


class Binding:
    """What all requests of an engine share: connections, routes, and inputs that are packed once for all of them.

    Attributes:
        links: By endpoint.
        routes: Whom to ask.
        preprocessing: See `runtime.device.preprocessing_hash`.
    """

    def __init__(self, links: Mapping[str, Link], routes: Routes, transform: Transform, preprocessing: str) -> None:
        self.links, self.routes, self.preprocessing = links, routes, preprocessing
        self._transform = transform
        self._packed: OrderedDict[tuple[str, str], dict[str, Packed]] = OrderedDict()
        self._packing = threading.Lock()

    def packed(self, request: SubModelRequest, served: Served) -> dict[str, Packed]:
        """The request's inputs as they are sent to a server that asks for these types."""
        key = (request.request_id, served.key)
        with self._packing:
            found = self._packed.get(key)
            if found is None:
                found = served.packed(request.inputs, lambda: travelling(self._transform, request.inputs))
                self._packed[key] = found
                while len(self._packed) > _PACKED_KEPT:
                    self._packed.popitem(last=False)
        return found


class Call(Future[SubModelResponse]):
    """One request to one sub-model: asks one endpoint after the other until one answers or the budget is over."""

    def __init__(self, binding: Binding, index: int, request: SubModelRequest) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self._binding, self._index, self._request = binding, index, request
        self._begin = self._sent = time.monotonic()
        self._endpoints = iter(binding.routes.order(index))
        self._endpoint: str | None = None
        self._errors: list[EDViTError] = []
        self._rpc: Any = None

    def ask_next(self) -> None:
        """Go on with the next endpoint, or end with what went wrong."""
        self._endpoint = next(self._endpoints, None)
        if self._endpoint is None:
            self._end(error=worst(self._errors))
            return
        left = self._seconds_left()
        if left is not None and left <= 0:
            self._end(error=LateError(f"No time was left to ask {self._endpoint} for sub-model {self._index}."))
            return
        link, name = self._binding.links[self._endpoint], self._name
        served = link.served.get(name)
        if served is None:
            self._follow(link.metadata(name, left), self._described)
        else:
            self._send(served)

    def cancel(self) -> bool:
        """See `Pending`: what was sent was begun."""
        budget, rpc = self._request.budget_ms, self._rpc
        waited_ms = 1e3 * (time.monotonic() - self._begin)
        if not self.done() and self._endpoint is not None and budget is not None and waited_ms >= _MOSTLY * budget:
            self._binding.routes.missed(self._index, self._endpoint)
        self._end(error=LateError(f"Nobody waits for sub-model {self._index} any more."))
        if rpc is not None:
            rpc.cancel()
        return False

    @property
    def _name(self) -> str:
        return model_name(self._request.content_hash, self._index)

    def _seconds_left(self) -> float | None:
        budget = self._request.budget_ms
        return None if budget is None else budget / 1e3 - (time.monotonic() - self._begin)

    def _follow(self, rpc: Any, call: Any) -> None:
        self._rpc = rpc
        rpc.add_done_callback(call)

    def _described(self, rpc: Any) -> None:
        """The server has told in which types it wants the inputs."""
        assert self._endpoint is not None
        try:
            served = Served.of(rpc.result(), self._endpoint)
        except BaseException as error:  # of grpc, which has many
            self._failed(error)
            return
        self._binding.links[self._endpoint].served[self._name] = served
        self._send(served)

    def _send(self, served: Served) -> None:
        if self.done():
            return
        try:
            same_release(served.package, self._endpoint)
            request = service_pb2.ModelInferRequest(model_name=self._name, id=self._request.request_id)
            put(request.inputs, request.raw_input_contents, self._binding.packed(self._request, served))
            for name in ("features", "logits"):
                request.outputs.add().name = name
            self._sent = time.monotonic()
            link = self._binding.links[str(self._endpoint)]
            self._follow(link.infer(request, self._seconds_left()), self._arrived)
        except Exception as error:  # must cost this endpoint, not the request
            self._failed(error)

    def _arrived(self, rpc: Any) -> None:
        assert self._endpoint is not None
        try:
            response = self._response(rpc.result())
        except BaseException as error:  # of grpc, which has many
            self._failed(error)
            return
        self._binding.routes.answered(self._index, self._endpoint)
        self._end(response)

    def _response(self, message: Any) -> SubModelResponse:
        told = {name: parameter(message.parameters, name) for name in _TOLD}
        binding, named = self._binding, NamedModel.parse(message.model_name)
        same_release(told["package"], self._endpoint)
        if told["preprocessing"] not in (None, binding.preprocessing):
            raise VersionError(
                f"Expected {self._endpoint} to prepare inputs as this machine does, got another processor. It would "
                "see other pixels or words. Fetch the same version everywhere: edvit pull."
            )
        # A server that is not ours says who it is by the name of its model alone.
        is_ours = named is None or named.is_of(self._request.content_hash)
        content_hash = told["content_hash"] or (self._request.content_hash if is_ours else named and named.version)
        index = told["sub_model"] if told["sub_model"] is not None else self._index if named is None else named.index
        outputs = taken(message.outputs, message.raw_output_contents)
        if not {"features", "logits"} <= outputs.keys():
            raise EDViTError(f"Expected features and logits from {self._endpoint}, got {', '.join(outputs) or 'none'}.")
        elapsed_ms = 1e3 * (time.monotonic() - self._sent)
        return SubModelResponse(
            request_id=message.id or self._request.request_id,
            sub_model=int(index),
            content_hash=str(content_hash),
            features=np.asarray(outputs["features"], np.float32),
            logits=np.asarray(outputs["logits"], np.float32),
            compute_ms=float(elapsed_ms if told["compute_ms"] is None else told["compute_ms"]),
        )

    def _failed(self, cause: BaseException) -> None:
        """Note what went wrong at this endpoint, and ask the next one unless that is of no use."""
        endpoint = str(self._endpoint)
        error = error_of(cause, endpoint, self._index)
        if self.done():
            return
        if isinstance(error, LateError):
            self._binding.routes.missed(self._index, endpoint)
        elif not isinstance(error, DataError):
            self._binding.links[endpoint].served.pop(self._name, None)  # what comes back there may be another server
            self._binding.routes.failed(self._index, endpoint, error)
            self._errors.append(error)
            self.ask_next()
            return
        self._end(error=error)

    def _end(self, response: SubModelResponse | None = None, error: EDViTError | None = None) -> None:
        """The first end counts: an answer and a cancellation may come at once, from two threads."""
        with contextlib.suppress(InvalidStateError):
            if response is not None:
                self.set_result(response)
            else:
                self.set_exception(error)


_TOLD = ("sub_model", "content_hash", "preprocessing", "package", "compute_ms")


def worst(errors: Sequence[EDViTError]) -> EDViTError:
    """What to tell where every endpoint failed: another version before a failure, a failure before silence."""

    def rank(error: EDViTError) -> int:
        return 0 if isinstance(error, VersionError) else 2 if isinstance(error, UnavailableError) else 1

    return min(errors, key=rank, default=UnavailableError("Nobody has this sub-model."))
