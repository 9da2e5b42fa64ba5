# SPDX-License-Identifier: Apache-2.0
"""The export and card stages: the ensemble's ONNX files, then all of it with its card in one folder, ready to push."""

from pathlib import Path, PureWindowsPath
from typing import Any

from edvit_hf.card.render import CardData, write_card
from edvit_hf.export import export_ensemble
from edvit_hf.manifest import Manifest
from edvit_hf.published.data import save_places
from edvit_hf.published.export import measured_on
from edvit_hf.published.measure import measured_by_runtime
from edvit_hf.published.plan import placement_file
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.recipe.stages.evaluate import record, test_record
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import link_tree, read_json_object, whole_folder, write_json


def export(trip: Trip) -> None:
    """Ensemble -> ONNX variants + `manifest.json`: int8 accepted on validation, accuracy reported on test."""
    folder, config = trip.folders["export"], trip.recipe.export
    if (folder / "ensemble").is_dir():
        return
    measures = measured_on(trip.data, trip.focus_groups, config, trip.recipe.evaluate.batch_size)
    with whole_folder(folder / "ensemble") as partial:
        link_tree(trip.folders["fuse"] / "ensemble", partial)
        export_ensemble(
            partial,
            config=config,
            inputs=measures.inputs,
            gate=measures.gate,
            report=measures.report,
            calibration=measures.calibration,
        )


def card(trip: Trip) -> None:
    """Write `ensemble/`: everything of the export stage, `results.json`, `placement.json` and the card.

    Folders of this machine that the recipe names do not leave it: see `without_folders`.
    """
    with whole_folder(trip.folders["card"] / "ensemble") as partial:
        link_tree(trip.folders["export"] / "ensemble", partial)
        found = read_json_object(
            trip.folders["evaluate"] / "results.json", "the results", "Run the stage evaluate again."
        )
        results = _published(found)
        results["stages"] += _later_stages(trip)
        manifest = Manifest.load(partial)
        command = f"{results['command'] or 'edvit run'}, stage card"
        dataset = results["dataset"].setdefault("test", test_record(trip))  # results of an earlier version lack it
        results["runtime"] = measured_by_runtime(
            partial, trip.data, trip.recipe.evaluate, dataset=dataset, command=command
        )
        write_json(partial / "results.json", results)
        placement_file(trip.plan, manifest).save(partial)
        save_places(trip.folders["card"], trip.recipe.dataset)
        write_card(partial, CardData.from_run(results, manifest, without_folders(recipe_values(trip.recipe))))


def _published(results: dict[str, Any]) -> dict[str, Any]:
    """The results without folders of this machine. Label names stay: one may well look like a path."""
    dataset = {**results["dataset"], "path": without_folders(results["dataset"]["path"])}
    command = " ".join(without_folders(results["command"].split(" "))) if results.get("command") else None
    values = without_folders(results["recipe_values"])
    return {**results, "dataset": dataset, "command": command, "recipe_values": values}


def _later_stages(trip: Trip) -> list[dict[str, Any]]:
    """What the stages took that ended after the results were written, and their commits."""
    folders = [(name, trip.folders[name]) for name in ("evaluate", "export")]
    return [{"name": name, **record(folder)} for name, folder in folders if (folder / "done.json").is_file()]


def without_folders(value: Any) -> Any:
    """The same plain data, in which every text that is a whole absolute path keeps only its last component.

    Paths that start at a home folder ("~") count as absolute, and so do Windows paths.
    """
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(each) for each in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
        return Path(value).name
    if isinstance(value, str) and PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name
    return value
