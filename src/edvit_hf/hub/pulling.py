# SPDX-License-Identifier: Apache-2.0
"""`pull`: what one device needs of an ensemble, verified, in a folder that appears whole or not at all.

`ensemble_folder` pulls into a cache what is loaded by its Hub id.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edvit_hf.errors import EDViTError, HubError, ManifestError, WorkDirError
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hub.client import UnreachableError
from edvit_hf.hub.selection import NeededFile, Precision, Selection, select_by_placement, select_by_profile
from edvit_hf.hub.source import Source, is_hub_id, open_source, refuse_revision
from edvit_hf.manifest import MANIFEST_NAME, Manifest, verify_file
from edvit_hf.manifest.hashes import check_name
from edvit_hf.manifest.placement import load_placement
from edvit_hf.storage import MIB, held_folder

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "EDVIT_CACHE_DIR"
# Beside the folder, under names that nobody else uses: what lies there is removed without asking.
_STAGED, _FORMER = ".{}.edvit-partial", ".{}.edvit-old"
_TRIES_PER_FILE = 2  # bytes damaged on the way are fetched once more; bytes that stay wrong are wrong at the source
_LONGEST_NAME = 150
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull did."""

    folder: Path  # holds the files
    source: str  # repository or folder they are from
    revision: str | None  # its commit; None for a folder
    content_hash: str  # of the ensemble
    selection: Selection  # what was chosen
    bytes_on_disk: int  # of all files in the folder
    bytes_fetched: int  # of those that had to be fetched, without the manifest
    unchanged: bool  # whether the folder was complete and right already


def pull(
    repo: str,
    *,
    sub_models: Sequence[int] = (),
    profile: str | None = None,
    precision: Precision | None = None,
    raw_inputs: bool = False,
    placement: str | Path | None = None,
    device: str | None = None,
    fusion: bool = False,
    revision: str | None = None,
    output: str | Path | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Pulled:
    """Fetch what one device needs, and nothing else: graphs, configs, what prepares inputs, and the manifest.

    Either `sub_models` and `profile` say what that is, or `placement` and `device`. Everything is read from one
    commit. The folder is replaced whole when all of it is there with the right hashes; until then it stays as it was,
    and what was verified is kept beside it for the next try. No code of a repository is run, and nothing but ONNX
    graphs and JSON or text that the manifest vouches for is fetched.

    Args:
        repo (`str`): Hub id, or a folder with an ensemble.
        sub_models (`Sequence[int]`): Which ones.
        profile (`str`, *optional*): Kind of hardware whose files are wanted.
        precision (`str`, *optional*): See `select_by_profile`.
        raw_inputs (`bool`): The files that prepare their inputs themselves.
        placement (`str | Path`, *optional*): A placement.json, instead of `sub_models` and `profile`.
        device (`str`, *optional*): Its name in the placement.
        fusion (`bool`): The fusion head too. A placement's coordinator gets it anyway.
        revision (`str`, *optional*): Branch, tag or commit. Default: the main branch.
        output (`str | Path`, *optional*): The folder. Default: named after repository and device or sub-models.
        token (`str`, *optional*): Default: HF_TOKEN, or the stored one.
        endpoint (`str`, *optional*): Default: HF_ENDPOINT, or the Hub.

    Raises:
        HubError: What was asked for does not exist, or the Hub or the connection fails for good.
        ManifestError: The manifest is invalid, or a file is not what it promises.
        WorkDirError: The folder holds something else, or cannot be written.
    """
    _check_choice(placement, device, is_chosen=bool(sub_models or profile or precision or raw_inputs))
    placed = None if placement is None else load_placement(Path(placement))
    source = open_source(repo, revision=revision, token=token, endpoint=endpoint)
    text = source.read_manifest()
    manifest = Manifest.from_json(text, source=f"{source.name}/{MANIFEST_NAME}")
    if placed is not None and device is not None:
        selection = select_by_placement(manifest, placed, device, fusion=fusion)
    else:
        selection = select_by_profile(
            manifest, sub_models, profile=profile, precision=precision, raw_inputs=raw_inputs, fusion=fusion
        )
    folder = Path(output) if output is not None else Path(_default_name(source, selection, device))
    fetched, unchanged = _fetch_selection(source, text, selection, folder)
    return Pulled(
        folder=folder,
        source=source.name,
        revision=source.revision,
        content_hash=manifest.ensemble.content_hash,
        selection=selection,
        bytes_on_disk=len(text) + sum(needed.bytes for needed in selection.files),
        bytes_fetched=fetched,
        unchanged=unchanged,
    )


def _check_choice(placement: str | Path | None, device: str | None, *, is_chosen: bool) -> None:
    if (placement is None) != (device is None):
        raise HubError(
            f"Expected --placement and --device together, got only {'--device' if placement is None else '--placement'}"
            ". One says what each device holds, the other which device this is. Give both, or neither."
        )
    if placement is not None and is_chosen:
        raise HubError(
            "Expected either a placement or a choice of sub-models, profile and precision, got both. They could "
            "disagree. Leave one out."
        )


def ensemble_folder(
    source: str | Path,
    *,
    revision: str | None = None,
    precision: Precision | None = None,
    profile: str | None = None,
    sub_models: Sequence[int] | None = None,
) -> Path:
    """The folder `source` itself, or what is needed of the Hub repository of that name, fetched into a cache.

    The cache is `EDVIT_CACHE_DIR`, by default ~/.cache/edvit_hf. Without a connection, what an earlier call fetched for
    the same revision is used, with a warning. Of a repository only the files of one precision and kind of hardware
    (None: fp32, and this machine's) are fetched, and only of some sub-models if they are named.

    Raises:
        EDViTError: Neither a folder nor a Hub id, or a folder with a revision.
        HubError: The Hub has it not, or cannot be reached.
        ManifestError: What came is not what its manifest promises.
    """
    root = Path(source)
    if os.path.isdir(source):  # noqa: PTH112  (which does not mind a text longer than any name)
        refuse_revision(root, revision)
        return root
    if not is_hub_id(str(source)):
        raise EDViTError(
            f"Expected a folder with an exported ensemble, or the id of a Hub repository, got {str(source)!r:.200}, "
            "which is neither. There is nothing to load. Check the path, or fetch a repository with: edvit pull REPO"
        )
    return _pulled_into_cache(str(source), revision, precision or "fp32", profile, sub_models)


def _pulled_into_cache(
    repo: str, revision: str | None, precision: Precision, profile: str | None, sub_models: Sequence[int] | None
) -> Path:
    name = "_".join(("all" if sub_models is None else "-".join(map(str, sorted(set(sub_models)))), precision))
    folder = _cache() / repo.replace("/", "--") / (revision or "main").replace("/", "--") / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkDirError(
            f"Expected a cache that can be written, got {folder.parent}, which cannot ({error.strerror}). What is "
            f"fetched has to lie somewhere. Set {CACHE_VARIABLE} to a folder of yours, or fetch into a folder: edvit "
            "pull REPO --output FOLDER"
        ) from error
    if precision == "int8" and profile is None:
        profile = detect_profile()
    try:
        commit = revision
        if sub_models is None:  # how many there are is in the manifest, which comes with the fusion head
            head = pull(repo, profile=profile, fusion=True, revision=revision, output=folder.with_name("fusion"))
            commit, sub_models = head.revision, range(len(Manifest.load(head.folder).sub_models))
        chosen = list(sub_models)
        pull(repo, sub_models=chosen, profile=profile, precision=precision, fusion=True, revision=commit, output=folder)
    except UnreachableError as error:
        if not (folder / MANIFEST_NAME).is_file():
            raise
        logger.warning("using what was fetched of %s before: %s", repo, error)
    return folder


def _cache() -> Path:
    """The folder of what is fetched.

    Raises:
        WorkDirError: No variable names one, and this user has no home.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    try:
        return Path.home() / ".cache" / "edvit_hf"
    except RuntimeError as error:
        raise WorkDirError(
            f"Expected a home folder for the cache, got none: HOME is not set. What is fetched has to lie somewhere. "
            f"Set {CACHE_VARIABLE} to a folder, or fetch into a folder: edvit pull REPO --output FOLDER"
        ) from error


def _default_name(source: Source, selection: Selection, device: str | None) -> str:
    name = Path(source.name).resolve().name if source.revision is None else source.name.rpartition("/")[2]
    chosen = device or "_".join(map(str, selection.variants)) or "fusion"
    return check_name(f"{name or 'ensemble'}_{chosen}"[:_LONGEST_NAME], "the name of the folder", HubError)


def _fetch_selection(source: Source, manifest: bytes, selection: Selection, folder: Path) -> tuple[int, bool]:
    """Make `folder` hold the manifest and the files, and nothing else; bytes fetched, and whether it did before."""
    folder = Path(os.path.realpath(folder))
    if not folder.name or folder.is_symlink():
        raise WorkDirError(
            f"Expected a folder that can be made or replaced, got {folder}, which cannot. What is fetched has to lie "
            "somewhere. Name another with --output."
        )
    old = folder.with_name(_FORMER.format(folder.name))
    if not old.exists() and _is_complete(folder, manifest, selection):
        return 0, True  # nothing has to be written, so the disk may be read-only
    with _plain_disk_errors(folder), _staging(folder) as partial:
        if old.is_dir() and not folder.exists():  # a pull was stopped between the two renames below
            old.replace(folder)
        shutil.rmtree(old, ignore_errors=True)  # or after them
        _check_replaceable(folder)
        if _is_complete(folder, manifest, selection):
            return 0, True
        fetched = sum(_install_file(source, needed, partial, folder) for needed in _with_bar(selection.files))
        _keep_only(partial, {needed.file for needed in selection.files})
        (partial / MANIFEST_NAME).write_bytes(manifest)  # last: until now nothing loads from there
        if folder.exists():
            folder.replace(old)
        partial.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    return fetched, False


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """The folder beside it where files are gathered; whoever else pulls into the same place waits until we are done.

    What was gathered stays for the next try, except on a full disk. On systems without `fcntl` nobody waits: there
    two pulls into one folder at once may fail.
    """
    partial = folder.with_name(_STAGED.format(folder.name))
    with held_folder(partial):
        try:
            yield partial
        except OSError as error:
            if error.errno in _FULL:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            with contextlib.suppress(OSError):  # gone, or it holds what was gathered
                partial.rmdir()


def _with_bar(files: list[NeededFile]) -> Iterator[NeededFile]:
    """The files, with a progress bar where the package for it is there (it comes with the Hub's client)."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from files
        return
    with tqdm(total=sum(needed.bytes for needed in files), desc="pull", unit="B", unit_scale=True, disable=None) as bar:
        for needed in files:
            yield needed
            bar.update(needed.bytes)


def _install_file(source: Source, needed: NeededFile, partial: Path, folder: Path) -> int:
    """Have one verified file in the staging folder: what lies there or in the old folder is not fetched again."""
    if _is_right(partial, needed):
        return 0
    target = partial / needed.file
    if _is_right(folder, needed):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # whatever it is: what is there is not written through
        shutil.copyfile(folder / needed.file, target)
        return 0
    for attempt in range(_TRIES_PER_FILE):
        target.unlink(missing_ok=True)
        source.fetch(needed.file, partial, most=needed.bytes, again=attempt > 0)
        try:
            verify_file(partial, needed)
            return needed.bytes
        except ManifestError as error:
            target.unlink(missing_ok=True)
            if attempt + 1 == _TRIES_PER_FILE:
                raise ManifestError(
                    f"{source.name}: {error} It was fetched {_TRIES_PER_FILE} times. If that does not help, its owner "
                    "has to push the ensemble again."
                ) from error
            logger.warning("pull: %s", error)
    raise AssertionError("unreachable")


def _is_right(root: Path, needed: NeededFile) -> bool:
    path = root / needed.file
    if path.is_symlink() or not path.is_file():
        return False
    try:
        verify_file(root, needed)
    except ManifestError:
        return False
    return True


def _is_complete(folder: Path, manifest: bytes, selection: Selection) -> bool:
    path = folder / MANIFEST_NAME
    if not path.is_file() or path.read_bytes() != manifest:
        return False
    files = {needed.file for needed in selection.files}
    return _files_in(folder) == {MANIFEST_NAME, *files} and all(_is_right(folder, n) for n in selection.files)


def _files_in(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}


def _keep_only(root: Path, files: set[str]) -> None:
    """Remove what is not in `files` (the client's own notes, what an earlier choice left) and then empty folders."""
    for name in _files_in(root) - files:
        (root / name).unlink()
    for path in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that holds anything a pull would not have put there.

    Raises:
        WorkDirError: It does, or a file is in the way.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        manifest = Manifest.load(folder)
        configs = [f"{entry.path}/config.json" for entry in manifest.sub_models]
        own = {MANIFEST_NAME, *(v.file for v in manifest.variants), *configs}
        own |= {name for name in manifest.content if "/" not in name and not name.endswith(".safetensors")}
        foreign = sorted(_files_in(folder) - own)
    except (ManifestError, NotADirectoryError) as error:
        foreign = [f"no manifest ({error})"]
    if foreign:
        raise WorkDirError(
            f"Expected a new or empty folder, or one that an earlier pull made, got {folder}, which holds "
            f"{', '.join(foreign[:3])}. A pull replaces its folder whole, and that would be lost. Name another one "
            "with --output, or remove it."
        )


@contextlib.contextmanager
def _plain_disk_errors(folder: Path) -> Iterator[None]:
    """A full disk and a folder that cannot be written become one message."""
    try:
        yield
    except OSError as error:
        if isinstance(error, WorkDirError | HubError) or error.errno not in _NOT_WRITABLE:
            raise
        free = ""
        if error.errno in _FULL:
            with contextlib.suppress(OSError):
                free = f" ({shutil.disk_usage(folder.parent).free / MIB:.1f} MiB free)"
        raise WorkDirError(
            f"Expected room for the files of this device at {folder}, but they cannot be written: "
            f"{os.strerror(error.errno)}{free}. The folder is as it was before. Free space or correct the permissions, "
            "then pull again."
        ) from error
