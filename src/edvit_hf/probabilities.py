# SPDX-License-Identifier: Apache-2.0
"""Probabilities of a classifier, and how far its confidence is from its accuracy. Light: numpy only.

Comes in: logits, or probabilities with labels. Goes out: probabilities, or the expected calibration error. Evaluation
and runtime call it.
"""

from typing import Any

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.strict import whole_number

DEFAULT_NUM_BINS = 15
_SUM_TOLERANCE = 1e-2  # half precision keeps about three digits


def softmax(logits: np.ndarray) -> np.ndarray:
    """(..., C) logits -> probabilities, float64; each row sums to 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def expected_calibration_error(probabilities: Any, labels: Any, num_bins: int = DEFAULT_NUM_BINS) -> float:
    """Mean gap between confidence and accuracy over bins of equal width (Guo et al. 2017, arXiv 1706.04599).

    The confidence of an item is its largest probability; bin m of M holds confidences in ((m - 1) / M, m / M]. The gap
    of each bin counts by its number of items. More bins hold fewer items each and raise the value by chance.

    Args:
        probabilities: (N, C), each row sums to 1: softmax outputs, not logits.
        labels: (N,) whole numbers in 0..C - 1.
        num_bins: Number of bins M.

    Returns:
        In 0..1; 0 is perfectly calibrated.

    Raises:
        DataError: No items, shapes that do not belong together, values that are no probabilities or no labels.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    _check(probabilities, labels, num_bins)
    confidence = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    # The sum of |B| * |accuracy - confidence| over bins is that of |number correct - summed confidence|.
    gaps = np.bincount(bins, weights=is_correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def _check(probabilities: np.ndarray, labels: np.ndarray, num_bins: int) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or 0 in probabilities.shape:
        raise DataError(
            f"`probabilities` must be (N, C) and `labels` (N,), with at least one item, got {probabilities.shape} and "
            f"{labels.shape}. Each item's confidence is compared with its own label. Pass one row per item."
        )
    sums = probabilities.sum(axis=1)
    if not (np.isfinite(sums).all() and probabilities.min() >= 0 and np.abs(sums - 1).max() <= _SUM_TOLERANCE):
        raise DataError(
            f"`probabilities` must be at least 0 with rows that sum to 1, got values {probabilities.min():.3g}.."
            f"{probabilities.max():.3g} and sums {sums.min():.3g}..{sums.max():.3g}. A logit is no confidence. "
            "Apply softmax first."
        )
    num_classes = probabilities.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"`labels` must be integers in 0..{num_classes - 1}, got {labels.dtype} {labels.min()}..{labels.max()}."
            " Another label has no probability. Check that model and dataset belong together."
        )
    whole_number("num_bins", num_bins, 1, "confidences are compared bin by bin", DataError)
