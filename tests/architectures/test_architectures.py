# SPDX-License-Identifier: Apache-2.0
"""Every architecture, the shipped tables and the one of the guide: identity, cut = masked, costs, stock round trip."""

import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    PreTrainedConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.masking_utils import eager_mask

from edvit_hf.architectures.axes import Widths, widths_of_ratios
from edvit_hf.architectures.costs import ModelShape
from edvit_hf.architectures.tables import ARCHITECTURES, check_keys
from edvit_hf.errors import PruningError
from edvit_hf.pruning import architecture_of, make_plan, prune, unit_scores
from edvit_hf.pruning.masks import Masks, masked
from support.masked_teacher import masked_forward
from support.tiny_architectures import ARCHITECTURE_NAMES, TEXT, random_scores, tiny_inputs, tiny_model

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/adding_an_architecture.md"
NAMES = (*ARCHITECTURE_NAMES, "dinov2")
KINDS = ("whole", "thin", "merged")


@pytest.fixture(scope="module", autouse=True)
def _table_of_the_guide():
    """The guide's only code block, as written: it must register a working table."""
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert "dinov2" not in ARCHITECTURES
    exec(block, {})
    yield
    del ARCHITECTURES["dinov2"]


@cache
def model_of(name):
    return tiny_model(name)


def logits(model, name, n=4):
    with torch.no_grad():
        return model(**tiny_inputs(name, n)).logits


def all_widths(name):
    model = model_of(name)
    return architecture_of(model).widths(model.config)


def tied(name, **changes):
    """The widths with `changes`, and what the architecture ties to them."""
    table, widths = ARCHITECTURES[name], replace(all_widths(name), **changes)
    if not table.honours_head_dim:
        widths = replace(widths, residual=widths.attention)
    if table.ffn_ratio_key is not None:
        widths = replace(widths, ffn=2 * widths.residual)
    return widths


def plan_for(name, kind="whole", seed=0, **changes):
    model = model_of(name)
    return make_plan(random_scores(model, seed), model.config, tied(name, **changes), attention=kind)


CUTS = {
    "residual": ("whole", {"residual": 20}),
    "ffn": ("whole", {"ffn": 17}),
    "whole heads": ("whole", {"heads": 3}),
    "thin heads": ("thin", {"head_dim": 5}),
    "all with whole heads": ("whole", {"residual": 22, "heads": 2, "ffn": 30}),
    "all with thin heads": ("thin", {"residual": 18, "head_dim": 3, "ffn": 30}),
}
KIND_CUTS = {
    "whole": {"residual": 20, "heads": 2, "ffn": 30},
    "thin": {"residual": 20, "head_dim": 3, "ffn": 30},
    "merged": {"residual": 20, "heads": 3, "ffn": 30},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_is_the_identity_bit_for_bit(name, kind):
    model = model_of(name)
    pruned = prune(model, plan_for(name, kind), None)
    ours, theirs = pruned.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(logits(pruned, name), logits(model, name))
    assert pruned.config.to_dict() == model.config.to_dict()
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in pruned.named_buffers())


TIED = {("bert", "residual"), ("distilbert", "residual"), ("dinov2", "ffn")}  # follow another axis: cut with it


@pytest.mark.parametrize(("name", "cut"), [(n, c) for n in NAMES for c in CUTS if (n, c) not in TIED])
def test_the_cut_model_answers_as_the_masked_teacher(name, cut):
    kind, changes = CUTS[cut]
    model, plan = model_of(name), plan_for(name, kind, **changes)
    expected = masked_forward(model, plan, tiny_inputs(name))
    torch.testing.assert_close(logits(prune(model, plan, None), name), expected, rtol=1e-4, atol=2e-5)
    assert (expected - logits(model, name)).abs().max() > 1e-2, "the mask must change something"


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 99),
    thin=st.booleans(),
    residual=st.integers(2, 32),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 8),
    ffn=st.integers(1, 48),
)
def test_the_cut_model_answers_as_the_masked_teacher_at_any_widths(name, seed, thin, residual, heads, head_dim, ffn):
    sizes = {"residual": residual, "ffn": ffn} | ({"head_dim": head_dim} if thin else {"heads": heads})
    plan = plan_for(name, "thin" if thin else "whole", seed, **sizes)
    model = model_of(name)
    pruned = prune(model, plan, None)
    expected = masked_forward(model, plan, tiny_inputs(name))
    # Statistics over two or three channels divide by next to nothing: rounding grows with the logits.
    tolerance = 1e-3 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits(pruned, name), expected, rtol=0, atol=tolerance)
    assert sum(p.numel() for p in pruned.parameters()) == plan.parameters_after


def regrouped_attention(plan, order):
    """Attention over the kept dimensions of each group of old heads, at the old scale; zero where none is kept."""

    def forward(module, query, key, value, attention_mask, **_):
        kept = torch.tensor(plan.kept_attention[order[module]])
        query, key, value = (x.transpose(1, 2).flatten(2) for x in (query, key, value))
        output = torch.zeros_like(query)
        for dims in kept.chunk(plan.num_heads_after):
            scores = query[..., dims] @ key[..., dims].transpose(1, 2) * plan.head_dim**-0.5
            if attention_mask is not None:
                scores = scores + attention_mask[:, 0]
            output[..., dims] = scores.softmax(dim=-1) @ value[..., dims]
        return output.unflatten(-1, (plan.num_heads, plan.head_dim)), None

    return forward


@pytest.mark.parametrize(
    "changes", [{"heads": 3}, {"heads": 2, "residual": 20, "ffn": 30}, {"heads": 2, "head_dim": 16}, {"heads": 1}]
)
@pytest.mark.parametrize("name", NAMES)
def test_merged_heads_equal_the_regrouped_reference(name, changes):
    model, plan = tiny_model(name), plan_for(name, "merged", **changes)
    table, layers = ARCHITECTURES[name], range(2)
    parents = [model.get_submodule(table.attention_query.format(layer=i).rpartition(".")[0]) for i in layers]
    AttentionInterface.register("regrouped", regrouped_attention(plan, {m: i for i, m in enumerate(parents)}))
    AttentionMaskInterface.register("regrouped", eager_mask)
    model.set_attn_implementation("regrouped")

    def mask(kept, size):
        return torch.zeros(1, size).index_fill_(1, torch.tensor(kept), 1.0)

    masks = Masks(
        residual=mask(plan.kept_residual, 32),
        ffn={i: mask(plan.kept_ffn[i], plan.intermediate_size) for i in layers},
        pooled=None if plan.kept_pooled is None else mask(plan.kept_pooled, 32),
    )
    with masked(model, table, masks):
        expected = logits(model, name)
    actual = logits(prune(model_of(name), plan, None), name)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_a_stock_model_that_loads_again(name, kind, tmp_path):
    model = model_of(name)
    pruned = prune(model, plan_for(name, kind, **KIND_CUTS[kind]), [3, 1])
    pruned.save_pretrained(tmp_path)
    auto = {"audio-spectrogram-transformer": AutoModelForAudioClassification, **dict.fromkeys(TEXT)}.get(
        name, AutoModelForImageClassification
    )
    loaded = (auto or AutoModelForSequenceClassification).from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config.id2label == {0: "class_3", 1: "class_1", 2: "other"}
    assert torch.equal(logits(loaded, name), logits(pruned, name))
    assert not any(tensor.is_meta for tensor in (*pruned.parameters(), *pruned.buffers()))


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_a_head_is_written_only_where_the_plain_config_does_not_say_it(name):
    model = model_of(name)
    if ARCHITECTURES[name].honours_head_dim:
        thin = prune(model, plan_for(name, "thin", residual=20, head_dim=3), None).config
        assert (thin.num_attention_heads, thin.head_dim) == (4, 3)
    plain = prune(model, plan_for(name, residual=16, heads=2, ffn=24), None).config
    assert plain.to_dict().keys() == model.config.to_dict().keys()
    assert ARCHITECTURES[name].widths(plain) == tied(name, residual=16, heads=2, ffn=24)


def test_distilbert_has_its_own_keys():
    config = prune(model_of("distilbert"), plan_for("distilbert", heads=3, ffn=30), None).config
    assert (config.dim, config.n_heads, config.hidden_dim) == (24, 3, 30)


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("name", NAMES)
def test_predicted_costs_are_those_of_the_built_model(name, kind, tmp_path):
    model, length = model_of(name), 12 if name in TEXT else None
    shape = ModelShape.from_config(model.config.to_dict(), sequence_length=length)
    if kind is not None:
        plan = plan_for(name, kind, **KIND_CUTS[kind], labels=3)
        model, shape = prune(model, plan, [3, 1]), shape.resized(plan.widths_after)
        assert shape.parameters == plan.parameters_after
        again = ModelShape.from_config(model.config.to_dict(), sequence_length=length)
        assert (again.widths, again.parameters, again.macs) == (shape.widths, shape.parameters, shape.macs)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters

    kernel = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the counter has no formula for the fused kernel
    with FlopCounterMode(display=False) as counter:
        logits(model, name, n=1)
    model.set_attn_implementation(kernel)
    assert counter.get_total_flops() == 2 * shape.macs

    weights = {key: tensor.half() for key, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "fp32")
    model.save_pretrained(tmp_path / "fp16", state_dict=weights)
    for precision in ("fp32", "fp16"):
        assert (tmp_path / precision / "model.safetensors").stat().st_size == shape.file_bytes(precision)


@pytest.mark.parametrize(
    ("model", "keep", "parameters", "macs"),
    [
        ("S", 3, 5_526_346, 1_253_493_120),
        ("B", 8, 38_329_866, 7_990_461_440),
        ("L", 3, 10_864_714, 2_478_082_944),
        ("L", 4, 19_204_874, 4_233_673_216),
    ],
)
def test_the_cells_that_differ_are_exact_against_the_built_model(model, keep, parameters, macs):
    """Five cells of the three published tables, see test_planning."""
    heads, layers = {"S": (6, 12), "B": (12, 12), "L": (16, 24)}[model]
    sizes = {"hidden_size": 64 * heads, "num_attention_heads": heads, "intermediate_size": 256 * heads}
    teacher = ModelShape.from_config({"model_type": "vit", **sizes, "num_hidden_layers": layers}, num_labels=10)
    kept = teacher.keep(keep, num_labels=10)
    sizes = {"hidden_size": 64 * keep, "num_attention_heads": keep, "intermediate_size": 256 * keep}
    config = ViTConfig(**sizes, num_hidden_layers=layers, num_labels=10, attn_implementation="eager")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        built = ViTForImageClassification(config)
        built(torch.zeros(1, 3, 224, 224))
    assert sum(p.numel() for p in built.parameters()) == kept.parameters == parameters
    assert counter.get_total_flops() == 2 * kept.macs == 2 * macs


@pytest.mark.parametrize("name", ["vit", "deit", "audio-spectrogram-transformer"])
def test_predicted_costs_without_biases_are_those_of_the_built_model(name):
    model = tiny_model(name, qkv_bias=False)
    model.set_attn_implementation("eager")
    shape = ModelShape.from_config(model.config.to_dict())
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    with FlopCounterMode(display=False) as counter:
        logits(model, name, n=1)
    assert counter.get_total_flops() == 2 * shape.macs


@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_a_table_lists_every_key_of_its_stock_config(name):
    """So that a misspelt key is refused, and none that the stock config has."""
    table, config = ARCHITECTURES[name], type(model_of(name).config)
    own = {f.name for f in fields(config)} - {f.name for f in fields(PreTrainedConfig)}
    extra = {"head_dim"} if table.honours_head_dim else set()
    assert set(table.keys) == own | extra
    assert {*table.residual_keys, table.heads_key, table.layers_key, *table.defaults} <= set(table.keys)
    check_keys({**config().to_dict(), "num_labels": 3}, "x")
    with pytest.raises(PruningError, match=rf"`x\.{table.heads_key}z` is no key.*Did you mean `x\.{table.heads_key}`"):
        check_keys({"model_type": name, f"{table.heads_key}z": 3}, "x")


@pytest.mark.parametrize("bad", [0, -2, 2.0, "8", True, float("nan"), 10**400, [3]])
@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_a_size_that_is_no_count_is_refused_by_name(name, bad):
    table, config = ARCHITECTURES[name], model_of(name).config.to_dict()
    image = {"vit": ["patch_size", "image_size", "num_channels"], "bert": ["vocab_size"]}
    for key in (table.residual_keys[0], table.heads_key, table.ffn_key, table.layers_key, *image.get(name, [])):
        if bad == [3] and key in ("patch_size", "image_size"):
            continue  # a list is height and width: below
        with pytest.raises(PruningError, match=rf"`{key}` must be a whole number"):
            ModelShape.from_config({**config, key: bad}, num_labels=3)
    with pytest.raises(PruningError, match="`num_labels` must be a whole number"):
        ModelShape.from_config(config, num_labels=bad)
    with pytest.raises(PruningError, match="`id2label` must map"):
        ModelShape.from_config({**config, "id2label": 5})


@pytest.mark.parametrize("size", [[8], [8, 0], [8, 8, 8], []])
def test_an_image_size_is_one_number_or_two(size):
    with pytest.raises(PruningError, match=r"height and width|whole number"):
        ModelShape.from_config({**model_of("vit").config.to_dict(), "image_size": size}, num_labels=3)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_labelled_axes_is_refused_by_name(name):
    model = tiny_model(name)
    model.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(PruningError, match=rf"{name} table does not cover.*'adapter\.weight'"):
        prune(model, plan_for(name), None)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(PruningError, match=r"'swin'; known: .*bert.*vit"):
        architecture_of(SwinConfig())


def test_deit_with_a_distillation_classifier_is_refused_by_name():
    config = DeiTConfig(**{**model_of("deit").config.to_dict()})
    with pytest.raises(PruningError, match=r"cls_classifier\.weight.*stock DeiTForImageClassification,"):
        architecture_of(DeiTForImageClassificationWithTeacher(config))


@pytest.mark.parametrize(
    ("name", "key"), [("bert", "is_decoder"), ("bert", "add_cross_attention"), ("dinov2", "use_swiglu_ffn")]
)
def test_what_the_table_does_not_describe_may_not_be_switched_on(name, key):
    config = type(model_of(name).config)(**{**model_of(name).config.to_dict(), key: True})
    with pytest.raises(PruningError, match=f"{key}=False"):
        architecture_of(config).widths(config)


@pytest.mark.parametrize(
    ("name", "switch"), [("vit", "qkv_bias"), ("dinov2", "qkv_bias"), ("dinov2", "use_mask_token")]
)
def test_a_parameter_that_is_switched_off_is_not_asked_for(name, switch):
    model = tiny_model(name, **{switch: False})
    plan = make_plan(random_scores(model), model.config, tied(name, residual=20, heads=3, ffn=30))
    pruned = prune(model, plan, None)
    assert plan.parameters_before == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(logits(pruned, name), masked_forward(model, plan, tiny_inputs(name)))


@pytest.mark.parametrize(
    ("name", "residual", "attention", "ffn", "message"),
    [
        ("bert", 0.5, 0.75, 0.5, r"24 attention dimensions and 16 residual channels.*Keep 24 residual channels"),
        ("distilbert", 0.75, 0.5, 0.5, r"distilbert ties the attention width.*Keep 16 residual channels"),
        ("dinov2", 0.5, 0.5, 0.75, r"dinov2 ties the FFN width.*Keep 32 FFN units"),
    ],
)
def test_ratios_that_part_tied_widths_are_refused(name, residual, attention, ffn, message):
    model = model_of(name)
    widths = widths_of_ratios(all_widths(name), residual, attention, ffn, labels=5)
    with pytest.raises(PruningError, match=message):
        make_plan(random_scores(model), model.config, widths)


@pytest.mark.parametrize("name", ["bert", "distilbert", "dinov2"])
def test_the_ratio_that_the_refusal_names_can_be_followed(name):
    """0.7 of 32 channels and of 4 heads, on every axis alike, round to different shares."""
    model = model_of(name)
    with pytest.raises(PruningError, match="the ratio") as refusal:
        make_plan(random_scores(model), model.config, widths_of_ratios(all_widths(name), 0.7, 0.7, 0.7, labels=5))
    ratio = float(re.search(r"the ratio ([\d.]+) on both", str(refusal.value))[1])
    assert ratio != 0.7
    widths = widths_of_ratios(all_widths(name), ratio, ratio, ratio, labels=5)
    assert make_plan(random_scores(model), model.config, widths).widths_after == widths


@pytest.mark.parametrize("name", ["vit", "deit", "audio-spectrogram-transformer"])
def test_three_ratios_may_differ_where_the_architecture_allows_it(name):
    model = model_of(name)
    widths = widths_of_ratios(all_widths(name), 0.75, 0.5, 0.25, labels=5)
    assert widths == Widths(residual=24, heads=2, head_dim=8, ffn=12, labels=5, layers=2)
    pruned = prune(model, make_plan(random_scores(model), model.config, widths), None)
    assert architecture_of(pruned).widths(pruned.config) == widths


@pytest.mark.parametrize("method", ["fisher", "kl", "magnitude"])
def test_a_table_is_all_that_scoring_needs(method):
    """The architecture of the guide; those that ship are scored in test_importance.py."""
    model, inputs = model_of("dinov2"), tiny_inputs("dinov2", n=2)
    scores = unit_scores(model, inputs, [3, 1], method=method, progress=False)
    pruned = prune(model, make_plan(scores, model.config, tied("dinov2", residual=16, heads=2, labels=3)), [3, 1])
    assert logits(pruned, "dinov2").shape == (4, 3)


def test_a_bare_array_is_the_main_input():
    plan, inputs = plan_for("vit", heads=2), tiny_inputs("vit")["pixel_values"]
    expected = masked_forward(model_of("vit"), plan, {"pixel_values": inputs})
    assert torch.equal(masked_forward(model_of("vit"), plan, inputs), expected)
    assert torch.equal(masked_forward(model_of("vit"), plan, inputs.numpy()), expected)


def test_no_mask_does_what_merging_does():
    with pytest.raises(PruningError, match="merges 4 heads into 2"):
        masked_forward(model_of("vit"), plan_for("vit", "merged", heads=2), tiny_inputs("vit"))
