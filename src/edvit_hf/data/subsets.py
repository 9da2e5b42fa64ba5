"""Stratified, seeded choices of rows."""

import numpy as np


def stratified_subset(labels: np.ndarray, size: int, *, seed: tuple[int, ...]) -> np.ndarray:
    """Choose `size` rows (or all) with every class in its share, and at least once where the size allows.

    Returns:
        `np.ndarray`: int64 indices into `labels`, ascending.
    """
    return _first_by_rank(labels, size, seed=seed, spares_last=False)


def stratified_split(labels: np.ndarray, fraction: float, *, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Split the rows in two, every class in its share; no class loses its last row to the second part.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: What stays and what is carved out (about `fraction` of the rows);
            int64
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
