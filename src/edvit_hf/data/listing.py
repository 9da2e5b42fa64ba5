# SPDX-License-Identifier: Apache-2.0
"""List the files of a data set's folder: names are literal, links are followed, hidden and foreign files left out."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edvit_hf.errors import DataError

logger = logging.getLogger(__name__)

_FOREIGN = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin",
    "system volume information", "lost+found", "__pycache__", "icon\r",
}  # fmt: skip
_MOST_LEVELS = 64  # of folders in one another
_MOST_VISITS = 100  # of one folder, through different links

_Inode = tuple[int, int]


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        root: The folder, absolute.
        files: Regular files, as paths below `root`, sorted.
        empty: Folders without a file or folder to look at, as paths below `root`.
        unreadable: Links that lead nowhere or back to a folder they lie in, and what is neither file nor folder.
        ignored: Number of hidden and foreign files and folders.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    ignored: int = 0


def is_foreign(name: str) -> bool:
    """Whether an entry is hidden, a backup, or of those that operating systems and editors leave in every folder."""
    return name.startswith((".", "~$")) or name.endswith("~") or name.casefold() in _FOREIGN


def list_folder(folder: Path) -> Listing:
    """List the files below a folder whatever characters its name has; what is left out is counted in one log line.

    Raises:
        DataError: The folder, or one below it, cannot be read; or links lead from folder to folder without an end.
    """
    found = Listing(folder.absolute())
    found.files = sorted(_files_below(found, Path(), (), Counter()))
    found.unreadable.sort()
    if found.ignored:
        logger.info("data: %s: %d hidden or foreign files and folders are not looked at", folder, found.ignored)
    if found.unreadable:
        shown = ", ".join(path.as_posix() for path in found.unreadable[:5])
        logger.warning(
            "data: %s: %d links that lead nowhere or in a circle, or entries that are no files, are left out: %s",
            folder, len(found.unreadable), shown,
        )  # fmt: skip
    return found


def _files_below(found: Listing, below: Path, above: tuple[_Inode, ...], visits: Counter[_Inode]) -> Iterator[Path]:
    folder = found.root / below
    try:
        state = folder.stat()
        here = (state.st_dev, state.st_ino)
        if here in above:
            found.unreadable.append(below)
            return
        names = sorted(path.name for path in folder.iterdir())
        kept = [name for name in names if not is_foreign(name)]
        kinds = [_kind(folder / name) for name in kept]
    except OSError as error:
        raise DataError(
            f"Expected a folder that can be read at {folder}, got: {error.strerror}. Its files would be missing from "
            "the data without a word. Grant access to it, or move it out."
        ) from error
    visits[here] += 1
    if len(above) > _MOST_LEVELS or visits[here] > _MOST_VISITS:
        raise DataError(
            f"Expected at most {_MOST_LEVELS} folders in one another and {_MOST_VISITS} links to one, got more at "
            f"{str(folder)[:300]}. Listing them may not end. Remove the links that lead from folder to folder."
        )
    found.ignored += len(names) - len(kept)
    if not kept and below != Path():
        found.empty.append(below)
    for name, kind in zip(kept, kinds, strict=True):
        if kind == "folder":
            yield from _files_below(found, below / name, (*above, here), visits)
        elif kind == "file":
            yield below / name
        else:
            found.unreadable.append(below / name)


def _kind(path: Path) -> str | None:
    return "folder" if path.is_dir() else "file" if path.is_file() else None
