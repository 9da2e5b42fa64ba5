"""Share of the items that get their class."""

from typing import Any

import evaluate
from sklearn.metrics import accuracy_score

from edvit_hf.evaluation.metrics.label_features import CITATION, label_features, refuse_unknown


class Accuracy(evaluate.Metric):
    """`compute(predictions=, references=)` -> `{"accuracy": share in 0..1}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the items whose predicted class is the true one.",
            citation=CITATION,
            features=label_features(),
        )

    def _compute(self, predictions: Any, references: Any, **of_others: Any) -> dict[str, float]:
        refuse_unknown("Accuracy", of_others)
        return {"accuracy": float(accuracy_score(references, predictions))}
