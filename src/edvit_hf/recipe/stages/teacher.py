# SPDX-License-Identifier: Apache-2.0
"""The teacher stage: a base model, checked against the recipe before anything is trained, becomes the teacher."""

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import torch

from edvit_hf.architectures.costs import BYTES_PER_PARAMETER, ModelShape
from edvit_hf.architectures.tables import architecture_of_config, check_keys
from edvit_hf.data.overlap import find_overlaps, refuse_overlaps
from edvit_hf.errors import RecipeError
from edvit_hf.pruning import architecture_of
from edvit_hf.pruning.cut import label_names
from edvit_hf.recipe.stages.plan import plan_groups, sub_model_config
from edvit_hf.recipe.stages.split import groups_before_training
from edvit_hf.recipe.trip import (
    OVERLAP_FILE,
    Trip,
    check_size,
    check_weights,
    drop_checkpoints,
    save_model,
    stock_model,
    validation_accuracy,
)
from edvit_hf.recipe.validating import validate_votes
from edvit_hf.storage import write_json
from edvit_hf.tasks import Task
from edvit_hf.training import ClassifyData, classify_objective, train
from edvit_hf.training.processes import is_main_process, main_process_first

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def train_teacher(trip: Trip) -> None:
    """Dataset + base checkpoint (Hub id, folder or from-scratch config) -> fine-tuned stock model."""
    folder, config = trip.folders["teacher"], trip.recipe.teacher
    with main_process_first():
        data = trip.teacher_data
        _check_overlap(trip)
        trip.keep_processor()
    if (folder / "model").is_dir():
        drop_checkpoints(folder)
        return
    torch.manual_seed(config.seed)
    model = base_model(trip)
    refuse_impossible_plan(trip, model)
    if config.epochs:
        items = ClassifyData(
            data.train,
            mixup_alpha=config.mixup_alpha,
            cutmix_alpha=config.cutmix_alpha,
            num_labels=len(data.label_names),
            seed=config.seed,
        )
        objective, checkpoints = classify_objective(config.label_smoothing), folder / "checkpoints"
        validate = validate_votes(data.validation, [None], len(data.label_names))
        log = train(
            model, items, objective, config, checkpoint_dir=checkpoints, description="teacher", validate=validate
        )
        if is_main_process():
            write_json(folder / "training_log.json", log.to_dict())
    if not is_main_process():
        return
    accuracy = validation_accuracy(model, trip, data)
    write_json(folder / "validation.json", {"accuracy": accuracy, "num_items": len(data.validation)})
    logger.info("teacher: %.2f %% of %d validation items", 100 * accuracy, len(data.validation))
    save_model(model, folder / "model", data.processor)
    drop_checkpoints(folder)


def _check_overlap(trip: Trip) -> None:
    """Write down what training, validation and test rows share, once; refuse it unless the recipe says otherwise.

    Raises:
        DataError: Training rows are test or validation rows, too.
    """
    path, choice = trip.folders["teacher"] / OVERLAP_FILE, trip.recipe.dataset.on_overlap
    if path.is_file():
        return
    found = find_overlaps(trip.teacher_data.roles, trip.recipe.task)
    if choice == "raise":
        refuse_overlaps(found)
    for overlap in found:
        if overlap.num_shared:
            logger.warning("data: %s", overlap)
    counts = {f"{o.first}_{o.second}": {"num_shared": o.num_shared, "num_rows": o.num_rows} for o in found}
    write_json(path, {"on_overlap": choice, "shared": counts, "dropped": trip.teacher_data.dropped})


def base_model(trip: Trip) -> "PreTrainedModel":
    """The model that the teacher stage starts from: a stock config with random weights, or a checkpoint.

    Raises:
        RecipeError: It cannot be built or loaded, or is not what the recipe says it is.
        CheckpointError: Its weights are damaged, incomplete or not finite.
    """
    config, names = trip.recipe.teacher, trip.teacher_data.label_names
    if config.from_scratch is not None:
        check_keys(config.from_scratch, "teacher.from_scratch")
        values = {**trip.recipe.input_sizes, **config.from_scratch}
        return stock_model(trip.recipe, values, names, "teacher.from_scratch")
    model = load_teacher(config.checkpoint, config.revision, names, task=trip.recipe.task, is_final=config.epochs == 0)
    _check_inputs(trip.recipe.input_sizes, trip.teacher_data.input_sizes, model.config)
    if config.config is not None:
        check_agreement(config.config, model.config)
    return model


def _check_inputs(written: dict[str, Any], made: dict[str, Any], found: Any) -> None:
    """Refuse a checkpoint that reads other inputs than the dataset section says or its own processor makes.

    Text may be shorter than the checkpoint has positions for, and a tokenizer may know fewer words than it has rows.

    Raises:
        RecipeError: Naming the first difference.
    """
    for sizes, source in ((written, "the `dataset` section"), (made, "the processor")):
        for name, value in sizes.items():
            stored = getattr(found, name, None)
            may_be_less = name == "max_position_embeddings" or (name == "vocab_size" and sizes is made)
            fits = _sides(stored) == _sides(value) if name == "image_size" else stored == value
            if not (fits or (may_be_less and isinstance(stored, int) and value <= stored)):
                raise RecipeError(
                    f"{source} makes inputs of {name} = {value!r}, the checkpoint reads {stored!r}. It would see other "
                    "inputs than it was trained on. Correct the dataset section, or name another checkpoint."
                )


def _sides(size: Any) -> list[Any]:
    return list(size) if isinstance(size, list | tuple) else [size, size]


def check_agreement(promised: dict[str, Any], found: Any) -> None:
    """Compare the recipe's `teacher.config` with the stock config of the checkpoint that was loaded.

    Every value written in the recipe must be the checkpoint's (labels aside), and so must the sizes that follow where
    the recipe leaves a value to the stock default: planning took that default.

    Raises:
        RecipeError: Naming the first difference.
    """
    for key, value in promised.items():
        if key not in ("num_labels", "id2label", "label2id"):
            _refuse_difference(key, value, getattr(found, key, None))
    architecture = architecture_of_config(promised)
    planned, loaded = (architecture.widths(c, num_labels=1) for c in (promised, found))
    for field in dataclasses.fields(planned):
        _refuse_difference(field.name, getattr(planned, field.name), getattr(loaded, field.name))


def _refuse_difference(name: str, promised: Any, found: Any) -> None:
    if isinstance(found, tuple | list):
        promised, found = _listed(promised), _listed(found)
    if promised != found:
        raise RecipeError(
            f"`teacher.config` says {name} = {promised!r}, the checkpoint has {found!r}. What was planned from the "
            "recipe would not hold. Correct `teacher.config`, or name the checkpoint that was meant."
        )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def load_teacher(
    checkpoint: str | None, revision: str | None, names: list[str], *, task: Task, is_final: bool
) -> "PreTrainedModel":
    """A teacher from a folder or a Hub id (at a revision), its head fitted to the dataset's label names, in order.

    With `is_final` the model is used as it is, so its head must already be that of the dataset.

    Raises:
        RecipeError: It cannot be loaded, or it is to be used as it is and its head or labels do not fit.
        CheckpointError: Its weights are damaged, incomplete or not finite.
    """
    from edvit_hf.auto import load_stock

    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    own = {} if is_final else {"ignore_mismatched_sizes": True, **labels}
    try:
        model, report = load_stock(task, str(checkpoint), revision=revision, **own)
    except Exception as error:
        raise RecipeError(
            f"`teacher.checkpoint` {checkpoint!r} cannot be loaded: {error}. "
            "Give a folder written by save_pretrained, or a Hub id that this machine can reach."
        ) from error
    if is_final and model.config.problem_type not in (None, "single_label_classification"):
        raise RecipeError(
            f"`teacher.checkpoint` {checkpoint!r} is a model for {model.config.problem_type}, and an ensemble answers "
            "with one class. With `epochs: 0` it is used as it is. Fine-tune it (epochs above 0), or name a classifier."
        )
    model.config.problem_type = None  # what is fine-tuned here learns one class of many
    found = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if is_final and found != names:
        raise RecipeError(
            f"`teacher.checkpoint` {checkpoint!r} answers with {found[:5]}..., the dataset has {names[:5]}... With "
            "`epochs: 0` the model is used as it is, so its classes would be mixed up. Fine-tune it (epochs above 0), "
            "or, if they are the same classes in the same order under other names, correct `id2label` and `label2id` "
            "in its config.json."
        )
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    heads = ("classifier", "pre_classifier", "bert.pooler")  # what a checkpoint for another task lacks
    missing = [key for key in unfit if is_final or not key.startswith(heads)]
    check_weights(model, missing, str(checkpoint))
    return model


def refuse_impossible_plan(trip: Trip, model: "PreTrainedModel") -> None:
    """Check coverage, split and plan before the teacher is trained: what cannot be cut must not cost hours first.

    Raises:
        PruningError: The axis table of its architecture does not describe the model (or one that is built from
            scratch), or the keep cannot be cut.
        RecipeError: The split, the pruning rounds or a sub-model from scratch is impossible, or this machine's memory
            cannot hold what is to be made.
        BudgetError: Nothing fits the fleet.
        DataError: A class group has no training items, or the vocabulary cannot be cut as asked.
    """
    architecture_of(model)
    config = model.config
    groups, focus, note = groups_before_training(trip.recipe, config.num_labels)
    if note is None:  # else the groups only stand in for others
        trip.refuse_empty_groups(focus)
    shape = ModelShape.from_config(config.to_dict(), num_labels=config.num_labels)
    plan = plan_groups(trip.recipe, shape, groups, words=trip.words)
    check_size(plan.fusion_parameters * BYTES_PER_PARAMETER, "the fusion head (`fuse.hidden_size`)")
    views = 1 if trip.data.train.augmentation.is_off else trip.recipe.distill.views
    outputs = views * len(trip.data.train) * (shape.widths.labels + shape.widths.residual) * BYTES_PER_PARAMETER
    check_size(outputs, f"the teacher's stored outputs on {views} views (`distill.views`)")
    for index, group in enumerate(groups):
        values = sub_model_config(trip.recipe, shape.reading(trip.words), index)
        if values is not None:
            with torch.device("meta"):  # its parameters, without their memory
                built = stock_model(trip.recipe, values, label_names(config, group), f"prune.from_scratch[{index}]")
            architecture_of(built)
