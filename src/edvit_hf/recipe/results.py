"""The evaluate stage: teacher, ensemble, ensemble with k absent and the honest baselines, into `results.json`."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edvit_hf.baselines import small_cnn
from edvit_hf.costs import BYTES_PER_PARAMETER
from edvit_hf.data import class_group_indices, class_group_labels, iterate_batches
from edvit_hf.evaluation import Evaluation, absent_subsets, paired_interval, torch_predict
from edvit_hf.evaluation import evaluate as measure
from edvit_hf.recipe.cutting import distill_into, prune_for
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.recipe.trip import Trip, load_array, load_model, save_array, save_model
from edvit_hf.storage import read_json, whole_folder, write_json
from edvit_hf.training import DistillConfig

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
COMPUTE_CAP = 2.0  # a larger plain model trains with at most this many times the sub-models' compute


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One row of the comparison before it is measured."""

    name: str
    kind: str
    predictions: np.ndarray  # (N,) class of each test item
    evaluation: Evaluation
    parameters: int
    parameters_per_device: int
    macs: int
    macs_per_device: int
    note: str = ""


def write_results(trip: Trip) -> None:
    """Measure everything on the test split and write `results.json`."""
    candidates = [_teacher(trip), _ensemble(trip)]
    if trip.recipe.evaluate.baselines:
        candidates += _baselines(trip)
    data = trip.data
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
                "label_names": data.label_names,
            },
            "recipe_values": recipe_values(trip.recipe),
            "class_groups": trip.class_groups,
            "rows": [_row(c, candidates, data.test.labels) for c in candidates],
            "absent": _absent(trip),
            "sub_models": _sub_models(trip),
            "stages": _stage_records(trip),
        },
    )


def _row(candidate: Candidate, candidates: list[Candidate], labels: np.ndarray) -> dict[str, Any]:
    teacher, ensemble = candidates[0], candidates[1]
    measured = candidate.evaluation

    def against(other: Candidate) -> dict[str, float] | None:
        if other is candidate:
            return None
        interval = paired_interval(candidate.predictions == labels, other.predictions == labels)
        return {"difference": interval.difference, "low": interval.low, "high": interval.high}

    return {
        "name": candidate.name,
        "kind": candidate.kind,
        "parameters": candidate.parameters,
        "parameters_per_device": candidate.parameters_per_device,
        "bytes": candidate.parameters * BYTES_PER_PARAMETER,
        "bytes_per_device": candidate.parameters_per_device * BYTES_PER_PARAMETER,
        "macs": candidate.macs,
        "macs_per_device": candidate.macs_per_device,
        "accuracy": measured.accuracy,
        "macro_f1": measured.macro_f1,
        "per_group_accuracy": measured.per_group_accuracy,
        "against_teacher": against(teacher),
        "against_ensemble": against(ensemble),
        "note": candidate.note,
    }


def _measure(trip: Trip, predict: Callable[[np.ndarray], np.ndarray]) -> Evaluation:
    batches = iterate_batches(trip.data.test, trip.recipe.evaluate.batch_size)
    return measure(predict, batches, num_labels=len(trip.data.label_names), class_groups=trip.class_groups)


def _teacher(trip: Trip) -> Candidate:
    evaluation, shape = _measure(trip, torch_predict(trip.teacher)), trip.teacher_shape
    return Candidate(
        "teacher", "teacher", evaluation.predictions, evaluation,
        shape.parameters, shape.parameters, shape.macs, shape.macs,
    )  # fmt: skip


def _ensemble(trip: Trip) -> Candidate:
    evaluation, plan = _measure(trip, torch_predict(trip.ensemble)), trip.plan
    devices = {s.device for s in plan.sub_models}
    return Candidate(
        "ensemble", "ensemble", evaluation.predictions, evaluation,
        sum(s.parameters for s in plan.sub_models) + plan.fusion_parameters,
        max(sum(s.parameters for s in plan.sub_models if s.device == d) for d in devices),
        sum(s.macs for s in plan.sub_models) + plan.fusion_parameters,
        max(sum(s.macs for s in plan.sub_models if s.device == d) for d in devices),
        note=f"{len(plan.sub_models)} sub-models on {len(devices)} devices; the fusion head "
        f"({plan.fusion_parameters:,} parameters) runs where the features meet and counts in the total alone",
    )  # fmt: skip


def _baselines(trip: Trip) -> list[Candidate]:
    """Plain distilled models of per-device and of total size, and a small CNN of per-device size.

    Each learns from the same teacher logits with the same hyper-parameters, see `_fair_budget`.
    """
    plan, shape, labels = trip.plan, trip.teacher_shape, trip.teacher.config.num_labels
    assert plan.keep_heads is not None  # only the plan of a published ensemble has none
    total = sum(s.parameters for s in plan.sub_models) + plan.fusion_parameters
    shapes = {k: shape.keep(k, num_labels=labels) for k in range(1, shape.widths.heads + 1)}
    total_keep = min(shapes, key=lambda k: abs(np.log(shapes[k].parameters / total)))
    rows = []
    for name, keep in (("plain model, per-device size", plan.keep_heads), ("plain model, total size", total_keep)):
        config = _fair_budget(trip, shapes[keep].macs)
        model = _plain_model(trip, name, keep, config)
        note = f"{keep} of {shape.widths.heads} heads kept; {_note(config)}"
        rows.append(_baseline(trip, name, model, shapes[keep].macs, note))
    cnn, macs, config = _small_cnn(trip, max(s.parameters for s in plan.sub_models))
    return [*rows, _baseline(trip, "small CNN", cnn, macs, _note(config))]


def _note(config: DistillConfig) -> str:
    return f"{config.epochs} epochs over all classes from the same stored teacher logits"


def _fair_budget(trip: Trip, macs: int) -> DistillConfig:
    """The distillation config with the epochs that are fair for a plain model of `macs` per item.

    As many item passes as all sub-models had together, but at most `COMPUTE_CAP` times their training compute (which
    binds for models larger than a sub-model). `evaluate.baseline_epochs` overrides it; the row's note states it.
    """
    config, labels = trip.recipe.distill, trip.data.train.labels
    if trip.recipe.evaluate.baseline_epochs is not None:
        return dataclasses.replace(config, epochs=trip.recipe.evaluate.baseline_epochs)
    ratio = config.negatives_per_positive
    items = [
        len(class_group_indices(labels, group, negatives_per_positive=ratio, seed=0, epoch=0))
        for group in trip.class_groups
    ]
    compute = sum(n * s.macs for n, s in zip(items, trip.plan.sub_models, strict=True))
    passes = min(sum(items), COMPUTE_CAP * compute / macs)
    prune = trip.recipe.prune
    epochs = config.epochs + (prune.rounds - 1) * prune.round_epochs  # pruning rounds train too
    return dataclasses.replace(config, epochs=max(1, round(epochs * passes / len(labels))))


def _baseline(trip: Trip, name: str, model: torch.nn.Module, macs: int, note: str) -> Candidate:
    evaluation = _measure(trip, torch_predict(model.eval()))
    parameters = sum(p.numel() for p in model.parameters())
    return Candidate(
        name, "baseline", evaluation.predictions, evaluation, parameters, parameters, macs, macs, note
    )  # fmt: skip


def _folder(trip: Trip, name: str) -> Path:
    return trip.folders["evaluate"] / "baselines" / name.replace(",", "").replace(" ", "_").lower()


def _plain_model(trip: Trip, name: str, keep: int, config: DistillConfig) -> torch.nn.Module:
    folder = _folder(trip, name)
    if not (folder / "model").is_dir():
        torch.manual_seed(config.seed)
        model, _ = prune_for(trip, list(range(trip.teacher.config.num_labels)), keep)
        distill_into(trip, model, trip.teacher_logits, config, class_group=None, folder=folder, description=name)
        save_model(model, folder / "model", trip.data.preprocessor)
    return load_model(folder / "model")


def _small_cnn(trip: Trip, target_parameters: int) -> tuple[torch.nn.Module, int, DistillConfig]:
    from safetensors.torch import load_model as load_weights
    from safetensors.torch import save_model as save_weights
    from torch.utils.flop_counter import FlopCounterMode

    folder, size, seed = _folder(trip, "small CNN"), trip.recipe.dataset.image_size, trip.recipe.distill.seed
    model = small_cnn(len(trip.data.label_names), size, target_parameters, seed=seed)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(pixel_values=torch.zeros(1, 3, size, size))
    macs = counter.get_total_flops() // 2
    config = _fair_budget(trip, macs)
    if not (folder / "model").is_dir():
        distill_into(trip, model, trip.teacher_logits, config, class_group=None, folder=folder, description="small CNN")
        with whole_folder(folder / "model") as partial:
            save_weights(model, str(partial / "model.safetensors"))
    load_weights(model, folder / "model" / "model.safetensors")
    return model, macs, config


def _test_features(trip: Trip) -> np.ndarray:
    """Features of all sub-models on the test split, (N, D) float32: every subset of them is fused from these."""
    path = trip.folders["evaluate"] / "test_features.safetensors"
    if not path.is_file():
        with torch.inference_mode():
            batches = iterate_batches(trip.data.test, trip.recipe.evaluate.batch_size)
            features = [trip.ensemble.features(batch["pixel_values"]).numpy() for batch in batches]
        save_array(path, np.concatenate(features))
    return load_array(path)


def _absent(trip: Trip) -> list[dict[str, Any]]:
    """Accuracy over all classes with 0, 1, ... sub-models absent, over all (or `max_subsets`) subsets."""
    features, labels = torch.from_numpy(_test_features(trip)), trip.data.test.labels
    count, rows = len(trip.class_groups), []
    for num_absent in range(count):
        subsets = absent_subsets(count, num_absent, limit=trip.recipe.evaluate.max_subsets)
        accuracies = []
        for subset in subsets:
            mask = torch.ones(len(features), count, dtype=torch.bool)
            mask[:, list(subset)] = False
            with torch.inference_mode():
                predicted = trip.ensemble.fusion(features, mask).argmax(-1).numpy()
            accuracies.append(float((predicted == labels).mean()))
        rows.append(
            {
                "num_absent": num_absent,
                "accuracy_mean": float(np.mean(accuracies)),
                "accuracy_min": min(accuracies),
                "accuracy_max": max(accuracies),
                "num_subsets": len(subsets),
            }
        )
    return rows


def _sub_models(trip: Trip) -> list[dict[str, Any]]:
    """Each sub-model's own vote on the test split: over its group and "other", and on its own classes alone."""
    votes: list[list[np.ndarray]] = [[] for _ in trip.class_groups]
    with torch.inference_mode():
        for batch in iterate_batches(trip.data.test, trip.recipe.evaluate.batch_size):
            for own, logits in zip(votes, trip.ensemble.votes(batch["pixel_values"]), strict=True):
                own.append(logits.argmax(-1).numpy())
    rows = []
    for planned, own in zip(trip.plan.sub_models, votes, strict=True):
        predicted = np.concatenate(own)
        expected = class_group_labels(trip.data.test.labels, planned.classes)
        inside = expected < len(planned.classes)
        rows.append(
            {
                "index": planned.index,
                "classes": [trip.data.label_names[c] for c in planned.classes],
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
        done = read_json(folder / "done.json")
        records.append({"name": name, **{k: done[k] for k in ("seconds", "resumed", "peak_memory_mib", "commit")}})
    return records
