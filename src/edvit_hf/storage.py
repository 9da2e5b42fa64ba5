# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or absent: write to a sibling, then rename. JSON is read from ordinary files alone.

Comes in: a path and what is to stand there. Goes out: the complete file or folder, or what was there before; nothing in
between. Every room that reads or writes files calls it.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from edvit_hf.errors import CheckpointError, EDViTError, WorkDirError
from edvit_hf.strict import MAX_YAML_BYTES, load_yaml, parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MIB = 2**20
PARTIAL_SUFFIX = ".partial"
LINKED_SUFFIXES = {".safetensors", ".onnx"}
DPI = 150  # of pictures
MAX_JSON_BYTES = 64 * MIB  # far above any file of ours; more is written by nobody who means well
_NAMED = 48  # characters of a name that its temporary sibling carries
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_UNDER_WAY: set[str] = set()  # names of what this process is writing
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD
_JSON_NAMES = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_UNSUPPORTED = (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EACCES)
_DISK_FAULTS_IN_WORDS = ("No space left on device", "os error 28", "os error 27", "os error 122")


def check_writable(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Refuse, before any work, a file that could not be written after it.

    Raises:
        WorkDirError: The folder does not exist or cannot be written, the path is a folder, or the file ends in none of
            `suffixes` (none given: any).
    """
    folder = Path(os.path.realpath(path)).parent
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
    """Yield a sibling that becomes `path` (replacing it) only if the block ends without an error.

    The sibling's name is its own, so that several processes may write the same file: the last to end wins. Its bytes
    are on the disk before it is renamed: after a power cut the old or the new file is there, not an empty one.

    Raises:
        WorkDirError: The folder cannot be written, or the disk is full, read-only or broken.
    """
    with named_disk_errors(path), _temporary(path, is_folder=False) as partial:
        yield partial
        _flush(partial)
        partial.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON; the file appears complete or not at all.

    Raises:
        EDViTError: It holds NaN or an infinite number, which JSON has not; and what `whole_file` raises.
    """
    try:
        text = json.dumps(data, indent=2, allow_nan=False)
    except ValueError as error:
        raise EDViTError(
            f"Expected finite numbers for {path}, got one that is none ({error}). JSON has no word for it, and whoever "
            "reads the file would fail. Write null where there is no figure."
        ) from error
    with whole_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def write_figure(path: Path, figure: Any) -> Path:
    """Write a matplotlib figure as PNG; the file appears complete or not at all. Returns `path`."""
    with whole_file(path) as partial:  # no software tag: the same bytes whatever matplotlib release drew them
        figure.savefig(partial, format="png", dpi=DPI, metadata={"Software": None})
    return path


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of an ordinary file of at most `limit` bytes. A pipe or a device is refused without waiting for it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is something else, longer, or cannot be read. The message is what came instead of the file.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _WITHOUT_WAITING)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("something that is no ordinary file")
            content = file.read(limit + 1) if found.st_size <= limit else b""
            if found.st_size > limit or len(content) > limit:
                raise ValueError(f"a file of more than {limit} bytes")
            return content
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"a file that cannot be read ({error.strerror or error})") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, see `load_yaml`.

    Raises:
        FileNotFoundError: There is none. ValueError: See `read_bytes`, or it is no YAML.
    """
    try:
        return load_yaml(read_bytes(path, MAX_YAML_BYTES))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """What a JSON file holds, see `parse_json`.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: It is no ordinary file, longer than `limit` bytes, or no JSON.
    """
    try:
        return parse_json(read_bytes(path, limit))
    except ValueError as error:
        raise CheckpointError(
            f"Expected JSON in {path}, got {error}. Nothing in it can be trusted. Make or fetch it again."
        ) from error


def read_json_object(
    path: Path,
    what: str,
    why: str = "Nothing in it can be trusted. Make or fetch it again.",
    *,
    error: type[EDViTError] = CheckpointError,
    limit: int = MAX_JSON_BYTES,
) -> dict[str, Any]:
    """The object that a JSON file holds; `what` it should be and `why` it matters are named in errors.

    Raises:
        EDViTError: Of the class `error`: there is no such file, it is no JSON, or it holds something else.
    """
    try:
        text = read_bytes(path, limit)
    except FileNotFoundError as missing:
        raise error(f"Expected the JSON of {what} in {path}, found no file. {why}") from missing
    except ValueError as fault:
        raise error(f"Expected the JSON of {what} in {path}, got {fault}. {why}") from fault
    return parse_json_object(text, f"the JSON of {what} in {path}", why, error=error)


def parse_json_object(text: str | bytes, what: str, why: str, *, error: type[EDViTError]) -> dict[str, Any]:
    """The object that a JSON text holds, for what was read elsewhere; otherwise like `read_json_object`."""
    try:
        found = parse_json(text)
        if not isinstance(found, dict):
            raise ValueError(f"{_JSON_NAMES.get(type(found), 'a number')} instead of an object")
    except ValueError as fault:
        raise error(f"Expected {what}, got {fault}. {why}") from fault
    return found


@contextlib.contextmanager
def changed_json(path: Path, what: str, *, error: type[EDViTError] = CheckpointError) -> Iterator[dict[str, Any]]:
    """Yield the object a JSON file holds and write it back when the block ends well; whoever else changes it waits.

    Raises:
        EDViTError: Of the class `error`: see `read_json_object`. `WorkDirError`: see `whole_file`.
    """
    read_json_object(path, what, error=error)  # before a folder is made to be held
    with held_folder(path.parent):
        values = read_json_object(path, what, error=error)
        yield values
        write_json(path, values)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `path` (replacing it) only if the block ends without an error.

    Like `whole_file`; its parents are made. What stood there is exchanged in one step where the system can do that.

    Raises:
        WorkDirError: The folder cannot be written, or the disk is full, read-only or broken.
    """
    with named_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, is_folder=True) as partial:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    _flush(file)
            take_place(partial, path)


def take_place(partial: Path, target: Path) -> None:
    """Rename a folder to `target`, which it replaces: a reader finds the one or the other, whole.

    Where the system cannot exchange two folders, the older one is moved aside first and comes back if that fails.
    """
    if not os.path.lexists(target):
        partial.replace(target)
    elif _exchange(partial, target):
        remove(partial)  # it is the older one now
    else:
        older = _sibling(target)
        target.replace(older)
        try:
            partial.replace(target)
        except BaseException:
            older.replace(target)
            raise
        remove(older)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; whether the system did it."""
    try:
        swap = ctypes.CDLL(None).renameat2  # Linux
    except (AttributeError, OSError, TypeError):
        return False
    return bool(swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _sibling(path: Path) -> Path:
    """A free name beside `path` that says which process of which machine made it."""
    made_by = f"{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{path.name[:_NAMED]}.{made_by}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def _temporary(path: Path, *, is_folder: bool) -> Iterator[Path]:
    """A new sibling of `path`; gone when the block ends, unless it was renamed."""
    _remove_left_over(path)
    partial = _sibling(path)
    _UNDER_WAY.add(partial.name)
    try:
        try:
            partial.mkdir() if is_folder else partial.touch(exist_ok=False)
        except OSError as error:
            raise WorkDirError(
                f"Expected to write {path}, but nothing can be made beside it ({error.strerror or error}). The result "
                "would be lost. Correct the permissions or name another place."
            ) from error
        yield partial
    finally:
        remove(partial)
        _UNDER_WAY.discard(partial.name)


def is_temporary(name: str) -> bool:
    """Whether a file or folder of that name is one of ours that is being written, or was when its process ended."""
    made_by = r"(.+\.[0-9a-f]{6}-\d+-[0-9a-f]{8}|\.saving-[a-z0-9_]{8})"  # the latter by earlier releases
    return re.fullmatch(made_by + re.escape(PARTIAL_SUFFIX), name) is not None


def _remove_left_over(path: Path) -> None:
    """Remove what processes of this machine left of earlier attempts at `path` when they were killed."""
    name = re.compile(re.escape(path.name[:_NAMED]) + rf"\.{_MACHINE}-(\d{{1,9}})-\w+" + re.escape(PARTIAL_SUFFIX))
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(path.parent)) if os.name == "posix" else ():
            match = name.fullmatch(entry.name)
            if match and entry.name not in _UNDER_WAY and not _is_alive(int(match[1])):
                remove(Path(entry.path))


def _is_alive(process: int) -> bool:
    """Whether another process of that number runs; ours has another life than one that left something."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return process != os.getpid()


def _flush(path: Path) -> None:
    """Have the bytes of a file on the disk, where that can be asked for."""
    with _where_supported(), path.open("r+b" if os.access(path, os.W_OK) else "rb") as file:  # Windows wants "+"
        os.fsync(file.fileno())


@contextlib.contextmanager
def _where_supported() -> Iterator[None]:
    """Go on without what a file system has not, such as locks or flushing on one that lies in a network."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, as far as the system lets it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def named_disk_errors(path: Path) -> Iterator[None]:
    """A disk that is full, read-only or broken while `path` is written becomes one error that names both.

    Raises:
        WorkDirError: The disk is. Other errors, and those of ours that have said it already, pass unchanged.
    """
    try:
        yield
    except Exception as error:
        is_broken = isinstance(error, OSError) and error.errno == errno.EIO
        if isinstance(error, EDViTError) or not (is_broken or is_disk_fault(error)):
            raise
        raise WorkDirError(
            f"Expected to write {path}, but the disk does not take it: {error}. Nothing half-written is kept; what "
            "was there before still is. Free space or name another place, then run the same again."
        ) from error


def is_disk_fault(error: BaseException | None) -> bool:
    """Whether the disk is full or read-only, also where a library (safetensors, torch) reports text alone."""
    if isinstance(error, OSError) and error.errno in _DISK_FAULTS:
        return True
    return any(text in str(error) for text in _DISK_FAULTS_IN_WORDS)


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Make a folder and lock it for as long as the block runs; another process that wants it waits.

    The folder itself is locked, so that no other file has to lie there. On systems or disks without locks nobody waits.
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
            with _where_supported():
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
        if Path(src).suffix in LINKED_SUFFIXES:
            with contextlib.suppress(OSError):  # another file system, or one without hard links
                os.link(src, dst)
                return dst
        return str(shutil.copy2(src, dst))

    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
