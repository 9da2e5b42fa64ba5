"""One split of an image task: labels in RAM, pixels from a decoded cache or decoded on access."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
import torch

from edvit_hf.data.augmentation import Augmentation

Indices: TypeAlias = Sequence[int] | np.ndarray | torch.Tensor


class PixelStore(Protocol):
    """Resized RGB images by row number."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, 3, H, W) uint8, a new array."""
        ...


class CachedPixels:
    """A `PixelStore` over an array (N, 3, H, W) of uint8 in RAM."""

    def __init__(self, pixels: np.ndarray) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != np.uint8:
            raise ValueError(f"Expected pixels shaped (N, 3, H, W) of uint8, got {pixels.shape} of {pixels.dtype}.")
        self._pixels = pixels

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._pixels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, 3, H, W) uint8, a new array."""
        return self._pixels[rows]


class ImageSplit:
    """Images and labels of one split, map style.

    Attributes:
        labels: (N,) int64, global class ids.
        augmentation: What `pixel_values(..., view=v)` applies.
        seed: Of that augmentation.
    """

    def __init__(
        self,
        store: PixelStore,
        labels: np.ndarray,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rows: np.ndarray | None = None,
    ) -> None:
        """Wrap a store.

        Args:
            store (`PixelStore`): The images.
            labels (`np.ndarray`): (len(rows),) integers, one per item of this split.
            mean (`Sequence[float]`): Per channel, of pixels scaled to 0..1.
            std (`Sequence[float]`): Per channel, of pixels scaled to 0..1.
            augmentation (`Augmentation`): None means none.
            seed (`int`): Of the augmentation.
            rows (`np.ndarray`): Row of the store behind each item; None means all rows in order.
        """
        self._rows = np.arange(len(store)) if rows is None else np.asarray(rows, np.int64)
        self.labels = np.asarray(labels, np.int64)
        if self.labels.shape != self._rows.shape:
            raise ValueError(f"Expected one label per item ({len(self._rows)}), got labels shaped {self.labels.shape}.")
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        self._store, self._mean, self._std = store, tuple(mean), tuple(std)
        # (p / 255 - mean) / std as one product and one sum.
        std_column = torch.tensor(self._std, dtype=torch.float64).view(1, 3, 1, 1)
        mean_column = torch.tensor(self._mean, dtype=torch.float64).view(1, 3, 1, 1)
        self._factor = (1 / (255 * std_column)).to(torch.float32)
        self._offset = (-mean_column / std_column).to(torch.float32)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._rows)

    def select(self, indices: Indices) -> "ImageSplit":
        """Return the split of these items in this order; pixels are shared, items keep their augmentation."""
        chosen = self._checked(indices)
        return ImageSplit(
            self._store,
            self.labels[chosen],
            mean=self._mean,
            std=self._std,
            augmentation=self.augmentation,
            seed=self.seed,
            rows=self._rows[chosen],
        )

    def pixel_values(self, indices: Indices, view: int | None = None) -> torch.Tensor:
        """Return the normalised images of these items, as the model takes them.

        Args:
            indices (`Sequence[int]`): Items of this split, in any order, repeats allowed.
            view (`int`, *optional*): Number of the replayable augmented view; None for the plain images. An
                item's pixels in a view do not depend on the batch it is in.

        Returns:
            `torch.Tensor`: (B, 3, H, W) float32.

        Raises:
            IndexError: An index outside 0..len-1.
            DataError: An image that is decoded on access turns out to be damaged.
        """
        rows = self._rows[self._checked(indices)]
        values = torch.from_numpy(self._store.read(rows)).to(torch.float32)
        if view is not None and not self.augmentation.is_off and len(rows):
            table = _parameter_table(self.augmentation, len(self._store), view, self.seed)
            # Before normalisation, where 0 is black: what enters at the edges is black too.
            values = self.augmentation.apply(values, torch.from_numpy(table[rows]))
        return values.mul_(self._factor).add_(self._offset)

    def _checked(self, indices: Indices) -> np.ndarray:
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise IndexError(f"Expected a list of integer indices, got shape {chosen.shape} of {chosen.dtype}.")
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"Expected indices in 0..{len(self) - 1}, got {chosen.min()}..{chosen.max()}.")
        return chosen


def iterate_batches(
    split: ImageSplit, batch_size: int, *, indices: Indices | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the items in order, without augmentation.

    Yields:
        `dict[str, torch.Tensor]`: `pixel_values` (B, 3, H, W) float32, `labels` (B,) int64, `indices` (B,)
            int64 into
        `split`; the last batch may be smaller.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    order = np.arange(len(split)) if indices is None else np.asarray(indices)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield {
            "pixel_values": split.pixel_values(chosen),
            "labels": torch.from_numpy(split.labels[chosen]),
            "indices": torch.from_numpy(chosen.astype(np.int64)),
        }


@lru_cache(maxsize=16)
def _parameter_table(augmentation: Augmentation, num_items: int, view: int, seed: int) -> np.ndarray:
    return augmentation.parameters(num_items, view, seed)
