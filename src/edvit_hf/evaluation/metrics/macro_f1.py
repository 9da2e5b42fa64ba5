"""F1 averaged over classes, so that rare classes count as much as frequent ones."""

from typing import Any

import evaluate
from sklearn.metrics import f1_score

from edvit_hf.evaluation.metrics.label_features import CITATION, label_features, refuse_unknown


class MacroF1(evaluate.Metric):
    """`compute(predictions=, references=)` -> `{"macro_f1": 0..1}` over the classes that occur in either."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Unweighted mean of the F1 of every class that occurs as label or as prediction.",
            citation=CITATION,
            features=label_features(),
        )

    def _compute(self, predictions: Any, references: Any, **of_others: Any) -> dict[str, float]:
        refuse_unknown("MacroF1", of_others)
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0.0))}
