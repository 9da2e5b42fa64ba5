"""Map a dataset's labels to class ids 0..C-1."""

import math
from typing import Any, Literal

import numpy as np

from edvit_hf.data.columns import RawSplit
from edvit_hf.errors import DataError

HIDDEN = -1
"""Class id of a row without a label."""


def label_names_of(train: RawSplit) -> list[str]:
    """Name the classes: the declared names, else the distinct training labels, sorted.

    Raises:
        DataError: There are fewer than two classes.
    """
    distinct = {label for label in train.labels if not _is_hidden(label)}
    if len(distinct) < 2:
        raise DataError(
            f"Expected at least two classes in split {train.name!r}, got {len(distinct)}: "
            f"{sorted(distinct)[:1]}. There is nothing to classify or to split. Check `label_column` and "
            "`train_split`."
        )
    return train.class_names or [str(label) for label in sorted(distinct)]


def class_ids(split: RawSplit, label_names: list[str], on_error: Literal["raise", "skip"] = "raise") -> np.ndarray:
    """Return the class id of every row: (N,) int64, `HIDDEN` where the label is missing and `on_error` is "skip".

    Raises:
        DataError: Rows whose label is missing (with "raise") or not one of the classes (always: it is no damaged
            row, the description is wrong); the first of them are named.
    """
    if split.class_names is None:
        table = {name: index for index, name in enumerate(label_names)}
        ids = [HIDDEN if _is_hidden(label) else table.get(str(label)) for label in split.labels]
        expected = f"the {len(label_names)} labels of the training split"
    else:
        if split.class_names != label_names:
            raise DataError(
                f"Expected the same class names in every split, got others in {split.name!r}. "
                "The ids would mean different classes. Correct the dataset."
            )
        last = len(label_names) - 1
        ids = [HIDDEN if _is_hidden(label) else label if label <= last else None for label in split.labels]
        expected = f"class ids in 0..{last}"
    refused = (None, HIDDEN) if on_error == "raise" else (None,)
    rows = [row for row, index in enumerate(ids) if index in refused]
    if rows:
        shown = ", ".join(f"row {row}: {split.labels[row]!r}" for row in rows[:5])
        raise DataError(
            f"Expected {expected} in split {split.name!r}, got {len(rows)} row(s) with another label: {shown}. "
            "A wrong or hidden label would corrupt training and every score. Correct the rows, or use another "
            "split; rows without a label are left out with `on_error: skip`."
        )
    return np.asarray(ids, np.int64)


def whole_labels(values: list[Any], column: str) -> list[Any]:
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


def _is_hidden(label: object) -> bool:
    """Whether it marks an unknown label: missing, empty, or a negative integer (never a class)."""
    return label is None or label == "" or (isinstance(label, int) and label < 0)
