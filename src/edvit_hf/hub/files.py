"""What lies in a folder that is bound for the Hub, and what of it must not be published."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edvit_hf.manifest import Manifest

README = "README.md"
_NOT_SENT = (".git", ".cache")  # the Hub's client never sends these folders either
_HIDDEN_ALLOWED = (".gitattributes", ".eval_results")
_PICKLE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".pyc", ".pyo", ".dill"}
_LEFTOVER = {".partial", ".tmp", ".incomplete", ".lock", ".swp", ".bak", ".orig"}
_KEYS = {".pem", ".key", ".p12", ".pfx", ".kdbx"}
_KEY_NAMES = {"id_rsa", "id_ed25519", "credentials", "credentials.json", "token", "secrets.json", "stored_tokens"}
_TEXT = {".md", ".json", ".txt", ".yaml", ".yml", ".py", ".toml", ".cfg", ".ini", ".sh", ".csv"}
_SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----")
_LARGEST_TEXT = 2**24


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file of the folder: path relative to it with forward slashes, and bytes."""

    path: str
    bytes: int


def list_files(root: Path) -> list[LocalFile]:
    """Every file below the folder, links included (not followed), in the order of their paths."""
    found = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in (*_NOT_SENT, *links)]
        for name in [*names, *links]:
            path = here / name
            found.append(LocalFile(path=path.relative_to(root).as_posix(), bytes=path.lstat().st_size))
    return sorted(found, key=lambda file: PurePosixPath(file.path).parts)


def file_faults(root: Path, files: Sequence[LocalFile], manifest: Manifest | None) -> Iterator[str]:
    """What must not be published: links, pickles, secrets, leftovers, and weights or graphs nobody vouches for."""
    known = set() if manifest is None else {*manifest.content, *(v.file for v in manifest.variants)}
    for file in files:
        path = PurePosixPath(file.path)
        suffix, name = path.suffix.lower(), path.name.lower()
        hidden = [part for part in path.parts if part.startswith(".") and part not in _HIDDEN_ALLOWED]
        if (root / file.path).is_symlink():
            yield f"{path} is a link: it could lead to any file of this machine. Put the file itself there."
        elif name.startswith(".env") or suffix in _KEYS or name in _KEY_NAMES or _holds_secret(root / file.path):
            yield f"{path} looks like a secret (key, token or password). Remove it; withdraw it if it ever was public."
        elif suffix in _PICKLE:
            yield f"{path} is a pickle, or of a kind that can hold one: opening it can run code. Remove it."
        elif hidden or suffix in _LEFTOVER or "__pycache__" in path.parts:
            yield f"{path} is a hidden or left-over file. Remove it."
        elif not (root / file.path).is_file():
            yield f"{path} is no ordinary file. Remove it."
        elif manifest is not None and suffix in (".onnx", ".safetensors") and file.path not in known:
            yield f"{path} is not in the manifest: no hash, parity or gate vouches for it. Remove it or export again."


def _holds_secret(path: Path) -> bool:
    if path.suffix.lower() not in _TEXT or path.is_symlink() or path.stat().st_size > _LARGEST_TEXT:
        return False
    return _SECRET.search(path.read_bytes()) is not None
