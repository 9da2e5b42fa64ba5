# SPDX-License-Identifier: Apache-2.0
"""The order of the stages, and what makes each of them skippable and resumable.

A stage owns `work_dir/NN_stage/`. `inputs.json` is written first and names the hash of everything the stage depends
on; `done.json` is written last. A re-run skips a stage whose `done.json` carries the same hash, resumes one that was
interrupted (same `inputs.json`, no `done.json`), and empties one whose inputs have changed.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf.data.contents import FileHashes
from edvit_hf.errors import CheckpointError, RecipeError, WorkDirError
from edvit_hf.hardware.provenance import peak_memory_mib, reset_peak_memory, versions
from edvit_hf.recipe import keys
from edvit_hf.recipe.schema import Recipe
from edvit_hf.recipe.stages import cut
from edvit_hf.recipe.stages.evaluate import RECORDED, evaluate
from edvit_hf.recipe.stages.fuse import fuse
from edvit_hf.recipe.stages.plan import plan
from edvit_hf.recipe.stages.publish import card, export
from edvit_hf.recipe.stages.split import split
from edvit_hf.recipe.stages.teacher import train_teacher
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import is_disk_fault, read_json_object, remove, write_json
from edvit_hf.training import DistillConfig
from edvit_hf.training.processes import (
    is_main_process,
    main_process_first,
    num_processes,
    start_processes,
    wait_for_everyone,
)

logger = logging.getLogger(__name__)

_DONE = "done.json"
HASHES_FILE = "file_hashes.json"  # in the work directory: what is known of the data's files
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


def _pruning_part(trip: Trip) -> dict[str, str]:
    return {"plan.keep_heads": trip.plan.pruning_key}


# The order of the trip stands here and nowhere else; `stages_of` adds the pruning rounds of a recipe.
_DATA_VALUES = ("task", "dataset", "augmentation", "teacher")
_PLAN_VALUES = (
    "fleet",
    *(f"prune.{key}" for key in ("keep_heads", "keep_ratios", "from_scratch", "attention", "rounds")),
    "fuse.hidden_size",
)
STAGES: tuple[Stage, ...] = (
    Stage("teacher", train_teacher, (), _DATA_VALUES, sources=keys.teacher_sources, is_shared=True),
    Stage("split", split, ("teacher",), ("split",), sources=keys.split_sources),
    Stage("plan", plan, ("teacher", "split"), _PLAN_VALUES, sources=keys.fleet_sources, parts=_pruning_part),
    Stage("prune", cut.prune, ("teacher", "split", "plan.keep_heads"), ("prune",)),
    Stage("distill", cut.distill, ("teacher", "split", "prune"), ("distill",), is_shared=True),
    Stage("fuse", fuse, ("teacher", "split", "distill"), ("fuse", "name")),
    Stage("evaluate", evaluate, ("teacher", "plan", "distill", "fuse"), ("evaluate",)),
    Stage("export", export, ("fuse",), ("export",), sources=keys.export_sources),
    Stage("card", card, ("plan", "evaluate", "export"), ("card", "name"), sources=keys.card_sources),
)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe: with `prune.rounds` above 1, a prune and a short retrain stage for each earlier round.

    The fixed stages keep their folders: the rounds' are `04_prune_round1`, `05_retrain_round1` and so on.
    """
    if recipe.prune.rounds == 1:
        return STAGES
    result: list[Stage] = []
    for stage in STAGES:
        if stage.name == "prune":
            needs = stage.needs
            for number in range(1, recipe.prune.rounds):
                names = (f"prune_round{number}", f"retrain_round{number}")
                pruning = functools.partial(cut.prune_round, number=number)
                retrain = functools.partial(cut.retrain_round, number=number)
                result.append(Stage(names[0], pruning, needs, ("prune",)))
                result.append(Stage(names[1], retrain, ("teacher", "split", names[0]), _RETRAIN_VALUES, is_shared=True))
                needs = (*stage.needs, names[1])
            stage = dataclasses.replace(stage, needs=needs)
        result.append(stage)
    return tuple(result)


# A round trains as the distill stage does, but for `prune.round_epochs`: the last retraining's length is not its own.
_RETRAIN_VALUES = tuple(f"distill.{f.name}" for f in dataclasses.fields(DistillConfig) if f.name != "epochs")


@dataclass(frozen=True)
class StageRecord:
    """What happened to one stage in this run."""

    name: str
    skipped: bool
    seconds: float
    peak_memory_mib: float


Observer = Callable[[str, str], None]  # (stage, "skipped" | "started" | "finished")


def _tell_nobody(stage: str, what: str) -> None:
    pass


def run(
    recipe: Recipe,
    work_dir: Path,
    *,
    stages: Sequence[str] | None = None,
    command: str = "",
    observer: Observer | None = None,
) -> list[StageRecord]:
    """Take a recipe through the whole trip (or the named stages of it).

    Launched as several processes, the teacher trains data-parallel and independent sub-models are spread over them.

    Args:
        recipe (`Recipe`): Values, from `load_recipe`.
        work_dir (`Path`): Folder for all results; an earlier run in it is continued.
        stages: Names of the stages to run; earlier ones must be done. None runs all.
        command: The command line that reproduces this run, for the results file.
        observer: Told of each stage that starts, finishes or is skipped.

    Returns:
        `list[StageRecord]`: One record per stage asked for. The finished ensemble lies in `ensemble_dir(work_dir)`.

    Raises:
        RecipeError: Unknown stage names, or a stage asked for whose inputs are not there.
        WorkDirError: The folder cannot be written, is full, or another run is using it.
    """
    trip_stages = stages_of(recipe)
    wanted = _wanted(trip_stages, None if stages is None else [name.strip() for name in stages])
    start_processes()
    with _owned(work_dir):
        trip = _trip(recipe, work_dir, command)
        sources = _read_sources(trip_stages, recipe, work_dir)
        stage_keys: dict[str, str] = {}
        records = []
        for stage in trip_stages:
            stage_keys[stage.name] = _key(stage, recipe, stage_keys, sources[stage.name])
            folder = trip.folders[stage.name]
            done = _stored(folder / _DONE, stage_keys[stage.name])
            if done is None and stage.name not in wanted:
                if any(s.name in wanted for s in trip_stages[trip_stages.index(stage) + 1 :]):
                    raise RecipeError(
                        f"stage {stage.name!r} has no up-to-date result in {work_dir}, and a later stage needs it. "
                        f"Run it first: --stages {stage.name},{','.join(sorted(wanted))}"
                    )
                break
            if stage.name in wanted:
                records.append(_run_stage(stage, trip, folder, stage_keys[stage.name], done, observer or _tell_nobody))
            stage_keys |= stage.parts(trip)
    return records


def ensemble_dir(work_dir: Path) -> Path:
    """The finished ensemble of a work directory: loadable, with its exports and its card."""
    return work_dir / f"{len(STAGES):02d}_{STAGES[-1].name}" / "ensemble"


def stage_dir(work_dir: Path, name: str) -> Path:
    """The folder of one stage; of a pruning round, beside the stage that ends the rounds."""
    kinds = {"prune_round": "prune", "retrain_round": "distill"}
    fixed = next((fixed for start, fixed in kinds.items() if name.startswith(start)), name)
    names = [stage.name for stage in STAGES]
    return work_dir / f"{names.index(fixed) + 1:02d}_{name}"


def _wanted(trip_stages: Sequence[Stage], names: Sequence[str] | None) -> set[str]:
    known = [stage.name for stage in trip_stages]
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise RecipeError(f"unknown stages {unknown}; the trip has, in this order: {', '.join(known)}.")
    return set(known if names is None else names)


def _trip(recipe: Recipe, work_dir: Path, command: str) -> Trip:
    folders = {stage.name: stage_dir(work_dir, stage.name) for stage in stages_of(recipe)}
    return Trip(recipe=recipe, folders=folders, command=command)


def _read_sources(trip_stages: Sequence[Stage], recipe: Recipe, work_dir: Path) -> dict[str, Any]:
    """What each stage reads outside the recipe. One process hashes the files, the others read what it found."""
    with main_process_first():
        hashes = FileHashes(work_dir / HASHES_FILE)
        sources = {stage.name: stage.sources(recipe, hashes) for stage in trip_stages}
        if is_main_process():
            hashes.save()
    return sources


def _key(stage: Stage, recipe: Recipe, stage_keys: dict[str, str], sources: Any) -> str:
    """Hash of everything a stage's result depends on: its recipe values and the keys of the stages it reads."""
    content = {
        "format": FORMAT,
        "stage": stage.name,
        "values": keys.chosen_values(recipe, stage.values),
        "sources": sources,
        "needs": {n: stage_keys[n] for n in stage.needs},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _stored(path: Path, key: str) -> dict[str, Any] | None:
    """What `done.json` or `inputs.json` holds, if it was written for the same inputs, else None.

    A damaged one counts as none, so that its stage runs again.
    """
    if not path.exists():
        return None
    try:
        stored = read_json_object(path, "a stage's record")
        if path.name == _DONE and (absent := [name for name in RECORDED if name not in stored]):
            raise CheckpointError(f"Expected a stage's record in {path}, found none of {', '.join(absent)}.")
    except CheckpointError as error:
        logger.warning("%s The stage runs again.", error)
        return None
    return stored if stored.get("key") == key else None


def _run_stage(
    stage: Stage, trip: Trip, folder: Path, key: str, done: dict[str, Any] | None, observer: Observer
) -> StageRecord:
    if done is not None:
        logger.info("%s: up to date, skipped", stage.name)
        observer(stage.name, "skipped")
        return StageRecord(stage.name, True, done["seconds"], done["peak_memory_mib"])
    wait_for_everyone()  # all have read what was done before anyone changes it
    resumed = _open_stage(folder, key) if is_main_process() else False
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
        folder / _DONE,
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


def _open_stage(folder: Path, key: str) -> bool:
    """Keep what an interrupted run with the same inputs left (True), or empty the folder (False)."""
    inputs = folder / "inputs.json"
    if _stored(inputs, key) is not None:
        remove(folder / _DONE)
        logger.info("%s: resuming an interrupted run", folder.name)
        return True
    if folder.exists():
        # First what makes the folder count as done or resumable: the rest may be interrupted half-way.
        remove(folder / _DONE)
        remove(inputs)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(inputs, {"key": key})
    return False


@contextlib.contextmanager
def _owned(work_dir: Path) -> Iterator[None]:
    """Hold the work directory for this launch; turn a full or read-only disk into one clear error."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = (work_dir / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise WorkDirError(
            f"work directory {work_dir} cannot be written ({error.strerror}). Every stage stores its result there. "
            "Choose another one with --work-dir or correct its permissions."
        ) from error
    with lock:
        try:
            if is_main_process():  # the others belong to the same launch
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkDirError(
                f"work directory {work_dir} is in use by another run. Two runs would overwrite each other's files. "
                "Wait for it, stop it, or choose another --work-dir."
            ) from error
        try:
            yield
        except Exception as error:
            is_forbidden = isinstance(error, PermissionError) and str(error.filename).startswith(str(work_dir))
            if is_forbidden or is_disk_fault(error) or is_disk_fault(error.__cause__):
                raise WorkDirError(
                    f"writing to {work_dir} failed: {error}. Finished stages are kept and nothing half-written will be "
                    "read. Free space (or make it writable) and run the same command again: it resumes."
                ) from error
            raise
