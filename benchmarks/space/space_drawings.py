# SPDX-License-Identifier: Apache-2.0
"""Measure how thick MNIST's strokes are, and how often the Space answers drawings of them right.

    EDVIT_DATA_DIR=... python benchmarks/space/space_drawings.py ENSEMBLE [--items N] [--seed N]

ENSEMBLE is an exported folder of the recipe mnist_small. Of N test images, drawn with the seed: the thickness of the
strokes as space_app/answers/digit_form.py measures it, on the image enlarged until its box of 20 px has the 80 that are
measured there; where the centre of mass lies, and how much is ink. Then the share that the ensemble answers right, of
the images as they are, and of drawings of them that go the page's way (PNG of the field, `read_drawing`,
`prepare_drawing`): enlarged to black and white by 4 to 9 times; and redrawn, the middle line of their strokes in the
page's pen, the larger side so many px of the field, which holds 280. Thick pens on small drawings close loops.
Writes results/space_drawings.json.
"""

import base64
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from answers.digit_form import BOX, FINE, FORM_SIDES, _thickness
from answers.ensembles import OpenEnsemble, open_other
from answers.inputs import prepare_drawing
from edvit_hf.data.sources import open_splits
from edvit_hf.errors import DataError
from edvit_hf.manifest import Manifest
from edvit_hf.recipe import load_recipe
from edvit_hf.transforms import open_image
from page.scripts import DRAW, SIDE, read_drawing

PEN = float(re.findall(r"lineWidth = (\d+)", DRAW)[0])  # px
HEIGHTS = (240, 200, 150, 100, 80, 60, 40)  # px: of what is redrawn, the pen's width included
ENLARGED = (4.0, 9.0)
BATCH = 100
NEIGHBOURS = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # north first, clockwise


def test_images(num_items: int, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Items of MNIST's test split, (28, 28) uint8 white on black, and their labels."""
    split = open_splits(load_recipe("mnist_small").dataset)["test"]
    chosen = rng.choice(len(split.labels), num_items, replace=False)
    images = [np.asarray(open_image(item).convert("L")) for item in split.items.read(chosen)]
    return images, np.array([split.labels[row] for row in chosen])


def enlarged(image: np.ndarray, scale: float) -> np.ndarray:
    """Black and white (n, n) bool: an edge runs where the grey is half."""
    side = round(len(image) * scale)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) > 127


def form_of(images: list[np.ndarray]) -> dict[str, Any]:
    """Thickness of strokes in px, distance of the centre of mass from (14, 14), share of ink."""
    thickness = [_thickness(Image.fromarray(np.uint8(255) * enlarged(image, FINE))) / FINE for image in images]
    grey = np.stack(images) / 255
    centres = np.einsum("nyx,ayx->na", grey, np.indices(grey.shape[1:])) / grey.sum(axis=(1, 2))[:, None]
    ink = np.percentile(grey.mean(axis=(1, 2)), (1, 99))
    middle, thick = (round(float(np.percentile(thickness, share)), 3) for share in (50, 95))
    return {
        "stroke_px": {"median": middle, "percentile_95": thick},
        "largest_offset_of_the_centre_px": round(float(np.abs(centres - 14).max()), 3),
        "ink_share": {"percentile_1": round(float(ink[0]), 4), "percentile_99": round(float(ink[1]), 4)},
    }


def middle_line(mask: np.ndarray) -> np.ndarray:
    """The strokes of a black and white digit thinned to lines (Zhang and Suen, CACM 27(3), 1984): (n, n) bool."""
    line = np.pad(mask, 1).astype(np.uint8)
    while True:
        before = line.sum()
        for first in (True, False):
            around = [np.roll(line, move, (0, 1)) for move in NEIGHBOURS]
            count = sum(around)
            turns = sum((around[i] == 0) & (around[(i + 1) % 8] == 1) for i in range(8))
            north, east, south, west = around[::2]
            ends = (east & south) & (north | west) if first else (north & west) & (east | south)
            line[(line == 1) & (count >= 2) & (count <= 6) & (turns == 1) & (ends == 0)] = 0
        if line.sum() == before:
            return line[1:-1].astype(bool)


def redrawn(line: np.ndarray, height: int, rng: np.random.Generator) -> np.ndarray:
    """The lines in the page's pen, somewhere on the field: (280, 280) bool."""
    points = np.argwhere(line).astype(float)
    points -= points.min(axis=0)
    points *= (height - PEN) / max(points.max(), 1)
    room = SIDE - PEN - points.max(axis=0)
    points += PEN / 2 + rng.uniform(0, 1, 2) * room
    field = Image.new("1", (SIDE, SIDE))
    pencil = ImageDraw.Draw(field)
    for y, x in points:  # neighbours are a few px apart at most: round tips close the line
        pencil.ellipse((x - PEN / 2, y - PEN / 2, x + PEN / 2, y + PEN / 2), fill=1)
    return np.asarray(field)


def somewhere(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """On the field, (280, 280) bool."""
    field = np.zeros((SIDE, SIDE), bool)
    top, left = rng.integers(0, SIDE - len(mask) + 1, 2)
    field[top : top + len(mask), left : left + len(mask)] = mask
    return field


def as_sent(mask: np.ndarray) -> str:
    """The field as the browser sends it."""
    buffer = io.BytesIO()
    Image.fromarray(mask[:, :, None] * np.array([22, 32, 44, 255], np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def share_right(opened: OpenEnsemble, inputs: Sequence[np.ndarray | None], labels: np.ndarray) -> dict[str, Any]:
    """Of all; what the page refuses is not right."""
    kept = [row for row, each in enumerate(inputs) if each is not None]
    given = np.concatenate([each for each in inputs if each is not None])
    answers = [
        opened.runtime.predict({"pixel_values": given[start : start + BATCH]}).probabilities.argmax(axis=1)
        for start in range(0, len(given), BATCH)
    ]
    num_right = int((np.concatenate(answers) == labels[kept]).sum())
    return {"share_right": num_right / len(labels), "num_refused": len(labels) - len(kept)}


def prepared(opened: OpenEnsemble, mask: np.ndarray) -> np.ndarray | None:
    """What the page gives the sub-models of a drawing; None if it refuses it."""
    try:
        return prepare_drawing(opened, read_drawing(as_sent(mask))).inputs["pixel_values"]
    except DataError:
        return None


def answered(
    opened: OpenEnsemble, images: list[np.ndarray], labels: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """Share right by what is given."""
    transform = opened.runtime.transform
    as_they_are = [transform.inputs(np.repeat(image[:, :, None], 3, axis=2))["pixel_values"] for image in images]
    found = {"as they are": share_right(opened, as_they_are, labels)}
    scales = rng.uniform(*ENLARGED, len(images))
    large = [somewhere(enlarged(image, scale), rng) for image, scale in zip(images, scales, strict=True)]
    found["enlarged"] = share_right(opened, [prepared(opened, mask) for mask in large], labels)
    lines = [middle_line(enlarged(image, FINE)) for image in images]
    for height in tqdm(HEIGHTS, unit="height"):
        given = [prepared(opened, redrawn(line, height, rng)) for line in lines]
        found[f"redrawn, {height} px"] = share_right(opened, given, labels)
    return found


def main() -> None:
    """Measure, write, print."""
    add, parse = command_line(__doc__)
    add("ensemble", type=Path)
    add("--items", type=int, default=1000)
    add("--seed", type=int, default=0)
    arguments = parse()
    assert BOX * FINE == 80 and 28 in FORM_SIDES, "the docstring above says so"  # noqa: PT018
    rng = np.random.default_rng(arguments.seed)
    images, labels = test_images(arguments.items, rng)
    result = {
        "seed": arguments.seed,
        "ensemble": Manifest.load(arguments.ensemble).ensemble.content_hash,
        "pen_px": PEN,
        "form": form_of(images),
        "drawings": answered(open_other(str(arguments.ensemble)), images, labels, rng),
    }
    print(json.dumps({name: result[name] for name in ("form", "drawings")}, indent=1))
    write_results(__file__, arguments, result, "items", "seed", places="ENSEMBLE")


if __name__ == "__main__":
    main()
