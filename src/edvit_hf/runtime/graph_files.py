"""Graphs hold their weights themselves: a file that points to another one is refused before it is opened."""

import mmap
from pathlib import Path

from edvit_hf.errors import ManifestError

# Key of the entry that leads to external data, as protobuf writes it: field 1, 8 bytes long.
_LOCATION = b"\x0a\x08location"


def check_self_contained(path: Path, name: str) -> None:
    """Refuse a graph with weights in another file.

    onnxruntime follows such paths, even to a file elsewhere on this machine if it is hard-linked into the folder, and
    no hash of the manifest covers what it finds there. The exporter here never writes such files. A missing file
    passes: opening it says more.

    Raises:
        ManifestError: It refers to another file.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(_LOCATION) >= 0
    if found:
        raise ManifestError(
            f"{name}: expected a graph that holds its weights itself, got one that refers to another file. What is "
            "there is covered by no hash and could be any file of this machine. Export the ensemble again."
        )
