# SPDX-License-Identifier: Apache-2.0
"""Splits and files agree on classes by name: an id means what the file says that it stands in."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edvit_hf.data.columns import RawItems, RawSplit
from edvit_hf.errors import DataError, did_you_mean


def agreed(splits: Mapping[str, RawSplit], train: str, label_names: Sequence[str] | None) -> dict[str, RawSplit]:
    """Every split with the class names that the training split declares; ids of others are mapped by name.

    Where the training split declares none, those of a recipe (`label_names`) take their place.

    Raises:
        DataError: Rows of a class that has no such name, or ids without names beside a split that declares some.
    """
    first = splits[train]
    names = label_names if first.class_names is None else first.class_names
    result = {}
    for key, split in splits.items():
        if split.class_names is not None and names is not None:
            split = renamed(split, names, first.name)
        elif first.class_names is not None and label_names is None:
            refuse_bare_ids(split, first)
        result[key] = split
    return result


def renamed(split: RawSplit, names: Sequence[str], owner: str) -> RawSplit:
    """The split as if it declared these names: each id becomes that of the same name.

    Args:
        split: Declares class names.
        names: In the order of their ids.
        owner: Name of the split that declares them.

    Raises:
        DataError: Rows of a class that is not among `names`.
    """
    declared = split.class_names or []
    if declared == list(names):
        return split
    _refuse_ids_beyond(split)
    places: dict[str, int] = {name: index for index, name in enumerate(names)}
    table = [places.get(name) for name in declared]
    used = {label for label in split.labels if label is not None and label >= 0}
    unknown = [declared[label] for label in sorted(used) if table[label] is None]
    if unknown:
        raise DataError(
            f"Expected the classes of split {split.name!r} among those of {owner!r} ({_shown(names)}), got "
            f"{_shown(unknown)}.{did_you_mean(unknown[0], names)} Its ids mean {_shown(declared)}, and taken as they "
            "are they would mean other classes. Correct the names, or leave these rows out."
        )
    labels = [label if label is None or label < 0 else table[label] for label in split.labels]
    return dataclasses.replace(split, labels=labels, class_names=list(names))


def by_name(split: RawSplit) -> RawSplit:
    """The split with the names that it declares in place of the ids, for whoever does not know its order.

    Raises:
        DataError: An id without a name.
    """
    if split.class_names is None:
        return split
    _refuse_ids_beyond(split)
    names = split.class_names
    labels = [None if label is None or label < 0 else names[label] for label in split.labels]
    return dataclasses.replace(split, labels=labels, class_names=None)


def _refuse_ids_beyond(split: RawSplit) -> None:
    last = len(split.class_names or ()) - 1
    beyond = next((label for label in split.labels if label is not None and label > last), None)
    if beyond is not None:
        raise DataError(
            f"Expected class ids in 0..{last} in split {split.name!r}, one for each name that it declares, got "
            f"{beyond}. What that class is called is not known. Correct the rows."
        )


def refuse_bare_ids(split: RawSplit, beside: RawSplit) -> None:
    """Refuse integers without names beside names: an id and a class that is called like a number look the same.

    Raises:
        DataError: The split has integer labels, and the names beside them are not 0, 1, 2, ... in this order.
    """
    names = beside.class_names or []
    bare = next((label for label in split.labels if isinstance(label, int) and label >= 0), None)
    if split.class_names is None and bare is not None and names != [str(index) for index in range(len(names))]:
        raise DataError(
            f"Expected the labels of split {split.name!r} by name, as {beside.name!r} declares {_shown(names)}, got "
            f"the number {bare}. Which class a number means is not said. Declare the names in every file, or write "
            "`label_names` in the order of the ids."
        )


def concatenated(splits: Sequence[RawSplit]) -> RawSplit:
    """All rows of several splits, files or folders as one, in order; class ids are mapped by name.

    Raises:
        DataError: They declare different sets of class names, or some numbers and others names.
    """
    first = next((split for split in splits if split.class_names is not None), splits[0])
    parts = []
    for split in splits:
        if split.class_names is not None and first.class_names is not None:
            _refuse_other_classes(split, first)
            split = renamed(split, first.class_names, first.name)
        elif first.class_names is not None:
            refuse_bare_ids(split, first)
            split = _by_name(split, first)
        parts.append(split)
    labels = [label for split in parts for label in split.labels]
    kinds = {type(label).__name__ for label in labels if label is not None}
    if len(kinds) > 1:
        raise DataError(
            f"Expected labels of one type in {' and '.join(dict.fromkeys(repr(split.name) for split in splits))}, got "
            f"{' and '.join(sorted(kinds))}. Whether a number is a name or an id is not said. Write all labels alike."
        )
    groups = [group for split in parts for group in split.groups or [None] * len(split.labels)]
    return RawSplit(
        name="+".join(dict.fromkeys(split.name for split in parts)),
        labels=labels,
        class_names=first.class_names,
        items=_ConcatenatedItems([(len(split.labels), split.items) for split in parts]),
        groups=groups if any(split.groups is not None for split in parts) else None,
    )


def _by_name(split: RawSplit, first: RawSplit) -> RawSplit:
    """Strings, or numbers that are names, as ids of the declared names."""
    places: dict[str, int] = {name: index for index, name in enumerate(first.class_names or [])}
    labels: list[Any] = []
    for label in split.labels:
        if label is None or label == "" or (isinstance(label, int) and label < 0):
            labels.append(None)
            continue
        if str(label) not in places:
            raise DataError(
                f"Expected the labels of split {split.name!r} among the declared names ({_shown(list(places))}), got "
                f"{label!r}.{did_you_mean(str(label), places)} Correct the label, or the names."
            )
        labels.append(places[str(label)])
    return dataclasses.replace(split, labels=labels, class_names=first.class_names)


def _refuse_other_classes(split: RawSplit, first: RawSplit) -> None:
    mine, theirs = set(split.class_names or ()), set(first.class_names or ())
    if mine != theirs:
        only = [
            f"{_shown(sorted(names))} in {where}"
            for names, where in ((theirs - mine, "one"), (mine - theirs, "another"))
            if names
        ]
        raise DataError(
            f"Expected the same class names in every file and folder of split {first.name!r}, got only "
            f"{', and only '.join(only)} of them. Rows of one class would be learnt as two, or as none. Correct "
            "the names."
        )


def _shown(names: Sequence[Any]) -> str:
    return f"{', '.join(map(str, names[:8]))}{', ...' if len(names) > 8 else ''}"


class _ConcatenatedItems:
    def __init__(self, parts: list[tuple[int, RawItems]]) -> None:
        self._parts = [items for _, items in parts]
        self._starts = np.cumsum([0] + [length for length, _ in parts])

    def read(self, rows: np.ndarray) -> list[Any]:
        result: list[Any] = [None] * len(rows)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner, items in enumerate(self._parts):
            places = np.flatnonzero(owners == owner)
            for place, value in zip(places, items.read(rows[places] - self._starts[owner]), strict=True):
                result[place] = value
        return result
