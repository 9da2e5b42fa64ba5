# SPDX-License-Identifier: Apache-2.0
"""What stands beside the ensemble: plain models and a simple rival for the task, measured on the same test items.

The rivals depend on the teacher and the distillation, not on the split: they lie beside the teacher under a name that
carries a hash of all that made them, so that another number of sub-models does not train them again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.architectures.tables import own_values
from edvit_hf.card.tables import PLAIN_DEVICE_SIZE, PLAIN_TOTAL_SIZE, TFIDF
from edvit_hf.data import TextSplit, class_group_indices, iterate_batches
from edvit_hf.evaluation import TfidfBaseline, small_cnn
from edvit_hf.evaluation.evaluator import Evaluation, Predict, torch_predict
from edvit_hf.evaluation.evaluator import evaluate as measure
from edvit_hf.planning.plan import Plan
from edvit_hf.recipe.stages.cut import distill_into, prune_for
from edvit_hf.recipe.trip import Trip, drop_checkpoints, save_model
from edvit_hf.storage import whole_folder
from edvit_hf.training import DistillConfig

_CUTTING = ("importance", "samples_per_class", "batch_size", "compensate", "compensation_samples", "seed")
TFIDF_DEVICE_SIZE = f"{TFIDF}, per-device size"
COMPUTE_CAP = 2.0  # a larger plain model trains with at most this many times the sub-models' compute


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """A model that was measured, and its sizes: one row of the comparison before it is written."""

    name: str
    kind: str
    evaluation: Evaluation
    parameters: int
    parameters_per_device: int
    macs: int
    macs_per_device: int
    note: str = ""
    config: Mapping[str, Any] | None = None  # of a stock model: `own_values`, which fix its sizes


def measured(trip: Trip, predict: Predict) -> Evaluation:
    """Measure `predict` on the test split."""
    batches = iterate_batches(trip.data.test, trip.recipe.evaluate.batch_size)
    return measure(predict, batches, num_labels=len(trip.data.label_names), class_groups=trip.class_groups)


def baselines(trip: Trip) -> list[ComparedModel]:
    """Plain distilled models of per-device and of total size, and a simple rival of the task.

    The models learn from the same teacher outputs with the same hyper-parameters, see `fair_budget`.
    """
    shape, labels = trip.teacher_shape, trip.teacher.config.num_labels
    rows, keeps = [], plain_keeps(trip.plan, shape, labels)
    for name, keep in keeps.items():
        macs = shape.keep(keep, num_labels=labels).macs
        config = fair_budget(trip, macs)
        both = "" if len(keeps) > 1 else "the nearest to the total size too; "
        note = f"{keep} of {shape.widths.heads} heads kept; {both}{_note(config)}"
        rows.append(_row(trip, name, plain_model(trip, keep, config), macs, note))
    per_device = rows[0].parameters
    if trip.recipe.task == "text-classification":
        return [*rows, *_tfidf_rows(trip, per_device)]
    return [*rows, _small_cnn(trip, per_device)]


def plain_keeps(plan: Plan, shape: ModelShape, labels: int) -> dict[str, int]:
    """How many heads the plain models keep, by the names of their rows: nearest in parameters to what they stand for.

    The one of per-device size stands for all sub-models of the fullest device together, as the ensemble's own size per
    device does. Where one model is the nearest to that and to the total, it stands there once.
    """
    total = sum(s.parameters for s in plan.sub_models) + plan.fusion_parameters
    sizes = {k: shape.keep(k, num_labels=labels).parameters for k in range(1, shape.widths.heads + 1)}
    wanted = {PLAIN_DEVICE_SIZE: on_fullest_device(plan, "parameters"), PLAIN_TOTAL_SIZE: total}
    found = {name: min(sizes, key=lambda k: abs(np.log(sizes[k] / size))) for name, size in wanted.items()}
    return dict.fromkeys([PLAIN_DEVICE_SIZE], found[PLAIN_DEVICE_SIZE]) if len(set(found.values())) == 1 else found


def on_fullest_device(plan: Plan, figure: str) -> int:
    """The largest sum of "parameters" or "macs" over the sub-models of one device."""
    devices = {s.device for s in plan.sub_models}
    return max(sum(getattr(s, figure) for s in plan.sub_models if s.device == device) for device in devices)


def _note(config: DistillConfig) -> str:
    return f"{config.epochs} epochs over all classes from the same stored teacher outputs"


def fair_budget(trip: Trip, macs: int) -> DistillConfig:
    """The distillation config with the epochs that are fair for a plain model of `macs` per item.

    As many item passes as all sub-models had together, joint tuning included, but at most `COMPUTE_CAP` times their
    training compute (which binds for models larger than a sub-model). `evaluate.baseline_epochs` sets the passes of a
    model of one device's size instead, under the same cap; the row's note states what came of it.
    """
    config, labels, prune, fuse = (trip.recipe.distill, trip.data.train.labels, trip.recipe.prune, trip.recipe.fuse)
    given = trip.recipe.evaluate.baseline_epochs
    if given is not None:
        passes, compute = given * len(labels), given * len(labels) * on_fullest_device(trip.plan, "macs")
    else:
        epochs = config.epochs + (prune.rounds - 1) * prune.round_epochs  # pruning rounds train too
        joint = fuse.joint_epochs * len(labels) if fuse.joint else 0
        ratio = config.negatives_per_positive
        items = [
            epochs * len(class_group_indices(labels, group, negatives_per_positive=ratio, seed=0, epoch=0)) + joint
            for group in trip.class_groups
        ]
        passes, compute = sum(items), sum(n * s.macs for n, s in zip(items, trip.plan.sub_models, strict=True))
    affordable = min(passes, COMPUTE_CAP * compute / macs)
    return dataclasses.replace(config, epochs=max(1, round(affordable / len(labels))))


def _row(trip: Trip, name: str, model: torch.nn.Module, macs: int, note: str) -> ComparedModel:
    parameters = sum(p.numel() for p in model.parameters())
    evaluation = measured(trip, torch_predict(model.eval()))
    config = own_values(model.config) if hasattr(model, "config") else None
    return ComparedModel(name, "baseline", evaluation, parameters, parameters, macs, macs, note, config)


def _folder(trip: Trip, name: str, *facts: object) -> Path:
    """Beside the teacher, named by everything that the model depends on besides the teacher."""
    prune = dataclasses.asdict(trip.recipe.prune)
    facts = (*(prune[key] for key in _CUTTING), len(trip.data.train), *facts)  # benchmarks train on fewer items
    content = json.dumps([name, *map(str, facts)])
    return trip.folders["teacher"] / "compared" / f"{name}_{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def plain_model(trip: Trip, keep: int, config: DistillConfig) -> torch.nn.Module:
    """One model for all classes with so many heads, cut and distilled like a sub-model; made once."""
    folder = _folder(trip, "plain", keep, config)
    if not (folder / "model").is_dir():
        torch.manual_seed(config.seed)
        model, _ = prune_for(trip, list(range(trip.teacher.config.num_labels)), keep)
        distill_into(trip, [model], [None], config, folder=folder, description=f"plain model, {keep} heads")
        save_model(model, folder / "model", trip.data.processor)
    drop_checkpoints(folder)
    return trip.load(folder / "model")


def _small_cnn(trip: Trip, target_parameters: int) -> ComparedModel:
    from safetensors.torch import load_model as load_weights
    from safetensors.torch import save_model as save_weights
    from torch.utils.flop_counter import FlopCounterMode

    name, seed = trip.recipe.main_input, trip.recipe.distill.seed
    example = trip.data.test.inputs(np.arange(1))[name]
    model = small_cnn(len(trip.data.label_names), tuple(example.shape[1:]), target_parameters, seed=seed)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(**{name: example})
    macs = counter.get_total_flops() // 2
    config = fair_budget(trip, macs)
    if config.objective == "dekd":  # it has no attention to match
        config = dataclasses.replace(config, objective="kd")
    folder = _folder(trip, "small_cnn", target_parameters, config)
    if not (folder / "model").is_dir():
        distill_into(trip, [model], [None], config, folder=folder, description="small CNN")
        with whole_folder(folder / "model") as partial:
            save_weights(model, str(partial / "model.safetensors"))
    drop_checkpoints(folder)
    load_weights(model, folder / "model" / "model.safetensors")
    return _row(trip, "small CNN", model, macs, _note(config))


def _tfidf_rows(trip: Trip, per_device: int) -> list[ComparedModel]:
    """At the size of one device and without a limit; one row where the texts give no more than one device holds."""
    free = _tfidf(trip, None)
    if free.parameters > per_device:
        return [_tfidf(trip, per_device), free]
    note = f"{free.note}; every term of the texts fits one device"
    return [dataclasses.replace(free, name=TFIDF_DEVICE_SIZE, note=note)]


def _tfidf(trip: Trip, max_parameters: int | None) -> ComparedModel:
    """TF-IDF and a linear classifier on the labels: nothing is distilled, and it costs next to nothing to train.

    Args:
        trip (`Trip`): Of a text task.
        max_parameters: As many as one device carries; None: as many as the texts give.
    """
    splits = {name: getattr(trip.data, name) for name in ("train", "validation", "test")}
    texts = {}
    for name, split in splits.items():
        assert isinstance(split, TextSplit)
        texts[name] = split.texts(np.arange(len(split)))
    folder = _folder(trip, "tfidf", max_parameters)
    if not (folder / "model").is_dir():
        train, validation = ((texts[name], splits[name].labels) for name in ("train", "validation"))
        num_labels = len(trip.data.label_names)
        fitted = TfidfBaseline.fit(*train, *validation, num_labels=num_labels, max_parameters=max_parameters)
        with whole_folder(folder / "model") as partial:
            fitted.save(partial)
    model = TfidfBaseline.load(folder / "model")
    logits = model.predict_logits(texts["test"])
    batch = {"inputs": {"rows": np.arange(len(logits))}, "labels": splits["test"].labels}
    evaluation = measure(
        lambda inputs: logits[inputs["rows"]], [batch], num_labels=logits.shape[1], class_groups=trip.class_groups
    )
    macs = round(model.macs_per_item(texts["test"]))
    name = TFIDF_DEVICE_SIZE if max_parameters else TFIDF
    note = model.describe() + "; trained on the labels, its vocabulary is not counted"
    return ComparedModel(name, "baseline", evaluation, model.num_parameters, model.num_parameters, macs, macs, note)
