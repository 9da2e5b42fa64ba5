# SPDX-License-Identifier: Apache-2.0
"""Which parquet or csv files of a folder are which split: by their exact names, never by words in them."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from edvit_hf.data.listing import list_folder
from edvit_hf.errors import DataError

logger = logging.getLogger(__name__)

SUFFIXES: dict[str, tuple[str, ...]] = {"parquet": (".parquet",), "csv": (".csv", ".tsv")}
"""Builder -> what its files end in, in small letters."""

_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]{16})?")


@dataclass(frozen=True)
class _Table:
    path: Path
    split: str
    number: int
    total: int | None


def table_files(folder: Path, builder: str) -> dict[str, list[Path]]:
    """The files of each split: SPLIT.parquet, or all of SPLIT-00000-of-00003.parquet, in the order of their numbers.

    Where neither is there, SPLIT-0.parquet, SPLIT-1.parquet and so on are the split; each is one of its own name, too.
    They lie in the folder itself, or else all in one folder below it (a clone's `data`), or as SPLIT/0000.parquet, as
    the Hub's converted copies do. Nothing found: no splits.

    Raises:
        DataError: A shard is missing, a split is there twice, or several folders below hold tables.
    """
    listing = list_folder(folder)
    wanted = [name for name in listing.files if name.suffix.lower() in SUFFIXES[builder]]
    files = _of_folder(listing.root, Path(), wanted)
    used = {path for paths in files.values() for path in paths}
    left_out = [name.as_posix() for name in wanted if listing.root / name not in used]
    if left_out:
        logger.warning(
            "data: %s: %d %s files that lie deeper are left out: %s",
            folder, len(left_out), builder, ", ".join(left_out[:5]),
        )  # fmt: skip
    return files


def _of_folder(root: Path, place: Path, names: list[Path]) -> dict[str, list[Path]]:
    """The tables below one place of the folder, given the names of all below it."""
    here = [name for name in names if name.parent == place]
    if here:
        return _by_split([_table(root / name) for name in here])
    if not names:
        return {}
    below: dict[str, list[Path]] = {}
    for name in names:
        below.setdefault(name.relative_to(place).parts[0], []).append(name)
    if all(name.parent == place / part and name.stem.isdecimal() for part, inside in below.items() for name in inside):
        return {part: sorted((root / name for name in inside), key=_numeric) for part, inside in below.items()}
    if len(below) == 1:
        ((part, inside),) = below.items()
        return _of_folder(root, place / part, inside)
    raise DataError(
        f"Expected the tables in {root / place} itself, or in one folder below it, got them in {len(below)}: "
        f"{', '.join(sorted(below)[:8])}. Which of them belong together is not known. Name one of these folders as "
        "`data_dir`, or several as a list, whose rows then are put together by split. If each of them is a split, "
        f"number its files: {sorted(below)[0]}/0000{names[0].suffix} and so on."
    )


def _numeric(path: Path) -> tuple[int, str]:
    return int(path.stem), path.name


def _table(path: Path) -> _Table:
    shard = _SHARD.fullmatch(path.stem)
    if shard is None:
        return _Table(path, path.stem, 0, None)
    return _Table(path, shard["split"], int(shard["number"]), int(shard["total"]))


def _by_split(tables: list[_Table]) -> dict[str, list[Path]]:
    splits: dict[str, list[_Table]] = {}
    for table in tables:
        splits.setdefault(table.split, []).append(table)
    for split, parts in splits.items():
        parts.sort(key=lambda part: part.number)
        totals = {part.total for part in parts}
        numbers = [part.number for part in parts]
        shown = ", ".join(part.path.name for part in parts[:6])
        if len(totals) > 1 or len(set(numbers)) < len(numbers):
            raise DataError(
                f"Expected the rows of split {split!r} in {parts[0].path.parent} once, got files that say different "
                f"things: {shown}. Rows would count twice or be of another version. Keep one set of files."
            )
        missing = sorted(set(range(parts[0].total or 1)) - set(numbers))
        if missing or len(numbers) > (parts[0].total or 1):
            raise DataError(
                f"Expected {parts[0].total} files of split {split!r} in {parts[0].path.parent}, numbered from 0, got "
                f"{len(parts)}: {shown}; the first number missing is {missing[0] if missing else 'none'}. The rest of "
                "the rows would be missing without a word. Fetch all of them."
            )
    files = {split: [part.path for part in parts] for split, parts in splits.items()}
    files |= {split: paths for split, paths in _numbered(tables).items() if split not in files}
    return {split: files[split] for split in sorted(files)}


def _numbered(tables: list[_Table]) -> dict[str, list[Path]]:
    """Files called SPLIT-0, SPLIT-1 and so on without a gap, as one split beside those that each of them is."""
    found: dict[str, dict[int, Path]] = {}
    for table in tables:
        split, _, number = table.path.stem.rpartition("-")
        if split and table.total is None and number.isascii() and number.isdecimal():
            found.setdefault(split, {})[int(number)] = table.path
    whole = {split: parts for split, parts in found.items() if max(parts) - min(parts) == len(parts) - 1}
    return {split: [parts[number] for number in sorted(parts)] for split, parts in whole.items() if min(parts) < 2}
