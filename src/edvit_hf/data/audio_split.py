# SPDX-License-Identifier: Apache-2.0
"""One split of an audio task: log-mel features from a cache or computed on access."""

from typing import Any

import numpy as np
import torch

from edvit_hf.data.augmentation.spectrograms import change, draws
from edvit_hf.data.split import Indices, Inputs, RowSplit, Store


class AudioSplit(RowSplit):
    """Spectrograms and labels of one split; a `Split`.

    Args:
        store (`Store`): The features, (N, T, F) float32.
        labels (`np.ndarray`): (N,) integers.
        mean (`float`): By which the features were normalised; tells what padding looks like.
        std (`float`): By twice of which they were divided.
        options: `augmentation` and `seed` of `RowSplit`.
    """

    def __init__(
        self, store: Store, labels: np.ndarray, *, mean: float = -4.2677393, std: float = 4.5689974, **options: Any
    ) -> None:
        super().__init__(len(store), labels, **options)
        self._store, self._mean, self._std = store, mean, std

    def inputs(self, indices: Indices, view: int | None = None) -> Inputs:
        """Return {"input_values": (B, T, F) float32}, normalised; see `Split.inputs`."""
        rows = self._rows[self._checked(indices)]
        features = self._store.read(rows)
        if view is not None and not self.augmentation.is_off and len(rows):
            drawn = draws(self.augmentation, len(self._store), view, self.seed)[rows]
            sounding = self._sounding(features) if self.augmentation.gain_db else np.zeros(len(rows), np.int64)
            features = change(features, drawn, self.augmentation, std=self._std, sounding=sounding)
        return {"input_values": torch.from_numpy(features)}

    def _sounding(self, features: np.ndarray) -> np.ndarray:
        """(B,) int64: frames before the padding, which is 0 before normalisation."""
        padding, frames = np.float32((0 - self._mean) / (2 * self._std)), features.shape[1]
        # One bin tells how many frames may be padding at most; only those are looked at as a whole.
        longest = int(_trailing(np.abs(features[:, :, 0] - padding) < 1e-6).max(initial=0))
        last = features[:, frames - longest :]
        trailing = _trailing(np.all(np.abs(last - padding) < 1e-6, axis=2))
        return np.asarray(frames - trailing, np.int64)


def _trailing(flags: np.ndarray) -> np.ndarray:
    """(B,) int64: how many flags in a row hold at the end of each of (B, T) bool."""
    return np.asarray(np.cumprod(flags[:, ::-1], axis=1).sum(axis=1), np.int64)
