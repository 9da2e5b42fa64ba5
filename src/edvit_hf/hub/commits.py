# SPDX-License-Identifier: Apache-2.0
"""One commit on top of a state that was read, and whether a token may make it: of a model's repository or a Space."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edvit_hf.errors import HubError
from edvit_hf.hub.client import CONFLICT, TRIES_OF_TRANSFERS, ask
from edvit_hf.hub.source import is_hub_id
from edvit_hf.manifest import file_sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

RepoType = Literal["model", "space"]
Changes = tuple[Sequence[tuple[str, Path | bytes]], list[str]]  # files to send, paths to remove
MAX_CONFLICTS = 5
_SETTINGS = "https://huggingface.co/settings/tokens"
_WRITE = "repo.write"


@dataclass(frozen=True)
class Remote:
    """A repository at one commit: path -> (bytes' identity by the Hub's two ways to store them)."""

    commit: str
    is_private: bool
    identities: Mapping[str, tuple[str | None, str]]  # sha256 of large files, git's hash of small ones


def check_repo_name(repo: str) -> None:
    """Refuse what cannot be a repository's name.

    Raises:
        HubError: It is not OWNER/NAME.
    """
    if not is_hub_id(repo, with_owner=True):
        raise HubError(
            f"Expected a repository as OWNER/NAME, of letters, digits, `-`, `_` and `.`, got {repo!r}. The Hub would "
            "not know whose it is. Name both."
        )


def read_remote(api: "HfApi", repo: str, revision: str | None = None, repo_type: RepoType = "model") -> Remote:
    """What a repository holds now.

    Raises:
        HubError: There is no such repository, or the Hub or the connection fails.
    """
    from huggingface_hub import RepoFile

    info = ask("reading the repository", repo, lambda: api.repo_info(repo, revision=revision, repo_type=repo_type))
    commit = str(info.sha)
    entries = ask(
        "listing the repository",
        repo,
        lambda: list(api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type)),
    )
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return Remote(commit, bool(info.private), {f.path: (f.lfs.sha256 if f.lfs else None, f.blob_id) for f in files})


def is_there(content: Path | bytes, identity: tuple[str | None, str] | None) -> bool:
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


def commit_changes(
    api: "HfApi",
    repo: str,
    changes: Callable[[Remote], Changes],
    *,
    message: str,
    repo_type: RepoType = "model",
    revision: str | None = None,
    create_pr: bool = False,
) -> tuple[str, list[str], Any]:
    """Send in one commit what differs from the repository, on top of the state that was read and no other.

    `changes` tells from a repository's state which files to send and which paths to remove; where another commit comes
    first, it is asked again.

    Returns:
        The commit, what it removed, and the client's description of it: None where nothing differed, and the commit is
        the one that is there.

    Raises:
        HubError: Others commit all the time, or the Hub or the connection fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    for attempt in range(MAX_CONFLICTS):
        remote = read_remote(api, repo, revision, repo_type)
        additions, removed = changes(remote)
        if not additions and not removed:
            return remote.commit, removed, None

        def send(remote: Remote = remote, additions: Any = additions, removed: Any = removed) -> Any:
            operations: list[Any] = [CommitOperationAdd(path_in_repo=p, path_or_fileobj=c) for p, c in additions]
            operations += [CommitOperationDelete(path_in_repo=path) for path in removed]
            where: dict[str, Any] = {"repo_type": repo_type, "revision": revision, "parent_commit": remote.commit}
            return api.create_commit(repo, operations, commit_message=message, create_pr=create_pr, **where)

        try:
            # On top of a named parent a commit lands once, however often it is sent; a pull request is made anew.
            info = ask("sending the commit", repo, send, tries=1 if create_pr else TRIES_OF_TRANSFERS)
        except HubError as error:
            if error.status not in CONFLICT:
                raise
            logger.warning("push: another commit landed meanwhile (%d); reading the repository again", attempt + 1)
            continue
        return info.oid, removed, info
    raise HubError(
        f"Expected to commit on top of what was read, but {repo} changed {MAX_CONFLICTS} times meanwhile. Writing "
        "anyway could undo somebody's work. Nothing was changed. Run this again when it is quieter."
    )


def check_write_rights(api: "HfApi", repo: str) -> None:
    """Ask the Hub who the token belongs to, and refuse one that could not write to `repo`.

    The Hub has the last word; this spares an upload that it would refuse at its end.

    Raises:
        HubError: No token, an invalid one, or one without the right; the message says what is missing.
    """
    from huggingface_hub import get_token

    if not (api.token or get_token()):
        raise HubError(
            f"Expected a token with write access to {repo}, found none. The Hub lets nobody write without. Run `hf "
            "auth login`, or set HF_TOKEN."
        )
    account = ask("asking whose token this is", repo, api.whoami)
    namespace = repo.partition("/")[0]
    auth = account.get("auth") or {}
    token = auth.get("accessToken") or {}
    name, role = token.get("displayName") or "the token", token.get("role")
    if role == "read":
        raise HubError(
            f"Expected a token with write access to {repo}, got {name!r}, which may only read. Nothing was sent. Make "
            f"one with the role `write` at {_SETTINGS} and log in with `hf auth login --force`."
        )
    if role == "fineGrained":
        _check_scopes(token.get("fineGrained") or {}, repo, name)
        return
    organisations = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs") or []}
    if namespace == account.get("name"):
        return
    if namespace not in organisations:
        own = ", ".join([str(account.get("name")), *map(str, organisations)])
        raise HubError(
            f"Expected a repository of one of {own}, got {repo}: {name!r} belongs to none of that name. Nothing was "
            "sent. Correct the name, or use a token of a member."
        )
    if organisations[namespace] == "read":
        raise HubError(
            f"Expected write access to {namespace}, but {account.get('name')} may only read there. Nothing was sent. "
            "Ask its administrators for the role `write` or `contributor`."
        )


def _check_scopes(rights: Mapping[str, Any], repo: str, name: str) -> None:
    """A fine-grained token names entities (a user, an organisation, a repository) and what it may do with each."""
    namespace = repo.partition("/")[0]
    scopes = {
        str((scope.get("entity") or {}).get("name")): list(scope.get("permissions") or [])
        for scope in rights.get("scoped") or []
    }
    if any(_WRITE in scopes.get(entity, []) for entity in (repo, namespace)):
        return
    granted = "; ".join(f"{entity}: {', '.join(permissions)}" for entity, permissions in scopes.items()) or "nothing"
    raise HubError(
        f"Expected a token with write access to {repo}, got the fine-grained {name!r}, which may do: {granted}. "
        f"Nothing was sent. Tick write access to the repositories of {namespace}, or to {repo}, at {_SETTINGS}."
    )
