"""What the Space computes: pictures in, answers and table rows out. No gradio here, and no torch.

The digits are read by an exported ensemble in `model/`; each sub-model stands for one device.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.runtime import AbsentAnswer, Answer, EDViTRuntime
from edvit_hf.transforms import open_image

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
MODEL_DIR = HERE / "model"
EXAMPLES_DIR = HERE / "examples"
MAX_FILE_BYTES = 5 * 2**20

# The form of the UCI digits: a bitmap of 32 by 32 pixels, the digit as high as the bitmap and at most 24
# wide, pen strokes thickened so that about 30 % of the pixels are ink; then the mean of blocks of 4 by 4
# pixels, 8 by 8 in all.
BITMAP_SIDE, BLOCK, MAX_WIDTH, INK_SHARE = 32, 4, 24, 0.30
READY_SIDE = 32  # an uploaded picture no larger than this is taken to have that form already
MIN_CONTRAST = 32  # of 255

HEADERS = ["sub-model", "digits", "own vote", "time, ms", "bytes sent", "answer if only it is missing"]

FIRST_STEP = "Draw a digit, upload a picture of one, or choose an example."
ALL_UNPLUGGED = "Every sub-model is unplugged, so nobody is left to answer. Plug at least one in again."


@dataclass(frozen=True, kw_only=True)
class View:
    """What the page shows for one picture.

    Attributes:
        picture: (H, W, 3) uint8, what the sub-models see before resizing; None without a readable picture.
        probabilities: Label -> probability; empty without an answer.
        rows: One row per sub-model, see `HEADERS`.
        sentence: The answer, or what is wrong and what to do, in words.
    """

    picture: np.ndarray | None
    probabilities: Mapping[str, float]
    rows: list[list[str]]
    sentence: str


def load_ensemble(model_dir: Path = MODEL_DIR) -> EDViTRuntime:
    """The ensemble of the Space, on one thread per sub-model run, warmed up.

    Raises:
        EDViTError: If the folder is missing or incomplete; the message says how to fill it.
    """
    if not (model_dir / "manifest.json").is_file():
        raise EDViTError(
            f"There is no ensemble in {model_dir.name}/: this page needs an exported one to answer. Make it "
            "with `edvit run recipes/digits.yaml --work-dir work/digits` (a few minutes on two cores), then fill "
            f"space_app/{model_dir.name}/ with `python space_app/assemble.py work/digits/09_card/ensemble` and start "
            "again. `make space` does all three."
        )
    ensemble = EDViTRuntime.from_pretrained(model_dir, num_threads=1)
    ensemble(np.zeros((BITMAP_SIDE, BITMAP_SIDE), np.uint8))  # the first run allocates: keep it off the clock
    return ensemble


def sub_model_names(ensemble: EDViTRuntime) -> list[str]:
    """One text per sub-model for the checkboxes: its number and its classes."""
    return [f"{entry.index}: {_classes(ensemble, entry.index)}" for entry in ensemble.manifest.sub_models]


def example_files(folder: Path = EXAMPLES_DIR) -> list[Path]:
    """The bundled pictures, in order of their names."""
    return sorted(folder.glob("*.png"))


def view_of_drawing(ensemble: EDViTRuntime, drawing: Mapping[str, Any] | None, unplugged: Sequence[int]) -> View:
    """Answer for what the sketchpad holds: a mapping with RGBA arrays under "layers" and "composite"."""
    try:
        picture = digit_from_drawing(drawing)
    except EDViTError as error:
        return _refused(error)
    return view_of_picture(ensemble, picture, unplugged)


def view_of_file(ensemble: EDViTRuntime, path: str | Path | None, unplugged: Sequence[int]) -> View:
    """Answer for an uploaded file."""
    try:
        picture = digit_from_file(path)
    except EDViTError as error:
        return _refused(error)
    return view_of_picture(ensemble, picture, unplugged)


def view_of_picture(ensemble: EDViTRuntime, picture: np.ndarray | None, unplugged: Sequence[int]) -> View:
    """Answer for a picture in the form of the data, with the sub-models in `unplugged` left out.

    The whole ensemble answers too, so that the sentence can say what unplugging changed.
    """
    if picture is None:
        return _refused(DataError(FIRST_STEP))
    if set(unplugged) >= set(ensemble.loaded):
        return View(picture=picture, probabilities={}, rows=[], sentence=ALL_UNPLUGGED)
    try:
        whole = ensemble(picture)
        answer = ensemble(picture, absent=unplugged) if unplugged else whole
        changes = {change.index: change for change in ensemble.what_if_absent(picture)}
    except EDViTError as error:
        return View(picture=picture, probabilities={}, rows=[], sentence=str(error))
    probabilities = dict(zip(answer.label_names, map(float, answer.probabilities[0]), strict=True))
    rows = [_row(ensemble, answer, changes.get(i), i) for i in range(len(answer.present))]
    return View(picture=picture, probabilities=probabilities, rows=rows, sentence=_sentence(whole, answer))


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
    if ink.max() < MIN_CONTRAST:
        raise DataError("The drawing is empty. Draw one digit with a few strokes, as large as you like.")
    return _in_form_of_the_data(ink)


def digit_from_file(path: str | Path | None) -> np.ndarray:
    """An uploaded picture in the form of the data, (H, W, 3) uint8, white on black.

    A picture of at most 32 px a side is taken as it is; from a larger one the ink is cut out, whether it is
    dark on light or light on dark paper.

    Raises:
        DataError: If the file is no image, too large, damaged, or shows hardly any contrast.
    """
    if path is None:
        raise DataError("Choose a picture of one digit first: PNG, JPEG or another common format.")
    if Path(path).stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"This file is larger than {MAX_FILE_BYTES // 2**20} MiB. Choose or make a smaller one.")
    try:
        image = open_image(Path(path))
    except DataError as error:
        logger.info("refused an upload: %s", error)
        raise DataError("This file is not a readable picture. Choose a complete PNG or JPEG of one digit.") from error
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


def _row(ensemble: EDViTRuntime, answer: Answer, without: AbsentAnswer | None, index: int) -> list[str]:
    """One line of the table of sub-models."""
    classes, vote, taken = _classes(ensemble, index), answer.votes[index], answer.milliseconds[index]
    if vote is None or taken is None:
        reason = "gave no usable features" if index in answer.failed else "unplugged"
        return [str(index), classes, reason, "-", "0", "-"]
    group = ensemble.manifest.sub_models[index].class_group
    names = [*(ensemble.label_names[label] for label in group), "other"]
    winner = int(vote[0].argmax())
    other = f"{without.labels[0]} ({without.probabilities[0].max():.0%})" if without else "none"
    return [
        str(index),
        classes,
        f"{names[winner]} ({vote[0][winner]:.0%})",
        f"{taken:.2f}",
        str(ensemble.feature_bytes(index)),
        other,
    ]


def _sentence(whole: Answer, answer: Answer) -> str:
    """The answer in words, and what unplugging changed."""
    said = f"**{answer.labels[0]}** with {answer.probabilities[0].max():.0%}"
    if answer.present == whole.present:
        missing = f", {len(whole.failed)} without usable features" if whole.failed else ""
        return f"{said}; {sum(answer.present)} sub-models took {answer.total_milliseconds:.1f} ms{missing}."
    before = f"{whole.labels[0]} with {whole.probabilities[0].max():.0%}"
    verdict = "The answer stays" if answer.labels == whole.labels else "The answer changes"
    left = f"{sum(answer.present)} of {len(answer.present)} sub-models are left"
    return f"{said}; {left}. {verdict}: with all of them it was {before}."


def _classes(ensemble: EDViTRuntime, index: int) -> str:
    return ", ".join(ensemble.label_names[label] for label in ensemble.manifest.sub_models[index].class_group)


def _refused(error: EDViTError) -> View:
    return View(picture=None, probabilities={}, rows=[], sentence=str(error))
