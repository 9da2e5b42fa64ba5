"""What a server allows: of each request, of each client, and of all of them together."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from edvit_hf.errors import EDViTError

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that is taken from one request, one client, and all clients together.

    Attributes:
        max_bytes: Of a request's body, checked while it arrives.
        max_pixels: Of an image, checked in its header before it is decoded.
        max_seconds: Of a sound, checked in its header where that tells.
        max_characters: Of a text.
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
            if not (math.isfinite(value) and (value >= 0 if name == "rate" else value > 0))
        ]
        if self.max_held_bytes < self.max_bytes:
            wrong.append("max_held_bytes")
        if wrong:
            raise EDViTError(
                f"Expected limits above zero (`rate` may be 0: any number; `max_held_bytes` is at least `max_bytes`), "
                f"got {', '.join(f'{name}={getattr(self, name)}' for name in wrong)}. No request could be answered, or "
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
        trusted_proxies: Addresses whose `X-Forwarded-For` is believed.
        deadline_ms: Answer without sub-models that take longer, counted from the request's last byte. None: ten times
            what an answer takes at the start, at least a second.
        max_queued: Requests that may wait for their turn, of a burst. Under lasting overload nobody waits.
        grace_seconds: Time for requests in flight after a signal to stop.
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
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check ranges and that the parts of TLS are complete."""
        wrong = [] if self.deadline_ms is None or 0 < self.deadline_ms < math.inf else ["deadline_ms"]
        wrong += [] if 0 <= self.max_queued <= 1000 else ["max_queued"]
        wrong += [] if 0 <= self.grace_seconds < math.inf else ["grace_seconds"]
        wrong += [] if 0 <= self.port < 65536 else ["port"]
        if wrong:
            raise EDViTError(
                f"Expected a positive deadline, a line of 0..1000, a grace period of at least 0 s and a port of "
                f"0..65535, got {', '.join(f'{name}={getattr(self, name)}' for name in wrong)}. The server could not "
                "work with them. Correct them, or leave them out for the defaults."
            )
        if self.tls_cert is None and (self.tls_key is not None or self.tls_client_ca is not None):
            raise EDViTError(
                "Expected a TLS certificate, got a key or a client CA without one. Nothing would be encrypted. Give "
                "--tls-cert FILE too."
            )
