# SPDX-License-Identifier: Apache-2.0
"""Load a classification task: rows become splits of pixels, spectrograms or tokens, with the models' processor."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.data.audio_split import AudioSplit
from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.columns import KINDS
from edvit_hf.data.config import DatasetConfig, as_json
from edvit_hf.data.decoding import DecodedOnAccess, RowsToDecode
from edvit_hf.data.image_split import ImageSplit
from edvit_hf.data.modalities import AudioConfig, TextConfig
from edvit_hf.data.roles import Role, choose_roles
from edvit_hf.data.sources import open_splits
from edvit_hf.data.split import ArrayStore, Split, Store
from edvit_hf.data.text_split import TextSplit, TokenStore
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task
from edvit_hf.transforms import AudioTransform, ImageTransform

logger = logging.getLogger(__name__)

_TOGETHER = 256  # rows looked at together


# Splits by role, files of the stock processor, and what only a tokenizer has: `vocab_size` and `pad_token_id`.
_Built = tuple[dict[str, Any], dict[str, str], dict[str, Any]]


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
    """Load, check and (where it fits in RAM) decode a dataset; equal for equal arguments and data.

    Args:
        config: Where it is and how it is split.
        augmentation: Of the training split's numbered views.
        task: What the inputs are.
        processor_dir: Texts: a folder whose tokenizer is used (a teacher's); None trains one.

    Raises:
        DataError: Whatever is not as described: a missing dataset, split or column, a label that is no class, training
            rows of a single class (damaged ones not counted), an item that cannot be decoded, a section or an
            augmentation of another task.
        MissingExtraError: An optional package is not installed.
    """
    config.check_task(task)
    augmentation.check_task(task)
    label_names, roles = choose_roles(config, open_splits(config, task))
    _refuse_one_class(roles["train"].labels, roles["train"].unlabelled)
    request = SplitRequest(config, task, roles, augmentation, processor_dir)
    splits, processor, tokens = _BUILDERS[task](request)
    skipped = {name: role.unlabelled + len(role.rows) - len(splits[name]) for name, role in roles.items()}
    if any(skipped.values()):
        logger.warning("data: skipped rows of %s: %s", config.path, ", ".join(f"{k} {v}" for k, v in skipped.items()))
    _refuse_one_class(splits["train"].labels, skipped["train"])  # damaged rows may have been all of a class
    _warn_of_empty_classes(config, splits["train"].labels, label_names)
    return TaskData(label_names=label_names, processor=processor, task=task, skipped=skipped, **splits, **tokens)


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
        counts, names = (len(unseen), len(label_names)), ", ".join(unseen[:10])
        logger.warning("data: %d of %d classes have no training row in %s: %s", *counts, config.path, names)


@dataclass(frozen=True)
class SplitRequest:
    """What the splits of a task are built from; `augmentation` is of the training rows, the others have none."""

    config: DatasetConfig
    task: Task
    roles: dict[str, Role]
    augmentation: Augmentation
    processor_dir: Path | None = None

    def wanted(self) -> Iterator[tuple[str, RowsToDecode]]:
        """Each role with the rows that it wants decoded."""
        for name, role in self.roles.items():
            yield name, RowsToDecode(name, role.split, role.rows, KINDS[self.task], self.config.on_error)

    def options(self, name: str, kept: np.ndarray) -> dict[str, Any]:
        """Arguments that all splits take, for the rows of a role that are whole."""
        role = self.roles[name]
        return {
            "labels": role.labels[np.isin(role.rows, kept, assume_unique=True)],
            "augmentation": self.augmentation if name == "train" else Augmentation(),
            "seed": self.config.seed,
        }


def _images(request: SplitRequest) -> _Built:
    """Images: resized RGB bytes, normalised when they are read.

    Raises:
        DataError: An image that cannot be decoded with `on_error` "raise", or none that can.
    """
    config = request.config
    shape = (3, config.image_size, config.image_size)
    transform = ImageTransform(size=shape[1:], mean=config.mean, std=config.std)

    def decode(source: Any) -> np.ndarray:
        return transform.pixels(source).transpose(2, 0, 1)

    splits: dict[str, Any] = {}
    for name, want in request.wanted():
        cache, kept = want.cache(shape, np.uint8, decode)
        store: Store
        store = DecodedOnAccess(want, kept, shape, np.uint8, decode) if cache is None else ArrayStore(_grey(cache))
        splits[name] = ImageSplit(store, mean=config.mean, std=config.std, **request.options(name, kept))
    return splits, {"preprocessor_config.json": as_json(config.preprocessor())}, {}


def _grey(pixels: np.ndarray) -> np.ndarray:
    """One channel where all images are grey: a third of the memory and of the augmentation's time."""
    for start in range(0, len(pixels), _TOGETHER):
        part = pixels[start : start + _TOGETHER]
        if (part[:, 0] != part[:, 1]).any() or (part[:, 0] != part[:, 2]).any():
            return pixels
    return np.ascontiguousarray(pixels[:, :1])


def _sounds(request: SplitRequest) -> _Built:
    """Sounds: normalised log-mel features.

    Raises:
        DataError: A sound that cannot be decoded with `on_error` "raise", or none that can.
    """
    audio = request.config.audio or AudioConfig()
    transform = AudioTransform.from_preprocessor(audio.preprocessor())
    shape = (audio.max_length, audio.num_mel_bins)

    def decode(source: Any) -> np.ndarray:
        return transform.features(transform.waveform(source))

    splits: dict[str, Any] = {}
    for name, want in request.wanted():
        cache, kept = want.cache(shape, np.float32, decode)
        store: Store
        store = DecodedOnAccess(want, kept, shape, np.float32, decode) if cache is None else ArrayStore(cache)
        splits[name] = AudioSplit(store, mean=audio.mean, std=audio.std, **request.options(name, kept))
    return splits, {"preprocessor_config.json": as_json(audio.preprocessor())}, {}


def _texts(request: SplitRequest) -> _Built:
    """Texts: token ids. The tokenizer is the one in `processor_dir`, or learnt from the training rows alone.

    Raises:
        DataError: An empty cell with `on_error` "raise", no text at all, or a damaged tokenizer.
    """
    from edvit_hf.data.tokenizer import read_tokenizer, special_tokens_of, train_tokenizer, transform_of

    config = request.config
    texts = {name: dict(want.decoded(_text)) for name, want in request.wanted()}
    if request.processor_dir is not None:
        transform, files = read_tokenizer(request.processor_dir, config.text)
    else:
        files = train_tokenizer(list(texts["train"].values()), config.text or TextConfig())
        transform = transform_of(files)
    special = special_tokens_of(files, transform)
    splits: dict[str, Any] = {}
    for name, by_row in texts.items():
        values, kept = list(by_row.values()), np.fromiter(by_row, np.int64, len(by_row))
        parts = (transform.encode(values[start : start + _TOGETHER]) for start in range(0, len(values), _TOGETHER))
        store = TokenStore(row for part in parts for row in part)
        splits[name] = TextSplit(store, special=special, raw=values, **request.options(name, kept))
    return splits, files, {"vocab_size": transform.vocab_size, "pad_token_id": transform.pad_id}


def _text(source: Any) -> str:
    if not isinstance(source, str):
        raise DataError(f"Expected a text, got {type(source).__name__}. A tokenizer reads strings only. Decode it.")
    return source


_BUILDERS: dict[Task, Callable[[SplitRequest], _Built]] = {
    "image-classification": _images,
    "audio-classification": _sounds,
    "text-classification": _texts,
}
