# SPDX-License-Identifier: Apache-2.0
"""In which order the items of an epoch come, and in which batches: pure functions of (seed, epoch, lengths)."""

import numpy as np

# Batches that are sorted by length together: the larger, the less padding and the less the batches are mixed.
BATCHES_PER_CHUNK = 50


def epoch_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the items in one epoch: a permutation that depends on nothing but these arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def epoch_batches(
    num_items: int, batch_size: int, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """The batches of one epoch, as positions 0..num_items-1; each item is in exactly one.

    Args:
        num_items (`int`): Items of the epoch.
        batch_size (`int`): Items of a batch; one batch has the remainder.
        seed (`int`): Of the run.
        epoch (`int`): From 0.
        lengths (`np.ndarray`, *optional*): (num_items,) lengths, for items that are padded to the longest of their
            batch. The permutation is then sorted by length within chunks of 50 batches, and the batches are shuffled.
    """
    order = epoch_order(num_items, seed, epoch)
    if lengths is None:
        return [order[start : start + batch_size] for start in range(0, num_items, batch_size)]
    batches: list[np.ndarray] = []
    for start in range(0, num_items, BATCHES_PER_CHUNK * batch_size):
        chunk = order[start : start + BATCHES_PER_CHUNK * batch_size]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[first : first + batch_size] for first in range(0, len(chunk), batch_size)]
    # Another stream than that of the permutation, which must not change with the number of batches.
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(len(batches))
    return [batches[index] for index in shuffled]
