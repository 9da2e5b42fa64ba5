# SPDX-License-Identifier: Apache-2.0
"""`push`: a checked ensemble folder, or one profile's files of it, to the Hub in one commit.

With a profile, its variants are added to a manifest that others have added to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edvit_hf.errors import HubError
from edvit_hf.hardware.profiles import unknown_profile
from edvit_hf.hub.checks import README, LocalFile, check_folder, filled_card, list_files
from edvit_hf.hub.client import ask, connect, read_file
from edvit_hf.hub.commits import Changes, Remote, check_repo_name, check_write_rights, commit_changes, is_there
from edvit_hf.manifest import MANIFEST_NAME, Manifest, Variant
from edvit_hf.manifest.document import MAX_BYTES, joined_protocols, renumbered

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_FIGURES = "assets/"
_OWN_FOLDERS = ("sub_models/", "onnx/", _FIGURES)  # what an ensemble fills alone: what is not sent anew is stale
_OWN_SUFFIXES = (".safetensors", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Push:
    """What is about to be sent."""

    root: Path  # the ensemble folder
    repo: str  # `owner/name`
    profile: str | None  # only the files of this kind of hardware; None: everything
    files: list[LocalFile]  # what is sent, manifest and card included

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did."""

    commit: str | None = None  # the commit that holds it; None after a dry run
    url: str | None = None  # where to look at it
    changed: bool = False  # whether there was anything to commit
    removed: list[str]  # stale files of an earlier version that the commit took away
    tag: str | None = None  # the tag that now names the commit
    remarks: list[str]  # what nobody measured, for the reader


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
    check_repo_name(repo)
    files = list_files(root)
    if profile is not None:
        sent = {v.file for v in variants_for(Manifest.load(root, fresh=False), profile)} | {MANIFEST_NAME, README}
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

    def changes(remote: Remote) -> Changes:
        additions, removed = _operations(api, prepared, manifest, remote)
        if additions or removed:
            _check_tag_is_free(api, repo, tag)
        return additions, removed

    what = "ensemble" if prepared.profile is None else f"files for {prepared.profile}"
    commit, removed, info = commit_changes(
        api, repo, changes, message=f"Upload {what} with edvit_hf", revision=revision, create_pr=create_pr
    )
    _tag(api, repo, tag, commit)
    if info is None:
        return Pushed(commit=commit, url=f"{api.endpoint}/{repo}", removed=[], tag=tag, remarks=remarks)
    url = info.pr_url if create_pr else info.commit_url
    return Pushed(commit=commit, url=url, changed=True, removed=removed, tag=tag, remarks=remarks)


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


def _operations(api: "HfApi", prepared: Push, manifest: Manifest, remote: Remote) -> Changes:
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
    changed = [(p, content) for p, content in sent.items() if not is_there(content, remote.identities.get(p))]
    return changed, stale


def _merged_with(api: "HfApi", prepared: Push, manifest: Manifest, remote: Remote) -> Manifest:
    repo, profile = prepared.repo, prepared.profile
    assert profile is not None
    if MANIFEST_NAME not in remote.identities:
        raise HubError(
            f"Expected an ensemble at {repo} to add the files of {profile!r} to, found no {MANIFEST_NAME}. Push the "
            "whole folder first, without --profile."
        )
    text = read_file(api, repo, MANIFEST_NAME, remote.commit, most=MAX_BYTES)
    theirs = Manifest.from_json(text, source=f"{repo}/{MANIFEST_NAME}")
    check_same_content(manifest, theirs, repo)
    return merged_manifest(manifest, theirs, profile, repo)


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


def variants_for(manifest: Manifest, profile: str) -> list[Variant]:
    """The graphs made for that kind of hardware.

    Raises:
        HubError: There are none; the message names the profiles that there are.
    """
    found = [variant for variant in manifest.variants if profile in variant.profiles]
    if not found:
        if refusal := unknown_profile(profile):
            raise HubError(refusal)
        raise HubError(
            f"Expected files made for {profile!r}, but the folder holds such files only for: "
            f"{', '.join(manifest.profiles) or 'no kind of hardware'}. There is nothing to add. Export them: `edvit "
            f"export DIR --profile {profile}`."
        )
    return found


def check_same_content(local: Manifest, remote: Manifest, repo: str) -> None:
    """Refuse to mix graphs of different weights.

    Raises:
        HubError: The content hashes differ.
    """
    ours, theirs = local.ensemble, remote.ensemble
    if ours.content_hash != theirs.content_hash:
        raise HubError(
            f"Expected the ensemble that {repo} holds ({theirs.id}, {theirs.content_hash[:12]}...), got {ours.id} "
            f"({ours.content_hash[:12]}...). Files made from different weights would mix. Export from the weights of "
            f"{repo}, or push the whole folder without --profile."
        )


def merged_manifest(local: Manifest, remote: Manifest, profile: str, repo: str) -> Manifest:
    """The remote manifest with the local variants of one profile; everything else of it stays.

    A file that is there already, byte for byte, serves both profiles afterwards. One of the same name with other
    bytes is replaced only if no other profile uses it.

    Raises:
        HubError: It would be replaced under another profile's feet.
    """
    protocols, numbers = joined_protocols(remote.latency_protocols, local.latency_protocols)

    def merged(ours: Sequence[Variant], theirs: Sequence[Variant]) -> list[Variant]:
        return _merged([renumbered(variant, numbers) for variant in ours], theirs, profile, repo)

    sub_models = [
        replace(theirs, variants=merged(ours.variants, theirs.variants))
        for ours, theirs in zip(local.sub_models, remote.sub_models, strict=True)
    ]
    names = {variant.name for variant in variants_for(local, profile)}
    accuracy = {k: v for k, v in (local.ensemble.accuracy or {}).items() if k in names}
    gates = {k: v for k, v in (local.ensemble.gates or {}).items() if k in names}
    ensemble = replace(
        remote.ensemble,
        accuracy={**(remote.ensemble.accuracy or {}), **accuracy} or None,
        gates={**(remote.ensemble.gates or {}), **gates} or None,
    )
    fusion = replace(remote.fusion, variants=merged(local.fusion.variants, remote.fusion.variants))
    return replace(
        remote,
        ensemble=ensemble,
        sub_models=sub_models,
        fusion=fusion,
        whole=merged(local.whole, remote.whole),
        latency_protocols=protocols,
    )


def _merged(ours: Sequence[Variant], theirs: Sequence[Variant], profile: str, repo: str) -> list[Variant]:
    result = {variant.file: variant for variant in theirs}
    for variant in ours:
        if profile not in variant.profiles:
            continue
        there = result.get(variant.file)
        others = [] if there is None else [name for name in there.profiles if name != profile]
        serves_all = there is not None and not there.profiles
        if there is not None and there.sha256 != variant.sha256 and (others or serves_all):
            raise HubError(
                f"Expected to add files for {profile!r} only, but {variant.file} of {repo} has other bytes and serves "
                f"{', '.join(others) or 'any hardware'}. Those devices would get another file. Export with the "
                "versions that made it, or push the whole folder without --profile."
            )
        profiles = [] if serves_all else list(dict.fromkeys([*others, *variant.profiles]))
        result[variant.file] = replace(variant, profiles=profiles)
    return list(result.values())
