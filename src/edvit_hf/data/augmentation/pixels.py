# SPDX-License-Identifier: Apache-2.0
"""Images in a replayable view: moved by one affine map each, or by whole pixels."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edvit_hf.data.augmentation import Augmentation

_GRID_PADDING = {"black": "zeros", "border": "border", "reflection": "reflection"}


@lru_cache(maxsize=16)
def movements(augmentation: Augmentation, num_items: int, view: int, seed: int) -> np.ndarray:
    """Draw the movements of one view; item i gets the same row whatever `num_items` is.

    Returns:
        `np.ndarray`: (num_items, 5) float32: rotation in radians, zoom factor, shift right and shift down
            as shares of the side, and -1 where mirrored, else 1.
    """
    # Filled row by row, so that the first rows do not depend on how many follow.
    draws = np.random.default_rng([seed, view]).random((num_items, 5))
    spread = 2 * draws[:, :4] - 1
    parameters = np.empty((num_items, 5), np.float32)
    parameters[:, 0] = spread[:, 0] * np.deg2rad(augmentation.rotate_degrees)
    parameters[:, 1] = 1 + spread[:, 1] * augmentation.scale
    parameters[:, 2:4] = spread[:, 2:4] * augmentation.shift
    parameters[:, 4] = np.where(draws[:, 4] < 0.5, -1, 1) if augmentation.flip else 1
    return parameters


def move(pixels: np.ndarray, parameters: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """Move each image (B, C, H, W), uint8 or float32, by its row (B, 5) of `movements`.

    Images are not normalised yet: with padding "black" what enters is 0.

    Returns:
        (B, C, H, W): uint8 if the input is and whole pixels move, else float32 (bilinear); the input itself when
            nothing moves.
    """
    if not augmentation.moves_pixels or not len(pixels):
        return pixels
    if augmentation.whole_pixels or not (augmentation.shift or augmentation.rotate_degrees or augmentation.scale):
        return _move_whole_pixels(pixels, parameters, augmentation)
    height, width = pixels.shape[-2:]
    grid = _sampling_grid(torch.from_numpy(parameters), height, width)
    images, padding = torch.from_numpy(pixels).to(torch.float32), _GRID_PADDING[augmentation.padding]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False).numpy()


def _move_whole_pixels(pixels: np.ndarray, parameters: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    height, width = pixels.shape[-2:]
    down = np.rint(parameters[:, 3] * height).astype(np.int64)
    # A mirrored image moves to the right after it is mirrored, so to the left before.
    right = np.rint(parameters[:, 2] * parameters[:, 4] * width).astype(np.int64)
    margin_y, margin_x = int(np.abs(down).max()), int(np.abs(right).max())
    padded = _padded(pixels, margin_y, margin_x, augmentation.padding) if margin_y or margin_x else pixels
    # Image by image: indexing all windows at once gives an array whose layout makes every later pass slow.
    moved = np.empty_like(pixels)
    top, left, is_mirrored = (margin_y - down).tolist(), (margin_x - right).tolist(), parameters[:, 4] < 0
    for item, mirrored in enumerate(is_mirrored.tolist()):
        y, x = top[item], left[item]
        window = padded[item, :, y : y + height, x : x + width]
        moved[item] = window[..., ::-1] if mirrored else window
    return moved


def _padded(pixels: np.ndarray, margin_y: int, margin_x: int, padding: str) -> np.ndarray:
    """Pad all sides. Written out: `np.pad` takes several times as long on small images."""
    batch, channels, height, width = pixels.shape
    shape = (batch, channels, height + 2 * margin_y, width + 2 * margin_x)
    inner = (slice(None), slice(None), slice(margin_y, margin_y + height), slice(margin_x, margin_x + width))
    if padding == "black":
        padded = np.zeros(shape, pixels.dtype)
        padded[inner] = pixels
        return padded
    padded = np.empty(shape, pixels.dtype)
    padded[inner] = pixels
    for row, source in _outside(height, margin_y, padding):
        padded[:, :, row, inner[3]] = pixels[:, :, source]
    for column, source in _outside(width, margin_x, padding):
        padded[..., column] = padded[..., source + margin_x]
    return padded


@lru_cache(maxsize=64)
def _outside(length: int, margin: int, padding: str) -> list[tuple[int, int]]:
    """For each place outside one side: (its index in the padded image, index of its pixel in the image)."""
    positions = np.concatenate((np.arange(-margin, 0), np.arange(length, length + margin)))
    if padding == "border":
        sources = positions.clip(0, length - 1)
    else:  # mirrored about the edge of the outermost pixel, as `grid_sample` does
        folded = positions % (2 * length)
        sources = np.where(folded < length, folded, 2 * length - 1 - folded)
    return list(zip((positions + margin).tolist(), sources.tolist(), strict=True))


@lru_cache(maxsize=8)
def _pixel_centres(length: int) -> Tensor:
    """Centres of the pixels along one side, in -1..1."""
    return (2 * torch.arange(length, dtype=torch.float32) + 1) / length - 1


def _sampling_grid(parameters: Tensor, height: int, width: int) -> Tensor:
    """Where each output pixel is read from: (B, H, W, 2), x then y in -1..1.

    Written out instead of `affine_grid`: separate elementwise products give an item the same bits in any batch.
    """
    angle, zoom, right, down, mirror = (column.view(-1, 1, 1) for column in parameters.unbind(1))
    x = _pixel_centres(width).view(1, 1, -1) - 2 * right
    y = _pixel_centres(height).view(1, -1, 1) - 2 * down
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    grid = torch.empty(len(parameters), height, width, 2)
    torch.add(cosine * x * mirror, sine * (height / width) * y * mirror, out=grid[..., 0])
    torch.sub(cosine * y, sine * (width / height) * x, out=grid[..., 1])
    return grid
