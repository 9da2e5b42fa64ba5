"""`push`: a checked ensemble folder, or one profile's files of it, to the Hub in one commit."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import HubError
from edvit_hf.hub.cards import filled_card
from edvit_hf.hub.checks import check_folder
from edvit_hf.hub.client import CONFLICT, TRIES_OF_TRANSFERS, ask, connect, read_file
from edvit_hf.hub.files import README, LocalFile, list_files
from edvit_hf.hub.merging import check_same_content, merged_manifest, variants_for
from edvit_hf.hub.rights import check_write_rights
from edvit_hf.manifest import MANIFEST_NAME, Manifest, file_sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

MAX_CONFLICTS = 5
_FIGURES = "assets/"
_OWN_FOLDERS = ("sub_models/", "onnx/", _FIGURES)  # what an ensemble fills alone: what is not sent anew is stale
_OWN_SUFFIXES = (".safetensors", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Push:
    """What is about to be sent.

    Attributes:
        root: The ensemble folder.
        repo: `owner/name`.
        profile: Only the files of this kind of hardware; None: everything.
        files: What is sent, manifest and card included.
    """

    root: Path
    repo: str
    profile: str | None
    files: list[LocalFile]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did.

    Attributes:
        commit: The commit that holds it; None after a dry run.
        url: Where to look at it.
        changed: Whether there was anything to commit.
        removed: Stale files of an earlier version that the commit took away.
        tag: The tag that now names the commit.
        remarks: What nobody measured, for the reader.
    """

    commit: str | None = None
    url: str | None = None
    changed: bool = False
    removed: list[str]
    tag: str | None = None
    remarks: list[str]


@dataclass(frozen=True)
class _Remote:
    """A repository at one commit: path -> (bytes' identity by the Hub's two ways to store them)."""

    commit: str
    identities: Mapping[str, tuple[str | None, str]]  # sha256 of large files, git's hash of small ones


def prepare_push(folder: str | Path, repo: str, *, profile: str | None = None) -> Push:
    """What a push would send, without checking any of it.

    Raises:
        HubError: No such folder, a malformed repository name, or no files for the profile.
        ManifestError: With `profile`: the manifest is missing or invalid.
    """
    root = Path(folder)
    if not root.is_dir():
        raise HubError(
            f"Expected an ensemble folder, got {root}, which is not one. Name the folder that `edvit run` wrote."
        )
    owner, _, name = repo.partition("/")
    if not owner or not name or "/" in name or repo != repo.strip():
        raise HubError(
            f"Expected a repository as OWNER/NAME, got {repo!r}. The Hub would not know whose it is. Name both."
        )
    files = list_files(root)
    if profile is not None:
        sent = {v.file for v in variants_for(Manifest.load(root), profile)} | {MANIFEST_NAME, README}
        has_card = any(file.path == README for file in files)  # its figures go with it
        files = [f for f in files if f.path in sent or (has_card and f.path.startswith(_FIGURES))]
    return Push(root=root, repo=repo, profile=profile, files=files)


def push(
    prepared: Push,
    *,
    dry_run: bool = False,
    private: bool = False,
    tag: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> Pushed:
    """Check a folder and the token, then send everything in one commit, on top of the state that was read.

    Args:
        prepared (`Push`): From `prepare_push`.
        dry_run (`bool`): Check the folder only; no network.
        private (`bool`): Make a new repository private. One that is public already is refused.
        tag (`str`, *optional*): Name for the commit; one that names another commit is refused before anything is sent.
        revision (`str`, *optional*): Branch; made if it does not exist. Default: the main branch.
        create_pr (`bool`): Propose it as a pull request instead.
        token (`str`, *optional*): Default: HF_TOKEN, or the stored one.
        endpoint (`str`, *optional*): Default: HF_ENDPOINT, or the Hub.

    Raises:
        HubError: The folder has faults (all are named), the token lacks rights, or the Hub or the connection fails.
    """
    everything = list_files(prepared.root)
    manifest, remarks = check_folder(prepared.root, everything, needs_card=prepared.profile is None)
    if dry_run:
        return Pushed(removed=[], remarks=remarks)
    if create_pr and (revision or tag):
        raise HubError(
            "Expected a pull request without a branch and a tag: it is a branch of its own, and a tag would name a "
            "state that may never be accepted. Leave --revision and --tag out, or --create-pr."
        )
    api, repo = connect(token, endpoint), prepared.repo
    if not create_pr:  # proposing a change needs no right to make it
        check_write_rights(api, repo)
    _make_repository(api, prepared, private=private, revision=revision)
    for attempt in range(MAX_CONFLICTS):
        remote = _read_remote(api, repo, revision)
        additions, removed = _operations(api, prepared, manifest, remote)
        if not additions and not removed:
            break
        _check_tag_is_free(api, repo, tag)
        try:
            info = _commit(api, prepared, additions, removed, remote.commit, revision, create_pr)
        except HubError as error:
            if error.status not in CONFLICT:
                raise
            logger.warning("push: another commit landed meanwhile (%d); reading the repository again", attempt + 1)
            continue
        _tag(api, repo, tag, info.oid)
        url = info.pr_url if create_pr else info.commit_url
        return Pushed(commit=info.oid, url=url, changed=True, removed=removed, tag=tag, remarks=remarks)
    else:
        raise HubError(
            f"Expected to commit on top of what was read, but {repo} changed {MAX_CONFLICTS} times meanwhile. Writing "
            "anyway could undo somebody's work. Nothing was changed. Run this again when it is quieter."
        )
    _tag(api, repo, tag, remote.commit)
    return Pushed(commit=remote.commit, url=f"{api.endpoint}/{repo}", removed=[], tag=tag, remarks=remarks)


def _make_repository(api: "HfApi", prepared: Push, *, private: bool, revision: str | None) -> None:
    """Create repository and branch where they do not exist; one profile's files need an ensemble to add to."""
    repo = prepared.repo
    if prepared.profile is None:
        wanted = True if private else None  # None: what the owner has set for new repositories
        ask("creating the repository", repo, lambda: api.create_repo(repo, exist_ok=True, private=wanted))
    if private and not ask("reading the repository", repo, lambda: api.model_info(repo)).private:
        raise HubError(
            f"Expected {repo} to be private, but it exists and is public. Everybody could read what is sent. Nothing "
            "was sent. Change it in its settings first, or leave --private out."
        )
    if revision is not None:
        ask("creating the branch", repo, lambda: api.create_branch(repo, branch=revision, exist_ok=True))


def _read_remote(api: "HfApi", repo: str, revision: str | None) -> _Remote:
    from huggingface_hub import RepoFile

    commit = str(ask("reading the repository", repo, lambda: api.model_info(repo, revision=revision)).sha)
    entries = ask(
        "listing the repository", repo, lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit))
    )
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return _Remote(commit, {f.path: (f.lfs.sha256 if f.lfs else None, f.blob_id) for f in files})


def _operations(
    api: "HfApi", prepared: Push, manifest: Manifest, remote: _Remote
) -> tuple[list[tuple[str, Path | bytes]], list[str]]:
    """What differs from the repository: files to send, and stale ones to remove."""
    sent: dict[str, Path | bytes] = {file.path: prepared.root / file.path for file in prepared.files}
    if README in sent:
        card = (prepared.root / README).read_text(encoding="utf-8")
        sent[README] = filled_card(card, prepared.repo).encode()
    stale: list[str] = []
    if prepared.profile is None:
        stale = [p for p in remote.identities if p.startswith(_OWN_FOLDERS) or p.endswith(_OWN_SUFFIXES)]
        stale = sorted(set(stale) - set(sent))
    else:
        merged = _merged_with(api, prepared, manifest, remote)
        sent[MANIFEST_NAME] = merged.to_json().encode()
    changed = [(p, content) for p, content in sent.items() if not _is_there(content, remote.identities.get(p))]
    return changed, stale


def _merged_with(api: "HfApi", prepared: Push, manifest: Manifest, remote: _Remote) -> Manifest:
    repo, profile = prepared.repo, prepared.profile
    assert profile is not None
    if MANIFEST_NAME not in remote.identities:
        raise HubError(
            f"Expected an ensemble at {repo} to add the files of {profile!r} to, found no {MANIFEST_NAME}. Push the "
            "whole folder first, without --profile."
        )
    text = read_file(api, repo, MANIFEST_NAME, remote.commit).decode("utf-8", errors="replace")
    theirs = Manifest.from_json(text, source=f"{repo}/{MANIFEST_NAME}")
    check_same_content(manifest, theirs, repo)
    return merged_manifest(manifest, theirs, profile, repo)


def _is_there(content: Path | bytes, identity: tuple[str | None, str] | None) -> bool:
    """Whether the repository holds these bytes under this path."""
    if identity is None:
        return False
    sha256, git = identity
    if sha256 is not None and isinstance(content, Path):
        return file_sha256(content) == sha256
    data = content if isinstance(content, bytes) else content.read_bytes()
    if sha256 is not None:
        return hashlib.sha256(data).hexdigest() == sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == git


def _commit(
    api: "HfApi",
    prepared: Push,
    additions: list[tuple[str, Path | bytes]],
    removed: list[str],
    parent: str,
    revision: str | None,
    create_pr: bool,
) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    what = "ensemble" if prepared.profile is None else f"files for {prepared.profile}"

    def send() -> Any:
        operations: list[Any] = [CommitOperationAdd(path_in_repo=p, path_or_fileobj=c) for p, c in additions]
        operations += [CommitOperationDelete(path_in_repo=path) for path in removed]
        return api.create_commit(
            prepared.repo, operations, commit_message=f"Upload {what} with edvit_hf", parent_commit=parent,
            revision=revision, create_pr=create_pr,
        )  # fmt: skip

    # On top of a named parent a commit lands once, however often it is sent; a pull request is made anew each time.
    return ask("sending the commit", prepared.repo, send, tries=1 if create_pr else TRIES_OF_TRANSFERS)


def _check_tag_is_free(api: "HfApi", repo: str, tag: str | None) -> None:
    """Refuse, before anything is sent, a tag that names an earlier version."""
    if tag is None:
        return
    if (target := _tags(api, repo).get(tag)) is not None:
        raise HubError(
            f"Expected a new tag, but {tag!r} of {repo} names the commit {target[:12]} already. Who pinned it would "
            "get something else. Nothing was sent. Choose another one, or delete it first: "
            f"`hf repos tag delete {repo} {tag}`."
        )


def _tag(api: "HfApi", repo: str, tag: str | None, commit: str) -> None:
    if tag is None:
        return
    there = _tags(api, repo).get(tag)
    if there is not None and there != commit:
        raise HubError(
            f"Expected to name {commit[:12]} {tag!r}, but the tag names {there[:12]} already. The files are there, the "
            "tag was left. Choose another one."
        )
    if there is None:
        make: Callable[[], None] = lambda: api.create_tag(repo, tag=tag, revision=commit, exist_ok=True)  # noqa: E731
        ask("creating the tag", repo, make)


def _tags(api: "HfApi", repo: str) -> dict[str, str]:
    refs = ask("reading the tags", repo, lambda: api.list_repo_refs(repo))
    return {ref.name: ref.target_commit for ref in refs.tags}
