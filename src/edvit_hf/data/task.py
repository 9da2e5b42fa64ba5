"""Load an image classification task: splits, label names and the preprocessor of its models."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.config import DatasetConfig
from edvit_hf.data.labels import class_ids, label_names_of
from edvit_hf.data.sources import RawImages, RawSplit, open_splits
from edvit_hf.data.split import CachedPixels, ImageSplit, PixelStore
from edvit_hf.data.subsets import stratified_split, stratified_subset
from edvit_hf.errors import DataError, MissingExtraError
from edvit_hf.transforms import ImageTransform

logger = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 1 << 30
"""A split is decoded into RAM once when its resized pixels fit in this many bytes, else on each access."""

_READ_ROWS = 512  # encoded images held in memory at a time


@dataclass(frozen=True)
class TaskData:
    """A loaded task.

    Attributes:
        label_names: One per class id.
        train: Training rows; the only split with augmentation.
        validation: For choices made during training.
        test: For the reported figures only.
        preprocessor: Content of `preprocessor_config.json`, as a stock `ViTImageProcessor` saves it.
    """

    label_names: list[str]
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    preprocessor: dict[str, Any]


def load_task(config: DatasetConfig, augmentation: Augmentation) -> TaskData:
    """Load, check and (where it fits in RAM) decode a dataset.

    Args:
        config (`DatasetConfig`): Where it is and how it is split.
        augmentation (`Augmentation`): Of the training split's numbered views.

    Returns:
        `TaskData`: Equal for equal arguments and data.

    Raises:
        DataError: Whatever is not as described: a missing dataset, split or column, a label that is no class,
            a single class, an image that cannot be decoded.
        MissingExtraError: An optional package is not installed.
    """
    raw = open_splits(config)
    label_names = label_names_of(raw[config.train_split])
    ids = {name: class_ids(split, label_names) for name, split in raw.items()}
    rows = _choose_rows(config, ids)
    _check_classes(config, ids[config.train_split][rows["train"]], label_names)

    def build(role: str, split_name: str, augmentation: Augmentation) -> ImageSplit:
        store, kept = _pixel_store(raw[split_name], rows[role], role, config)
        return ImageSplit(
            store,
            ids[split_name][kept],
            mean=config.mean,
            std=config.std,
            augmentation=augmentation,
            seed=config.seed,
        )

    off = Augmentation()
    return TaskData(
        label_names=label_names,
        train=build("train", config.train_split, augmentation),
        validation=build("validation", config.validation_split or config.train_split, off),
        test=build("test", config.test_split, off),
        preprocessor=config.preprocessor(),
    )


def _choose_rows(config: DatasetConfig, ids: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rows of each role, in the numbering of the split that they come from."""
    train, test = ids[config.train_split], ids[config.test_split]
    train_rows, test_rows = np.arange(len(train)), np.arange(len(test))
    if config.max_train_samples is not None:
        train_rows = stratified_subset(train, config.max_train_samples, seed=(config.seed, 1))
    if config.max_test_samples is not None:
        test_rows = stratified_subset(test, config.max_test_samples, seed=(config.seed, 2))
    if config.validation_split is not None:
        validation_rows = np.arange(len(ids[config.validation_split]))
    else:
        stays, carved = stratified_split(train[train_rows], config.validation_fraction, seed=(config.seed, 3))
        train_rows, validation_rows = train_rows[stays], train_rows[carved]
    rows = {"train": train_rows, "validation": validation_rows, "test": test_rows}
    for role, chosen in rows.items():
        if len(chosen) == 0:
            raise DataError(
                f"Expected rows for {role}, got none. Check the split's name, `validation_fraction` and the "
                "limits on the number of samples."
            )
    return rows


def _check_classes(config: DatasetConfig, train_ids: np.ndarray, label_names: list[str]) -> None:
    seen = np.unique(train_ids)
    if len(seen) < 2:
        raise DataError(
            f"Expected training rows of at least two classes, got {len(train_ids)} row(s) of {len(seen)}. "
            "Raise `max_train_samples` or lower `validation_fraction`."
        )
    unseen = [label_names[index] for index in range(len(label_names)) if index not in seen]
    if unseen:
        logger.warning(
            "data: %d of %d classes have no training row in %s: %s",
            len(unseen),
            len(label_names),
            config.path,
            ", ".join(unseen[:10]),
        )


def _pixel_store(split: RawSplit, rows: np.ndarray, role: str, config: DatasetConfig) -> tuple[PixelStore, np.ndarray]:
    """Decode the rows into RAM if they fit; return the store and the rows that it holds."""
    transform = ImageTransform(size=(config.image_size, config.image_size), mean=config.mean, std=config.std)
    fits = len(rows) * 3 * config.image_size**2 <= CACHE_LIMIT_BYTES
    if not fits and config.on_error == "raise":
        logger.info("data: %s: %d images are decoded on access: they do not fit into the cache", role, len(rows))
        return _DecodedOnAccess(split, rows, transform), rows
    start = time.perf_counter()
    cache = np.empty((len(rows) if fits else 1, 3, config.image_size, config.image_size), np.uint8)
    kept: list[int] = []
    bad: list[str] = []
    for row, source in _each_image(split.images, rows, f"decoding {role}"):
        try:
            pixels = _decode(transform, source, split.name, row)
        except DataError as error:
            if config.on_error == "raise":
                raise
            bad.append(str(error))
            continue
        if fits:
            cache[len(kept)] = pixels.transpose(2, 0, 1)
        kept.append(row)
    if bad:
        logger.warning("data: %s: skipped %d of %d rows; the first: %s", role, len(bad), len(rows), bad[0])
    if not kept:
        raise DataError(f"Expected images for {role}, got none: all {len(rows)} rows are damaged. The first: {bad[0]}")
    kept_rows = np.asarray(kept, np.int64)
    logger.info("data: %s: %d images decoded in %.1f s", role, len(kept), time.perf_counter() - start)
    return (CachedPixels(cache[: len(kept)]) if fits else _DecodedOnAccess(split, kept_rows, transform)), kept_rows


def _each_image(images: RawImages, rows: np.ndarray, description: str) -> Any:
    """Yield (row, source) with a progress bar on a terminal."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingExtraError("Loading a dataset", "train", "tqdm") from error
    with tqdm(total=len(rows), desc=description, unit="image", disable=None) as bar:
        for start in range(0, len(rows), _READ_ROWS):
            part = rows[start : start + _READ_ROWS]
            yield from zip(part.tolist(), images.read(part), strict=True)
            bar.update(len(part))


def _decode(transform: ImageTransform, source: Any, split_name: str, row: int) -> np.ndarray:
    try:
        if source is None:
            raise DataError("Expected an image, got an empty cell.")
        return transform.pixels(source)
    except DataError as error:
        raise DataError(f"Row {row} of split {split_name!r}: {error} Or set `on_error: skip`.") from error


class _DecodedOnAccess:
    """A `PixelStore` for splits that do not fit into RAM."""

    def __init__(self, split: RawSplit, rows: np.ndarray, transform: ImageTransform) -> None:
        self._split, self._rows, self._transform = split, rows, transform

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        source_rows = self._rows[rows]
        assert self._transform.size is not None
        result = np.empty((len(rows), 3, *self._transform.size), np.uint8)
        for index, source in enumerate(self._split.images.read(source_rows)):
            pixels = _decode(self._transform, source, self._split.name, int(source_rows[index]))
            result[index] = pixels.transpose(2, 0, 1)
        return result
