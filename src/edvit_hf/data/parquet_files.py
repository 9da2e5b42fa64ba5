# SPDX-License-Identifier: Apache-2.0
"""Read parquet files of a folder by their literal names into one `datasets` table per set of equal columns."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.data_files import DataFilesDict, DataFilesList

from edvit_hf.data.columns import input_column, is_value
from edvit_hf.data.config import DatasetConfig
from edvit_hf.data.literal_parquet import LiteralParquet, plain
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task


def open_parquet(files: Sequence[Path], *, streaming: bool) -> list[Any]:
    """Open the files of one split, in order: neighbours with the same columns together.

    What class ids mean stands in each file, so that files which declare other names are not joined here. The rows lie
    in the cache of `datasets`, which is made anew when a file changes.
    """
    found = []
    for features, group in groupby([(_features(file), file) for file in files], key=lambda pair: pair[0]):
        paths = [str(file) for _, file in group]
        marks = [tuple(str(value) for value in _state(path)) for path in paths]
        listed = DataFilesDict({"rows": DataFilesList(paths, marks)})
        if not sum(pq.read_metadata(path).num_rows for path in paths):
            found.append(datasets.Dataset.from_dict({name: [] for name in features}, features=features))
            continue
        builder = LiteralParquet(data_files=listed, features=features)
        if streaming:
            found.append(builder.as_streaming_dataset(split="rows"))
        else:
            builder.download_and_prepare()
            found.append(builder.as_dataset(split="rows"))
    return found


def paths_in(file: Path, config: DatasetConfig, task: Task) -> list[str]:
    """The file names in the column of the inputs, whether or not bytes lie beside them."""
    features = _features(file)
    column = config.input_column or input_column(features, config.label_column, task)
    feature = features.get(column)
    if feature is None or is_value(feature, r"(large_)?binary"):
        return []
    names = column if is_value(feature, r"(large_)?string") else f"{column}.path"
    table = pq.read_table(file, columns=[names]).flatten()
    return [name for name in table.column(0).to_pylist() if name] if table.num_columns else []


def _features(file: Path) -> Any:
    try:
        return datasets.Features.from_arrow_schema(plain(pq.read_schema(file)))
    except (OSError, ValueError, NotImplementedError) as error:  # of pyarrow and datasets, on damaged or odd files
        raise DataError(
            f"Expected a readable dataset in {file.parent}, got the file {file.name}, whose columns cannot be read: "
            f"{error}. Its rows would be missing. Fetch the file again or remove it."
        ) from error


def _state(file: str) -> tuple[int, int, int, int]:
    found = Path(file).stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
