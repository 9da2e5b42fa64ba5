# SPDX-License-Identifier: Apache-2.0
"""Find a dataset (embedded, local folders, Hub) and open its splits without decoding an input yet."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edvit_hf.data.agreement import agreed, by_name
from edvit_hf.data.columns import RawSplit, raw_split
from edvit_hf.data.config import BUILDERS, EMBEDDED_DATASET, FOLDER_BUILDERS, DatasetConfig
from edvit_hf.data.listing import list_folder
from edvit_hf.data.loading_errors import NoSplitError, load_error, no_split
from edvit_hf.data.local import LocalData, first_rows
from edvit_hf.data.split import ArrayStore
from edvit_hf.data.subsets import stratified_split
from edvit_hf.errors import DataError, MissingExtraError
from edvit_hf.strict import is_folder
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)


def open_splits(
    config: DatasetConfig, task: Task = "image-classification", *, only: Sequence[str] | None = None
) -> dict[str, RawSplit]:
    """Open the training split and, where they are named, the test and the validation split; or the `only` ones.

    Class ids of the splits mean what they mean in the training split, whatever order a file declares its names in.

    Raises:
        DataError: The dataset, a split or a column is missing, a column has an unfit type, or a split has classes that
            the training split does not know.
    """
    named = (config.train_split, config.test_split, config.validation_split) if only is None else only
    wanted = [name for name in named if name is not None]
    opened: dict[str, RawSplit] = {}
    if config.test_data_dir is not None and config.test_split in wanted:
        apart = LocalData([_existing(config.test_data_dir, "test_data_dir")], config, task)
        test = dataclasses.replace(apart.open(apart.single or config.test_split), name=config.test_split)
        knows_order = config.train_split in wanted or config.label_names is not None
        opened[config.test_split] = test if knows_order else by_name(test)
    rest = [name for name in wanted if name not in opened]
    folders = _folders(config) if rest else []  # the test rows alone may lie apart, where no others are
    if not rest:
        pass
    elif config.path == EMBEDDED_DATASET and not folders:
        opened |= _open_digits(config, task)
    elif folders:
        local = LocalData(folders, config, task)
        opened |= {name: local.open(name) for name in rest}
    else:
        opened |= _open_hub(config, task, rest)
    if config.train_split in opened:
        return agreed(opened, config.train_split, config.label_names)
    if config.label_names is not None and any(split.class_names is not None for split in opened.values()):
        # New names stand in the order of the training split's ids, which another split may declare otherwise.
        with contextlib.suppress(NoSplitError):
            whole = open_splits(config, task, only=[*wanted, config.train_split])
            return {name: whole[name] for name in wanted}
    return opened


def local_folders(config: DatasetConfig) -> list[Path]:
    """The local folders that a dataset is read from, in the order of their rows; none where it comes from elsewhere.

    Raises:
        DataError: A folder that is named does not exist.
    """
    test = [] if config.test_data_dir is None else [_existing(config.test_data_dir, "test_data_dir")]
    return [*_folders(config), *test]


def local_files(config: DatasetConfig) -> list[Path]:
    """Every file of the folders of `local_folders`, each below one of them, sorted; hidden and foreign ones left out.

    Raises:
        DataError: A folder does not exist or cannot be read.
    """
    return [folder / name for folder in local_folders(config) for name in list_folder(folder).files]


def files_elsewhere(config: DatasetConfig, task: Task) -> list[Path]:
    """The files outside of `local_folders` that tables name by whole paths, sorted.

    What is not there is left out, and so are tables that cannot be read: whoever opens the splits is told of both.

    Raises:
        DataError: A folder does not exist.
    """
    splits = [name for name in (config.train_split, config.test_split, config.validation_split) if name is not None]
    folders = local_folders(config)
    if not folders or task == "text-classification" or config.path in FOLDER_BUILDERS.values():
        return []
    try:
        named = {Path(path) for path in LocalData(folders, config, task).whole_paths(splits)}
    except (DataError, OSError, ValueError) as error:
        logger.debug("data: no table is looked at for paths: %s", error)
        return []
    inside = [folder.absolute() for folder in folders]
    return sorted(p for p in named if not any(p.is_relative_to(folder) for folder in inside) and p.is_file())


def _folders(config: DatasetConfig) -> list[Path]:
    """The folders that replace the Hub, if there are some: EDVIT_DATA_DIR first, then `data_dir`."""
    root = os.environ.get("EDVIT_DATA_DIR")
    if root and config.local_name:
        folder = _without_tilde(root, "EDVIT_DATA_DIR") / config.local_name
        if folder.is_dir():
            logger.info("data: reading %s (EDVIT_DATA_DIR is set)", folder)
            return [folder]
        logger.warning("data: EDVIT_DATA_DIR is set but has no folder %s; going on without it", config.local_name)
    if config.data_dir is None:
        if config.path in BUILDERS:
            raise DataError(
                f"Expected `data_dir` beside path {config.path!r}, got none: the builder has nothing to read. Set "
                "`data_dir` to a local folder, or `local_name` and the environment variable EDVIT_DATA_DIR."
            )
        is_written_as_path = Path(config.path).is_absolute() or config.path.startswith(("./", "../", "~/"))
        return [_existing(config.path, "path")] if is_written_as_path else []
    names = (config.data_dir,) if isinstance(config.data_dir, str) else config.data_dir
    folders = [_existing(name, "data_dir") for name in names]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError(
            f"Expected different folders in `data_dir`, got {', '.join(names)}, of which two are one folder. Its rows "
            "would count twice. Name each folder once."
        )
    return folders


def _existing(name: str, key: str) -> Path:
    folder = _without_tilde(name, key)
    if not is_folder(folder):
        raise DataError(f"Expected `{key}` to be an existing folder, got {name!r:.200}. Correct the path.")
    return folder


def _without_tilde(name: str, key: str) -> Path:
    """The path as it is written; only `~/` at its start stands for the home folder, and only where no `~` is there."""
    path = Path(name)
    if path.parts[:1] != ("~",) or Path("~").exists():
        return path
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DataError(
            f"Expected a home folder for `~` in `{key}`, got none: {error}. Write the whole path instead of {name!r}."
        ) from error


def _open_hub(config: DatasetConfig, task: Task, wanted: list[str]) -> dict[str, RawSplit]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"Loading the dataset {config.path!r}", "train", "datasets") from error
    if Path(config.path).exists():
        raise DataError(
            f"Expected the id of a dataset on the Hub in `path`, got {config.path!r}, which is also a file or folder "
            f"here. Which of them is meant is not known. For the folder, write one of {', '.join(BUILDERS)} as `path` "
            f"and {config.path!r} as `data_dir`, or './{config.path}' as `path`; for the Hub, run where no such folder "
            "is."
        )
    try:
        splits = datasets.load_dataset(config.path, config.name, revision=config.revision, streaming=config.streaming)
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise load_error(config, None, error) from error
    for name in wanted:
        if name not in splits:
            raise no_split(config, name, list(splits), config.path)
    return {name: raw_split(name, first_rows(splits[name], name, config, task), config, task, None) for name in wanted}


def _open_digits(config: DatasetConfig, task: Task) -> dict[str, RawSplit]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("The embedded digits dataset", "train", "scikit-learn") from error
    if task != "image-classification":
        raise DataError(f"The embedded digits are images, got the task {task}. Name another dataset in `path`.")
    if config.validation_split is not None:
        raise DataError("The embedded digits have no validation split. Leave `validation_split` out.")
    if config.has_groups:
        raise DataError("The embedded digits do not say who wrote them. Leave `group_column` and `group_pattern` out.")
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 16 grey levels to 8 bits
    labels = digits.target.astype(np.int64)
    parts = {config.train_split: np.arange(len(labels))}
    if config.test_split is not None:
        train, test = stratified_split(labels, config.test_fraction, seed=(config.seed, 0))
        parts = {config.train_split: train, config.test_split: test}
    names = [str(digit) for digit in range(10)]
    return {
        name: RawSplit(name, labels[rows].tolist(), names, ArrayStore(pixels[rows])) for name, rows in parts.items()
    }
