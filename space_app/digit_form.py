"""A drawn or photographed digit in the form of the UCI digits: 8 by 8 pixels, white on black.

The data are bitmaps of 32 by 32 pixels, the digit as high as the bitmap and at most 24 wide, pen strokes thickened so
that about 30 % of the pixels are ink; then the mean of blocks of 4 by 4 pixels, 8 by 8 in all.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from edvit_hf.errors import DataError
from edvit_hf.transforms import open_image

BITMAP_SIDE, BLOCK, MAX_WIDTH, INK_SHARE = 32, 4, 24, 0.30
READY_SIDE = 32
"""A picture no larger than this, in px a side, is taken to have that form already."""
MIN_CONTRAST = 32
"""Of 255."""
EMPTY_DRAWING = "The drawing is empty. Draw one digit with a few strokes, as large as you like."
FORM_SIDE = BITMAP_SIDE // BLOCK
"""Of the result, in px: what an ensemble must take to be given drawings."""


def digit_from_drawing(drawing: Mapping[str, Any] | None) -> np.ndarray:
    """A drawing in the form of the data, (8, 8, 3) uint8, white on black.

    Ink is what the transparent layers hold, of whatever colour; without layers, what differs from the border
    of the composite.

    Raises:
        DataError: If nothing is drawn.
    """
    drawing = drawing or {}
    layers = [np.asarray(layer) for layer in drawing.get("layers") or [] if layer is not None]
    layers = [layer for layer in layers if layer.ndim == 3 and layer.shape[2] == 4]
    composite = drawing.get("composite")
    if layers:
        ink = np.max([layer[:, :, 3] for layer in layers], axis=0)
    elif composite is not None:
        ink = _ink_on_paper(np.asarray(open_image(np.asarray(composite)).convert("L")))
    else:
        ink = np.zeros((1, 1), np.uint8)
    if not ink.size or ink.max() < MIN_CONTRAST:
        raise DataError(EMPTY_DRAWING)
    return _in_form_of_the_data(ink)


def digit_from_picture(image: Image.Image) -> np.ndarray:
    """A picture in the form of the data, (H, W, 3) uint8, white on black.

    A picture of at most 32 px a side is taken as it is; from a larger one the ink is cut out, whether it is
    dark on light or light on dark paper.

    Raises:
        DataError: If it shows hardly any contrast.
    """
    if max(image.size) <= READY_SIDE:
        return np.asarray(image)
    ink = _ink_on_paper(np.asarray(image.convert("L")))
    if ink.max() < MIN_CONTRAST:
        raise DataError(
            "This picture shows hardly any contrast. Choose one with a dark digit on light paper, or inverse."
        )
    return _in_form_of_the_data(ink)


def _ink_on_paper(grey: np.ndarray) -> np.ndarray:
    """How far each pixel is from the paper, 0..255 uint8; the paper is the median of the picture's border."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return np.abs(grey.astype(np.int16) - int(np.median(border))).clip(0, 255).astype(np.uint8)


def _in_form_of_the_data(ink: np.ndarray) -> np.ndarray:
    """Cut out the ink, scale it to the bitmap, thicken the strokes, take block means: (8, 8, 3) uint8."""
    mask = ink > ink.max() // 2
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Thickening adds one pixel on each side and step; the margin keeps it inside the width of the data.
    width = max(1, min(MAX_WIDTH - 2, round(BITMAP_SIDE * cut.shape[1] / cut.shape[0])))
    small = Image.fromarray(np.uint8(255) * cut.astype(np.uint8)).resize((width, BITMAP_SIDE), Image.Resampling.BOX)
    bitmap = Image.new("L", (BITMAP_SIDE, BITMAP_SIDE))
    bitmap.paste(small, ((BITMAP_SIDE - width) // 2, 0))
    candidates = [bitmap]
    while _ink_share(candidates[-1]) < INK_SHARE and len(candidates) <= BLOCK + 1:
        candidates.append(candidates[-1].filter(ImageFilter.MaxFilter(3)))
    best = min(candidates, key=lambda candidate: abs(_ink_share(candidate) - INK_SHARE))
    blocks = np.asarray(best, np.float32).reshape(BITMAP_SIDE // BLOCK, BLOCK, BITMAP_SIDE // BLOCK, BLOCK)
    return np.repeat(np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)[:, :, None], 3, axis=2)


def _ink_share(bitmap: Image.Image) -> float:
    return float(np.asarray(bitmap).mean() / 255)
