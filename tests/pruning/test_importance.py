# SPDX-License-Identifier: Apache-2.0
"""Scores are what they claim: exact KL of removal, its second-order term, a rank by activations, and nothing else."""

import re
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from torch.nn.attention import SDPBackend, sdpa_kernel

from edvit_hf.architectures.tables import ARCHITECTURES
from edvit_hf.pruning import architecture_of, unit_scores
from edvit_hf.pruning.config import ImportanceMethod
from edvit_hf.pruning.masks import Masks, masked
from edvit_hf.pruning.models import linear_at
from edvit_hf.pruning.score_kl import group_log_probabilities
from support.tiny_architectures import ARCHITECTURE_NAMES, TEXT, tiny_inputs, tiny_model, tiny_vit

GROUP = [1, 3]
METHODS = get_args(ImportanceMethod)
NAMES = (*ARCHITECTURE_NAMES, "dinov2")
AXES = [
    (name, axis)
    for name in NAMES
    for axis in ("residual", "heads", "attention", "ffn", "pooled")
    if axis != "pooled" or name in TEXT
]


@pytest.fixture(scope="module", autouse=True)
def _table_of_the_guide():
    guide = Path(__file__).resolve().parents[2] / "docs/guides/adding_an_architecture.md"
    (block,) = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    exec(block, {})
    yield
    del ARCHITECTURES["dinov2"]


@cache
def double_model(name):
    """In float64, with the fused attention: ViT's eager one computes its softmax in float32."""
    return tiny_model(name).double()


def double_inputs(name, n=4, seed=0):
    return {k: v.double() if v.is_floating_point() else v for k, v in tiny_inputs(name, n, seed).items()}


@cache
def double_scores(name, method):
    return unit_scores(double_model(name), double_inputs(name), GROUP, method=method, progress=False)


@cache
def shapes_of(name):
    model = double_model(name)
    architecture = architecture_of(model)
    return architecture.unit_shapes(architecture.widths(model.config))


def masks_of(axis, mask, layer=1):
    return Masks(**{axis: mask if axis in ("residual", "pooled") else {layer: mask}})


def of_layer(scores, axis, layer=1):
    found = scores.by_axis()[axis]
    return found if found.ndim == 1 else found[layer]


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def kl_by_hand(name, axis, mask, group=GROUP):
    """KL of the masked teacher from the intact one; differentiable by the mask."""
    model, inputs = double_model(name), double_inputs(name)
    log_p = group_log_probabilities(model(**inputs).logits, group).detach()
    with masked(model, architecture_of(model), masks_of(axis, mask)):
        return kl(log_p, group_log_probabilities(model(**inputs).logits, group))


def small_vit(**sizes):
    return tiny_vit(**{"hidden_size": 16, "num_heads": 4, "intermediate_size": 8, **sizes})


def images(num=5, seed=3):
    return torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def assert_same(first, second, **tolerance):
    for axis, scores in first.by_axis().items():
        np.testing.assert_allclose(second.by_axis()[axis], scores, err_msg=axis, **tolerance)


# The distribution


@given(st.integers(2, 6), st.data())
@settings(max_examples=30, deadline=None)
def test_pooled_distribution_sums_to_one_and_keeps_the_groups_own_probabilities(num_labels, data):
    group = data.draw(st.lists(st.integers(0, num_labels - 1), min_size=1, unique=True))
    logits = 10 * torch.randn(3, num_labels)
    p = group_log_probabilities(logits, group).exp()
    assert p.shape == (3, len(group) + (len(group) < num_labels))  # all classes: there is no "other"
    torch.testing.assert_close(p.sum(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(p[:, : len(group)], logits.double().softmax(dim=-1)[:, group])


# The KL methods


@pytest.mark.parametrize(("name", "axis"), AXES)
def test_kl_scores_equal_removing_each_unit_by_hand(name, axis):
    """That a closed mask removes the unit is tested in test_masks.py, on the weights."""
    size = shapes_of(name)[axis][-1]
    scores = of_layer(double_scores(name, "kl"), axis)
    with torch.no_grad():
        for unit in (0, size // 2, size - 1):
            mask = torch.ones(1, size, dtype=torch.float64)
            mask[0, unit] = 0
            assert scores[unit] == pytest.approx(kl_by_hand(name, axis, mask).item(), rel=1e-6, abs=1e-12)
    assert scores.dtype == np.float64
    assert (scores >= 0).all()
    assert scores.max() > 1e-3


@pytest.mark.parametrize(("name", "axis"), AXES)
def test_fisher_is_half_the_second_derivative_of_the_kl_at_open_masks(name, axis):
    mask = torch.ones(1, shapes_of(name)[axis][-1], dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        hessian = torch.autograd.functional.hessian(lambda g: kl_by_hand(name, axis, g), mask)[0, :, 0]
    expected = 0.5 * hessian.diagonal().numpy()
    np.testing.assert_allclose(of_layer(double_scores(name, "fisher"), axis), expected, rtol=1e-6, atol=1e-12)
    assert expected.max() > 1e-3


@pytest.mark.parametrize("sureness", [1, 100])
@pytest.mark.parametrize("group", [[0], [4, 0], [3, 1, 2], [0, 1, 2, 3], [2, 0, 1, 4, 3]])
def test_fisher_of_any_group_is_the_sum_over_all_its_outcomes(group, sureness):
    """One backward pass per outcome, as in the textbook; the library takes one fewer."""
    model, inputs = tiny_model("vit").double(), double_inputs("vit")
    model.classifier.weight.data *= sureness
    mask = torch.ones(4, 48, dtype=torch.float64, requires_grad=True)
    with masked(model, architecture_of(model), masks_of("ffn", mask)):
        log_p = group_log_probabilities(model(**inputs).logits, group)
    assert (log_p.max(dim=1).values.exp() > 0.99).sum() >= (3 if sureness > 1 else 0)
    expected = torch.zeros(48, dtype=torch.float64)
    for k in range(log_p.shape[1]):
        (slope,) = torch.autograd.grad(log_p[:, k].sum(), mask, retain_graph=True)
        expected += 0.5 * log_p[:, k].detach().exp() @ slope.square() / 4
    scores = unit_scores(model, inputs, group, method="fisher", progress=False)
    np.testing.assert_allclose(scores.ffn[1], expected.numpy(), rtol=1e-7)


@pytest.mark.parametrize(("name", "axis"), [(n, a) for n, a in AXES if n in ("vit", "bert")])
def test_linear_scores_are_the_kl_of_first_order_logits(name, axis):
    model, inputs, step = double_model(name), double_inputs(name), 1e-5
    size = shapes_of(name)[axis][-1]
    mask = torch.ones(1, size, dtype=torch.float64)
    mask[0, 2] -= step
    with torch.no_grad():
        logits = model(**inputs).logits
        with masked(model, architecture_of(model), masks_of(axis, mask)):
            slope = (logits - model(**inputs).logits) / step
    log_p, log_q = (group_log_probabilities(z, GROUP) for z in (logits, logits - slope))
    assert of_layer(double_scores(name, "linear"), axis)[2] == pytest.approx(kl(log_p, log_q).item(), rel=1e-3)


@pytest.mark.parametrize("name", ["vit", "distilbert"])
def test_hybrid_is_exact_where_units_are_few_and_fisher_elsewhere(name):
    hybrid, exact, fisher = (double_scores(name, method).by_axis() for method in ("hybrid", "kl", "fisher"))
    for axis, scores in hybrid.items():
        assert np.array_equal(scores, (fisher if axis in ("attention", "ffn") else exact)[axis]), axis
        assert not np.array_equal(exact[axis], fisher[axis])


def test_a_head_of_one_dimension_is_that_dimension():
    model = small_vit(num_heads=16)
    scores = unit_scores(model, images(), GROUP, method="kl", progress=False)
    np.testing.assert_allclose(scores.heads, scores.attention, rtol=1e-4, atol=1e-9)


def test_approximations_rank_units_as_the_exact_kl_does():
    model, pixel_values = small_vit(intermediate_size=48), images(12)
    exact, fisher, linear = (
        unit_scores(model, pixel_values, GROUP, method=method, progress=False).by_axis()
        for method in ("kl", "fisher", "linear")
    )
    for axis in ("ffn", "attention"):
        assert kendalltau(exact[axis], fisher[axis]).statistic > 0.75
        assert kendalltau(exact[axis], linear[axis]).statistic > 0.75


# The other methods


@pytest.mark.parametrize(("name", "axis"), [(n, a) for n, a in AXES if n in ("deit", "bert")])
def test_taylor_is_the_mean_slope_of_the_teachers_own_answer(name, axis):
    model, inputs, step = double_model(name), double_inputs(name), 1e-5
    mask = torch.ones(1, shapes_of(name)[axis][-1], dtype=torch.float64)
    mask[0, 3] -= step
    with torch.no_grad():
        log_p, k = group_log_probabilities(model(**inputs).logits, GROUP).max(dim=1)
        with masked(model, architecture_of(model), masks_of(axis, mask)):
            log_q = group_log_probabilities(model(**inputs).logits, GROUP)[range(4), k]
    expected = ((log_p - log_q).abs() / step).mean().item()
    assert of_layer(double_scores(name, "taylor"), axis)[3] == pytest.approx(expected, rel=1e-3)


def activations(name, path, layer=None, output=False):
    """Input (or output) of one module on the test inputs, and which tokens are real."""
    model, inputs, seen = double_model(name), double_inputs(name), []
    module = model.get_submodule(path.format(layer=layer))
    handle = module.register_forward_hook(lambda _module, args, result: seen.append(result if output else args[0]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    real = inputs.get("attention_mask", torch.ones(seen[0].shape[:2])).bool()
    return seen[0], real


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_apoz_counts_real_tokens_that_fire(name):
    table, scores = ARCHITECTURES[name], double_scores(name, "apoz")
    values, real = activations(name, table.ffn_output, 1)
    np.testing.assert_allclose(scores.ffn[1], (values[real] > 0).double().mean(dim=0))
    values, real = activations(name, table.attention_output, 0)
    np.testing.assert_allclose(scores.attention[0], values[real].abs().mean(dim=0))
    np.testing.assert_allclose(scores.heads[0], values[real].abs().mean(dim=0).view(4, 8).mean(dim=1))
    values, real = activations(name, table.feature_norm.format(last=1), output=True)
    np.testing.assert_allclose(scores.residual, values[real].abs().mean(dim=0))
    if name == "bert":
        values, _ = activations(name, "classifier")
        np.testing.assert_allclose(scores.pooled, values.abs().mean(dim=0))


def hsic_by_hand(x, y=None):
    """HSIC of samples (n, features) with others; of one argument: its kernel, centred."""

    def kernel(z):
        distances = torch.cdist(z, z).square()
        return sum(torch.exp(-distances / (2 * width**2)) for width in (1, 2, 4, 8, 16)) / 5

    centre = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    other = kernel(y) if y.shape[1] == x.shape[1] else y @ y.T
    return torch.trace(centre @ kernel(x) @ centre @ centre @ other @ centre).item()


def test_hsic_scores_follow_devits_rule():
    model, inputs, scores = double_model("vit"), double_inputs("vit"), double_scores("vit", "hsic")
    with torch.no_grad():
        p = group_log_probabilities(model(**inputs).logits, GROUP).exp()
    values, _ = activations("vit", ARCHITECTURES["vit"].ffn_output, 1)  # (4, T, 48)
    relevance = np.array([hsic_by_hand(values[:, :, j], p) for j in range(48)])
    strength = values.abs().sum(dim=(0, 1)).numpy()
    both = [(v - v.min()) / (v.max() - v.min()) for v in (relevance, strength)]
    np.testing.assert_allclose(scores.ffn[1], 0.1 * both[0] + 0.9 * both[1], rtol=1e-6, atol=1e-9)

    values, _ = activations("vit", ARCHITECTURES["vit"].attention_output, 0)
    heads = values.unflatten(-1, (4, 8)).mean(dim=-1)
    for h in range(4):
        redundancy = [hsic_by_hand(heads[:, :, h], heads[:, :, other]) for other in range(4) if other != h]
        expected = hsic_by_hand(heads[:, :, h], p) - 0.1 * np.mean(redundancy)
        assert scores.heads[0, h] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["vit", "bert", "dinov2"])
def test_magnitude_is_the_norm_of_every_weight_that_goes_with_the_unit(name):
    model = tiny_model(name)
    table = architecture_of(model)
    before = unit_scores(model, tiny_inputs(name), GROUP, method="magnitude")
    layer = model.get_submodule(table.layers)[1]
    with torch.no_grad():
        linears = {key: linear_at(model, getattr(table, key), 1) for key in ("attention_query", "attention_output")}
        # Setting weights that belong to one unit alone must change that unit's score and no other of its axis.
        linears["attention_query"].weight[11] = 0
        linears["attention_query"].bias[11] = 50
    after = unit_scores(model, tiny_inputs(name), GROUP, method="magnitude")
    assert np.argwhere(before.attention != after.attention).tolist() == [[1, 11]]
    assert np.argwhere(before.heads != after.heads).tolist() == [[1, 1]]
    np.testing.assert_allclose(after.heads, np.sqrt((after.attention.reshape(2, 4, 8) ** 2).sum(axis=-1)))
    output = linear_at(model, table.ffn_output, 1)
    (first,) = [m for m in layer.modules() if isinstance(m, torch.nn.Linear) and m.out_features == before.ffn.shape[1]]
    ffn = first.weight[2].square().sum() + first.bias[2].square() + output.weight[:, 2].square().sum()
    assert after.ffn[1, 2] == pytest.approx(ffn.sqrt().item(), rel=1e-5)
    everything = sum(p.square().sum() for n, p in model.named_parameters() if "residual" in str(table.locate(n)[0]))
    assert (after.residual**2).sum() >= 0.99 * everything.item()


def test_another_seed_gives_other_random_scores():
    first, second = (unit_scores(small_vit(), images(), GROUP, method="random", seed=s) for s in (0, 1))
    assert not np.array_equal(first.residual, second.residual)


# All methods alike


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_scores_every_unit_of_every_architecture(name, method):
    scores = unit_scores(tiny_model(name), tiny_inputs(name), GROUP, method=method, progress=False)
    assert {axis: array.shape for axis, array in scores.by_axis().items()} == shapes_of(name)
    assert (scores.method, scores.num_samples) == (method, 4)
    for axis, array in scores.by_axis().items():
        assert array.dtype == np.float64
        assert len(np.unique(array)) > 1, f"{axis}: all units alike"


@pytest.mark.parametrize("method", METHODS)
def test_scores_repeat_under_the_same_seed_and_leave_the_teacher_alone(method):
    model, pixel_values = small_vit().train(), images()
    model.vit.layers[0].eval()
    model.classifier.bias.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, generator = [m.training for m in model.modules()], torch.get_rng_state()
    first, second = (unit_scores(model, pixel_values, GROUP, method=method, seed=7, progress=False) for _ in range(2))
    assert_same(first, second, rtol=0)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad == (n != "classifier.bias") for n, p in model.named_parameters())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "hsic"])  # compares samples within a batch
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_batch_size_changes_memory_not_scores(name, method):
    for batch_size in (1, 3):
        scores = unit_scores(
            double_model(name), double_inputs(name), GROUP, method=method, batch_size=batch_size, progress=False
        )
        assert_same(double_scores(name, method), scores, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TEXT)
def test_padding_changes_no_score(name, method):
    inputs = double_inputs(name)
    longer = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in inputs.items()}
    scores = unit_scores(double_model(name), longer, GROUP, method=method, progress=False)
    assert_same(double_scores(name, method), scores, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["kl", "fisher", "taylor"])
def test_scoring_is_class_wise(method):
    model, pixel_values = small_vit(), images()
    first, second = (unit_scores(model, pixel_values, g, method=method, progress=False) for g in ([0], [1, 2]))
    assert not np.allclose(first.residual, second.residual)


def test_a_bare_array_is_the_main_input():
    named, bare = (
        unit_scores(tiny_model("vit"), inputs, GROUP, method="fisher", progress=False)
        for inputs in (tiny_inputs("vit"), tiny_inputs("vit")["pixel_values"].numpy())
    )
    assert_same(named, bare, rtol=0)
