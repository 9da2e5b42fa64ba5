# SPDX-License-Identifier: Apache-2.0
"""`edvit plan REPO_OR_DIR --fleet mine.yaml`: a published ensemble on one's own fleet."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edvit_hf.costs import ModelShape
from edvit_hf.errors import EDViTError, ManifestError, named_extra
from edvit_hf.fleet import Device, Fleet, load_fleet
from edvit_hf.fleet_costs import FleetCosts, Fusion, Load
from edvit_hf.manifest import MANIFEST_NAME, Manifest, SubModelEntry, Variant
from edvit_hf.placement_file import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.planning import PlacementMethod, place_loads
from edvit_hf.plans import Plan, Replica, SubModelPlan

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Published:
    """What a published ensemble says of itself: config.json, manifest.json, and (in a folder) results.json."""

    source: str
    class_groups: list[list[int]]
    config: dict[str, Any] | None
    manifest: Manifest | None
    results: dict[str, Any] | None
    image_side: int | None


def is_published(target: str) -> bool:
    """Whether `target` names a folder or a Hub repository rather than a recipe."""
    path = Path(target)
    is_recipe = path.is_file() or path.suffix in (".yaml", ".yml")
    return path.is_dir() or (not is_recipe and _HUB_ID.fullmatch(target) is not None)


def plan_published(
    target: str, fleet_path: Path, *, placement: PlacementMethod = "auto"
) -> tuple[Plan, PlacementFile]:  # fmt: skip
    """Place a finished ensemble on a fleet.

    Args:
        target: An ensemble folder, or a Hub id (then only config.json and manifest.json are fetched).
        fleet_path: The fleet file.
        placement: See `planning.plan`.

    Returns:
        The plan for reading, and the placement for the devices. Each device gets the int8 file that was exported for
        its kind of instructions where there is one, else the fp32 file; its memory budget counts that file's bytes.

    Raises:
        ManifestError: `target` is no published ensemble, or cannot be fetched.
        BudgetError: It does not fit the fleet.
    """
    fleet = load_fleet(fleet_path)
    ensemble = read_published(target)
    loads = [_load(ensemble, index, fleet) for index in range(len(ensemble.class_groups))]
    hidden = int((ensemble.config or {}).get("fusion_hidden_size", 0))
    costs = FleetCosts.of(fleet, loads, _fusion(ensemble, loads, hidden))
    plan = place_loads(costs, placement=placement)
    plan = _with_files(dataclasses.replace(plan, teacher=_teacher(ensemble)), ensemble.manifest)
    return plan, placement_file(plan, ensemble.manifest)


def placement_file(plan: Plan, manifest: Manifest | None) -> PlacementFile:
    """The placement of a plan, as the devices read it; with a manifest each sub-model names its file."""
    plan = _with_files(plan, manifest)
    devices = {
        device.name: PlacedDevice(
            profile=device.profile,
            sub_models=[_placed(s) for s in plan.sub_models if s.device == device.name],
            replicas=[_placed(r) for r in plan.replicas if r.device == device.name],
            predicted_ms=device.total_ms,
        )
        for device in plan.devices
    }
    identity = None
    if manifest is not None:
        identity = EnsembleIdentity(id=manifest.ensemble.id, content_hash=manifest.ensemble.content_hash)
    return PlacementFile(
        ensemble=identity, fleet=plan.fleet, coordinator=plan.coordinator, num_sub_models=len(plan.sub_models),
        devices=devices, latency_ms=plan.latency_ms,
    )  # fmt: skip


def _placed(entry: SubModelPlan | Replica) -> PlacedFile:
    return PlacedFile(
        index=entry.index, variant=entry.variant, file=entry.file, predicted_ms=entry.predicted_ms
    )  # fmt: skip


def suited_variant(entry: SubModelEntry, quantization: str) -> Variant:
    """The int8 file exported with the preset `quantization`, else the fp32 file."""
    for variant in entry.variants:
        if variant.precision == "int8" and (variant.quantization or {}).get("preset") == quantization:
            return variant
    return entry.variant("fp32")


def _with_files(plan: Plan, manifest: Manifest | None) -> Plan:
    """The plan with the file that each device loads."""
    if manifest is None:
        return plan
    presets = {device.name: device.quantization for device in plan.devices}

    def chosen(index: int, device: str) -> dict[str, str]:
        variant = suited_variant(manifest.sub_models[index], presets[device])
        return {"variant": variant.name, "file": variant.file}

    sub_models = [dataclasses.replace(s, **chosen(s.index, s.device)) for s in plan.sub_models]  # type: ignore[arg-type]
    replicas = [dataclasses.replace(r, **chosen(r.index, r.device)) for r in plan.replicas]  # type: ignore[arg-type]
    return dataclasses.replace(plan, sub_models=sub_models, replicas=replicas)


def _load(ensemble: Published, index: int, fleet: Fleet) -> Load:
    group = ensemble.class_groups[index]
    load = _costs_of_config(ensemble, index, group) or _costs_of_results(ensemble, index, group)
    if ensemble.manifest is None:
        return load
    entry = ensemble.manifest.sub_models[index]

    def size(device: Device) -> int:
        return suited_variant(entry, device.hardware.quantization).bytes

    return dataclasses.replace(load, bytes_on={device.name: size(device) for device in fleet.devices})


def _costs_of_config(ensemble: Published, index: int, group: Sequence[int]) -> Load | None:
    if ensemble.config is None:
        return None
    config = ensemble.config["sub_model_configs"][index]
    labels = len(config.get("id2label") or ()) or len(group) + (len(ensemble.class_groups) > 1)
    return Load.of_shape(ModelShape.from_config(config, num_labels=labels), group, None)


def _costs_of_results(ensemble: Published, index: int, group: Sequence[int]) -> Load:
    """Where only exported files were copied (a Space): sizes from results.json and the manifest."""
    rows = (ensemble.results or {}).get("sub_models", [])
    row = next((r for r in rows if r.get("index") == index), None)
    if row is None or ensemble.manifest is None:
        raise ManifestError(
            f"{ensemble.source}: expected a config.json with `sub_model_configs`, or a results.json that lists "
            f"sub-model {index}; got neither. Without its size it cannot be placed. Give the folder that `edvit run` "
            "names at its end."
        )
    side = ensemble.image_side or 0
    return Load(
        classes=tuple(group), parameters=int(row["parameters"]), bytes=_FLOAT_BYTES * int(row["parameters"]),
        macs=int(row["macs"]), feature_bytes=_FLOAT_BYTES * ensemble.manifest.sub_models[index].feature_size,
        input_bytes=3 * side * side,
    )  # fmt: skip


def _fusion(ensemble: Published, loads: Sequence[Load], hidden: int) -> Fusion:
    num_labels = sum(map(len, ensemble.class_groups))
    if ensemble.config is None and ensemble.manifest is not None:
        rows = (ensemble.results or {}).get("rows", [])
        whole = next((row for row in rows if row.get("kind") == "ensemble"), None)
        if whole is not None:
            return Fusion(parameters=int(whole["parameters"]) - sum(load.parameters for load in loads))
        return Fusion(parameters=ensemble.manifest.fusion.variant("fp32").bytes // _FLOAT_BYTES)
    return Fusion.of(loads, num_labels, hidden)


def _teacher(ensemble: Published) -> dict[str, int | None]:
    parent = (ensemble.config or {}).get("parent") or {}
    rows = (ensemble.results or {}).get("rows", [])
    known = {**next((row for row in rows if row.get("kind") == "teacher"), {}), **parent}
    parameters, macs = known.get("parameters"), known.get("macs")
    return {
        "parameters": parameters, "bytes": None if parameters is None else _FLOAT_BYTES * parameters, "macs": macs
    }  # fmt: skip


def read_published(target: str) -> Published:
    """Read what an ensemble folder or Hub repository says of itself.

    Raises:
        ManifestError: Missing or broken files, or files that disagree.
    """
    folder = Path(target)
    if folder.is_dir():
        read = _reader(lambda name: folder / name if (folder / name).is_file() else None, target)
        config, manifest, results = read("config.json"), read(MANIFEST_NAME), read("results.json")
        processor = read("preprocessor_config.json")
    else:
        read = _reader(lambda name: _fetched(target, name), target)
        config, manifest, results, processor = read("config.json"), read(MANIFEST_NAME), None, None
    if config is not None and not {"sub_model_configs", "class_groups"} <= set(config):
        raise ManifestError(
            f"{target}: expected the config.json of an ensemble, with `sub_model_configs` and `class_groups`, got the "
            f"keys {sorted(config)[:8]}. It is another model. Give an ensemble, or a recipe to plan one."
        )
    parsed = None if manifest is None else Manifest.from_json(json.dumps(manifest), source=f"{target}/{MANIFEST_NAME}")
    if config is None and parsed is None:
        raise ManifestError(
            f"{target}: expected a published ensemble with config.json or manifest.json, got neither. Give the folder "
            "that `edvit run` names at its end, a Hub id, or a recipe."
        )
    groups = parsed.class_groups if parsed is not None else [sorted(g) for g in (config or {})["class_groups"]]
    if config is not None and (
        [sorted(group) for group in config["class_groups"]] != groups or len(config["sub_model_configs"]) != len(groups)
    ):  # fmt: skip
        raise ManifestError(
            f"{target}: config.json and manifest.json must speak of the same class groups, got "
            f"{config['class_groups']} with {len(config['sub_model_configs'])} sub-models and {groups}. They are of "
            "two ensembles. Export again."
        )
    side = ((processor or {}).get("size") or {}).get("height")
    return Published(target, groups, config, parsed, results, side)


def _reader(find: Callable[[str], Path | None], source: str) -> Callable[[str], dict[str, Any] | None]:
    def read(name: str) -> dict[str, Any] | None:
        path = find(name)
        if path is None:
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{source}/{name}: expected JSON, got {error}. Fetch or export it again.") from error
        if not isinstance(data, dict):
            raise ManifestError(f"{source}/{name}: expected a JSON object, got {type(data).__name__}. Export it again.")
        return data

    return read


def _fetched(repo: str, name: str) -> Path | None:
    """One small file of a Hub repository; None where the repository has none of that name."""
    with named_extra("Planning an ensemble of the Hub", "torch"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    try:
        return Path(hf_hub_download(repo, name))
    except LocalEntryNotFoundError as error:
        raise _unreachable(repo, name, error) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # every error of the Hub and of the connection is one of these
        raise _unreachable(repo, name, error) from error


def _unreachable(repo: str, name: str, error: Exception) -> EDViTError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ManifestError(
        f"{name} of {repo!r} is neither here nor could it be fetched from the Hub ({reason}). Without it the sizes of "
        "the sub-models are not known. Check the name and the connection, or give a folder."
    )
