# SPDX-License-Identifier: Apache-2.0
"""Brings a drawn or photographed digit into the form of the data that an ensemble was trained on, white on black.

UCI optical digits, 8 by 8 pixels: bitmaps of 32 by 32, the digit as high as the bitmap and at most 24 wide, pen strokes
thickened so that about 30 % of the pixels are ink; then the mean of blocks of 4 by 4 pixels.

MNIST, 28 by 28 pixels (http://yann.lecun.com/exdb/mnist): black and white scans, scaled with their aspect ratio kept to
a box of 20 by 20 pixels, grey at the edges from anti-aliasing, then moved until the centre of mass of the pixels is in
the centre. The scans were all written with much the same pen, so its makers left strokes as they were; a drawing may be
small under a thick pen, a photograph of a thin one. Hence strokes that are thinner or thicker than theirs get the
thickness that theirs have. How thick that is, and how often such drawings are answered right, was measured:
benchmarks/results/space_drawings.json.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from edvit_hf.errors import DataError
from edvit_hf.transforms import open_image

BITMAP_SIDE, BLOCK, MAX_WIDTH, INK_SHARE = 32, 4, 24, 0.30
"""How the UCI digits were made: side of the bitmap, side of a block and widest digit, in px; share of ink."""
FIELD, BOX, FINE = 28, 20, 4
"""Sides of a picture of MNIST and of the box that holds its digit, in px; strokes are measured `FINE` times finer."""
STROKE, WIDEST_STROKE = 2.0, 3.1
"""In px: the median thickness of strokes in MNIST, and what 95 % of its images keep below (same file: `stroke_px`)."""
READY_SIDE = 32
"""A picture no larger than this, in px a side, is taken to have its form already."""
LIGHT_PAPER = 127
"""Paper lighter than this, of 255, is white, and the picture of the other kind than the data."""
MIN_CONTRAST = 32
"""Smallest difference between ink and paper, of 255."""
NO_STROKES = "No strokes can be made out here. Give one digit, with strokes thicker for its size."
EMPTY_DRAWING = "The drawing is empty. Draw one digit with a few strokes, as large as you like."


def digit_from_drawing(drawing: Mapping[str, Any] | None, side: int) -> np.ndarray:
    """A drawing in the form of the data of that size, (side, side, 3) uint8, white on black.

    Ink is what the transparent layers hold, of whatever colour; without layers, what differs from the border
    of the composite.

    Args:
        drawing: What the field holds.
        side: One of `FORM_SIDES`.

    Raises:
        DataError: If nothing is drawn, or only specks that are lost at that size.
    """
    drawing = drawing or {}
    layers = [np.asarray(layer) for layer in drawing.get("layers") or [] if layer is not None]
    layers = [layer for layer in layers if layer.ndim == 3 and layer.shape[2] == 4]
    composite = drawing.get("composite")
    if layers:
        ink = np.max([layer[:, :, 3] for layer in layers], axis=0)
    elif composite is not None:
        try:
            ink = _ink_on_paper(np.asarray(open_image(np.asarray(composite)).convert("L")))
        except DataError as error:  # not by a sketchpad
            raise DataError(EMPTY_DRAWING) from error
    else:
        ink = np.zeros((1, 1), np.uint8)
    if not ink.size or ink.max() < MIN_CONTRAST:
        raise DataError(EMPTY_DRAWING)
    return _in_form_of_the_data(ink, side)


def digit_from_picture(image: Image.Image, side: int) -> np.ndarray:
    """A picture in the form of the data of that size, (H, W, 3) uint8, white on black.

    A picture of at most 32 px a side is taken as it is, white on black; from a larger one the ink is cut out. Whether
    ink is dark on light paper or light on dark one tells the border.

    Args:
        image: RGB.
        side: One of `FORM_SIDES`.

    Raises:
        DataError: If it shows hardly any contrast.
    """
    if max(image.size) <= READY_SIDE:
        picture = np.asarray(image)
        return 255 - picture if _paper(picture.mean(axis=2)) > LIGHT_PAPER else picture
    ink = _ink_on_paper(np.asarray(image.convert("L")))
    if ink.max() < MIN_CONTRAST:
        raise DataError(
            "This picture shows hardly any contrast. Choose one with a dark digit on light paper, or inverse."
        )
    return _in_form_of_the_data(ink, side)


def _ink_on_paper(grey: np.ndarray) -> np.ndarray:
    """How far each pixel is from the paper, 0..255 uint8; the paper is the median of the picture's border."""
    return np.abs(grey.astype(np.int16) - int(_paper(grey))).clip(0, 255).astype(np.uint8)


def _paper(grey: np.ndarray) -> float:
    """The median of the picture's border."""
    return float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))


def _in_form_of_the_data(ink: np.ndarray, side: int) -> np.ndarray:
    """Cut out the ink and give it the form of that size, (side, side, 3) uint8; refuse what is but a few specks."""
    mask = ink > ink.max() // 2
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    picture = _FORMS[side](Image.fromarray(np.uint8(255) * cut.astype(np.uint8)))
    if not picture.any():
        raise DataError(NO_STROKES)
    return np.repeat(picture[:, :, None], 3, axis=2)


def _as_uci(cut: Image.Image) -> np.ndarray:
    """Scale to the bitmap, thicken the strokes, take block means: (8, 8) uint8."""
    # Thickening adds one pixel on each side and step; the margin keeps it inside the width of the data.
    width = max(1, min(MAX_WIDTH - 2, round(BITMAP_SIDE * cut.width / cut.height)))
    small = cut.resize((width, BITMAP_SIDE), Image.Resampling.BOX)
    bitmap = Image.new("L", (BITMAP_SIDE, BITMAP_SIDE))
    bitmap.paste(small, ((BITMAP_SIDE - width) // 2, 0))
    candidates = [bitmap]
    while _ink_share(candidates[-1]) < INK_SHARE and len(candidates) <= BLOCK + 1:
        candidates.append(candidates[-1].filter(ImageFilter.MaxFilter(3)))
    best = min(candidates, key=lambda candidate: abs(_ink_share(candidate) - INK_SHARE))
    blocks = np.asarray(best, np.float32).reshape(BITMAP_SIDE // BLOCK, BLOCK, BITMAP_SIDE // BLOCK, BLOCK)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def _as_mnist(cut: Image.Image) -> np.ndarray:
    """Give the strokes their thickness, scale to the box, centre by mass: (28, 28) uint8."""
    field = np.zeros((FIELD, FIELD), np.uint8)
    fine = _scaled(cut, BOX * FINE).point(lambda value: 255 * (value > MIN_CONTRAST))
    if not fine.getbbox():
        return field
    fine = _with_mnist_strokes(fine)
    digit = np.asarray(_scaled(fine.crop(fine.getbbox()), BOX))
    weight = digit.astype(np.float64)
    places = []
    for axis, size in enumerate(digit.shape):
        centre = float((weight.sum(axis=1 - axis) * np.arange(size)).sum() / weight.sum())
        places.append(min(max(0, round(FIELD // 2 - centre)), FIELD - size))
    field[places[0] : places[0] + digit.shape[0], places[1] : places[1] + digit.shape[1]] = digit
    return field


def _scaled(image: Image.Image, longest: int) -> Image.Image:
    """Scale an image to that many px on its longer side, aspect ratio kept, grey at the edges."""
    scale = longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX)


def _with_mnist_strokes(fine: Image.Image) -> Image.Image:
    """A black and white digit in a box of 80 px with strokes thickened or thinned, on a field that holds them."""
    thickness = _thickness(fine) / FINE
    steps = round((STROKE - thickness) * FINE / 2)
    room = max(1, steps)
    digit = Image.new("L", (fine.width + 2 * room, fine.height + 2 * room))
    digit.paste(fine, (room, room))
    for _ in range(steps):
        digit = digit.filter(ImageFilter.MaxFilter(3))
    for _ in range(-steps if thickness > WIDEST_STROKE else 0):
        thinner = digit.filter(ImageFilter.MinFilter(3))
        if not thinner.getbbox() or _ink_share(thinner) < 0.3 * _ink_share(digit):
            break  # what is thinner than the rest would be lost
        digit = thinner
    return digit


def _thickness(bitmap: Image.Image) -> float:
    """Thickness of strokes, in px: twice their area divided by the length of their edges."""
    inside = Image.new("L", (bitmap.width + 2, bitmap.height + 2))
    inside.paste(bitmap, (1, 1))
    area, without_edges = (np.count_nonzero(np.asarray(i)) for i in (inside, inside.filter(ImageFilter.MinFilter(3))))
    return 2 * area / (area - without_edges)


def _ink_share(bitmap: Image.Image) -> float:
    return float(np.asarray(bitmap).mean() / 255)


_FORMS: Mapping[int, Callable[[Image.Image], np.ndarray]] = {BITMAP_SIDE // BLOCK: _as_uci, FIELD: _as_mnist}
FORM_SIDES = tuple(_FORMS)
"""Sizes, in px: an ensemble of ten digits that takes one of them can be given drawings."""
