"""One split of an image task: pixels from a decoded cache or decoded on access."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.augmentation.appearance import change, operations
from edvit_hf.data.augmentation.pixels import move, movements
from edvit_hf.data.split import Indices, Inputs, RowSplit


class PixelStore(Protocol):
    """Resized images by row number."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, 3, H, W) uint8, or (B, 1, H, W) where every image of the store is grey; a new array."""
        ...


class CachedPixels:
    """A `PixelStore` over an array (N, 3, H, W) of uint8 in RAM, or (N, 1, H, W) of grey images."""

    def __init__(self, pixels: np.ndarray) -> None:
        if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.dtype != np.uint8:
            raise ValueError(
                f"Expected pixels shaped (N, 3, H, W) or (N, 1, H, W) of uint8, got {pixels.shape} of {pixels.dtype}."
            )
        self._pixels = pixels

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._pixels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, 3, H, W) or (B, 1, H, W) uint8, a new array."""
        return self._pixels[rows]


class ImageSplit(RowSplit):
    """Images and labels of one split; a `Split`."""

    lengths: np.ndarray | None = None

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
            store (`PixelStore`): Where the pixels are.
            labels (`np.ndarray`): (N,) integers, one per item of this split.
            mean (`Sequence[float]`): Per channel, of pixels scaled to 0..1.
            std (`Sequence[float]`): Per channel, of pixels scaled to 0..1.
            augmentation (`Augmentation`): None means none.
            seed (`int`): Of the augmentation.
            rows (`np.ndarray`): Row of the store behind each item; None means all rows in order.
        """
        super().__init__(len(store), labels, augmentation=augmentation, seed=seed, rows=rows)
        self._store, self._mean, self._std = store, tuple(mean), tuple(std)
        # (p / 255 - mean) / std as one product and one sum.
        std_column = torch.tensor(self._std, dtype=torch.float64).view(1, 3, 1, 1)
        mean_column = torch.tensor(self._mean, dtype=torch.float64).view(1, 3, 1, 1)
        self._factor = (1 / (255 * std_column)).to(torch.float32)
        self._offset = (-mean_column / std_column).to(torch.float32)

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

    def inputs(self, indices: Indices, view: int | None = None) -> Inputs:
        """Return {"pixel_values": (B, 3, H, W) float32}, normalised; see `Split.inputs`."""
        rows = self._rows[self._checked(indices)]
        pixels = self._store.read(rows)
        if view is not None and not self.augmentation.is_off and len(rows):
            # Before normalisation, where 0 is black: what enters at the edges is black too.
            pixels = self._augmented(pixels, rows, view)
        # One pass: the factor makes float32 of bytes and three channels of one.
        return {"pixel_values": torch.mul(torch.from_numpy(pixels), self._factor).add_(self._offset)}

    def _augmented(self, pixels: np.ndarray, rows: np.ndarray, view: int) -> np.ndarray:
        augmentation, total = self.augmentation, len(self._store)
        if augmentation.rand_augment_ops:
            drawn = _operation_table(augmentation, total, view, self.seed)[rows]
            pixels = change(pixels, drawn, augmentation.rand_augment_magnitude)
        if augmentation.moves_pixels:
            pixels = move(pixels, _movement_table(augmentation, total, view, self.seed)[rows], augmentation)
        return pixels


@lru_cache(maxsize=16)
def _movement_table(augmentation: Augmentation, num_items: int, view: int, seed: int) -> np.ndarray:
    return movements(augmentation, num_items, view, seed)


@lru_cache(maxsize=16)
def _operation_table(augmentation: Augmentation, num_items: int, view: int, seed: int) -> np.ndarray:
    return operations(augmentation, num_items, view, seed)
