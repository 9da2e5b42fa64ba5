# SPDX-License-Identifier: Apache-2.0
"""The fuse stage: a fusion head on frozen sub-models, then, if the recipe asks for it, all of them tuned together."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edvit_hf.recipe.trip import Trip, drop_checkpoints, load_array, save_array, validation_accuracy, write_processor
from edvit_hf.storage import whole_folder, write_json
from edvit_hf.training import FuseData, JointData, JointModel, fuse_objective, joint_config, joint_objective, train

logger = logging.getLogger(__name__)


def fuse(trip: Trip) -> None:
    """Sub-models -> features -> fusion head (and, with `joint`, all of it tuned together) -> ensemble checkpoint."""
    from edvit_hf.auto import ensemble_class

    folder, config, data = trip.folders["fuse"], trip.recipe.fuse, trip.data
    if (folder / "ensemble").is_dir():
        drop_checkpoints(folder)
        return
    torch.manual_seed(config.seed)
    head = {"fusion_hidden_size": config.hidden_size, "fusion_dropout": config.dropout}
    head |= {"sub_model_dropout": config.sub_model_dropout}
    names, sub_models = trip.teacher.config.id2label, trip.sub_models("distill")
    ensemble = ensemble_class(trip.recipe.task).from_sub_models(
        sub_models, trip.class_groups, id2label=names, parent=_parent(trip), **head
    )
    ensemble.eval()
    logs = {"head": _train_head(trip, ensemble)}
    accuracies = {"frozen": validation_accuracy(ensemble, trip)}
    if config.joint:
        logs["joint"] = _tune_jointly(trip, ensemble)
        accuracies["joint"] = validation_accuracy(ensemble, trip)
    write_json(folder / "training_log.json", logs)
    last = list(accuracies.values())[-1]
    write_json(folder / "validation.json", {"accuracy": last, "num_items": len(data.validation), **accuracies})
    shown = ", ".join(f"{name} {100 * value:.2f} %" for name, value in accuracies.items())
    logger.info("fuse: %s of %d validation items", shown, len(data.validation))
    with whole_folder(folder / "ensemble") as partial:
        write_processor(partial, data.processor)
        ensemble.save_pretrained(partial)
    drop_checkpoints(folder)


def _train_head(trip: Trip, ensemble: Any) -> dict[str, Any]:
    """The fusion head on stored features of the frozen sub-models; returns the log."""
    config, outputs = trip.recipe.fuse, trip.teacher_outputs
    features = _training_features(trip, ensemble, config.views)
    ensemble.fusion.set_feature_statistics(*_statistics(features[0]))
    objective = fuse_objective(
        sub_model_dropout=config.sub_model_dropout,
        weight=config.distillation_weight,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
    )
    data = FuseData(features, trip.data.train.labels, outputs.logits[: config.views])
    checkpoints = trip.folders["fuse"] / "checkpoints" / "head"
    log = train(
        ensemble.fusion, data, objective, config, checkpoint_dir=checkpoints, description="fuse", distributed=False
    )
    ensemble.eval()
    return log.to_dict()


def _tune_jointly(trip: Trip, ensemble: Any) -> dict[str, Any]:
    """Sub-models and fusion head end to end (DeViT, arXiv 2309.05015, stage 4); returns the log."""
    config, outputs = joint_config(trip.recipe.fuse), trip.teacher_outputs
    data = JointData(trip.data.train, outputs.logits[: config.views], outputs.features[: config.views])
    model = JointModel(ensemble, teacher_width=outputs.features.shape[-1], seed=config.seed)
    model.fit_mapping(_training_features(trip, ensemble, trip.recipe.fuse.views)[0], outputs.features[0])
    objective, checkpoints = joint_objective(trip.class_groups, config), trip.folders["fuse"] / "checkpoints" / "joint"
    log = train(model, data, objective, config, checkpoint_dir=checkpoints, description="joint", distributed=False)
    ensemble.eval()
    return log.to_dict()


def _training_features(trip: Trip, ensemble: Any, views: int) -> np.ndarray:
    """Features of all sub-models on the replayed training views, (V, N, D) float32, stored for a resumed run."""
    path = trip.folders["fuse"] / "features.safetensors"
    if not path.is_file():
        split, batch = trip.data.train, 512
        order = np.arange(len(split)) if split.lengths is None else np.argsort(split.lengths, kind="stable")
        features = np.empty((views, len(split), sum(ensemble.config.feature_sizes)), dtype=np.float32)
        with torch.inference_mode():
            for view in range(views):
                for start in range(0, len(split), batch):
                    indices = order[start : start + batch]
                    features[view, indices] = ensemble.features(**split.inputs(indices, view=view)).numpy()
        save_array(path, features)
    return load_array(path)


def _statistics(features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature, (D,) each; a constant feature gets 1 so that it stays finite."""
    deviation = features.std(axis=0)
    return torch.from_numpy(features.mean(axis=0)), torch.from_numpy(np.where(deviation > 1e-6, deviation, 1.0))


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
