# SPDX-License-Identifier: Apache-2.0
"""Checks every request before its body is read (host, origin, token, rate, line), and logs it."""

import asyncio
import logging
import traceback
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edvit_hf.serving.exposure import allowed_hosts, host_name, is_cross_origin
from edvit_hf.serving.proxies import Proxies
from edvit_hf.serving.refusals import RefusedError, escaped, internal, stopping
from edvit_hf.serving.service import RequestState, Service
from edvit_hf.serving.throttle import Rates, client_of
from edvit_hf.tokens import Tokens

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("edvit_hf.serving.access")

OPEN_PATHS = frozenset({"/", "/docs", "/health", "/ready", "/openapi.json"})
"""Without a token and a rate: they tell nothing about the ensemble, and cost nothing."""
_LONGEST_LOGGED = 100
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


class AdmissionMiddleware:
    """The outermost application. Whatever happens inside, a client gets our JSON and nothing of the inside."""

    def __init__(self, app: ASGIApp, service: Service, *, is_local: bool) -> None:
        self._app, self._service = app, service
        self._limits = service.config.limits
        self._hosts = allowed_hosts(service.config, is_local)
        self._tokens = Tokens(service.config.tokens)
        self._rates = Rates(self._limits.rate)
        self._proxies = Proxies(service.config.trusted_proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        state, status = RequestState(uuid.uuid4().hex), 0
        scope["edvit"] = state
        peer = (scope.get("client") or [None])[0]
        client = peer
        if self._proxies:
            forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
            client = self._proxies.client(peer, forwarded)
            scope["client"] = None if client is None else (client, 0)

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", state.request_id.encode()), *_HEADERS]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, tell)
        except RefusedError as refusal:
            await _refuse(refusal, state, tell)
        except asyncio.CancelledError:  # the grace period of a shutdown is over; uvicorn would log it as a fault
            state.result = "stopping"
            if not status:
                await _refuse(stopping(), state, tell)
        except Exception:
            logger.error("%s failed\n%s", state.request_id, "\n".join(map(escaped, traceback.format_exc().split("\n"))))
            if not status:
                await _refuse(internal(), state, tell)
            state.result = "internal"
        finally:
            self._service.metrics.count(state.result, is_predict=scope["path"] == "/predict")
            asked = (escaped(str(each)[:_LONGEST_LOGGED]) for each in (client or "-", scope["method"], scope["path"]))
            done = (status, state.result, state.milliseconds, state.request_id)
            access_logger.info("%s %s %s %d %s %.1f ms %s", *asked, *done)

    def _check(self, scope: Scope) -> None:
        """Raise a `RefusedError` for what goes no further."""
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > self._limits.max_header_bytes:
            raise RefusedError(431, "headers_too_large", "The headers are too long.", close=True)
        host, origin = _only(headers, b"host"), _only(headers, b"origin")
        if self._hosts is not None and host is not None and host_name(host) not in self._hosts:
            raise RefusedError(421, "wrong_host", "This server is not called by that name (see its --allowed-host).")
        if origin is not None and is_cross_origin(origin, host or ""):
            raise RefusedError(403, "cross_origin", "Pages of other sites may not ask here.")
        if scope["path"] not in OPEN_PATHS:
            self._check_client(scope, _only(headers, b"authorization"))
        if scope["path"] == "/predict" and scope["method"] == "POST":
            if self._service.is_stopping:
                raise stopping()
            self._service.line.arrive()

    def _check_client(self, scope: Scope, authorization: str | None) -> None:
        client: Any = client_of((scope.get("client") or [None])[0])
        token = self._tokens.find((authorization or "").encode("latin-1")) if self._tokens else -1
        wait = self._rates.take((client, token))  # None: whoever guesses tokens has a bucket of their own
        if wait is not None:
            message = "This client asks too often. Ask again later, and less often."
            raise RefusedError(429, "too_many_requests", message, retry_after_ms=1e3 * wait)
        if token is None:
            message = "A valid token is needed: send the header `Authorization: Bearer TOKEN`."
            raise RefusedError(401, "unauthorized", message, headers={"www-authenticate": "Bearer"})


async def _refuse(refusal: RefusedError, state: RequestState, send: Send) -> None:
    state.result = refusal.code
    headers, body = refusal.raw(state.request_id)
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """The value of a header that may be there once; two would be understood differently by others on the way."""
    found = [value.decode("latin-1") for key, value in headers if key == name]
    if len(found) > 1:
        raise RefusedError(400, "bad_request", f"The header {name.decode()} is sent twice.", close=True)
    return found[0] if found else None
