"""What the stages share during one run: the recipe, their folders, and the data, loaded once when first needed."""

import functools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from edvit_hf.costs import ModelShape
from edvit_hf.data import TaskData, load_task
from edvit_hf.errors import CheckpointError, DataError, RecipeError
from edvit_hf.planning import Plan
from edvit_hf.provenance import environment
from edvit_hf.recipe.schema import Recipe
from edvit_hf.storage import PARTIAL_SUFFIX, read_json, whole_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trip:
    """One run of a recipe. Stages read and write only below `folders[stage]`."""

    recipe: Recipe
    folders: dict[str, Path]
    command: str = ""
    environment: dict[str, Any] = field(default_factory=environment)  # as the run starts: the code that is running

    @functools.cached_property
    def data(self) -> TaskData:
        """The dataset of the recipe, decoded once.

        Raises:
            RecipeError: It has another number of classes than the recipe says.
        """
        data, expected = load_task(self.recipe.dataset, self.recipe.augmentation), self.recipe.dataset.num_labels
        if expected is not None and len(data.label_names) != expected:
            raise RecipeError(
                f"`dataset.num_labels` is {expected}, but {self.recipe.dataset.path!r} has {len(data.label_names)} "
                f"classes ({', '.join(data.label_names[:5])}, ...). What was planned would not hold. Correct it."
            )
        return data

    @functools.cached_property
    def teacher(self) -> "PreTrainedModel":
        """The trained teacher, in eval mode."""
        return load_model(self.folders["teacher"] / "model")

    @functools.cached_property
    def class_groups(self) -> list[list[int]]:
        """Result of the split stage."""
        groups: list[list[int]] = read_json(self.folders["split"] / "class_groups.json")["class_groups"]
        return groups

    @functools.cached_property
    def plan(self) -> Plan:
        """Result of the plan stage."""
        return Plan.from_dict(read_json(self.folders["plan"] / "plan.json"))

    @functools.cached_property
    def teacher_shape(self) -> ModelShape:
        """Sizes of the teacher."""
        config = self.teacher.config
        return ModelShape.from_config(config.to_dict(), num_labels=config.num_labels)

    def sub_models(self, stage: str) -> "list[PreTrainedModel]":
        """The sub-models that `prune` or `distill` left."""
        return [load_model(self.folders[stage] / f"sub_models/{i:02d}") for i in range(len(self.class_groups))]

    @functools.cached_property
    def ensemble(self) -> Any:
        """The fused ensemble, in eval mode."""
        from edvit_hf.auto import EDViTForImageClassification

        return EDViTForImageClassification.from_pretrained(self.folders["fuse"] / "ensemble").eval()

    @functools.cached_property
    def teacher_logits(self) -> np.ndarray:
        """Teacher logits on the replayed training views, (V, N, C) float32, stored by the distill stage."""
        return load_array(self.folders["distill"] / "teacher_logits.safetensors")

    def training_sample(self, class_group: Sequence[int], samples_per_class: int, seed: int) -> np.ndarray:
        """Indices of training items of the group's classes, evenly and seeded, for the importance scores."""
        generator = np.random.default_rng([seed, *class_group])
        labels = self.data.train.labels
        chosen = []
        for class_index in class_group:
            items = np.flatnonzero(labels == class_index)
            chosen.append(generator.permutation(items)[:samples_per_class])
        return np.sort(np.concatenate(chosen))

    def refuse_empty_groups(self, class_groups: Sequence[Sequence[int]]) -> None:
        """Raise `DataError` if a class group has no training item: nothing could be scored or learnt for it."""
        labels = self.data.train.labels
        for index, group in enumerate(class_groups):
            if not np.isin(labels, list(group)).any():
                raise DataError(
                    f"class group {index} (classes {list(group)}) has no item among the {len(labels)} training rows. "
                    "Its sub-model would be scored and trained on nothing. Raise `dataset.max_train_samples` or change "
                    "`split`."
                )

    def mixed_training_sample(self, class_group: Sequence[int], num_items: int, seed: int) -> np.ndarray:
        """Indices of training items for the compensation, seeded: half of the class group, half from outside it.

        As far as there are so many; a group of all classes has no outside.
        """
        generator = np.random.default_rng(seed)
        is_own = np.isin(self.data.train.labels, list(class_group))
        own, others = (generator.permutation(np.flatnonzero(side)) for side in (is_own, ~is_own))
        num_own = num_items if len(others) == 0 else num_items // 2
        return np.sort(np.concatenate([own[:num_own], others[: num_items - num_own]]))


def load_model(folder: Path) -> "PreTrainedModel":
    """A stock classifier that an earlier stage saved.

    Raises:
        CheckpointError: The folder is damaged or incomplete.
    """
    from transformers import AutoModelForImageClassification

    try:
        model, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    except Exception as error:
        raise CheckpointError(
            f"the model in {folder} cannot be loaded: {error}. A later stage needs it whole. "
            "Delete that stage's folder and run again: it is rebuilt."
        ) from error
    check_weights(model, list(report["missing_keys"]), str(folder))
    return model.eval()


def check_weights(model: "PreTrainedModel", missing: list[str], source: str) -> None:
    """Raise `CheckpointError` if weights are missing (they would be random) or not finite."""
    if missing:
        raise CheckpointError(
            f"the model in {source} lacks the weights {missing[:3]}: they would be random. "
            "The file is incomplete or of another model. Fetch or build it again."
        )
    broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"the model in {source} has weights that are not finite (first: {broken[0]}). "
            "Every answer would be NaN. Fetch or train it again."
        )


def save_model(model: "PreTrainedModel", folder: Path, preprocessor: dict[str, Any]) -> None:
    """Save a stock model with its image processor; the folder appears whole or not at all."""
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        write_json(partial / "preprocessor_config.json", preprocessor)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one array as safetensors, by write-then-rename."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    save_file({"array": np.ascontiguousarray(array)}, partial)
    partial.replace(path)


def load_array(path: Path) -> np.ndarray:
    """Read an array written by `save_array`."""
    return load_file(path)["array"]


def drop_checkpoints(folder: Path) -> None:
    """The checkpoints of a finished training have served their purpose."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
