"""Accuracy within each class group: shows which sub-model's classes suffer."""

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np

from edvit_hf.metrics.label_features import CITATION, label_features


class ClassGroupAccuracy(evaluate.Metric):
    """Share of each class group's items that get their exact class.

    `compute(predictions=, references=, class_groups=[[3, 7], [0, 1]])` ->
    `{"class_group_accuracy": [0.9, None]}`, None for a group without items.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the items of each class group whose predicted class is the true one.",
            citation=CITATION,
            features=label_features(),
        )

    def _compute(
        self, predictions: Any, references: Any, class_groups: Sequence[Sequence[int]]
    ) -> dict[str, list[float | None]]:
        references, predictions = np.asarray(references), np.asarray(predictions)
        is_correct = references == predictions
        shares: list[float | None] = []
        for class_group in class_groups:
            is_member = np.isin(references, list(class_group))
            shares.append(float(is_correct[is_member].mean()) if is_member.any() else None)
        return {"class_group_accuracy": shares}
