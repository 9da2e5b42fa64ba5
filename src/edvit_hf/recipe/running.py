# SPDX-License-Identifier: Apache-2.0
"""The order of the stages, and a recipe's way through them; what makes a stage skippable and resumable: `staging`."""

import contextlib
import dataclasses
import fcntl
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edvit_hf.data.contents import FileHashes
from edvit_hf.errors import RecipeError, WorkDirError
from edvit_hf.recipe import keys
from edvit_hf.recipe.choosing import CHOICE_PART, choice_part, choose, chosen_trip
from edvit_hf.recipe.schema import Recipe
from edvit_hf.recipe.stages import cut
from edvit_hf.recipe.stages.evaluate import evaluate
from edvit_hf.recipe.stages.fuse import fuse
from edvit_hf.recipe.stages.plan import plan
from edvit_hf.recipe.stages.publish import card, export
from edvit_hf.recipe.stages.split import split
from edvit_hf.recipe.stages.teacher import train_teacher
from edvit_hf.recipe.staging import DONE, Observer, Stage, StageRecord, key_of, run_stage, stored_record, tell_nobody
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import is_disk_fault
from edvit_hf.training import DistillConfig
from edvit_hf.training.processes import is_main_process, main_process_first, start_processes

HASHES_FILE = "file_hashes.json"  # in the work directory: what is known of the data's files


def _pruning_part(trip: Trip) -> dict[str, str]:
    return {"plan.keep_heads": trip.plan.pruning_key}


# The order of the trip stands here and nowhere else; `stages_of` adds the pruning rounds of a recipe.
_DATA_VALUES = ("task", "dataset", "augmentation", "teacher")
_PLAN_VALUES = (
    "fleet",
    *(f"prune.{key}" for key in ("keep_heads", "keep_ratios", "from_scratch", "attention", "rounds", "vocabulary")),
    "fuse.hidden_size",
    "fuse.kind",
)
STAGES: tuple[Stage, ...] = (
    Stage("teacher", train_teacher, (), _DATA_VALUES, sources=keys.teacher_sources, is_shared=True),
    Stage("split", split, ("teacher",), ("split", "distill.votes"), sources=keys.split_sources),
    Stage("plan", plan, ("teacher", "split"), _PLAN_VALUES, sources=keys.fleet_sources, parts=_pruning_part),
    Stage("prune", cut.prune, ("teacher", "split", "plan.keep_heads"), ("prune",)),
    Stage("distill", cut.distill, ("teacher", "split", "prune"), ("distill",), is_shared=True),
    Stage("fuse", fuse, ("teacher", "split", "distill"), ("fuse", "name"), sources=keys.fuse_sources),
    Stage("evaluate", evaluate, ("teacher", "plan", "distill", "fuse"), ("evaluate",)),
    Stage("export", export, ("fuse",), ("export",), sources=keys.export_sources),
    Stage("card", card, ("plan", "evaluate", "export"), ("card", "name"), sources=keys.card_sources),
)


CHOOSE = "choose"
_CHOOSE_VALUES = ("auto", "split", "fleet", "prune", "distill", "fuse", "evaluate.max_subsets")


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe: with `prune.rounds` above 1, a prune and a short retrain stage for each earlier round.

    The fixed stages keep their folders: the rounds' are `04_prune_round1`, `05_retrain_round1` and so on, and that of
    the choice between strategies is `01_choose`.
    """
    result: list[Stage] = []
    for stage in STAGES:
        if stage.name == "split" and recipe.strategy == "auto":
            choosing = functools.partial(choose, stages=tried_stages(recipe))
            of_choice: dict[str, Any] = {"sources": keys.fleet_sources, "parts": choice_part, "is_shared": True}
            result.append(Stage(CHOOSE, choosing, ("teacher",), _CHOOSE_VALUES, **of_choice))
        if stage.name == "evaluate" and recipe.strategy == "auto":  # its results show the choice
            stage = dataclasses.replace(stage, needs=(*stage.needs, CHOICE_PART))
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


def tried_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """What the choose stage runs for each strategy: the stages from split to fuse."""
    stages = stages_of(dataclasses.replace(recipe, strategy="split"))
    return stages[1 : [stage.name for stage in stages].index("fuse") + 1]


# A round trains as the distill stage does, but for `prune.round_epochs`: the last retraining's length is not its own.
_OWN = ("epochs", "patience")
_RETRAIN_VALUES = tuple(f"distill.{f.name}" for f in dataclasses.fields(DistillConfig) if f.name not in _OWN)


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
        trip = open_trip(recipe, work_dir, command)
        sources = _read_sources(trip_stages, recipe, work_dir)
        stage_keys: dict[str, str] = {}
        records = []
        for stage in trip_stages:
            stage_keys[stage.name] = key_of(stage, trip.recipe, stage_keys, sources[stage.name])
            folder = trip.folders[stage.name]
            done = stored_record(folder / DONE, stage_keys[stage.name])
            if done is None and stage.name not in wanted:
                if any(s.name in wanted for s in trip_stages[trip_stages.index(stage) + 1 :]):
                    raise RecipeError(
                        f"stage {stage.name!r} has no up-to-date result in {work_dir}, and a later stage needs it. "
                        f"Run it first: --stages {stage.name},{','.join(sorted(wanted))}"
                    )
                break
            if stage.name in wanted:
                records.append(run_stage(stage, trip, folder, stage_keys[stage.name], done, observer or tell_nobody))
            stage_keys |= stage.parts(trip)
            if stage.name == CHOOSE:
                trip = chosen_trip(trip, tried_stages(recipe))
                sources = _read_sources(trip_stages, trip.recipe, work_dir)
    return records


def ensemble_dir(work_dir: Path) -> Path:
    """The finished ensemble of a work directory: loadable, with its exports and its card."""
    return work_dir / f"{len(STAGES):02d}_{STAGES[-1].name}" / "ensemble"


def stage_dir(work_dir: Path, name: str) -> Path:
    """The folder of one stage; of a pruning round, beside the stage that ends the rounds."""
    kinds = {"prune_round": "prune", "retrain_round": "distill", CHOOSE: "teacher"}
    fixed = next((fixed for start, fixed in kinds.items() if name.startswith(start)), name)
    names = [stage.name for stage in STAGES]
    return work_dir / f"{names.index(fixed) + 1:02d}_{name}"


def _wanted(trip_stages: Sequence[Stage], names: Sequence[str] | None) -> set[str]:
    known = [stage.name for stage in trip_stages]
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise RecipeError(f"unknown stages {unknown}; the trip has, in this order: {', '.join(known)}.")
    return set(known if names is None else names)


def open_trip(recipe: Recipe, work_dir: Path, command: str = "") -> Trip:
    """What the stages share, on the results that lie in a work directory."""
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
