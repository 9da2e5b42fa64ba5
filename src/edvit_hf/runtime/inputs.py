# SPDX-License-Identifier: Apache-2.0
"""Inputs of the exported graphs: their names and shapes, their checks, and empty ones for probes and timing."""

import io
import logging
import struct
import wave
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np

from edvit_hf.errors import DataError, EDViTError, ManifestError
from edvit_hf.tasks import GRAPH_INPUTS, Task
from edvit_hf.transforms import AudioTransform, ImageTransform, Transform

logger = logging.getLogger(__name__)

Inputs = Mapping[str, np.ndarray]

_WHAT = {
    "image-classification": "pixel values",
    "audio-classification": "spectrograms",
    "text-classification": "token numbers",
}
_TINY_BMP = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 70, 0, 0, 54, 40, 2, 2, 1, 24, 0, 16, 0, 0, 0, 0) + bytes(16)
_USUAL_SIZE: dict[Task, int] = {"image-classification": 224, "audio-classification": 128, "text-classification": 8}


def check_inputs(task: Task, shape: Sequence[int | None], inputs: Inputs | np.ndarray) -> dict[str, np.ndarray]:
    """The inputs as graphs take them, contiguous: float32, or int64 for texts.

    Args:
        task: What the ensemble classifies.
        shape: Of one item of the main input; None where any size goes.
        inputs: By name, or the main input alone.

    Raises:
        DataError: For a missing or unknown name, another shape or type, no items, values that are not finite,
            a negative token number, or a mask that is not ones and then zeros in each row.
    """
    names = GRAPH_INPUTS[task]
    main = names[0]
    given = dict(inputs) if isinstance(inputs, Mapping) else {main: np.asarray(inputs)}
    if main in given and task == "text-classification":
        given.setdefault("attention_mask", np.ones(np.shape(given[main]), np.int64))
    if set(given) != set(names):
        raise DataError(
            f"Expected the inputs {', '.join(names)}, got {', '.join(sorted(map(str, given))) or 'none'}. The graphs "
            "take these and no others. Call the ensemble with the raw input itself to have them made."
        )
    feeds = {name: np.asarray(given[name]) for name in names}
    values = feeds[main]
    fits = values.ndim == 1 + len(shape) and all(
        size >= 1 and size == (expected or size) for size, expected in zip(values.shape[1:], shape, strict=True)
    )
    if not fits or len(values) == 0:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(
            f"Expected {_WHAT[task]} of shape (B, {sizes}) with B at least 1, got {values.shape}. "
            f"Call the ensemble with the raw input itself to have it brought to that shape."
        )
    return _token_feeds(feeds) if task == "text-classification" else {main: _finite(values, _WHAT[task])}


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    numbers = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(
            f"Expected finite {what}, got {int((~np.isfinite(numbers)).sum())} NaN or infinite "
            f"ones. No sub-model can answer for them. Check how the input was normalised."
        )
    return numbers


def _token_feeds(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids, mask = feeds["input_ids"], feeds["attention_mask"]
    is_mask = mask.shape == ids.shape and mask.dtype.kind in "iub" and bool(np.isin(mask, (0, 1)).all())
    is_mask = is_mask and bool(mask[:, 0].all()) and bool((mask[:, 1:] <= mask[:, :-1]).all())  # no holes
    if ids.dtype.kind not in "iu" or ids.min() < 0 or not is_mask:
        raise DataError(
            f"Expected token numbers of at least 0 and a mask of their shape, 1 for a token and 0 for padding after "
            f"the text, got {ids.dtype} {ids.shape} and a mask {mask.dtype} {mask.shape}, or other values. An answer "
            "would be about other words than the text's. Call the ensemble with the text itself."
        )
    return {name: np.ascontiguousarray(values, dtype=np.int64) for name, values in feeds.items()}


def read_once(transform: Transform) -> None:
    """Read a tiny input, so that what reads inputs is loaded before the first one comes.

    What is not installed is no fault here: whoever hands over prepared inputs needs none of it.
    """
    try:
        transform.inputs(_tiny_source(transform))
    except EDViTError as error:
        logger.info("inputs cannot be read here: %s", error)


def _tiny_source(transform: Transform) -> bytes | str:
    """An encoded file, or a text, that takes the way of every other one."""
    if isinstance(transform, ImageTransform):
        return _TINY_BMP
    if not isinstance(transform, AudioTransform):
        return "a"
    rate = transform.sampling_rate
    if find_spec("soxr") is not None:  # without it, only sounds of another rate need more (and are warned of)
        rate = 8000 if rate != 8000 else 16_000
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(bytes(rate // 10 * 2))
    return file.getvalue()


def probe_inputs(task: Task, shape: Sequence[int | None]) -> dict[str, np.ndarray]:
    """Inputs of one empty item that every graph of the task can run: for probes and for timing.

    `shape` is that of one item of the main input; where any size goes (None), a usual one is taken.
    """
    sizes = tuple(_USUAL_SIZE[task] if size is None else size for size in shape)
    if task == "text-classification":
        return {"input_ids": np.zeros((1, *sizes), np.int64), "attention_mask": np.ones((1, *sizes), np.int64)}
    return {GRAPH_INPUTS[task][0]: np.zeros((1, *sizes), np.float32)}


def prepared_shape(transform: Transform) -> tuple[int | None, ...]:
    """Shape of one prepared item of the main input; None where it depends on the source."""
    if isinstance(transform, ImageTransform):
        return (3, *(transform.size or (None, None)))
    if isinstance(transform, AudioTransform):
        return (transform.max_length, transform.num_mel_bins)
    return (None,)


def common_shape(prepared: Sequence[int | None], taken: Sequence[int | None], what: str) -> tuple[int | None, ...]:
    """The shape that is both prepared and taken by a graph; None where both leave it open.

    Raises:
        ManifestError: They contradict each other: no input could ever be answered.
    """
    same_rank = len(prepared) == len(taken)
    if not same_rank or any(None not in pair and len(set(pair)) > 1 for pair in zip(prepared, taken, strict=True)):
        raise ManifestError(
            f"{what}: expected a graph that takes what the preprocessing file makes, {tuple(prepared)}, got one that "
            f"takes {tuple(taken)}. They are of different ensembles. Fetch or export the ensemble again."
        )
    return tuple(a if b is None else b for a, b in zip(prepared, taken, strict=True))
