# SPDX-License-Identifier: Apache-2.0
"""What `edvit worker` runs on a device: an Open Inference Protocol server for the sub-models of its share.

No server library that we know of can do it on a small board: KServe's and MLServer's need pandas, and listen on all
addresses without TLS on gRPC; Triton and OpenVINO Model Server are containers. So this is the thinnest front on
grpcio's own server, which checks tokens and certificates, with the messages of the public .proto as `tritonclient`
carries them.

Several shares may be given: versions of an ensemble stand side by side under names of their own, so that a coordinator
can change over when enough devices have the new one.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf import __version__
from edvit_hf.errors import DataError, EDViTError, named_extra
from edvit_hf.fleet.exposure import ListenConfig, listening_credentials, parse_address
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.engines import LateError, UnavailableError, VersionError
from edvit_hf.runtime.engines.oip_wire import (
    DATATYPE_OF,
    MAX_MESSAGE_BYTES,
    PLATFORM,
    REASON_KEY,
    TOKEN_KEY,
    NamedModel,
    Packed,
    model_name,
    put,
    taken,
)
from edvit_hf.tokens import Tokens

with named_extra("`edvit worker`", "oip"):
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

logger = logging.getLogger(__name__)

_THREADS = 8  # that wait for runs; the runs themselves share the cores as the schedule says
_MOST_AT_A_TIME = 32  # one more is turned away at once
_PINGS_MS = 500  # so often a coordinator may ask whether this worker is still there
_NO_DEADLINE_SECONDS = 1e7  # what gRPC tells where a client set none is more
_HASH_TOLD = 12


class Worker:
    """A server for what shares hold. `start` listens, `reload` opens the shares again, `stop` ends.

    Attributes:
        counts: Answers and refusals since the start, by kind.
    """

    def __init__(self, open_share: Callable[[Path], DeviceHost], shares: Sequence[Path], config: ListenConfig) -> None:
        """Open every share.

        Args:
            open_share: Loads one, see `DeviceHost.load`.
            shares: Folders, of the same or of several versions of an ensemble.
            config: Where to listen, and who may ask.

        Raises:
            EDViTError: What `open_share` raises, two shares hold the same sub-model of one version, or others could
                reach the worker without a token.
        """
        config.check()
        self.config, self.counts = config, Counter[str]()
        self._open, self._shares = open_share, tuple(shares)
        self._lock = threading.Lock()
        self._models = _Models.of([open_share(share) for share in self._shares])
        self._server: Any = None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it answers for."""
        return tuple(self._models.hosts)

    def start(self) -> int:
        """Listen, and return the port.

        Raises:
            EDViTError: The address cannot be bound, or the certificates do not fit.
        """
        credentials = listening_credentials(self.config)
        options = [
            ("grpc.so_reuseport", 0),  # or a second worker would get half of the requests
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.http2.min_ping_interval_without_data_ms", _PINGS_MS),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="edvit-worker")
        interceptors = [_TokenCheck(Tokens(self.config.tokens), self._count)] if self.config.tokens else []
        server = grpc.server(pool, interceptors=interceptors, options=options, maximum_concurrent_rpcs=_MOST_AT_A_TIME)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(self), server)
        host, port = parse_address(self.config.listen)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = (
                server.add_insecure_port(address)
                if credentials is None
                else server.add_secure_port(address, credentials)
            )
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise EDViTError(
                f"Expected a free address of this machine and certificates that fit, got {self.config.listen}. Nobody "
                "could reach the worker. Stop what listens there, or choose another --listen; check --tls-cert and "
                "--tls-key."
            )
        server.start()
        self._server = server
        return int(bound)

    def reload(self) -> None:
        """Open the shares again, and answer for what they hold now and for what they held before.

        A share that cannot be opened changes nothing: the error is logged. What was held two loads ago is closed.
        """
        with self._lock:
            try:
                fresh = _Models.of([self._open(share) for share in self._shares])
            except EDViTError as error:
                logger.error("the shares are not loaded again: %s", error)
                return
            former, self._models = self._models, fresh.beside(self._models)
            former.close(keep=self._models)
            logger.info("loaded again: %s", ", ".join(self.models))

    def stop(self, grace_seconds: float = 0.0) -> None:
        """Take no more requests, let those that run end within the grace period, and free the sub-models."""
        if self._server is not None:
            self._server.stop(grace_seconds).wait()
        self._models.close()

    def describe(self) -> list[str]:
        """Who this is, a line for each version."""
        return [
            f"sub-model{'s' * (len(host.identity.sub_models) > 1)} {', '.join(map(str, host.identity.sub_models))} of "
            f"{host.identity.ensemble_id}, version {host.identity.content_hash[:_HASH_TOLD]}"
            for host in self._models.each
        ]

    def find(self, name: str) -> tuple[DeviceHost, int]:
        """Who runs the model of that name.

        Raises:
            VersionError: This worker has other versions only.
            UnavailableError: It has the version, but not the sub-model.
        """
        named, models = NamedModel.parse(name), self._models
        host = models.hosts.get(name)
        if host is not None and named is not None:
            return host, named.index
        own = ", ".join(models.hosts)
        if named is not None and any(named.is_of(each.identity.content_hash) for each in models.each):
            raise UnavailableError(f"This worker has {own}.")
        raise VersionError(f"This worker has {own}.")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


@dataclass(frozen=True)
class _Models:
    """Hosts by the names of the models that they run. Replaced whole: a request sees one state."""

    each: tuple[DeviceHost, ...]
    hosts: dict[str, DeviceHost] = field(default_factory=dict)
    former: tuple[DeviceHost, ...] = ()

    @classmethod
    def of(cls, each: Sequence[DeviceHost]) -> "_Models":
        hosts: dict[str, DeviceHost] = {}
        for host in each:
            for index in host.identity.sub_models:
                name = model_name(host.identity.content_hash, index)
                if name in hosts:
                    raise EDViTError(
                        f"Expected each sub-model of a version in one share, got sub-model {index} of version "
                        f"{host.identity.content_hash[:_HASH_TOLD]}... in two. Which file is to answer is unknown. "
                        "Leave one of the shares out."
                    )
                hosts[name] = host
        return cls(tuple(each), hosts)

    def beside(self, before: "_Models") -> "_Models":
        """These, and of those before them what has another version; what those themselves had kept is let go."""
        versions = {host.identity.content_hash for host in self.each}
        fresh_before = [host for host in before.each if host not in before.former]
        kept = tuple(host for host in fresh_before if host.identity.content_hash not in versions)
        both = _Models.of([*self.each, *kept])
        return _Models(both.each, both.hosts, kept)

    def close(self, keep: "_Models | None" = None) -> None:
        """Free the hosts, but not those that others still hold."""
        for host in self.each:
            if keep is None or host not in keep.each:
                host.close()


class _TokenCheck(grpc.ServerInterceptor):
    """Turns away whoever shows no token of ours, before a message is read."""

    def __init__(self, tokens: Tokens, count: Callable[[str], None]) -> None:
        self._tokens, self._count = tokens, count
        self._refusal = grpc.unary_unary_rpc_method_handler(self._refuse)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """See `grpc.ServerInterceptor`."""
        shown = [value for key, value in details.invocation_metadata if key == TOKEN_KEY]
        header = shown[0] if len(shown) == 1 else ""
        if self._tokens.find(header if isinstance(header, bytes) else header.encode()) is None:
            self._count("refused")
            return self._refusal
        return continuation(details)

    def _refuse(self, _: Any, context: Any) -> None:
        logger.warning("refused a request without a right token from %s", context.peer())
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token of this worker is asked for")


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol's calls. What is told to clients names no paths, and nothing of what went wrong inside."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See the protocol."""
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See the protocol."""
        return service_pb2.ServerReadyResponse(ready=True)

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See the protocol: the extensions are the names of the models."""
        models = self._worker.models
        return service_pb2.ServerMetadataResponse(name=PLATFORM, version=__version__, extensions=models)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See the protocol: a whole run on an empty input."""
        try:
            host, index = self._worker.find(request.name)
            host.probe(index)
        except EDViTError as error:
            logger.info("%.80r is not ready: %s", request.name, error)
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See the protocol."""
        host, index = self._found(request.name, context)
        identity, entry = host.identity, host.manifest.sub_models[index]
        message = service_pb2.ModelMetadataResponse(
            name=request.name, versions=["1"], platform=f"{PLATFORM} {identity.package}"
        )
        for name, kind in identity.inputs.items():
            shape = [-1, *(-1 if size is None else size for size in host.input_shape)]
            message.inputs.add(name=name, datatype=DATATYPE_OF[kind], shape=shape)
        message.outputs.add(name="features", datatype="FP32", shape=[-1, entry.feature_size])
        message.outputs.add(name="logits", datatype="FP32", shape=[-1, host.manifest.vote_sizes[index]])
        return message

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See the protocol."""
        host, index = self._found(request.model_name, context)
        identity, seconds = host.identity, context.time_remaining()
        try:
            inputs = taken(request.inputs, request.raw_input_contents)
            budget_ms = None if seconds is None or seconds > _NO_DEADLINE_SECONDS else 1e3 * seconds
            answer = host.run(index, identity.content_hash, request.id, inputs, budget_ms)
        except DataError as error:
            self._abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error), "input")
        except LateError as error:
            self._abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, str(error), "late")
        except UnavailableError as error:
            self._abort(context, grpc.StatusCode.UNAVAILABLE, str(error), "closed")
        except Exception:  # the trace stays here
            logger.exception("sub-model %d failed", index)
            self._abort(context, grpc.StatusCode.INTERNAL, f"sub-model {index} failed", "failed")
        self._worker._count("answered")
        message = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        put(
            message.outputs,
            message.raw_output_contents,
            {"features": Packed.of(answer.features), "logits": Packed.of(answer.logits)},
        )
        told = {"content_hash": answer.content_hash, "preprocessing": identity.preprocessing}
        for name, value in {**told, "package": identity.package}.items():
            message.parameters[name].string_param = value
        message.parameters["sub_model"].int64_param = answer.sub_model
        message.parameters["compute_ms"].double_param = answer.compute_ms
        return message

    def _found(self, name: str, context: Any) -> tuple[DeviceHost, int]:
        try:
            return self._worker.find(name)
        except EDViTError as error:
            kind = "version" if isinstance(error, VersionError) else "not held"
            raise self._abort(context, grpc.StatusCode.NOT_FOUND, str(error), kind) from error

    def _abort(self, context: Any, code: Any, told: str, reason: str) -> BaseException:
        """Never returns: gRPC's own exception ends the call."""
        self._worker._count(reason)
        context.set_trailing_metadata(((REASON_KEY, reason),))
        context.abort(code, told)
        return AssertionError("unreachable")
