"""Label-preserving augmentation that can be replayed: its parameters depend on (seed, view, item) alone.

A teacher's logits can so be stored once for a few augmented views and read back in any order, epoch or batch.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from edvit_hf.errors import DataError

if TYPE_CHECKING:
    import torch

_GRID_PADDING = {"black": "zeros", "border": "border", "reflection": "reflection"}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random shift, rotation, scaling and mirroring; everything off by default.

    Attributes:
        shift: Largest shift in each direction, as a share of the image side, in [0, 1].
        rotate_degrees: Largest rotation in either direction, in [0, 180].
        scale: Largest relative change of size, in [0, 0.95]: 0.1 draws a zoom from 0.9 to 1.1.
        flip: Mirror left and right with probability one half. Not label-preserving for digits or letters.
        padding: What enters from outside: "black" pixels (right for digits, whose background is black), the
            repeated "border", or its "reflection".
    """

    shift: float = 0.0
    rotate_degrees: float = 0.0
    scale: float = 0.0
    flip: bool = False
    padding: Literal["black", "border", "reflection"] = "black"

    def __post_init__(self) -> None:
        for name, upper in (("shift", 1.0), ("rotate_degrees", 180.0), ("scale", 0.95)):
            value = getattr(self, name)
            if not 0 <= value <= upper:
                raise DataError(f"`{name}` must lie in [0, {upper:g}], got {value}. 0 turns it off.")
        if self.padding not in _GRID_PADDING:
            raise DataError(f"`padding` must be one of {', '.join(_GRID_PADDING)}, got {self.padding!r}.")

    @property
    def is_off(self) -> bool:
        """Whether `apply` changes nothing."""
        return not (self.shift or self.rotate_degrees or self.scale or self.flip)

    def parameters(self, num_items: int, view: int, seed: int) -> np.ndarray:
        """Draw the parameters of one view; item i gets the same row whatever `num_items` is.

        Returns:
            `np.ndarray`: (num_items, 5) float32: rotation in radians, zoom factor, shift right and shift down
                as shares
            of the side, and -1 where mirrored, else 1.
        """
        if view < 0 or seed < 0:
            raise ValueError(f"`view` and `seed` must not be negative, got {view} and {seed}.")
        # Filled row by row, so that the first rows do not depend on how many follow.
        draws = np.random.default_rng([seed, view]).random((num_items, 5))
        spread = 2 * draws[:, :4] - 1
        parameters = np.empty((num_items, 5), np.float32)
        parameters[:, 0] = spread[:, 0] * np.deg2rad(self.rotate_degrees)
        parameters[:, 1] = 1 + spread[:, 1] * self.scale
        parameters[:, 2:4] = spread[:, 2:4] * self.shift
        parameters[:, 4] = np.where(draws[:, 4] < 0.5, -1, 1) if self.flip else 1
        return parameters

    def apply(self, pixel_values: "torch.Tensor", parameters: "torch.Tensor") -> "torch.Tensor":
        """Transform each image by its row of parameters (bilinear).

        Args:
            pixel_values (`torch.Tensor`): (B, C, H, W) float32. With padding "black" what enters has the
                value 0, so give pixels that are not normalised yet (`ImageSplit` does).
            parameters (`torch.Tensor`): (B, 5) float32, rows of `parameters`.

        Returns:
            `torch.Tensor`: (B, C, H, W); the input itself when everything is off.
        """
        import torch
        from torch.nn import functional as F

        if parameters.shape != (len(pixel_values), 5):
            raise ValueError(f"Expected parameters shaped ({len(pixel_values)}, 5), got {tuple(parameters.shape)}.")
        if self.is_off:
            return pixel_values
        height, width = pixel_values.shape[-2:]
        grid = _sampling_grid(parameters.to(torch.float32), height, width)
        return F.grid_sample(
            pixel_values, grid, mode="bilinear", padding_mode=_GRID_PADDING[self.padding], align_corners=False
        )


@lru_cache(maxsize=8)
def _pixel_centres(length: int) -> "torch.Tensor":
    """Centres of the pixels along one side, in -1..1."""
    import torch

    return (2 * torch.arange(length, dtype=torch.float32) + 1) / length - 1


def _sampling_grid(parameters: "torch.Tensor", height: int, width: int) -> "torch.Tensor":
    """Where each output pixel is read from: (B, H, W, 2), x then y in -1..1.

    Written out instead of `affine_grid`: separate elementwise products give an item the same bits in any
        batch.
    """
    import torch

    angle, zoom, right, down, mirror = (column.view(-1, 1, 1) for column in parameters.unbind(1))
    x = _pixel_centres(width).view(1, 1, -1) - 2 * right
    y = _pixel_centres(height).view(1, -1, 1) - 2 * down
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    source_x = (cosine * x + (sine * (height / width)) * y) * mirror
    source_y = cosine * y - (sine * (width / height)) * x
    return torch.stack((source_x, source_y), dim=-1)
