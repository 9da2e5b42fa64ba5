# SPDX-License-Identifier: Apache-2.0
"""What commands print: lines, JSON, lists of files; and a standard output that cannot be written, told once for all."""

import contextlib
import io
import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import typer

from edvit_hf.errors import EDViTError
from edvit_hf.storage import MIB
from edvit_hf.terminal import (
    ENCODE_ERRORS,
    Terminal,
    forget_absurd_widths,
    is_quiet,
    standard_console,
    visible,
    visible_lines,
)

if TYPE_CHECKING:
    from edvit_hf.hub.checks import LocalFile

console = standard_console()
log_console = Terminal(stderr=True)


def say(text: str, *, highlight: bool = False) -> None:
    """One line as it stands, however long; highlighted, a terminal shows numbers and paths in colour."""
    console.print(visible(text), highlight=highlight, soft_wrap=True)


def tell(text: str, *, style: str | None = None) -> None:
    """Say something on standard error, beside what the command prints: how far it is (not if quiet), or why it ends."""
    if style is None and is_quiet():
        return
    log_console.print(visible_lines(text), style=style, soft_wrap=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output, whose texts are what they are: JSON has its own escapes."""
    typer.echo(json.dumps(data, indent=2, default=str))


def keep_all(*writes: Callable[[], object]) -> None:
    """Write everything that was measured: what cannot be written does not keep the rest from being.

    Raises:
        EDViTError: The first that could not be; the others are told.
        OSError: The same.
    """
    failed: list[Exception] = []
    for write in writes:
        try:
            write()
        except (EDViTError, OSError) as error:
            failed.append(error)
    for one in failed[1:]:
        tell(f"error: {one}", style="red")
    if failed:
        raise failed[0]


def end_at_once(code: object) -> NoReturn:
    """End the process with the exit code of a `SystemExit`, without waiting for threads; what was said is written."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # nobody may read it any more, or it was closed
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def print_files(files: "Sequence[LocalFile]", destination: str) -> None:
    """The tree of what is about to be sent, with sizes and their sum."""
    last: tuple[str, ...] = ()
    for file in files:
        *folders, name = PurePosixPath(file.path).parts
        for depth, part in enumerate(folders):
            if tuple(folders[: depth + 1]) != last[: depth + 1]:
                say(f"{'':>12}  {'  ' * depth}{part}/")
        last = tuple(folders)
        say(f"{file.bytes:>12,}  {'  ' * len(folders)}{name}")
    total = sum(file.bytes for file in files)
    say(f"{total:>12,}  bytes in {len(files)} files, {total / MIB:.2f} MiB, for {destination}")


class _Stream(io.RawIOBase):
    """A standard stream that never fails where it is written to: what is lost is noted, and the command goes on.

    So that a full disk or a reader that has gone takes nothing but the output: files are written all the same, and an
    error that a command meets is a file's, never the stream's. A stream that takes nothing for now is waited for.
    """

    def __init__(self, stream: TextIO) -> None:
        self._raw = stream.buffer.raw if hasattr(stream.buffer, "raw") else stream.buffer
        self.lost: OSError | None = None

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def fileno(self) -> int:
        """See `io.RawIOBase`."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """See `io.RawIOBase`."""
        return self._raw.isatty()

    @property
    def name(self) -> Any:
        """See `io.FileIO`."""
        return getattr(self._raw, "name", None)

    def write(self, data: Any) -> int:
        """As many bytes as were taken; all, once something was lost."""
        try:
            while self.lost is None:
                try:
                    taken = self._raw.write(data)
                except BlockingIOError as error:
                    taken = error.characters_written or None
                if taken is not None:
                    return int(taken)
                select.select([], [self._raw], [])  # not blocking, and full
        except OSError as error:
            self.lost = error
        return memoryview(data).nbytes


def _watched(stream: TextIO | None) -> tuple[TextIO | None, _Stream | None]:
    """A text stream of the same file that cannot fail; the stream itself where it is no file."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream, None
    stream.flush()
    raw = _Stream(stream)
    wrapped = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=ENCODE_ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return wrapped, raw


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Around a whole command: if what it prints is lost, it ends with one message and exit code 1, not a traceback.

    A pipe whose reader has gone (`edvit ... | head -1`) ends it too, as it ends other tools, and nothing is told. A
    command that failed keeps its exit code, and any other exception is raised as it is. What an encoding lacks is
    written out.

    Raises:
        SystemExit: The command's own, or output was lost.
    """
    forget_absurd_widths(os.environ)
    if sys.stdout is None:  # closed by the shell: `>&-`; the next file that is opened would take its place
        _tell_loss("none")
        raise SystemExit(1)
    own = sys.stdout, sys.stderr
    (sys.stdout, watched), (sys.stderr, _) = _watched(sys.stdout), _watched(sys.stderr)
    ended: SystemExit | None = None
    try:
        yield
    except SystemExit as error:
        ended = error
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # of one that is no file, or was closed
                if stream is not None:
                    stream.flush()
        sys.stdout, sys.stderr = own
    if watched is not None and watched.lost is not None:
        if not isinstance(watched.lost, ConnectionError):
            _tell_loss(f"one that failed ({watched.lost.strerror})")
        if ended is None or not ended.code:
            raise SystemExit(1) from watched.lost
    if ended is not None:
        raise ended


def _tell_loss(got: str) -> None:
    with contextlib.suppress(OSError):  # standard error is no better
        tell(
            f"error: Expected a standard output that takes what is printed, got {got}. That is lost, or a part of it; "
            "files that the command writes are not. Free space, or send it somewhere else."
        )
