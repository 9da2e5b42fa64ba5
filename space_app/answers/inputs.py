# SPDX-License-Identifier: Apache-2.0
"""Takes what a visitor gives (drawing, picture, sound, text), within limits, and has it read for an ensemble.

Files of strangers are read in a process of its own where `isolation` is on, and whatever is given to an ensemble that
a visitor named is read where that one runs. Every refusal is a `DataError` with one sentence for the visitor.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answers import isolation
from answers.digit_form import EMPTY_DRAWING, digit_from_drawing
from answers.opened import OpenEnsemble
from answers.reading import Kind, Reading, read
from edvit_hf.errors import DataError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 10 * 2**20

_NOT_MEASURED = "How often the answer is right on {} was not measured."
_CAUTIONS: Mapping[Kind, str] = {
    "picture": "pictures of other origin than the data's",
    "sound": "recordings of other speakers and microphones",
    "text": "texts of other origin than the data's",
    "drawing": "drawings",
}
_HARMLESS: tuple[Kind, ...] = ("text", "drawing")
"""What a transform of the page's own reads in no time, whatever it holds."""


@dataclass(frozen=True, kw_only=True)
class PreparedInput(Reading):
    """One visitor's input, ready for the sub-models of one ensemble.

    Attributes:
        ensemble: `OpenEnsemble.name` of the ensemble that it was prepared for.
        caution: What the card's figures say nothing about.
    """

    ensemble: str
    caution: str = ""


def prepare_drawing(opened: OpenEnsemble, drawing: Mapping[str, Any] | None) -> PreparedInput:
    """What the sketchpad holds: a mapping with RGBA arrays under "layers" and "composite".

    Raises:
        DataError: Nothing is drawn, or only specks; or this ensemble reads no drawings.
    """
    if not opened.can_draw:
        raise DataError("This ensemble reads no drawings. Upload a picture, or choose the handwritten digits.")
    try:
        picture = digit_from_drawing(drawing, opened.side)
    except DataError:  # which says what of the drawing is wrong
        raise
    except (ValueError, TypeError, AttributeError, MemoryError) as error:  # not by a sketchpad
        raise DataError(EMPTY_DRAWING) from error
    return _of_content(opened, "drawing", picture.tobytes(), is_example=False)


def prepare_image(opened: OpenEnsemble, path: str | Path | None) -> PreparedInput:
    """An uploaded picture, or an example.

    Raises:
        DataError: No file, no picture, damaged, too large or too small, or without contrast where that is needed; or
            this ensemble takes no pictures.
    """
    return _of_file(opened, "picture", path, "a picture")


def prepare_sound(opened: OpenEnsemble, path: str | Path | None) -> PreparedInput:
    """An uploaded sound, a recording, or an example.

    Raises:
        DataError: No file, no sound that can be read here, damaged, empty, silent or too long; or this ensemble takes
            no sounds.
    """
    return _of_file(opened, "sound", path, "a sound file")


def prepare_text(opened: OpenEnsemble, text: str | None) -> PreparedInput:
    """A typed text.

    Raises:
        DataError: Nothing is typed, or nothing that the ensemble's vocabulary holds; or it takes no texts.
    """
    given = (text if isinstance(text, str) else "").strip()
    if not given:
        raise DataError("Type a text first: there is nothing to read yet.")
    is_example = any(example.value == given for example in opened.examples)
    return _of_content(opened, "text", given.encode("utf-8", "replace"), is_example=is_example)


def _of_file(opened: OpenEnsemble, kind: Kind, path: str | Path | None, what: str) -> PreparedInput:
    file = _file(path, what)
    is_example = any(Path(example.value) == file for example in opened.examples)
    return _of_content(opened, kind, file.read_bytes(), is_example=is_example)


def _of_content(opened: OpenEnsemble, kind: Kind, content: bytes, *, is_example: bool) -> PreparedInput:
    if opened.taker is None:
        reading = opened.isolated.read(kind, content)
    elif is_example or kind in _HARMLESS or not isolation.is_on():
        reading = read(opened.taker, kind, content)
    else:
        reading = isolation.read(opened.folder, opened.taker, kind, content)
    return _prepared(opened, reading, "" if is_example else _NOT_MEASURED.format(_CAUTIONS[kind]))


def _prepared(opened: OpenEnsemble, reading: Reading, caution: str) -> PreparedInput:
    return PreparedInput(**vars(reading), ensemble=opened.name, caution=caution)


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
