# SPDX-License-Identifier: Apache-2.0
"""The choose stage of `strategy: auto`: train what is worth trying, keep what wins on validation items.

Comes in: the teacher and the recipe. Goes out: `choice.json`, and in `01_tried` a folder for each strategy, in which
the stages from split to fuse lie as in a trip of its own; those of the winner become the trip's. First comes the plain
model of a device's size, then one of all devices' size together: where the second is certainly hardly better, nothing
is tried. Among what is tried the best on average is kept (`evaluation.choice`).
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
from edvit_hf.evaluation.absence import Absence, absences, without_devices
from edvit_hf.evaluation.choice import Candidate
from edvit_hf.evaluation.choice import choose as choose_candidate
from edvit_hf.evaluation.evaluator import paired_interval
from edvit_hf.manifest.hashes import file_sha256
from edvit_hf.recipe.stages.compared import plain_model
from edvit_hf.recipe.stages.effort import of_all_classes, on_fullest_device, sub_models_by_device
from edvit_hf.recipe.staging import DONE, Stage, key_of, run_stage, stored_record, tell_nobody
from edvit_hf.recipe.strategies import BASE, AutoConfig, Strategy, as_strategy
from edvit_hf.recipe.trip import CHOICE_FILE, Trip
from edvit_hf.storage import link_tree, read_json_object, remove, whole_folder, write_json
from edvit_hf.tasks import MOST_ABSENT
from edvit_hf.training.processes import is_main_process, wait_for_everyone

logger = logging.getLogger(__name__)

Role = Literal["validation", "test"]
GAP_FILE, TRIED = "gap.json", "01_tried"
CHOICE_PART = "choose.choice"
SIZE_SLACK = 1.05  # sizes are matched by whole heads
WORDS: dict[str, str] = {
    "split": "the sub-models of the recipe's own class groups",
    "replicas": "one plain model on every device",
    "copies": "plain models of other seeds, votes averaged",
    "overlap": "class groups that overlap by two",
    "generalists": "sub-models cut for a class group that vote over all classes",
}
"""How a sentence calls each strategy."""


def choose(trip: Trip, stages: Sequence[Stage]) -> None:
    """Teacher -> the strategy to deploy; what was trained for it stays beside the stage's folder.

    Every process of a launch trains; the main one alone measures and writes, the others read.

    Args:
        trip (`Trip`): With a trained teacher and a recipe of `strategy: auto`.
        stages: Those from split to fuse, in order.
    """
    folder, auto = trip.folders["choose"], trip.recipe.auto
    trips, left_out = {BASE: _trained(trip, BASE, stages)}, dict[str, str]()
    if is_main_process():
        write_json(folder / GAP_FILE, _gap(trip, trips[BASE]))
    wait_for_everyone()
    gap = read_json_object(folder / GAP_FILE, "what a larger model gains")
    for name in auto.tries if is_worth_trying(gap, auto) else ():
        tried = tried_trip(trip, name, stages)
        if (why := _train(tried, stages, trips[BASE])) is None:
            trips[name] = tried
        else:
            left_out[name] = why
            logger.warning("choose: %s is not tried: %s", name, why)
    if is_main_process():
        _write(trip, trips, gap, left_out)
    wait_for_everyone()


def read_choice(folder: Path) -> dict[str, Any]:
    """What the choose stage wrote: the name, the verdict, every candidate's accuracies and the gap."""
    return read_json_object(folder / CHOICE_FILE, "which strategy was chosen")


def choice_part(trip: Trip) -> dict[str, str]:
    """The part of the choose stage's result that later stages show, by its hash."""
    return {CHOICE_PART: file_sha256(trip.folders["choose"] / CHOICE_FILE)}


def chosen_trip(trip: Trip, stages: Sequence[Stage]) -> Trip:
    """The trip goes on with the chosen strategy: its stages lie in the trip's own folders and are up to date."""
    chosen = tried_trip(trip, read_choice(trip.folders["choose"])["name"], stages)
    if is_main_process():
        for stage in stages:
            _adopt(chosen.folders[stage.name], trip.folders[stage.name])
    wait_for_everyone()
    return dataclasses.replace(trip, recipe=chosen.recipe)


def _adopt(source: Path, target: Path) -> None:
    """Put a finished stage's folder where the trip looks for it, unless it is there."""
    done = source / DONE
    if not done.is_file() or ((target / DONE).is_file() and (target / DONE).read_bytes() == done.read_bytes()):
        return
    if target.exists():
        remove(target / DONE)  # first what makes it count as done
        shutil.rmtree(target)
    with whole_folder(target) as partial:
        link_tree(source, partial)


def tried_trip(trip: Trip, name: Strategy, stages: Sequence[Stage]) -> Trip:
    """The trip of one strategy, from split to fuse, in a folder of its own beside the same teacher.

    All candidates keep as many heads as the plain model of the base strategy, where the recipe leaves that to the
    planner (`keep_heads: auto`): else a big device would buy one of them larger models than the others have.
    """
    root = trip.folders["choose"].with_name(TRIED) / name
    folders = {"teacher": trip.folders["teacher"], **{s.name: root / trip.folders[s.name].name for s in stages}}
    tried = dataclasses.replace(trip, recipe=as_strategy(trip.recipe, name), folders=folders)
    for shared in ("teacher_data", "data", "teacher", "teacher_shape"):  # loaded once for all
        tried.__dict__[shared] = getattr(trip, shared)
    if name != BASE and trip.recipe.prune.keep_heads == "auto" and trip.recipe.prune.keep_ratios is None:
        kept = tried_trip(trip, BASE, stages).plan.sub_models[0].keep_heads
        if kept is not None:
            prune = dataclasses.replace(tried.recipe.prune, keep_heads=kept)
            tried = dataclasses.replace(tried, recipe=dataclasses.replace(tried.recipe, prune=prune))
    return tried


def _trained(trip: Trip, name: Strategy, stages: Sequence[Stage]) -> Trip:
    tried = tried_trip(trip, name, stages)
    _train(tried, stages, None)
    return tried


def _train(tried: Trip, stages: Sequence[Stage], base: Trip | None) -> str | None:
    """Do the stages of one strategy; what is up to date is kept.

    Returns:
        Why it is not trained; None where it was: on the fullest device its sub-models would be larger than the plain
        model (of `base`), and a comparison would say nothing about collaboration.
    """
    stage_keys = {"teacher": str(read_json_object(tried.folders["teacher"] / DONE, "a stage's record")["key"])}
    hashes = FileHashes(tried.folders["split"].with_name("file_hashes.json"))
    for stage in stages:
        key = stage_keys[stage.name] = key_of(stage, tried.recipe, stage_keys, stage.sources(tried.recipe, hashes))
        folder = tried.folders[stage.name]
        run_stage(stage, tried, folder, key, stored_record(folder / DONE, key), tell_nobody)
        stage_keys |= stage.parts(tried)
        if stage.name == "plan" and base is not None and tried.recipe.prune.keep_heads != "per-sub-model":
            own, most = (on_fullest_device(each.plan, "parameters") for each in (tried, base))
            if own > SIZE_SLACK * most:
                return (
                    f"{own:,} parameters on its fullest device, the plain model has {most:,}. Give the fleet as many "
                    "devices as there are sub-models, and `objective: spread`."
                )
    return None


def _write(trip: Trip, trips: Mapping[Strategy, Trip], gap: Mapping[str, float], left_out: Mapping[str, str]) -> None:
    known = {name: [each.correct for each in absences_of(tried)] for name, tried in trips.items()}
    # On fewer devices fewer absences are known; the plain model answers alike with any.
    count = min((len(each) for name, each in known.items() if name != BASE), default=1)
    candidates = {str(name): Candidate(each[:count], WORDS[name]) for name, each in known.items()}
    choice = choose_candidate(candidates, BASE, items="validation", by="on average")
    content = choice.to_dict() | {"gap": gap, "tried": list(candidates), "left_out": left_out}
    if not is_worth_trying(gap, trip.recipe.auto):
        content["verdict"] = (
            f"deploy: {WORDS[BASE]} because one of all devices' size together differs by only {gap['points']:+.1f} "
            f"points [{gap['low']:+.1f}, {gap['high']:+.1f}] on {gap['num_items']:,} validation items"
        )
    logger.info("choose: %s", content["verdict"])
    write_json(trip.folders["choose"] / CHOICE_FILE, content)


def absences_of(trip: Trip, role: Role = "validation") -> list[Absence]:
    """The trip's ensemble on the items of a role with 0, 1, 2 devices absent, each with all it carries."""
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

    devices, limit = sub_models_by_device(trip.plan), trip.recipe.evaluate.max_subsets
    without = without_devices(predict_without, devices)
    return absences(without, split.labels, len(devices), most_absent=MOST_ABSENT, max_subsets=limit)


def _gap(trip: Trip, base: Trip) -> dict[str, float]:
    """How far one plain model of all devices' size is ahead of one of a device's size, on validation items."""
    right, own = rightly_answered(large_model(trip, base), trip).astype(float), absences_of(base)[0].correct
    found = paired_interval(right, own)
    ends = {
        name: 100 * getattr(found, end) for name, end in (("points", "difference"), ("low", "low"), ("high", "high"))
    }
    return {"plain": float(own.mean()), "large": float(right.mean()), **ends, "num_items": len(right)}


def is_worth_trying(gap: Mapping[str, float], auto: AutoConfig) -> bool:
    """Whether the larger model may be so far ahead: few validation items leave that open, and then it is tried."""
    return gap.get("high", gap["points"]) >= 100 * auto.min_gap


def large_model(trip: Trip, base: Trip) -> torch.nn.Module:
    """One plain model of the size of all devices together, trained as long as the one of a device's size."""
    shape, num_labels = trip.uncut_shape, trip.teacher.config.num_labels
    size = trip.recipe.split.num_sub_models * base.plan.sub_models[0].parameters
    sizes = {keep: shape.keep(keep, num_labels=num_labels).parameters for keep in range(1, shape.widths.heads + 1)}
    nearest = min(sizes, key=lambda keep: abs(np.log(sizes[keep] / size)))
    return plain_model(trip, nearest, of_all_classes(base.recipe.distill))


def rightly_answered(model: torch.nn.Module, trip: Trip, role: Role = "validation") -> np.ndarray:
    """Whether each item gets its class, (N,) bool."""
    split = getattr(trip.data, role)
    model.eval()
    with torch.inference_mode():
        batches = iterate_batches(split, trip.recipe.evaluate.batch_size)
        found = [model(**batch["inputs"]).logits.argmax(-1) == batch["labels"] for batch in batches]
    return torch.cat(found).numpy()
