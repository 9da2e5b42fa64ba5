"""`evaluate.Metric` classes by direct instantiation, offline."""

import evaluate
import numpy as np
import pytest

from edvit_hf.evaluation import confusion_counts, group_accuracy, macro_f1
from edvit_hf.metrics import Accuracy, ClassGroupAccuracy, MacroF1

PREDICTIONS, REFERENCES = [0, 1, 2, 1, 0, 3], [0, 1, 1, 1, 2, 3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


def test_accuracy_by_hand():
    assert Accuracy().compute(predictions=PREDICTIONS, references=REFERENCES) == {"accuracy": pytest.approx(4 / 6)}


def test_macro_f1_by_hand():
    # F1 of classes 0, 1, 2, 3: 2/3, 4/5, 0, 1.
    result = MacroF1().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"macro_f1": pytest.approx((2 / 3 + 4 / 5 + 0 + 1) / 4)}


def test_class_group_accuracy_by_hand():
    result = ClassGroupAccuracy().compute(
        predictions=PREDICTIONS, references=REFERENCES, class_groups=[[0, 2], [1], [3], [4]]
    )
    assert result == {"class_group_accuracy": [0.5, pytest.approx(2 / 3), 1.0, None]}


def test_metrics_agree_with_the_evaluation():
    random = np.random.default_rng(0)
    references, predictions = random.integers(0, 6, (2, 200))
    counts = confusion_counts(references, predictions, 6)
    groups = [[0, 1], [2, 3, 4], [5]]
    f1 = MacroF1().compute(predictions=predictions, references=references)["macro_f1"]
    by_group = ClassGroupAccuracy().compute(predictions=predictions, references=references, class_groups=groups)
    assert f1 == pytest.approx(macro_f1(counts))
    assert by_group["class_group_accuracy"] == pytest.approx(group_accuracy(counts, groups))


def test_batches_add_up_and_metrics_combine_offline():
    metric = evaluate.combine([Accuracy(), MacroF1()])
    for start in range(0, 6, 2):
        metric.add_batch(predictions=PREDICTIONS[start : start + 2], references=REFERENCES[start : start + 2])
    together = metric.compute()
    assert together["accuracy"] == pytest.approx(4 / 6)
    assert set(together) == {"accuracy", "macro_f1"}
