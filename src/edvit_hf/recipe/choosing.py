# SPDX-License-Identifier: Apache-2.0
"""The choose stage of `strategy: auto`: train what is worth trying, keep what wins on validation items.

Comes in: the teacher and the recipe. Goes out: `choice.json`, and a folder for each strategy that was tried, in which
the stages from split to fuse lie as in a trip of its own; those of the winner become the trip's. First comes the plain
model of a device's size, then one of all devices' size together: where the second is hardly better, nothing is tried.
The rule against noise is `evaluation.choice`.
"""

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edvit_hf.data import iterate_batches
from edvit_hf.data.contents import FileHashes
from edvit_hf.evaluation.absence import Absence, absences
from edvit_hf.evaluation.choice import MOST_ABSENT, Candidate
from edvit_hf.evaluation.choice import choose as choose_candidate
from edvit_hf.recipe.stages.compared import plain_model
from edvit_hf.recipe.staging import DONE, Stage, key_of, run_stage, stored_record, tell_nobody
from edvit_hf.recipe.strategies import BASE, Strategy, as_strategy
from edvit_hf.recipe.trip import CHOICE_FILE, Trip
from edvit_hf.storage import read_json_object, remove, whole_folder, write_json
from edvit_hf.training.processes import is_main_process, wait_for_everyone

logger = logging.getLogger(__name__)

Role = Literal["validation", "test"]
WORDS: dict[str, str] = {
    "split": "the sub-models of the recipe's own class groups",
    "replicas": "one plain model on every device",
    "copies": "plain models of other seeds, votes averaged",
    "overlap": "class groups that overlap by two",
    "generalists": "sub-models cut for a class group that vote over all classes",
}
"""How a sentence calls each strategy."""


def choose(trip: Trip, stages: Sequence[Stage]) -> None:
    """Teacher -> the strategy to deploy, and its stages up to the fusion head.

    Args:
        trip (`Trip`): With a trained teacher and a recipe of `strategy: auto`.
        stages: Those from split to fuse, in order.
    """
    base = _tried(trip, BASE, stages)
    candidates: dict[Strategy, Candidate] = {BASE: _candidate(base, BASE)}
    gap = _gap(trip, base, candidates[BASE])
    if gap["points"] >= 100 * trip.recipe.auto.min_gap:
        for name in trip.recipe.auto.tries:
            candidates[name] = _candidate(_tried(trip, name, stages), name)
    if is_main_process():
        _write(trip, candidates, gap)
    wait_for_everyone()
    _adopt(trip, chosen_strategy(trip), stages)


def chosen_strategy(trip: Trip) -> Strategy:
    """What the choose stage settled on."""
    name: Strategy = read_choice(trip.folders["choose"])["name"]
    return name


def read_choice(folder: Path) -> dict[str, Any]:
    """What the choose stage wrote: the name, the verdict, every candidate's accuracies and the gap."""
    return read_json_object(folder / CHOICE_FILE, "which strategy was chosen")


def _write(trip: Trip, candidates: Mapping[Strategy, Candidate], gap: dict[str, float]) -> None:
    choice = choose_candidate({str(name): each for name, each in candidates.items()}, BASE, items="validation")
    content = choice.to_dict() | {"gap": gap, "tried": list(candidates)}
    if len(candidates) == 1:
        content["verdict"] = (
            f"deploy: {WORDS[BASE]} because one of all devices' size together is only {gap['points']:+.1f} points "
            f"better on {gap['num_items']:,} validation items"
        )
    logger.info("choose: %s", content["verdict"])
    write_json(trip.folders["choose"] / CHOICE_FILE, content)


def tried_trip(trip: Trip, name: Strategy, stages: Sequence[Stage]) -> Trip:
    """The trip of one strategy, from split to fuse, in a folder of its own beside the same teacher."""
    root = trip.folders["choose"] / name
    folders = {"teacher": trip.folders["teacher"], **{s.name: root / trip.folders[s.name].name for s in stages}}
    tried = dataclasses.replace(trip, recipe=as_strategy(trip.recipe, name), folders=folders)
    for shared in ("teacher_data", "data", "teacher", "teacher_shape"):  # loaded once for all
        tried.__dict__[shared] = getattr(trip, shared)
    return tried


def _tried(trip: Trip, name: Strategy, stages: Sequence[Stage]) -> Trip:
    """The same with its stages done; what is up to date is kept."""
    tried = tried_trip(trip, name, stages)
    stage_keys = {"teacher": str(read_json_object(tried.folders["teacher"] / DONE, "a stage's record")["key"])}
    hashes = FileHashes(trip.folders["choose"] / "file_hashes.json")
    for stage in stages:
        key = stage_keys[stage.name] = key_of(stage, tried.recipe, stage_keys, stage.sources(tried.recipe, hashes))
        folder = tried.folders[stage.name]
        logger.info("choose: %s, %s", name, stage.name)
        run_stage(stage, tried, folder, key, stored_record(folder / DONE, key), tell_nobody)
        stage_keys |= stage.parts(tried)
    return tried


def _adopt(trip: Trip, name: str, stages: Sequence[Stage]) -> None:
    """The winner's stages become the trip's: the stages that follow find them up to date."""
    if is_main_process():
        for stage in stages:
            source, target = trip.folders["choose"] / name / trip.folders[stage.name].name, trip.folders[stage.name]
            if target.exists():
                remove(target / DONE)  # first what makes it count as done
                shutil.rmtree(target)
            with whole_folder(target) as partial:
                shutil.copytree(source, partial, dirs_exist_ok=True)
    wait_for_everyone()


def absences_of(trip: Trip, role: Role = "validation") -> list[Absence]:
    """The trip's ensemble on the items of a role with 0, 1, 2 sub-models absent."""
    ensemble, split = trip.ensemble, getattr(trip.data, role)
    with torch.inference_mode():
        batches = iterate_batches(split, trip.recipe.evaluate.batch_size)
        parts = [ensemble.features_and_logits(**batch["inputs"]) for batch in batches]
        features, logits = (torch.cat(each) for each in zip(*parts, strict=True))

    def predict_without(absent: Sequence[int]) -> np.ndarray:
        mask = torch.ones(len(features), ensemble.config.num_sub_models)
        mask[:, list(absent)] = 0.0
        with torch.inference_mode():
            found: np.ndarray = ensemble.fusion(features, logits, mask).argmax(-1).numpy()
        return found

    count, limit = ensemble.config.num_sub_models, trip.recipe.evaluate.max_subsets
    return absences(predict_without, split.labels, count, most_absent=MOST_ABSENT, max_subsets=limit)


def _candidate(trip: Trip, name: Strategy) -> Candidate:
    return Candidate([each.correct for each in absences_of(trip)], WORDS[name])


def _gap(trip: Trip, base: Trip, candidate: Candidate) -> dict[str, float]:
    """How far one plain model of all devices' size is ahead of one of a device's size, on validation items."""
    right = rightly_answered(large_model(trip, base), trip)
    large, plain = float(right.mean()), float(candidate.correct[0].mean())
    return {"plain": plain, "large": large, "points": 100 * (large - plain), "num_items": len(right)}


def large_model(trip: Trip, base: Trip) -> torch.nn.Module:
    """One plain model of the size of all devices together, trained as long as the one of a device's size."""
    shape, num_labels = trip.uncut_shape, trip.teacher.config.num_labels
    size = trip.recipe.split.num_sub_models * base.plan.sub_models[0].parameters
    sizes = {keep: shape.keep(keep, num_labels=num_labels).parameters for keep in range(1, shape.widths.heads + 1)}
    nearest = min(sizes, key=lambda keep: abs(np.log(sizes[keep] / size)))
    return plain_model(trip, nearest, base.recipe.distill)


def rightly_answered(model: torch.nn.Module, trip: Trip, role: Role = "validation") -> np.ndarray:
    """Whether each item gets its class, (N,) bool."""
    split = getattr(trip.data, role)
    model.eval()
    with torch.inference_mode():
        batches = iterate_batches(split, trip.recipe.evaluate.batch_size)
        found = [model(**batch["inputs"]).logits.argmax(-1) == batch["labels"] for batch in batches]
    return torch.cat(found).numpy()
