# SPDX-License-Identifier: Apache-2.0
"""One function per stage: it reads what earlier stages left, calls the library, and writes its own folder.

Each function may be interrupted anywhere: what it has finished is found again, what is half-written is ignored.
"""

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edvit_hf import splitting
from edvit_hf.errors import MissingExtraError
from edvit_hf.evaluation import evaluate as measure
from edvit_hf.evaluation import torch_predict
from edvit_hf.plan_figure import save_plan_figure
from edvit_hf.recipe.base_model import base_model, refuse_impossible_plan
from edvit_hf.recipe.confusions import teacher_confusions
from edvit_hf.recipe.cutting import prune_round, retrain_all
from edvit_hf.recipe.groups import capability
from edvit_hf.recipe.offline_plan import plan_groups
from edvit_hf.recipe.trip import Trip, drop_checkpoints, load_array, save_array, save_model
from edvit_hf.storage import link_tree, whole_folder, write_json
from edvit_hf.training import ClassifyData, FuseData, classify_objective, fuse_objective, train

logger = logging.getLogger(__name__)


def teacher(trip: Trip) -> None:
    """Dataset + base checkpoint (Hub id, folder or from-scratch config) -> fine-tuned stock model."""
    folder, config, data = trip.folders["teacher"], trip.recipe.teacher, trip.data
    if (folder / "model").is_dir():
        drop_checkpoints(folder)
        return
    torch.manual_seed(config.seed)
    model = base_model(trip)
    refuse_impossible_plan(trip, model)
    if config.epochs:
        log = train(
            model, ClassifyData(data.train), classify_objective(config.label_smoothing), config,
            checkpoint_dir=folder / "checkpoints", description="teacher",
        )  # fmt: skip
        write_json(folder / "training_log.json", log.to_dict())
    accuracy = _accuracy(model, trip)
    write_json(folder / "validation.json", {"accuracy": accuracy, "num_items": len(data.validation)})
    logger.info("teacher: %.2f %% of %d validation items", 100 * accuracy, len(data.validation))
    save_model(model, folder / "model", data.preprocessor)
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
    """Frozen sub-models -> features -> fusion head -> ensemble checkpoint."""
    from edvit_hf.auto import EDViTForImageClassification

    folder, config, data = trip.folders["fuse"], trip.recipe.fuse, trip.data
    if (folder / "ensemble").is_dir():
        drop_checkpoints(folder)
        return
    torch.manual_seed(config.seed)
    config_of_teacher = trip.teacher.config
    ensemble = EDViTForImageClassification.from_sub_models(
        trip.sub_models("distill"), trip.class_groups, id2label=config_of_teacher.id2label,
        fusion_hidden_size=config.hidden_size, fusion_dropout=config.dropout,
        sub_model_dropout=config.sub_model_dropout, parent=_parent(trip),
    ).eval()  # fmt: skip
    features = _training_features(trip, ensemble, config.views)
    ensemble.fusion.set_feature_statistics(*_statistics(features[0]))
    objective = fuse_objective(
        sub_model_dropout=config.sub_model_dropout, weight=config.distillation_weight,
        temperature=config.temperature, label_smoothing=config.label_smoothing,
    )  # fmt: skip
    log = train(
        ensemble.fusion, FuseData(features, data.train.labels, trip.teacher_logits[: config.views]), objective, config,
        checkpoint_dir=folder / "checkpoints", description="fuse",
    )  # fmt: skip
    write_json(folder / "training_log.json", log.to_dict())
    ensemble.eval()
    accuracy = _accuracy(ensemble, trip)
    write_json(folder / "validation.json", {"accuracy": accuracy, "num_items": len(data.validation)})
    logger.info("fuse: %.2f %% of %d validation items", 100 * accuracy, len(data.validation))
    with whole_folder(folder / "ensemble") as partial:
        write_json(partial / "preprocessor_config.json", data.preprocessor)
        ensemble.save_pretrained(partial)
    drop_checkpoints(folder)


def _training_features(trip: Trip, ensemble: Any, views: int) -> np.ndarray:
    """Features of all sub-models on the replayed training views, (V, N, D) float32, stored for a resumed run."""
    path = trip.folders["fuse"] / "features.safetensors"
    if not path.is_file():
        split, batch = trip.data.train, 512
        features = np.empty((views, len(split), sum(ensemble.config.feature_sizes)), dtype=np.float32)
        with torch.inference_mode():
            for view in range(views):
                for start in range(0, len(split), batch):
                    indices = np.arange(start, min(start + batch, len(split)))
                    features[view, indices] = ensemble.features(split.pixel_values(indices, view=view)).numpy()
        save_array(path, features)
    return load_array(path)


def _statistics(features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature, (D,) each; a constant feature gets 1 so that it stays finite."""
    deviation = features.std(axis=0)
    return torch.from_numpy(features.mean(axis=0)), torch.from_numpy(np.where(deviation > 1e-6, deviation, 1.0))


def evaluate(trip: Trip) -> None:
    """Teacher, ensemble, ensemble with k absent, honest baselines -> `results.json`."""
    from edvit_hf.recipe.results import write_results

    write_results(trip)


def export(trip: Trip) -> None:
    """Ensemble -> ONNX variants + `manifest.json`: int8 accepted on validation, accuracy reported on test."""
    from edvit_hf.data import class_group_labels, iterate_batches
    from edvit_hf.export import export_ensemble
    from edvit_hf.pruning.distribution import num_outcomes

    folder, data = trip.folders["export"], trip.data
    if (folder / "ensemble").is_dir():
        return

    def judge(name: str, predict: Any, class_group: list[int] | None = None) -> dict[str, Any]:
        """A split's row for the ensemble's logits, or for a sub-model's vote over its class group and "other"."""
        batches = iterate_batches(getattr(data, name), trip.recipe.evaluate.batch_size)
        num_labels, groups = len(data.label_names), trip.class_groups
        if class_group is None:
            return {"split": name, **measure(predict, batches, num_labels=num_labels, class_groups=groups).to_row()}
        own = list(range(len(class_group)))
        result = measure(
            predict, ({**b, "labels": class_group_labels(b["labels"].numpy(), class_group)} for b in batches),
            num_labels=num_outcomes(own, num_labels), class_groups=[own],
        )  # fmt: skip
        (group_accuracy,) = result.per_group_accuracy or [None]
        figures = {"accuracy": result.accuracy, "group_accuracy": group_accuracy}
        return {"split": name, "num_items": result.num_items, **figures}

    with whole_folder(folder / "ensemble") as partial:
        link_tree(trip.folders["fuse"] / "ensemble", partial)
        export_ensemble(
            partial, config=trip.recipe.export,
            pixel_values=data.test.pixel_values(np.arange(min(len(data.test), 256))).numpy(),
            gate=functools.partial(judge, "validation"), report=functools.partial(judge, "test"),
        )  # fmt: skip


def card(trip: Trip) -> None:
    """Results + manifest -> `README.md` and figures: a folder ready to push."""
    from edvit_hf.recipe.publish import write_publishable

    write_publishable(trip)


def _accuracy(model: torch.nn.Module, trip: Trip) -> float:
    from edvit_hf.data import iterate_batches

    model.eval()
    batches = iterate_batches(trip.data.validation, trip.recipe.evaluate.batch_size)
    return measure(torch_predict(model), batches, num_labels=len(trip.data.label_names)).accuracy


def _parent(trip: Trip) -> dict[str, Any]:
    """Where the ensemble comes from, for cards and ratios."""
    config, shape = trip.recipe.teacher, trip.teacher_shape
    return {
        "id": None if config.checkpoint is None else _public_name(config.checkpoint),
        "revision": config.revision,
        "recipe": trip.recipe.name,
        "parameters": shape.parameters,
        "macs": shape.macs,
    }


def _public_name(checkpoint: str) -> str:
    """A Hub id as it is; of a local folder only its name, since this is published."""
    return Path(checkpoint).name if Path(checkpoint).exists() else checkpoint
