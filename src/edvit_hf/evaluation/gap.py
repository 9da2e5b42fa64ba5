# SPDX-License-Identifier: Apache-2.0
"""What collaboration could gain and does: the gap between a small and a large plain model, and the rare classes.

Light: no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edvit_hf.tasks import LEAST_GAP

MOST_RARE = 3
_RARE_SHARE = 0.5  # of the mean number of training items


def gap_of(accuracies: Mapping[str, float], plain: str, large: str) -> dict[str, Any] | None:
    """The gap between two plain models in accuracy, and how much of it every row recovers.

    Args:
        accuracies: By name of the row, in 0..1, all present.
        plain: Name of the plain model of one device's size.
        large: Name of the one of all devices' size together.

    Returns:
        `plain`, `large` (accuracies), `points` (large minus plain, in points) and `share` of every row: 0 is the small
        plain model, 1 the large one, above 1 more than that. No shares where the gap is under two points. None where
        one of the two was not measured.
    """
    if plain not in accuracies or large not in accuracies:
        return None
    small, gap = accuracies[plain], accuracies[large] - accuracies[plain]
    is_wide = gap >= LEAST_GAP - 1e-9  # 0.77 - 0.75 is a little less than 0.02 in binary
    share = {name: (accuracy - small) / gap for name, accuracy in accuracies.items()} if is_wide else {}
    return {"plain": small, "large": accuracies[large], "points": 100 * gap, "share": share}


def rare_classes(labels: np.ndarray, num_labels: int) -> list[dict[str, int]]:
    """The classes with the fewest training items, at most three, rarest first: `label` and `num_train_items`.

    Only those with less than half of the mean number: where all are about as frequent, none is rare.
    """
    counts = np.bincount(labels, minlength=num_labels)
    order = np.argsort(counts, kind="stable")[:MOST_RARE]
    return [
        {"label": int(label), "num_train_items": int(counts[label])}
        for label in order
        if counts[label] < _RARE_SHARE * counts.mean()
    ]


def recall_of(per_class_accuracy: Sequence[float | None], rare: Sequence[Mapping[str, int]]) -> list[float | None]:
    """Recall of the rare classes, in their order; None where no test item has the class."""
    return [per_class_accuracy[each["label"]] for each in rare]
