# SPDX-License-Identifier: Apache-2.0
"""Raw inputs become a model's inputs: images, sounds and texts, as the stock processors do it, in numpy.

Comes in: files, bytes, arrays or texts. Goes out: the arrays of the model's forward. Anybody may call it: it loads
numpy only, and Pillow, soundfile, soxr and tokenizers when an input needs them.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edvit_hf.errors import DataError, did_you_mean
from edvit_hf.tasks import TASKS, Task
from edvit_hf.transforms.audio import AudioSource, AudioTransform, open_audio, resample
from edvit_hf.transforms.audio_files import MAX_SECONDS
from edvit_hf.transforms.images import FORMATS_OF_STRANGERS, MAX_PIXELS, MIN_SIDE, ImageTransform, open_image
from edvit_hf.transforms.text import TextTransform

__all__ = [
    "FORMATS_OF_STRANGERS",
    "MAX_PIXELS",
    "MAX_SECONDS",
    "MIN_SIDE",
    "AudioSource",
    "AudioTransform",
    "ImageTransform",
    "TextTransform",
    "Transform",
    "load_transform",
    "open_audio",
    "open_image",
    "resample",
    "source_inputs",
]


@runtime_checkable
class Transform(Protocol):
    """Turns one raw input into what a model's forward takes."""

    @property
    def task(self) -> Task:
        """The task whose models this feeds."""

    def inputs(self, source: Any, /) -> dict[str, np.ndarray]:
        """Return the arguments of the forward by name, for a batch of one. Raises DataError for a bad input."""


def load_transform(folder: str | Path, task: Task) -> Transform:
    """Build the transform that belongs to a model from the processor files beside it.

    Args:
        folder: Holds `preprocessor_config.json` (images, sounds) or `tokenizer.json` and `tokenizer_config.json`.
        task: What the model does.

    Raises:
        DataError: The task is not known, or a file is missing, damaged, or asks for what is not done here.
        MissingExtraError: A text model, and tokenizers is not installed.
    """
    folder = Path(folder)
    if task == "image-classification":
        return ImageTransform.from_file(folder)
    if task == "audio-classification":
        return AudioTransform.from_file(folder)
    if task == "text-classification":
        return TextTransform.from_file(folder)
    raise DataError(
        f"Expected a task out of {', '.join(TASKS)}, got {task!r}.{did_you_mean(str(task), TASKS)} "
        "Without it the kind of input is unknown. Correct the name."
    )


def source_inputs(transform: Transform, source: Any) -> dict[str, np.ndarray]:
    """What the graphs take of one image, sound or text that somebody wants an answer for.

    Raises:
        DataError: It cannot be read, or is a text of which nothing is known (`TextTransform.says_nothing`).
    """
    inputs = transform.inputs(source)
    if isinstance(transform, TextTransform) and transform.says_nothing(source, inputs["input_ids"][0]):
        raise DataError(
            f"Expected a text with at least one word or sign that the tokenizer knows, got {len(source)} characters "
            "with none. The sub-models would see nothing of it, and the answer would be a guess that looks like any "
            "other. Give other words."
        )
    return inputs
