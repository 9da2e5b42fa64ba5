# SPDX-License-Identifier: Apache-2.0
"""The batches of an epoch: their order, one process's share of each, and how they are built and moved to its device.

The order is a pure function of (seed, epoch, lengths).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from edvit_hf.training.epoch_data import Batch, EpochData

# Batches that are sorted by length together: the larger, the less padding and the less the batches are mixed.
BATCHES_PER_CHUNK = 50


def epoch_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the items in one epoch: a permutation that depends on nothing but these arguments."""
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def epoch_batches(
    num_items: int, batch_size: int, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """The batches of one epoch, as positions 0..num_items-1; each item is in exactly one, the remainder in one batch.

    With `lengths` (num_items,), for items that are padded to the longest of their batch, the permutation is then sorted
    by length within chunks of 50 batches, and the batches are shuffled.
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


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of several processes runs of a batch.

    Attributes:
        positions: Its items; at least one.
        num_items: How many of them count: 0 where the batch has fewer items than there are processes.
        scale: Factor of its mean loss, so that the mean over the processes is the mean over the whole batch.
    """

    positions: np.ndarray
    num_items: int
    scale: float


def share_of(batch: np.ndarray, rank: int, count: int) -> Share:
    """The share of process `rank` of `count` in a batch; shares differ by one item at most."""
    own = batch[rank::count]
    if len(own) == 0:
        return Share(batch[:1], 0, 0.0)
    return Share(own, len(own), len(own) * count / len(batch))


class _Batches(Dataset):
    """Batches by position, so that a DataLoader can build them in other processes."""

    def __init__(self, data: EpochData, positions: list[np.ndarray]) -> None:
        self.data, self.positions = data, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Batch:
        return self.data.batch(self.positions[index])


def load_batches(
    data: EpochData, shares: Sequence[Share], *, num_workers: int, device: torch.device
) -> Iterator[Batch]:
    """The batches of these shares on the device, in order. Takes nothing from the global random state."""
    positions = [share.positions for share in shares]
    if num_workers == 0 or not positions:
        batches: Iterator[Batch] = (data.batch(batch) for batch in positions)
    else:
        # Each iteration of a DataLoader draws a seed; from the global generator that would break resuming.
        batches = iter(
            DataLoader(
                _Batches(data, positions),
                batch_size=None,
                num_workers=num_workers,
                pin_memory=device.type == "cuda",
                generator=torch.Generator().manual_seed(0),
            )
        )
    if device.type == "cpu":
        yield from batches
    else:
        for batch in batches:
            yield send_to_device(batch, device, non_blocking=True)


def num_steps(num_batches: int, accumulation: int) -> int:
    """Optimiser steps of an epoch."""
    return math.ceil(num_batches / accumulation)
