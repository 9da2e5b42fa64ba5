# SPDX-License-Identifier: Apache-2.0
"""One function measures everything; intervals, subsets and counts are checked in other ways."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from edvit_hf.evaluation.evaluator import evaluate, paired_interval, torch_predict
from edvit_hf.tasks import absent_subsets
from support.tiny_architectures import tiny_vit

GROUPS = [[0, 3], [1], [2]]


def one_hot_predict(predictions):
    """A predictor that answers its list in order, whatever the inputs are."""
    answers = iter(predictions)
    return lambda inputs: np.eye(5, dtype=np.float32)[[next(answers) for _ in inputs["pixel_values"]]]


def make_batches(labels, batch_size=4):
    for start in range(0, len(labels), batch_size):
        chosen = np.asarray(labels[start : start + batch_size])
        yield {"inputs": {"pixel_values": torch.zeros(len(chosen), 3, 2, 2)}, "labels": torch.from_numpy(chosen)}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_the_counts_agree_with_scikit_learn(pairs):
    labels, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    result = evaluate(one_hot_predict(predictions), make_batches(labels), num_labels=5, class_groups=GROUPS)
    assert result.num_items == len(pairs)
    assert result.accuracy == pytest.approx(np.mean(labels == predictions))
    assert result.macro_f1 == pytest.approx(f1_score(labels, predictions, average="macro", zero_division=0))
    for label in range(5):
        of_class = predictions[labels == label] == label
        assert result.per_class_accuracy[label] == (pytest.approx(of_class.mean()) if len(of_class) else None)
    for group, share in zip(GROUPS, result.per_group_accuracy, strict=True):
        of_group = (labels == predictions)[np.isin(labels, group)]
        assert share == (pytest.approx(of_group.mean()) if len(of_group) else None)
    assert np.array_equal(result.predictions, predictions)
    assert np.array_equal(result.labels, labels)


def test_the_row_is_json_without_single_predictions():
    row = evaluate(one_hot_predict([0, 1]), make_batches([0, 2]), num_labels=5).to_row()
    assert json.loads(json.dumps(row)) == row
    assert row["per_group_accuracy"] is None
    assert row["per_class_accuracy"] == [1.0, None, 0.0, None, None]
    assert "predictions" not in row


def test_the_torch_model_is_measured_in_eval_mode_and_left_as_it_was():
    model = tiny_vit().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    pixel_values = torch.randn(6, 3, 8, 8)
    with torch.inference_mode():
        expected = model.eval()(pixel_values).logits.numpy()
    model.train()
    logits = torch_predict(model)({"pixel_values": pixel_values.numpy()})
    assert np.array_equal(logits, expected)
    assert model.training


@pytest.mark.parametrize(
    ("predict", "labels", "message"),
    [
        (lambda x: np.zeros((len(x["pixel_values"]), 4)), [0, 1], r"shape \(2, 4\), expected \(2, 5\)"),
        (lambda x: np.full((len(x["pixel_values"]), 5), np.nan), [0, 1], "not finite"),
        (lambda x: np.zeros((len(x["pixel_values"]), 5)), [0, 5], r"0\.\.4, got 0\.\.5"),
        (lambda x: np.zeros((len(x["pixel_values"]), 5)), [0, -1], r"0\.\.4, got -1\.\.0"),
        (lambda x: np.zeros((len(x["pixel_values"]), 5)), [], "no batches"),
    ],
)
def test_results_that_mean_nothing_are_refused(predict, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predict, make_batches(labels), num_labels=5)


def test_the_interval_is_that_of_resampled_items():
    random = np.random.default_rng(3)
    correct_a, correct_b = random.random(300) < 0.9, random.random(300) < 0.8
    interval = paired_interval(correct_a, correct_b, num_resamples=20000)
    drawn = random.integers(0, 300, (20000, 300))
    difference = (correct_a.astype(float) - correct_b)[drawn].mean(axis=1)
    assert interval.difference == pytest.approx(correct_a.mean() - correct_b.mean())
    assert [interval.low, interval.high] == pytest.approx(np.quantile(difference, [0.025, 0.975]), abs=0.004)
    assert interval.num_items == 300


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    for trial in range(300):
        interval = paired_interval(random.random(400) < 0.85, random.random(400) < 0.8, seed=trial)
        hits += interval.low <= 0.05 <= interval.high
    assert 0.91 <= hits / 300 <= 0.985


def test_the_interval_is_seeded_and_antisymmetric():
    a, b = np.arange(50) % 3 > 0, np.arange(50) % 5 > 0
    first = paired_interval(a, b, seed=4)
    np.random.seed(9)
    assert first == paired_interval(a, b, seed=4)
    assert paired_interval(b, a).difference == -first.difference
    same = paired_interval(a, a)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    wide = paired_interval(a, b, level=0.99)
    assert wide.low <= first.low <= first.difference <= first.high <= wide.high


@pytest.mark.parametrize("arguments", [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_an_interval_over_different_items_is_refused(arguments):
    with pytest.raises(ValueError, match="same items"):
        paired_interval(*arguments)
    with pytest.raises(ValueError, match="level"):
        paired_interval([True], [True], level=1.0)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(0, 11), st.integers(1, 30), st.integers(0, 3))
def test_absent_subsets_are_distinct_valid_and_complete_within_the_limit(num, absent, limit, seed):
    if absent >= num:
        with pytest.raises(ValueError, match="has to answer"):
            absent_subsets(num, absent, limit, seed)
        return
    subsets = absent_subsets(num, absent, limit, seed)
    assert len(subsets) == len(set(subsets)) == min(limit, math.comb(num, absent))
    assert set(subsets) <= set(itertools.combinations(range(num), absent))
    assert subsets == absent_subsets(num, absent, limit, seed)
