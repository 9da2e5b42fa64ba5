# SPDX-License-Identifier: Apache-2.0
"""Compensation: the planted case is recovered, no step gets worse, nothing removed changes nothing."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.architectures.axes import widths_of_heads
from edvit_hf.errors import PruningError
from edvit_hf.pruning import architecture_of, compensate, make_plan, prune
from edvit_hf.pruning.compensation import choose_tokens
from edvit_hf.pruning.compensation_steps import trace
from support.tiny_architectures import ARCHITECTURE_NAMES, TEXT, random_scores, tiny_inputs, tiny_model

GROUP = [0, 3]
KINDS = ("whole", "thin", "merged")
NO_BARS = {"progress": False}


def plan_and_cut(model, *, keep=2, kind="whole", group=GROUP, seed=0):
    labels = model.config.num_labels if len(group) == model.config.num_labels else len(group) + 1
    after = widths_of_heads(architecture_of(model).widths(model.config), keep, attention=kind, labels=labels)
    plan = make_plan(random_scores(model, seed), model.config, after, attention=kind)
    return plan, prune(model, plan, group)


def targets(teacher, inputs, group=GROUP):
    with torch.no_grad():
        logits = teacher(**inputs).logits
    others = [label for label in range(logits.shape[1]) if label not in group]
    return torch.cat([logits[:, group], logits[:, others].logsumexp(1, keepdim=True)], dim=1)


def error(model, inputs, wanted):
    with torch.no_grad():
        return float((model(**inputs).logits - wanted).square().mean())


def copy_rows(tensor, removed, kept, dim=0):
    """Make the removed entries along `dim` copies of kept ones."""
    sources = torch.tensor([kept[i % len(kept)] for i in range(len(removed))])
    tensor.index_copy_(dim, torch.tensor(removed), tensor.index_select(dim, sources))


def without(kept, size):
    return [i for i in range(size) if i not in kept]


@torch.no_grad()
def plant(model, architecture, plan):
    """Make all that `plan` removes an exact linear function of what it keeps, in a pre-norm model.

    Removed residual channels copy kept ones, one each, so that the norms' statistics agree; the norms themselves and
    every weight that reads the channels stay as they are. Removed FFN units copy kept ones. Removed value dimensions
    are mixtures of kept ones, under heads that are alike (whole heads) or that ignore removed dimensions (thin).
    """
    parameters, size = dict(model.named_parameters()), plan.head_dim
    for name, parameter in parameters.items():
        axes, _ = architecture.locate(name)
        reads = len(axes) == 2 and axes[1] == "residual"
        is_inner_norm = "norm" in name and name.rpartition(".")[0] != architecture.feature_norm
        if "residual" in axes and not reads and not is_inner_norm:
            copy_rows(
                parameter, without(plan.kept_residual, plan.hidden_size), plan.kept_residual, axes.index("residual")
            )
    for layer, kept in enumerate(plan.kept_attention):
        attention = architecture.attention_query.format(layer=layer).rpartition(".")[0]
        fc1 = architecture.ffn_output.format(layer=layer).replace("fc2", "fc1")
        generator = torch.Generator().manual_seed(layer)
        for kind in ("weight", "bias"):
            units = plan.kept_ffn[layer]
            copy_rows(parameters[f"{fc1}.{kind}"], without(units, plan.intermediate_size), units)
            query, key = (parameters[f"{attention}.{part}_proj.{kind}"] for part in "qk")
            removed = without(kept, len(query))
            if plan.attention == "thin":
                query[removed] = 0
            else:
                for part in (query, key):
                    part.copy_(part[kept[:size]].repeat(plan.num_heads, *[1] * (part.ndim - 1)))
        mixture = torch.zeros(len(removed), len(kept))
        for i, dimension in enumerate(removed):
            same = [j for j, k in enumerate(kept) if plan.attention == "whole" or k // size == dimension // size]
            mixture[i, same] = torch.randn(len(same), generator=generator) / len(same)
        weight, bias = (parameters[f"{attention}.v_proj.{kind}"] for kind in ("weight", "bias"))
        weight[removed], bias[removed] = mixture @ weight[kept], mixture @ bias[kept] + 1


@pytest.mark.parametrize("kind", ["whole", "thin"])
@pytest.mark.parametrize("name", ["vit", "deit", "audio-spectrogram-transformer"])
def test_removed_units_that_kept_ones_determine_are_recovered_to_float_precision(name, kind):
    model = tiny_model(name)
    everything = list(range(model.config.num_labels))
    plan, _ = plan_and_cut(model, kind=kind, group=everything)
    plant(model, architecture_of(model), plan)
    pruned = prune(model.double(), plan, everything)
    fitted, fresh = ({k: v.double() for k, v in tiny_inputs(name, n, seed=n).items()} for n in (96, 32))
    with torch.no_grad():
        wanted = model(**fresh).logits
    before = error(pruned, fresh, wanted)
    compensate(pruned, model, plan, everything, fitted, ridge=1e-13, **NO_BARS)
    assert before > 0.05 * float(wanted.var())
    assert error(pruned, fresh, wanted) < 1e-14 * float(wanted.var())
    in_float32 = {k: v.float() for k, v in fresh.items()}
    assert error(pruned.float(), in_float32, wanted.float()) < 1e-9 * float(wanted.var())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_answers_come_closer_to_the_teachers(name, kind):
    model = tiny_model(name)
    plan, pruned = plan_and_cut(model, kind=kind)
    fitted, fresh = tiny_inputs(name, 256), tiny_inputs(name, 128, seed=9)
    wanted, unseen = targets(model, fitted), targets(model, fresh)
    state = copy.deepcopy(model.state_dict())
    before, before_unseen = error(pruned, fitted, wanted), error(pruned, fresh, unseen)
    compensate(pruned, model, plan, GROUP, fitted, **NO_BARS)
    assert error(pruned, fitted, wanted) < 0.7 * before
    assert error(pruned, fresh, unseen) < 0.8 * before_unseen
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def inputs_of(model, path, inputs):
    """What arrives at a module, (n, T, I)."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return seen[0]


def outputs_of(model, path, inputs):
    """What a module gives."""
    seen = []
    handle = model.get_submodule(path).register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return seen[0]


def weighted_error(present, wanted, is_real):
    """As documented: the class token weighs 30 % of all tokens, padding nothing."""
    weights = is_real.double()
    weights[:, 0] = 3 / 7 * weights[:, 1:].sum() / len(weights)
    return float(((present.double() - wanted.double()).square() * weights[:, :, None]).sum())


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["vit", "bert", "distilbert"]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    ridge=st.sampled_from([1e-6, 1e-3, 1.0]),
    layer=st.integers(0, 1),
    part=st.sampled_from(["attention_output", "ffn_output", "classifier"]),
)
def test_no_step_gets_worse_on_the_samples_it_is_fitted_on(name, kind, seed, ridge, layer, part):
    """Against the same model with the cut weights of that one step: earlier steps stay compensated."""
    model = tiny_model(name, seed)
    architecture = architecture_of(model)
    plan, pruned = plan_and_cut(model, kind=kind, seed=seed)
    cut = copy.deepcopy(pruned.state_dict())
    inputs = tiny_inputs(name, 64, seed)
    compensate(pruned, model, plan, GROUP, inputs, ridge=ridge, **NO_BARS)
    path = getattr(architecture, part).format(layer=layer)
    uncompensated = copy.deepcopy(pruned)
    for kind_of in ("weight", "bias"):
        uncompensated.get_parameter(f"{path}.{kind_of}").data.copy_(cut[f"{path}.{kind_of}"])
    if part == "classifier":
        wanted = targets(model, inputs)
        assert error(pruned, inputs, wanted) <= error(uncompensated, inputs, wanted) * (1 + 1e-5)
        return
    norms = [norm.format(layer=i) for i in (layer, layer + 1) for norm in architecture.norms if "{layer}" in norm]
    if name == "vit":  # the norm that reads the sum: the layer's second; the next layer's first or the last of all
        norm = norms[1] if part == "attention_output" else norms[2] if layer == 0 else "vit.layernorm"
    else:
        norm = norms[0] if part == "attention_output" else norms[1]
    wanted = inputs_of(model, norm, inputs)[..., plan.kept_residual]
    is_real = inputs.get("attention_mask", torch.ones(wanted.shape[:2])).bool()
    with_, without_ = (weighted_error(inputs_of(m, norm, inputs), wanted, is_real) for m in (pruned, uncompensated))
    assert with_ <= without_ * (1 + 1e-5)


@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_nothing_removed_changes_nothing(name):
    model = tiny_model(name)
    everything = list(range(model.config.num_labels))
    plan, pruned = plan_and_cut(model, keep=4, group=everything)
    compensate(pruned, model, plan, None, tiny_inputs(name, 128), **NO_BARS)
    for key, value in pruned.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", TEXT)
def test_padding_takes_no_part(name):
    model = tiny_model(name)
    inputs = tiny_inputs(name, 128)
    other = {**inputs, "input_ids": torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], 7)}
    assert not torch.equal(inputs["input_ids"], other["input_ids"])
    results = []
    for samples in (inputs, other):
        plan, pruned = plan_and_cut(model)
        compensate(pruned, model, plan, GROUP, samples, **NO_BARS)
        results.append(pruned.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=0, atol=1e-4)


def test_the_batch_size_and_the_memory_limits_change_only_the_rounding(monkeypatch):
    model, inputs = tiny_model("vit"), tiny_inputs("vit", 96)
    results = []
    for batch_size, target_bytes in ((96, 2**29), (7, 1)):
        monkeypatch.setattr("edvit_hf.pruning.compensation._TARGET_BYTES", target_bytes)
        plan, pruned = plan_and_cut(model)
        compensate(pruned, model, plan, GROUP, inputs, batch_size=batch_size, **NO_BARS)
        results.append(pruned.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=0, atol=1e-4)


def test_a_few_tokens_of_long_inputs_suffice_and_are_the_same_in_every_call(monkeypatch):
    monkeypatch.setattr("edvit_hf.pruning.compensation._MAX_ROWS", 3 * 200)
    model, inputs = tiny_model("vit"), tiny_inputs("vit", 200)
    wanted, results = targets(model, inputs), []
    for _ in range(2):
        plan, pruned = plan_and_cut(model)
        before = error(pruned, inputs, wanted)
        compensate(pruned, model, plan, GROUP, inputs, **NO_BARS)
        results.append(pruned.state_dict())
        assert error(pruned, inputs, wanted) < 0.7 * before
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_a_model_that_scales_what_it_adds_to_the_stream_is_fitted_at_its_outputs():
    """Layer scale: the sum in the stream is no target for the Linear before it."""
    model, inputs = tiny_model("vit"), tiny_inputs("vit", 2)
    fc2 = architecture_of(model).ffn_output.format(layer=0)
    plain, _ = trace(model, architecture_of(model), inputs)
    assert {step.names: step.probes for step in plain}[fc2,] == (("vit.layers.1.layernorm_before", True),)
    mlp = model.get_submodule(fc2.rpartition(".")[0])
    mlp.register_forward_hook(lambda _module, _args, output: 0.1 * output)
    scaled, _ = trace(model, architecture_of(model), inputs)
    assert {step.names: step.probes for step in scaled}[fc2,] == ((fc2, False),)


def test_a_query_without_bias_is_fitted_without_one():
    model = tiny_model("vit", qkv_bias=False)
    with torch.no_grad():
        model.vit.layers[0].layernorm_before.bias += 3  # inputs far from zero mean, which a bias would take up
    plan, pruned = plan_and_cut(model)
    uncompensated = copy.deepcopy(pruned)
    inputs = tiny_inputs("vit", 128)
    compensate(pruned, model, plan, GROUP, inputs, **NO_BARS)
    norm, query = "vit.layers.0.layernorm_before", "vit.layers.0.attention.q_proj"
    wanted = outputs_of(model, query, inputs)[..., plan.kept_attention[0]]
    assert pruned.get_submodule(query).bias is None
    assert outputs_of(pruned, norm, inputs).mean().abs() > 1
    errors = [float((outputs_of(m, query, inputs) - wanted).square().mean()) for m in (pruned, uncompensated)]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("name", TEXT)
def test_the_pooler_is_fitted_to_the_teachers_outputs_at_the_kept_pooled_units(name):
    model = tiny_model(name)
    plan, pruned = plan_and_cut(model)
    assert plan.kept_pooled != plan.kept_residual
    inputs, pooler = tiny_inputs(name, 128), architecture_of(model).head[0]
    cut = copy.deepcopy(pruned.get_submodule(pooler).state_dict())
    compensate(pruned, model, plan, GROUP, inputs, **NO_BARS)
    uncompensated = copy.deepcopy(pruned)
    uncompensated.get_submodule(pooler).load_state_dict(cut)
    wanted = outputs_of(model, pooler, inputs)[:, plan.kept_pooled]
    errors = [float((outputs_of(m, pooler, inputs) - wanted).square().mean()) for m in (pruned, uncompensated)]
    assert errors[0] < 0.7 * errors[1]


def test_the_tokens_that_the_classifier_reads_weigh_what_is_documented():
    for name in ("deit", "bert"):
        inputs, architecture = tiny_inputs(name, 50), architecture_of(tiny_model(name))
        samples = choose_tokens(inputs, architecture, 6 if name == "deit" else 12, batch_size=8)
        features = samples.weights[:, list(architecture.feature_tokens)].sum()
        assert float(features / (samples.weights * samples.chosen).sum()) == pytest.approx(0.3)
        assert samples.chosen.sum() == (300 if name == "deit" else inputs["attention_mask"].sum())


def test_training_mode_and_the_random_generator_are_left_alone():
    model = tiny_model("vit", hidden_dropout_prob=0.5).train()
    plan, pruned = plan_and_cut(model)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    compensate(pruned, model, plan, GROUP, tiny_inputs("vit", 64), **NO_BARS)
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert pruned.training


def assert_refused(message, pruned, model, plan, group, inputs, **options):
    state = copy.deepcopy(pruned.state_dict())
    with pytest.raises(PruningError, match=message):
        compensate(pruned, model, plan, group, inputs, **NO_BARS, **options)
    assert all(torch.equal(value, state[key]) for key, value in pruned.state_dict().items())


def test_refusals_come_before_any_change():
    model = tiny_model("vit")
    plan, pruned = plan_and_cut(model)
    inputs = tiny_inputs("vit", 64)
    assert_refused("at least 2 inputs, got 1", pruned, model, plan, GROUP, tiny_inputs("vit", 1))
    assert_refused("cannot read inputs", pruned, model, plan, GROUP, {"pixel_values": torch.zeros(4, 3, 16, 16)})
    assert_refused("`ridge` must lie in", pruned, model, plan, GROUP, inputs, ridge=0.0)
    assert_refused("`ridge` must lie in", pruned, model, plan, GROUP, inputs, ridge=float("nan"))
    assert_refused("batch_size", pruned, model, plan, GROUP, inputs, batch_size=0)
    assert_refused("The pruned model should have", pruned, model, plan, [0, 1, 2], inputs)
    assert_refused("The pruned model should have", model, model, plan, GROUP, inputs)
    assert_refused("The plan was made for", pruned, tiny_model("vit", intermediate_size=64), plan, GROUP, inputs)
    assert_refused("answers with .'class_0', 'class_3', 'other'.", pruned, model, plan, [1, 2], inputs)
    assert_refused("answers with", pruned, model, plan, GROUP[::-1], inputs)
    assert_refused("not what the plan cuts", pruned, model, plan_and_cut(model, seed=1)[0], GROUP, inputs)
    assert_refused("not what the plan cuts", pruned, tiny_model("vit", seed=1), plan, GROUP, inputs)
    other_units = replace(plan, kept_ffn=[plan.kept_ffn[0], without(plan.kept_ffn[1], plan.intermediate_size)])
    assert_refused("layers.1.mlp.fc1.weight.* not what the plan cuts", pruned, model, other_units, GROUP, inputs)
    assert_refused("distinct labels", pruned, model, plan, [0, 9], inputs)
    assert_refused("not finite", pruned, model, plan, GROUP, {"pixel_values": inputs["pixel_values"] * float("nan")})
