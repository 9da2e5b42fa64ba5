# SPDX-License-Identifier: Apache-2.0
"""One function per stage: it reads what earlier stages left, calls the library, and writes its own folder.

Each function may be interrupted anywhere: what it has finished is found again, what is half-written is ignored.
"""

import contextlib
import logging

import torch

from edvit_hf import splitting
from edvit_hf.errors import MissingExtraError
from edvit_hf.planning.figure import save_plan_figure
from edvit_hf.recipe.base_model import base_model, refuse_impossible_plan
from edvit_hf.recipe.confusions import teacher_confusions
from edvit_hf.recipe.cutting import prune_round, retrain_all
from edvit_hf.recipe.fusing import fuse_sub_models
from edvit_hf.recipe.groups import capability
from edvit_hf.recipe.offline_plan import plan_groups
from edvit_hf.recipe.processes import is_main_process, main_process_first
from edvit_hf.recipe.trip import Trip, drop_checkpoints, save_array, save_model, validation_accuracy
from edvit_hf.storage import link_tree, whole_folder, write_json
from edvit_hf.training import ClassifyData, classify_objective, train

logger = logging.getLogger(__name__)


def teacher(trip: Trip) -> None:
    """Dataset + base checkpoint (Hub id, folder or from-scratch config) -> fine-tuned stock model."""
    folder, config = trip.folders["teacher"], trip.recipe.teacher
    with main_process_first():
        data = trip.data
        trip.keep_processor()
    if (folder / "model").is_dir():
        drop_checkpoints(folder)
        return
    torch.manual_seed(config.seed)
    model = base_model(trip)
    refuse_impossible_plan(trip, model)
    if config.epochs:
        items = ClassifyData(
            data.train, mixup_alpha=config.mixup_alpha, cutmix_alpha=config.cutmix_alpha,
            num_labels=len(data.label_names), seed=config.seed,
        )  # fmt: skip
        log = train(
            model, items, classify_objective(config.label_smoothing), config,
            checkpoint_dir=folder / "checkpoints", description="teacher",
        )  # fmt: skip
        if is_main_process():
            write_json(folder / "training_log.json", log.to_dict())
    if not is_main_process():
        return
    accuracy = validation_accuracy(model, trip)
    write_json(folder / "validation.json", {"accuracy": accuracy, "num_items": len(data.validation)})
    logger.info("teacher: %.2f %% of %d validation items", 100 * accuracy, len(data.validation))
    save_model(model, folder / "model", data.processor)
    drop_checkpoints(folder)


def split(trip: Trip) -> None:
    """Teacher (and, for groups by similarity, its confusions) -> class groups."""
    folder, config, found = trip.folders["split"], trip.recipe.split, {}
    num_classes, confusions = trip.teacher.config.num_labels, None
    if config.strategy == "similarity":
        confusions = teacher_confusions(trip, config.samples_per_class, config.seed)
        save_array(folder / "confusions.safetensors", confusions)
    groups = splitting.split_classes(num_classes, config, similarity=confusions, capability=capability(trip.recipe))
    trip.refuse_empty_groups(groups)
    if confusions is not None:
        found = {"similarity": config.similarity, "similarity_within": splitting.similarity_within(groups, confusions)}
    names = [[trip.teacher.config.id2label[c] for c in group] for group in groups]
    content = {"class_groups": groups, "class_names": names, "strategy": config.strategy, **found}
    write_json(folder / "class_groups.json", content)


def plan(trip: Trip) -> None:
    """Group sizes + teacher sizes + fleet -> keep, placement and predicted costs."""
    result = plan_groups(trip.recipe, trip.teacher_shape, trip.class_groups)
    logger.info("%s", result)
    result.save(trip.folders["plan"] / "plan.json")
    with contextlib.suppress(MissingExtraError):
        save_plan_figure(result, trip.folders["plan"] / "plan.png")


def prune(trip: Trip) -> None:
    """Teacher (or the sub-models of the last pruning round) + plan + samples -> pruning plans and stock sub-models."""
    prune_round(trip, trip.recipe.prune.rounds)


def distill(trip: Trip) -> None:
    """Sub-models + teacher + class-group views -> retrained sub-models."""
    retrain_all(trip, trip.folders["distill"], trip.folders["prune"], trip.recipe.distill, "distill")


def fuse(trip: Trip) -> None:
    """Sub-models -> features -> fusion head (and, with `joint`, all of it tuned together) -> ensemble checkpoint."""
    fuse_sub_models(trip)


def evaluate(trip: Trip) -> None:
    """Teacher, ensemble, ensemble with k absent, honest baselines -> `results.json`."""
    from edvit_hf.recipe.results import write_results

    write_results(trip)


def export(trip: Trip) -> None:
    """Ensemble -> ONNX variants + `manifest.json`: int8 accepted on validation, accuracy reported on test."""
    from edvit_hf.export import export_ensemble
    from edvit_hf.published.export import measured_on

    folder, config = trip.folders["export"], trip.recipe.export
    if (folder / "ensemble").is_dir():
        return
    measures = measured_on(trip.data, trip.class_groups, config, trip.recipe.evaluate.batch_size)
    with whole_folder(folder / "ensemble") as partial:
        link_tree(trip.folders["fuse"] / "ensemble", partial)
        export_ensemble(
            partial, config=config, inputs=measures.inputs, gate=measures.gate, report=measures.report,
            calibration=measures.calibration,
        )  # fmt: skip


def card(trip: Trip) -> None:
    """Results + manifest -> `README.md` and figures: a folder ready to push."""
    from edvit_hf.recipe.publish import write_publishable

    write_publishable(trip)
