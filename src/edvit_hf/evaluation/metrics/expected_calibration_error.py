"""Gap between confidence and accuracy, from class probabilities."""

from typing import Any

import datasets
import evaluate

from edvit_hf.evaluation.metrics.label_features import refuse_unknown
from edvit_hf.probabilities import DEFAULT_NUM_BINS, expected_calibration_error

_CITATION = """@inproceedings{guo2017calibration, title={On Calibration of Modern Neural Networks},
author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.}, booktitle={ICML}, year={2017}}"""


class ExpectedCalibrationError(evaluate.Metric):
    """`compute(prediction_scores=, references=)` -> `{"expected_calibration_error": 0..1}`, 0 is best.

    `prediction_scores` are (N, C) class probabilities; predicted class and confidence are read from them, so it takes
    no `predictions`. The name is that of evaluate's own score-based metrics, and lets `evaluate.combine` feed it
    beside the others: `combined.add_batch(predictions=, references=, prediction_scores=)`. `evaluate.evaluator` hands
    metrics the predicted class alone, so this metric cannot be used there. `edvit_hf.probabilities` has the formula.

    Args:
        num_bins (`int`): Bins of equal width. May be given to `compute` instead, and comes first there.
        module_options: Of `evaluate.Metric`, for example `keep_in_memory` or `experiment_id`.
    """

    def __init__(self, num_bins: int = DEFAULT_NUM_BINS, **module_options: Any) -> None:
        super().__init__(**module_options)
        self.num_bins = num_bins

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean gap between confidence and accuracy over bins of equal width, weighted by items.",
            citation=_CITATION,
            features=datasets.Features(
                {
                    "prediction_scores": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self, prediction_scores: Any, references: Any, num_bins: int | None = None, **of_others: Any
    ) -> dict[str, float]:
        refuse_unknown("ExpectedCalibrationError", of_others)
        bins = self.num_bins if num_bins is None else num_bins
        return {"expected_calibration_error": expected_calibration_error(prediction_scores, references, bins)}
