"""Files that are either whole or absent: write to a sibling, then rename."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL_SUFFIX = ".partial"
LINKED_SUFFIXES = {".safetensors", ".onnx"}


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON; the file appears complete or not at all."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


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
