# SPDX-License-Identifier: Apache-2.0
"""What every split offers: labels in RAM and inputs by item, plain or in a replayable augmented view."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch

from edvit_hf.data.augmentation import Augmentation

Indices: TypeAlias = Sequence[int] | np.ndarray | torch.Tensor
Inputs: TypeAlias = dict[str, torch.Tensor]


class Split(Protocol):
    """Items of one split, map style.

    Attributes:
        labels: (N,) int64, global class ids.
        augmentation: What `inputs(..., view=v)` applies.
        seed: Of that augmentation.
    """

    labels: np.ndarray
    augmentation: Augmentation
    seed: int

    @property
    def lengths(self) -> np.ndarray | None:
        """(N,) int64, tokens of each item; None where every input has the same size."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def select(self, indices: Indices) -> "Split":
        """Return the split of these items in this order; data are shared, items keep their augmentation."""
        ...

    def inputs(self, indices: Indices, view: int | None = None) -> Inputs:
        """Return the model's inputs for these items.

        Args:
            indices (`Sequence[int]`): Items of this split, in any order, repeats allowed.
            view (`int`, *optional*): Number of the replayable augmented view; None for the plain items. An
                item's view does not depend on the batch it is in.

        Returns:
            `dict[str, torch.Tensor]`: Argument of the model's forward -> tensor, rows first.

        Raises:
            IndexError: An index outside 0..len-1.
            DataError: An item that is decoded on access turns out to be damaged.
        """
        ...


class Store(Protocol):
    """Inputs by row number, before augmentation: pixels (N, 3 or 1, H, W) uint8 or features (N, T, F) float32."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows, a new array."""
        ...


class ArrayStore:
    """A `Store` over an array in RAM."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._array)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows, a new array."""
        return np.asarray(self._array[rows])


class RowSplit:
    """The part that splits share: which row of a store is behind each item.

    Args:
        num_rows (`int`): Rows of the store.
        labels (`np.ndarray`): (N,) integers, one per row.
        augmentation (`Augmentation`): None means none.
        seed (`int`): Of the augmentation.
    """

    def __init__(
        self, num_rows: int, labels: np.ndarray, *, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self._rows = np.arange(num_rows)
        self.labels = np.asarray(labels, np.int64)
        if self.labels.shape != self._rows.shape:
            raise ValueError(f"Expected one label per item ({num_rows}), got labels shaped {self.labels.shape}.")
        self.augmentation = augmentation or Augmentation()
        self.seed = seed

    @property
    def lengths(self) -> np.ndarray | None:
        """None: every input has the same size."""
        return None

    def select(self, indices: Indices) -> Self:
        """Return the split of these items in this order; data are shared, items keep their augmentation."""
        chosen, part = self._checked(indices), copy.copy(self)
        part._rows, part.labels = self._rows[chosen], self.labels[chosen]
        return part

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._rows)

    def _checked(self, indices: Indices) -> np.ndarray:
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise IndexError(f"Expected a list of integer indices, got shape {chosen.shape} of {chosen.dtype}.")
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"Expected indices in 0..{len(self) - 1}, got {chosen.min()}..{chosen.max()}.")
        return chosen


def iterate_batches(split: Split, batch_size: int, *, indices: Indices | None = None) -> Iterator[dict[str, Any]]:
    """Yield the items in order, without augmentation.

    Yields:
        `dict`: `inputs` (argument name -> tensor, B rows), `labels` (B,) int64, `indices` (B,) int64 into
            `split`; the last batch may be smaller.
    """
    order = np.arange(len(split)) if indices is None else np.asarray(indices)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield {
            "inputs": split.inputs(chosen),
            "labels": torch.from_numpy(split.labels[chosen]),
            "indices": torch.from_numpy(chosen.astype(np.int64)),
        }
