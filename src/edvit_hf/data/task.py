# SPDX-License-Identifier: Apache-2.0
"""Load a classification task: rows become splits of pixels, spectrograms or tokens, with the models' processor."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.data.audio_split import AudioSplit
from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.columns import KINDS
from edvit_hf.data.config import DatasetConfig, as_json
from edvit_hf.data.contents import fingerprint, input_digests
from edvit_hf.data.decoding import DecodedOnAccess, RowsToDecode
from edvit_hf.data.image_split import ImageSplit
from edvit_hf.data.labels import HIDDEN, same_classes
from edvit_hf.data.modalities import TextConfig
from edvit_hf.data.overlap import without_shared
from edvit_hf.data.processors import processor_of
from edvit_hf.data.roles import ROLES, Role, choose_roles, choose_test, needed_for_test
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
        input_sizes: What the inputs demand of a stock config: key -> value.
        vocab_size: Entries of the tokenizer; None without one.
        pad_token_id: Id of its padding; None without one.
        roles: Where the rows of each role come from.
        dropped: Role -> rows left out because they are rows of another role, too (`on_overlap: drop`).
        kept_pieces: (K,) ids of the pieces that were kept of a larger vocabulary; None of a whole one.
    """

    label_names: list[str]
    train: Split
    validation: Split
    test: Split
    processor: dict[str, str]
    task: Task = "image-classification"
    skipped: dict[str, int] = field(default_factory=dict)
    input_sizes: dict[str, Any] = field(default_factory=dict)
    vocab_size: int | None = None
    pad_token_id: int | None = None
    roles: dict[str, Role] = field(default_factory=dict, repr=False)
    dropped: dict[str, int] = field(default_factory=dict)
    kept_pieces: np.ndarray | None = field(default=None, repr=False)

    def fingerprint(self, role: str) -> str:
        """What says whose figures a measurement on the rows of a role is; see `data.contents`."""
        return _fingerprint(self.roles[role], self.label_names, self.task)

    def numbered_as(self, label_names: Sequence[str]) -> "TaskData":
        """The same rows with the class ids of a model's names: classes are told by name.

        Raises:
            DataError: The names are not the same ones, whatever their order.
        """
        order = same_classes(self.label_names, label_names, "data")
        changed: dict[str, Any] = {name: copy.copy(getattr(self, name)) for name in ROLES}
        roles = {name: copy.copy(role) for name, role in self.roles.items()}
        for split in changed.values():
            split.labels = order[split.labels]
        for role in roles.values():
            role.ids = np.where(role.ids == HIDDEN, HIDDEN, order[role.ids])
        return dataclasses.replace(self, label_names=list(label_names), roles=roles, **changed)


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
        processor_dir: Folder of a model, whose processor prepares the inputs: the values of `config` that say how must
            agree with it, those that are None follow it. A folder without an image processor or a feature extractor
            leaves it to `config`. None does, too, and trains a tokenizer.

    Raises:
        DataError: Whatever is not as described: a missing dataset, split or column, a label that is no class, training
            rows of a single class (damaged ones not counted), an item that cannot be decoded, a section or an
            augmentation of another task, a processor that cannot be followed or that says otherwise than `config`.
        MissingExtraError: An optional package is not installed.
    """
    config.check_task(task)
    augmentation.check_task(task)
    label_names, roles = choose_roles(config, open_splits(config, task))
    dropped = without_shared(roles, task) if config.on_overlap == "drop" else {}
    if any(dropped.values()):
        logger.warning("data: left out as rows of another role, too: %s", dropped)
    _refuse_one_class(roles["train"].labels, roles["train"].unlabelled)
    request = SplitRequest(config, task, roles, augmentation, processor_dir)
    splits, processor, more = _BUILDERS[task](request)
    skipped = {name: role.unlabelled + len(role.rows) - len(splits[name]) for name, role in roles.items()}
    if any(skipped.values()):
        logger.warning("data: skipped rows of %s: %s", config.path, ", ".join(f"{k} {v}" for k, v in skipped.items()))
    _refuse_one_class(splits["train"].labels, skipped["train"])  # damaged rows may have been all of a class
    _warn_of_empty_classes(config, splits["train"].labels, label_names)
    facts: dict[str, Any] = {"label_names": label_names, "skipped": skipped, "roles": roles, "dropped": dropped}
    return TaskData(processor=processor, task=task, **facts, **splits, **more)


@dataclass(frozen=True)
class TestData:
    """The test rows of a dataset, prepared and numbered as a finished model takes them.

    Attributes:
        label_names: Of the model, one per class id.
        test: The rows.
        skipped: How many were left out as damaged or without a label.
        role: Where they come from.
        task: What the inputs are.
    """

    __test__ = False  # pytest would take the name for a test

    label_names: list[str]
    test: Split
    skipped: int
    role: Role
    task: Task

    @property
    def fingerprint(self) -> str:
        """What says whose figures a measurement on these rows is; see `data.contents`."""
        return _fingerprint(self.role, self.label_names, self.task)


def _fingerprint(role: Role, label_names: Sequence[str], task: Task) -> str:
    labels = [label_names[label] for label in role.labels]
    return fingerprint(input_digests(role.split.items, role.rows, task), labels)


def load_test(config: DatasetConfig, *, task: Task, label_names: Sequence[str], processor_dir: Path) -> TestData:
    """Load the test rows alone, for a finished model: no training rows need be there unless test rows are among them.

    Args:
        config: Where they are. What it says of preparing inputs is not read: the model's own processor prepares them.
        task: What the inputs are.
        label_names: Of the model, by class id; the data's classes are told by name.
        processor_dir: Folder of the model.

    Raises:
        DataError: As `load_task`, or the data have other classes.
    """
    plain = config.as_the_model()
    role = choose_test(plain, open_splits(plain, task, only=needed_for_test(plain)), list(label_names))
    splits, _, _ = _BUILDERS[task](SplitRequest(plain, task, {"test": role}, Augmentation(), processor_dir, True))
    skipped = role.unlabelled + len(role.rows) - len(splits["test"])
    return TestData(label_names=list(label_names), test=splits["test"], skipped=skipped, role=role, task=task)


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
    """What the splits of a task are built from; `augmentation` is of the training rows, the others have none.

    `is_finished` says that the model in `processor_dir` brings its processor in any case.
    """

    config: DatasetConfig
    task: Task
    roles: dict[str, Role]
    augmentation: Augmentation
    processor_dir: Path | None = None
    is_finished: bool = False

    def processor(self) -> tuple[ImageTransform | AudioTransform, dict[str, str]]:
        """How images or sounds are prepared, and the file that says so, name -> text; see `processor_of`."""
        transform, values = processor_of(self.config, self.task, self.processor_dir, is_required=self.is_finished)
        return transform, {"preprocessor_config.json": as_json(values)}

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
    transform, files = request.processor()
    assert isinstance(transform, ImageTransform)
    assert transform.size is not None
    shape, normalisation = (3, *transform.size), _of_scaled_pixels(transform)

    def decode(source: Any) -> np.ndarray:
        return transform.pixels(source).transpose(2, 0, 1)

    splits: dict[str, Any] = {}
    for name, want in request.wanted():
        cache, kept = want.cache(shape, np.uint8, decode)
        store: Store
        store = DecodedOnAccess(want, kept, shape, np.uint8, decode) if cache is None else ArrayStore(_grey(cache))
        splits[name] = ImageSplit(store, **normalisation, **request.options(name, kept))
    side = shape[1] if shape[1] == shape[2] else list(shape[1:])
    return splits, files, {"input_sizes": {"image_size": side}}


def _of_scaled_pixels(transform: ImageTransform) -> dict[str, Any]:
    """Mean and standard deviation for pixels scaled to 0..1, whatever the processor's own scale."""
    scale = 255 * (1.0 if transform.rescale_factor is None else transform.rescale_factor)
    mean, std = transform.mean or (0.0, 0.0, 0.0), transform.std or (1.0, 1.0, 1.0)
    return {"mean": tuple(value / scale for value in mean), "std": tuple(value / scale for value in std)}


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
    transform, files = request.processor()
    assert isinstance(transform, AudioTransform)
    shape = (transform.max_length, transform.num_mel_bins)
    # Of what is not normalised, twice half is one.
    mean, std = (transform.mean, transform.std) if transform.do_normalize else (0.0, 0.5)

    def decode(source: Any) -> np.ndarray:
        return transform.features(transform.waveform(source))

    splits: dict[str, Any] = {}
    for name, want in request.wanted():
        cache, kept = want.cache(shape, np.float32, decode)
        store: Store
        store = DecodedOnAccess(want, kept, shape, np.float32, decode) if cache is None else ArrayStore(cache)
        splits[name] = AudioSplit(store, mean=mean, std=std, **request.options(name, kept))
    sizes = {"max_length": transform.max_length, "num_mel_bins": transform.num_mel_bins}
    return splits, files, {"input_sizes": sizes}


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
        files = train_tokenizer(list(texts["train"].values()), (config.text or TextConfig()).filled())
        transform = transform_of(files)
    special = special_tokens_of(files, transform)
    splits: dict[str, Any] = {}
    for name, by_row in texts.items():
        values, kept = list(by_row.values()), np.fromiter(by_row, np.int64, len(by_row))
        parts = (transform.encode(values[start : start + _TOGETHER]) for start in range(0, len(values), _TOGETHER))
        store = TokenStore(row for part in parts for row in part)
        splits[name] = TextSplit(store, special=special, raw=values, **request.options(name, kept))
    sizes = {"vocab_size": transform.vocab_size, "max_position_embeddings": transform.max_length}
    more = {"vocab_size": transform.vocab_size, "pad_token_id": transform.pad_id, "input_sizes": sizes}
    return splits, files, more


def _text(source: Any) -> str:
    if not isinstance(source, str):
        raise DataError(f"Expected a text, got {type(source).__name__}. A tokenizer reads strings only. Decode it.")
    return source


_BUILDERS: dict[Task, Callable[[SplitRequest], _Built]] = {
    "image-classification": _images,
    "audio-classification": _sounds,
    "text-classification": _texts,
}
