"""One function per stage: it reads what earlier stages left, calls the library, and writes its own folder.

Each function may be interrupted anywhere: what it has finished is found again, what is half-written is ignored.
"""

import functools
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
from edvit_hf.recipe.offline_plan import plan_groups
from edvit_hf.recipe.trip import Trip, check_weights, load_array, load_model, save_array, save_model
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
        _drop_checkpoints(folder)
        return
    torch.manual_seed(config.seed)
    model = _base_model(trip)
    _refuse_impossible_plan(trip, model.config)
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
    result = plan_groups(trip.recipe, trip.teacher_shape, trip.class_groups)
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
    """Score the teacher's units for these classes, keep the best, and cut; also returns the pruning plan."""
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
    objective = distill_objective(
        class_group, config.temperature, config.distillation_weight, label_smoothing=config.label_smoothing
    )
    log = train(model, data, objective, config, checkpoint_dir=folder / "checkpoints", description=description)
    model.eval()
    write_json(folder / "training_log.json", log.to_dict())


def fuse(trip: Trip) -> None:
    """Frozen sub-models -> features -> fusion head -> ensemble checkpoint."""
    from edvit_hf.auto import EDViTForImageClassification

    folder, config, data = trip.folders["fuse"], trip.recipe.fuse, trip.data
    if (folder / "ensemble").is_dir():
        _drop_checkpoints(folder)
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
    """Ensemble -> ONNX variants + `manifest.json`: int8 accepted on validation, accuracy reported on test."""
    from edvit_hf.data import class_group_labels, iterate_batches
    from edvit_hf.export import export_ensemble

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
            num_labels=min(len(own) + 1, num_labels), class_groups=[own],
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
    return load_teacher(config.checkpoint, config.revision, names, is_final=config.epochs == 0)


def load_teacher(
    checkpoint: str | None, revision: str | None, names: list[str], *, is_final: bool
) -> "PreTrainedModel":
    """A teacher from a folder or a Hub id, its head fitted to the dataset's labels.

    Args:
        checkpoint: Folder or Hub id.
        revision: Of a Hub id.
        names: Label names of the dataset, in order.
        is_final: The model is used as it is, so its head must already be that of the dataset.

    Raises:
        RecipeError: It cannot be loaded, or it is to be used as it is and its head or labels do not fit.
        CheckpointError: Its weights are damaged, incomplete or not finite.
    """
    from transformers import AutoModelForImageClassification

    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    own = {} if is_final else {"ignore_mismatched_sizes": True, **labels}
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            checkpoint, revision=revision or "main", output_loading_info=True, **own
        )
    except Exception as error:
        raise RecipeError(
            f"`teacher.checkpoint` {checkpoint!r} cannot be loaded: {error}. "
            "Give a folder written by save_pretrained, or a Hub id that this machine can reach."
        ) from error
    found = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if is_final and found != names:
        raise RecipeError(
            f"`teacher.checkpoint` {checkpoint!r} answers with {found[:5]}..., the dataset has {names[:5]}... With "
            "`epochs: 0` the model is used as it is, so its classes would be mixed up. Fine-tune it (epochs above 0)."
        )
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    missing = [key for key in unfit if is_final or not key.startswith("classifier")]
    check_weights(model, missing, str(checkpoint))
    return model


def _refuse_impossible_plan(trip: Trip, config: Any) -> None:
    """Split and plan from sizes alone, before the teacher is trained: what cannot fit must not cost hours first."""
    groups = splitting.split_classes(config.num_labels, trip.recipe.split)
    shape = planning.EncoderShape.from_config(config.to_dict(), num_labels=config.num_labels)
    plan_groups(trip.recipe, shape, groups)


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


def _drop_checkpoints(folder: Path) -> None:
    """The checkpoints of a finished training have served their purpose."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
