# SPDX-License-Identifier: Apache-2.0
"""What commands print: lines, JSON, lists of files; and a standard output that cannot be written, told once for all."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from edvit_hf.storage import MIB

if TYPE_CHECKING:
    from edvit_hf.hub.checks import LocalFile

# Tables need more than the 80 columns that a pipe is taken to have.
console = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 132)
log_console = Console(stderr=True)

_OF_STREAMS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.ECONNRESET, errno.EAGAIN}


def say(text: str, *, highlight: bool = False) -> None:
    """One line as it stands, however long; highlighted, a terminal shows numbers and paths in colour."""
    console.print(text, markup=False, highlight=highlight, soft_wrap=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(data, indent=2, default=str))


def print_files(files: "Sequence[LocalFile]", destination: str) -> None:
    """The tree of what is about to be sent, with sizes and their sum."""
    last: tuple[str, ...] = ()
    for file in files:
        *folders, name = PurePosixPath(file.path).parts
        for depth, part in enumerate(folders):
            if tuple(folders[: depth + 1]) != last[: depth + 1]:
                console.print(f"{'':>12}  {'  ' * depth}{part}/", markup=False, highlight=False)
        last = tuple(folders)
        console.print(f"{file.bytes:>12,}  {'  ' * len(folders)}{name}", markup=False, highlight=False)
    total = sum(file.bytes for file in files)
    say(f"{total:>12,}  bytes in {len(files)} files, {total / MIB:.2f} MiB, for {destination}")


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Around a whole command: if what it prints is lost, it ends with one message and exit code 1, not a traceback.

    A pipe whose reader has gone (`edvit ... | head -1`) ends it too, as it ends other tools, and nothing is told. A
    command that failed keeps its exit code, and any other exception is raised as it is.

    Raises:
        SystemExit: The command's own, or output was lost.
    """
    if sys.stdout is None:  # closed by the shell: `>&-`; the next file that is opened would take its place
        _tell("none")
        raise SystemExit(1)
    ended: SystemExit | None = None
    lost: OSError | None = None
    try:
        yield
    except SystemExit as error:
        ended = error
    except OSError as error:
        if error.filename is not None or error.errno not in _OF_STREAMS:  # a file's fault, told by its name
            raise
        lost = error
    lost = _flush() or lost
    if lost is not None:
        if not isinstance(lost, ConnectionError):
            _tell(f"one that failed ({lost.strerror})")
        if ended is None or not ended.code:
            raise SystemExit(1) from lost
    if ended is not None:
        raise ended


def _flush() -> OSError | None:
    """Write what is still held. If that fails, it goes nowhere, or the interpreter would try once more at its end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere, contextlib.suppress(OSError, ValueError):  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return error
    return None


def _tell(got: str) -> None:
    message = (
        f"error: Expected a standard output that takes what is printed, got {got}. That is lost, or a part of it. Free "
        "space, or send it somewhere else."
    )
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()
        except OSError:  # it is no better
            sys.stderr = None  # or the interpreter would try once more
