# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or absent: write to a sibling, then rename.

Comes in: a path and what is to stand there. Goes out: the complete file or folder, or what was there before; nothing in
between. Every room that writes files calls it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edvit_hf.errors import WorkDirError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MIB = 2**20
PARTIAL_SUFFIX = ".partial"
LINKED_SUFFIXES = {".safetensors", ".onnx"}
DPI = 150  # of pictures


def check_writable(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Refuse, before any work, a file that could not be written after it.

    Raises:
        WorkDirError: The folder does not exist or cannot be written, the path is a folder, or the file ends in none of
            `suffixes` (none given: any).
    """
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise WorkDirError(
            f"Expected a file in a folder that exists and can be written, got {path}. The result would be lost. "
            "Name a file in an existing folder."
        )
    if suffixes and path.suffix.lower() not in suffixes:
        raise WorkDirError(
            f"Expected a file that ends in {' or '.join(suffixes)}, got {path}. Its content would not be what the name "
            f"says, and nothing that reads such files would take it. Write `{path.stem or 'result'}{suffixes[0]}`."
        )


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a sibling path that becomes `path` (replacing it) only if the block ends without an error."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    yield partial
    partial.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON; the file appears complete or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_figure(path: Path, figure: Any) -> Path:
    """Write a matplotlib figure as PNG; the file appears complete or not at all. Returns `path`."""
    with whole_file(path) as partial:  # no software tag: the same bytes whatever matplotlib release drew them
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `path` (replacing it) only if the block ends without an error."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Make a folder and lock it for as long as the block runs; another process that wants it waits.

    The folder itself is locked, so that no other file has to lie there. On systems without `fcntl` nobody waits.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_open_at(handle, folder):  # else it was finished and renamed while we waited
                yield
                return
        finally:
            os.close(handle)  # and with it the lock


def _is_open_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder without copying the bytes of weights and graphs where the file system allows hard links.

    Small files are copied, so that an edited config in one folder never changes another.
    """

    def link(src: str, dst: str) -> str:
        if Path(src).suffix not in LINKED_SUFFIXES:
            return str(shutil.copy2(src, dst))
        try:
            os.link(src, dst)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(src, dst)
        return dst

    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
