"""Standard output that cannot be written: told in one place, for whatever prints."""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

READER_HAS_GONE = 141  # 128 + SIGPIPE: what a shell reports of a tool that such a pipe ends


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Around a whole command: it does its work to the end, but does not end well if something it printed is lost.

    A pipe whose reader has gone is no error (`edvit ... | head -1`), and nothing is told. Anything else, such as a full
    disk or no standard output at all, is one message on standard error and exit code 1, whatever else the command
    would have ended with.

    Raises:
        SystemExit: Output was lost.
    """
    stream = sys.stdout
    if stream is None:  # closed by the shell: `>&-`; the next file that is opened would take its place
        _tell("none")
        raise SystemExit(1)
    binary = getattr(stream, "buffer", None)
    raw = getattr(binary, "raw", binary)  # `python -u` has no buffer in between
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(raw, io.RawIOBase):
        yield  # somebody else's stream, as in tests
        return
    guard = _Guard(raw)
    sys.stdout = checked = io.TextIOWrapper(
        guard if raw is binary else io.BufferedWriter(guard),
        encoding=stream.encoding, errors=stream.errors, line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )  # fmt: skip
    try:
        yield
    finally:
        checked.flush()
        sys.stdout = stream
        if guard.error is not None:
            raise SystemExit(READER_HAS_GONE if isinstance(guard.error, BrokenPipeError) else 1) from guard.error


class _Guard(io.RawIOBase):
    """The file behind standard output. After the first failure, which is told at once, nothing is written any more.

    It raises nothing: those who print (rich, click) have ways of their own with an `OSError`, one for each stream, and
    work that is under way is worth more than a line that says so.
    """

    name, mode = "<stdout>", "wb"

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()

    def write(self, data: Any) -> int | None:
        if self.error is None:
            try:
                return self._raw.write(data)
            except OSError as error:
                self.error = error
                if not isinstance(error, BrokenPipeError):
                    _tell(f"one that failed ({error.strerror})")
        return len(data)


def _tell(got: str) -> None:
    message = (
        f"error: Expected a standard output that takes what is printed, got {got}. That is lost, or a part of it. Free "
        "space, or send it somewhere else."
    )
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # it may be no better
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()
