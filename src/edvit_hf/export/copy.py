"""A new folder that holds a copy of an ensemble, from a folder or the Hub, to be exported there."""

import contextlib
import fnmatch
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from edvit_hf.errors import CheckpointError, HubError, WorkDirError
from edvit_hf.export.commit import COMMITTED_NAME, STAGING_NAME
from edvit_hf.hub.client import fetch_matching
from edvit_hf.hub.source import is_hub_id
from edvit_hf.manifest import MANIFEST_NAME
from edvit_hf.storage import PARTIAL_SUFFIX
from edvit_hf.tasks import PROCESSOR_FILES

logger = logging.getLogger(__name__)

_NOT_COPIED = ("onnx", STAGING_NAME, COMMITTED_NAME, ".git", ".cache", MANIFEST_NAME)  # made anew, or not part of it
_CODE = ("configuration_edvit.py", "modeling_edvit.py", "parts_edvit.py")  # what travels with a saved ensemble
# Data only: neither code nor anything pickled is fetched.
_NAMES = ("config.json", *PROCESSOR_FILES)
_OF_THE_WHOLE = ("*.safetensors", "results.json", "README.md", "placement.json", "assets/*.png")
_FETCHED = (*_NAMES, *(f"*/{name}" for name in _NAMES), *_OF_THE_WHOLE)


@contextlib.contextmanager
def copied_ensemble(source: str | Path, target: Path, *, revision: str | None = None) -> Iterator[Path]:
    """Yield a copy of a saved ensemble that becomes `target` only if the block ends without an error.

    Args:
        source: A folder, or a Hub id. No code of a repository is fetched, let alone run.
        target: Must not exist or be an empty folder.
        revision: Of a Hub repository.

    Raises:
        CheckpointError: If `source` is neither, or cannot be fetched.
        WorkDirError: If `target` holds something, lies inside `source`, or cannot be written.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise WorkDirError(f"{target} exists and is not empty; an export never mixes with other files. Name another.")
    is_local = Path(source).is_dir()
    folder = Path(source) if is_local else _fetched(str(source), revision)
    if folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise WorkDirError(f"{target} lies inside the ensemble {source}, so it would copy itself. Name another folder.")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"Expected a saved ensemble in {source}, found no config.json. Name the folder or repository."
        )
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            if is_local:
                shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(*_NOT_COPIED))
            else:
                _copy_data(folder, partial)
        except OSError as error:  # `shutil.Error`, which lists what failed, is one
            raise WorkDirError(
                f"The copy of {source} cannot be written to {partial}: {error}. Nothing of it is kept. Free space or "
                "correct the permissions, then run the export again."
            ) from error
        yield partial
        if target.is_dir():
            target.rmdir()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("export: wrote %s", target)


def _copy_data(snapshot: Path, target: Path) -> None:
    """Copy the data of a fetched repository, and beside them the code of this package instead of the repository's.

    A snapshot may hold more than was asked for now, from an earlier download.
    """
    for path in snapshot.rglob("*"):
        name = path.relative_to(snapshot).as_posix()
        if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in _FETCHED):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
    for name in _CODE:
        shutil.copyfile(Path(__file__).resolve().parents[1] / name, target / name)


def _fetched(source: str, revision: str | None) -> Path:
    """The snapshot of a Hub repository, as far as an export needs it."""
    if not is_hub_id(source):
        raise CheckpointError(
            f"Expected a saved ensemble, got {source!r}, which is neither a folder nor a Hub id. Name the folder that "
            "`save_pretrained` wrote, or a repository as owner/name."
        )
    try:
        return fetch_matching(source, _FETCHED, revision)
    except (OSError, HubError) as error:  # OSError: the cache cannot be written
        raise CheckpointError(
            f"Expected a saved ensemble in the folder or Hub repository {source!r}, but there is no such folder and it "
            f"cannot be fetched: {error}. Correct the name, or log in if the repository is private."
        ) from error
