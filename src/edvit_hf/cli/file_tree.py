"""Files with their sizes, as `edvit push` and `edvit space` print what they are about to send."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edvit_hf.cli.app import console

if TYPE_CHECKING:
    from edvit_hf.hub.checks import LocalFile

_MIB = 2**20


def print_files(files: Iterable["LocalFile"], destination: str) -> None:
    """The tree with sizes, and their sum."""
    files = list(files)
    last: tuple[str, ...] = ()
    for file in files:
        *folders, name = PurePosixPath(file.path).parts
        for depth, part in enumerate(folders):
            if tuple(folders[: depth + 1]) != last[: depth + 1]:
                console.print(f"{'':>12}  {'  ' * depth}{part}/", markup=False, highlight=False)
        last = tuple(folders)
        console.print(f"{file.bytes:>12,}  {'  ' * len(folders)}{name}", markup=False, highlight=False)
    total = sum(file.bytes for file in files)
    said = f"{len(files)} files, {total / _MIB:.2f} MiB, for {destination}"
    console.print(f"{total:>12,}  bytes in {said}", markup=False, highlight=False, soft_wrap=True)
