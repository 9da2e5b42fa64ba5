# SPDX-License-Identifier: Apache-2.0
"""One process's share of every batch, built here or by data loading processes, and moved to its device."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from edvit_hf.training.epoch_data import Batch, EpochData


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
