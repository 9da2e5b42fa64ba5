# SPDX-License-Identifier: Apache-2.0
"""What is left with 0, 1, 2, ... parts absent, item by item: behind tables and the choice. Light: no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edvit_hf.tasks import MAX_SUBSETS, absent_subsets


@dataclass(frozen=True)
class Absence:
    """Answers with so many parts absent.

    Attributes:
        num_absent: How many are absent.
        correct: (N,) in 0..1: the share of the measured subsets with which an item's answer is right.
        accuracies: Of every measured subset, in 0..1.
    """

    num_absent: int
    correct: np.ndarray
    accuracies: list[float]

    def to_row(self) -> dict[str, Any]:
        """As a row of `results.json` states it: there devices are what is absent."""
        accuracy, worst = float(np.mean(self.accuracies)), min(self.accuracies)
        return {
            "num_absent": self.num_absent,
            "of": "device",
            "accuracy": accuracy,
            "worst": worst,
            "num_subsets": len(self.accuracies),
        }


def absences(
    predict_without: Callable[[Sequence[int]], np.ndarray],
    labels: np.ndarray,
    num_parts: int,
    *,
    most_absent: int | None = None,
    max_subsets: int = MAX_SUBSETS,
) -> list[Absence]:
    """Measure with 0, 1, ... parts absent.

    Args:
        predict_without: Indices of absent parts -> predicted classes, (N,).
        labels: (N,) true classes.
        num_parts: How many parts there are.
        most_absent: At most so many; None: all but one.
        max_subsets: At most so many subsets for each number, see `absent_subsets`.
    """
    last = num_parts - 1 if most_absent is None else min(most_absent, num_parts - 1)
    found = []
    for num_absent in range(last + 1):
        subsets = absent_subsets(num_parts, num_absent, limit=max_subsets)
        total, accuracies = np.zeros(len(labels)), []
        for subset in subsets:
            is_right = predict_without(subset) == labels
            accuracies.append(float(is_right.mean()))
            total += is_right
        found.append(Absence(num_absent, total / len(subsets), accuracies))
    return found


def without_devices(
    predict_without: Callable[[Sequence[int]], np.ndarray], devices: Sequence[Sequence[int]]
) -> Callable[[Sequence[int]], np.ndarray]:
    """The same of absent devices: each takes all its sub-models away.

    Args:
        predict_without: Indices of absent sub-models -> predicted classes, (N,).
        devices: The sub-models of each device.
    """
    return lambda absent: predict_without([index for device in absent for index in devices[device]])


def on_every_device(predictions: np.ndarray, labels: np.ndarray, most_absent: int) -> list[Absence]:
    """The same for one model that every device carries: whoever is absent, the others answer alike."""
    is_right = predictions == labels
    accuracies = [float(is_right.mean())]
    return [Absence(num_absent, is_right.astype(np.float64), accuracies) for num_absent in range(most_absent + 1)]
