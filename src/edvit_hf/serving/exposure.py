# SPDX-License-Identifier: Apache-2.0
"""Who may reach the server: addresses, tokens, TLS, and the names by which browsers may call it."""

import hashlib
import hmac
import ipaddress
import logging
import os
import socket
import ssl
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from edvit_hf.errors import EDViTError
from edvit_hf.serving.limits import ServeConfig

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "EDVIT_SERVE_TOKEN"
SHORTEST_TOKEN = 16
_MOST_TOKEN_BYTES = 1 << 16
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def read_tokens(file: Path | None) -> tuple[str, ...]:
    """The tokens of a file, one a line, or the one in the environment variable EDVIT_SERVE_TOKEN.

    A file may hold several, so that an old one can go on while a new one is handed out; its empty lines and those that
    begin with # are skipped. A variable that is set but empty is refused like an empty file: whoever sets it wants a
    token asked for.

    Raises:
        EDViTError: The file cannot be read, there is no token where one should be, or a token is short or holds spaces
            or control characters.
    """
    if file is None:
        if TOKEN_VARIABLE not in os.environ:
            return ()
        tokens = tuple(filter(None, [os.environ[TOKEN_VARIABLE].strip()]))
        where = f"the variable {TOKEN_VARIABLE}"
    else:
        where = f"the token file {file}"
        try:
            with open(file, "rb", opener=_at_once) as opened:
                _warn_of_readers(opened.fileno(), file)
                lines = opened.read(_MOST_TOKEN_BYTES).decode("ascii").splitlines()
        except (OSError, ValueError) as error:
            raise EDViTError(
                f"Expected a readable text file with tokens, got {file} ({error}). Nobody could be let in. Correct the "
                "path, or its permissions."
            ) from error
        tokens = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not tokens:
        raise EDViTError(
            f"Expected a token in {where}, got none. Either nobody could be let in, or everybody. {_HOW_TO_MAKE_ONE}"
        )
    for token in tokens:
        if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise EDViTError(
                f"Expected tokens of at least {SHORTEST_TOKEN} visible ASCII characters without spaces in {where}, got "
                f"one of {len(token)} characters. It could be guessed, or not be sent in a header. {_HOW_TO_MAKE_ONE}"
            )
    return tokens


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for whoever may write into a pipe one day. Raises OSError for what is no ordinary file."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError("it is no ordinary file")


def _warn_of_readers(descriptor: int, file: Path) -> None:
    """Say so if other users of this machine may open a file with tokens."""
    status = os.fstat(descriptor)
    if os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & _OF_OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        logger.warning(
            "the token file %s is open to other users of this machine (mode %03o): whoever reads it may ask. Close it "
            "with: chmod 600 %s",
            *(file, mode, file),
        )


_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_HOW_TO_MAKE_ONE = "Make one with: openssl rand -hex 32"


class Tokens:
    """Compares in constant time: neither which token nor how much of it was right can be measured."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, authorization: bytes) -> int | None:
        """Which token the header `Authorization: Bearer ...` shows; None: none of them."""
        scheme, _, shown = authorization.partition(b" ")
        digest = hashlib.sha256(shown.strip()).digest()
        found = None
        for index, own in enumerate(self._digests):
            if hmac.compare_digest(own, digest):
                found = index
        return found if scheme.lower() == b"bearer" else None


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
            f"Configure a token (--token-file FILE, or the variable {TOKEN_VARIABLE}) or TLS (--tls-cert FILE "
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
