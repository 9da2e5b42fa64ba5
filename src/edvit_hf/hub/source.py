# SPDX-License-Identifier: Apache-2.0
"""What may be the id of a Hub repository, and where an ensemble is pulled from: one commit of one, or a folder."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edvit_hf.errors import HubError, ManifestError
from edvit_hf.hub.client import commit_of, connect, fetch_file, read_file
from edvit_hf.manifest import MANIFEST_NAME, check_relative_path
from edvit_hf.manifest.document import MAX_BYTES
from edvit_hf.storage import read_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi


_HUB_ID = re.compile(r"(?!.*(\.\.|--))([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_hub_id(text: str, *, with_owner: bool = False) -> bool:
    """Whether `text` could be the id of a Hub repository: no path that leads anywhere, no address, no option.

    NAME and OWNER/NAME both can; `with_owner` takes only the latter, which alone can be written to.
    """
    return _HUB_ID.fullmatch(text) is not None and ("/" in text or not with_owner)


class HubSource:
    """A Hub repository at one commit, so that a commit landing between two reads never mixes two versions."""

    def __init__(self, api: "HfApi", repo: str, revision: str | None) -> None:
        self._api = api
        self.name = repo
        self._commit = commit_of(api, repo, revision)
        self.revision: str | None = self._commit

    def read_manifest(self) -> bytes:
        """The bytes of manifest.json."""
        return read_file(self._api, self.name, MANIFEST_NAME, self._commit, most=MAX_BYTES)

    def fetch(self, file: str, folder: Path, *, most: int, again: bool = False) -> None:
        """Write `file` below `folder`, under the same relative path; `again`: not from any cache.

        Raises:
            HubError: It has more than `most` bytes.
        """
        path = check_relative_path(file, "`file`")
        fetch_file(self._api, self.name, path, self._commit, folder, most=most, again=again)


class FolderSource:
    """A folder of this machine. Links are refused: they could lead to any file."""

    def __init__(self, root: Path) -> None:
        self._root, self.name = root, str(root)
        self.revision: str | None = None

    def read_manifest(self) -> bytes:
        """The bytes of manifest.json."""
        path = self._path(MANIFEST_NAME)
        try:
            return read_bytes(path, MAX_BYTES)
        except ValueError as error:
            raise ManifestError(f"Expected a manifest at {path}, got {error}. Export the ensemble again.") from error

    def fetch(self, file: str, folder: Path, *, most: int, again: bool = False) -> None:
        """Write `file` below `folder`, under the same relative path.

        Raises:
            ManifestError: It has more than `most` bytes.
        """
        source, target = self._path(file), folder / file
        if (size := source.stat().st_size) > most:
            raise ManifestError(
                f"{file}: expected at most {most} bytes, got {size}. It is another file than the manifest promises. "
                "Export the ensemble again."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def _path(self, file: str) -> Path:
        path = self._root
        for part in Path(check_relative_path(file, "`file`")).parts:
            path = path / part
            if path.is_symlink():
                raise ManifestError(
                    f"{file}: expected a file of {self.name}, got a link at {path.name}. A link could lead to any "
                    "file of this machine. Copy the file itself into the folder."
                )
        if not path.is_file():
            raise ManifestError(
                f"{self.name} holds no {file}, so it is no complete ensemble. Export it again, or name another folder."
            )
        return path


Source = HubSource | FolderSource  # one unchanging state of an ensemble's files


def open_source(repo: str, *, revision: str | None, token: str | None, endpoint: str | None) -> Source:
    """A folder if `repo` is one, else the Hub repository of that name.

    Raises:
        HubError: The Hub has no such repository or revision, or cannot be reached.
    """
    root = Path(repo)
    if not root.is_dir():
        return HubSource(connect(token, endpoint), repo, revision)
    refuse_revision(root, revision)
    return FolderSource(root)


def refuse_revision(folder: Path, revision: str | None) -> None:
    """Raise `HubError` if a revision was named of a folder."""
    if revision is not None:
        raise HubError(
            f"Expected a Hub repository, since a revision ({revision}) was named, got the folder {folder}. A folder "
            "has one state only. Leave the revision out."
        )
