# SPDX-License-Identifier: Apache-2.0
"""Who may reach the server: addresses, TLS, and the names by which browsers may call it."""

import ipaddress
import socket
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from edvit_hf.errors import EDViTError
from edvit_hf.serving.limits import ServeConfig
from edvit_hf.tokens import SERVE_TOKEN

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def open_socket(config: ServeConfig) -> tuple[socket.socket, bool]:
    """A socket bound to where the config says, not yet listening; and whether only this machine can reach it.

    Raises:
        EDViTError: Others could reach it and neither a token nor TLS is configured, the name is unknown, or the address
            cannot be bound.
    """
    try:
        host = config.host.strip("[]")
        if not host:  # to the system that means all addresses: too much for a variable that was not set
            raise OSError("which is empty; all addresses are 0.0.0.0 or ::")
        found = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise EDViTError(
            f"Expected an address or name of this machine, got {config.host!r} ({error}). There is nothing to listen "
            "on. Correct --host, or leave it out for 127.0.0.1."
        ) from error
    is_local = all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)
    if not is_local and not config.tokens and config.tls_cert is None:
        raise EDViTError(
            f"Expected a loopback address such as 127.0.0.1 where neither a token nor TLS is configured, got "
            f"{config.host!r}. Everybody who reaches this machine could use the ensemble and read what others send. "
            f"Configure a token (--token-file FILE, or the variable {SERVE_TOKEN}) or TLS (--tls-cert FILE "
            "--tls-key FILE), or leave --host out."
        )
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise EDViTError(
            f"Expected a free address, got {config.host}:{config.port} ({error.strerror}). Nobody could reach the "
            "server. Stop what listens there, or choose another --port."
        ) from error
    return opened, is_local


def check_tls(config: ServeConfig) -> None:
    """Open certificate, key and client CA once, before anything else is loaded.

    Raises:
        EDViTError: They cannot be read, do not belong together, or the key has a password.
    """
    if config.tls_cert is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls_cert, config.tls_key, password=lambda: "")
        if config.tls_client_ca is not None:
            context.load_verify_locations(config.tls_client_ca)
    except (OSError, ValueError) as error:
        names = ", ".join(str(f) for f in (config.tls_cert, config.tls_key, config.tls_client_ca) if f is not None)
        raise EDViTError(
            f"Expected a certificate chain, its private key without a password and, if given, a client CA, all PEM, "
            f"got {names} ({error}). No client could connect. Correct the files."
        ) from error


def allowed_hosts(config: ServeConfig, is_local: bool) -> frozenset[str] | None:
    """Names by which this server may be called; None: any.

    A web page can point a name of its own at 127.0.0.1 and have a visitor's browser ask there ("DNS rebinding"): the
    name in the `Host` header gives it away. Where others can reach the server, a token or the certificate's name is
    what such a page lacks.
    """
    if not is_local and not config.allowed_hosts:
        return None
    return frozenset(name.strip("[]").lower() for name in (*_LOOPBACK_NAMES, config.host, *config.allowed_hosts))


def callable_name(host: str, names: Sequence[str]) -> str:
    """What a client writes in a URL to reach a server that listens on `host`; with `names` it answers to no other.

    0.0.0.0 and ::, all addresses of this machine, are none that can be called.
    """
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = names[0].strip("[]") if names else socket.gethostname()
    return f"[{host}]" if ":" in host else host


def host_name(header: str) -> str:
    """The name in a `Host` header, without its port, lower case; empty if it is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def is_cross_origin(origin: str, host: str) -> bool:
    """Whether a browser says that a page of another site asks."""
    try:
        return urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:
        return True
