# SPDX-License-Identifier: Apache-2.0
"""Writes a folder beside the one it replaces and renames it when it is whole, never over other people's files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from edvit_hf.errors import EDViTError, WorkDirError
from edvit_hf.storage import PARTIAL_SUFFIX

_OLDER_SUFFIX = f".older{PARTIAL_SUFFIX}"


@contextmanager
def replaced_folder(target: Path, is_older: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` if the block ends well; else `target` is as before.

    Args:
        target: May not exist, or be empty, or be an older one of the same kind.
        is_older: Whether a folder is that: all in it can be written again.

    Raises:
        EDViTError: `target` is a file, a link, or a folder with other things in it.
        WorkDirError: The disk is full or cannot be written.
    """
    check_replaceable(target, is_older)
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        if partial.exists():
            rmtree(partial)
        partial.mkdir(parents=True)
        yield partial
        _take_place(partial, target)
    except OSError as error:
        rmtree(partial, ignore_errors=True)
        if isinstance(error, EDViTError):
            raise
        raise WorkDirError(
            f"Expected to write {target}, got: {error.strerror or error} ({error.filename or partial}). Half a folder "
            "would be of no use, so it was removed; what was there before is unchanged. Free space or name another "
            "place, and run this again."
        ) from error
    except BaseException:  # an interruption too leaves nothing half-done
        rmtree(partial, ignore_errors=True)
        raise


def _take_place(partial: Path, target: Path) -> None:
    """Rename, with what was there moved aside first: whenever this is cut short, one of the two is whole in place."""
    older = target.with_name(target.name + _OLDER_SUFFIX)
    if not target.exists():
        partial.replace(target)
        return
    if older.exists():
        rmtree(older)
    target.replace(older)
    try:
        partial.replace(target)
    except BaseException:
        older.replace(target)
        raise
    rmtree(older, ignore_errors=True)


def check_replaceable(target: Path, is_older: Callable[[Path], bool]) -> None:
    """Refuse to write where something else lies, see `replaced_folder`.

    Raises:
        EDViTError: `target` is a file, a link, or a folder with other things in it.
    """
    if target.name in ("", ".."):
        raise EDViTError(
            f"Expected a folder by its name, got {target}. It is written beside the old one and then renamed, which "
            "only a name allows. Name it, for example ../page."
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise EDViTError(
            f"Expected a folder to write, or a name that is free, got {target}, which is a file or a link. It would "
            "be lost. Name another place."
        )
    if target.is_dir() and any(target.iterdir()) and not is_older(target):
        raise EDViTError(
            f"Expected a new or an empty folder, or what this command wrote earlier, got {target}, which holds other "
            "things. They would be lost. Name another place, or empty it yourself."
        )
