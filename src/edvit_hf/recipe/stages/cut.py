# SPDX-License-Identifier: Apache-2.0
"""The prune and distill stages, and every pruning round: sub-models are scored, cut and retrained."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edvit_hf.architectures.axes import AttentionKind, Widths
from edvit_hf.data.split import Split
from edvit_hf.modeling_edvit import forward_sub_model
from edvit_hf.pruning import compensate, make_plan, unit_scores
from edvit_hf.pruning import prune as cut_model
from edvit_hf.pruning.cut import label_names
from edvit_hf.pruning.vocabulary import cut_vocabulary
from edvit_hf.recipe.stages.plan import round_widths, sub_model_config
from edvit_hf.recipe.trip import Trip, drop_checkpoints, save_model, stock_model
from edvit_hf.recipe.validating import outputs as outputs_of
from edvit_hf.recipe.validating import validate_votes
from edvit_hf.storage import write_json
from edvit_hf.tasks import num_labels_of
from edvit_hf.training import (
    DistillConfig,
    DistillData,
    EpochData,
    Focus,
    Lockstep,
    LockstepData,
    MatchedModel,
    TeacherOutputs,
    distill_objective,
    lockstep_objective,
    matching_objective,
    my_share,
    train,
)
from edvit_hf.training.processes import is_main_process, main_process_first

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def prune(trip: Trip) -> None:
    """Teacher (or the sub-models of the last pruning round) + plan + samples -> pruning plans and stock sub-models."""
    prune_round(trip, trip.recipe.prune.rounds)


def prune_round(trip: Trip, number: int) -> None:
    """One pruning round, counted from 1: the first cuts the teacher, each later one what the last retraining left.

    The last round writes the folder of the prune stage, the others folders of their own. What the recipe builds from
    scratch is not cut.
    """
    rounds = trip.recipe.prune.rounds
    folder = trip.folders["prune" if number == rounds else f"prune_round{number}"]
    for index, (group, focus) in enumerate(zip(trip.class_groups, trip.focus_groups, strict=True)):
        target = folder / f"sub_models/{index:02d}"
        if target.is_dir() or _build(trip, index, target):
            continue
        widths = round_widths(trip.teacher_shape.widths, _final_widths(trip, index), rounds)[number - 1]
        seed = trip.sub_model_seed(trip.recipe.prune.seed, index)
        if number == 1:
            model, pruning_plan = prune_for(trip, group, widths, focus=focus, seed=seed)
        else:
            last = trip.load(trip.folders[f"retrain_round{number - 1}"] / f"sub_models/{index:02d}")
            model, pruning_plan = _cut(trip, last, group, focus, widths, trip.recipe.prune.attention, seed)
        logger.info("sub-model %d, classes %s\n%s", index, focus, pruning_plan)
        write_json(folder / f"pruning_plan_{index:02d}.json", pruning_plan.to_dict())
        save_model(model, target, trip.data.processor)


def _build(trip: Trip, index: int, target: Path) -> bool:
    """Write a sub-model that the recipe builds from scratch, with a note in place of a pruning plan; else False."""
    config, seed = sub_model_config(trip.recipe, trip.uncut_shape, index), trip.recipe.prune.seed + index
    if config is None:
        return False
    torch.manual_seed(seed)
    names = label_names(trip.teacher.config, trip.class_groups[index])
    model = stock_model(trip.recipe, config, names, f"prune.from_scratch[{index}]")
    planned = trip.plan.sub_models[index].parameters
    note = {"from_scratch": config, "seed": seed, "labels": names, "parameters": planned}
    logger.info("sub-model %d, classes %s\n%s from scratch", index, trip.class_groups[index], config["model_type"])
    write_json(target.parents[1] / f"from_scratch_{index:02d}.json", note)
    save_model(model, target, trip.data.processor)
    return True


def distill(trip: Trip) -> None:
    """Sub-models + teacher + class-group views -> retrained sub-models."""
    retrain_all(trip, trip.folders["distill"], trip.folders["prune"], trip.recipe.distill, "distill")


def retrain_round(trip: Trip, number: int) -> None:
    """The short retraining after pruning round `number`."""
    folder = trip.folders[f"retrain_round{number}"]
    config = dataclasses.replace(trip.recipe.distill, epochs=trip.recipe.prune.round_epochs, patience=None)
    retrain_all(trip, folder, trip.folders[f"prune_round{number}"], config, f"retrain {number}")


def retrain_all(trip: Trip, folder: Path, source: Path, config: DistillConfig, description: str) -> None:
    """Retrain every sub-model in `source` by the config's objective; results in `folder`/sub_models.

    Sub-models that learn from stored outputs alone are independent runs, spread over the processes of a launch; those
    that need the teacher's attention share its forward passes and train in lockstep, in one run.
    """
    with main_process_first():
        trip.teacher_outputs  # noqa: B018 (computed by one process, read by the others)
    targets = [folder / f"sub_models/{index:02d}" for index in range(len(trip.class_groups))]
    if config.objective == "dekd":
        sets = [list(range(len(targets)))] if is_main_process() else []
    else:
        sets = [[index] for index in my_share(len(targets))]
    for indices in sets:
        if all(targets[index].is_dir() for index in indices):
            continue
        models = [trip.load(source / f"sub_models/{index:02d}") for index in indices]
        groups: list[list[int] | None] = [trip.class_groups[index] for index in indices]
        foci = [_focus(trip, config, index) for index in indices]
        own = dataclasses.replace(config, seed=trip.sub_model_seed(config.seed, indices[0]))
        name = f"sub-model {indices[0]}" if len(indices) == 1 else f"{len(indices)} sub-models"
        training = folder / f"training/{indices[0]:02d}"
        distill_into(trip, models, groups, own, foci=foci, folder=training, description=f"{description} {name}")
        for index, model in zip(indices, models, strict=True):
            save_model(model, targets[index], trip.data.processor)
    for indices in sets:
        drop_checkpoints(folder / f"training/{indices[0]:02d}")


def _focus(trip: Trip, config: DistillConfig, index: int) -> Focus | None:
    """Whose items count more where a sub-model votes over all classes; None where its group says it."""
    return Focus(trip.focus_groups[index], config.focus_weight) if config.votes == "all" else None


def prune_for(
    trip: Trip, class_group: list[int], keep: Widths | int, *, focus: list[int] | None = None, seed: int | None = None
) -> "tuple[PreTrainedModel, Any]":
    """Score the teacher's units for these classes, keep the best, and cut; also returns the pruning plan.

    Args:
        trip (`Trip`): With a trained teacher.
        class_group: Classes of the sub-model; all of them make a plain model.
        keep: Its sizes, shrunk as `prune.attention` says; or so many whole heads and the same share of the rest.
        focus: Classes that its units are scored for. None: its classes.
        seed: Of the samples. None: `prune.seed`.
    """
    config, labels = trip.recipe.prune, trip.teacher.config.num_labels
    attention: AttentionKind = config.attention if isinstance(keep, Widths) else "whole"
    if not isinstance(keep, Widths):
        keep = trip.teacher_shape.keep(keep, num_labels=num_labels_of(class_group, labels)).widths
    seed = config.seed if seed is None else seed
    return _cut(trip, trip.teacher, class_group, focus or class_group, keep, attention, seed)


def _final_widths(trip: Trip, index: int) -> Widths:
    widths: Widths | None = trip.plan.sub_models[index].widths
    assert widths is not None, "the plan of a recipe states every sub-model's sizes"
    return widths


def _cut(
    trip: Trip,
    model: "PreTrainedModel",
    class_group: list[int],
    focus: list[int],
    widths: Widths,
    attention: AttentionKind,
    seed: int,
) -> "tuple[PreTrainedModel, Any]":
    """Score a model on items of the focus, cut it, compensate if asked to, and cut the vocabulary if asked to.

    The teacher is cut for the labels of the class group; a sub-model is cut further for its own labels. Units are
    scored by what they do to those labels; where they are all classes and the focus is fewer, by what they do to the
    focus and "other".
    """
    config, is_teacher = trip.recipe.prune, model is trip.teacher
    inputs = (trip.teacher_data if is_teacher else trip.data).train.inputs
    labels = class_group if is_teacher else list(range(model.config.num_labels))
    scored = labels if focus == class_group else focus
    sample = inputs(trip.training_sample(focus, config.samples_per_class, seed))
    scores = unit_scores(model, sample, scored, method=config.importance, batch_size=config.batch_size, seed=seed)
    pruning_plan = make_plan(scores, model.config, widths, attention=attention)
    pruned = cut_model(model, pruning_plan, labels)
    if config.compensate:
        mixed = trip.mixed_training_sample(focus, config.compensation_samples, seed)
        compensate(pruned, model, pruning_plan, labels, inputs(mixed))
    if is_teacher and trip.data.kept_pieces is not None:
        cut_vocabulary(pruned, trip.data.kept_pieces.tolist())
    return pruned, pruning_plan


def distill_into(
    trip: Trip,
    models: "list[torch.nn.Module]",
    class_groups: list[list[int] | None],
    config: DistillConfig,
    *,
    folder: Path,
    description: str,
    foci: list[Focus | None] | None = None,
) -> None:
    """Retrain models in place, each on its class group or (None) on all classes; several of them in lockstep."""
    foci = [None] * len(models) if foci is None else foci
    split, outputs = trip.data.train, trip.teacher_outputs
    ratio, seed = config.negatives_per_positive, config.seed
    data: EpochData
    model: torch.nn.Module
    options: dict[str, Any]
    if config.objective == "dekd":
        data = LockstepData(split, outputs.logits, class_groups, negatives_per_positive=ratio, seed=seed)
        model = lockstep = Lockstep(models)
        objective = lockstep_objective(lockstep, class_groups, config, trip.teacher, foci)
    else:
        ((model,), (group,), (focus,)) = (models, class_groups, foci)
        options = {"negatives_per_positive": ratio, "seed": seed}
        weight = 0.0 if config.objective == "none" else config.distillation_weight
        smoothing = config.label_smoothing
        if config.objective == "kd" and config.feature_weight:
            data = DistillData(split, outputs.logits, group, teacher_features=outputs.features, **options)
            model = _matched(model, split, outputs, seed)
            weights = (weight, config.feature_weight, smoothing)
            objective = matching_objective(group, config.temperature, *weights, focus=focus)
        else:
            data = DistillData(split, outputs.logits, group, **options)
            objective = distill_objective(group, config.temperature, weight, label_smoothing=smoothing, focus=focus)
    checkpoints = folder / "checkpoints"
    validate = validate_votes(trip.data.validation, class_groups, trip.teacher.config.num_labels)
    options = {"checkpoint_dir": checkpoints, "description": description, "distributed": False}
    log = train(model, data, objective, config, validate=validate, **options)
    for each in models:
        each.eval()
    write_json(folder / "training_log.json", log.to_dict())


def _matched(model: Any, split: Split, outputs: TeacherOutputs, seed: int) -> MatchedModel:
    """The model with a mapping of its feature to the teacher's, fitted on the first stored view."""
    matched, width = MatchedModel(model.eval(), outputs.features.shape[-1], seed=seed), model.config.hidden_size
    features = np.empty((len(split), width), np.float32)
    for indices, values in outputs_of(lambda **inputs: forward_sub_model(model, inputs)[:1], split, view=0):
        features[indices] = values
    matched.mapping.fit(features, outputs.features[0])
    return matched
