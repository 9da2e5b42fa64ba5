"""Map a dataset's labels to class ids 0..C-1."""

import numpy as np

from edvit_hf.data.sources import RawSplit
from edvit_hf.errors import DataError


def label_names_of(train: RawSplit) -> list[str]:
    """Name the classes: the declared names, else the distinct training labels, sorted.

    Raises:
        DataError: A label is missing, or there are fewer than two classes.
    """
    _refuse_rows(train, [i for i, label in enumerate(train.labels) if label is None], "a label in every row")
    distinct = set(train.labels)
    if len(distinct) < 2:
        raise DataError(
            f"Expected at least two classes in split {train.name!r}, got {len(distinct)}: "
            f"{sorted(distinct)[:1]}. There is nothing to classify or to split. Check `label_column` and "
            "`train_split`."
        )
    return train.class_names or [str(label) for label in sorted(distinct)]


def class_ids(split: RawSplit, label_names: list[str]) -> np.ndarray:
    """Return the class id of every row: (N,) int64.

    Raises:
        DataError: Rows whose label is missing or not one of the classes; the first of them are named.
    """
    if split.class_names is None:
        table = {name: index for index, name in enumerate(label_names)}
        ids = [-1 if _is_hidden(label) else table.get(str(label), -1) for label in split.labels]
        expected = f"the {len(label_names)} labels of the training split"
    else:
        if split.class_names != label_names:
            raise DataError(
                f"Expected the same class names in every split, got others in {split.name!r}. "
                "The ids would mean different classes. Correct the dataset."
            )
        last = len(label_names) - 1
        ids = [-1 if _is_hidden(label) or label > last else label for label in split.labels]
        expected = f"class ids in 0..{last}"
    _refuse_rows(split, [row for row, index in enumerate(ids) if index < 0], expected)
    return np.asarray(ids, np.int64)


def _is_hidden(label: object) -> bool:
    """Whether it marks an unknown label: missing, or a negative integer (never a class)."""
    return label is None or (isinstance(label, int) and label < 0)


def _refuse_rows(split: RawSplit, rows: list[int], expected: str) -> None:
    if not rows:
        return
    shown = ", ".join(f"row {row}: {split.labels[row]!r}" for row in rows[:5])
    raise DataError(
        f"Expected {expected} in split {split.name!r}, got {len(rows)} row(s) with another label: {shown}. "
        "A wrong or hidden label would corrupt training and every score. Correct the rows, or use another "
        "split."
    )
