"""One split of an audio task: log-mel features from a cache or computed on access."""

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from edvit_hf.data.augmentation import Augmentation
from edvit_hf.data.augmentation.spectrograms import change, draws
from edvit_hf.data.split import Indices, Inputs, RowSplit


class FeatureStore(Protocol):
    """Normalised log-mel features by row number."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, T, F) float32, a new array."""
        ...


class CachedFeatures:
    """A `FeatureStore` over an array (N, T, F) of float32 in RAM."""

    def __init__(self, features: np.ndarray) -> None:
        if features.ndim != 3 or features.dtype != np.float32:
            raise ValueError(
                f"Expected features shaped (N, T, F) of float32, got {features.shape} of {features.dtype}."
            )
        self._features = features

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._features)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return (B, T, F) float32, a new array."""
        return self._features[rows]


class AudioSplit(RowSplit):
    """Spectrograms and labels of one split; a `Split`."""

    lengths: np.ndarray | None = None

    def __init__(
        self,
        store: FeatureStore,
        labels: np.ndarray,
        *,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rows: np.ndarray | None = None,
    ) -> None:
        """Wrap a store.

        Args:
            store (`FeatureStore`): Where the features are.
            labels (`np.ndarray`): (N,) integers, one per item of this split.
            mean (`float`): By which the features were normalised; tells what padding looks like.
            std (`float`): By twice of which they were divided.
            augmentation (`Augmentation`): None means none.
            seed (`int`): Of the augmentation.
            rows (`np.ndarray`): Row of the store behind each item; None means all rows in order.
        """
        super().__init__(len(store), labels, augmentation=augmentation, seed=seed, rows=rows)
        self._store, self._mean, self._std = store, mean, std

    def select(self, indices: Indices) -> "AudioSplit":
        """Return the split of these items in this order; features are shared, items keep their augmentation."""
        chosen = self._checked(indices)
        return AudioSplit(
            self._store,
            self.labels[chosen],
            mean=self._mean,
            std=self._std,
            augmentation=self.augmentation,
            seed=self.seed,
            rows=self._rows[chosen],
        )

    def inputs(self, indices: Indices, view: int | None = None) -> Inputs:
        """Return {"input_values": (B, T, F) float32}, normalised; see `Split.inputs`."""
        rows = self._rows[self._checked(indices)]
        features = self._store.read(rows)
        if view is not None and not self.augmentation.is_off and len(rows):
            drawn = _draw_table(self.augmentation, len(self._store), view, self.seed)[rows]
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


@lru_cache(maxsize=16)
def _draw_table(augmentation: Augmentation, num_items: int, view: int, seed: int) -> np.ndarray:
    return draws(augmentation, num_items, view, seed)
