# SPDX-License-Identifier: Apache-2.0
"""Open the splits of local folders: parquet, csv, or folders of classes; those of several folders together.

And take the first rows of what is streamed, from a folder or from the Hub.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edvit_hf.data.agreement import concatenated
from edvit_hf.data.class_folders import ClassFolders
from edvit_hf.data.columns import KINDS, Place, RawSplit, input_column, raw_split
from edvit_hf.data.config import FILE_BUILDERS, FOLDER_BUILDERS, DatasetConfig
from edvit_hf.data.loading_errors import load_error, no_split
from edvit_hf.data.tables import table_files
from edvit_hf.errors import DataError, MissingExtraError
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 10_000
"""Encoded rows from which a streamed dataset is drawn."""


class LocalData:
    """The splits of one or several folders. A split that lies in several is their rows together, in order.

    Args:
        folders: Each exists.
        config: Says how they are read.
        task: Says what the inputs are.

    Raises:
        DataError: A folder holds no files of the dataset, or it is not known which of them are which split.
    """

    def __init__(self, folders: Sequence[Path], config: DatasetConfig, task: Task) -> None:
        try:
            import datasets  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(f"Loading the dataset {config.path!r}", "train", "datasets") from error
        self._folders, self._config = folders, config
        self._readers = [_reader(config, task, folder) for folder in folders]

    @property
    def single(self) -> str | None:
        """The name of the only split, where the layout has no names of splits."""
        return next((reader.single for reader in self._readers if reader.single is not None), None)

    def open(self, split: str) -> RawSplit:
        """Open one split.

        Raises:
            DataError: It is not there, or cannot be read; or the folders have other classes.
        """
        parts = [part for reader in self._readers if split in reader.names for part in reader.open(split)]
        if not parts:
            found = sorted({name for reader in self._readers for name in reader.names})
            raise no_split(self._config, split, found, ", ".join(map(str, self._folders)))
        return parts[0] if len(parts) == 1 else concatenated(parts)

    def whole_paths(self, splits: Sequence[str]) -> set[str]:
        """The absolute paths by which tables name the inputs of these splits; a split that is not there has none."""
        return {path for reader in self._readers for split in splits for path in reader.whole_paths(split)}


class _Classes:
    """A reader of class folders."""

    def __init__(self, config: DatasetConfig, task: Task, folder: Path) -> None:
        self._config, self._task, self._place = config, task, Place(folder, folder, is_listed=True)
        self._found = ClassFolders(folder, task)
        self.names = self._found.names
        self.single = self._found.names[0] if self._found.is_one_split else None

    def open(self, split: str) -> list[RawSplit]:
        rows = _limited(self._found.open(split), split, self._config)
        return [raw_split(split, rows, self._config, self._task, self._place)]

    def whole_paths(self, split: str) -> list[str]:
        return []


class _Tables:
    """A reader of parquet or csv files."""

    single = None

    def __init__(
        self, config: DatasetConfig, task: Task, folder: Path, builder: str, files: dict[str, list[Path]]
    ) -> None:
        self._config, self._task, self._folder = config, task, folder
        self._builder, self._files = builder, files
        self.names = list(files)

    def open(self, split: str) -> list[RawSplit]:
        import datasets

        files, config, task = self._files[split], self._config, self._task
        place = Place(self._folder, files[0].parent)
        try:
            if self._builder == "csv":
                from edvit_hf.data.csv_files import open_csv

                table, config = open_csv(files, config, task)
                return [raw_split(split, _limited(table, split, config), config, task, place)]
            from edvit_hf.data.parquet_files import open_parquet

            tables = open_parquet(files, streaming=config.streaming)
            rows = [first_rows(table, split, config, task, self._folder) for table in tables]
            return [raw_split(split, part, config, task, place) for part in rows]
        except DataError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
            raise load_error(config, self._folder, error) from error

    def whole_paths(self, split: str) -> list[str]:
        if self._task == "text-classification":
            return []
        files, config, task = self._files.get(split, []), self._config, self._task
        if files and self._builder == "csv":
            from edvit_hf.data.csv_files import open_csv

            table, config = open_csv(files, config, task)
            column = config.input_column
            found = [path for path in table[column] if path] if column in table.column_names else []
        else:
            from edvit_hf.data.parquet_files import paths_in

            found = [path for file in files for path in paths_in(file, config, task)]
        return [path for path in found if Path(path).is_absolute()]


def _reader(config: DatasetConfig, task: Task, folder: Path) -> Any:
    """The reader of a folder: the one that `path` names, or for a Hub id the first whose files are there."""
    folders = FOLDER_BUILDERS.get(task)
    if config.path in FOLDER_BUILDERS.values():
        if config.path != folders:
            raise DataError(
                f"Expected {f'path {folders!r}' if folders else 'parquet or csv files'} for the task {task}, got path "
                f"{config.path!r}. Its files are of another kind. Correct `path` or `task`."
            )
        return _Classes(config, task, folder)
    candidates = [config.path] if config.path in FILE_BUILDERS else ["parquet"] if folders else list(FILE_BUILDERS)
    for builder in candidates:
        files = table_files(folder, builder)
        if files:
            return _Tables(config, task, folder, builder, files)
    if folders and config.path not in FILE_BUILDERS:
        return _Classes(config, task, folder)
    raise DataError(
        f"Expected {' or '.join(candidates)} files named like train.{candidates[0]} or "
        f"train-00000-of-00001.{candidates[0]} in {folder}, got none. Correct `data_dir`"
        f"{f', or use path {folders!r} for folders of {KINDS[task]} files' if folders else ''}."
    )


def _limited(rows: Any, split: str, config: DatasetConfig) -> Any:
    """With `streaming`, so many rows at random as are taken from a stream; files that lie here need no stream."""
    limit = config.max_train_samples if split == config.train_split else config.max_test_samples
    if not config.streaming or limit is None or limit >= len(rows):
        return rows
    return rows.shuffle(seed=config.seed).select(range(limit))


def first_rows(rows: Any, name: str, config: DatasetConfig, task: Task, folder: Path | None = None) -> Any:
    """Take the first rows of a shuffled stream into RAM, undecoded; what is no stream stays as it is."""
    import datasets

    if not isinstance(rows, datasets.IterableDataset):
        return rows
    try:
        features = rows.features or datasets.Dataset.from_list(list(rows.take(100))).features  # csv: known when read
        column = config.input_column or input_column(features, config.label_column, task)
        # Audio as plain bytes: the feature would ask for the package that decodes it even where it does not decode.
        struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        for kind, plain in ((datasets.Image, datasets.Image(decode=False)), (datasets.Audio, struct)):
            if isinstance(features.get(column), kind):
                rows = rows.cast_column(column, plain)
                features = datasets.Features({**features, column: plain})
        limit = config.max_train_samples if name == config.train_split else config.max_test_samples
        taken = list(rows.shuffle(seed=config.seed, buffer_size=SHUFFLE_BUFFER).take(limit))
        return datasets.Dataset.from_list(taken, features=features)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise load_error(config, folder, error) from error
