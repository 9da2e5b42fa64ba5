"""Accuracy within each class group: shows which sub-model's classes suffer."""

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np

from edvit_hf.errors import DataError
from edvit_hf.evaluation.metrics.label_features import CITATION, label_features, refuse_unknown


class ClassGroupAccuracy(evaluate.Metric):
    """Share of each class group's items that get their exact class.

    `ClassGroupAccuracy([[3, 7], [0, 1]]).compute(predictions=, references=)` ->
    `{"class_group_accuracy": [0.9, None]}`, None for a group without items.

    Args:
        class_groups (`Sequence[Sequence[int]]`, *optional*): Class indices of every group. May be given to `compute`
            instead (and comes first there); it must be given here for `evaluate.combine` and `evaluate.evaluator`,
            which pass no options on.
        module_options: Of `evaluate.Metric`, for example `keep_in_memory` or `experiment_id`.
    """

    def __init__(self, class_groups: Sequence[Sequence[int]] | None = None, **module_options: Any) -> None:
        super().__init__(**module_options)
        self.class_groups = None if class_groups is None else [list(group) for group in class_groups]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the items of each class group whose predicted class is the true one.",
            citation=CITATION,
            features=label_features(),
        )

    def _compute(
        self, predictions: Any, references: Any, class_groups: Sequence[Sequence[int]] | None = None, **of_others: Any
    ) -> dict[str, list[float | None]]:
        refuse_unknown("ClassGroupAccuracy", of_others)
        groups = self.class_groups if class_groups is None else class_groups
        if groups is None:
            raise DataError(
                "ClassGroupAccuracy needs `class_groups`, the class indices of every group, and got none. Without them "
                "there is nothing to average over. Give them at construction, or to `compute`."
            )
        references, predictions = np.asarray(references), np.asarray(predictions)
        is_correct = references == predictions
        shares: list[float | None] = []
        for class_group in groups:
            is_member = np.isin(references, list(class_group))
            shares.append(float(is_correct[is_member].mean()) if is_member.any() else None)
        return {"class_group_accuracy": shares}
