# SPDX-License-Identifier: Apache-2.0
"""`evaluate.Metric` classes by direct instantiation, offline; the calibration error behind one of them."""

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import DataError
from edvit_hf.evaluation.evaluator import confusion_counts, group_accuracy, macro_f1
from edvit_hf.evaluation.metrics import Accuracy, ClassGroupAccuracy, ExpectedCalibrationError, MacroF1
from edvit_hf.probabilities import expected_calibration_error

PREDICTIONS, REFERENCES = [0, 1, 2, 1, 0, 3], [0, 1, 1, 1, 2, 3]
GROUPS = [[0, 2], [1], [3], [4]]
BY_GROUP = [0.5, pytest.approx(2 / 3), 1.0, None]
SCORES = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.9, 0, 0], [0, 0.2, 0.8, 0], [0, 1, 0, 0], [0.6, 0, 0.4, 0], [0, 0, 0, 1]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def test_accuracy_by_hand():
    assert Accuracy().compute(predictions=PREDICTIONS, references=REFERENCES) == {"accuracy": pytest.approx(4 / 6)}


def test_macro_f1_by_hand():
    # F1 of classes 0, 1, 2, 3: 2/3, 4/5, 0, 1.
    result = MacroF1().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"macro_f1": pytest.approx((2 / 3 + 4 / 5 + 0 + 1) / 4)}


def test_class_group_accuracy_by_hand_with_the_groups_given_to_compute_or_at_construction():
    result = ClassGroupAccuracy().compute(predictions=PREDICTIONS, references=REFERENCES, class_groups=GROUPS)
    assert result == {"class_group_accuracy": BY_GROUP}
    assert ClassGroupAccuracy(GROUPS).compute(predictions=PREDICTIONS, references=REFERENCES) == result
    other = ClassGroupAccuracy([[0]]).compute(predictions=PREDICTIONS, references=REFERENCES, class_groups=GROUPS)
    assert other == result, "what is given to compute comes first"
    with pytest.raises(DataError, match="Give them at construction"):
        ClassGroupAccuracy().compute(predictions=PREDICTIONS, references=REFERENCES)


def test_calibration_error_by_hand():
    # Two bins: (0, 0.5] holds nothing, (0.5, 1] all six: confidences 5.0 in sum, 4 right.
    assert expected_calibration_error(SCORES, REFERENCES, num_bins=2) == pytest.approx((5.0 - 4) / 6)
    # Ten bins: 0.6 wrong; 0.7 right; 0.8 wrong; 0.9, 1.0 and 1.0 right.
    assert expected_calibration_error(SCORES, REFERENCES, num_bins=10) == pytest.approx((0.6 + 0.3 + 0.8 + 0.1) / 6)
    result = ExpectedCalibrationError(num_bins=10).compute(prediction_scores=SCORES, references=REFERENCES)
    assert result == {"expected_calibration_error": pytest.approx(0.3)}


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), items=st.integers(1, 60), classes=st.integers(2, 6), num_bins=st.integers(1, 20))
def test_calibration_error_lies_between_the_overall_gap_and_one(seed, items, classes, num_bins):
    random = np.random.default_rng(seed)
    probabilities, labels = softmax(random.normal(size=(items, classes)) * 3), random.integers(0, classes, items)
    error = expected_calibration_error(probabilities, labels, num_bins)
    overall = abs(probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == labels).mean())
    assert overall - 1e-9 <= error <= 1
    assert expected_calibration_error(probabilities, labels, 1) == pytest.approx(overall), "one bin: the overall gap"
    order = random.permutation(items)
    assert expected_calibration_error(probabilities[order], labels[order], num_bins) == pytest.approx(error)


def test_labels_drawn_from_the_probabilities_are_calibrated_and_sharper_scores_are_not():
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 5)) * 2
    probabilities = softmax(logits)
    labels = (probabilities.cumsum(axis=1) < random.random((20_000, 1))).sum(axis=1).clip(max=4)
    assert expected_calibration_error(probabilities, labels) < 0.015
    assert expected_calibration_error(softmax(3 * logits), labels) > 0.1


@pytest.mark.parametrize(
    ("probabilities", "labels", "num_bins", "message"),
    [
        ([[2.0, -1.0]], [0], 15, "Apply softmax first"),
        ([[0.5, 0.6]], [0], 15, "sums 1.1"),
        ([[np.nan, 1.0]], [0], 15, "Apply softmax first"),
        ([0.5, 0.5], [0, 1], 15, "one row per item"),
        (np.zeros((0, 3)), np.zeros(0, int), 15, "at least one item"),
        ([[0.5, 0.5]], [2], 15, "integers in 0..1"),
        ([[0.5, 0.5]], [0.5], 15, "integers in 0..1"),
        ([[0.5, 0.5]], [1], 0, "num_bins"),
    ],
)
def test_what_has_no_calibration_is_refused(probabilities, labels, num_bins, message):
    with pytest.raises(DataError, match=message):
        expected_calibration_error(probabilities, labels, num_bins)


def test_metrics_agree_with_the_evaluation():
    random = np.random.default_rng(0)
    references, predictions = random.integers(0, 6, (2, 200))
    counts = confusion_counts(references, predictions, 6)
    groups = [[0, 1], [2, 3, 4], [5]]
    f1 = MacroF1().compute(predictions=predictions, references=references)["macro_f1"]
    by_group = ClassGroupAccuracy(groups).compute(predictions=predictions, references=references)
    assert f1 == pytest.approx(macro_f1(counts))
    assert by_group["class_group_accuracy"] == pytest.approx(group_accuracy(counts, groups))


def all_four():
    return evaluate.combine([Accuracy(), MacroF1(), ClassGroupAccuracy(GROUPS), ExpectedCalibrationError(num_bins=10)])


def test_metrics_combine_offline_batch_by_batch_and_at_once():
    metric = all_four()
    for start in range(0, 6, 2):
        batch = slice(start, start + 2)
        metric.add_batch(predictions=PREDICTIONS[batch], references=REFERENCES[batch], prediction_scores=SCORES[batch])
    together = metric.compute()
    assert together == {
        "accuracy": pytest.approx(4 / 6),
        "macro_f1": pytest.approx((2 / 3 + 4 / 5 + 0 + 1) / 4),
        "class_group_accuracy": BY_GROUP,
        "expected_calibration_error": pytest.approx(0.3),
    }
    at_once = all_four().compute(predictions=PREDICTIONS, references=REFERENCES, prediction_scores=SCORES)
    assert at_once == together


def test_three_combine_without_scores():
    metric = evaluate.combine([Accuracy(), MacroF1(), ClassGroupAccuracy(GROUPS)])
    metric.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    assert set(metric.compute()) == {"accuracy", "macro_f1", "class_group_accuracy"}


@pytest.mark.parametrize("metric", [Accuracy, MacroF1, ClassGroupAccuracy])
def test_an_unknown_option_is_refused_by_name(metric):
    with pytest.raises(DataError, match=r"`class_group`\. Did you mean `class_groups`"):
        metric().compute(predictions=PREDICTIONS, references=REFERENCES, class_group=GROUPS)
