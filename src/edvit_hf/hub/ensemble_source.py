"""The folder that an ensemble is loaded from: the one that is named, or one that is fetched from the Hub for it."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edvit_hf.errors import EDViTError
from edvit_hf.manifest import MANIFEST_NAME, Manifest, detect_profile

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
CACHE_VARIABLE = "EDVIT_CACHE_DIR"


def is_hub_id(text: str) -> bool:
    """Whether `text` could be the id of a Hub repository: no path that leads anywhere, no address, no option."""
    return _HUB_ID.fullmatch(text) is not None


def ensemble_folder(
    source: str | Path,
    *,
    revision: str | None = None,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    profile: str | None = None,
    sub_models: Sequence[int] | None = None,
) -> Path:
    """The folder `source` itself, or what is needed of the Hub repository of that name, fetched into a cache.

    The cache is `EDVIT_CACHE_DIR`, by default ~/.cache/edvit_hf. Without a connection, what an earlier call fetched
    for the same revision is used, with a warning.

    Args:
        source (`str | Path`): Folder, or Hub id.
        revision (`str`, *optional*): Branch, tag or commit of the repository.
        precision (`str`): Of the files wanted.
        profile (`str`, *optional*): Kind of hardware whose files are wanted; None: this one.
        sub_models (`Sequence[int]`, *optional*): Which ones; None: all.

    Raises:
        EDViTError: Neither a folder nor a Hub id, or a folder with a revision.
        HubError: The Hub has it not, or cannot be reached.
        ManifestError: What came is not what its manifest promises.
    """
    root = Path(source)
    if os.path.isdir(source):  # noqa: PTH112  (which does not mind a text longer than any name)
        if revision is not None:
            raise EDViTError(
                f"Expected a Hub repository, since a revision ({revision}) was named, got the folder {source}. A folder"
                " has one state only. Leave the revision out."
            )
        return root
    if not is_hub_id(str(source)):
        raise EDViTError(
            f"Expected a folder with an exported ensemble, or the id of a Hub repository, got {str(source)!r:.200}, "
            "which is neither. There is nothing to load. Check the path, or fetch a repository with: edvit pull REPO"
        )
    return _fetched(str(source), revision, precision, profile, sub_models)


def _fetched(
    repo: str,
    revision: str | None,
    precision: Literal["fp32", "fp16", "int8"],
    profile: str | None,
    sub_models: Sequence[int] | None,
) -> Path:
    from edvit_hf.hub import pull
    from edvit_hf.hub.client import UnreachableError

    name = "_".join(("all" if sub_models is None else "-".join(map(str, sorted(set(sub_models)))), precision))
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "edvit_hf")
    folder = cache / repo.replace("/", "--") / (revision or "main").replace("/", "--") / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    if precision == "int8" and profile is None:
        profile = detect_profile()
    try:
        commit = revision
        if sub_models is None:  # how many there are is in the manifest, which comes with the fusion head
            head = pull(repo, profile=profile, fusion=True, revision=revision, output=folder.with_name("fusion"))
            commit, sub_models = head.revision, range(len(Manifest.load(head.folder).sub_models))
        pull(
            repo, sub_models=list(sub_models), profile=profile, precision=precision, fusion=True, revision=commit,
            output=folder,
        )  # fmt: skip
    except UnreachableError as error:
        if not (folder / MANIFEST_NAME).is_file():
            raise
        logger.warning("using what was fetched of %s before: %s", repo, error)
    return folder
