# SPDX-License-Identifier: Apache-2.0
"""`evaluate.Metric` classes for direct instantiation, because `evaluate.load` always needs the network.

```python
import evaluate
from edvit_hf.evaluation.metrics import Accuracy, ClassGroupAccuracy, MacroF1

MacroF1().compute(predictions=[0, 1, 1], references=[0, 1, 0])  # {"macro_f1": 0.666...}
evaluate.combine([Accuracy(), MacroF1(), ClassGroupAccuracy([[0], [1]])])  # all of them, also batch by batch
```
They work offline, batch by batch (`add_batch`) and together (`evaluate.combine`). `evaluate.evaluator(task)` takes
them as objects, with a model object or the folder of a published ensemble. With a *pipeline object* evaluate 0.4.6
fails on transformers 5 ("module transformers has no attribute TFPreTrainedModel"): hand it the pipeline's model and
processor instead. docs/guides/metrics.md has the calls per task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from edvit_hf.errors import DataError, did_you_mean
from edvit_hf.probabilities import DEFAULT_NUM_BINS, expected_calibration_error

_OPTIONS = frozenset({"prediction_scores", "class_groups", "num_bins"})
_CITATION = """@inproceedings{guo2017calibration, title={On Calibration of Modern Neural Networks},
author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.}, booktitle={ICML}, year={2017}}"""


def _label_info(description: str) -> evaluate.MetricInfo:
    """The `MetricInfo` of a metric on one predicted and one true class index per item."""
    features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
    return evaluate.MetricInfo(description=description, citation="", features=datasets.Features(features))


def _refuse_unknown(metric: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that no metric here knows; `evaluate.combine` hands each metric those of the others too.

    Raises:
        DataError: An option that no metric of ours knows.
    """
    for name in options:
        if name not in _OPTIONS:
            raise DataError(
                f"{metric} got the unknown option `{name}`.{did_you_mean(name, _OPTIONS)} Options of the metrics here: "
                f"{', '.join(sorted(_OPTIONS))}. An option that nothing reads would be ignored silently. Remove it."
            )


class Accuracy(evaluate.Metric):
    """`compute(predictions=, references=)` -> `{"accuracy": share in 0..1}`: of the items that get their class."""

    def _info(self) -> evaluate.MetricInfo:
        return _label_info("Share of the items whose predicted class is the true one.")

    def _compute(self, predictions: Any, references: Any, **of_others: Any) -> dict[str, float]:
        _refuse_unknown("Accuracy", of_others)
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """`compute(predictions=, references=)` -> `{"macro_f1": 0..1}` over the classes that occur in either.

    Rare classes count as much as frequent ones.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _label_info("Unweighted mean of the F1 of every class that occurs as label or as prediction.")

    def _compute(self, predictions: Any, references: Any, **of_others: Any) -> dict[str, float]:
        _refuse_unknown("MacroF1", of_others)
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0.0))}


class ClassGroupAccuracy(evaluate.Metric):
    """Share of each class group's items that get their exact class: shows which sub-model's classes suffer.

    `ClassGroupAccuracy([[3, 7], [0, 1]]).compute(predictions=, references=)` ->
    `{"class_group_accuracy": [0.9, None]}`, None for a group without items.

    Args:
        class_groups: Class indices of every group. May be given to `compute` instead (and comes first there); it must
            be given here for `evaluate.combine` and `evaluate.evaluator`, which pass no options on.
        module_options: Of `evaluate.Metric`, for example `keep_in_memory` or `experiment_id`.
    """

    def __init__(self, class_groups: Sequence[Sequence[int]] | None = None, **module_options: Any) -> None:
        super().__init__(**module_options)
        self.class_groups = None if class_groups is None else [list(group) for group in class_groups]

    def _info(self) -> evaluate.MetricInfo:
        return _label_info("Share of the items of each class group whose predicted class is the true one.")

    def _compute(
        self, predictions: Any, references: Any, class_groups: Sequence[Sequence[int]] | None = None, **of_others: Any
    ) -> dict[str, list[float | None]]:
        _refuse_unknown("ClassGroupAccuracy", of_others)
        groups = self.class_groups if class_groups is None else class_groups
        if groups is None:
            raise DataError(
                "ClassGroupAccuracy needs `class_groups`, the class indices of every group, and got none. Without them "
                "there is nothing to average over. Give them at construction, or to `compute`."
            )
        references, predictions = np.asarray(references), np.asarray(predictions)
        is_correct = references == predictions
        members = [np.isin(references, list(class_group)) for class_group in groups]
        shares = [float(is_correct[is_member].mean()) if is_member.any() else None for is_member in members]
        return {"class_group_accuracy": shares}


class ExpectedCalibrationError(evaluate.Metric):
    """`compute(prediction_scores=, references=)` -> `{"expected_calibration_error": 0..1}`, 0 is best.

    `prediction_scores` are (N, C) class probabilities; predicted class and confidence are read from them, so it takes
    no `predictions`. The name is that of evaluate's own score-based metrics, and lets `evaluate.combine` feed it
    beside the others: `combined.add_batch(predictions=, references=, prediction_scores=)`. `evaluate.evaluator` hands
    metrics the predicted class alone, so this metric cannot be used there. `edvit_hf.probabilities` has the formula.

    Args:
        num_bins: Bins of equal width. May be given to `compute` instead, and comes first there.
        module_options: Of `evaluate.Metric`, for example `keep_in_memory` or `experiment_id`.
    """

    def __init__(self, num_bins: int = DEFAULT_NUM_BINS, **module_options: Any) -> None:
        super().__init__(**module_options)
        self.num_bins = num_bins

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "prediction_scores": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="Mean gap between confidence and accuracy over bins of equal width, weighted by items.",
            citation=_CITATION,
            features=datasets.Features(features),
        )

    def _compute(
        self, prediction_scores: Any, references: Any, num_bins: int | None = None, **of_others: Any
    ) -> dict[str, float]:
        _refuse_unknown("ExpectedCalibrationError", of_others)
        bins = self.num_bins if num_bins is None else num_bins
        return {"expected_calibration_error": expected_calibration_error(prediction_scores, references, bins)}
