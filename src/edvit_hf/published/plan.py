# SPDX-License-Identifier: Apache-2.0
"""`edvit plan REPO_OR_DIR --fleet mine.yaml`: a published ensemble on one's own fleet."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edvit_hf.architectures.costs import BYTES_PER_PARAMETER
from edvit_hf.errors import ManifestError
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.hub.source import is_hub_id
from edvit_hf.manifest import Manifest, SubModelEntry, Variant
from edvit_hf.manifest.entries import suited_variants
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.planning.costs import FEATURE_BYTES, FleetCosts, FusionCosts, Load
from edvit_hf.planning.fleet import DEFAULT_FLEET_NOTE, Device, Fleet, Objective, default_fleet, load_fleet
from edvit_hf.planning.observed import Observed, observed_note, with_observed
from edvit_hf.planning.placed_plan import PlacementMethod, place_loads
from edvit_hf.planning.plan import Plan, Replica, SubModelPlan
from edvit_hf.published.files import Published, read_published
from edvit_hf.tasks import num_labels_of


def is_published(target: str) -> bool:
    """Whether `target` names a folder or a Hub repository rather than a recipe."""
    path = Path(target)
    is_recipe = path.is_file() or path.suffix in (".yaml", ".yml")
    return path.is_dir() or (not is_recipe and is_hub_id(target, with_owner=True))


def plan_published(
    target: str,
    fleet_path: Path | None = None,
    *,
    placement: PlacementMethod = "auto",
    objective: Objective | None = None,
    observed: Sequence[Observed] = (),
) -> tuple[Plan, PlacementFile]:
    """Place a finished ensemble on a fleet.

    `target` is an ensemble folder, or a Hub id (then only config.json and manifest.json are fetched). Each device gets
    the int8 file that was exported for its kind of instructions where there is one, else the fp32 file; its memory
    budget counts that file's bytes. Without a fleet file there is a device without budgets for each sub-model;
    `objective` replaces the fleet's own, `observed` times of a running fleet replace predicted ones.

    Raises:
        ManifestError: `target` is no published ensemble, or cannot be fetched.
        BudgetError: It does not fit the fleet.
    """
    ensemble = read_published(target)
    fleet = default_fleet(len(ensemble.class_groups)) if fleet_path is None else load_fleet(fleet_path)
    fleet = fleet if objective is None else dataclasses.replace(fleet, objective=objective)
    plan = place_published(ensemble, fleet, placement=placement, observed=observed)
    if fleet_path is None:
        plan = dataclasses.replace(plan, notes=[DEFAULT_FLEET_NOTE, *plan.notes])
    return plan, placement_file(plan, ensemble.manifest)


def place_published(
    ensemble: Published, fleet: Fleet, *, placement: PlacementMethod = "auto", observed: Sequence[Observed] = ()
) -> Plan:
    """Place an ensemble that was read on a fleet that was read. Raises what `plan_published` raises."""
    loads = [_load(ensemble, index, fleet) for index in range(len(ensemble.class_groups))]
    fusion = _fusion(ensemble, loads)
    sent = [load.sending(ensemble.fusion_kind, _vote_size(ensemble, index)) for index, load in enumerate(loads)]
    costs = FleetCosts.of(fleet, sent, fusion)
    plan = place_loads(with_observed(costs, observed) if observed else costs, placement=placement)
    plan = _with_files(dataclasses.replace(plan, teacher=_teacher(ensemble)), ensemble.manifest)
    notes = [*plan.notes, *_notes_on_int8(plan, ensemble.manifest), *([observed_note(observed)] if observed else [])]
    return dataclasses.replace(plan, notes=notes).with_focus(ensemble.focus_groups)


def _notes_on_int8(plan: Plan, manifest: Manifest | None) -> list[str]:
    precisions = {} if manifest is None else {v.file: v.precision for e in manifest.sub_models for v in e.variants}
    devices = [s.device for s in plan.sub_models if precisions.get(s.file or "") == "int8" and s.predicted_ms]
    note = f"int8 files run on {', '.join(dict.fromkeys(devices))}: their time is predicted as that of fp32 ones"
    return [note] if devices else []


def placement_file(plan: Plan, manifest: Manifest | None) -> PlacementFile:
    """The placement of a plan, as the devices read it; with a manifest each sub-model names its file."""
    plan = _with_files(plan, manifest)
    devices = {
        device.name: PlacedDevice(
            profile=device.profile,
            sub_models=[_placed(s) for s in plan.sub_models if s.device == device.name],
            replicas=[_placed(r) for r in plan.replicas if r.device == device.name],
            predicted_ms=device.total_ms,
            **device.budgets,  # type: ignore[arg-type]
        )
        for device in plan.devices
    }
    own = None if manifest is None else manifest.ensemble
    return PlacementFile(
        ensemble=None if own is None else EnsembleIdentity(id=own.id, content_hash=own.content_hash),
        fleet=plan.fleet,
        coordinator=plan.coordinator,
        num_sub_models=len(plan.sub_models),
        devices=devices,
        latency_ms=plan.latency_ms,
    )


def _placed(entry: SubModelPlan | Replica) -> PlacedFile:
    return PlacedFile(
        index=entry.index,
        variant=entry.variant,
        file=entry.file,
        predicted_ms=entry.predicted_ms,
        bytes=entry.held_bytes or None,
        macs=entry.macs,
        energy_mj=entry.energy_mj,
    )


def planned_variant(entry: SubModelEntry, profile: str, quantization: str) -> Variant:
    """The file that a device runs best: int8 for its kind or its instructions, in the order of its profile, else fp32.

    fp16 only where the profile names it first: on a processor without half precision it is slower than fp32.
    `quantization` is the int8 preset of the profile, which may be of one measured machine.
    """
    known = load_profiles().get(profile)
    kinds = ("int8",) if known is None else tuple(known.export)
    for kind in kinds[:1] if kinds[:1] == ("fp16",) else [kind for kind in kinds if kind != "fp16"]:
        variants = [variant for variant in entry.variants if variant.kind == kind]
        precision = kind.removesuffix("_static")
        for variant in suited_variants(variants, precision, profile, preset=quantization):
            return variant
    return entry.variant("fp32")


def _with_files(plan: Plan, manifest: Manifest | None) -> Plan:
    """The plan with the file that each device loads."""
    if manifest is None:
        return plan
    hardware = {device.name: (device.profile, device.quantization) for device in plan.devices}

    def chosen(index: int, device: str) -> dict[str, str]:
        variant = planned_variant(manifest.sub_models[index], *hardware[device])
        return {"variant": variant.name, "file": variant.file}

    sub_models = [dataclasses.replace(s, **chosen(s.index, s.device)) for s in plan.sub_models]  # type: ignore[arg-type]
    replicas = [dataclasses.replace(r, **chosen(r.index, r.device)) for r in plan.replicas]  # type: ignore[arg-type]
    return dataclasses.replace(plan, sub_models=sub_models, replicas=replicas)


def _load(ensemble: Published, index: int, fleet: Fleet) -> Load:
    group, shape = ensemble.class_groups[index], ensemble.shapes[index]
    load = _costs_of_results(ensemble, index, group) if shape is None else Load.of_shape(shape, group, None)
    if ensemble.manifest is None:
        return load
    entry = ensemble.manifest.sub_models[index]

    def size(device: Device) -> int:
        return planned_variant(entry, device.hardware.name, device.hardware.quantization).bytes

    return dataclasses.replace(load, bytes_on={device.name: size(device) for device in fleet.devices})


def _vote_size(ensemble: Published, index: int) -> int:
    """How many labels a sub-model votes over: as its manifest says, else its config, else as usual for its group."""
    shape = ensemble.shapes[index]
    if ensemble.manifest is not None:
        return ensemble.manifest.vote_sizes[index]
    return num_labels_of(ensemble.class_groups[index], ensemble.num_classes) if shape is None else shape.widths.labels


def _costs_of_results(ensemble: Published, index: int, group: Sequence[int]) -> Load:
    """Where no config.json tells a sub-model's sizes: what results.json records of its costs."""
    row = None if ensemble.results is None else ensemble.results.sub_models.get(index)
    if row is None or ensemble.manifest is None:
        raise ManifestError(
            f"{ensemble.source}: expected a config.json with `sub_model_configs`, or a results.json that lists "
            f"sub-model {index}; got neither. Without its size it cannot be placed. Give the folder that `edvit run` "
            "names at its end."
        )
    height, width = ensemble.image_size or (0, 0)
    return Load(
        classes=tuple(group),
        parameters=row.parameters,
        bytes=BYTES_PER_PARAMETER * row.parameters,
        macs=row.macs,
        feature_bytes=FEATURE_BYTES * ensemble.manifest.sub_models[index].feature_size,
        input_bytes=3 * height * width,
    )


def _fusion(ensemble: Published, loads: Sequence[Load]) -> FusionCosts:
    """Costs of the fusion; of older folders only, told by what else their files say."""
    if ensemble.fusion_kind == "average":
        return FusionCosts(parameters=0)  # but a temperature for each vote
    if ensemble.fusion_hidden_size is not None:
        return FusionCosts.of(loads, ensemble.num_classes, ensemble.fusion_hidden_size, kind=ensemble.fusion_kind)
    whole = None if ensemble.results is None else ensemble.results.ensemble
    if whole is None or whole.parameters is None:
        assert ensemble.manifest is not None
        return FusionCosts(parameters=ensemble.manifest.fusion.variant("fp32").bytes // BYTES_PER_PARAMETER)
    parameters = whole.parameters - sum(load.parameters for load in loads)
    if parameters <= 0:
        raise ManifestError(
            f"{ensemble.source}/results.json: the ensemble must have more parameters than its sub-models together, got "
            f"{whole.parameters}. The fusion head's size would be negative. Fetch or export it again."
        )
    return FusionCosts(parameters=parameters)


def _teacher(ensemble: Published) -> dict[str, int | None]:
    parameters, macs = ensemble.teacher.parameters, ensemble.teacher.macs
    size = None if parameters is None else BYTES_PER_PARAMETER * parameters
    return {"parameters": parameters, "bytes": size, "macs": macs}
