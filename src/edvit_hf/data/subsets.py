# SPDX-License-Identifier: Apache-2.0
"""Seeded choices of rows: every class in its share, and no group torn apart.

All rows of a group (a speaker, a song, a fold) stay on one side of a split.
"""

import logging
from collections.abc import Sequence

import numpy as np

from edvit_hf.errors import DataError

logger = logging.getLogger(__name__)

_MOST_TOGGLES = 200


def stratified_subset(labels: np.ndarray, size: int, *, seed: tuple[int, ...]) -> np.ndarray:
    """Choose `size` rows (or all) with every class in its share, and at least once where the size allows.

    Returns:
        `np.ndarray`: int64 indices into `labels`, ascending.
    """
    return _first_by_rank(labels, size, seed=seed, spares_last=False)


def stratified_split(labels: np.ndarray, fraction: float, *, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows in two, every class in its share; no class loses its last row to the second part.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: What stays and what is carved out (about `fraction` of the rows); int64
        indices into `labels`, ascending.
    """
    carved = _first_by_rank(labels, round(len(labels) * fraction), seed=seed, spares_last=True)
    stays = np.setdiff1d(np.arange(len(labels)), carved, assume_unique=True)
    return stays, carved


def _first_by_rank(labels: np.ndarray, size: int, *, seed: tuple[int, ...], spares_last: bool) -> np.ndarray:
    """Give the k-th of a class's n shuffled rows the rank (k + 1/2) / n and take the lowest ranks of all."""
    random = np.random.default_rng(seed)
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        ranks[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        ranks[rows[0]] = -1
        if spares_last:
            ranks[rows[-1]] = 2
    order = np.lexsort((random.random(len(labels)), ranks))
    if spares_last:
        size = min(size, int((ranks < 2).sum()))
    return np.sort(order[:size])


def group_codes(names: Sequence[str | None]) -> np.ndarray:
    """Number the groups: (N,) int64, equal for equal names; each row without a name (None) is a group of its own."""
    known = {name: code for code, name in enumerate(sorted({name for name in names if name is not None}))}
    alone = iter(range(len(known), len(known) + len(names)))
    return np.fromiter((next(alone) if name is None else known[name] for name in names), np.int64, len(names))


def group_split(
    labels: np.ndarray, groups: np.ndarray, fraction: float, *, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows in two along the groups, every class as near to its share as whole groups allow.

    Groups are added in random order while that brings the classes' shares nearer to `fraction`; then single groups
    change sides while that still helps. No class loses its last row to the second part.

    Args:
        labels: (N,) int64 class ids.
        groups: (N,) int64, equal for rows that stay together.
        fraction: Share of the rows of the second part, in (0, 1).
        seed: Of the order.

    Returns:
        What stays and what is carved out, neither empty; int64 indices, ascending.

    Raises:
        DataError: Whole groups cannot be carved out without emptying a class or one of the parts.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    _, class_of = np.unique(labels, return_inverse=True)
    if len(labels) == 0 or group_of.max() == 0:
        raise DataError(
            f"Expected at least two groups to divide, got {len(np.unique(groups))} of {len(labels)} row(s). A group "
            "lies on one side only. Name a validation split, or other groups."
        )
    counts = np.zeros((group_of.max() + 1, class_of.max() + 1))
    np.add.at(counts, (group_of, class_of), 1)
    is_carved = _chosen_groups(counts, fraction, np.random.default_rng(seed))
    if not is_carved.any():
        raise DataError(
            f"Expected a group that can leave the training rows, got {len(counts)} groups that each hold all rows of "
            "a class. That class could not be learnt. Name a validation split, or other groups."
        )
    carved = is_carved[group_of]
    return np.flatnonzero(~carved), np.flatnonzero(carved)


def warn_of_shared_groups(first: Sequence[str | None], second: Sequence[str | None], what: str) -> None:
    """Log how many groups lie on both sides of a split that the dataset itself made."""
    named = {name for name in second if name is not None}
    shared = named & {name for name in first if name is not None}
    if shared:
        logger.warning(
            "data: %d of %d groups of the %s rows are in the training split, too, as the dataset comes: %s",
            len(shared),
            len(named),
            what,
            ", ".join(sorted(shared)[:10]),
        )


def _chosen_groups(counts: np.ndarray, fraction: float, random: np.random.Generator) -> np.ndarray:
    """(G,) bool: the groups to carve out, given the (G, C) rows of each class in each group."""
    totals = counts.sum(axis=0)
    shares = counts / totals
    chosen = np.zeros(len(counts), bool)
    have, rows = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for group in random.permutation(len(counts)):
        spares = (rows + counts[group] < totals).all()
        after = have + shares[group]
        if spares and ((after - fraction) ** 2).sum() < ((have - fraction) ** 2).sum():
            chosen[group], have, rows = True, after, rows + counts[group]
    for _ in range(_MOST_TOGGLES):
        sign = np.where(chosen, -1.0, 1.0)[:, None]
        errors = ((have + sign * shares - fraction) ** 2).sum(axis=1)
        errors[((rows + sign * counts) >= totals).any(axis=1)] = np.inf
        if chosen.sum() == 1:
            errors[chosen] = np.inf
        best = int(errors.argmin())
        helps = errors[best] < ((have - fraction) ** 2).sum() - 1e-12
        if not (helps or (not chosen.any() and np.isfinite(errors[best]))):
            break
        have, rows = have + sign[best] * shares[best], rows + sign[best] * counts[best]
        chosen[best] = not chosen[best]
    return chosen
