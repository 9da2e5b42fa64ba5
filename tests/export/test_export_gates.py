# SPDX-License-Identifier: Apache-2.0
"""The rules by which an exported file is accepted, on numbers made for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit_hf.errors import DataError, ExportGateError
from edvit_hf.export.gates import (
    SplitAnswers,
    accuracy_gate,
    check_parity,
    loss_message,
    measure_parity,
    run_batches,
    worst_group,
)


def check(reference, got, tolerance=1e-4):
    parity = measure_parity(reference, got, what="x")
    check_parity(parity, reference, got, tolerance=tolerance, atol=1e-6, what="x")
    return parity


GROUPS = [[0, 2], [1]]
NAMES = ["cat, cow", "dog"]


def answers(labels, wrong, split="validation"):
    """Everything right but the items in `wrong`."""
    labels = np.asarray(labels)
    predictions = labels.copy()
    predictions[list(wrong)] += 1
    return SplitAnswers(split=split, labels=labels, predictions=predictions)


def gate(fp32, other, max_loss=0.005, max_group_loss=0.01):
    return accuracy_gate(
        fp32, other, precision="int8", class_groups=GROUPS, max_loss=max_loss, max_group_loss=max_group_loss
    )


@pytest.mark.parametrize(
    ("num_wrong_fp32", "num_wrong", "num_items", "allowed", "is_refused"),
    [
        (1, 3, 20, 2, False),  # two items: 10 %, but chance
        (1, 4, 20, 2, True),  # three items
        (500, 550, 10_000, 50, False),  # exactly the allowed half per cent
        (500, 551, 10_000, 50, True),
        (10, 5, 100, 2, False),  # a gain
    ],
)
def test_a_loss_of_accuracy_counts_only_if_three_items_flip(num_wrong_fp32, num_wrong, num_items, allowed, is_refused):
    labels = np.resize([0, 1, 2, 2], num_items)
    figures = gate(answers(labels, range(num_wrong_fp32)), answers(labels, range(num_wrong)), max_group_loss=1.0)
    assert figures["passed"] != is_refused
    assert figures["net_flips"] == num_wrong - num_wrong_fp32
    assert figures["max_net_flips"] == allowed
    assert figures["tolerance"] == allowed / num_items
    assert figures["accuracy_int8"] == pytest.approx(1 - num_wrong / num_items)
    assert f"at most {allowed} more of {num_items} validation items" in loss_message("x", "int8", figures, NAMES)


def test_one_class_group_that_loses_is_refused_though_the_mean_holds():
    labels = np.repeat([0, 1, 2], [400, 100, 500])
    mine = np.flatnonzero(labels == 1)
    # Three of a hundred dogs turn wrong, three cats turn right: nothing is lost on the average.
    figures = gate(answers(labels, range(3)), answers(labels, mine[:3]))
    assert (figures["net_flips"], figures["passed"]) == (0, False)
    assert [group["net_flips"] for group in figures["groups"]] == [-3, 3]
    assert [group["num_items"] for group in figures["groups"]] == [900, 100]
    assert [group["max_net_flips"] for group in figures["groups"]] == [9, 2]
    assert [group["passed"] for group in figures["groups"]] == [True, False]
    assert worst_group(figures) == 1
    message = loss_message("qint8_arm64", "int8", figures, NAMES)
    assert "2 of the 100 of class group 1, the worst (dog;" in message
    assert "--auto" in message
    assert gate(answers(labels, range(3)), answers(labels, mine[:2]))["passed"]
    assert "--auto" not in loss_message("fp16", "fp16", {**figures, "accuracy_fp16": 0.9}, NAMES)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_flips_are_paired_over_items_and_the_groups_add_up(items):
    labels, right_fp32, right = (np.array(column) for column in zip(*items, strict=True))
    fp32 = SplitAnswers(split="validation", labels=labels, predictions=np.where(right_fp32, labels, 9))
    other = SplitAnswers(split="validation", labels=labels, predictions=np.where(right, labels, 9))
    figures = gate(fp32, other)
    assert figures["net_flips"] == (right_fp32 & ~right).sum() - (~right_fp32 & right).sum()
    assert figures["net_flips"] == sum(group["net_flips"] for group in figures["groups"])
    assert figures["num_items"] == sum(group["num_items"] for group in figures["groups"])
    bounds = [figures, *figures["groups"]]
    assert figures["passed"] == all(bound["net_flips"] <= bound["max_net_flips"] for bound in bounds)
    assert gate(fp32, fp32)["passed"]


def test_a_class_group_without_items_decides_nothing():
    figures = gate(answers([0, 0], []), answers([0, 0], [0]))
    nothing = {"num_items": 0, "net_flips": 0, "max_net_flips": 2, "tolerance": None, "passed": True}
    assert figures["groups"][1] == nothing
    assert worst_group(figures) == 0


def test_a_gate_on_two_different_sets_of_items_is_refused():
    fp32 = answers([0, 1, 2], [])
    for other in (answers([0, 1], []), answers([0, 2, 1], []), answers([0, 1, 2], [], split="test")):
        with pytest.raises(DataError, match="on the same items"):
            gate(fp32, other)


def test_a_measure_has_one_answer_for_each_of_at_least_one_item():
    for labels, predictions in ([[], []], [[0, 1], [0]], [[[0]], [[0]]]):
        with pytest.raises(DataError, match="one prediction for each label"):
            SplitAnswers(split="test", labels=np.array(labels), predictions=np.array(predictions))


def test_parity_is_relative_to_the_largest_value_and_refuses_more():
    logits = np.array([[10.0, 0.0], [0.0, 5.0]], np.float32)
    parity = check({"logits": logits}, {"logits": logits + np.float32(5e-4)})
    assert parity.relative_to_largest_logit == pytest.approx(5e-5, rel=0.01)
    assert parity.max_abs == pytest.approx(5e-4, rel=0.01)
    with pytest.raises(ExportGateError, match="not the trained model"):
        check({"logits": logits}, {"logits": logits + np.float32(5e-3)})
    features = {"logits": logits, "features": np.float32([[1e-3]])}  # a small output is held to its own size
    with pytest.raises(ExportGateError, match="not the trained model"):
        check(features, {**features, "features": np.float32([[1.1e-3]])})


def test_a_changed_answer_is_allowed_only_where_torch_itself_hesitates():
    tied = {"logits": np.float32([[10.0, 10.0001]])}
    assert check(tied, {"logits": np.float32([[10.0002, 10.0001]])}).argmax_agreement == 0.0
    sure = {"logits": np.float32([[10.0, 10.0015]])}
    with pytest.raises(ExportGateError, match="1 of 1 answers differ"):
        check(sure, {"logits": np.float32([[10.0009, 10.0006]])})


@pytest.mark.parametrize("bad", [np.float32([[np.nan, 0.0]]), np.float32([[1.0]])])
def test_values_that_are_not_finite_or_of_another_shape_are_refused(bad):
    with pytest.raises(ExportGateError, match="expected finite logits"):
        measure_parity({"logits": np.float32([[1.0, 0.0]])}, {"logits": bad}, what="x")


@pytest.mark.parametrize("num_items", [1, 3, 8, 9, 72, 73, 200])
def test_items_run_in_batches_of_one_two_five_and_then_sixty_four_each_once(num_items):
    seen = []

    def run(values):
        seen.append(len(values))
        return {"out": values}

    values = np.arange(num_items)
    np.testing.assert_array_equal(run_batches(run, {"values": values})["out"], values)
    assert seen[:3] == [1, 2, 5][: len(seen)] or num_items < 8
    assert max(seen) <= 64
