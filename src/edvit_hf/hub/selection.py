# SPDX-License-Identifier: Apache-2.0
"""What one device needs of an ensemble: chosen from its manifest by a profile, or by a placement."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from edvit_hf.errors import HubError, ManifestError, did_you_mean
from edvit_hf.hardware.profiles import unknown_profile
from edvit_hf.manifest import ContentFile, Manifest, SubModelEntry, Variant
from edvit_hf.manifest.entries import Precision, offered, suited_variants
from edvit_hf.manifest.placement import PlacedDevice, PlacementFile
from edvit_hf.tasks import NEEDED_PROCESSOR_FILES

_GRAPH_SUFFIX = ".onnx"


@dataclass(frozen=True, kw_only=True)
class NeededFile:
    """A file of the ensemble and what it must hold."""

    file: str  # relative to the ensemble folder, without the "." and doubled slashes that a manifest may hold
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What one device needs."""

    variants: Mapping[int, Variant]  # sub-model -> its graph
    fusion: Variant | None  # the fusion head's graph, for the device that fuses
    files: list[NeededFile]  # everything but manifest.json: graphs, configs and what prepares the inputs

    @property
    def graph_bytes(self) -> int:
        """Bytes of the graphs alone."""
        return sum(needed.bytes for needed in self.files if needed.file.endswith(_GRAPH_SUFFIX))


def select_by_profile(
    manifest: Manifest,
    sub_models: Sequence[int],
    *,
    profile: str | None,
    precision: Precision | None = None,
    raw_inputs: bool = False,
    fusion: bool = False,
) -> Selection:
    """What a device of one kind of hardware needs to run some sub-models (none: it fuses only).

    The default precision is "int8", with an error that says what there is where none suits the profile: a device never
    falls back to larger files unasked. Only where the precision is another one may the profile be left out.

    Raises:
        HubError: An index, a profile or a file that does not exist; the message names those that do.
    """
    unknown = sorted(index for index in set(sub_models) if not 0 <= index < len(manifest.sub_models))
    if unknown:
        raise HubError(
            f"Expected sub-models from 0 to {len(manifest.sub_models) - 1} ({_groups(manifest)}), got "
            f"{', '.join(map(str, unknown))}. There is nothing to fetch for it. Correct the number."
        )
    if not sub_models and not fusion:
        raise HubError(
            "Expected what to fetch, got no sub-model, no placement and not the fusion head. A device needs one of "
            "them. Name --sub-model INDEX, --placement FILE with --device NAME, or --fusion."
        )
    if profile is not None:
        if refusal := unknown_profile(profile, manifest.profiles):
            raise HubError(refusal)
    elif sub_models and precision in (None, "int8"):
        raise HubError(
            f"Expected a kind of hardware, got none. int8 files are made for one instruction set and may be slow or "
            f"wrong on another. Name one with --profile ({', '.join(manifest.profiles)}), or --precision fp32."
        )
    inputs = "raw" if raw_inputs else "prepared"
    chosen = {
        index: _variant_for(manifest.sub_models[index], profile, precision or "int8", inputs)
        for index in sorted(set(sub_models))
    }
    return _selection(manifest, chosen, fusion)


def select_by_placement(
    manifest: Manifest, placement: PlacementFile, device: str, *, fusion: bool = False
) -> Selection:
    """What a named device of a placement needs: its sub-models, those it stands in for, and the head if it fuses.

    Where no device of the fleet is the coordinator, each that holds a sub-model gets the fusion head, and can answer
    with what it has. Of an ensemble of one sub-model every device that holds it does.

    Raises:
        HubError: The placement is of another ensemble, or names a device or file that does not exist.
    """
    _check_identity(manifest, placement)
    if device not in placement.devices:
        raise HubError(
            f"Expected a device of the fleet {placement.fleet!r} ({', '.join(sorted(placement.devices))}), got "
            f"{device!r}.{did_you_mean(device, placement.devices)} It holds nothing here. Correct the name."
        )
    placed = placement.devices[device]
    chosen = _placed_variants(manifest, placed, device)
    answers_alone = placement.coordinator is None or placement.num_sub_models == 1
    fuses = fusion or placement.coordinator == device or (answers_alone and bool(chosen))
    if not chosen and not fuses:
        raise HubError(
            f"Expected something to fetch for {device!r}, but the placement gives it no sub-model and another device "
            "fuses. It is a spare. Nothing has to be fetched for it."
        )
    return _selection(manifest, chosen, fuses)


def _check_identity(manifest: Manifest, placement: PlacementFile) -> None:
    identity = placement.ensemble
    if identity is None or identity.content_hash != manifest.ensemble.content_hash:
        found = "no ensemble" if identity is None else f"{identity.id} ({identity.content_hash[:12]}...)"
        raise HubError(
            f"Expected a placement of {manifest.ensemble.id} ({manifest.ensemble.content_hash[:12]}...), got one of "
            f"{found}. Devices would hold pieces of different versions, whose answers do not fit together. Make it "
            "anew: `edvit plan REPO --fleet FLEET`, or pull the revision it was made for with --revision."
        )
    if placement.num_sub_models != len(manifest.sub_models):
        raise HubError(
            f"Expected a placement of {len(manifest.sub_models)} sub-models, got one of {placement.num_sub_models}. "
            "It was edited. Make it anew: `edvit plan REPO --fleet FLEET`."
        )


def _placed_variants(manifest: Manifest, placed: PlacedDevice, device: str) -> dict[int, Variant]:
    chosen = {}
    for entry in [*placed.sub_models, *placed.replicas]:
        sub_model = manifest.sub_models[entry.index]
        if entry.file is None:
            chosen[entry.index] = _variant_for(sub_model, placed.profile, "int8", "prepared")
            continue
        found = next((v for v in sub_model.variants if v.file == entry.file), None)
        if found is None:
            raise HubError(
                f"Expected for {device!r} a file of sub-model {entry.index} ({offered(sub_model.variants)}), got "
                f"{entry.file!r}, which this ensemble lacks. The placement was made for other exports. Make it anew: "
                "`edvit plan REPO --fleet FLEET`."
            )
        chosen[entry.index] = found
    return dict(sorted(chosen.items()))


def _variant_for(entry: SubModelEntry, profile: str | None, precision: str, inputs: str) -> Variant:
    """The file of that precision that suits the profile best; without a profile one for any hardware."""
    suited = suited_variants(entry.variants, precision, profile, inputs=inputs)
    suited = [v for v in suited if profile is not None or not v.profiles]
    if suited:
        return suited[0]
    others = [v for v in entry.variants if v.inputs == inputs and not v.profiles]
    ways = " or ".join(f"--precision {name}" for name in dict.fromkeys(v.precision for v in others))
    where, raw = profile or "any hardware", " and raw inputs" if inputs == "raw" else ""
    raise HubError(
        f"Expected a file of sub-model {entry.index} for {where} with precision {precision}{raw}, got only: "
        f"{offered(entry.variants)}. One made for other instructions may be slow or wrong there. "
        f"{f'Take one that fits any hardware ({ways}), or export' if ways else 'Export'} one: "
        f"`edvit export DIR --profile {profile or 'NAME'}`, `edvit push DIR REPO --profile {profile or 'NAME'}`."
    )


def _selection(manifest: Manifest, chosen: Mapping[int, Variant], fuses: bool) -> Selection:
    head = manifest.fusion.variant("fp32") if fuses else None
    needed = []
    for variant in [*chosen.values(), *([head] if head else [])]:
        if PurePosixPath(variant.file).suffix != _GRAPH_SUFFIX:
            raise ManifestError(
                f"Expected ONNX graphs, got {variant.file!r} in the manifest. A file of another kind could run code "
                "when it is opened, so it is not fetched. Do not use this ensemble."
            )
        needed.append(_needed(variant.file, variant))
    names = [f"{manifest.sub_models[index].path}/config.json" for index in chosen]
    processor = [name for name in NEEDED_PROCESSOR_FILES if name in manifest.content]
    for name in [*names, *processor]:
        if name not in manifest.content:
            raise ManifestError(f"The manifest vouches for no {name}, which a device needs. Export the ensemble again.")
        needed.append(_needed(name, manifest.content[name]))
    if manifest.preprocessing not in processor:
        raise ManifestError(
            f"The manifest vouches for no {manifest.preprocessing}, without which no input can be prepared. Export the "
            "ensemble again."
        )
    return Selection(variants=dict(chosen), fusion=head, files=needed)


def _needed(path: str, entry: Variant | ContentFile) -> NeededFile:
    return NeededFile(file=PurePosixPath(path).as_posix(), sha256=entry.sha256, bytes=entry.bytes)


def _groups(manifest: Manifest) -> str:
    def names(group: Sequence[int]) -> str:
        some = ", ".join(json.dumps(manifest.label_names[c], ensure_ascii=False) for c in group[:3])
        return some + (", ..." if len(group) > 3 else "")

    return "; ".join(f"{entry.index}: {names(entry.class_group)}" for entry in manifest.sub_models[:20])
