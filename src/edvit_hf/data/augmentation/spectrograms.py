# SPDX-License-Identifier: Apache-2.0
"""Spectrograms in a replayable view: shifted in time, masked in time and frequency (SpecAugment), louder or softer."""

from functools import lru_cache

import numpy as np

from edvit_hf.data.augmentation import Augmentation

_NEPER_PER_DB = float(np.log(10) / 10)  # the features are natural logarithms of power


@lru_cache(maxsize=16)
def draws(augmentation: Augmentation, num_items: int, view: int, seed: int) -> np.ndarray:
    """Draw the numbers of one view; item i gets the same row whatever `num_items` is.

    Returns:
        `np.ndarray`: (num_items, 2 + 2 * masks) float32 in [0, 1): shift, gain, then width and place of each time
            mask and each frequency mask.
    """
    count = 2 + 2 * (augmentation.time_masks + augmentation.frequency_masks)
    return np.random.default_rng([seed, view, 2]).random((num_items, count), np.float32)


def change(
    features: np.ndarray, drawn: np.ndarray, augmentation: Augmentation, *, std: float, sounding: np.ndarray
) -> np.ndarray:
    """Change each spectrogram by its row of `draws`.

    Args:
        features: (B, T, F) float32, normalised: (log mel - mean) / (2 std). May be overwritten.
        drawn: (B, K) float32.
        augmentation: What is on.
        std: Of the normalisation, for the gain.
        sounding: (B,) int64, frames before the padding: the gain leaves silence that was padded as it is.
    """
    frames, bins = features.shape[1:]
    if augmentation.gain_db:
        gain = (2 * drawn[:, 1] - 1) * np.float32(augmentation.gain_db * _NEPER_PER_DB / (2 * std))
        for item, (amount, end) in enumerate(zip(gain, sounding.tolist(), strict=True)):
            features[item, :end] += amount  # one run of memory each: half the time of one sum over all
    if augmentation.time_shift:
        shift = np.rint((2 * drawn[:, 0] - 1) * np.float32(augmentation.time_shift * frames)).astype(np.int64)
        source = (np.arange(frames) - shift[:, None]) % frames
        # Rows of one long table: several times as fast as indexing items and frames by two arrays.
        rows = source + frames * np.arange(len(features))[:, None]
        features = features.reshape(-1, bins).take(rows.ravel(), axis=0).reshape(features.shape)
    first, last = 2, 2 + 2 * augmentation.time_masks
    if augmentation.time_masks:
        features[_masked(drawn[:, first:last], augmentation.time_mask_frames, frames)] = 0
    if augmentation.frequency_masks:
        kept = ~_masked(drawn[:, last:], augmentation.frequency_mask_bins, bins)
        features *= kept.astype(np.float32)[:, None, :]
    return features


def _masked(drawn: np.ndarray, largest: int, length: int) -> np.ndarray:
    """(B, length) bool: where any of the masks lies; `drawn` holds width and place of each by turns."""
    width = np.floor(drawn[:, 0::2] * (min(largest, length) + 1))
    start = np.floor(drawn[:, 1::2] * (length - width + 1))
    position = np.arange(length, dtype=np.float32)
    inside = (position >= start[..., None]) & (position < (start + width)[..., None])
    return np.asarray(inside.any(axis=1))
