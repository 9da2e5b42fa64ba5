# SPDX-License-Identifier: Apache-2.0
"""Compensation at its limits: few inputs, dead units, padding, half precision, memory."""

import copy
import logging
import weakref

import pytest
import torch
from test_compensation import GROUP, NO_BARS, error, inputs_of, plan_and_cut, targets

from edvit_hf.pruning import architecture_of, compensate
from edvit_hf.pruning.compensation import choose_tokens
from edvit_hf.pruning.compensation_steps import trace
from support.tiny_architectures import tiny_inputs, tiny_model


@pytest.mark.parametrize("num_inputs", [2, 12])
@pytest.mark.parametrize("name", ["vit", "distilbert"])
def test_few_inputs_are_fitted_with_care_and_one_line_says_so(name, num_inputs, caplog):
    model, inputs, fresh = tiny_model(name), tiny_inputs(name, num_inputs), tiny_inputs(name, 128, seed=9)
    plan, pruned = plan_and_cut(model)
    before = error(pruned, fresh, targets(model, fresh))
    with caplog.at_level(logging.INFO, logger="edvit_hf"):
        compensate(pruned, model, plan, GROUP, inputs, **NO_BARS)
    (line,) = [record.message for record in caplog.records if "fewer than 2 rows per input" in record.message]
    assert f"{num_inputs} rows for 16 inputs" in line
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())
    if num_inputs > 2:
        assert error(pruned, fresh, targets(model, fresh)) < before


def test_a_step_with_few_rows_gets_a_stronger_ridge():
    """The classifier has 4 rows for 16 inputs, and so 8 times the ridge: as a fit by hand."""
    model, inputs = tiny_model("vit"), tiny_inputs("vit", 4)
    plan, pruned = plan_and_cut(model)
    cut = copy.deepcopy(pruned.classifier)
    compensate(pruned, model, plan, GROUP, inputs, ridge=0.1, **NO_BARS)
    with torch.no_grad():
        x = inputs_of(pruned, "classifier", inputs).double()
        missing = targets(model, inputs).double() - cut(x.float()).double()
        gram = torch.nn.functional.pad(x, (0, 1), value=1.0)
        penalty = torch.eye(17, dtype=torch.float64) * 0.1 * 8 * x.square().sum(dim=0).mean()
        penalty[-1, -1] = 0
        update = torch.linalg.solve(gram.T @ gram + penalty, gram.T @ missing)
    torch.testing.assert_close(pruned.classifier.weight, cut.weight + update[:-1].T.float(), rtol=1e-4, atol=1e-5)


def test_keeping_everything_needs_no_more_inputs():
    model = tiny_model("vit")
    plan, pruned = plan_and_cut(model, keep=4, group=list(range(5)))
    compensate(pruned, model, plan, None, tiny_inputs("vit", 3), **NO_BARS)
    for key, value in pruned.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=2e-5)


def test_a_step_whose_inputs_are_all_zero_stays_as_it_was_cut():
    model = tiny_model("vit")
    with torch.no_grad():
        for parameter in model.vit.layers[0].mlp.fc1.parameters():
            parameter.zero_()
    plan, pruned = plan_and_cut(model)
    cut = copy.deepcopy(pruned.vit.layers[0].mlp.fc2.state_dict())
    compensate(pruned, model, plan, GROUP, tiny_inputs("vit", 64), **NO_BARS)
    for key, value in pruned.vit.layers[0].mlp.fc2.state_dict().items():
        assert torch.equal(value, cut[key])


def test_padding_takes_no_place_among_the_drawn_tokens(monkeypatch):
    monkeypatch.setattr("edvit_hf.pruning.compensation._MAX_ROWS", 3 * 50)
    inputs = tiny_inputs("bert", 50)
    samples = choose_tokens(inputs, architecture_of(tiny_model("bert")), 12, batch_size=8)
    assert samples.chosen[:, 0].all()
    assert (samples.chosen.sum(dim=1) == 3).all()
    assert not (samples.chosen & (inputs["attention_mask"] == 0)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_stream_is_found_in_every_precision(dtype):
    """Rounding of a large stream must not hide that a Linear is added to it."""
    model = tiny_model("vit")
    with torch.no_grad():
        model.vit.embeddings.position_embeddings += 300
    expected, _ = trace(model, architecture_of(model), tiny_inputs("vit", 2))
    inputs = {"pixel_values": tiny_inputs("vit", 2)["pixel_values"].to(dtype)}
    steps, num_tokens = trace(model.to(dtype), architecture_of(model), inputs)
    assert [step.probes for step in steps] == [step.probes for step in expected]
    assert sum(probe[1] for step in steps for probe in step.probes) == 4
    assert num_tokens == 5
    assert model.dtype == dtype


def test_whole_answers_of_the_teacher_are_not_held_together():
    model, alive = tiny_model("vit"), []
    plan, pruned = plan_and_cut(model)
    held = []

    def remember(_module, _args, output):
        held.append(sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(output))

    for layer in model.vit.layers:
        layer.mlp.fc1.register_forward_hook(remember)
        layer.attention.q_proj.register_forward_hook(remember)
    compensate(pruned, model, plan, GROUP, tiny_inputs("vit", 64), **NO_BARS)
    assert len(held) == 4
    assert max(held) == 0
