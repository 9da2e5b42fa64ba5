# SPDX-License-Identifier: Apache-2.0
"""What the stages share during one run: the recipe, their folders, and the data, loaded once when first needed."""

import functools
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.data import TaskData, iterate_batches, load_task, with_vocabulary
from edvit_hf.errors import CheckpointError, DataError, HubError, RecipeError
from edvit_hf.evaluation.evaluator import evaluate, torch_predict
from edvit_hf.hardware.machine import machine_memory_bytes
from edvit_hf.hardware.provenance import environment
from edvit_hf.hub.client import fetch_matching
from edvit_hf.planning.plan import Plan
from edvit_hf.recipe.schema import Recipe
from edvit_hf.storage import read_json_object, whole_file, whole_folder
from edvit_hf.strict import is_folder, read_strictly
from edvit_hf.tasks import PROCESSOR_FILES, Task
from edvit_hf.training.config import SEED_STRIDE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edvit_hf.training import TeacherOutputs

logger = logging.getLogger(__name__)

PROCESSOR_FOLDER = "processor"  # of the teacher stage
CHOICE_FILE = "choice.json"  # of the choose stage: which strategy, and by which figures
OVERLAP_FILE = "overlap.json"  # of the teacher stage: how many rows its roles share
_OF_A_STAGE = "Later stages read it. Remove the folder of that stage and run the recipe again."


@dataclass(frozen=True)
class Trip:
    """One run of a recipe. Stages read and write only below `folders[stage]`."""

    recipe: Recipe
    folders: dict[str, Path]
    command: str = ""
    environment: dict[str, Any] = field(default_factory=environment)  # as the run starts: the code that is running

    @functools.cached_property
    def data(self) -> TaskData:
        """The dataset of the recipe as sub-models and plain models read it, decoded once.

        With `prune.vocabulary` their tokens are others than the teacher's: what it is fed is `teacher_data`.

        Raises:
            RecipeError: It has another number of classes than the recipe says.
            DataError: The vocabulary cannot be cut so.
        """
        wanted = self.recipe.prune.vocabulary
        return self._load_data() if wanted is None else with_vocabulary(self.teacher_data, wanted)

    @functools.cached_property
    def teacher_data(self) -> TaskData:
        """The dataset of the recipe as the teacher reads it. Raises what `data` raises."""
        return self.data if self.recipe.prune.vocabulary is None else self._load_data()

    def _load_data(self) -> TaskData:
        recipe, expected = self.recipe, self.recipe.dataset.num_labels
        data = load_task(recipe.dataset, recipe.augmentation, task=recipe.task, processor_dir=self._processor_dir())
        if expected is not None and len(data.label_names) != expected:
            raise RecipeError(
                f"`dataset.num_labels` is {expected}, but {self.recipe.dataset.path!r} has {len(data.label_names)} "
                f"classes ({', '.join(data.label_names[:5])}, ...). What was planned would not hold. Correct it."
            )
        return data

    def _processor_dir(self) -> Path | None:
        """Where the processor lies that the teacher is fed by; None where a recipe alone says how inputs are made."""
        teacher, checkpoint = self.folders.get("teacher"), self.recipe.teacher.checkpoint
        if teacher is not None and (teacher / PROCESSOR_FOLDER).is_dir():
            return teacher / PROCESSOR_FOLDER
        return None if checkpoint is None else checkpoint_files(checkpoint, self.recipe.teacher.revision)

    def keep_processor(self) -> None:
        """Store the files of the processor beside the teacher, before anything is trained.

        A tokenizer that is trained again may number its words otherwise; a resumed teacher would then read nonsense.
        """
        folder = self.folders["teacher"] / PROCESSOR_FOLDER
        if not folder.is_dir():
            with whole_folder(folder) as partial:
                write_processor(partial, self.teacher_data.processor)

    def load(self, folder: Path) -> "PreTrainedModel":
        """A stock classifier of the recipe's task that an earlier stage saved. Raises what `load_model` raises."""
        return load_model(folder, self.recipe.task)

    @functools.cached_property
    def teacher(self) -> "PreTrainedModel":
        """The trained teacher, in eval mode."""
        return self.load(self.folders["teacher"] / "model")

    @functools.cached_property
    def teacher_outputs(self) -> "TeacherOutputs":
        """The teacher's logits (V, N, C) and features (V, N, D) on the replayed training views.

        Computed once for all sub-models, baselines and later runs: they lie beside the teacher, on whom alone they
        depend (and on the number of views).
        """
        from edvit_hf.training import TeacherOutputs, teacher_outputs

        views = self.recipe.distill.views
        path = self.folders["teacher"] / f"outputs_{views}_views.safetensors"
        if not path.is_file():
            found = teacher_outputs(self.teacher, self.teacher_data.train, views=views, batch_size=512)
            save_arrays(path, {"logits": found.logits, "features": found.features})
        return TeacherOutputs(**load_file(path))

    @functools.cached_property
    def class_groups(self) -> list[list[int]]:
        """Result of the split stage: the classes that each sub-model votes over."""
        return self._groups("class_groups")

    @functools.cached_property
    def focus_groups(self) -> list[list[int]]:
        """Result of the split stage: the classes that each sub-model is cut for, all of them in its class group."""
        focus = self._groups("focus_groups")
        votes = self.class_groups
        if len(focus) != len(votes) or any(set(own) - set(vote) for own, vote in zip(focus, votes, strict=True)):
            raise CheckpointError(
                f"Expected focus groups inside the class groups in {self.folders['split']}, got {focus} for "
                f"{votes}. {_OF_A_STAGE}"
            )
        return focus

    def _groups(self, name: str) -> list[list[int]]:
        path = self.folders["split"] / "class_groups.json"
        stored = read_json_object(path, "the class groups", _OF_A_STAGE)
        # Of an earlier version: every sub-model was cut for what it votes over.
        value = stored.get(name, stored.get("class_groups"))
        try:
            groups: list[list[int]] = read_strictly(list[list[int]], value, name)
        except ValueError as error:
            raise CheckpointError(f"Expected class groups in {path}, but {error} {_OF_A_STAGE}") from error
        return groups

    def sub_model_seed(self, seed: int, index: int) -> int:
        """The seed of one sub-model's samples and training.

        Sub-models that vote over disjoint groups differ by what they learn and share `seed`. Where classes have several
        sub-models each has a seed of its own: else two of one group would be the same model.
        """
        is_disjoint = len({c for group in self.class_groups for c in group}) == sum(map(len, self.class_groups))
        return seed if is_disjoint else seed + SEED_STRIDE * index

    @functools.cached_property
    def plan(self) -> Plan:
        """Result of the plan stage."""
        path = self.folders["plan"] / "plan.json"
        stored = read_json_object(path, "a plan", _OF_A_STAGE)
        try:
            return Plan.from_dict(stored)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"Expected a plan in {path}, its fields are others ({error}). {_OF_A_STAGE}"
            ) from error

    @functools.cached_property
    def teacher_shape(self) -> ModelShape:
        """Sizes of the teacher."""
        config = self.teacher.config
        return ModelShape.from_config(config.to_dict(), num_labels=config.num_labels)

    @property
    def uncut_shape(self) -> ModelShape:
        """Sizes that sub-models and plain models are cut from: the teacher's, with the vocabulary that they read."""
        return self.teacher_shape.reading(self.words)

    @property
    def words(self) -> int | None:
        """Rows of the sub-models' word embedding where it is cut; None where it is the teacher's."""
        return None if self.recipe.prune.vocabulary is None else self.data.vocab_size

    def sub_models(self, stage: str) -> "list[PreTrainedModel]":
        """The sub-models that `prune` or `distill` left."""
        return [self.load(self.folders[stage] / f"sub_models/{i:02d}") for i in range(len(self.class_groups))]

    @functools.cached_property
    def ensemble(self) -> Any:
        """The fused ensemble, in eval mode."""
        from edvit_hf.auto import ensemble_class

        return ensemble_class(self.recipe.task).from_pretrained(self.folders["fuse"] / "ensemble").eval()

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


def checkpoint_files(checkpoint: str, revision: str | None) -> Path:
    """The folder with the processor's files of a checkpoint: the local folder itself, or what the Hub has of them.

    Raises:
        RecipeError: They cannot be fetched.
    """
    if is_folder(checkpoint):
        return Path(checkpoint)
    try:
        return fetch_matching(checkpoint, (*PROCESSOR_FILES, "processor_config.json", "config.json"), revision)
    except (OSError, HubError) as error:  # OSError: the cache cannot be written
        raise RecipeError(
            f"`teacher.checkpoint` {checkpoint!r} cannot be loaded, its processor cannot be fetched: {error} What the "
            "checkpoint reads is made by it. Give a folder written by save_pretrained, or a Hub id that this machine "
            "can reach."
        ) from error


def load_model(folder: Path, task: Task = "image-classification") -> "PreTrainedModel":
    """A stock classifier that an earlier stage saved.

    Raises:
        CheckpointError: The folder is damaged or incomplete.
    """
    from edvit_hf.auto import load_stock

    try:
        model, report = load_stock(task, folder)
    except Exception as error:
        raise CheckpointError(
            f"the model in {folder} cannot be loaded: {error}. A later stage needs it whole. "
            f"Delete {folder.parent} and run again: it is rebuilt."
        ) from error
    check_weights(model, list(report["missing_keys"]), str(folder))
    return model.eval()


def stock_model(recipe: Recipe, config: Mapping[str, Any], names: list[str], where: str) -> "PreTrainedModel":
    """A stock classifier of the recipe's task with random weights.

    Args:
        recipe: Its task names the class.
        config: Values of the stock config, with the `model_type`.
        names: Of its labels, in order.
        where: Dotted path of the config in the recipe, for the message.

    Raises:
        RecipeError: No such model can be built, or this machine cannot hold it.
        PruningError: A size that no model can have.
    """
    from transformers import AutoConfig

    from edvit_hf.auto import stock_auto_class

    check_size(ModelShape.from_config(dict(config), num_labels=len(names)).bytes, f"`{where}`")
    values = dict(config)
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    try:
        stock = AutoConfig.for_model(values.pop("model_type"), **values, **labels)
        stock.architectures = []  # where a type has several classifiers (deit), the plain one
        model: PreTrainedModel = stock_auto_class(recipe.task).from_config(stock)
    except Exception as error:  # the stock classes raise nearly every type on values that do not fit
        raise RecipeError(
            f"`{where}` {dict(config)} is no stock model for {recipe.task}: {type(error).__name__}: {error}. Nothing "
            "can be built from it. Correct it."
        ) from error
    return model


def check_size(num_bytes: int, what: str) -> None:
    """Raise `RecipeError` for what this machine's memory cannot hold, before it is asked for."""
    memory = machine_memory_bytes()
    if num_bytes > memory:
        raise RecipeError(
            f"{what} would take {num_bytes / 2**30:.3g} GiB, this machine has {memory / 2**30:.3g} GiB. Training "
            "needs a multiple of it. Correct the sizes, or use a larger machine."
        )


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


def save_model(model: "PreTrainedModel", folder: Path, processor: dict[str, str]) -> None:
    """Save a stock model with the files of its processor; the folder appears whole or not at all."""
    with whole_folder(folder) as partial:
        # In a launch of several processes transformers writes from the first alone; here each saves what it trained.
        model.should_save_on_this_rank = lambda is_main_process: is_main_process
        try:
            model.save_pretrained(partial)
        finally:
            del model.should_save_on_this_rank
        write_processor(partial, processor)


def validation_accuracy(model: "torch.nn.Module", trip: Trip, data: TaskData | None = None) -> float:
    """Share of the validation items that get their class, in `data` or else as sub-models read them."""
    model.eval()
    data = trip.data if data is None else data
    batches = iterate_batches(data.validation, trip.recipe.evaluate.batch_size)
    return evaluate(torch_predict(model), batches, num_labels=len(data.label_names)).accuracy


def write_processor(folder: Path, processor: dict[str, str]) -> None:
    """Write the files of an image processor, feature extractor or tokenizer: file name -> text."""
    for name, text in processor.items():
        (folder / name).write_text(text, encoding="utf-8")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one array as safetensors, by write-then-rename."""
    save_arrays(path, {"array": array})


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name as safetensors, by write-then-rename."""
    with whole_file(path) as partial:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)


def load_array(path: Path) -> np.ndarray:
    """Read an array written by `save_array`."""
    return load_file(path)["array"]


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished training."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
