# SPDX-License-Identifier: Apache-2.0
"""Paths, sizes and hashes of an ensemble's files. Standard library only."""

import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Protocol

from edvit_hf.errors import EDViTError, ManifestError
from edvit_hf.tasks import PROCESSOR_FILES

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESERVED = re.compile(r"con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]", re.IGNORECASE)
_LONGEST_NAME, _LONGEST_PATH = 200, 1000


def require(condition: bool, message: str) -> None:
    """Raise `ManifestError` with `message` unless `condition` holds."""
    if not condition:
        raise ManifestError(message)


def require_sha256(value: str, name: str) -> None:
    """Raise `ManifestError` unless `value` is a SHA-256 in hex digits; `name` is that of the field."""
    require(bool(_SHA256.fullmatch(value)), f"{name} must be 64 hex digits, got {value!r}.")


def require_identity(file: "ContentFile | ListedFile", where: str = "") -> None:
    """Raise `ManifestError` unless a file's hash is a SHA-256 and its size is positive."""
    require_sha256(file.sha256, f"{where}`sha256`")
    require(file.bytes > 0, f"{where}`bytes` must be positive, got {file.bytes}.")


def check_relative_path(path: str, where: str) -> str:
    """Return `path` if it stays inside the ensemble folder, on every system.

    Raises:
        ManifestError: If it is empty, absolute, uses backslashes or a drive, climbs with "..", or has a part that some
            system reads as something else (`name_fault`).
    """
    parts = PurePosixPath(path).parts
    inside = bool(parts) and not path.startswith("/") and len(path) <= _LONGEST_PATH
    if not inside or any(name_fault(part) for part in parts):
        raise ManifestError(
            f"{where} must be a path inside the ensemble folder, with forward slashes and no '..', "
            f"got {path!r:.200}. A path that leaves the folder could read or overwrite other files. Export again."
        )
    return path


def check_name(name: str, where: str, error: type[EDViTError] = ManifestError) -> str:
    """Return `name` if it can be the name of one file or folder on every system.

    Names of devices become names of folders.

    Raises:
        EDViTError: `error`, if it cannot.
    """
    if fault := name_fault(name):
        raise error(
            f"{where} must be a name that a folder can have, got {name!r:.200}, {fault}. Files could be written "
            "elsewhere. Rename it, with letters, digits, '-' and '_'."
        )
    return name


def name_fault(name: str) -> str | None:
    """Why a text cannot be the name of one file or folder on every system; None if it can."""
    if name in ("", ".", ".."):
        return "which names no file"
    if any(character in '/\\:*?"<>|' or not character.isprintable() for character in name):
        return "which holds a separator, a wildcard or what cannot be printed"
    if name != name.strip() or name.endswith("."):
        return "which begins or ends with a space or ends with a dot"
    if _RESERVED.fullmatch(name.partition(".")[0].rstrip()):
        return "which is a device of Windows"
    return "which is too long" if len(name.encode("utf-8", "replace")) > _LONGEST_NAME else None


def same_file(path: str) -> str:
    """What paths have in common that some system takes for one file: other case, other forms of letters, `a//b`."""
    return unicodedata.normalize("NFC", PurePosixPath(path).as_posix()).casefold()


@dataclass(frozen=True, kw_only=True)
class ContentFile:
    """Size and hash of a file that belongs to the ensemble's identity."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        """Check hash and size."""
        require_identity(self)


class ListedFile(Protocol):
    """Anything that says where a file is (relative to the ensemble folder) and what it must hold."""

    @property
    def file(self) -> str: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102


def verify_file(root: Path, variant: ListedFile) -> Path:
    """Check one file's size and hash and return its full path.

    Raises:
        ManifestError: If it is missing, truncated or altered.
    """
    path = root / check_relative_path(variant.file, "`file`")
    if not path.is_file():
        raise ManifestError(f"{variant.file} is listed in the manifest but missing. Fetch or export it again.")
    with path.open("rb") as file:
        verify_open(file, variant)
    return path


def verify_open(file: BufferedReader, variant: ListedFile) -> None:
    """Check size and hash of an open file; otherwise like `verify_file`."""
    size = os.fstat(file.fileno()).st_size
    if size != variant.bytes:
        raise ManifestError(
            f"{variant.file}: expected {variant.bytes} bytes, got {size}. It is truncated or another file. "
            f"Fetch or export it again."
        )
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != variant.sha256:
        raise ManifestError(
            f"{variant.file}: expected sha256 {variant.sha256[:12]}..., got {digest[:12]}.... Its bytes were "
            f"altered; do not run it. Fetch or export it again."
        )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_stale(
    root: Path, manifest: Path, content: Mapping[str, ContentFile], exported: Iterable[str] | None = None
) -> None:
    """Raise `ManifestError` where other weights or configs lie in an exported folder than its graphs were made from.

    What is not there is not missed: a device holds its share only. Sizes are always compared. Bytes are read, once per
    process, only of a file that may have been changed after the export, which writes the manifest last:

    * With `exported`, the graphs that the manifest lists, of a file dated later than they and the manifest. That is for
      whoever runs the graphs alone. A copy, a clone or a download dates all anew: only weights that came after the
      last graph are read, if there are any. What was put there with an old date is not noticed; `save_pretrained`
      needs no date, it puts the manifest aside.
    * Without, of a file whose date or change of state (ctime) is not older than the manifest's. That is for whoever
      measures, publishes or exports again, and tells what is in the weights.
    """
    states = [found for name in exported or () if (found := _stat(root / name)) is not None]
    since = manifest.stat()
    latest = max(found.st_mtime_ns for found in [since, *states])
    for name, listed in content.items():
        path = root / name
        if path.suffix != ".safetensors" and path.name != "config.json":
            continue  # the processor's files are checked by whoever opens them
        found = _stat(path)
        if found is None:
            continue
        state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        if exported is None:
            is_older = max(found.st_mtime_ns, found.st_ctime_ns) < min(since.st_mtime_ns, since.st_ctime_ns)
        else:
            is_older = found.st_mtime_ns <= latest
        fits = found.st_size == listed.bytes and (is_older or _sha256_of(path.absolute(), state) == listed.sha256)
        require(
            fits,
            f"{root}: expected the {name} that the graphs were exported from, got another one. They would answer for "
            f"an ensemble that is gone. Run `edvit export {root}`, or fetch the ensemble again.",
        )


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


@functools.lru_cache(maxsize=1024)
def _sha256_of(path: Path, state: tuple[int, ...]) -> str:
    """Hex SHA-256 of a file in this state: size, times and inode."""
    del state  # distinguishes the file from what was there before
    return file_sha256(path)


def content_files(root: Path | str) -> dict[str, ContentFile]:
    """The files that make up an ensemble's identity, by relative path in order.

    They are config.json, the processor's files (`PROCESSOR_FILES`) and *.safetensors of the root and of every sub-model
    folder. Cards, code, placements and exported graphs are left out: none changes an answer.

    Raises:
        ManifestError: If the folder holds no such file. Links are followed: the Hub's cache is made of them.
    """
    root = Path(root)
    folders = [root, *sorted(p for p in root.glob("sub_models/*") if p.is_dir())]
    names = ("config.json", *PROCESSOR_FILES)
    paths = [p for folder in folders for p in [*(folder / n for n in names), *folder.glob("*.safetensors")]]
    found = {p.relative_to(root).as_posix(): p for p in paths if p.is_file()}
    require(bool(found), f"{root} holds no config and no weights, so it has no content to hash.")
    return {
        name: ContentFile(sha256=file_sha256(path), bytes=path.stat().st_size) for name, path in sorted(found.items())
    }


def hash_of_content(content: Mapping[str, ContentFile]) -> str:
    """Hex SHA-256 over paths and hashes: one number for all of an ensemble's content."""
    lines = sorted(f"{name} {entry.sha256}" for name, entry in content.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_of_files(files: Iterable[ListedFile]) -> str:
    """Hex SHA-256 over paths and hashes of exported files: says whether figures of them still are."""
    lines = sorted(f"{each.file} {each.sha256}" for each in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_hash(root: Path | str) -> str:
    """Hex SHA-256 over the ensemble's weights and configs (`content_files`): its identity for the version handshake.

    Raises:
        ManifestError: If the folder holds no such file.
    """
    return hash_of_content(content_files(root))
