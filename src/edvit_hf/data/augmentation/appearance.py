# SPDX-License-Identifier: Apache-2.0
"""The RandAugment operations that change how pixels look, not where they are, for many images at once.

Source: RandAugment (arXiv 1909.13719), with Pillow's `ImageEnhance` and `ImageOps` as the definition of each operation.
"""

from functools import lru_cache

import numpy as np

from edvit_hf.data.augmentation import Augmentation

OPERATIONS = ("nothing", "brightness", "contrast", "saturation", "sharpness", "posterize", "solarize")
"""What is drawn from, each with the same probability."""

_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to L
_LARGEST_CHANGE = 0.9  # of an enhancement's factor from 1
_LARGEST_BITS_LOST = 4
_FEW = 8  # images whose floats stay in the processor's cache


@lru_cache(maxsize=16)
def operations(augmentation: Augmentation, num_items: int, view: int, seed: int) -> np.ndarray:
    """Draw the operations of one view; item i gets the same row whatever `num_items` is.

    Returns:
        `np.ndarray`: (num_items, `rand_augment_ops`) int64: the operation's number, negative or `~` of it where an
            enhancement weakens instead of strengthening.
    """
    draws = np.random.default_rng([seed, view, 1]).random((num_items, augmentation.rand_augment_ops, 2))
    chosen = (draws[..., 0] * len(OPERATIONS)).astype(np.int64)
    return np.where(draws[..., 1] < 0.5, ~chosen, chosen)


def change(pixels: np.ndarray, drawn: np.ndarray, magnitude: float) -> np.ndarray:
    """Apply to each image (B, 3 or 1, H, W) uint8 its row (B, K) of `operations`, in turn, with a strength in [0, 1].

    `pixels` may be overwritten.
    """
    values = np.ascontiguousarray(pixels)
    for column in drawn.T:
        strength = np.where(column < 0, -magnitude, magnitude).astype(np.float32)
        kinds = np.where(column < 0, ~column, column)
        for kind, name in enumerate(OPERATIONS):
            items = np.flatnonzero(kinds == kind)
            if name == "nothing" or not len(items):
                continue
            if name in ("saturation", "sharpness"):
                blend = _saturated if name == "saturation" else _sharpened
                factor = 1 + _LARGEST_CHANGE * strength[:, None, None, None]
                for few in np.split(items, range(_FEW, len(items), _FEW)):
                    values[few] = _bytes(blend(values[few].astype(np.float32), factor[few]))
                continue
            if name in ("posterize", "solarize"):
                values[items] = _with_bits_changed(name, values[items], np.float32(magnitude))
                continue
            # The other two map every value of an image by one table of 256 bytes.
            tables = _bytes(_table(name, values[items], strength[items, None]))
            for item, table in zip(items.tolist(), tables, strict=True):
                mapped = values[item].tobytes().translate(table.tobytes())
                values[item] = np.frombuffer(mapped, np.uint8).reshape(values.shape[1:])
    return values


def _bytes(values: np.ndarray) -> np.ndarray:
    np.rint(values, out=values)
    return values.clip(0, 255, out=values).astype(np.uint8)


def _table(name: str, images: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """(B, 256) float32: what becomes of each value of each image; `strength` is (B, 1)."""
    levels = np.arange(256, dtype=np.float32)
    mean = _mean_grey(images)[:, None] if name == "contrast" else np.float32(0)
    return np.asarray(mean + (levels - mean) * (1 + _LARGEST_CHANGE * strength))


def _with_bits_changed(name: str, images: np.ndarray, strength: np.float32) -> np.ndarray:
    """(B, C, H, W) uint8 of the two operations that need no floats."""
    if name == "posterize":
        step = int(np.exp2(np.rint(strength * _LARGEST_BITS_LOST)))
        return np.asarray(images & np.uint8(256 - step))
    first = int(np.ceil(256 * (1 - strength)))  # the lowest value that is inverted; 256 where none is
    # 255 - v is v with every bit turned.
    return images ^ -(images >= first).view(np.int8).view(np.uint8)


def _mean_grey(images: np.ndarray) -> np.ndarray:
    """(B,) float32 whole numbers. Sums of bytes are exact, so an item has the same bits in any batch."""
    means = images.reshape(*images.shape[:2], -1).sum(axis=2, dtype=np.int64) / images[0, 0].size
    weights = _GREY_WEIGHTS if images.shape[1] == 3 else (1.0,)
    return np.rint(sum(means[:, channel] * weight for channel, weight in enumerate(weights))).astype(np.float32)


def _saturated(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Blend with the grey image: (B, C, H, W) float32, overwritten."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, channel] * np.float32(w) for channel, w in enumerate(_GREY_WEIGHTS))
    grey = (red + green + blue)[:, None]
    images *= factor
    images += grey * (1 - factor)
    return images


def _sharpened(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Blend with Pillow's SMOOTH filter (3 x 3 of ones with 5 in the middle, over 13), whose border is the image's.

    Overwrites `images`.
    """
    if min(images.shape[-2:]) < 3:
        return images
    rows = images[..., :-2, :] + images[..., 1:-1, :]
    rows += images[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1]
    box += rows[..., 2:]
    weight = (1 - factor) / 13
    inner = images[..., 1:-1, 1:-1]
    inner *= factor + 4 * weight
    box *= weight
    inner += box
    return images
