# SPDX-License-Identifier: Apache-2.0
"""Decide which rows are for training, for validation and for testing."""

import numpy as np

from edvit_hf.data.agreement import concatenated
from edvit_hf.data.columns import RawSplit
from edvit_hf.data.config import DatasetConfig
from edvit_hf.data.labels import (
    HIDDEN,
    class_ids,
    classes_of_model,
    label_names_of,
    refuse_surplus_names,
    with_label_names,
)
from edvit_hf.data.subsets import group_codes, group_split, stratified_split, stratified_subset, warn_of_shared_groups
from edvit_hf.errors import DataError
from edvit_hf.tasks import OTHER_LABEL, label_names_fault

ROLES = ("train", "validation", "test")


class Role:
    """The rows of one role, or of a split that is still to be divided.

    Args:
        split: Where they come from.
        ids: Class id of every row of that split.
        rows: (N,) int64, in its numbering; those without a label are left out and counted in `unlabelled`.
    """

    def __init__(self, split: RawSplit, ids: np.ndarray, rows: np.ndarray) -> None:
        self.split, self.ids = split, ids
        self.rows = rows[ids[rows] != HIDDEN]
        self.unlabelled = len(rows) - len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 class ids."""
        return np.asarray(self.ids[self.rows])

    def limit(self, size: int | None, seed: tuple[int, ...]) -> None:
        """Keep so many rows (None: all), every class in its share."""
        if size is not None:
            self.rows = self.rows[stratified_subset(self.labels, size, seed=seed)]

    def carve(self, fraction: float, seed: tuple[int, ...]) -> "Role":
        """Move a share of the rows to another role: along the groups where there are some."""
        if self.split.groups is None:
            stays, carved = stratified_split(self.labels, fraction, seed=seed)
        else:
            codes = group_codes(self.split.groups)[self.rows]
            stays, carved = group_split(self.labels, codes, fraction, seed=seed)
        other = Role(self.split, self.ids, self.rows[carved])
        self.rows = self.rows[stays]
        return other


def choose_roles(config: DatasetConfig, raw: dict[str, RawSplit]) -> tuple[list[str], dict[str, Role]]:
    """Return the class names and the rows of each role.

    Raises:
        DataError: A role without rows, a label that is no class, or groups that cannot be divided.
    """
    train_names = [config.train_split]
    if config.test_groups:
        train_names += [config.test_split] if config.test_split is not None else []
        raw = {**raw, config.train_split: concatenated([raw[name] for name in train_names])}
    if config.label_names is not None:
        refuse_surplus_names(raw[config.train_split], config.label_names)
        raw = {name: with_label_names(split, config.label_names) for name, split in raw.items()}
    label_names = label_names_of(raw[config.train_split])
    _refuse_unfit_names(label_names, config)

    def role_of(name: str) -> Role:
        ids = class_ids(raw[name], label_names, config.on_error)
        return Role(raw[name], ids, np.arange(len(ids)))

    train = role_of(config.train_split)
    if config.test_groups:
        train, test = _fold(train, config)
    elif config.test_split is None:
        test = train.carve(config.test_fraction, (config.seed, 0))
    else:
        test = role_of(config.test_split)
        _warn_of_leak(train, test, "test")
    train.limit(config.max_train_samples, (config.seed, 1))
    test.limit(config.max_test_samples, (config.seed, 2))
    if config.validation_split is not None:
        validation = role_of(config.validation_split)
        _warn_of_leak(train, validation, "validation")
    else:
        validation = train.carve(config.validation_fraction, (config.seed, 3))
    parts = {"train": train, "validation": validation, "test": test}
    for role in ROLES:
        if len(parts[role].rows) == 0:
            raise DataError(
                f"Expected rows for {role}, got none ({parts[role].unlabelled} without a label). Check the split's "
                "name, `validation_fraction` and the limits on the number of samples."
            )
    return label_names, parts


def _refuse_unfit_names(names: list[str], config: DatasetConfig) -> None:
    fault = label_names_fault(names)
    if fault is not None:
        raise DataError(
            f"Expected different class names in column {config.label_column!r}, none of them empty or {OTHER_LABEL!r}, "
            f"got {names[:5]}{'...' if len(names) > 5 else ''}: {fault} Rename the class in the data; of integer "
            "labels `label_names` says other names."
        )


def needed_for_test(config: DatasetConfig) -> list[str]:
    """Names of the splits that hold the test rows: the test split alone, unless they are carved out of the others."""
    if config.test_groups:
        return [name for name in (config.train_split, config.test_split) if name is not None]
    return [config.train_split if config.test_split is None else config.test_split]


def choose_test(config: DatasetConfig, raw: dict[str, RawSplit], label_names: list[str]) -> Role:
    """Return the test rows alone, the same that `choose_roles` chooses, with the class ids of a model's `label_names`.

    Classes are told by name, never by number, so their order may be another. Some may be missing, as training takes
    it, but none may be another.

    Raises:
        DataError: The data have other classes, a label is no class, or there are no rows.
    """
    pool = concatenated([raw[name] for name in needed_for_test(config)])
    if config.label_names is not None:
        pool = with_label_names(pool, config.label_names)
    own = pool.class_names or label_names
    order = classes_of_model(pool, label_names, config.path)
    ids = class_ids(pool, own, config.on_error)
    test = Role(pool, ids, np.arange(len(ids)))  # rows are drawn by the data's own ids, as for training
    if config.test_groups:
        _, test = _fold(test, config)
    elif config.test_split is None:
        test = test.carve(config.test_fraction, (config.seed, 0))
    test.limit(config.max_test_samples, (config.seed, 2))
    if not len(test.rows):
        raise DataError(
            f"Expected rows to measure on, got none ({test.unlabelled} without a label). Over none there is no "
            "accuracy. Check `test_split` and `max_test_samples`."
        )
    test.ids = np.where(test.ids == HIDDEN, HIDDEN, order[test.ids])
    return test


def _fold(pool: Role, config: DatasetConfig) -> tuple[Role, Role]:
    """Divide the pooled rows into those outside and those inside `test_groups`."""
    wanted = {str(group) for group in config.test_groups}
    groups = pool.split.groups or []
    known = {group for group in groups if group is not None}
    if wanted - known:
        shown = sorted(known)
        raise DataError(
            f"Expected `test_groups` among the groups of the data, got {sorted(wanted - known)}. No row would be "
            f"tested. Known groups: {', '.join(shown[:20])}{' and more' if len(shown) > 20 else ''}."
        )
    inside = np.fromiter((group in wanted for group in groups), bool, len(groups))
    return tuple(Role(pool.split, pool.ids, np.flatnonzero(side)) for side in (~inside, inside))  # type: ignore[return-value]


def _warn_of_leak(train: Role, other: Role, what: str) -> None:
    if train.split.groups is not None and other.split.groups is not None:
        warn_of_shared_groups(train.split.groups, other.split.groups, what)
