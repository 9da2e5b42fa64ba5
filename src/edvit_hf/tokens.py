# SPDX-License-Identifier: Apache-2.0
"""Tokens that clients show: read from a file or an environment variable, compared in constant time.

Comes in: the name of a file, or what a client shows. Goes out: tokens, or which of them was shown; never a message that
quotes one. The HTTP server, the workers of a fleet and their coordinator call it.
"""

import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from edvit_hf.errors import EDViTError

logger = logging.getLogger(__name__)

SERVE_TOKEN = "EDVIT_SERVE_TOKEN"
"""Variable with the token of `edvit serve`."""
FLEET_TOKEN = "EDVIT_FLEET_TOKEN"
"""Variable with the token of a fleet: of its workers, and of whoever asks them."""
SHORTEST_TOKEN = 16
_MOST_TOKEN_BYTES = 1 << 16
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_HOW_TO_MAKE_ONE = "Make one with: openssl rand -hex 32"


def read_tokens(file: Path | None, variable: str = SERVE_TOKEN) -> tuple[str, ...]:
    """The tokens of a file, one a line, or the one in the environment variable `variable`; none where neither is given.

    A file may hold several, so that an old one can go on while a new one is handed out; its empty lines and those that
    begin with # are skipped. A variable that is set but empty is refused like an empty file: whoever sets it wants a
    token asked for.

    Raises:
        EDViTError: The file cannot be read, there is no token where one should be, or a token is short or holds spaces
            or control characters.
    """
    if file is None:
        if variable not in os.environ:
            return ()
        tokens = tuple(filter(None, [os.environ[variable].strip()]))
        where = f"the variable {variable}"
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
    return tuple(check_token(token, where) for token in tokens)


def check_token(token: str, where: str = "the argument `token`") -> str:
    """Return a token that can be sent in a header and not be guessed.

    Raises:
        EDViTError: It is short, or holds spaces or control characters.
    """
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise EDViTError(
            f"Expected tokens of at least {SHORTEST_TOKEN} visible ASCII characters without spaces in {where}, got "
            f"one of {len(token)} characters. It could be guessed, or not be sent in a header. {_HOW_TO_MAKE_ONE}"
        )
    return token


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
