"""What graphs are fed: by which names and in which shapes, and what is refused before it reaches them."""

from collections.abc import Mapping, Sequence

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.tasks import GRAPH_INPUTS, Task

Inputs = Mapping[str, np.ndarray]

_WHAT = {
    "image-classification": "pixel values",
    "audio-classification": "spectrograms",
    "text-classification": "token numbers",
}


def check_inputs(task: Task, shape: Sequence[int | None], inputs: Inputs | np.ndarray) -> dict[str, np.ndarray]:
    """The inputs as graphs take them, contiguous: float32, or int64 for texts.

    Args:
        task (`Task`): What the ensemble classifies.
        shape (`Sequence[int | None]`): Of one item of the main input; None where any size goes.
        inputs (`Mapping[str, np.ndarray] | np.ndarray`): By name, or the main input alone.

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
