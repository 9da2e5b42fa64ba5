# SPDX-License-Identifier: Apache-2.0
"""What of a prepared input travels to a device: as few bytes as give, on arrival, the same input bit for bit.

Images travel as the uint8 pixels before rescaling and normalising, a quarter of the float32; texts as int32, half of
the int64; spectrograms as they are, since one is smaller than the sound that it was made of in most uses and is
computed once here instead of on every device. The device turns them back with its own transform.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.tasks import GRAPH_INPUTS, MAIN_INPUT
from edvit_hf.transforms import ImageTransform, Transform

_LEVELS = 256
_INT32 = np.iinfo(np.int32)


def travelling_types(transform: Transform) -> dict[str, str]:
    """Name of each input -> the type, as numpy names it, in which it travels where it can."""
    kinds = {"image-classification": "uint8", "audio-classification": "float32", "text-classification": "int32"}
    return dict.fromkeys(GRAPH_INPUTS[transform.task], kinds[transform.task])


def travelling(transform: Transform, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of one request as they travel.

    Args:
        transform: What prepares this ensemble's inputs.
        inputs: Prepared, by name: `pixel_values` (B, 3, H, W) float32, `input_values` (B, frames, mel bins) float32, or
            `input_ids` and `attention_mask` (B, T) int64.

    Returns:
        By the same names and of the same shapes: uint8 or int32 where `arrived` gives back exactly `inputs`, else the
        array itself. An image that this transform did not make (noise, another normalisation) is such a one.
    """
    if isinstance(transform, ImageTransform):
        name = MAIN_INPUT[transform.task]
        pixels = _pixels(transform, inputs[name])
        return dict(inputs) if pixels is None else {**inputs, name: pixels}
    return {name: _narrow(values) for name, values in inputs.items()}


def arrived(transform: Transform, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The prepared inputs of what travelled, by the device's own transform; arrays that are prepared stay as they are.

    Raises:
        DataError: Pixels are not of shape (B, 3, H, W).
    """
    if not isinstance(transform, ImageTransform):
        return {name: v.astype(np.int64) if v.dtype == np.int32 else v for name, v in inputs.items()}
    return {name: _normalised(transform, v) if v.dtype == np.uint8 else v for name, v in inputs.items()}


def _pixels(transform: ImageTransform, values: np.ndarray) -> np.ndarray | None:
    """(B, 3, H, W) uint8 pixels from which exactly these values are made; None if there are none."""
    if values.ndim != 4 or values.shape[1] != len(transform.mean or "RGB") or values.dtype != np.float32:
        return None
    scale = np.float64(1.0 if transform.rescale_factor is None else transform.rescale_factor)
    mean, std = (np.asarray(v or (d,) * 3, np.float64) for v, d in ((transform.mean, 0.0), (transform.std, 1.0)))
    factor = (std / scale).astype(np.float32)[:, None, None]
    offset = (mean / scale + 0.5).astype(np.float32)[:, None, None]  # half a level: rounding is then cutting off
    with np.errstate(over="ignore", invalid="ignore"):
        levels = values * factor + offset
        if not (levels >= 0).all() or not (levels < _LEVELS).all():
            return None
        pixels = levels.astype(np.uint8)
    same = _normalised(transform, pixels).view(np.uint32) == np.ascontiguousarray(values).view(np.uint32)
    return pixels if same.all() else None


def _normalised(transform: ImageTransform, pixels: np.ndarray) -> np.ndarray:
    """(B, 3, H, W) float32: what the transform makes of uint8 pixels, looked up."""
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise DataError(
            f"Expected pixels of shape (B, 3, H, W), got {pixels.shape}. Which axis holds the colours is unknown. Send "
            "what `travelling` makes."
        )
    tables = _tables(transform)
    out = np.empty(pixels.shape, np.float32)
    for channel, table in enumerate(tables):
        out[:, channel] = table[pixels[:, channel]]
    return out


@lru_cache(maxsize=8)
def _tables(transform: ImageTransform) -> np.ndarray:
    """(3, 256) float32: what becomes of each level in each channel; every value is computed by itself."""
    levels = np.arange(_LEVELS, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    return np.ascontiguousarray(transform.normalised(levels)[:, 0].T)


def _narrow(values: np.ndarray) -> np.ndarray:
    """int32 where the whole numbers fit."""
    if values.dtype != np.int64 or values.size == 0 or values.min() < _INT32.min or values.max() > _INT32.max:
        return values
    return values.astype(np.int32)
