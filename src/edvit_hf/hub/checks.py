"""Every check that a folder passes before any of it is sent. No network."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edvit_hf.errors import HubError, ManifestError
from edvit_hf.hub.cards import card_faults
from edvit_hf.hub.files import README, LocalFile, file_faults
from edvit_hf.hub.weights import weight_faults
from edvit_hf.manifest import MANIFEST_NAME, Manifest, content_files, hash_of_content, verify_file

MAX_PARITY = 1e-4  # of fp32 against torch, over the largest logit
_ROUNDING = 1e-6  # absolute; below it a small logit alone makes the ratio large
_MOST_SHOWN = 12


def check_folder(root: Path, files: Sequence[LocalFile], *, needs_card: bool = True) -> tuple[Manifest, list[str]]:
    """The folder's manifest, and remarks on what nobody measured.

    Args:
        root (`Path`): The ensemble folder.
        files (`Sequence[LocalFile]`): What is in it.
        needs_card (`bool`): Whether a missing README.md is a fault; one that is there is checked anyway.

    Raises:
        HubError: With everything that has to be put right, not just the first.
    """
    faults: list[str] = []
    manifest = _load(root, faults)
    faults += file_faults(root, files, manifest)
    if manifest is not None:
        faults += _hash_faults(root, manifest)
        if not faults:  # weights that are missing or altered were named already
            faults += weight_faults(root, manifest)
        faults += _gate_faults(manifest)
    paths = {file.path for file in files}
    if needs_card or README in paths:
        faults += card_faults(_card(root, faults) if README in paths else None, paths)
    if faults or manifest is None:
        shown = "\n".join(f"- {fault}" for fault in faults[:_MOST_SHOWN])
        more = f"\n- and {len(faults) - _MOST_SHOWN} more" if len(faults) > _MOST_SHOWN else ""
        raise HubError(
            f"Expected a folder that is ready to publish, got {len(faults)} fault{'s' * (len(faults) != 1)} in {root}. "
            f"Whoever loads it would be misled. Nothing was sent. Put right:\n{shown}{more}"
        )
    return manifest, list(_remarks(manifest))


def _load(root: Path, faults: list[str]) -> Manifest | None:
    try:
        return Manifest.load(root)
    except ManifestError as error:
        faults.append(f"{MANIFEST_NAME}: {error}")
        return None


def _card(root: Path, faults: list[str]) -> str | None:
    try:
        return (root / README).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        faults.append(f"README.md cannot be read as UTF-8 text ({error}). Render it anew.")
        return ""


def _hash_faults(root: Path, manifest: Manifest) -> Iterator[str]:
    """Listed files that are missing or altered, and content that is not what the manifest identifies."""
    for variant in manifest.variants:
        try:
            verify_file(root, variant)
        except ManifestError as error:
            yield str(error)
    try:
        found = content_files(root)
    except ManifestError as error:
        yield str(error)
        return
    if hash_of_content(found) == manifest.ensemble.content_hash:
        return
    named = {*found, *manifest.content}
    changed = sorted(name for name in named if found.get(name) != manifest.content.get(name))
    yield (
        f"Weights or configs are not those of the manifest ({', '.join(changed[:3])}): the graphs were made from "
        "others. Export again."
    )


def _gate_faults(manifest: Manifest) -> Iterator[str]:
    for name, gate in (manifest.ensemble.gates or {}).items():
        if _failed(gate):
            yield f"The accuracy gate of {name} was missed. Export with other values, or without that variant."
    checked: list[tuple[str, Any]] = [
        (v.file, v.parity) for v in manifest.variants if v.precision == "fp32" and v.inputs == "prepared"
    ]
    checked.append(("the exported ensemble", manifest.ensemble.parity))
    for what, parity in checked:
        if parity is not None and parity.relative_to_largest_logit > MAX_PARITY and parity.max_abs > _ROUNDING:
            yield (
                f"{what} is {parity.relative_to_largest_logit:.1e} of the largest logit away from torch, more than "
                f"{MAX_PARITY:.0e}. Export again."
            )


def _failed(gate: Any) -> bool:
    """Whether a gate's record says, at any depth (overall, by class group), that it was not passed."""
    if isinstance(gate, Mapping):
        return gate.get("passed") is False or any(_failed(each) for each in gate.values())
    return isinstance(gate, list) and any(_failed(each) for each in gate)


def _remarks(manifest: Manifest) -> Iterator[str]:
    gates = manifest.ensemble.gates or {}
    files = [v for entry in manifest.sub_models for v in entry.variants]
    lossy = {v.name for v in files if v.precision != "fp32" and v.inputs == "prepared"}
    for name in sorted(lossy - set(gates)):
        yield f"{name} passed no accuracy gate: none was measured"
    if manifest.ensemble.accuracy is None:
        yield f"accuracy is not measured: {manifest.ensemble.accuracy_note}"
