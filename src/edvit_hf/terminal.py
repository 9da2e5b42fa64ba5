# SPDX-License-Identifier: Apache-2.0
"""Text of strangers on a terminal: shown as it is written, never obeyed.

Names of classes, devices, files and repositories, and what errors say of them, come from files and people. Comes in:
any text. Goes out: a console, a table, a progress bar and a log format that print it without reading markup in it, and
with every character that a terminal would obey instead of showing made visible. No other file of the package uses rich.
"""

import codecs
import logging
import os
import sys
import threading
import unicodedata
from collections.abc import Iterable, MutableMapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, invisible formats, half characters, line and paragraph separators
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are written with them
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"  # what rich puts where it cuts
ENCODE_ERRORS = "edvit_visible"
"""How a stream is to encode what its encoding lacks: written out. `errors` of `io.TextIOWrapper`."""
_WIDTHS = range(20, 1001)  # of a terminal that can show a table
_WIDTH_VARIABLES = ("COLUMNS", "TERMINAL_WIDTH")


def visible(text: object, *, keep: str = "") -> str:
    r"""A text with every character that a terminal would obey written out: `\x1b`, `\u202e`, `\n`.

    Args:
        text: Anything; its `str`.
        keep: Characters that stay as they are.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _is_obeyed(c) else c.encode("unicode_escape").decode() for c in text)


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in _OBEYED and character not in _JOINERS


def visible_lines(text: object) -> str:
    """The same for a text that may have several lines: all but the first are indented, so that none passes for ours."""
    return visible(text, keep="\n").rstrip("\n").replace("\n", "\n  ")


def _encode_visibly(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] == _ELLIPSIS:
        return "~", error.start + 1  # one column wide, as what it stands for
    return codecs.backslashreplace_errors(error)


codecs.register_error(ENCODE_ERRORS, _encode_visibly)


class Terminal(Console):
    """A console that takes every string as it stands: no markup, no emoji codes, nothing that a terminal obeys."""

    def __init__(self, **settings: Any) -> None:
        environment = dict(os.environ)
        forget_absurd_widths(environment)
        super().__init__(markup=False, emoji=False, highlight=False, _environ=environment, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """See `rich.console.Console`; every string that is printed, in a table or alone, comes through here."""
        return super().render_str(visible(text, keep="\n"), **{**settings, "markup": False, "emoji": False})


def forget_absurd_widths(environment: MutableMapping[str, str]) -> None:
    """Take widths that no terminal has out of an environment: nothing would be printed, or one letter a line."""
    for name in _WIDTH_VARIABLES:
        value = environment.get(name, "")
        if not (value.isdecimal() and len(value) < 6 and int(value) in _WIDTHS):
            environment.pop(name, None)


def new_table(
    columns: Iterable[str], *, no_wrap: bool = False, title: str | None = None, caption: Iterable[str] = ()
) -> "PlainTable":
    """An empty table; a column whose name begins with ">" is flush right.

    Args:
        columns: Their names; a line break in one stays.
        no_wrap: Whether cells are cut rather than wrapped.
        title: Above it, in one line.
        caption: The lines below it.
    """
    table = PlainTable(title=None if title is None else Text(visible(title)))
    table.caption_justify = "left"
    table.set_caption(caption)
    for name in columns:
        header = Text(visible(name.removeprefix(">"), keep="\n"))
        table.add_column(header, justify="right" if name.startswith(">") else "left", no_wrap=no_wrap)
    return table


class PlainTable(Table):
    """A table whose cells are text, on whatever console it is printed. Made by `new_table`."""

    def add_row(self, *cells: object, **settings: Any) -> None:
        """See `rich.table.Table`; every cell is its `str`, in one line."""
        super().add_row(*(Text(visible(cell)) for cell in cells), **settings)

    def set_caption(self, lines: Iterable[str]) -> None:
        """The lines below the table."""
        lines = [visible(line) for line in lines]
        self.caption = Text("\n".join(lines)) if lines else None


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(visible(task.description))


_QUIET = threading.Event()


def set_quiet(is_quiet: bool) -> None:
    """Whether standard error shows errors alone, in this process: neither bars nor how far something is."""
    (_QUIET.set if is_quiet else _QUIET.clear)()


def is_quiet() -> bool:
    """What `set_quiet` said last."""
    return _QUIET.is_set()


def progress_bar(*, is_shown: bool) -> Progress:
    """A bar on standard error that is drawn only when it is told to: nothing runs beside what is timed."""
    columns = (_Description(), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Terminal(stderr=True), disable=not is_shown or is_quiet(), auto_refresh=False)


class LogFormat(logging.Formatter):
    """Log lines that a terminal shows and does not obey."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return visible_lines(super().format(record))


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what is standard error at that time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """Standard error."""
        return sys.stderr


def log_to_standard_error(level: int) -> None:
    """Give the root logger this format on standard error, unless a program has given it another."""
    handler = _StandardError()
    handler.setFormatter(LogFormat("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def standard_console() -> Terminal:
    """The console of standard output. Tables need more than the 80 columns that a pipe is taken to have."""
    return Terminal(width=None if sys.stdout is not None and sys.stdout.isatty() else 132)
