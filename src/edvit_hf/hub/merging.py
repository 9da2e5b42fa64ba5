"""Adding the variants of one kind of hardware to a manifest that others have added to."""

from collections.abc import Sequence
from dataclasses import replace

from edvit_hf.errors import HubError
from edvit_hf.hardware.profiles import unknown_profile
from edvit_hf.manifest import Manifest, Variant
from edvit_hf.manifest.document import joined_protocols, renumbered


def variants_for(manifest: Manifest, profile: str) -> list[Variant]:
    """The graphs made for that kind of hardware.

    Raises:
        HubError: There are none; the message names the profiles that there are.
    """
    found = [variant for variant in manifest.variants if profile in variant.profiles]
    if not found:
        known = sorted({name for variant in manifest.variants for name in variant.profiles})
        refusal = unknown_profile(profile)
        if refusal is not None:
            raise HubError(refusal)
        raise HubError(
            f"Expected files made for {profile!r}, but the folder holds such files only for: "
            f"{', '.join(known) or 'no kind of hardware'}. There is nothing to add. Export them: `edvit export DIR "
            f"--profile {profile}`."
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
        remote, ensemble=ensemble, sub_models=sub_models, fusion=fusion, whole=merged(local.whole, remote.whole),
        latency_protocols=protocols,
    )  # fmt: skip


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
