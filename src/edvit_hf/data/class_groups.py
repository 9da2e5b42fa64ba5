# SPDX-License-Identifier: Apache-2.0
"""Class-group views of a labelled dataset: the classes of one sub-model, and everything else as "other"."""

from collections.abc import Sequence

import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.strict import number
from edvit_hf.tasks import check_class_group


def class_group_labels(labels: np.ndarray, class_group: Sequence[int]) -> np.ndarray:
    """Translate global labels (N,) to a sub-model's own: int64 index in its class group, or len(group) for "other"."""
    group = check_class_group(class_group)
    labels = _checked_labels(labels)
    table = np.full(max(int(labels.max(initial=0)), max(group)) + 1, len(group), np.int64)
    table[group] = np.arange(len(group))
    return table[labels]


def class_group_indices(
    labels: np.ndarray, class_group: Sequence[int], *, negatives_per_positive: float, seed: int, epoch: int
) -> np.ndarray:
    """Choose the items of one epoch of a sub-model: every item of its group and a fresh sample of the others.

    The sample is spread evenly over the other classes: their counts differ by one at most, but for classes that have no
    items left to give. At most all others are used. A pure function of its arguments.

    Returns:
        `np.ndarray`: (M,) int64 indices into `labels` (N,), shuffled, without repeats.

    Raises:
        DataError: No item has a label of the group: there would be nothing to learn. Or a negative number.
    """
    number("negatives_per_positive", negatives_per_positive, "[0, inf)", "it is a number of items", DataError)
    if seed < 0 or epoch < 0:
        raise DataError(f"`seed` and `epoch` must not be negative, got {seed} and {epoch}: they seed the sample.")
    group = check_class_group(class_group)
    labels = _checked_labels(labels)
    is_positive = np.isin(labels, group)
    positives = np.flatnonzero(is_positive)
    if len(positives) == 0:
        raise DataError(
            f"Expected items of the class group {group}, got none among {len(labels)} labels. "
            "A sub-model cannot learn classes that it never sees. Check the class groups and the split."
        )
    random = np.random.default_rng([seed, epoch, *group])
    negatives = _spread_sample(
        labels, np.flatnonzero(~is_positive), round(len(positives) * negatives_per_positive), random
    )
    indices = np.concatenate((positives, negatives))
    random.shuffle(indices)
    return indices


def _spread_sample(labels: np.ndarray, candidates: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Sample `size` of the candidates (or all), as evenly over their classes as their counts allow."""
    classes, counts = np.unique(labels[candidates], return_counts=True)
    # Smallest class first: what it cannot give is shared by those after it. Ties in random order.
    order = np.lexsort((random.random(len(classes)), counts))
    remaining, chosen = min(size, len(candidates)), [np.empty(0, np.int64)]
    for position, class_index in enumerate(order):
        share = min(int(counts[class_index]), remaining // (len(order) - position))
        members = candidates[labels[candidates] == classes[class_index]]
        chosen.append(random.choice(members, share, replace=False))
        remaining -= share
    return np.concatenate(chosen).astype(np.int64)


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise DataError(
            f"Expected labels shaped (N,), integers from 0 on, got shape {labels.shape} of {labels.dtype}, "
            f"smallest {labels.min() if labels.size else 'none'}."
        )
    return labels
