# SPDX-License-Identifier: Apache-2.0
"""Read results files, and write their figures, of which any may be absent."""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ABSENT = "not measured"
NAMES = {
    "digits": "digits (8 px, 449 test items)",
    "mnist_small": "MNIST (28 px)",
    "cifar10_small": "CIFAR-10 (32 px, 10,000 test items)",
    "caltech101_small": "Caltech-101 (64 px)",
    "fsdd_small": "FSDD spoken digits (8 kHz)",
    "speech_commands12_small": "Speech Commands, 12 words (16 kHz)",
    "esc10_small": "ESC-10, fold 5 (16 kHz)",
    "trec6_small": "TREC, 6 question types",
    "newsgroups20_small": "20 Newsgroups",
}


class Results:
    """The results files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> dict[str, Any] | None:
        """A results file, or None if nothing was measured yet."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def starting_with(self, prefix: str) -> dict[str, dict[str, Any]]:
        """What follows the prefix (a recipe) -> results; the recipes in their usual order, then any others by name."""
        known = list(NAMES)
        tails = [path.stem.removeprefix(prefix) for path in self.folder.glob(f"{prefix}*.json")]
        tails.sort(key=lambda tail: (known.index(tail) if tail in known else len(known), tail))
        found = {tail: self.get(f"{prefix}{tail}") for tail in tails}
        return {tail: data for tail, data in found.items() if data is not None}


def at(data: Any, *keys: Any) -> Any:
    """What lies under these keys, one inside the other; None where one of them is missing."""
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def each(rows: Any, *keys: Any) -> list[Any]:
    """What every row has under these keys, without the rows that have nothing there."""
    return [value for value in (at(row, *keys) for row in rows or []) if value is not None]


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


def reduce(function: Callable[[list[Any]], Any], values: list[Any]) -> Any:
    """`function` of the values, or None of none."""
    return function(values) if values else None


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


def command(data: Any) -> str:
    """The command that made a file, with the script where it stands now: files keep the path it had when it ran."""

    def now(script: re.Match[str]) -> str:
        path = next(BENCHMARKS.rglob(script[1]), None)
        return script[0] if path is None else f"benchmarks/{path.relative_to(BENCHMARKS).as_posix()}"

    return re.sub(r"benchmarks/(?:\w+/)*(\w+\.py)", now, at(data, "command") or "unknown")


def commit(data: Any) -> str:
    """The first digits of the commit that was measured, and whether its files had been changed."""
    text = at(data, "environment", "commit")
    if not text:
        return "commit unknown"
    start, plus, changes = text.partition("+")
    return f"commit {start[:9]}{plus}{changes}"


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
