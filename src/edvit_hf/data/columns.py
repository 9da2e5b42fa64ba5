# SPDX-License-Identifier: Apache-2.0
"""Find the inputs, labels and groups among a split's columns, without decoding an input yet."""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edvit_hf.data.config import DatasetConfig
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task

KINDS: dict[Task, str] = {
    "image-classification": "image",
    "audio-classification": "audio",
    "text-classification": "text",
}
"""What an item of each task is called, and its column where none is named."""


class RawItems(Protocol):
    """Items of a split as they came: encoded bytes, paths, arrays or texts."""

    def read(self, rows: np.ndarray) -> Iterable[Any]:
        """Return what the task's transform takes, one per row; None for an empty cell."""
        ...


@dataclass(frozen=True)
class RawSplit:
    """One split before decoding.

    Attributes:
        name: Of the split.
        labels: One per row: int, str, bool or None.
        class_names: Names behind integer labels, where the dataset declares them.
        items: One per row.
        groups: Name of each row's group, None for a row that is a group of its own; None without groups.
    """

    name: str
    labels: list[Any]
    class_names: list[str] | None
    items: RawItems
    groups: list[str | None] | None = None


@dataclass(frozen=True)
class Place:
    """Where the files of a local table lie.

    Attributes:
        folder: Of the dataset. No relative path in a table leads out of it, and group patterns see what is below it.
        base: Of the table itself, to which relative paths in it are added.
        is_listed: Whether the paths are those of files that were just listed.
    """

    folder: Path
    base: Path
    is_listed: bool = False


def raw_split(name: str, dataset: Any, config: DatasetConfig, task: Task, place: Place | None) -> RawSplit:
    """Pick the columns of a `datasets.Dataset`; without a place it is not local, and paths in it are as they are.

    Raises:
        DataError: A column is missing or has an unfit type, or a relative path leads out of the dataset's folder.
    """
    import datasets

    column = config.input_column or input_column(dataset.features, config.label_column, task)
    for role, key, wanted in (
        (f"{KINDS[task]}s", "input_column", column),
        ("labels", "label_column", config.label_column),
        ("groups", "group_column", config.group_column),
    ):
        if wanted is not None and wanted not in dataset.column_names:
            raise DataError(
                f"Expected {role} in a column named {wanted!r} of split {name!r}, got columns: "
                f"{', '.join(dataset.column_names)}. Set `{key}` to one of these."
            )
    feature = dataset.features[config.label_column]
    is_class_label = isinstance(feature, datasets.ClassLabel)
    if not is_class_label and not is_value(feature, r"u?int\d+|float\d+|(large_)?string|bool|null"):
        raise DataError(
            f"Expected one class per row in column {config.label_column!r} (class ids, integers or strings), got "
            f"{feature}. Multi-label and regression targets cannot be split by classes. Set `label_column`."
        )
    labels = _values(dataset, config.label_column)
    if is_value(feature, r"float\d+"):
        labels = _whole_labels(labels, config.label_column)
    inputs = undecoded(dataset.select_columns([column]), column, task)
    class_names = list(feature.names) if is_class_label else None
    groups = _groups(name, dataset, inputs, config, place)
    base = None
    if place is not None and task != "text-classification":
        base = place.base.absolute()
        if not place.is_listed:
            _check_paths(name, inputs, place)
    return RawSplit(name, labels, class_names, _DatasetItems(inputs, base), groups)


def input_column(features: Any, label_column: str, task: Task) -> str:
    """The column called `image`, `audio` or `text`, or else the only one of that kind.

    Raises:
        DataError: Several are of that kind.
    """
    import datasets

    kind = KINDS[task]
    if kind in features:
        return kind
    wanted = {"image": datasets.Image, "audio": datasets.Audio}.get(kind)
    found = [
        name
        for name, feature in features.items()
        if name != label_column
        and (is_value(feature, r"(large_)?string") if wanted is None else isinstance(feature, wanted))
    ]
    refuse_several(found, kind)
    return found[0] if found else kind


def refuse_several(columns: list[str], kind: str) -> None:
    """Raise `DataError` where several columns may hold the inputs."""
    if len(columns) > 1:
        raise DataError(
            f"Expected one column of {kind}s, got {', '.join(columns)}. Which of them to classify is not known. Set "
            "`input_column` to it."
        )


def undecoded(dataset: Any, column: str, task: Task) -> Any:
    """The dataset with `column` left as encoded files or texts.

    Raises:
        DataError: The column holds something else.
    """
    import datasets

    feature = dataset.features[column]
    if task == "text-classification":
        if is_value(feature, r"(large_)?string"):
            return dataset
        raise DataError(f"Expected texts in column {column!r} (strings), got {feature}. Set `input_column`.")
    kind = datasets.Image if task == "image-classification" else datasets.Audio
    if isinstance(feature, kind):
        return dataset.cast_column(column, kind(decode=False))
    is_file_struct = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
    if is_file_struct or is_value(feature, r"(large_)?(binary|string)"):
        return dataset
    name = KINDS[task]
    raise DataError(
        f"Expected {name}s in column {column!r} (an {name.capitalize()} feature, encoded bytes or paths), got "
        f"{feature}. Set `input_column`, or store the {name}s as encoded files."
    )


def is_value(feature: Any, pattern: str) -> bool:
    """Whether a feature is a plain value whose type matches the whole pattern."""
    import datasets

    return isinstance(feature, datasets.Value) and re.fullmatch(pattern, feature.dtype) is not None


def _whole_labels(values: list[Any], column: str) -> list[Any]:
    """Labels of a column of floats, which is what integers with missing ones among them become in csv files.

    Raises:
        DataError: A value that is no whole number.
    """
    broken = [value for value in values if value is not None and math.isfinite(value) and value != int(value)]
    if broken:
        raise DataError(
            f"Expected one class per row in column {column!r}, got numbers like {broken[0]!r}. Regression targets "
            "cannot be split by classes. Set `label_column`."
        )
    return [None if value is None or not math.isfinite(value) else int(value) for value in values]


def _values(dataset: Any, column: str) -> list[Any]:
    values: list[Any] = dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    return values


def _groups(
    split: str, dataset: Any, inputs: Any, config: DatasetConfig, place: Place | None
) -> list[str | None] | None:
    if config.group_column is not None:
        values = _values(dataset, config.group_column)
        return [None if _is_missing(value) else _group_name(value) for value in values]
    if config.group_pattern is None:
        return None
    names = [_relative(name, place) for name in _file_names(inputs)]
    found = [None if name is None else re.search(config.group_pattern, name) for name in names]
    if names and not any(found):
        shown = next((name for name in names if name is not None), None)
        raise DataError(
            f"Expected `group_pattern` {config.group_pattern!r} to match file names of split {split!r}, got no match "
            f"among {len(names)}; {'the first: ' + repr(shown) if shown else 'the rows carry no file names'}. Without "
            "groups, related rows could lie on both sides of a split. Correct the pattern, or use `group_column`."
        )
    return [None if match is None else match.group(1) for match in found]


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _file_names(inputs: Any) -> list[str | None]:
    table = inputs.with_format("arrow")[:].flatten()  # the fields of a struct become columns
    paths = [name for name in table.column_names if name.endswith(".path")]
    if not paths and str(table.column(0).type) not in ("string", "large_string"):
        return [None] * table.num_rows
    names: list[str | None] = table.column(paths[0] if paths else 0).to_pylist()
    return names


def _group_name(value: Any) -> str:
    """A whole number among floats, which is what missing cells beside it make of it, is called as one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _relative(name: str | None, place: Place | None) -> str | None:
    """The path below the dataset's folder: where the folder lies must not decide what a pattern matches."""
    if name is None:
        return None
    path = Path(name)
    for folder in () if place is None else (place.folder.absolute(), place.folder.resolve()):
        if path.is_absolute() and path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.as_posix()


def _check_paths(split: str, inputs: Any, place: Place) -> None:
    """Refuse a relative path that leads out of the folder (what it names would not move, nor change, with the data).

    So is one of what is no regular file, whose end may never come. What is not there is found when it is read.
    """
    table = inputs.with_format("arrow")[:].flatten()
    stored = [name for name in table.column_names if name.endswith(".bytes")]
    is_absent = table.column(stored[0]).is_null().to_pylist() if stored else [True] * table.num_rows
    folder, base = Path(os.path.normpath(place.folder.absolute())), place.base.absolute()
    for row, (name, absent) in enumerate(zip(_file_names(inputs), is_absent, strict=True)):
        if not absent or not name:
            continue
        target = Path(os.path.normpath(base / name))
        if not Path(name).is_absolute() and not target.is_relative_to(folder):
            raise DataError(
                f"Expected paths below the data set's folder {place.folder} in row {row} of split {split!r}, got "
                f"{name!r}, which leads to {target}. The file would be missing where the folder is moved or compared. "
                "Set `data_dir` to the folder that holds both, or write the whole path."
            )
        if _is_no_file(base / name):
            raise DataError(
                f"Expected the path of a file in row {row} of split {split!r}, got {name!r}, which is a folder or a "
                "device. Reading it may never end. Correct the path."
            )


def _is_no_file(path: Path) -> bool:
    """Whether something else than a file lies there; a name that no file can have has nothing."""
    try:
        return path.exists() and not path.is_file()
    except OSError:
        return False


class _DatasetItems:
    def __init__(self, dataset: Any, base: Path | None) -> None:
        self._dataset, self._base = dataset, base
        self._column = dataset.column_names[0]

    def read(self, rows: np.ndarray) -> list[Any]:
        values = self._dataset[rows.tolist()][self._column]
        values = [_file_of(value) if isinstance(value, dict) else value for value in values]
        if self._base is None:
            return values
        return [str(self._base / value) if isinstance(value, str) and value else value for value in values]


def _file_of(value: dict[str, Any]) -> Any:
    return value["bytes"] if value["bytes"] is not None else value["path"]
