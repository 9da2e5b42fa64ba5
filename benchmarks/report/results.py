# SPDX-License-Identifier: Apache-2.0
"""Read results files, of which any may be absent, and any value in them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
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


def of_file(name: str) -> Callable[[Callable[[Any, bool], list[str]]], Callable[[Results, bool], list[str]]]:
    """For what is written of one results file: nothing where there is no such file."""

    def wrap(write: Callable[[Any, bool], list[str]]) -> Callable[[Results, bool], list[str]]:
        def found(results: Results, full: bool) -> list[str]:
            data = results.get(name)
            return [] if data is None else write(data, full)

        return found

    return wrap


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


def reduce(function: Callable[[list[Any]], Any], values: list[Any]) -> Any:
    """`function` of the values, or None of none."""
    return function(values) if values else None


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
