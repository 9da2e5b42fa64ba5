# SPDX-License-Identifier: Apache-2.0
"""Looks at files without decoding them: what a folder of data holds. Light: no torch, no datasets.

Comes in: a folder, or a csv or parquet file. Goes out: what is classified, which splits and classes there are, how many
items, and which columns or names look like groups that must stay together. `edvit init` and the recipe call it.
"""

from pathlib import Path

from edvit_hf.data.class_folders import FORMATS
from edvit_hf.strict import is_folder
from edvit_hf.tasks import Task

_MOST_LOOKED_AT = 10_000
_SUFFIXES: dict[str, Task] = {
    suffix: task for task, formats in FORMATS.items() for suffixes in formats.values() for suffix in suffixes
}
_COLUMNS: dict[str, Task] = {
    "image": "image-classification",
    "audio": "audio-classification",
    "text": "text-classification",
}


def task_of_folder(folder: Path) -> Task | None:
    """What the files below a folder are, by their endings and the columns of tables; None where they do not tell."""
    if not is_folder(folder):
        return None
    found: dict[Task, int] = {}
    tables = []
    for number, path in enumerate(folder.rglob("*")):
        if number >= _MOST_LOOKED_AT:
            break
        ending = path.suffix.lower()
        if ending in (".csv", ".parquet"):
            tables.append(path)
        elif ending in _SUFFIXES:
            found[_SUFFIXES[ending]] = found.get(_SUFFIXES[ending], 0) + 1
    if found:
        return max(found, key=lambda task: found[task])
    return next((task for task in map(_task_of_table, tables) if task is not None), None)


def _task_of_table(path: Path) -> Task | None:
    columns = column_names(path)
    return next((_COLUMNS[name.lower()] for name in columns if name.lower() in _COLUMNS), None)


def column_names(path: Path) -> list[str]:
    """The columns of a csv or parquet file; none where it cannot be read."""
    if path.suffix.lower() == ".csv":
        import csv

        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader(file), [])
    try:
        import pyarrow.parquet as parquet

        return list(parquet.read_schema(path).names)
    except (ImportError, OSError, ValueError):
        return []
