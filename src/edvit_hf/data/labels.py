# SPDX-License-Identifier: Apache-2.0
"""Map a dataset's labels to class ids 0..C-1."""

import dataclasses
import logging
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from edvit_hf.data.agreement import renamed
from edvit_hf.data.columns import RawSplit
from edvit_hf.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

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
            f"Expected at least two classes in split {train.name!r}, got {len(distinct)}: {sorted(distinct)[:1]}. "
            f"There is nothing to classify or to split. {_of_negative(train)}Check `label_column` and `train_split`."
        )
    names = train.class_names or [str(label) for label in sorted(distinct)]
    _refuse_twins(names, train.name)
    return names


def _refuse_twins(names: Sequence[str], split: str) -> None:
    """Refuse names that differ by spaces, invisible characters or Unicode forms alone; warn where case alone differs.

    Raises:
        DataError: There are such names: one class would be learnt as two.
    """
    seen: dict[str, str] = {}
    folded: dict[str, str] = {}
    for name in names:
        visible = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
        key = " ".join(visible.split())
        if seen.setdefault(key, name) != name:
            raise DataError(
                f"Expected names of classes that can be told apart, got {seen[key]!a} and {name!a} in split "
                f"{split!r}, which look alike. One class would be learnt as two. Write both in the same way."
            )
        if folded.setdefault(key.casefold(), name) != name:
            logger.warning(
                "data: the classes %r and %r differ by their case alone: they are two classes",
                folded[key.casefold()], name,
            )  # fmt: skip


def with_label_names(split: RawSplit, names: Sequence[str]) -> RawSplit:
    """Return the split as if it declared these class names: its labels are then ids of them.

    Integers are ids already; strings are looked up. Names that the dataset declares itself may be replaced, not moved.

    Raises:
        DataError: The names do not fit the labels.
    """
    if split.class_names is not None:
        _refuse_moved_names(split, names)
        return dataclasses.replace(split, class_names=list(names))
    known = {label for label in split.labels if not _is_hidden(label)}
    if any(isinstance(label, str) for label in known):
        table: dict[Any, int] = {name: index for index, name in enumerate(names)}
        unknown = sorted(known - table.keys())
        if unknown:
            raise DataError(
                f"Expected the labels of split {split.name!r} among the {len(names)} `label_names`, got {unknown[0]!r}"
                f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}.{did_you_mean(unknown[0], names)} "
                "Rows of a class without an id cannot be learnt. Add the name, or correct it."
            )
        labels = [None if _is_hidden(label) else table[label] for label in split.labels]
        return dataclasses.replace(split, labels=labels, class_names=list(names))
    if known and max(known) >= len(names):
        raise DataError(
            f"Expected class ids in 0..{len(names) - 1} in split {split.name!r}, one for each of the {len(names)} "
            f"`label_names`, got labels up to {int(max(known))}. A class without a name would have no place among the "
            "outputs. Name every id from 0, or leave `label_names` out."
        )
    return dataclasses.replace(split, class_names=list(names))


def refuse_surplus_names(train: RawSplit, names: Sequence[str]) -> None:
    """Refuse more names than integer labels: a list for another dataset would go unnoticed.

    A class without rows among the others is only warned of later.

    Raises:
        DataError: The last names have no training row.
    """
    known = [label for label in train.labels if not _is_hidden(label)]
    if train.class_names is not None or any(isinstance(label, str) for label in known):
        return  # what a declared id or a string means is known, with rows or without
    highest = max(known, default=-1)
    if highest < len(names) - 1:
        raise DataError(
            f"Expected training rows of the last of the {len(names)} `label_names`, {names[-1]!r}, in split "
            f"{train.name!r}, got class ids up to {int(highest)}. The model would have outputs that are never right. "
            "Remove the names of classes that are not there, or check `label_column`."
        )


def _refuse_moved_names(split: RawSplit, names: Sequence[str]) -> None:
    declared = split.class_names or []
    if len(declared) != len(names):
        raise DataError(
            f"Expected as many `label_names` as split {split.name!r} declares ({len(declared)}: "
            f"{', '.join(declared[:5])}{', ...' if len(declared) > 5 else ''}), got {len(names)}. Class ids without a "
            "name, or names without an id, make no classes. Correct them, or leave `label_names` out."
        )
    moved = [name for index, name in enumerate(names) if name in declared and declared[index] != name]
    if moved:
        raise DataError(
            f"Expected `label_names` in the order of the class ids of split {split.name!r}, got {moved[0]!r} as id "
            f"{list(names).index(moved[0])}, which the dataset declares as id {declared.index(moved[0])}. Every answer "
            f"would carry the name of another class. Write them as {declared[:5]}{'...' if len(declared) > 5 else ''}, "
            "or leave `label_names` out."
        )


def same_classes(names: Sequence[str], of_model: Sequence[str], what: str) -> np.ndarray:
    """Map the class ids of data to those of a model by the classes' names: (L,) int64, [id of the data] -> id.

    Args:
        names: Of the data's classes, by id.
        of_model: Of the model's classes, by id.
        what: The data, for the message.

    Raises:
        DataError: The names are not the same ones, whatever their order.
    """
    places = {name: index for index, name in enumerate(of_model)}
    foreign, absent = [n for n in names if n not in places], [n for n in of_model if n not in set(names)]
    if foreign or absent or len(names) != len(of_model):
        raise DataError(
            f"Expected data with the {len(of_model)} classes of the model ({_some(of_model)}), got {what} with "
            f"{len(names)} ({_some(names)}){_said('only there', foreign)}{_said('missing there', absent)}. Every "
            "answer would be compared with another class. Name data of these classes, or their names by `label_names`."
        )
    return np.asarray([places[name] for name in names], np.int64)


def classes_of_model(split: RawSplit, of_model: Sequence[str], what: str) -> np.ndarray:
    """Map the class ids of test rows to those of a model by name: (L,) int64, [id of the data] -> id.

    A split may lack classes of the model, and declare others that it has no row of, as training takes it; both are
    logged.

    Raises:
        DataError: The split has a row of a class that the model does not know.
    """
    own = split.class_names or of_model
    used = {label for label in split.labels if not _is_hidden(label)}
    if split.class_names is None:
        found = {str(label) for label in used}
    else:
        found = {own[label] for label in used if label < len(own)}
    told = split.class_names or sorted(found)
    if found - set(of_model):
        same_classes(told, of_model, repr(what))  # refuses, with the differences
    if unused := [name for name in told if name not in of_model]:
        logger.warning("data: %s declares classes that it has no row of and the model none: %s", what, _some(unused))
    missing = [name for name in of_model if name not in found]
    if missing:
        logger.warning("data: no row of %d of %d classes in %s: %s", len(missing), len(of_model), what, _some(missing))
    places = {name: index for index, name in enumerate(of_model)}
    return np.asarray([places.get(name, HIDDEN) for name in own], np.int64)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


def _said(what: str, names: Sequence[str]) -> str:
    return f"; {what}: {_some(names)}" if names else ""


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
        split = renamed(split, label_names, "the training split")
        last = len(label_names) - 1
        ids = [HIDDEN if _is_hidden(label) else label if label <= last else None for label in split.labels]
        expected = f"class ids in 0..{last}"
    refused = (None, HIDDEN) if on_error == "raise" else (None,)
    rows = [row for row, index in enumerate(ids) if index in refused]
    if rows:
        shown = ", ".join(f"row {row}: {split.labels[row]!r}" for row in rows[:5])
        texts = (split.labels[row] for row in rows if isinstance(split.labels[row], str) and split.labels[row])
        near = did_you_mean(text, label_names) if (text := next(texts, None)) is not None else ""
        raise DataError(
            f"Expected {expected} in split {split.name!r}, got {len(rows)} row(s) with another label: {shown}.{near} "
            f"A wrong or hidden label would corrupt training and every score. {_of_negative(split)}Correct the rows, "
            "or use another split; rows without a label are left out with `on_error: skip`."
        )
    return np.asarray(ids, np.int64)


def _of_negative(split: RawSplit) -> str:
    if not any(isinstance(label, int) and label < 0 for label in split.labels):
        return ""
    return (
        "A negative number marks a row without a label; if it is a class here, number the classes from 0, or in csv "
        "files write all of them as `label_names`. "
    )


def _is_hidden(label: object) -> bool:
    """Whether it marks an unknown label: missing, empty, or a negative integer (never a class)."""
    return label is None or label == "" or (isinstance(label, int) and label < 0)
