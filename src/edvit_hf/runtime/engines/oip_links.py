# SPDX-License-Identifier: Apache-2.0
"""Connections of the Open Inference Protocol's engine: channels, tokens, certificates, and what errors of gRPC mean."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf import __version__
from edvit_hf.errors import DataError, EDViTError, named_extra
from edvit_hf.runtime.engines import LateError, UnavailableError, VersionError
from edvit_hf.runtime.engines.oip_wire import DATATYPES, MAX_MESSAGE_BYTES, PLATFORM, REASON_KEY, TOKEN_KEY, Packed

with named_extra("The Open Inference Protocol", "oip"):
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS, _CONNECT_MS = 100, 1000, 2000
_KEEPALIVE_TIMEOUT_MS = 1000
_LONGEST_TOLD = 200


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """PEM files: whose certificates are trusted, and what to show a server that asks for a certificate.

    Attributes:
        ca: Of the authority that signed the workers' certificates; None: those that the system trusts.
        cert: Own certificate chain; with `key`.
        key: Its private key.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> Any:
        """Of gRPC.

        Raises:
            EDViTError: A file cannot be read, or one of certificate and key is missing.
        """
        if (self.cert is None) != (self.key is None):
            raise EDViTError(
                "Expected a certificate and its private key, got one without the other. No worker that asks for a "
                "certificate could be reached. Give both (--tls-cert, --tls-key) or neither."
            )
        try:
            ca, key, cert = (None if f is None else Path(f).read_bytes() for f in (self.ca, self.key, self.cert))
        except OSError as error:
            raise EDViTError(
                f"Expected readable PEM files, got {error.filename} ({error.strerror}). No worker could be reached. "
                "Correct the path, or its permissions."
            ) from error
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


class Sent(Future[Any]):
    """A call that the link's own thread makes: what came of it, as gRPC told it. Cancelling it ends the call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self._make = make
        self._rpc: Any = None

    def go(self) -> None:
        """Make the call; never raises."""
        if self.done():
            return
        try:
            self._rpc = self._make()
        except Exception as error:  # such as a channel that was closed
            self._settle(error=error)
            return
        if self.cancelled():  # while it was made
            self._rpc.cancel()
        self._rpc.add_done_callback(self._ended)

    def cancel(self) -> bool:
        """See `Future`: what is on its way is given up too."""
        is_cancelled = super().cancel()
        rpc = self._rpc
        if rpc is not None:
            rpc.cancel()
        return is_cancelled

    def _ended(self, rpc: Any) -> None:
        try:
            result = rpc.result()
        except BaseException as error:  # of grpc, which has many
            self._settle(error=error)
        else:
            self._settle(result)

    def _settle(self, result: Any = None, error: BaseException | None = None) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)


class Link:
    """The connection to one worker. It is made when it is first used, and again whenever it was lost.

    Calls are made by a thread of the link's own: on a channel without an open call gRPC's client starts a thread and
    waits until it runs, which on a busy machine takes up to a second, and who submits a request must not wait.

    Attributes:
        served: By name of a model, what the worker said of it.
    """

    def __init__(
        self, address: str, *, token: str | None, tls: ClientTls | None, keepalive_s: float | None = None
    ) -> None:
        options: list[tuple[str, int]] = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", _FIRST_PAUSE_MS),
            ("grpc.max_reconnect_backoff_ms", _LONGEST_PAUSE_MS),
            ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
            ("grpc.enable_http_proxy", 0),  # devices are near; a proxy of the environment is for something else
            ("grpc.use_local_subchannel_pool", 1),  # a link that was closed takes none of another engine's with it
        ]
        if keepalive_s is not None:
            options += [
                ("grpc.keepalive_time_ms", int(1e3 * keepalive_s)),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
                ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),  # by default a minute, whatever stands above
            ]
        self._channel = (
            grpc.insecure_channel(address, options)
            if tls is None
            else grpc.secure_channel(address, tls.credentials(), options)
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = () if token is None else ((TOKEN_KEY, f"Bearer {token}"),)
        self.served: dict[str, Served] = {}
        self._caller = ThreadPoolExecutor(1, "edvit-oip-link")
        self._caller.submit(int).result()  # its thread runs from now on

    def infer(self, request: Any, seconds: float | None) -> Sent:
        """Send a `ModelInferRequest`; without waiting."""
        return self._send(self._stub.ModelInfer, request, seconds)

    def metadata(self, name: str, seconds: float | None) -> Sent:
        """Ask what a model takes; without waiting."""
        return self._send(self._stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=name), seconds)

    def ready(self, name: str, seconds: float | None) -> Sent:
        """Ask whether a model is ready; without waiting."""
        return self._send(self._stub.ModelReady, service_pb2.ModelReadyRequest(name=name), seconds)

    def close(self) -> None:
        """End the connection, and what is on its way."""
        self._caller.shutdown(wait=False)
        self._channel.close()

    def _send(self, method: Any, request: Any, seconds: float | None) -> Sent:
        until = None if seconds is None else time.monotonic() + seconds

        def make() -> Any:
            left = None if until is None else max(0.0, until - time.monotonic())
            return method.future(request, timeout=left, metadata=self._metadata)

        sent = Sent(make)
        try:
            self._caller.submit(sent.go)
        except RuntimeError:
            sent.set_exception(UnavailableError("The connection was closed."))
        return sent


def close_links(links: Iterable[Link]) -> None:
    """Close every link."""
    for link in links:
        link.close()


@dataclass(frozen=True)
class Served:
    """What a server says of one model.

    Attributes:
        key: Names and datatypes of its inputs.
        package: Version of edvit_hf that serves it; None: another server.
    """

    key: str
    package: str | None

    @classmethod
    def of(cls, message: Any, endpoint: str) -> "Served":
        """Read a `ModelMetadataResponse`.

        Raises:
            EDViTError: The model takes what no ensemble's sub-model takes.
        """
        types = {each.name: each.datatype for each in message.inputs}
        if not types or any(datatype not in DATATYPES for datatype in types.values()):
            raise EDViTError(
                f"Expected a model at {endpoint} that takes {', '.join(DATATYPES)}, got {_told(types)}. It is no "
                "sub-model of an ensemble. Correct the worker's address."
            )
        ours, _, version = message.platform.partition(" ")
        return cls(",".join(f"{n}:{t}" for n, t in sorted(types.items())), version if ours == PLATFORM else None)

    def packed(
        self, prepared: Mapping[str, np.ndarray], travelling: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, Packed]:
        """Inputs in the types that the server asks for, as far as that loses nothing.

        Args:
            prepared: By name.
            travelling: Gives what is sent to servers that take it.
        """
        types = {name: DATATYPES[datatype] for name, datatype in (each.split(":") for each in self.key.split(","))}
        compact = travelling() if any(t in ("uint8", "int32") for t in types.values()) else prepared
        return {
            name: Packed.of(compact[name] if compact[name].dtype.name == types.get(name) else values)
            for name, values in prepared.items()
        }


def same_release(package: str | None, endpoint: str | None) -> None:
    """Refuse a worker of ours of another release: what `1.4` means by a message, `1.5` may not.

    Raises:
        VersionError: With both versions.
    """
    if package is not None and package.split(".")[:2] != __version__.split(".")[:2]:
        raise VersionError(
            f"Expected a worker at {endpoint} with edvit_hf {__version__}, as on this machine, got one with "
            f"{_told(package)}. They may not mean the same by a message. Install the same version on both."
        )


def error_of(cause: BaseException, endpoint: str, index: int) -> EDViTError:
    """What an error of a call to `endpoint` says about sub-model `index`, as an engine's error."""
    if isinstance(cause, EDViTError):
        return cause
    if not isinstance(cause, grpc.RpcError) or not hasattr(cause, "code"):
        if isinstance(cause, (grpc.FutureCancelledError, CancelledError)):
            return LateError(f"The call to {endpoint} was given up.")
        if isinstance(cause, ValueError):  # gRPC's word for a channel that was closed
            return UnavailableError(f"{endpoint}: {cause}")
        return EDViTError(f"{endpoint} could not be asked for sub-model {index}: {type(cause).__name__}: {cause}")
    code, told = cause.code(), _told(cause.details())
    reasons = [value for key, value in cause.trailing_metadata() or () if key == REASON_KEY]
    lead = f"Expected sub-model {index} from {endpoint}, got {code.name}: {told}."
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return LateError(lead)
    if code is grpc.StatusCode.NOT_FOUND and reasons != ["not held"]:
        return VersionError(f"{lead} It has another version, or not this sub-model. Fetch its share again: edvit pull.")
    if code is grpc.StatusCode.INVALID_ARGUMENT and reasons == ["input"]:
        return DataError(f"{lead} No sub-model can answer for such an input.")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return UnavailableError(f"{lead} Give the worker's token: --token-file, or the variable EDVIT_FLEET_TOKEN.")
    return UnavailableError(lead) if code in _GONE else EDViTError(lead)


_GONE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.CANCELLED,
}


def _told(text: object) -> str:
    """What another machine says, cut and with nothing in it that a terminal would obey."""
    return ascii(str(text))[1:-1][:_LONGEST_TOLD]
