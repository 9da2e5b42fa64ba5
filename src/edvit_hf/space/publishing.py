# SPDX-License-Identifier: Apache-2.0
"""`edvit space push`: a checked Space folder to the Hub, in one commit on top of the state that was read."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edvit_hf.errors import HubError, named_extra
from edvit_hf.hub.checks import list_files
from edvit_hf.hub.client import ask, connect, read_file
from edvit_hf.hub.commits import Changes, Remote, check_repo_name, check_write_rights, commit_changes, is_there
from edvit_hf.space.checks import check_space, is_ours
from edvit_hf.space.page import APP, CODE, EXAMPLES, MODEL, README
from edvit_hf.space.wheel import WHEELS

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# What a Space of ours fills alone: what is not sent anew is stale.
_OWN_FOLDERS = tuple(f"{name}/" for name in (*CODE, MODEL, EXAMPLES))
_OWN_SUFFIXES = (".py", ".css", ".js", ".whl")  # at the top


@dataclass(frozen=True, kw_only=True)
class PublishedSpace:
    """What a push did.

    Attributes:
        url: Where the Space is.
        commit: The commit that holds it; None after a dry run.
        changed: Whether there was anything to commit.
        removed: Files of an earlier version that the commit took away.
    """

    url: str
    commit: str | None = None
    changed: bool = False
    removed: tuple[str, ...] = ()


def space_url(repo: str, endpoint: str | None = None) -> str:
    """Where a Space is on the Hub.

    Raises:
        HubError: The name is not OWNER/NAME.
    """
    check_repo_name(repo)
    if endpoint is None:
        with named_extra("Publishing a Space", "hub"):
            from huggingface_hub import constants
        endpoint = constants.ENDPOINT
    return f"{endpoint.rstrip('/')}/spaces/{repo}"


def files_address(repo: str, endpoint: str | None = None) -> str:
    """Where a Space's own files are served, for `assemble(address=...)`."""
    return f"{space_url(repo, endpoint)}/resolve/main"


def permitted(repo: str, *, token: str | None = None, endpoint: str | None = None) -> "HfApi":
    """The Hub's client, if its token may write to `repo`: asked before a Space is assembled, which takes a while.

    Raises:
        HubError: No token, an invalid one, or one without the right, or the Hub cannot be reached.
    """
    api = connect(token, endpoint)
    check_write_rights(api, repo)
    return api


def publish(
    root: str | Path,
    repo: str,
    *,
    dry_run: bool = False,
    private: bool = False,
    api: "HfApi | None" = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> PublishedSpace:
    """Check a Space folder and the token, then send what differs in one commit; the Hub builds and starts it.

    What an earlier version of the page left in its folders and at the top (code, style, wheels) goes in the same
    commit. Other files stay. A Space that was not made here is refused.

    Args:
        root: A folder that `assemble` wrote, with the `address` of this repository if it holds a wheel.
        repo: OWNER/NAME. Made if it does not exist.
        dry_run: Check the folder only; no network.
        private: Make a new Space private. One that is public already is refused.
        api: From `permitted`, whose token then is not asked for again.
        token: Default: HF_TOKEN, or the stored one.
        endpoint: Default: HF_ENDPOINT, or the Hub.

    Raises:
        HubError: The folder has faults (all are named), the token lacks rights, another Space has that name, or the
            Hub or the connection fails. Nothing was changed then.
    """
    root, url = Path(root), space_url(repo, endpoint)
    files = list_files(root)
    check_space(root, files)
    if private:
        _check_wheel_can_be_had(root, repo)
    if dry_run:
        return PublishedSpace(url=url)
    if api is None:
        api = permitted(repo, token=token, endpoint=endpoint)
    hub = api
    ask(
        "creating the Space",
        repo,
        lambda: hub.create_repo(
            repo, repo_type="space", space_sdk="gradio", exist_ok=True, private=True if private else None
        ),
    )
    sent = {file.path: root / file.path for file in files}

    def changes(remote: Remote) -> Changes:
        _check_remote(hub, repo, remote, root, private=private)
        additions = [(path, file) for path, file in sent.items() if not is_there(file, remote.identities.get(path))]
        return additions, sorted(path for path in remote.identities if _is_of_a_page(path) and path not in sent)

    message = "Upload the page with edvit_hf"
    commit, removed, info = commit_changes(api, repo, changes, message=message, repo_type="space")
    return PublishedSpace(url=url, commit=commit, changed=info is not None, removed=tuple(removed))


def _is_of_a_page(path: str) -> bool:
    return path.startswith(_OWN_FOLDERS) or ("/" not in path and path.endswith(_OWN_SUFFIXES))


def _check_remote(api: "HfApi", repo: str, remote: Remote, root: Path, *, private: bool) -> None:
    """Refuse to write over somebody's other Space, and to send what should be private where all can read it."""
    if private and not remote.is_private:
        raise HubError(
            f"Expected {repo} to be private, but it exists and is public. Everybody could read what is sent. Nothing "
            "was sent. Change it in its settings first, or leave --private out."
        )
    if remote.is_private:
        _check_wheel_can_be_had(root, repo)
    if not any(_is_of_a_page(path) for path in remote.identities):
        return  # new, or never more than settings
    there = b"" if README not in remote.identities else read_file(api, repo, README, remote.commit, repo_type="space")
    if not is_ours(there.decode("utf-8", errors="replace")):
        found = APP if APP in remote.identities else next(path for path in remote.identities if _is_of_a_page(path))
        raise HubError(
            f"Expected {repo} to be new or a Space that was made here, but it holds another one ({found}, and no tag "
            f"`edvit` in {README}). Its page would be lost. Nothing was sent. Choose another name, or add the tag if "
            "you want to replace it."
        )


def _check_wheel_can_be_had(root: Path, repo: str) -> None:
    """A Space fetches its wheel like any visitor would, before its own files are there."""
    if wheels := sorted(path.name for path in root.glob(WHEELS)):
        raise HubError(
            f"Expected a Space that can install its library, but {repo} is private and {wheels[0]} lies in it: the "
            "Hub's builder fetches the wheel without a token and is refused. Nothing was sent. Make the Space public, "
            "or use --released once this version is."
        )
