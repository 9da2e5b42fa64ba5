# SPDX-License-Identifier: Apache-2.0
"""Scoring, cutting and retraining of sub-models, as the prune and distill stages and every pruning round need them."""

import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edvit_hf.architectures import AttentionKind, Widths
from edvit_hf.pruning import compensate, make_plan, prune, unit_scores
from edvit_hf.pruning.distribution import num_outcomes
from edvit_hf.recipe.rounds import round_widths
from edvit_hf.recipe.trip import Trip, drop_checkpoints, load_array, load_model, save_array, save_model
from edvit_hf.storage import PARTIAL_SUFFIX, write_json
from edvit_hf.training import DistillConfig, DistillData, distill_objective, teacher_logits, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def prune_round(trip: Trip, number: int) -> None:
    """One pruning round, counted from 1: the first cuts the teacher, each later one what the last retraining left.

    The last round writes the folder of the prune stage, the others folders of their own.
    """
    rounds = trip.recipe.prune.rounds
    folder = trip.folders["prune" if number == rounds else f"prune_round{number}"]
    for index, group in enumerate(trip.class_groups):
        target = folder / f"sub_models/{index:02d}"
        if target.is_dir():
            continue
        widths = round_widths(trip.teacher_shape.widths, _final_widths(trip, index), rounds)[number - 1]
        if number == 1:
            model, pruning_plan = prune_for(trip, group, widths)
        else:
            last = load_model(trip.folders[f"retrain_round{number - 1}"] / f"sub_models/{index:02d}")
            model, pruning_plan = _cut_again(trip, last, group, widths)
        logger.info("sub-model %d, classes %s\n%s", index, group, pruning_plan)
        write_json(folder / f"pruning_plan_{index:02d}.json", pruning_plan.to_dict())
        save_model(model, target, trip.data.preprocessor)


def retrain_round(trip: Trip, number: int) -> None:
    """The short retraining after pruning round `number`."""
    folder = trip.folders[f"retrain_round{number}"]
    config = dataclasses.replace(trip.recipe.distill, epochs=trip.recipe.prune.round_epochs)
    retrain_all(trip, folder, trip.folders[f"prune_round{number}"], config, f"retrain {number}")


def retrain_all(trip: Trip, folder: Path, source: Path, config: DistillConfig, description: str) -> None:
    """Retrain every sub-model in `source` from the teacher's stored logits; results in `folder`/sub_models."""
    stored = stored_logits(trip, folder)
    for index, group in enumerate(trip.class_groups):
        if not (folder / f"sub_models/{index:02d}").is_dir():
            model = load_model(source / f"sub_models/{index:02d}")
            distill_into(
                trip, model, stored, config, class_group=group, folder=folder / f"training/{index:02d}",
                description=f"{description} sub-model {index}",
            )  # fmt: skip
            save_model(model, folder / f"sub_models/{index:02d}", trip.data.preprocessor)
    for index in range(len(trip.class_groups)):
        drop_checkpoints(folder / f"training/{index:02d}")


def prune_for(trip: Trip, class_group: list[int], keep: Widths | int) -> "tuple[PreTrainedModel, Any]":
    """Score the teacher's units for these classes, keep the best, and cut; also returns the pruning plan.

    Args:
        trip (`Trip`): With a trained teacher.
        class_group: Classes of the sub-model; all of them make a plain model.
        keep: Its sizes, shrunk as `prune.attention` says; or so many whole heads and the same share of the rest.
    """
    config, labels = trip.recipe.prune, trip.teacher.config.num_labels
    attention: AttentionKind = config.attention if isinstance(keep, Widths) else "whole"
    if not isinstance(keep, Widths):
        keep = trip.teacher_shape.keep(keep, num_labels=num_outcomes(class_group, labels)).widths
    return _cut(trip, trip.teacher, class_group, class_group, keep, attention)


def _final_widths(trip: Trip, index: int) -> Widths:
    widths: Widths | None = trip.plan.sub_models[index].widths
    assert widths is not None, "the plan of a recipe states every sub-model's sizes"
    return widths


def _cut_again(
    trip: Trip, model: "PreTrainedModel", class_group: list[int], widths: Widths
) -> "tuple[PreTrainedModel, Any]":
    """Cut a sub-model further: it is scored on its own labels, by items of the classes it answers for."""
    own = list(range(model.config.num_labels))
    return _cut(trip, model, class_group, own, widths, trip.recipe.prune.attention)


def _cut(
    trip: Trip, model: "PreTrainedModel", sampled: list[int], labels: list[int], widths: Widths,
    attention: AttentionKind,
) -> "tuple[PreTrainedModel, Any]":  # fmt: skip
    """Score `model` for its `labels` on items of the `sampled` classes, cut it, and compensate if asked to."""
    config, train_split = trip.recipe.prune, trip.data.train
    sample = trip.training_sample(sampled, config.samples_per_class, config.seed)
    scores = unit_scores(
        model, train_split.pixel_values(sample), labels, method=config.importance, batch_size=config.batch_size,
        seed=config.seed,
    )  # fmt: skip
    pruning_plan = make_plan(scores, model.config, widths, attention=attention)
    pruned = prune(model, pruning_plan, labels)
    if config.compensate:
        mixed = trip.mixed_training_sample(sampled, config.compensation_samples, config.seed)
        compensate(pruned, model, pruning_plan, labels, train_split.pixel_values(mixed))
    return pruned, pruning_plan


def stored_logits(trip: Trip, folder: Path) -> np.ndarray:
    """Teacher logits on the replayed training views, (V, N, C) float32, kept in `folder`.

    With pruning rounds the first retraining has computed them already: the file is shared.
    """
    path = folder / "teacher_logits.safetensors"
    earlier = trip.folders.get("retrain_round1", folder) / path.name
    if not path.is_file() and earlier.is_file():
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        partial.unlink(missing_ok=True)
        try:
            os.link(earlier, partial)
        except OSError:  # a file system without hard links
            shutil.copy2(earlier, partial)
        partial.replace(path)
    elif not path.is_file():
        views = trip.recipe.distill.views
        save_array(path, teacher_logits(trip.teacher, trip.data.train, views=views, batch_size=512))
    return load_array(path)


def distill_into(
    trip: Trip, model: torch.nn.Module, stored: np.ndarray, config: DistillConfig, *,
    class_group: list[int] | None, folder: Path, description: str,
) -> None:  # fmt: skip
    """Retrain one model from the teacher's stored logits, on a class group or (None) on all classes."""
    data = DistillData(
        trip.data.train, stored, class_group=class_group,
        negatives_per_positive=config.negatives_per_positive, seed=config.seed,
    )  # fmt: skip
    objective = distill_objective(
        class_group, config.temperature, config.distillation_weight, label_smoothing=config.label_smoothing
    )
    log = train(model, data, objective, config, checkpoint_dir=folder / "checkpoints", description=description)
    model.eval()
    write_json(folder / "training_log.json", log.to_dict())
