"""What a visitor names of the Hub, brought into a temporary folder: public, bounded, and never code.

Asked without any token: what only the owner of this Space may read must not be shown to its visitors.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import EDViTError, HubError, ManifestError, MissingExtraError
from edvit_hf.hub.source import is_hub_id
from edvit_hf.manifest import MANIFEST_NAME, Manifest
from edvit_hf.storage import MIB

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

MAX_BYTES = 256 * MIB
"""Of all files that an ensemble needs here, by its manifest and by what the Hub says; asked before anything is sent."""
MAX_SMALL_BYTES = 2 * MIB
"""Of the manifest, and of each file that the page reads beside the graphs."""
BESIDE = ("config.json", "results.json", "README.md")
"""What the page says more with, where a repository has it: sizes, accuracy, the card."""
WEIGHTS = "model.safetensors"
_PREFIXES = ("https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "https://hf.co/", "hf.co/")
TRIES = 2
"""Of each question to the Hub: a visitor who waits is told soon, and can try again."""
_HIDDEN = (401, 403, 404)
_ANONYMOUS: Any = False  # what the client takes for "no token, not even a stored one"


class SaidError(EDViTError):
    """What went wrong, in a visitor's words: nothing has to be translated any more."""


def hub_id_of(text: str) -> str | None:
    """The id in what was pasted, an id itself or the address of a repository's page; None where it is neither."""
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    text = text.removesuffix("/")
    return text if is_hub_id(text) else None


def fetch_ensemble(repo: str, folder: Path) -> bool:
    """Fetch what is needed of one commit of a repository into a folder that does not exist yet.

    Returns:
        `bool`: Whether the repository also holds weights and a config, so that Transformers can load it.

    Raises:
        SaidError: A sentence for the visitor.
    """
    try:
        return _fetch(repo, folder)
    except SaidError:
        raise
    except EDViTError as error:
        logger.info("could not open %s: %s", repo, error)
        raise SaidError(_said(repo, error)) from error


def _fetch(repo: str, folder: Path) -> bool:
    from edvit_hf.hub import pull
    from edvit_hf.hub.client import ask, connect, fetch_file, read_file
    from edvit_hf.hub.selection import select_by_profile

    api = connect(_ANONYMOUS)
    try:
        info = ask("reading the repository", repo, lambda: api.model_info(repo), tries=TRIES)
    except HubError as error:
        if error.status in _HIDDEN:
            raise SaidError(
                f"The Hub has no public repository named {repo}. Check the spelling; private ones cannot be opened "
                "here."
            ) from error
        raise
    commit = str(info.sha)
    sizes = _sizes(api, repo, commit, [MANIFEST_NAME, *BESIDE, WEIGHTS])
    if MANIFEST_NAME not in sizes:
        raise SaidError(
            f"{repo} is on the Hub, but it is no ensemble of edvit_hf: it has no {MANIFEST_NAME}. Name one that was "
            "made with edvit_hf."
        )
    if sizes[MANIFEST_NAME] > MAX_SMALL_BYTES:
        raise ManifestError(f"the manifest of {repo} has {sizes[MANIFEST_NAME]} bytes")
    text = read_file(api, repo, MANIFEST_NAME, commit)
    manifest = Manifest.from_json(text.decode("utf-8", "replace"), source=f"{repo}/{MANIFEST_NAME}")
    indices = range(len(manifest.sub_models))
    needed = select_by_profile(manifest, indices, profile=None, precision="fp32", fusion=True).files
    _check_size(repo, sum(each.bytes for each in needed))
    found = _sizes(api, repo, commit, [each.file for each in needed])
    if len(found) != len(needed):
        raise ManifestError(f"{repo} lacks files that its manifest lists: {len(needed)} needed, {len(found)} found")
    _check_size(repo, sum(found.values()))  # the manifest is the repository's own word: what the Hub would send counts
    pull(
        repo, sub_models=indices, precision="fp32", fusion=True, revision=commit, output=folder, token=_ANONYMOUS
    )  # fmt: skip
    for name in BESIDE:
        if sizes.get(name, MAX_SMALL_BYTES + 1) <= MAX_SMALL_BYTES:
            fetch_file(api, repo, name, commit, folder)
    return {"config.json", WEIGHTS} <= set(sizes)


def _sizes(api: "HfApi", repo: str, commit: str, files: Sequence[str]) -> dict[str, int]:
    """Bytes of those of the files that the repository has."""
    from edvit_hf.hub.client import ask

    def infos() -> list[Any]:
        return api.get_paths_info(repo, list(files), revision=commit)

    return {
        info.path: int(info.size) for info in ask("reading sizes", repo, infos, tries=TRIES) if hasattr(info, "size")
    }


def _check_size(repo: str, size: int) -> None:
    if size > MAX_BYTES:
        raise SaidError(
            f"{repo} needs {size / MIB:.0f} MiB, more than the {MAX_BYTES // MIB} MiB that this page fetches. Run "
            "it on a machine of your own: edvit space run."
        )


def _said(repo: str, error: EDViTError) -> str:
    """An error of the library in a visitor's words."""
    from edvit_hf.hub.client import UnreachableError

    status = error.status if isinstance(error, HubError) else None
    if isinstance(error, MissingExtraError):
        return "This page was set up without the Hub's client, so it opens nothing from there. Choose another ensemble."
    if isinstance(error, UnreachableError):
        return "The Hub cannot be reached from here at this moment. Choose another ensemble, or try again later."
    if status is not None and status not in _HIDDEN:
        return "The Hub is busy or in trouble at this moment. Choose another ensemble, or try again later."
    return (
        f"{repo} cannot be opened: a file is missing or damaged, or another version of edvit_hf made it. Name another "
        "ensemble."
    )
