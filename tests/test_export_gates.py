"""The rules by which an exported file is accepted, on numbers made for them."""

import numpy as np
import pytest

from edvit_hf.errors import DataError, ExportGateError
from edvit_hf.export.gates import check_parity, int8_gate, int8_loss_message, measure_parity, run_batches


def check(reference, got, tolerance=1e-4):
    parity = measure_parity(reference, got, what="x")
    check_parity(parity, reference, got, tolerance=tolerance, atol=1e-6, what="x")
    return parity


@pytest.mark.parametrize(
    ("fp32", "int8", "num_items", "allowed", "is_refused"),
    [
        (0.95, 0.90, 20, 2, False),  # one item: 5 %, but chance
        (0.95, 0.80, 20, 2, True),  # three items
        (0.95, 0.949, 10_000, 50, False),  # ten items, within the allowed half per cent
        (0.95, 0.945, 10_000, 50, False),  # exactly the allowed half per cent
        (0.95, 0.9449, 10_000, 50, True),
        (0.90, 0.95, 100, 2, False),  # a gain
    ],
)
def test_a_loss_of_accuracy_counts_only_if_three_items_flip(fp32, int8, num_items, allowed, is_refused):
    rows = [{"split": "validation", "accuracy": a, "num_items": num_items} for a in (fp32, int8)]
    gate = int8_gate(*rows, max_loss=0.005)
    assert gate["passed"] != is_refused
    assert gate["max_net_flips"] == allowed
    assert gate["tolerance"] == allowed / num_items
    assert f"at most {allowed} more of {num_items} validation items" in int8_loss_message(gate)


def test_a_gate_on_two_different_sets_of_items_is_refused():
    row = {"split": "validation", "accuracy": 0.9, "num_items": 20}
    for other in ({**row, "num_items": 19}, {**row, "split": "test"}):
        with pytest.raises(DataError, match="on the same items"):
            int8_gate(row, other, max_loss=0.005)


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
