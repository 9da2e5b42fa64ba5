# SPDX-License-Identifier: Apache-2.0
"""Write figures, of which any may be absent, with their targets and sources."""

import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from report.results import at, command, commit, each, reduce

ABSENT = "not measured"


def figure(value: Any, form: str = ",.0f", unit: str = "") -> str:
    """A number in a format of Python's, with its unit; or that it was not measured."""
    return ABSENT if value is None else f"{value:{form}}{unit}"


def percent(fraction: Any, digits: int = 2, sign: str = "") -> str:
    """A fraction as a percentage, without the sign %."""
    return ABSENT if fraction is None else f"{100 * fraction:{sign}.{digits}f}"


def deviation(fraction: Any, digits: int = 2) -> str:
    """A standard deviation in percent, to follow its mean; empty where one value has none."""
    return "" if fraction is None else f" ± {percent(fraction, digits)}"


def spread(values: Sequence[float], form: str = ".2f", factor: float = 100) -> str:
    """A figure, by default in percent; several of them as mean and range."""
    if not values:
        return ABSENT
    first, low, high = (f"{factor * v:{form}}" for v in (statistics.mean(values), min(values), max(values)))
    return first if len(values) == 1 else f"{first} ({low} to {high})"


def goal(value: Any, limit: float, sign: str, unit: str = "") -> str:
    """The bracket behind a figure that says what it had to reach, and whether it failed to; sign is "≤", "≥" or "="."""
    is_missed = value is not None and {"≤": value > limit, "≥": value < limit, "=": value != limit}[sign]
    text = f"{limit:,}" if sign == "=" else f"{sign} {limit:,}"
    return f"(target {text}{unit}{': missed' if is_missed else ''})"


def table(head: str | Sequence[str], rows: Iterable[Sequence[str]], num_texts: int = 1) -> list[str]:
    """Markdown; the first columns are texts, all others numbers. A head may be one text, its columns between bars."""
    head = head.split(" | ") if isinstance(head, str) else head
    marks = ["---"] * num_texts + ["---:"] * (len(head) - num_texts)
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(marks) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def machine(data: Any) -> str:
    """Processor and cores."""
    found = at(data, "environment", "machine")
    return f"{at(found, 'cpu') or 'unknown processor'} with {figure(at(found, 'cores'))} cores"


def source(name: str, data: Any, full: bool) -> str:
    """Where figures come from: the file and the commit; in full also the command and the machine."""
    trial = "; a trial on toy sizes" if re.search(r"--(tiny|quick)\b", at(data, "command") or "") else ""
    if not full:
        return f"`{name}.json`, {commit(data)}{trial}"
    date = at(data, "environment", "date") or "date unknown"
    return f"Command: `{command(data)}`; file `results/{name}.json`; {commit(data)}; {machine(data)}; {date}{trial}"


def points(intervals: Sequence[dict[str, float]]) -> str:
    """Differences; one seed's with its paired 95 % interval, several seeds' as mean and range; empty without any."""
    values = each(intervals, "difference")
    if len(values) != 1:
        return spread(values, "+.2f") if values else ""
    low, high = (percent(at(intervals[0], end), sign="+") for end in ("low", "high"))
    return f"{percent(values[0], sign='+')} [{low}, {high}]"


def variants_of(exports: Sequence[Any]) -> tuple[str, str]:
    """Accuracy of every exported variant, and the worst difference of fp32 from torch."""
    names = at(exports[0], "accuracy") or {}
    texts = [f"{name} {spread(each(exports, 'accuracy', name, 'accuracy'))} %" for name in names]
    return ", ".join(texts), figure(reduce(max, each(exports, "parity", "relative_to_largest_logit")), ".1e")


def seeds_text(seeds: Sequence[Any]) -> str:
    """How many seeds, and which."""
    return f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'} ({', '.join(map(str, seeds))})"


def finding(name: str, data: Any, text: str, behind: Sequence[str], full: bool, note: str = "") -> list[str]:
    """A line of a list with its source; in full what lies behind it, and the source (after a note) below that."""
    if not full:
        return [f"- {text} ({source(name, data, full)})"]
    return [f"- {text}", "", *behind, "", f"{note}{source(name, data, full)}.", ""]


def section(title: str, lines: Sequence[str], full: bool) -> list[str]:
    """Lines under a title; nothing where there are none. In full a heading, which makes the file easy to search."""
    return [f"## {title}" if full else f"**{title}**", "", *lines, ""] if lines else []
