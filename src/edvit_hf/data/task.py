"""Load a classification task: splits, label names and the processor of its models."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.building import BUILDERS, SplitRequest
from edvit_hf.data.config import DatasetConfig
from edvit_hf.data.roles import choose_roles
from edvit_hf.data.sources import open_splits
from edvit_hf.data.split import Split
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """A loaded task.

    Attributes:
        label_names: One per class id.
        train: Training rows; the only split with augmentation.
        validation: For choices made during training.
        test: For the reported figures only.
        processor: Files of the stock processor: name -> text.
        task: Kind of classification.
        skipped: Role ("train", "validation", "test") -> rows skipped as damaged or without a label.
        vocab_size: Entries of the tokenizer; None without one.
        pad_token_id: Id of its padding; None without one.
    """

    label_names: list[str]
    train: Split
    validation: Split
    test: Split
    processor: dict[str, str]
    task: Task = "image-classification"
    skipped: dict[str, int] = field(default_factory=dict)
    vocab_size: int | None = None
    pad_token_id: int | None = None


def load_task(
    config: DatasetConfig,
    augmentation: Augmentation,
    *,
    task: Task = "image-classification",
    processor_dir: Path | None = None,
) -> TaskData:
    """Load, check and (where it fits in RAM) decode a dataset.

    Args:
        config (`DatasetConfig`): Where it is and how it is split.
        augmentation (`Augmentation`): Of the training split's numbered views.
        task (`Task`): What the inputs are.
        processor_dir (`Path`): Texts: a folder whose tokenizer is used (a teacher's); None trains one.

    Returns:
        `TaskData`: Equal for equal arguments and data.

    Raises:
        DataError: Whatever is not as described: a missing dataset, split or column, a label that is no class,
            training rows of a single class (damaged ones not counted), an item that cannot be decoded, a section or an
            augmentation of another task.
        MissingExtraError: An optional package is not installed.
    """
    config.check_task(task)
    augmentation.check_task(task)
    label_names, roles = choose_roles(config, open_splits(config, task))
    _refuse_one_class(roles["train"].labels, roles["train"].unlabelled)
    built = BUILDERS[task](SplitRequest(config, task, roles, augmentation, processor_dir))
    skipped = {name: role.unlabelled + len(role.rows) - len(built.splits[name]) for name, role in roles.items()}
    if any(skipped.values()):
        logger.warning("data: skipped rows of %s: %s", config.path, ", ".join(f"{k} {v}" for k, v in skipped.items()))
    _refuse_one_class(built.splits["train"].labels, skipped["train"])  # damaged rows may have been all of a class
    _warn_of_empty_classes(config, built.splits["train"].labels, label_names)
    return TaskData(
        label_names=label_names,
        train=built.splits["train"],
        validation=built.splits["validation"],
        test=built.splits["test"],
        processor=built.processor,
        task=task,
        skipped=skipped,
        vocab_size=built.vocab_size,
        pad_token_id=built.pad_token_id,
    )


def _refuse_one_class(train_ids: np.ndarray, num_skipped: int) -> None:
    num_seen = len(np.unique(train_ids))
    if num_seen < 2:
        skipped, repair = (f" ({num_skipped} skipped)", "Repair the skipped rows, r") if num_skipped else ("", "R")
        raise DataError(
            f"Expected training rows of at least two classes, got {len(train_ids)} row(s) of {num_seen}{skipped}. "
            f"There is nothing to tell apart. {repair}aise `max_train_samples` or lower `validation_fraction`."
        )


def _warn_of_empty_classes(config: DatasetConfig, train_ids: np.ndarray, label_names: list[str]) -> None:
    seen = np.unique(train_ids)
    unseen = [label_names[index] for index in range(len(label_names)) if index not in seen]
    if unseen:
        logger.warning(
            "data: %d of %d classes have no training row in %s: %s",
            len(unseen),
            len(label_names),
            config.path,
            ", ".join(unseen[:10]),
        )
