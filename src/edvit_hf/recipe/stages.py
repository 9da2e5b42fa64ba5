"""One function per stage: it reads what earlier stages left, calls the library, and writes its own folder.

Each function may be interrupted anywhere: what it has finished is found again, what is half-written is ignored.
"""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edvit_hf import planning, splitting
from edvit_hf.errors import RecipeError
from edvit_hf.evaluation import evaluate as measure
from edvit_hf.evaluation import torch_predict

from edvit_hf.pruning import make_plan, prune as cut, unit_scores  # isort: skip
from edvit_hf.recipe.trip import Trip, load_array, load_model, save_array, save_model
from edvit_hf.storage import link_tree, whole_folder, write_json
from edvit_hf.training import (
    ClassifyData,
    DistillConfig,
    DistillData,
    FuseData,
    classify_objective,
    distill_objective,
    fuse_objective,
    teacher_logits,
    train,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def teacher(trip: Trip) -> None:
    """Dataset + base checkpoint (Hub id, folder or from-scratch config) -> fine-tuned stock model."""
    folder, config, data = trip.folders["teacher"], trip.recipe.teacher, trip.data
    if (folder / "model").is_dir():
        return
    torch.manual_seed(config.seed)
    model = _base_model(trip)
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
    _drop_checkpoints(folder)


def split(trip: Trip) -> None:
    """Teacher -> class groups."""
    num_classes = trip.teacher.config.num_labels
    groups = splitting.split_classes(num_classes, trip.recipe.split)
    names = [[trip.teacher.config.id2label[c] for c in group] for group in groups]
    write_json(trip.folders["split"] / "class_groups.json", {"class_groups": groups, "class_names": names})


def plan(trip: Trip) -> None:
    """Group sizes + teacher sizes + fleet -> keep, placement and predicted costs."""
    keep = trip.recipe.prune.keep_heads
    result = planning.plan(
        trip.teacher_shape, trip.class_groups, planning.load_fleet(trip.recipe.fleet_path),
        keep_heads=None if keep == "auto" else keep, fusion_hidden_size=trip.recipe.fuse.hidden_size,
    )  # fmt: skip
    logger.info("%s", result)
    result.save(trip.folders["plan"] / "plan.json")


def prune(trip: Trip) -> None:
    """Teacher + plan + class-group samples -> pruning plans and stock sub-models."""
    folder = trip.folders["prune"]
    for index, group in enumerate(trip.class_groups):
        target = folder / f"sub_models/{index:02d}"
        if target.is_dir():
            continue
        model, pruning_plan = prune_for(trip, group, trip.plan.keep_heads)
        logger.info("sub-model %d, classes %s\n%s", index, group, pruning_plan)
        write_json(folder / f"pruning_plan_{index:02d}.json", pruning_plan.to_dict())
        save_model(model, target, trip.data.preprocessor)


def prune_for(trip: Trip, class_group: list[int], keep_heads: int) -> "tuple[PreTrainedModel, Any]":
    """Score the teacher's units for these classes, keep the best, and cut.

    Iterative pruning (prune, short retrain, prune again) would loop here, in the recipe, not inside a stage.
    """
    config, num_classes = trip.recipe.prune, trip.teacher.config.num_labels
    shape = trip.teacher_shape.keep(keep_heads, num_labels=num_classes)
    sample = trip.training_sample(class_group, config.samples_per_class, config.seed)
    scores = unit_scores(
        trip.teacher, trip.data.train.pixel_values(sample), class_group,
        method=config.importance, batch_size=config.batch_size, seed=config.seed,
    )  # fmt: skip
    covers_all = len(class_group) == num_classes
    pruning_plan = make_plan(
        scores, trip.teacher.config, keep_residual=shape.hidden_size, keep_heads=keep_heads,
        keep_ffn=shape.intermediate_size, num_labels=num_classes if covers_all else len(class_group) + 1,
    )  # fmt: skip
    return cut(trip.teacher, pruning_plan, class_group), pruning_plan


def distill(trip: Trip) -> None:
    """Sub-models + teacher + class-group views -> retrained sub-models."""
    folder, config = trip.folders["distill"], trip.recipe.distill
    if not (folder / "teacher_logits.safetensors").is_file():
        logits = teacher_logits(trip.teacher, trip.data.train, views=config.views, batch_size=512)
        save_array(folder / "teacher_logits.safetensors", logits)
    stored = load_array(folder / "teacher_logits.safetensors")
    for index, group in enumerate(trip.class_groups):
        if not (folder / f"sub_models/{index:02d}").is_dir():
            model = load_model(trip.folders["prune"] / f"sub_models/{index:02d}")
            group_or_all = group if len(trip.class_groups) > 1 else None
            distill_into(
                trip, model, stored, config, class_group=group_or_all, folder=folder / f"training/{index:02d}",
                description=f"distill sub-model {index}",
            )  # fmt: skip
            save_model(model, folder / f"sub_models/{index:02d}", trip.data.preprocessor)
    for index in range(len(trip.class_groups)):
        _drop_checkpoints(folder / f"training/{index:02d}")


def distill_into(
    trip: Trip, model: torch.nn.Module, stored: np.ndarray, config: DistillConfig, *,
    class_group: list[int] | None, folder: Path, description: str,
) -> None:  # fmt: skip
    """Retrain one model from the teacher's stored logits, on a class group or (None) on all classes."""
    data = DistillData(
        trip.data.train, stored, class_group=class_group,
        negatives_per_positive=config.negatives_per_positive, seed=config.seed,
    )  # fmt: skip
    objective = distill_objective(class_group, config.temperature, config.distillation_weight)
    log = train(model, data, objective, config, checkpoint_dir=folder / "checkpoints", description=description)
    model.eval()
    write_json(folder / "training_log.json", log.to_dict())


def fuse(trip: Trip) -> None:
    """Frozen sub-models -> features -> fusion head -> ensemble checkpoint."""
    from edvit_hf.auto import EDViTForImageClassification

    folder, config, data = trip.folders["fuse"], trip.recipe.fuse, trip.data
    if (folder / "ensemble").is_dir():
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
        temperature=config.temperature,
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
    _drop_checkpoints(folder)


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
    """Ensemble -> ONNX variants + `manifest.json`, each with parity and accuracy."""
    from edvit_hf.export import export_ensemble

    folder, test = trip.folders["export"], trip.data.test
    if (folder / "ensemble").is_dir():
        return
    parity_items = np.arange(min(len(test), 256))

    def accuracy_of(predict: Any) -> dict[str, Any]:
        batches = ({**b, "pixel_values": b["pixel_values"]} for b in _test_batches(trip))
        result = measure(predict, batches, num_labels=len(trip.data.label_names), class_groups=trip.class_groups)
        return result.to_row()

    with whole_folder(folder / "ensemble") as partial:
        link_tree(trip.folders["fuse"] / "ensemble", partial)
        export_ensemble(
            partial, config=trip.recipe.export, pixel_values=test.pixel_values(parity_items).numpy(),
            labels=test.labels[parity_items], evaluate=accuracy_of,
        )  # fmt: skip


def card(trip: Trip) -> None:
    """Results + manifest -> `README.md` and figures: a folder ready to push."""
    from edvit_hf.recipe.publish import write_publishable

    write_publishable(trip)


def _base_model(trip: Trip) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModelForImageClassification

    config, names = trip.recipe.teacher, trip.data.label_names
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    if config.from_scratch is not None:
        values = {"image_size": trip.recipe.dataset.image_size, "num_channels": 3, **config.from_scratch}
        try:
            stock = AutoConfig.for_model(values.pop("model_type"), **values, **labels)
            return AutoModelForImageClassification.from_config(stock)
        except (ValueError, TypeError) as error:
            raise RecipeError(
                f"`teacher.from_scratch` {config.from_scratch} is no stock image classifier: {error}. Correct it."
            ) from error
    try:
        return AutoModelForImageClassification.from_pretrained(
            config.checkpoint, revision=config.revision or "main", ignore_mismatched_sizes=True, **labels
        )
    except OSError as error:
        raise RecipeError(
            f"`teacher.checkpoint` {config.checkpoint!r} cannot be loaded: {error}. "
            "Give a folder written by save_pretrained, or a Hub id that this machine can reach."
        ) from error


def _accuracy(model: torch.nn.Module, trip: Trip) -> float:
    from edvit_hf.data import iterate_batches

    model.eval()
    batches = iterate_batches(trip.data.validation, trip.recipe.evaluate.batch_size)
    return measure(torch_predict(model), batches, num_labels=len(trip.data.label_names)).accuracy


def _test_batches(trip: Trip) -> Any:
    from edvit_hf.data import iterate_batches

    return iterate_batches(trip.data.test, trip.recipe.evaluate.batch_size)


def _parent(trip: Trip) -> dict[str, Any]:
    """Where the ensemble comes from, for cards and ratios."""
    config, shape = trip.recipe.teacher, trip.teacher_shape
    return {
        "id": config.checkpoint,
        "revision": config.revision,
        "recipe": trip.recipe.name,
        "parameters": shape.parameters,
        "macs": shape.macs,
    }


def _drop_checkpoints(folder: Path) -> None:
    """The checkpoints of a finished training have served their purpose."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
