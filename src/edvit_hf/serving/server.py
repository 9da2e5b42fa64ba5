# SPDX-License-Identifier: Apache-2.0
"""Runs the server: binds its address, loads the ensemble, answers, and stops without losing what is in flight."""

import contextlib
import logging
import math
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from edvit_hf.errors import EDViTError
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.serving.app import create_app
from edvit_hf.serving.connections import guarded_protocol
from edvit_hf.serving.exposure import callable_name, check_tls, open_socket
from edvit_hf.serving.limits import ServeConfig
from edvit_hf.serving.service import Service

logger = logging.getLogger(__name__)

_PATIENCE_S = 2.0  # for threads, after the grace period


def serve(
    load: Callable[[], EDViTRuntime], config: ServeConfig, *, on_listening: Callable[[str, Service], None] | None = None
) -> bool:
    """Serve until SIGTERM, SIGINT or SIGHUP. Blocks; call it from the main thread.

    The first signal stops new connections and lets requests in flight end within `grace_seconds`; a second one does
    not wait for them.

    Args:
        load: Makes the runtime, after everything that can be wrong with addresses, tokens and certificates was checked.
            The runtime is closed at the end.
        config: Where and how.
        on_listening: Called with the address once requests are answered.

    Returns:
        Whether everything has ended. False: threads are still at work, and an ordinary exit would wait for them.

    Raises:
        EDViTError: See `open_socket`, `check_tls`, `Service`, and what `load` raises.
    """
    check_tls(config)
    listening, is_local = open_socket(config)
    with listening, load() as runtime:
        service = Service(runtime, config)
        server: _Server | None = None
        try:
            server = _Server(_uvicorn_config(config, service, is_local), service, on_listening)
            service.warm_up()
            server.run(sockets=[listening])
        finally:
            is_forced = server is not None and server.force_exit
            has_ended = service.close(0.0 if is_forced else _PATIENCE_S)
    return has_ended


class _Server(uvicorn.Server):
    """uvicorn's server, but a stop is no failure, and the second signal stops at once whichever it is."""

    def __init__(
        self, config: uvicorn.Config, service: Service, on_listening: Callable[[str, Service], None] | None
    ) -> None:
        super().__init__(config)
        self._service, self._on_listening = service, on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        try:
            await super().startup(sockets=sockets)
        except OSError as error:  # somebody else began to listen there while the ensemble was loaded
            raise EDViTError(
                f"Expected a free address, got one that is taken now ({error.strerror}). Nobody could reach the "
                "server. Stop what listens there, or choose another --port."
            ) from error
        if self._on_listening is not None and sockets:
            host, port = sockets[0].getsockname()[:2]
            name = callable_name(host, self._service.config.allowed_hosts)
            self._on_listening(f"{'https' if self.config.is_ssl else 'http'}://{name}:{port}", self._service)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See `uvicorn.Server`; a terminal that is closed stops like SIGTERM, unless hang-ups are ignored (nohup)."""
        with super().capture_signals():
            hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
            is_main = threading.current_thread() is threading.main_thread()
            former = signal.SIG_IGN if hang_up is None or not is_main else signal.getsignal(hang_up)
            if hang_up is None or former in (signal.SIG_IGN, None):  # None: not of Python, it could not be put back
                yield
                return
            signal.signal(hang_up, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(hang_up, former)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; uvicorn's own would raise it again at the end, and the exit code would be its number."""
        told = "stopping at once" if self.should_exit else "requests in flight are finished; once more stops at once"
        logger.info("%s: %s", signal.Signals(sig).name, told)
        self.force_exit = self.should_exit
        self.should_exit = True
        self._service.is_stopping = True


def _uvicorn_config(config: ServeConfig, service: Service, is_local: bool) -> uvicorn.Config:
    limits = config.limits
    client_ca = config.tls_client_ca
    return uvicorn.Config(
        create_app(service, is_local=is_local),
        http=guarded_protocol(limits),
        loop="asyncio",
        ws="none",
        lifespan="off",
        server_header=False,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # the admission reads them, from their other end
        h11_max_incomplete_event_size=limits.max_header_bytes,
        timeout_graceful_shutdown=math.ceil(config.grace_seconds),
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
        ssl_ca_certs=None if client_ca is None else str(client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if client_ca is None else ssl.CERT_REQUIRED,
    )
