# SPDX-License-Identifier: Apache-2.0
"""What is left with parts absent, how much of the gap is recovered, and which classes are rare."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit_hf.evaluation.absence import absences, on_every_device
from edvit_hf.evaluation.gap import gap_of, rare_classes, recall_of

LABELS = np.array([0, 1, 2, 0])


def test_every_subset_counts_alike_and_every_item_has_its_share():
    """Part 0 alone knows class 0, part 1 class 1, part 2 class 2; an item is right while its part is there."""
    found = absences(lambda absent: np.where(np.isin(LABELS, absent), -1, LABELS), LABELS, 3)
    assert [each.num_absent for each in found] == [0, 1, 2]
    assert [each.correct.tolist() for each in found] == [
        [1] * 4,
        [pytest.approx(2 / 3)] * 4,
        [pytest.approx(1 / 3)] * 4,
    ]
    assert found[1].accuracies == [0.5, 0.75, 0.75]
    row = found[1].to_row()
    assert row == {"num_absent": 1, "of": "device", "accuracy": pytest.approx(2 / 3), "worst": 0.5, "num_subsets": 3}
    assert json.loads(json.dumps(row)) == row
    for each in found:
        assert each.correct.mean() == pytest.approx(np.mean(each.accuracies))


def test_at_most_so_many_are_taken_away_and_somebody_always_answers():
    asked = []
    found = absences(lambda absent: asked.append(absent) or LABELS, LABELS, 10, most_absent=2, max_subsets=5)
    assert [len(each.accuracies) for each in found] == [1, 5, 5]
    assert max(map(len, asked)) == 2
    assert [each.num_absent for each in absences(lambda _: LABELS, LABELS, 1, most_absent=2)] == [0]


def test_the_same_model_on_every_device_answers_alike_whoever_is_absent():
    found = on_every_device(np.array([0, 1, 1, 0]), LABELS, 2)
    assert [each.num_absent for each in found] == [0, 1, 2]
    assert {tuple(each.correct) for each in found} == {(1.0, 1.0, 0.0, 1.0)}


def test_shares_of_the_gap_are_those_between_the_small_and_the_large_plain_model():
    accuracies = {"teacher": 0.765, "ensemble": 0.786, "replicas": 0.719, "large": 0.751}
    found = gap_of(accuracies, "replicas", "large")
    assert found["points"] == pytest.approx(3.2)
    assert found["share"]["replicas"] == 0
    assert found["share"]["large"] == pytest.approx(1)
    assert found["share"]["ensemble"] == pytest.approx(6.7 / 3.2)


@pytest.mark.parametrize(("large", "is_shared"), [(0.77, True), (0.7699, False), (0.75, False), (0.7, False)])
def test_under_two_points_no_share_is_stated(large, is_shared):
    found = gap_of({"replicas": 0.75, "large": large, "ensemble": 0.76}, "replicas", "large")
    assert found["points"] == pytest.approx(100 * (large - 0.75))
    assert bool(found["share"]) == is_shared


def test_without_one_of_the_two_plain_models_there_is_no_gap():
    assert gap_of({"replicas": 0.7}, "replicas", "large") is None
    assert gap_of({"large": 0.7}, "replicas", "large") is None


def test_rare_are_the_fewest_training_items_and_none_where_all_are_about_as_frequent():
    labels = np.repeat([0, 1, 2, 3, 4, 5], [100, 4, 100, 9, 20, 100])
    assert rare_classes(labels, 6) == [
        {"label": 1, "num_train_items": 4},
        {"label": 3, "num_train_items": 9},
        {"label": 4, "num_train_items": 20},
    ]
    assert rare_classes(np.repeat(range(4), [10, 11, 12, 9]), 4) == []
    rare = rare_classes(labels, 6)
    assert recall_of([0.9, None, 0.8, 0.5, 0.25, 1.0], rare) == [None, 0.5, 0.25]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_a_rare_class_is_never_more_frequent_than_one_that_is_not(labels):
    counts = np.bincount(labels, minlength=6)
    rare = [each["label"] for each in rare_classes(np.array(labels), 6)]
    assert len(rare) <= 3
    assert all(counts[one] <= counts[other] for one in rare for other in set(range(6)) - set(rare))
