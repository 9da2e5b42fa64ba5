"""Scores are what they claim: exact KL of removal, its second-order term, and nothing else."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import nn

from conftest import tiny_vit
from edvit_hf.errors import PruningError
from edvit_hf.pruning import (
    PruningPlan,
    UnitScores,
    architecture_of,
    make_plan,
    masked_forward,
    prune,
    unit_scores,
)
from edvit_hf.pruning.distribution import group_log_probabilities
from edvit_hf.pruning.gates import Gates, gated, gated_layer_norm, layer_input, resumed_at

GROUP = [1, 3]
METHODS = ("kl", "fisher", "linear", "hybrid", "magnitude", "random")


def small_teacher(**sizes):
    """Few units, so that removing each by hand is quick."""
    model = tiny_vit(**{"hidden_size": 16, "num_heads": 4, "intermediate_size": 8, **sizes})
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms start constant: make every unit different
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def images(num=5, seed=3):
    return torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def kl_by_hand(model, pixel_values, gates, group=GROUP):
    with torch.no_grad():
        log_p = group_log_probabilities(model(pixel_values).logits, group)
        with gated(model, architecture_of(model), gates):
            log_q = group_log_probabilities(model(pixel_values).logits, group)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item()


def one_gate(size, unit, value=0.0, dtype=torch.float32):
    gate = torch.ones(1, size, dtype=dtype)
    gate[0, unit] = value
    return gate


def test_pooled_distribution_sums_to_one_and_keeps_the_groups_own_probabilities():
    logits = torch.randn(3, 5)
    log_p = group_log_probabilities(logits, [4, 0])
    p = logits.double().softmax(dim=-1)
    torch.testing.assert_close(log_p.exp(), torch.stack([p[:, 4], p[:, 0], p[:, 1:4].sum(dim=-1)], dim=-1))


def test_a_group_of_all_classes_has_no_other():
    assert group_log_probabilities(torch.randn(2, 3), [0, 1, 2]).shape == (2, 3)


def test_gated_norm_equals_the_norm_over_the_kept_channels():
    norm = nn.LayerNorm(6, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    hidden, kept = torch.randn(2, 3, 6), [0, 2, 5]
    gate = torch.zeros(1, 6).index_fill_(1, torch.tensor(kept), 1.0)
    reduced = nn.LayerNorm(3, eps=1e-5)
    reduced.load_state_dict({"weight": norm.weight[kept], "bias": norm.bias[kept]})
    got = gated_layer_norm(hidden, gate, norm)
    torch.testing.assert_close(got[..., kept], reduced(hidden[..., kept]))
    assert got[..., [1, 3, 4]].abs().max() == 0


def test_open_gates_change_nothing():
    model, pixel_values = small_teacher(), images()
    expected = model(pixel_values).logits
    gates = Gates(residual=torch.ones(5, 16), heads=dict.fromkeys((0, 1), torch.ones(5, 4)), ffn={1: torch.ones(5, 8)})
    with gated(model, architecture_of(model), gates):
        torch.testing.assert_close(model(pixel_values).logits, expected, rtol=1e-5, atol=1e-5)


def test_gates_are_gone_after_the_block_even_after_an_error():
    model, pixel_values = small_teacher(), images()
    expected = model(pixel_values).logits
    gates = Gates(residual=torch.zeros(1, 16).index_fill_(1, torch.tensor([0, 1]), 1.0))

    def fail_inside():
        with (
            gated(model, architecture_of(model), gates),
            resumed_at(model, architecture_of(model), 1, expected),
        ):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(model(pixel_values).logits, expected)
    assert "forward" not in vars(model.vit.layers[0])


def test_a_closed_residual_gate_equals_cutting_the_channel_out():
    model, pixel_values, channel = small_teacher(), images(), 6
    everything = make_plan(
        unit_scores(model, pixel_values, GROUP, method="random"),
        model.config,
        keep_residual=16,
        keep_heads=4,
        keep_ffn=8,
    )
    kept = [i for i in range(16) if i != channel]
    plan = PruningPlan(**{**vars(everything), "kept_residual": kept})
    with gated(model, architecture_of(model), Gates(residual=one_gate(16, channel))):
        gated_logits = model(pixel_values).logits
    torch.testing.assert_close(prune(model, plan, None)(pixel_values).logits, gated_logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(masked_forward(model, plan, pixel_values), gated_logits)


@pytest.mark.parametrize("layer", [0, 1])
def test_resuming_at_a_layer_equals_the_whole_forward(layer):
    model, pixel_values = small_teacher(), images()
    architecture = architecture_of(model)
    hidden = layer_input(model, architecture, layer, pixel_values)
    with resumed_at(model, architecture, layer, hidden):
        assert torch.equal(model(torch.zeros_like(pixel_values)).logits, model(pixel_values).logits)
    assert not torch.equal(model(torch.zeros_like(pixel_values)).logits, model(pixel_values).logits)


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_kl_scores_equal_removing_each_unit_by_hand(batch_size):
    model, pixel_values = small_teacher(), images()
    scores = unit_scores(model, pixel_values, GROUP, method="kl", batch_size=batch_size, progress=False)
    residual = [kl_by_hand(model, pixel_values, Gates(residual=one_gate(16, i))) for i in range(16)]
    heads = [[kl_by_hand(model, pixel_values, Gates(heads={at: one_gate(4, i)})) for i in range(4)] for at in (0, 1)]
    ffn = [[kl_by_hand(model, pixel_values, Gates(ffn={at: one_gate(8, i)})) for i in range(8)] for at in (0, 1)]
    for got, expected in ((scores.residual, residual), (scores.heads, heads), (scores.ffn, ffn)):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-7)
        assert (got > 0).all()
        assert got.dtype == np.float64


@pytest.mark.parametrize("group", [GROUP, [0, 1, 2, 3]])
def test_fisher_is_half_the_curvature_of_the_kl_at_open_gates(group):
    model, pixel_values, step = small_teacher().double(), images().double(), 1e-4
    scores = unit_scores(model, pixel_values, group, method="fisher", progress=False)

    def curvature(make_gates):
        # The KL and its slope vanish at gate 1, so both one-sided values carry the second-order term alone.
        values = [kl_by_hand(model, pixel_values, make_gates(1.0 + sign * step), group) for sign in (-1, 1)]
        return sum(values) / 2 / step**2

    gate = partial(one_gate, dtype=torch.float64)

    for unit in (0, 5, 11):
        expected = curvature(lambda value, unit=unit: Gates(residual=gate(16, unit, value)))
        assert scores.residual[unit] == pytest.approx(expected, rel=1e-3)
    for layer, unit in ((0, 0), (1, 3)):
        expected = curvature(lambda value, at=layer, unit=unit: Gates(heads={at: gate(4, unit, value)}))
        assert scores.heads[layer, unit] == pytest.approx(expected, rel=1e-3)
        expected = curvature(lambda value, at=layer, unit=unit: Gates(ffn={at: gate(8, unit, value)}))
        assert scores.ffn[layer, unit] == pytest.approx(expected, rel=1e-3)


def test_linear_scores_are_the_kl_of_first_order_logits():
    model, pixel_values, step = small_teacher().double(), images().double(), 1e-5
    scores = unit_scores(model, pixel_values, GROUP, method="linear", progress=False)
    with torch.no_grad():
        logits = model(pixel_values).logits
        with gated(model, architecture_of(model), Gates(heads={1: one_gate(4, 2, 1 - step, torch.float64)})):
            slope = (logits - model(pixel_values).logits) / step
    log_p, log_q = (group_log_probabilities(z, GROUP) for z in (logits, logits - slope))
    expected = (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item()
    assert scores.heads[1, 2] == pytest.approx(expected, rel=1e-4)


def test_hybrid_is_exact_on_residual_and_heads_and_fisher_on_ffn():
    model, pixel_values = small_teacher(), images()
    hybrid, exact, fisher = (
        unit_scores(model, pixel_values, GROUP, method=m, progress=False) for m in ("hybrid", "kl", "fisher")
    )
    assert np.array_equal(hybrid.residual, exact.residual)
    assert np.array_equal(hybrid.heads, exact.heads)
    assert np.array_equal(hybrid.ffn, fisher.ffn)
    assert not np.array_equal(hybrid.ffn, exact.ffn)


def test_approximations_rank_ffn_units_as_the_exact_kl_does():
    model, pixel_values = small_teacher(intermediate_size=48), images(12)
    exact, fisher, linear = (
        unit_scores(model, pixel_values, GROUP, method=m, progress=False).ffn.ravel()
        for m in ("kl", "fisher", "linear")
    )
    assert kendalltau(exact, fisher).statistic > 0.8
    assert kendalltau(exact, linear).statistic > 0.8


def test_magnitude_is_the_norm_of_every_weight_that_goes_with_the_unit():
    model = small_teacher()
    before = unit_scores(model, images(), GROUP, method="magnitude")
    attention, mlp = model.vit.layers[1].attention, model.vit.layers[1].mlp
    with torch.no_grad():
        squares = [
            p.weight[4:8].square().sum() + p.bias[4:8].square().sum()
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]
        head = sum(squares) + attention.o_proj.weight[:, 4:8].square().sum()
        ffn = mlp.fc1.weight[2].square().sum() + mlp.fc1.bias[2].square() + mlp.fc2.weight[:, 2].square().sum()
        model.vit.embeddings.cls_token[..., 9] += 100
    after = unit_scores(model, images(), GROUP, method="magnitude")
    assert before.heads[1, 1] == pytest.approx(head.sqrt().item(), rel=1e-5)
    assert before.ffn[1, 2] == pytest.approx(ffn.sqrt().item(), rel=1e-5)
    assert np.flatnonzero(after.residual != before.residual).tolist() == [9]
    assert after.residual[9] > 90


@pytest.mark.parametrize("method", METHODS)
def test_scores_repeat_under_the_same_seed_and_leave_the_teacher_alone(method):
    model, pixel_values = small_teacher().train(), images()
    model.vit.layers[0].eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, generator = [m.training for m in model.modules()], torch.get_rng_state()
    first, second = (unit_scores(model, pixel_values, GROUP, method=method, seed=7, progress=False) for _ in range(2))
    for name in ("residual", "heads", "ffn"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert (first.method, first.num_samples) == (method, 5)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


def test_another_seed_gives_other_random_scores():
    first, second = (unit_scores(small_teacher(), images(), GROUP, method="random", seed=s) for s in (0, 1))
    assert not np.array_equal(first.residual, second.residual)


def test_scoring_is_class_wise():
    model, pixel_values = small_teacher(), images()
    first, second = (unit_scores(model, pixel_values, g, method="kl", progress=False) for g in ([0], [1, 2]))
    assert not np.allclose(first.residual, second.residual)


@pytest.mark.parametrize("method", METHODS)
def test_no_images_no_scores(method):
    with pytest.raises(PruningError, match="n of at least 1"):
        unit_scores(small_teacher(), images(0), GROUP, method=method)


@pytest.mark.parametrize("method", ["kl", "fisher", "linear", "hybrid", "magnitude"])
def test_scores_that_are_not_finite_are_refused(method):
    model = small_teacher()
    model.vit.layers[1].mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(PruningError, match="not finite"):
        unit_scores(model, images(), GROUP, method=method, progress=False)


@pytest.mark.parametrize("group", [[], [0, 0], [4], [-1]])
def test_a_bad_class_group_is_refused(group):
    with pytest.raises(PruningError, match=r"distinct labels in 0\.\.3"):
        unit_scores(small_teacher(), images(), group, method="kl")


def test_an_unknown_method_and_a_bad_batch_size_are_refused():
    with pytest.raises(PruningError, match="got 'taylor'"):
        unit_scores(small_teacher(), images(), GROUP, method="taylor")
    with pytest.raises(PruningError, match="batch_size"):
        unit_scores(small_teacher(), images(), GROUP, method="kl", batch_size=0)


def test_scores_of_the_wrong_dimension_are_refused():
    with pytest.raises(PruningError, match="heads"):
        UnitScores(np.ones(4), np.ones(4), np.ones((2, 4)), "kl", 1)
