"""Find a dataset (embedded, local folder, Hub) and open its splits without decoding an image yet."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edvit_hf.data.config import EMBEDDED_DATASET, DatasetConfig
from edvit_hf.data.subsets import stratified_split
from edvit_hf.errors import DataError, MissingExtraError

logger = logging.getLogger(__name__)

_BUILDERS = ("parquet", "imagefolder")


class RawImages(Protocol):
    """Images of a split as they came: encoded bytes, paths or arrays."""

    def read(self, rows: np.ndarray) -> list[Any]:
        """Return what `transforms.open_image` takes, one per row; None for a row without an image."""
        ...


@dataclass(frozen=True)
class RawSplit:
    """One split before decoding.

    Attributes:
        name: Of the split.
        labels: One per row: int, str, bool or None.
        class_names: Names behind integer labels, where the dataset declares them.
        images: One per row.
    """

    name: str
    labels: list[Any]
    class_names: list[str] | None
    images: RawImages


def open_splits(config: DatasetConfig) -> dict[str, RawSplit]:
    """Open the training, the test and (if one is named) the validation split.

    Raises:
        DataError: The dataset, a split or a column is missing, or a column has an unfit type.
    """
    folder = _local_folder(config)
    if config.path == EMBEDDED_DATASET and folder is None:
        return _open_digits(config)
    splits = _load_dataset(config, folder)
    where = str(folder) if folder is not None else config.path
    wanted = [config.train_split, config.test_split]
    if config.validation_split is not None:
        wanted.append(config.validation_split)
    for name in wanted:
        if name not in splits:
            raise DataError(
                f"Expected a split named {name!r} in {where}, got only: {', '.join(splits) or 'none'}. "
                "Training, validation and test rows must be told apart. "
                "Set `train_split`, `test_split` or `validation_split` to one of these."
            )
    return {name: _raw_split(name, splits[name], config) for name in wanted}


def _local_folder(config: DatasetConfig) -> Path | None:
    """Return the folder that replaces the Hub, if there is one: EDVIT_DATA_DIR first, then `data_dir`."""
    root = os.environ.get("EDVIT_DATA_DIR")
    if root and config.local_name:
        folder = Path(root).expanduser() / config.local_name
        if folder.is_dir():
            logger.info("data: reading %s (EDVIT_DATA_DIR is set)", folder)
            return folder
        logger.warning("data: EDVIT_DATA_DIR is set but has no folder %s; going on without it", config.local_name)
    if config.data_dir is None:
        if config.path in _BUILDERS:
            raise DataError(
                f"Expected `data_dir` beside path {config.path!r}, got none: the builder has nothing to "
                "read. Set `data_dir` to a local folder, or `local_name` and the environment variable "
                "EDVIT_DATA_DIR."
            )
        return None
    folder = Path(config.data_dir).expanduser()
    if not folder.is_dir():
        raise DataError(f"Expected `data_dir` to be an existing folder, got {config.data_dir!r}. Correct the path.")
    return folder


def _load_dataset(config: DatasetConfig, folder: Path | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"Loading the dataset {config.path!r}", "train", "datasets") from error
    try:
        if folder is None:
            return datasets.load_dataset(config.path, config.name, revision=config.revision)
        files = _parquet_files(folder)
        if config.path == "imagefolder" or (config.path != "parquet" and not files):
            return datasets.load_dataset("imagefolder", data_dir=str(folder))
        if not files:
            raise DataError(
                f"Expected parquet files named like train-00000-of-00001.parquet in {folder}, got none. "
                "Correct `data_dir`, or use path 'imagefolder' for folders of image files."
            )
        return datasets.load_dataset("parquet", data_files=files)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _load_error(config, folder, error) from error


def _load_error(config: DatasetConfig, folder: Path | None, error: Exception) -> DataError:
    reason = f"{error} ({error.__cause__})" if error.__cause__ is not None else str(error)
    if folder is not None:
        return DataError(
            f"Expected a readable dataset in {folder}, got: {reason}. Every file of the folder must be "
            "whole. Fetch the damaged file again or remove it."
        )
    local_name = config.local_name or "<local_name>"
    return DataError(
        f"Expected the dataset {config.path!r} from the Hub, got: {reason}. "
        f"If this machine is offline, put the parquet files into a folder and either set `data_dir` to it or "
        f"call it {local_name} (`local_name`) and set the environment variable EDVIT_DATA_DIR to its parent. "
        "If not, check the id, `name` and `revision`, and whether the dataset asks for a login or runs a "
        "loading script (no longer supported)."
    )


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """Group parquet files by split, the name's part before the first hyphen or dot."""
    files: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        split = re.sub(r"\W", "_", re.split(r"[-.]", path.name)[0])
        files.setdefault(split, []).append(str(path))
    return files


def _raw_split(name: str, dataset: Any, config: DatasetConfig) -> RawSplit:
    import datasets

    image_column = config.image_column or _image_column(dataset)
    for role, column in (("image", image_column), ("label", config.label_column)):
        if column not in dataset.column_names:
            raise DataError(
                f"Expected {role}s in a column named {column!r} of split {name!r}, got columns: "
                f"{', '.join(dataset.column_names)}. Set `{role}_column` to one of these."
            )
    label_feature = dataset.features[config.label_column]
    is_class_label = isinstance(label_feature, datasets.ClassLabel)
    if not is_class_label and not _is_value(label_feature, r"u?int\d+|(large_)?string|bool"):
        raise DataError(
            f"Expected one class per row in column {config.label_column!r} (class ids, integers or strings), "
            f"got {label_feature}. Multi-label and regression targets cannot be split by classes. Set "
            "`label_column`."
        )
    labels = dataset.select_columns([config.label_column]).with_format("arrow")[:][config.label_column].to_pylist()
    images = _DatasetImages(_undecoded(dataset.select_columns([image_column]), image_column))
    return RawSplit(name, labels, list(label_feature.names) if is_class_label else None, images)


def _image_column(dataset: Any) -> str:
    """`image`, or else the only column of images: the same data is published under either name."""
    import datasets

    found = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    return found[0] if len(found) == 1 and "image" not in dataset.column_names else "image"


def _undecoded(dataset: Any, column: str) -> Any:
    import datasets

    feature = dataset.features[column]
    if isinstance(feature, datasets.Image):
        return dataset.cast_column(column, datasets.Image(decode=False))
    is_file_struct = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
    if is_file_struct or _is_value(feature, r"(large_)?(binary|string)"):
        return dataset
    raise DataError(
        f"Expected images in column {column!r} (an Image feature, encoded bytes or paths), got {feature}. "
        "Set `image_column`, or store the images as encoded files."
    )


def _is_value(feature: Any, pattern: str) -> bool:
    import datasets

    return isinstance(feature, datasets.Value) and re.fullmatch(pattern, feature.dtype) is not None


class _DatasetImages:
    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._column = dataset.column_names[0]

    def read(self, rows: np.ndarray) -> list[Any]:
        values = self._dataset[rows.tolist()][self._column]
        return [_file_of(value) if isinstance(value, dict) else value for value in values]


def _file_of(value: dict[str, Any]) -> Any:
    return value["bytes"] if value["bytes"] is not None else value["path"]


class _ArrayImages:
    def __init__(self, arrays: np.ndarray) -> None:
        self._arrays = arrays

    def read(self, rows: np.ndarray) -> list[Any]:
        return list(self._arrays[rows])


def _open_digits(config: DatasetConfig) -> dict[str, RawSplit]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("The embedded digits dataset", "train", "scikit-learn") from error
    if config.validation_split is not None:
        raise DataError("The embedded digits have no validation split. Leave `validation_split` out.")
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 16 grey levels to 8 bits
    labels = digits.target.astype(np.int64)
    train, test = stratified_split(labels, config.test_fraction, seed=(config.seed, 0))
    names = [str(digit) for digit in range(10)]
    return {
        name: RawSplit(name, labels[rows].tolist(), names, _ArrayImages(pixels[rows]))
        for name, rows in ((config.train_split, train), (config.test_split, test))
    }
