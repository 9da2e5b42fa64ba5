# SPDX-License-Identifier: Apache-2.0
"""The fuse stage: a fusion head on frozen sub-models, then, if the recipe asks for it, all of them tuned together."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from edvit_hf.evaluation.evaluator import paired_interval
from edvit_hf.recipe.trip import Trip, drop_checkpoints, save_arrays, validation_accuracy, write_processor
from edvit_hf.recipe.validating import all_outputs, outputs, validate_ensemble, validate_fusion
from edvit_hf.storage import whole_folder, write_json
from edvit_hf.tasks import MAX_SUBSETS
from edvit_hf.training import (
    FuseData,
    JointData,
    JointModel,
    fit_temperatures,
    fuse_objective,
    joint_config,
    joint_objective,
    shares_right,
    train,
)

logger = logging.getLogger(__name__)

SCALES = (0.125, 0.25, 0.5, 1.0)  # of what a residual head adds; 0 where none is better than the average


def fuse(trip: Trip) -> None:
    """Sub-models -> one answer of them all, tuned together with `joint` -> ensemble checkpoint."""
    folder, config, data = trip.folders["fuse"], trip.recipe.fuse, trip.data
    if (folder / "ensemble").is_dir():
        drop_checkpoints(folder)
        return
    torch.manual_seed(config.seed)
    ensemble = _assembled(trip)
    if config.kind == "mlp":
        logs, found = _fuse_features(trip, ensemble)
    else:
        logs, found = _fuse_votes(trip, ensemble)
    write_json(folder / "training_log.json", logs)
    write_json(folder / "validation.json", {"num_items": len(data.validation), **found})
    shown = ", ".join(f"{name} {100 * found[name]:.2f} %" for name in ("frozen", "joint", "accuracy") if name in found)
    logger.info("fuse: %s of %d validation items", shown, len(data.validation))
    with whole_folder(folder / "ensemble") as partial:
        write_processor(partial, data.processor)
        ensemble.save_pretrained(partial)
    drop_checkpoints(folder)


def _assembled(trip: Trip) -> Any:
    """The ensemble of the retrained sub-models with a fusion that is not trained yet, in eval mode."""
    from edvit_hf.auto import ensemble_class

    config, names = trip.recipe.fuse, trip.teacher.config.id2label
    head: dict[str, Any] = {"fusion_hidden_size": config.hidden_size, "fusion_dropout": config.dropout}
    head |= {"sub_model_dropout": config.sub_model_dropout}
    if config.kind != "mlp":
        head |= {"fusion_kind": config.kind, "fusion_other": config.other}
    if trip.focus_groups != trip.class_groups:
        head |= {"focus_groups": trip.focus_groups}
    ensemble = ensemble_class(trip.recipe.task).from_sub_models(
        trip.sub_models("distill"), trip.class_groups, id2label=names, parent=_parent(trip), **head
    )
    return ensemble.eval()


def _fuse_features(trip: Trip, ensemble: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fusion head on features, then all of it tuned together; returns the logs and validation accuracies."""
    logs = {"head": _train_head(trip, ensemble, "features")}
    accuracies = {"frozen": validation_accuracy(ensemble, trip)}
    if trip.recipe.fuse.joint:
        logs["joint"] = _tune_jointly(trip, ensemble)
        accuracies["joint"] = validation_accuracy(ensemble, trip)
    return logs, {"accuracy": list(accuracies.values())[-1], **accuracies}


def _fuse_votes(trip: Trip, ensemble: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The average of the votes, tuned together if asked for, and what a head adds to it where it is better.

    Returns the logs, and what was found on validation items: accuracies, those with 0, 1, 2 absent among them,
    temperatures, and of a residual head the scale and what each scale was worth.
    """
    config = trip.recipe.fuse
    logs: dict[str, Any] = {}
    features, logits = _validation_outputs(trip, ensemble)
    found: dict[str, Any] = {"temperatures": _calibrate(trip, ensemble, logits)}
    labels, most = trip.data.validation.labels, trip.recipe.evaluate.max_subsets
    average = shares_right(ensemble.fusion, features, logits, labels, most)
    found["frozen"] = float(average[0].mean())
    if config.joint:
        _reset(ensemble)  # tuned as they are, calibrated after it
        logs["joint"] = _tune_jointly(trip, ensemble)
        features, logits = _validation_outputs(trip, ensemble)
        found["temperatures"] = _calibrate(trip, ensemble, logits)
        average = shares_right(ensemble.fusion, features, logits, labels, most)
        found["joint"] = float(average[0].mean())
    if config.kind == "residual":
        logs["head"] = _train_residual(trip, ensemble)
        found |= _choose_scale(ensemble, features, logits, labels, average, most)
        average = shares_right(ensemble.fusion, features, logits, labels, most)
    absent = [float(value) for value in average.mean(axis=1)]
    return logs, {"accuracy": absent[0], **found, "absent": absent}


def _calibrate(trip: Trip, ensemble: Any, logits: torch.Tensor) -> list[float]:
    """Set the votes' temperatures by their likelihood on validation items; returns them."""
    labels = trip.data.validation.labels
    temperatures = fit_temperatures(logits, labels, trip.class_groups, ensemble.config.vote_sizes)
    ensemble.fusion.set_temperatures(temperatures)
    return [float(value) for value in temperatures]


def _reset(ensemble: Any) -> None:
    ensemble.fusion.set_temperatures(torch.ones(len(ensemble.config.vote_sizes)))


def _train_residual(trip: Trip, ensemble: Any) -> dict[str, Any]:
    """The head of a residual fusion on stored features and votes; it starts at the average itself. Returns the log."""
    last = ensemble.fusion.head.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    ensemble.fusion.requires_grad_(True)
    ensemble.fusion.set_scale(1.0)
    return _train_head(trip, ensemble, "tuned_features", votes=True)


def _choose_scale(
    ensemble: Any,
    features: torch.Tensor,
    logits: torch.Tensor,
    labels: np.ndarray,
    average: np.ndarray,
    max_subsets: int = MAX_SUBSETS,
) -> dict[str, Any]:
    """Set the largest scale whose accuracy over 0, 1 and 2 absent exceeds the average's beyond noise, else 0.

    Args:
        ensemble: With a residual fusion.
        features: (N, D) of the validation items.
        logits: (N, V), their votes.
        labels: (N,).
        average: (A, N) `shares_right` of the average.
        max_subsets: At most so many subsets of each number absent.
    """
    tried, chosen = [], 0.0
    for scale in SCALES:
        ensemble.fusion.set_scale(scale)
        own = shares_right(ensemble.fusion, features, logits, labels, max_subsets)
        interval = paired_interval(own.mean(axis=0), average.mean(axis=0))
        tried.append({"scale": scale, "gain": interval.difference, "low": interval.low, "high": interval.high})
        if interval.low > 0:
            chosen = scale
    ensemble.fusion.set_scale(chosen)
    return {"scale": chosen, "scales": tried}


def _train_head(trip: Trip, ensemble: Any, name: str, *, votes: bool = False) -> dict[str, Any]:
    """The fusion's weights on features (and votes, where it asks them) of the frozen sub-models; returns the log."""
    config, outputs = trip.recipe.fuse, trip.teacher_outputs
    features, logits = _training_outputs(trip, ensemble, name, views=config.views, votes=votes)
    ensemble.fusion.set_feature_statistics(*_statistics(features[0]))
    objective = fuse_objective(
        sub_model_dropout=config.sub_model_dropout,
        weight=config.distillation_weight,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
    )
    data = FuseData(features, trip.data.train.labels, outputs.logits[: config.views], logits)
    checkpoints = trip.folders["fuse"] / "checkpoints" / "head"
    options: dict[str, Any] = {"checkpoint_dir": checkpoints, "description": "fuse", "distributed": False}
    if config.patience is not None:
        known, most = _validation_outputs(trip, ensemble), trip.recipe.evaluate.max_subsets
        options["validate"] = validate_fusion(*known, trip.data.validation.labels, most)
    log = train(ensemble.fusion, data, objective, config, **options)
    ensemble.eval()
    return log.to_dict()


def _tune_jointly(trip: Trip, ensemble: Any) -> dict[str, Any]:
    """Sub-models and fusion end to end (DeViT, arXiv 2309.05015, stage 4); returns the log."""
    config, outputs = joint_config(trip.recipe.fuse), trip.teacher_outputs
    data = JointData(trip.data.train, outputs.logits[: config.views], outputs.features[: config.views])
    if config.kind == "residual":
        ensemble.fusion.requires_grad_(False)  # at scale 0 nothing would move it but weight decay
    model = JointModel(ensemble, teacher_width=outputs.features.shape[-1], seed=config.seed)
    views = trip.recipe.fuse.views if config.kind == "mlp" else 1  # as the head has stored them; the first is needed
    features, _ = _training_outputs(trip, ensemble, "features", views=views)
    model.fit_mapping(features[0], outputs.features[0])
    objective, checkpoints = joint_objective(trip.class_groups, config), trip.folders["fuse"] / "checkpoints" / "joint"
    options: dict[str, Any] = {"checkpoint_dir": checkpoints, "description": "joint", "distributed": False}
    validate = validate_ensemble(trip.data.validation, trip.recipe.evaluate.max_subsets)
    log = train(model, data, objective, config, validate=validate, **options)
    ensemble.eval()
    return log.to_dict()


def _training_outputs(
    trip: Trip, ensemble: Any, name: str, *, views: int, votes: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features (V, N, D) of all sub-models on the replayed training views, stored under a name for a resumed run.

    And their votes side by side (V, N, votes), if asked for. float32.
    """
    path, split = trip.folders["fuse"] / f"{name}.safetensors", trip.data.train
    if not path.is_file():
        sizes = {"array": sum(ensemble.config.feature_sizes)}
        if votes:
            sizes["logits"] = sum(ensemble.config.vote_sizes)
        arrays = {name: np.empty((views, len(split), size), dtype=np.float32) for name, size in sizes.items()}
        for view in range(views):
            for indices, *found in outputs(ensemble.features_and_logits, split, view=view):
                for array, values in zip(arrays.values(), found, strict=False):
                    array[view, indices] = values
        save_arrays(path, arrays)
    stored = load_file(path)
    return stored["array"], stored.get("logits")


def _validation_outputs(trip: Trip, ensemble: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) and votes (N, V) of all sub-models on the validation items."""
    ensemble.eval()
    features, logits = all_outputs(ensemble.features_and_logits, trip.data.validation, "cpu")
    return features, logits


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
