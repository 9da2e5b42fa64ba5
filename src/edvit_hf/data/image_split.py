# SPDX-License-Identifier: Apache-2.0
"""One split of an image task: pixels from a decoded cache or decoded on access."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edvit_hf.data.augmentation.appearance import change, operations
from edvit_hf.data.augmentation.pixels import move, movements
from edvit_hf.data.split import Indices, Inputs, RowSplit, Store


class ImageSplit(RowSplit):
    """Images and labels of one split; a `Split`.

    Args:
        store (`Store`): The pixels, (N, 3, H, W) uint8, or (N, 1, H, W) where every image is grey.
        labels (`np.ndarray`): (N,) integers.
        mean (`Sequence[float]`): Per channel, of pixels scaled to 0..1.
        std (`Sequence[float]`): Per channel, of pixels scaled to 0..1.
        options: `augmentation` and `seed` of `RowSplit`.
    """

    def __init__(
        self,
        store: Store,
        labels: np.ndarray,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        **options: Any,
    ) -> None:
        super().__init__(len(store), labels, **options)
        self._store = store
        # (p / 255 - mean) / std as one product and one sum.
        std_column = torch.tensor(tuple(std), dtype=torch.float64).view(1, 3, 1, 1)
        mean_column = torch.tensor(tuple(mean), dtype=torch.float64).view(1, 3, 1, 1)
        self._factor = (1 / (255 * std_column)).to(torch.float32)
        self._offset = (-mean_column / std_column).to(torch.float32)

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
            drawn = operations(augmentation, total, view, self.seed)[rows]
            pixels = change(pixels, drawn, augmentation.rand_augment_magnitude)
        if augmentation.moves_pixels:
            pixels = move(pixels, movements(augmentation, total, view, self.seed)[rows], augmentation)
        return pixels
