# SPDX-License-Identifier: Apache-2.0
"""The evaluate stage: teacher, ensemble, ensemble with k absent and the rivals, into `results.json`."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edvit_hf.architectures.costs import BYTES_PER_PARAMETER
from edvit_hf.architectures.tables import own_values
from edvit_hf.card.rows import LARGE, REPLICAS
from edvit_hf.data import class_group_labels, iterate_batches
from edvit_hf.evaluation.absence import Absence, absences, on_every_device, without_devices
from edvit_hf.evaluation.choice import Candidate, Choice, choose
from edvit_hf.evaluation.evaluator import paired_interval, torch_predict
from edvit_hf.evaluation.gap import gap_of, rare_classes, recall_of
from edvit_hf.published.data import data_record
from edvit_hf.published.measure import absence_row
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.recipe.stages.compared import ComparedModel, baselines, everywhere, measured
from edvit_hf.recipe.stages.effort import (
    ensemble_effort,
    num_devices,
    on_fullest_device,
    sub_models_by_device,
    teacher_effort,
)
from edvit_hf.recipe.stages.left_out import left_out
from edvit_hf.recipe.trip import CHOICE_FILE, OVERLAP_FILE, Trip, load_array, save_array
from edvit_hf.storage import read_json_object, write_json
from edvit_hf.tasks import MOST_ABSENT

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2  # 2: absences, passes and minutes of every row, the gap, the choice
_SIZE_SLACK = 1.05  # a rival may be so much larger than a device's share: sizes are matched by whole heads or layers
RECORDED = ("seconds", "resumed", "peak_memory_mib", "commit")  # of every stage, in its `done.json`


def evaluate(trip: Trip) -> None:
    """Measure teacher, ensemble and rivals on the test split and write `results.json`."""
    absent, absent_devices = _absent(trip)
    candidates = [_teacher(trip), _ensemble(trip, absent_devices)]
    if trip.recipe.evaluate.baselines:
        candidates += baselines(trip)
    data, found = trip.data, _choice(candidates)
    rare = rare_classes(data.train.labels, len(data.label_names))
    accuracies = {candidate.name: candidate.evaluation.accuracy for candidate in candidates}
    write_json(
        trip.folders["evaluate"] / "results.json",
        {
            "schema_version": SCHEMA_VERSION,
            "recipe": trip.recipe.name,
            "task": trip.recipe.task,
            "command": trip.command,
            "seed": trip.recipe.teacher.seed,
            "seeds": trip.recipe.seeds,
            "environment": trip.environment,
            "dataset": {
                "path": trip.recipe.dataset.path,
                "num_train_items": len(data.train),
                "num_validation_items": len(data.validation),
                "num_test_items": len(data.test),
                "num_labels": len(data.label_names),
                "num_skipped": data.skipped,
                "label_names": data.label_names,
                "test": test_record(trip),
                "overlap": _overlap(trip),
            },
            "recipe_values": _finite(recipe_values(trip.recipe)),
            "class_groups": trip.class_groups,
            "focus_groups": trip.focus_groups,
            "rows": [_row(c, candidates, data.test.labels, rare) for c in candidates],
            "left_out": left_out(trip),
            "gap": gap_of(accuracies, REPLICAS, LARGE),
            "strategy": _strategy(trip),
            "choice": None if found is None else found.to_dict(),
            "rare_classes": [{**each, "name": data.label_names[each["label"]]} for each in rare],
            "absent": [absence_row(each.num_absent, each.accuracies) for each in absent],
            "sub_models": _sub_models(trip),
            "stages": _stage_records(trip),
        },
    )


def _finite(value: Any) -> Any:
    """The same plain data with infinity as YAML writes it: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return ".inf" if value == float("inf") else value


def test_record(trip: Trip) -> dict[str, Any]:
    """Whose figures these are: what was measured on, by content."""
    data = trip.data
    return data_record(trip.recipe.dataset, len(data.test), data.skipped.get("test", 0), data.fingerprint("test"))


def _overlap(trip: Trip) -> dict[str, Any] | None:
    """How many rows the roles share, as the teacher stage found; None of a teacher that was trained otherwise."""
    path = trip.folders["teacher"] / OVERLAP_FILE
    return read_json_object(path, "how many rows the roles share") if path.is_file() else None


def _strategy(trip: Trip) -> dict[str, Any] | None:
    """What `strategy: auto` chose on validation items and why; None where the recipe itself says what to do."""
    folder = trip.folders.get("choose")
    return None if folder is None else read_json_object(folder / CHOICE_FILE, "which strategy was chosen")


def _choice(candidates: list[ComparedModel]) -> Choice | None:
    """What to deploy on devices of one device's size; None where the plain model on every device was not measured."""
    plain = next((candidate for candidate in candidates if candidate.name == REPLICAS), None)
    if plain is None:
        return None
    most = _SIZE_SLACK * max(plain.parameters_per_device, candidates[1].parameters_per_device)
    fitting = [each for each in candidates if each.what and each.parameters_per_device <= most]
    count = min(len(each.absent) for each in fitting)
    known, beside = (
        {
            each.name: Candidate([a.correct for a in each.absent[:count]], each.what)
            for each in fitting
            if each.is_exportable == is_exportable
        }
        for is_exportable in (True, False)
    )
    return choose(known, REPLICAS, beside=beside)


def _against_plain(candidate: ComparedModel, candidates: list[ComparedModel]) -> list[dict[str, float]]:
    """Paired intervals against the plain model on every device, for each number absent; empty where it is not there."""
    plain = next((each for each in candidates if each.name == REPLICAS), None)
    if plain is None or candidate is plain:
        return []
    rows = []
    for own, other in zip(candidate.absent, plain.absent, strict=False):
        interval = paired_interval(own.correct, other.correct)
        found = {name: getattr(interval, name) for name in ("difference", "low", "high")}
        rows.append({"num_absent": own.num_absent, **found})
    return rows


def _row(
    candidate: ComparedModel, candidates: list[ComparedModel], labels: np.ndarray, rare: list[dict[str, int]]
) -> dict[str, Any]:
    teacher, ensemble = candidates[0], candidates[1]

    def against(other: ComparedModel) -> dict[str, float] | None:
        if other is candidate:
            return None
        correct = [each.evaluation.predictions == labels for each in (candidate, other)]
        both = paired_interval(*correct)
        # Nine of ten resamples lie inside the two-sided 90 % interval: its lower end is the one-sided 95 % bound.
        one_sided = paired_interval(*correct, level=0.9)
        return {"difference": both.difference, "low": both.low, "high": both.high, "low_one_sided": one_sided.low}

    shown = ("accuracy", "macro_f1", "calibration_error", "per_group_accuracy")
    return {
        **{name: getattr(candidate, name) for name in ("name", "kind", "parameters", "parameters_per_device")},
        "bytes": candidate.parameters * BYTES_PER_PARAMETER,
        "bytes_per_device": candidate.parameters_per_device * BYTES_PER_PARAMETER,
        "macs": candidate.macs,
        "macs_per_device": candidate.macs_per_device,
        **{name: getattr(candidate.evaluation, name) for name in shown},
        "against_teacher": against(teacher),
        "against_ensemble": against(ensemble),
        "against_replicas": _against_plain(candidate, candidates),
        "absent": [each.to_row() for each in candidate.absent[: MOST_ABSENT + 1]],
        **(candidate.effort.to_row() if candidate.effort else {"passes": None, "minutes": None}),
        "rare_recall": recall_of(candidate.evaluation.per_class_accuracy, rare),
        "note": candidate.note,
        **({} if candidate.config is None else {"config": candidate.config}),
    }


def _teacher(trip: Trip) -> ComparedModel:
    evaluation, shape = measured(trip, torch_predict(trip.teacher), trip.teacher_data), trip.teacher_shape
    sizes = (shape.parameters, shape.parameters, shape.macs, shape.macs)
    alone = on_every_device(evaluation.predictions, evaluation.labels, 0)
    config, effort = own_values(trip.teacher.config), teacher_effort(trip)
    return ComparedModel("teacher", "teacher", evaluation, *sizes, config=config, absent=alone, effort=effort)


def _ensemble(trip: Trip, absent: list[Absence]) -> ComparedModel:
    evaluation, plan = measured(trip, torch_predict(trip.ensemble)), trip.plan
    count, devices = len(plan.sub_models), num_devices(plan, trip.recipe.evaluate.devices)
    fusion = f"({plan.fusion_parameters:,} parameters) runs where the features meet and counts in the total alone"
    note = f"{count} sub-models on {devices} devices" + (
        f"; the fusion head {fusion}" if plan.fusion_parameters else ""
    )
    row = ComparedModel(
        "ensemble",
        "ensemble",
        evaluation,
        sum(s.parameters for s in plan.sub_models) + plan.fusion_parameters,
        on_fullest_device(plan, "parameters"),
        sum(s.macs for s in plan.sub_models) + plan.fusion_parameters,
        on_fullest_device(plan, "macs"),
        note=note,
        absent=absent,
        effort=ensemble_effort(trip),
        what=f"the ensemble of {count} sub-models",
    )
    if count > 1:
        return row
    row = everywhere(trip, row, "")  # a plain model itself: no candidate beside the one that is the baseline
    return dataclasses.replace(row, note=f"one sub-model that knows every class, the same on {devices} device(s)")


def _test_answers(trip: Trip) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and votes (N, V) of all sub-models on the test split, from which every subset is fused."""
    paths = [trip.folders["evaluate"] / f"test_{name}.safetensors" for name in ("features", "logits")]
    if not all(path.is_file() for path in paths):
        with torch.inference_mode():
            batches = iterate_batches(trip.data.test, trip.recipe.evaluate.batch_size)
            answers = [trip.ensemble.features_and_logits(**batch["inputs"]) for batch in batches]
        for path, parts in zip(paths, zip(*answers, strict=True), strict=True):
            save_array(path, torch.cat(parts).numpy())
    return load_array(paths[0]), load_array(paths[1])


def _absent(trip: Trip) -> tuple[list[Absence], list[Absence]]:
    """Answers over all classes with 0, 1, ... sub-models absent, and with as many devices, each with all it carries.

    Of both all (or `max_subsets`) subsets; where each device carries one sub-model they are the same.
    """
    features, logits = map(torch.from_numpy, _test_answers(trip))
    count = len(trip.class_groups)

    def without(subset: Sequence[int]) -> np.ndarray:
        mask = torch.ones(len(features), count, dtype=torch.bool)
        mask[:, list(subset)] = False
        with torch.inference_mode():
            return np.asarray(trip.ensemble.fusion(features, logits, mask).argmax(-1).numpy())

    labels, most = trip.data.test.labels, trip.recipe.evaluate.max_subsets
    devices, found = sub_models_by_device(trip.plan), absences(without, labels, count, max_subsets=most)
    if len(devices) == count:
        return found, found
    return found, absences(without_devices(without, devices), labels, len(devices), max_subsets=most)


def _sub_models(trip: Trip) -> list[dict[str, Any]]:
    """Each sub-model's own vote on the test split: over all it votes over, and on the classes that it is cut for."""
    votes: list[list[np.ndarray]] = [[] for _ in trip.class_groups]
    with torch.inference_mode():
        for batch in iterate_batches(trip.data.test, trip.recipe.evaluate.batch_size):
            for own, logits in zip(votes, trip.ensemble.votes(**batch["inputs"]), strict=True):
                own.append(logits.argmax(-1).numpy())
    rows = []
    for planned, own in zip(trip.plan.sub_models, votes, strict=True):
        predicted = np.concatenate(own)
        expected, focus = class_group_labels(trip.data.test.labels, planned.classes), trip.focus_groups[planned.index]
        inside = np.isin(trip.data.test.labels, focus)
        rows.append(
            {
                "index": planned.index,
                "classes": [trip.data.label_names[c] for c in focus],
                "device": planned.device,
                "parameters": planned.parameters,
                "bytes": planned.bytes,
                "macs": planned.macs,
                "vote_accuracy": float((predicted == expected).mean()),
                "group_accuracy": float((predicted == expected)[inside].mean()),
            }
        )
    return rows


def _stage_records(trip: Trip) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for name, folder in trip.folders.items():
        if name == "evaluate":  # what stands behind it may be of an earlier recipe
            return records
        records.append({"name": name, **record(folder)})
    return records


def record(folder: Path) -> dict[str, Any]:
    """What a finished stage took, see `RECORDED`."""
    done = read_json_object(folder / "done.json", "a stage's record", "Run the recipe again: that stage runs anew.")
    return {name: done.get(name) for name in RECORDED}
