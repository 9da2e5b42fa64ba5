# SPDX-License-Identifier: Apache-2.0
"""One stage of a trip: what makes it skippable and resumable.

A stage owns a folder. `inputs.json` is written first and names the hash of everything the stage depends on; `done.json`
is written last. A re-run skips a stage whose `done.json` carries the same hash, resumes one that was interrupted (same
`inputs.json`, no `done.json`), and empties one whose inputs have changed.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf.data.contents import FileHashes
from edvit_hf.errors import CheckpointError
from edvit_hf.hardware.provenance import peak_memory_mib, reset_peak_memory, versions
from edvit_hf.recipe import keys
from edvit_hf.recipe.schema import Recipe
from edvit_hf.recipe.stages.evaluate import RECORDED
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json_object, remove, write_json
from edvit_hf.training.processes import is_main_process, num_processes, wait_for_everyone

logger = logging.getLogger(__name__)

DONE = "done.json"
FORMAT = 2  # raised when a stage writes other files than before: every stage then runs anew


@dataclass(frozen=True)
class Stage:
    """One step: its function, the stages whose output it reads, and the recipe values it depends on.

    A need is the name of a stage (its whole output) or one of the `parts` that a stage declares: pruning needs the
    keep that the planner chose, but not the placement, so a wider fusion head does not prune and distil again.
    """

    name: str
    function: Callable[[Trip], None]
    needs: tuple[str, ...]
    values: tuple[str, ...]
    parts: Callable[[Trip], dict[str, str]] = field(default=lambda trip: {})
    is_shared: bool = False  # every process of a launch takes part; else the main process alone
    # What it reads outside the recipe, from the hashes of files.
    sources: Callable[[Recipe, FileHashes], Any] = field(default=lambda recipe, hashes: None)


@dataclass(frozen=True)
class StageRecord:
    """What happened to one stage in this run."""

    name: str
    skipped: bool
    seconds: float
    peak_memory_mib: float


Observer = Callable[[str, str], None]  # (stage, "skipped" | "started" | "finished")


def tell_nobody(stage: str, what: str) -> None:
    """For whoever is not told of stages."""


def key_of(stage: Stage, recipe: Recipe, stage_keys: dict[str, str], sources: Any) -> str:
    """Hash of everything a stage's result depends on: its recipe values and the keys of the stages it reads."""
    content = {
        "format": FORMAT,
        "stage": stage.name,
        "values": keys.chosen_values(recipe, stage.values),
        "sources": sources,
        "needs": {n: stage_keys[n] for n in stage.needs},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def stored_record(path: Path, key: str) -> dict[str, Any] | None:
    """What `done.json` or `inputs.json` holds, if it was written for the same inputs, else None.

    A damaged one counts as none, so that its stage runs again.
    """
    if not path.exists():
        return None
    try:
        stored = read_json_object(path, "a stage's record")
        if path.name == DONE and (absent := [name for name in RECORDED if name not in stored]):
            raise CheckpointError(f"Expected a stage's record in {path}, found none of {', '.join(absent)}.")
    except CheckpointError as error:
        logger.warning("%s The stage runs again.", error)
        return None
    return stored if stored.get("key") == key else None


def run_stage(
    stage: Stage, trip: Trip, folder: Path, key: str, done: dict[str, Any] | None, observer: Observer
) -> StageRecord:
    """Do a stage that is not done, and record it.

    Args:
        stage: Which.
        trip: With its folder and those that it reads.
        folder: Its own.
        key: Of `key_of`.
        done: What `stored_record` found in its folder.
        observer: Told of what happens.
    """
    if done is not None:
        logger.info("%s: up to date, skipped", stage.name)
        observer(stage.name, "skipped")
        return StageRecord(stage.name, True, done["seconds"], done["peak_memory_mib"])
    wait_for_everyone()  # all have read what was done before anyone changes it
    resumed = open_stage(folder, key) if is_main_process() else False
    wait_for_everyone()
    logger.info("%s: started", stage.name)
    observer(stage.name, "started")
    reset_peak_memory()
    begin = time.perf_counter()
    if stage.is_shared or is_main_process():
        stage.function(trip)
    wait_for_everyone()
    seconds = round(time.perf_counter() - begin, 2)
    record = StageRecord(stage.name, False, seconds, peak_memory_mib())
    if is_main_process():
        _write_done(stage, trip, folder, key, record, resumed=resumed)
    wait_for_everyone()
    logger.info("%s: done in %.1f s, peak memory %.0f MiB", stage.name, seconds, record.peak_memory_mib)
    observer(stage.name, "finished")
    return record


def _write_done(stage: Stage, trip: Trip, folder: Path, key: str, record: StageRecord, *, resumed: bool) -> None:
    write_json(
        folder / DONE,
        {
            "stage": stage.name,
            "key": key,
            "seconds": record.seconds,
            "num_processes": num_processes(),
            "resumed": resumed,  # then `seconds` are those of the last process alone
            "peak_memory_mib": record.peak_memory_mib,
            "seeds": trip.recipe.seeds,
            "versions": versions(),
            "commit": trip.environment["commit"],
        },
    )


def open_stage(folder: Path, key: str) -> bool:
    """Keep what an interrupted run with the same inputs left (True), or empty the folder (False)."""
    inputs = folder / "inputs.json"
    if stored_record(inputs, key) is not None:
        remove(folder / DONE)
        logger.info("%s: resuming an interrupted run", folder.name)
        return True
    if folder.exists():
        # First what makes the folder count as done or resumable: the rest may be interrupted half-way.
        remove(folder / DONE)
        remove(inputs)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(inputs, {"key": key})
    return False
