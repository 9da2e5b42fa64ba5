# SPDX-License-Identifier: Apache-2.0
"""What scoring refuses or warns of, and how it keeps to its memory."""

import logging
from typing import get_args

import numpy as np
import pytest
import torch

from edvit_hf.errors import PruningError
from edvit_hf.pruning import UnitScores, unit_scores
from edvit_hf.pruning.config import ImportanceMethod
from edvit_hf.tasks import check_class_group
from support.tiny_architectures import tiny_inputs, tiny_model

GROUP = [1, 3]
METHODS = get_args(ImportanceMethod)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_group_without_samples_is_refused_with_the_remedy(name, method):
    empty = {key: value[:0] for key, value in tiny_inputs(name).items()}
    with pytest.raises(PruningError, match=r"n of at least 1(.|\n)*Pass training samples of the group's classes"):
        unit_scores(tiny_model(name), empty, GROUP, method=method)


def test_inputs_without_the_main_one_or_of_unequal_rows_are_refused():
    inputs = tiny_inputs("bert")
    with pytest.raises(PruningError, match="need the entry 'input_ids', got \\['attention_mask'\\]"):
        unit_scores(tiny_model("bert"), {"attention_mask": inputs["attention_mask"]}, GROUP, method="kl")
    with pytest.raises(PruningError, match="same number of rows"):
        unit_scores(tiny_model("bert"), inputs | {"attention_mask": inputs["attention_mask"][:2]}, GROUP, method="kl")


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("magnitude", "random")])
def test_logits_that_are_not_finite_are_refused_by_name(method):
    model = tiny_model("vit")
    model.vit.layers[1].mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(PruningError, match="logits are not finite for 4 of 4 rows"):
        unit_scores(model, tiny_inputs("vit"), GROUP, method=method, progress=False)


def test_scores_that_are_not_finite_are_refused():
    model = tiny_model("vit")
    model.vit.layers[1].mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(PruningError, match=r"1 of 32 residual scores \(magnitude\) are not finite"):
        unit_scores(model, tiny_inputs("vit"), GROUP, method="magnitude", progress=False)


@pytest.mark.parametrize("group", [[], [0, 0], [5], [-1]])
def test_a_bad_class_group_is_refused(group):
    with pytest.raises(PruningError, match=r"distinct labels in 0\.\.4"):
        unit_scores(tiny_model("vit"), tiny_inputs("vit"), group, method="kl")


def test_an_unknown_method_and_a_bad_batch_size_are_refused():
    with pytest.raises(PruningError, match="got 'tailor'"):
        unit_scores(tiny_model("vit"), tiny_inputs("vit"), GROUP, method="tailor")
    with pytest.raises(PruningError, match="batch_size"):
        unit_scores(tiny_model("vit"), tiny_inputs("vit"), GROUP, method="kl", batch_size=0)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(PruningError, match="`seed` must be a whole number of at least 0"):
        unit_scores(tiny_model("vit"), tiny_inputs("vit"), GROUP, method="random", seed=seed)


@pytest.mark.parametrize("group", [[1.7], [True, 2], [np.bool_(True)], ["1"]])
def test_labels_that_are_no_whole_numbers_are_refused(group):
    with pytest.raises(PruningError, match="whole numbers, got"):
        unit_scores(tiny_model("vit"), tiny_inputs("vit"), group, method="magnitude")
    assert check_class_group([np.int64(1), torch.tensor(3)], 5) == [1, 3]


@pytest.mark.parametrize("method", ["fisher", "linear", "taylor", "hybrid"])
def test_gradients_in_inference_mode_are_refused_with_the_way_out(method):
    model, inputs = tiny_model("vit"), tiny_inputs("vit")
    with torch.inference_mode(), pytest.raises(PruningError, match=r"torch.inference_mode.. is on(.|\n)*outside of it"):
        unit_scores(model, inputs, GROUP, method=method)
    with torch.inference_mode():
        made_inside = tiny_model("vit")
    with pytest.raises(PruningError, match="made under it"):
        unit_scores(made_inside, inputs, GROUP, method=method)
    with torch.no_grad():
        unit_scores(model, inputs, GROUP, method=method, progress=False)
    with torch.inference_mode():
        unit_scores(model, inputs, GROUP, method="apoz", progress=False)


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 8, 8), (4, 1, 8, 8)])
@pytest.mark.parametrize("method", ["kl", "fisher", "apoz"])
def test_inputs_that_the_teacher_cannot_read_are_refused(method, shape):
    with pytest.raises(PruningError, match=r"vit cannot read inputs of the shapes(.|\n)*preprocessor"):
        unit_scores(tiny_model("vit"), torch.zeros(shape), GROUP, method=method)


def test_scores_that_say_nothing_anywhere_are_refused():
    one_label = tiny_model("vit", num_labels=1)
    with pytest.raises(PruningError, match=r"All units of every axis have the same score \(fisher"):
        unit_scores(one_label, tiny_inputs("vit"), [0], method="fisher", progress=False)


def test_an_axis_or_a_layer_of_equal_scores_is_named(caplog):
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        unit_scores(tiny_model("vit"), tiny_inputs("vit", 1), GROUP, method="hsic", progress=False)
        assert "in: heads." in caplog.text
        assert "Show other or more samples" in caplog.text
        caplog.clear()
        model = tiny_model("vit")
        for parameter in model.vit.layers[1].mlp.fc2.parameters():
            parameter.data.zero_()
        unit_scores(model, tiny_inputs("vit"), GROUP, method="fisher", progress=False)
        assert "in: ffn of layers [1]." in caplog.text
        caplog.clear()
        unit_scores(tiny_model("vit"), tiny_inputs("vit"), GROUP, method="fisher", progress=False)
        assert not caplog.text


def rows_of_forwards(model):
    """The rows of every forward, as they happen."""
    rows = []
    model.register_forward_pre_hook(
        lambda _m, _args, kwargs: rows.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return rows


def test_gradient_methods_take_fewer_rows_where_memory_binds(monkeypatch):
    model, inputs = tiny_model("vit"), tiny_inputs("vit", 12)
    rows = rows_of_forwards(model)
    plain = unit_scores(model, inputs, GROUP, method="fisher", progress=False)
    assert max(rows) == 12
    rows.clear()
    tokens, layers = 5, 2
    one_row = 4 * layers * tokens * (2 * 32 + 6 * 32 + 3 * 48)
    monkeypatch.setattr("edvit_hf.pruning.score_kl._MAX_SAVED_BYTES", 3 * one_row)
    bounded = unit_scores(model, inputs, GROUP, method="fisher", progress=False)
    assert rows.count(3) == 4
    assert max(rows) == 3
    for axis, scores in plain.by_axis().items():
        np.testing.assert_allclose(bounded.by_axis()[axis], scores, rtol=1e-3, atol=1e-6, err_msg=axis)


def test_linear_takes_fewer_rows_where_its_slopes_would_not_fit(monkeypatch):
    model, inputs = tiny_model("vit"), tiny_inputs("vit", 12)
    num_units = 32 + 2 * (4 + 32 + 48)
    monkeypatch.setattr("edvit_hf.pruning.score_kl._MAX_JACOBIAN_ENTRIES", 2 * num_units * 5)
    rows = rows_of_forwards(model)
    unit_scores(model, inputs, GROUP, method="linear", progress=False)
    assert rows.count(2) == 6
    assert max(rows) == 2
    rows.clear()
    unit_scores(model, inputs, GROUP, method="fisher", progress=False)  # holds no slopes
    assert max(rows) == 12


def test_scores_of_the_wrong_dimension_are_refused():
    with pytest.raises(PruningError, match="heads"):
        UnitScores(
            residual=np.ones(4),
            heads=np.ones(4),
            attention=np.ones((2, 4)),
            ffn=np.ones((2, 4)),
            method="kl",
            num_samples=1,
        )
