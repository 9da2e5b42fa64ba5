# SPDX-License-Identifier: Apache-2.0
"""Where a worker listens and who may ask it: addresses, tokens and certificates, checked before anything is loaded."""

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edvit_hf.errors import EDViTError, named_extra
from edvit_hf.tokens import FLEET_TOKEN

DEFAULT_LISTEN = "127.0.0.1:8500"
_LAST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class ListenConfig:
    """Where to listen, and who may ask.

    Attributes:
        listen: `HOST:PORT`; port 0 is any that is free.
        tokens: One of them must be shown; empty: nobody is asked for one.
        tls_cert: Certificate chain, PEM; with `tls_key`.
        tls_key: Its private key without a password, PEM.
        tls_client_ca: Clients must show a certificate of this authority.
        insecure: Others than this machine may ask without a token or certificate.
    """

    listen: str = DEFAULT_LISTEN
    tokens: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False

    def check(self) -> None:
        """Refuse what would let in everybody, or nobody.

        Raises:
            EDViTError: Others could reach the address and neither token nor client certificate is asked for; the
                address is none; or certificate and key do not come together.
        """
        host, _ = parse_address(self.listen)
        if (self.tls_cert is None) != (self.tls_key is None) or (self.tls_client_ca and self.tls_cert is None):
            raise EDViTError(
                "Expected a certificate with its private key, got one without the other, or a client CA alone. No "
                "client could connect. Give --tls-cert and --tls-key together."
            )
        if not is_loopback(host) and not (self.tokens or self.tls_client_ca or self.insecure):
            raise EDViTError(
                f"Expected a loopback address such as {DEFAULT_LISTEN} where neither a token nor client certificates "
                f"are asked for, got {self.listen}. Everybody who reaches this device could use it and learn what it "
                f"answers. Give a token (--token-file FILE, or the variable {FLEET_TOKEN}) or --tls-client-ca FILE; "
                "--insecure listens all the same."
            )


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[IPv6]:PORT`.

    Raises:
        EDViTError: It has another form.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and int(port) <= _LAST_PORT):
        raise EDViTError(
            f"Expected an address as HOST:PORT, got {text!r:.80}. There is nothing to listen on. Write --listen "
            f"{DEFAULT_LISTEN}, or 0.0.0.0:8500 for all addresses of this machine."
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address of that name.

    Raises:
        EDViTError: It is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise EDViTError(
            f"Expected an address or name of this machine, got {host!r:.80} ({error}). There is nothing to listen on. "
            "Correct --listen."
        ) from error
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)


def listening_credentials(config: ListenConfig) -> Any:
    """Credentials of gRPC's server; None: nothing is encrypted.

    Raises:
        EDViTError: A file cannot be read.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    with named_extra("`edvit worker`", "oip"):
        import grpc
    try:
        key, chain = config.tls_key.read_bytes(), config.tls_cert.read_bytes()
        ca = None if config.tls_client_ca is None else config.tls_client_ca.read_bytes()
    except OSError as error:
        raise EDViTError(
            f"Expected readable PEM files, got {error.filename} ({error.strerror}). No client could connect. Correct "
            "the path, or its permissions."
        ) from error
    return grpc.ssl_server_credentials([(key, chain)], root_certificates=ca, require_client_auth=ca is not None)
