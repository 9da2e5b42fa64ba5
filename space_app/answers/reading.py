# SPDX-License-Identifier: Apache-2.0
"""Reads the bytes of a picture or sound, or a text, into what sub-models take: in a process of its own for strangers'.

Every refusal is a `DataError` with one sentence that a visitor understands; what went wrong in detail is logged.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from answers.digit_form import digit_from_picture
from answers.sounds import read_sound, spectrogram_picture
from edvit_hf.errors import DataError, EDViTError
from edvit_hf.tasks import Task
from edvit_hf.transforms import (
    FORMATS_OF_STRANGERS,
    AudioTransform,
    ImageTransform,
    TextTransform,
    Transform,
    open_image,
)

logger = logging.getLogger(__name__)

Kind = Literal["picture", "sound", "text", "drawing"]

MAX_PIXELS = 24_000_000
"""Pixels of an uploaded picture, by its header: bounds what decoding takes, several visitors at once included."""
MAX_PIXELS_UNSCALED = 1_000_000
"""Pixels where the ensemble takes pictures in their own size, so that every pixel costs time."""
MAX_CHARACTERS = 20_000
"""Characters of a text that are looked at. No model here reads so many."""

_TOO_LARGE = re.compile(r"image of at most \S+ Mpx, got (?:(\d+ x \d+) px|more) in ")  # as `open_image` says it
_TOO_NARROW = "with sides of at least"

_WRONG_KIND = "This ensemble takes {}. Give it one, or choose another ensemble."
_KINDS = {"image-classification": "pictures", "audio-classification": "sounds", "text-classification": "texts"}


@dataclass(frozen=True, kw_only=True)
class Taker:
    """What of an ensemble decides how its inputs are read.

    Attributes:
        task: What it classifies.
        transform: Prepares its inputs.
        can_draw: Whether it reads digits in the form of drawings.
        hears_words: Whether it was trained on spoken words without silence around them.
    """

    task: Task
    transform: Transform
    can_draw: bool = False
    hears_words: bool = False

    def of_kind(self, kind: type) -> Any:
        """Its transform, if it is of that kind."""
        if not isinstance(self.transform, kind):
            raise DataError(_WRONG_KIND.format(_KINDS[self.task]))
        return self.transform


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An input as the sub-models take it.

    Attributes:
        inputs: What the graphs take, by name; one item.
        seen: (H, W, 3) uint8, what the sub-models see of an image or sound; None for a text.
        tokens: What they see of a text.
        remark: What was cut off or changed, in sentences; empty if nothing.
    """

    inputs: Mapping[str, np.ndarray]
    seen: np.ndarray | None = None
    tokens: tuple[str, ...] = ()
    remark: str = ""

    @property
    def num_bytes(self) -> int:
        """Of its arrays."""
        seen = 0 if self.seen is None else self.seen.nbytes
        return seen + sum(values.nbytes for values in self.inputs.values())


def read(taker: Taker, kind: Kind, content: bytes) -> Reading:
    """Read what a visitor gave: the bytes of a file, a text as UTF-8, or a drawing's pixels (side, side, 3) uint8.

    Raises:
        DataError: It cannot be read, or the ensemble takes no such thing.
    """
    if kind == "drawing":
        transform = taker.of_kind(ImageTransform)
        return of_picture(transform, np.frombuffer(content, np.uint8).reshape(side_of(taker), side_of(taker), 3))
    if kind == "picture":
        return read_picture(taker, content)
    return read_recording(taker, content) if kind == "sound" else read_text(taker, content.decode("utf-8", "replace"))


def read_picture(taker: Taker, content: bytes) -> Reading:
    """A picture: no picture, damaged, too large or too small, or without contrast where that is needed is refused."""
    transform = taker.of_kind(ImageTransform)
    limit = MAX_PIXELS if transform.size is not None else MAX_PIXELS_UNSCALED
    try:
        image = open_image(content, max_pixels=limit, formats=FORMATS_OF_STRANGERS)
    except (EDViTError, MemoryError) as error:
        raise _refused(error, limit) from error
    return of_picture(transform, digit_from_picture(image, side_of(taker)) if taker.can_draw else image)


def of_picture(transform: ImageTransform, picture: Any) -> Reading:
    """A picture that is decoded already."""
    try:
        seen = transform.pixels(picture)  # in the size that is taken: scaled once
        return Reading(inputs=transform.inputs(seen), seen=seen)
    except (EDViTError, MemoryError) as error:
        raise _no_picture(error) from error


def side_of(taker: Taker) -> int:
    """Side of the pictures that it takes, in px; 0 where that is not fixed, or it takes none."""
    size = taker.transform.size if isinstance(taker.transform, ImageTransform) else None
    return 0 if size is None else size[0]


def read_recording(taker: Taker, content: bytes) -> Reading:
    """A sound: no sound that can be read here, damaged, empty, silent or too long is refused."""
    transform = taker.of_kind(AudioTransform)
    sound = read_sound(content, transform, is_word=taker.hears_words)
    try:
        inputs = transform.inputs((sound.waveform, sound.rate))
    except (EDViTError, MemoryError) as error:
        logger.info("refused a sound: %s", error)
        raise DataError("This sound is damaged: its samples cannot be used. Record or choose another one.") from error
    return Reading(inputs=inputs, seen=spectrogram_picture(inputs["input_values"][0]), remark=sound.remark)


def read_text(taker: Taker, given: str) -> Reading:
    """A text: one of which the ensemble's vocabulary holds nothing is refused."""
    transform = taker.of_kind(TextTransform)
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
    return Reading(inputs=transform.pad([ids]), tokens=tokens, remark=remark)


def _refused(error: BaseException, limit: int) -> DataError:
    """An error of `open_image` in a visitor's words."""
    told = str(error)
    if (size := _TOO_LARGE.search(told)) is not None:
        logger.info("refused a picture: %s", error)
        return DataError(
            f"This picture has {size[1] or 'too many'} pixels, more than the {limit // 1_000_000} million that fit "
            "here. Scale it down or choose a smaller one."
        )
    if _TOO_NARROW in told:
        return DataError("This picture is only one pixel wide or high. Choose a larger one.")
    return _no_picture(error)


def _no_picture(error: BaseException) -> DataError:
    logger.info("refused a picture: %s", error)
    return DataError("This file is not a readable picture. Choose a complete PNG, JPEG or WebP picture.")


def _is_cut(transform: TextTransform, text: str, ids: np.ndarray) -> bool:
    """Whether the end of the text is not among its tokens: without it they are the same."""
    if len(ids) < transform.max_length:
        return False
    words = text.rsplit(None, 1)
    return bool(np.array_equal(transform.encode([words[0] if len(words) > 1 else text[:-1]])[0], ids))
