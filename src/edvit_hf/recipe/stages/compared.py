# SPDX-License-Identifier: Apache-2.0
"""What stands beside the ensemble: plain models, copies of them, and a simple rival, measured on the same test items.

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
from edvit_hf.card.rows import ALL_PASSES, COPIES, DEVICE_COPIES, LARGE, REPLICAS, SMALL_CNN, TFIDF, TFIDF_DEVICE_SIZE
from edvit_hf.data import TaskData, TextSplit, iterate_batches
from edvit_hf.evaluation import TfidfBaseline, small_cnn
from edvit_hf.evaluation.absence import Absence, absences, on_every_device
from edvit_hf.evaluation.evaluator import Evaluation, Predict, torch_predict
from edvit_hf.evaluation.evaluator import evaluate as measure
from edvit_hf.planning.plan import Plan
from edvit_hf.recipe.stages.cut import distill_into, prune_for
from edvit_hf.recipe.stages.effort import (
    Effort,
    all_passes,
    as_long_as_all,
    epochs_done,
    fair_budget,
    num_devices,
    of_all_classes,
    on_fullest_device,
    rival_effort,
)
from edvit_hf.recipe.trip import Trip, drop_checkpoints, save_model
from edvit_hf.storage import whole_folder
from edvit_hf.tasks import MOST_ABSENT
from edvit_hf.training import DistillConfig
from edvit_hf.training.config import SEED_STRIDE

_CUTTING = ("importance", "samples_per_class", "batch_size", "compensate", "compensation_samples", "seed")


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """A model that was measured, and its sizes: one row of the comparison before it is written.

    Attributes:
        name: Of the row, see `card.rows`.
        kind: "teacher", "ensemble" or "baseline".
        evaluation: With all present.
        parameters: Of everything.
        parameters_per_device: Of the fullest device.
        macs: Multiply-accumulates per item of everything.
        macs_per_device: Of the fullest device.
        note: What else has to be said.
        config: Of a stock model: `own_values`, which fix its sizes.
        absent: With 0, 1, ... devices absent, each with all it carries; with a single entry nothing answers without it.
        effort: What training it took; None where that is not known.
        what: How a sentence calls it; empty where it is no candidate for devices of one device's size.
        is_exportable: Whether an export can write it for devices: what it cannot is measured, but never chosen.
    """

    name: str
    kind: str
    evaluation: Evaluation
    parameters: int
    parameters_per_device: int
    macs: int
    macs_per_device: int
    note: str = ""
    config: Mapping[str, Any] | None = None
    absent: list[Absence] = dataclasses.field(default_factory=list)
    effort: Effort | None = None
    what: str = ""
    is_exportable: bool = True


def measured(trip: Trip, predict: Predict, data: TaskData | None = None) -> Evaluation:
    """Measure `predict` on the test split of `data`, or else as sub-models read it."""
    batches = iterate_batches((data or trip.data).test, trip.recipe.evaluate.batch_size)
    return measure(predict, batches, num_labels=len(trip.data.label_names), class_groups=trip.focus_groups)


def measured_logits(trip: Trip, logits: np.ndarray) -> Evaluation:
    """The same of logits that are known already, (N, L)."""
    batch = {"inputs": {"rows": np.arange(len(logits))}, "labels": trip.data.test.labels}
    groups = trip.focus_groups
    return measure(lambda inputs: logits[inputs["rows"]], [batch], num_labels=logits.shape[1], class_groups=groups)


def baselines(trip: Trip) -> list[ComparedModel]:
    """The rivals that the recipe asks for, and a simple one of the task.

    The models learn from the same teacher outputs with the same hyper-parameters, see `fair_budget`.
    """
    shape, labels = trip.uncut_shape, trip.teacher.config.num_labels
    keeps = plain_keeps(trip.plan, shape, labels, trip.recipe.evaluate.devices)
    size = shape.keep(keeps[REPLICAS], num_labels=labels)
    rows = [*_plain_rows(trip, keeps, size.macs), *_copies_rows(trip, keeps[REPLICAS], size.macs)]
    if trip.recipe.task == "text-classification":
        return [*rows, *_tfidf_rows(trip, size.parameters)]
    return [*rows, _small_cnn(trip, size.parameters)]


def plain_keeps(plan: Plan, shape: ModelShape, labels: int, devices: int | None = None) -> dict[str, int]:
    """How many heads the plain models keep, by the names of their rows: nearest in parameters to what they stand for.

    The one of per-device size stands for all sub-models of the fullest device together, as the ensemble's own size per
    device does. Where one model is the nearest to that and to the total, it stands there once. For `devices` see
    `num_devices`.
    """
    copies = (
        num_devices(plan, devices) if len(plan.sub_models) == 1 else 1
    )  # one model on every device: so many times its size
    total = copies * sum(s.parameters for s in plan.sub_models) + plan.fusion_parameters
    sizes = {k: shape.keep(k, num_labels=labels).parameters for k in range(1, shape.widths.heads + 1)}
    wanted = {REPLICAS: on_fullest_device(plan, "parameters"), LARGE: total}
    found = {name: min(sizes, key=lambda k: abs(np.log(sizes[k] / size))) for name, size in wanted.items()}
    return dict.fromkeys([REPLICAS], found[REPLICAS]) if len(set(found.values())) == 1 else found


def _plain_rows(trip: Trip, keeps: dict[str, int], macs: int) -> list[ComparedModel]:
    """One plain model of a device's size, the same trained as long as all devices together, and one of all their size.

    The large one makes as many passes as the small one, at whatever cost: it stands for what could be gained.
    """
    config, every, wanted = fair_budget(trip, macs), all_passes(trip), trip.recipe.evaluate.rivals
    longer = dataclasses.replace(config, epochs=max(every, config.epochs))
    rows = []
    if "replicas" in wanted:
        row = _plain(trip, REPLICAS, keeps[REPLICAS], config, also="" if LARGE in keeps else _OF_BOTH_SIZES)
        rows.append(everywhere(trip, row, "one plain model on every device"))
    if "all_passes" in wanted and longer != config:  # else the plain model has had as much already
        row = dataclasses.replace(_plain(trip, ALL_PASSES, keeps[REPLICAS], longer), config=None)
        what = "one plain model on every device, given the epochs of all devices together,"
        rows.append(everywhere(trip, row, what))
    if "large" in wanted and LARGE in keeps:
        rows.append(_plain(trip, LARGE, keeps[LARGE], config))
    return rows


_OF_BOTH_SIZES = "the nearest to the total size too; "


def _plain(trip: Trip, name: str, keep: int, config: DistillConfig, also: str = "") -> ComparedModel:
    """The row of one plain model, as a model on a single machine."""
    heads, labels = trip.uncut_shape.widths.heads, len(trip.data.label_names)
    model, macs = plain_model(trip, keep, config), trip.uncut_shape.keep(keep, num_labels=labels).macs
    folders = [plain_folder(trip, keep, config)]
    is_as_long = as_long_as_all(trip, *epochs_done(folders, config))
    as_long = "as long as all devices together, " if is_as_long else ""
    note = f"{keep} of {heads} heads kept; {also}{as_long}{training_note(folders, config)}"
    effort = rival_effort(trip, folders, config)
    return dataclasses.replace(_row(trip, name, model, macs, note), effort=effort)


def _most_absent(trip: Trip) -> int:
    """How many absences are compared: 0, 1 and 2 devices absent, as far as somebody answers."""
    return min(MOST_ABSENT, num_devices(trip.plan, trip.recipe.evaluate.devices) - 1)


def everywhere(trip: Trip, row: ComparedModel, what: str) -> ComparedModel:
    """The row of a model that every device carries, so that an absence changes nothing."""
    found = row.evaluation
    absent = on_every_device(found.predictions, found.labels, _most_absent(trip))
    return dataclasses.replace(row, absent=absent, what=what)


def _copies_rows(trip: Trip, keep: int, macs: int) -> list[ComparedModel]:
    """A plain model of another seed on each device in use, votes averaged: equal passes in all, or per device."""
    count, config = num_devices(trip.plan, trip.recipe.evaluate.devices), fair_budget(trip, macs)
    shared = dataclasses.replace(config, epochs=max(1, round(all_passes(trip) / count)))
    rows = []
    for name, rival, own in ((COPIES, "copies", shared), (DEVICE_COPIES, "device_copies", config)):
        is_twin = name == DEVICE_COPIES and own == shared and "copies" in trip.recipe.evaluate.rivals
        if rival in trip.recipe.evaluate.rivals and count > 1 and not is_twin:
            rows.append(_copies(trip, name, [keep] * count, own))
    return rows


def _copies(trip: Trip, name: str, keeps: list[int], config: DistillConfig) -> ComparedModel:
    """One row of copies, one for each entry of `keeps`."""
    labels, votes, folders, parameters = trip.data.test.labels, [], [], []
    for index, keep in enumerate(keeps):
        own = dataclasses.replace(config, seed=config.seed + SEED_STRIDE * index)
        model = plain_model(trip, keep, own)
        predict = torch_predict(model.eval())
        batches = iterate_batches(trip.data.test, trip.recipe.evaluate.batch_size)
        logits = [predict({n: np.asarray(v) for n, v in batch["inputs"].items()}) for batch in batches]
        votes.append(torch.from_numpy(np.concatenate(logits)).log_softmax(dim=-1).numpy())
        folders.append(plain_folder(trip, keep, own))
        parameters.append(sum(p.numel() for p in model.parameters()))

    def without(absent: Any) -> np.ndarray:
        present = [vote for index, vote in enumerate(votes) if index not in absent]
        return np.asarray(np.mean(present, axis=0).argmax(axis=1))

    limit, last = trip.recipe.evaluate.max_subsets, _most_absent(trip)
    macs = [trip.uncut_shape.keep(keep, num_labels=len(trip.data.label_names)).macs for keep in keeps]
    what = f"{len(keeps)} plain models of other seeds, votes averaged"
    return ComparedModel(
        name,
        "baseline",
        measured_logits(trip, np.mean(votes, axis=0)),
        sum(parameters),
        max(parameters),
        sum(macs),
        max(macs),
        f"{what}; each {training_note(folders, config)}",
        absent=absences(without, labels, len(keeps), most_absent=last, max_subsets=limit),
        effort=rival_effort(trip, folders, config),
        what=what if name == COPIES else f"{what}, each given the epochs of the plain model",
    )


def training_note(folders: list[Path], config: DistillConfig) -> str:
    """How many epochs models trained, by the logs in their folders."""
    done = sorted(epochs_done(folders, config))
    span = f"{done[0]}" if done[0] == done[-1] else f"{done[0]} to {done[-1]}"
    ended = f" (of at most {config.epochs}, ended by `patience`)" if done[0] < config.epochs else ""
    return f"{span} epochs{ended} over all classes from the same stored teacher outputs"


def _row(trip: Trip, name: str, model: torch.nn.Module, macs: int, note: str) -> ComparedModel:
    parameters = sum(p.numel() for p in model.parameters())
    evaluation = measured(trip, torch_predict(model.eval()))
    config = own_values(model.config) if hasattr(model, "config") else None
    alone = on_every_device(evaluation.predictions, evaluation.labels, 0)
    return ComparedModel(name, "baseline", evaluation, parameters, parameters, macs, macs, note, config, absent=alone)


def _folder(trip: Trip, name: str, *facts: object) -> Path:
    """Beside the teacher, named by everything that the model depends on besides the teacher."""
    prune = dataclasses.asdict(trip.recipe.prune)
    words = () if trip.words is None else (trip.words,)
    # Benchmarks train on fewer items.
    facts = (*(prune[key] for key in _CUTTING), *words, len(trip.data.train), *facts)
    content = json.dumps([name, *map(str, facts)])
    return trip.folders["teacher"] / "compared" / f"{name}_{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _said(config: DistillConfig) -> str:
    """The config as text, without what was added since and is off: models of an earlier version are still found."""
    return str(config).replace(", feature_weight=0.0", "")


def plain_folder(trip: Trip, keep: int, config: DistillConfig) -> Path:
    """Where `plain_model` keeps its model and its log."""
    another = _further_seed(trip, config)
    return _folder(trip, "plain", keep, _said(of_all_classes(config)), *([another] if another else []))


def _further_seed(trip: Trip, config: DistillConfig) -> int:
    """How far the seed of a copy is from the recipe's: its pruning samples are drawn so far from the recipe's too."""
    return config.seed - trip.recipe.distill.seed


def plain_model(trip: Trip, keep: int, config: DistillConfig) -> torch.nn.Module:
    """One model for all classes with so many heads, cut and distilled like a sub-model; made once."""
    folder, config = plain_folder(trip, keep, config), of_all_classes(config)
    if not (folder / "model").is_dir():
        torch.manual_seed(config.seed)
        seed = trip.recipe.prune.seed + _further_seed(trip, config)
        model, _ = prune_for(trip, list(range(trip.teacher.config.num_labels)), keep, seed=seed)
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
    # It has neither attention nor a feature to match.
    objective = "kd" if config.objective == "dekd" else config.objective
    config = dataclasses.replace(config, objective=objective, feature_weight=0.0)
    folder = _folder(trip, "small_cnn", target_parameters, _said(config))
    if not (folder / "model").is_dir():
        distill_into(trip, [model], [None], config, folder=folder, description="small CNN")
        with whole_folder(folder / "model") as partial:
            save_weights(model, str(partial / "model.safetensors"))
    drop_checkpoints(folder)
    load_weights(model, folder / "model" / "model.safetensors")
    row = _row(trip, SMALL_CNN, model, macs, training_note([folder], config))
    effort = rival_effort(trip, [folder], config)
    row = dataclasses.replace(row, effort=effort, is_exportable=False)
    return everywhere(trip, row, f"a {SMALL_CNN} on every device")


def _tfidf_rows(trip: Trip, per_device: int) -> list[ComparedModel]:
    """At the size of one device and without a limit; one row where the texts give no more than one device holds."""
    free, what = _tfidf(trip, None), f"{TFIDF} on every device"
    if free.parameters > per_device:
        return [everywhere(trip, _tfidf(trip, per_device), what), free]
    note = f"{free.note}; every term of the texts fits one device"
    return [everywhere(trip, dataclasses.replace(free, name=TFIDF_DEVICE_SIZE, note=note), what)]


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
    evaluation, size = measured_logits(trip, logits), model.num_parameters
    macs = round(model.macs_per_item(texts["test"]))
    name = TFIDF_DEVICE_SIZE if max_parameters else TFIDF
    note = model.describe() + "; trained on the labels, its vocabulary is not counted"
    alone = on_every_device(evaluation.predictions, evaluation.labels, 0)
    return ComparedModel(name, "baseline", evaluation, size, size, macs, macs, note, absent=alone, is_exportable=False)
