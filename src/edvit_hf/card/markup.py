# SPDX-License-Identifier: Apache-2.0
"""Text, figures and tables of data inside markdown.

Names of classes, data, files and machines stand there as they are, never as markup. Fractions are printed in per cent,
differences in points, sizes in MiB; a missing value is printed as "not measured".
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edvit_hf.terminal import visible

NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"  # of what is no figure: a command, a commit
# What markdown reads inside a line; an underscore only at the edge of a word. Links are made of addresses alone, too.
_INLINE = re.compile(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")
# What begins a heading, a list or a line where it stands first.
_BLOCK = re.compile(r"^(?:(?:#{1,6}|[+-])(?=\s|$)|(?:- ?){2,}$|=+$|\d+(?=[.)](?:\s|$)))")


def plain(text: object) -> str:
    """A text as markdown that shows it: in one line, with nothing in it read as markup, HTML or a link.

    Pipes are left: `markdown_table` writes them in the way of a table.
    """
    shown = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = _INLINE.sub(lambda found: f"\\{found[0]}", shown)
    first = _BLOCK.match(shown)
    if first is None:
        return shown
    place = 0 if not first[0][0].isdigit() else first.end()
    return f"{shown[:place]}\\{shown[place:]}"


def code(text: object) -> str:
    """A text in code style, whatever backticks it has."""
    shown = _one_line(text)
    if not shown or ("\\" in shown and "|" in shown):  # in a table nothing tells such a pipe from an escaped one
        return plain(shown)
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    edge = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return f"{fence}{edge}{shown}{edge}{fence}"


def _one_line(text: object) -> str:
    return " ".join(visible(" ".join(str(text).split())).split())


def shortened(names: str, limit: int = 34) -> str:
    """A long list of names, cut to `limit` characters."""
    return names if len(names) <= limit else f"{names[: limit - 4].rstrip(', ')} ..."


def percent(fraction: float | None) -> str:
    """0.9712 -> "97.1 %"."""
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.1f} %"


def count(number: float | None) -> str:
    """1203456 -> "1.20 M"; 81234 -> "81.2 k"."""
    if number is None:
        return NOT_MEASURED
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}" if number >= 10 * limit else f"{number / limit:.2f} {unit}"
    return f"{number:.0f}"


def mebibytes(num_bytes: float | None) -> str:
    """4194304 -> "4.00 MiB"; 57853 -> "0.055 MiB"."""
    if num_bytes is None:
        return NOT_MEASURED
    size = num_bytes / 2**20
    return f"{size:.2f} MiB" if size >= 0.1 else f"{size:.3f} MiB"


def span(values: Iterable[float | None], form: Callable[[float | None], str]) -> str:
    """The lowest and the highest value: "0.06 to 0.07 MiB"; one where both read the same."""
    found = [value for value in values if value is not None]
    if not found:
        return NOT_MEASURED
    low, high = form(min(found)), form(max(found))
    if low == high:
        return low
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"


def points(interval: Mapping[str, Any] | None) -> str:
    """A paired difference with its 95 % interval -> "-1.3 [-2.4, -0.4]", in points."""
    if not interval or interval.get("difference") is None:
        return NOT_MEASURED
    text = f"{100 * interval['difference']:+.1f}"
    if interval.get("low") is None or interval.get("high") is None:
        return text
    return f"{text} [{100 * interval['low']:+.1f}, {100 * interval['high']:+.1f}]"


def text_or_not(value: object, form: str = "{}") -> str:
    """The value as text, or "not measured"."""
    return NOT_MEASURED if value is None else form.format(value)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A markdown table, or "not measured" without any line. No cell can break it."""
    rows = [[_cell(text) for text in line] for line in lines]
    if not rows:
        return f"_{NOT_MEASURED}_"
    head = [f"| {' | '.join(header)} |", f"|{'|'.join(' --- ' for _ in header)}|"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in rows)])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or NOT_MEASURED
