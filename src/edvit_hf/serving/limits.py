# SPDX-License-Identifier: Apache-2.0
"""What a server allows: of each request, of each client, and of all of them together."""

import ipaddress
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf.errors import EDViTError

MIB = 2**20
_LARGEST = sys.float_info.max  # a whole number may exceed it, and no timer takes that
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that is taken from one request, one client, and all clients together.

    Attributes:
        max_bytes: Of a request's body, checked while it arrives.
        max_pixels: Of an image, checked in its header before it is decoded.
        max_seconds: Of a sound, checked in its header where that tells.
        max_characters: Of a text.
        decode_seconds: To read an image, a sound or a text, wall clock; the process that takes longer is ended.
        rate: Requests a second from one client, twice as many at once; 0: any number.
        send_seconds: Time to send the headers, then the body, and to read the reply.
        max_connections: Open at a time.
        max_header_bytes: Of all headers together.
        max_held_bytes: Of all bodies that are held at a time.
    """

    max_bytes: int = 10 * MIB
    max_pixels: int = 25_000_000
    max_seconds: float = 300.0
    max_characters: int = 100_000
    decode_seconds: float = 10.0
    rate: float = 100.0
    send_seconds: float = 10.0
    max_connections: int = 128
    max_header_bytes: int = 16 * 1024
    max_held_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        """Check ranges."""
        wrong = [
            name
            for name, value in vars(self).items()
            if not ((0 < value <= _LARGEST) or (name == "rate" and value == 0))
        ]
        if self.max_held_bytes < self.max_bytes:
            wrong.append("max_held_bytes")
        if wrong:
            raise EDViTError(
                f"Expected limits above zero (`rate` may be 0: any number; `max_held_bytes` is at least `max_bytes`), "
                f"got {_told(vars(self), wrong)}. No request could be answered, or "
                "no limit would hold. Correct them."
            )


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where and how to serve.

    Attributes:
        host: Address or name to listen on.
        port: 0: any that is free.
        tokens: Whoever asks must show one of these; none given: nobody is asked.
        tls_cert: Certificate chain, PEM.
        tls_key: Its private key, PEM, without a password; None: it is in `tls_cert`.
        tls_client_ca: Clients must show a certificate signed by one of these, PEM.
        allowed_hosts: Further names by which clients may call this server (its `Host` header).
        trusted_proxies: Addresses and networks whose `X-Forwarded-For` is believed; `*` alone: anybody's.
        deadline_ms: Answer without sub-models that take longer, counted from the prepared input. None: ten times what
            an answer takes at the start, at least a second. Decoding is bounded by `limits` and by the line.
        max_queued: Requests that may wait for their turn, of a burst. Under lasting overload nobody waits.
        grace_seconds: Time for requests in flight after a signal to stop.
        decode_in_process: Read inputs in this process instead of in processes of their own. What hangs or crashes a
            reader then hangs or crashes the server: only where nobody strange can ask.
        limits: See `Limits`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[str, ...] = field(default=(), repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    deadline_ms: float | None = None
    max_queued: int = 4
    grace_seconds: float = 10.0
    decode_in_process: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check ranges, names and addresses, and that the parts of TLS are complete."""
        wrong = [] if self.deadline_ms is None or 0 < self.deadline_ms <= _LARGEST else ["deadline_ms"]
        wrong += [] if 0 <= self.max_queued <= 1000 else ["max_queued"]
        wrong += [] if 0 <= self.grace_seconds <= _LARGEST else ["grace_seconds"]
        wrong += [] if 0 <= self.port < 65536 else ["port"]
        if wrong:
            raise EDViTError(
                f"Expected a positive deadline, a line of 0..1000, a grace period of at least 0 s and a port of "
                f"0..65535, got {_told(vars(self), wrong)}. The server could not "
                "work with them. Correct them, or leave them out for the defaults."
            )
        if self.tls_cert is None and (self.tls_key is not None or self.tls_client_ca is not None):
            raise EDViTError(
                "Expected a TLS certificate, got a key or a client CA without one. Nothing would be encrypted. Give "
                "--tls-cert FILE too."
            )
        for name in self.allowed_hosts:
            _check_name(name)
        for proxy in self.trusted_proxies:
            _check_proxy(proxy, self.trusted_proxies)


def _told(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={str(values[name])[:60]}" for name in names)


def _check_name(name: str) -> None:
    """Refuse what no `Host` header could be: the server would look open to that name, and answer nobody by it."""
    if _HOST_NAME.fullmatch(name):
        return
    try:
        ipaddress.IPv6Address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        raise EDViTError(
            f"Expected names or addresses by which clients call the server, without scheme, port, path or `*`, got "
            f"{name!r:.100}. Nobody could call it by that. Write it as in a browser's address: ensemble.example "
            "(other letters as xn--...); for a port none is needed."
        ) from None


def _check_proxy(proxy: str, proxies: Sequence[str]) -> None:
    """Refuse what no client's address can be compared with: uvicorn takes it, and believes nobody."""
    try:
        if proxy == "*":
            if set(proxies) != {"*"}:
                raise ValueError("beside others, which would then mean nothing")
        elif "/" in proxy:
            ipaddress.ip_network(proxy)
        else:
            ipaddress.ip_address(proxy)
    except ValueError as error:
        raise EDViTError(
            f"Expected addresses of trusted proxies (10.0.0.1, 2001:db8::1), networks of them (10.0.0.0/8), or `*` "
            f"alone for anybody, got {proxy!r:.100} ({error!s:.200}). Nobody would be believed, and all clients of "
            "the proxy would share one rate. Correct it; names are not looked up, and several are given one by one."
        ) from None
