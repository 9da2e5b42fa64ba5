# SPDX-License-Identifier: Apache-2.0
"""Checks what a visitor gives (drawing, picture, sound, text) and brings it into the form that sub-models take.

Every refusal is a `DataError` with one sentence that a visitor understands; what went wrong in detail is logged.
"""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from answers.digit_form import EMPTY_DRAWING, digit_from_drawing, digit_from_picture
from answers.ensembles import OpenEnsemble
from answers.sounds import read_sound, spectrogram_picture
from edvit_hf.errors import DataError, EDViTError
from edvit_hf.transforms import AudioTransform, ImageTransform, TextTransform, open_image

if TYPE_CHECKING:
    from edvit_hf.transforms import Transform

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 10 * 2**20
MAX_PIXELS = 24_000_000
"""Pixels of an uploaded picture, by its header: bounds what decoding takes, several visitors at once included."""
MAX_PIXELS_UNSCALED = 1_000_000
"""Pixels where the ensemble takes pictures in their own size, so that every pixel costs time."""
MAX_CHARACTERS = 20_000
"""Characters of a text that are looked at. No model here reads so many."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO")

_NOT_MEASURED = "How often the answer is right on {} was not measured."
_WRONG_KIND = "This ensemble takes {}. Give it one, or choose another ensemble."
_KINDS = {"image-classification": "pictures", "audio-classification": "sounds", "text-classification": "texts"}


@dataclass(frozen=True, kw_only=True)
class PreparedInput:
    """One visitor's input, ready for the sub-models of one ensemble.

    Attributes:
        ensemble: `OpenEnsemble.name` of the ensemble that it was prepared for.
        inputs: What the graphs take, by name; one item.
        seen: (H, W, 3) uint8, what the sub-models see of an image or sound; None for a text.
        tokens: What they see of a text.
        remark: What was cut off or changed, in sentences; empty if nothing.
        caution: What the card's figures say nothing about.
    """

    ensemble: str
    inputs: Mapping[str, np.ndarray]
    seen: np.ndarray | None = None
    tokens: tuple[str, ...] = ()
    remark: str = ""
    caution: str = ""


def prepare_drawing(opened: OpenEnsemble, drawing: Mapping[str, Any] | None) -> PreparedInput:
    """What the sketchpad holds: a mapping with RGBA arrays under "layers" and "composite".

    Raises:
        DataError: Nothing is drawn, or only specks; or this ensemble reads no drawings.
    """
    transform = _transform(opened, ImageTransform)
    if not opened.can_draw:
        raise DataError("This ensemble reads no drawings. Upload a picture, or choose the handwritten digits.")
    try:
        picture = digit_from_drawing(drawing, _side(transform))
    except DataError:  # which says what of the drawing is wrong
        raise
    except (ValueError, TypeError, AttributeError, MemoryError) as error:  # not by a sketchpad
        raise DataError(EMPTY_DRAWING) from error
    return _of_picture(opened, transform, picture, _NOT_MEASURED.format("drawings"))


def prepare_image(opened: OpenEnsemble, path: str | Path | None) -> PreparedInput:
    """An uploaded picture, or an example.

    Raises:
        DataError: No file, no picture, damaged, too large or too small, or without contrast where that is needed; or
            this ensemble takes no pictures.
    """
    transform = _transform(opened, ImageTransform)
    file = _file(path, "a picture")
    limit = MAX_PIXELS if transform.size is not None else MAX_PIXELS_UNSCALED
    _check_pixels(file, limit)
    try:
        image = open_image(file)
    except (EDViTError, MemoryError) as error:
        raise _no_picture(error) from error
    caution = "" if _is_example(opened, file) else _NOT_MEASURED.format("pictures of other origin than the data's")
    picture = digit_from_picture(image, _side(transform)) if opened.can_draw else image
    return _of_picture(opened, transform, picture, caution)


def prepare_sound(opened: OpenEnsemble, path: str | Path | None) -> PreparedInput:
    """An uploaded sound, a recording, or an example.

    Raises:
        DataError: No file, no sound that can be read here, damaged, empty, silent or too long; or this ensemble takes
            no sounds.
    """
    transform = _transform(opened, AudioTransform)
    file = _file(path, "a sound file")
    sound = read_sound(file.read_bytes(), transform, is_word=opened.hears_words)
    try:
        inputs = transform.inputs((sound.waveform, sound.rate))
    except (EDViTError, MemoryError) as error:
        logger.info("refused a sound: %s", error)
        raise DataError("This sound is damaged: its samples cannot be used. Record or choose another one.") from error
    caution = "" if _is_example(opened, file) else _NOT_MEASURED.format("recordings of other speakers and microphones")
    return PreparedInput(
        ensemble=opened.name,
        inputs=inputs,
        seen=spectrogram_picture(inputs["input_values"][0]),
        remark=sound.remark,
        caution=caution,
    )


def prepare_text(opened: OpenEnsemble, text: str | None) -> PreparedInput:
    """A typed text.

    Raises:
        DataError: Nothing is typed, or nothing that the ensemble's vocabulary holds; or it takes no texts.
    """
    transform = _transform(opened, TextTransform)
    given = (text if isinstance(text, str) else "").strip()
    if not given:
        raise DataError("Type a text first: there is nothing to read yet.")
    text = given[:MAX_CHARACTERS]
    try:
        ids = transform.encode([text])[0]
        tokens = transform.tokens(ids)
        is_cut = len(given) > len(text) or _is_cut(transform, text, ids)
    except (EDViTError, MemoryError) as error:
        logger.info("refused a text: %s", error)
        raise DataError("This text cannot be read. Type other words.") from error
    if transform.says_nothing(text, ids):
        raise DataError("The ensemble knows none of these words or signs, so it would only guess. Type other words.")
    remark = f"Only the first {len(ids)} tokens of this text are looked at; the rest was cut off." if is_cut else ""
    is_example = any(example.value == given for example in opened.examples)
    return PreparedInput(
        ensemble=opened.name,
        inputs=transform.pad([ids]),
        tokens=tokens,
        remark=remark,
        caution="" if is_example else _NOT_MEASURED.format("texts of other origin than the data's"),
    )


def _of_picture(opened: OpenEnsemble, transform: ImageTransform, picture: Any, caution: str) -> PreparedInput:
    try:
        seen = transform.pixels(picture)  # in the size that is taken: scaled once
        return PreparedInput(ensemble=opened.name, inputs=transform.inputs(seen), seen=seen, caution=caution)
    except (EDViTError, MemoryError) as error:
        raise _no_picture(error) from error


def _side(transform: ImageTransform) -> int:
    """Side of the pictures that an ensemble takes, in px, where it reads drawings."""
    return 0 if transform.size is None else transform.size[0]


def _transform(opened: OpenEnsemble, kind: type) -> Any:
    """What prepares the ensemble's inputs, if it is of that kind."""
    transform: Transform = opened.runtime.transform
    if not isinstance(transform, kind):
        raise DataError(_WRONG_KIND.format(_KINDS[opened.task]))
    return transform


def _file(path: str | Path | None, what: str) -> Path:
    """The file of that path, if its size is one to look at."""
    if not path:
        raise DataError(f"Choose {what} first.")
    try:
        file = Path(path)
        size = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError) as error:
        raise DataError("This file cannot be opened. Choose it again.") from error
    if size is None:
        raise DataError("This file cannot be opened. Choose it again.")
    if size == 0:
        raise DataError(f"This file is empty. Choose {what} with something in it.")
    if size > MAX_FILE_BYTES:
        raise DataError(f"This file is larger than {MAX_FILE_BYTES // 2**20} MiB. Choose or make a smaller one.")
    return file


def _check_pixels(file: Path, limit: int) -> None:
    """Refuse by the header, before anything is decoded."""
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("too many", limit) from error
    except Exception as error:  # Pillow's readers raise nearly every type on damaged input
        raise _no_picture(error) from error
    if width * height > limit:
        raise _too_many_pixels(f"{width} x {height}", limit)
    if min(width, height) < 2:
        raise DataError("This picture is only one pixel wide or high. Choose a larger one.")


def _too_many_pixels(got: str, limit: int) -> DataError:
    return DataError(
        f"This picture has {got} pixels, more than the {limit // 1_000_000} million that fit here. "
        "Scale it down or choose a smaller one."
    )


def _no_picture(error: BaseException) -> DataError:
    logger.info("refused a picture: %s", error)
    return DataError("This file is not a readable picture. Choose a complete PNG, JPEG or WebP picture.")


def _is_cut(transform: TextTransform, text: str, ids: np.ndarray) -> bool:
    """Whether the end of the text is not among its tokens: without it they are the same."""
    if len(ids) < transform.max_length:
        return False
    words = text.rsplit(None, 1)
    return bool(np.array_equal(transform.encode([words[0] if len(words) > 1 else text[:-1]])[0], ids))


def _is_example(opened: OpenEnsemble, file: Path) -> bool:
    return any(Path(example.value) == file for example in opened.examples)
