"""Whether a token may write to a repository, told before anything is sent."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import HubError
from edvit_hf.hub.client import ask

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SETTINGS = "https://huggingface.co/settings/tokens"
_WRITE = "repo.write"


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
