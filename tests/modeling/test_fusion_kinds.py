# SPDX-License-Identifier: Apache-2.0
"""Answers are fused by a head, by the average of the votes, or by both; what an absent sub-model left never matters."""

import copy
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from edvit_hf.auto import EDViTConfig, EDViTForImageClassification, EDViTModel
from edvit_hf.modeling_edvit import FusionHead, ResidualFusion, VoteAverage
from edvit_hf.parts_edvit import side_by_side
from support.tiny_architectures import tiny_vit
from support.torch_ensemble import NAMES, named_for

KINDS = ["mlp", "average", "residual"]
ALL = list(range(len(NAMES)))
PIXELS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def sub_model(group, seed=0, with_other=False):
    """A stock ViT over `group`, with "other" where the group leaves classes out, or where asked."""
    num_labels = len(group) + (len(group) < len(NAMES) or with_other)
    model = tiny_vit(num_labels, hidden_size=16, num_heads=1, seed=seed)
    named_for(model, group)
    if num_labels == len(group):
        model.config.id2label = {i: NAMES[c] for i, c in enumerate(group)}
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    return model


def make_ensemble(groups, kind, *, others=(), **fields):
    """An ensemble over these groups whose fusion has nothing at its first value."""
    models = [sub_model(group, seed, seed in others) for seed, group in enumerate(groups)]
    fields = {"id2label": dict(enumerate(NAMES)), "fusion_hidden_size": 8, "fusion_kind": kind, **fields}
    if kind != "mlp" and any(len(group) < len(NAMES) for group in groups):
        fields.setdefault("fusion_other", "spread")
    ensemble = EDViTForImageClassification.from_sub_models(models, groups, **fields)
    if kind != "average":
        size = sum(ensemble.feature_sizes)
        ensemble.fusion.set_feature_statistics(torch.linspace(-1, 1, size), torch.linspace(0.5, 2, size))
    if kind != "mlp":
        ensemble.fusion.set_temperatures(torch.linspace(0.5, 2, len(groups)))
    if kind == "residual":
        ensemble.fusion.set_scale(0.7)
    return ensemble


OVERLAPPING = [[0, 1, 2], [2, 3], [4, 3, 0], [4, 0, 1, 2, 3]]


@st.composite
def overlapping_groups(draw):
    groups = draw(st.lists(st.lists(st.sampled_from(ALL), min_size=1, unique=True), min_size=1, max_size=4))
    missing = [c for c in ALL if not any(c in group for group in groups)]
    return [*groups, missing] if missing else groups


def average_of(groups, sizes, temperatures):
    fusion = VoteAverage(groups, sizes, len(NAMES), [4] * len(groups))
    fusion.set_temperatures(torch.tensor(temperatures))
    return fusion


@settings(deadline=None, max_examples=60)
@given(groups=overlapping_groups(), data=st.data())
def test_the_average_is_the_mean_of_log_probabilities_with_other_spread_over_the_rest(groups, data):
    sizes = [len(group) + data.draw(st.integers(len(group) < len(NAMES), 1)) for group in groups]
    temperatures = [data.draw(st.floats(0.25, 4)) for _ in groups]
    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups)))])
    votes = [3 * torch.randn(1, size) for size in sizes]
    expected, heard = torch.zeros(len(NAMES), dtype=torch.float64), 0
    for group, vote, temperature, present in zip(groups, votes, temperatures, mask[0].tolist(), strict=True):
        outside = [c for c in ALL if c not in group]
        scaled = vote[0, : len(group) + bool(outside)].double() / temperature
        p = scaled.softmax(0)
        table = torch.empty(len(NAMES), dtype=torch.float64)
        table[group] = p[: len(group)]
        if outside:
            table[outside] = p[-1] / len(outside)
        assert table.sum().item() == pytest.approx(1)
        expected, heard = expected + present * table.log(), heard + present
    got = average_of(groups, sizes, temperatures)(None, torch.cat(votes, dim=1), mask)
    torch.testing.assert_close(got[0].double(), expected / max(heard, 1), atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(groups=overlapping_groups(), kind=st.sampled_from(KINDS), seed=st.integers(0, 99), data=st.data())
@torch.no_grad()
def test_what_stands_in_absent_sub_models_never_matters(groups, kind, seed, data):
    generator = torch.Generator().manual_seed(seed)
    sizes, widths = [len(g) + (len(g) < len(NAMES)) for g in groups], [3] * len(groups)
    average = average_of(groups, sizes, [1.5] * len(groups))
    head = FusionHead(widths, len(NAMES), 4, 0.0)
    residual = ResidualFusion(average, head)
    residual.set_scale(0.5)
    fusion = {"mlp": head, "average": average, "residual": residual}[kind].eval()
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))
    spoilt = data.draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
    features, logits = (torch.randn(2, sum(each), generator=generator) for each in (widths, sizes))
    expected = fusion(features, logits, mask.expand(2, -1))
    assert expected.isfinite().all()
    hidden = [torch.repeat_interleave(~mask, torch.tensor(each)) for each in (widths, sizes)]
    got = fusion(features.masked_fill(hidden[0], spoilt), logits.masked_fill(hidden[1], spoilt), mask.expand(2, -1))
    assert torch.equal(got, expected)


@torch.no_grad()
def test_the_average_of_replicas_is_the_single_model():
    models = [sub_model(ALL, seed=3) for _ in range(3)]
    fields = {"fusion_kind": "average", "id2label": dict(enumerate(NAMES))}
    alone = EDViTForImageClassification.from_sub_models(models[:1], [ALL], **fields)
    three = EDViTForImageClassification.from_sub_models(models, [ALL] * 3, **fields)
    expected = models[0](PIXELS).logits.log_softmax(dim=1)
    torch.testing.assert_close(alone(PIXELS).logits, expected)
    for mask in itertools.product([True, False], repeat=3):
        answer = three(PIXELS, sub_model_mask=torch.tensor(mask)).logits
        torch.testing.assert_close(answer, expected if any(mask) else torch.zeros_like(expected))


@torch.no_grad()
def test_a_residual_fusion_with_scale_zero_is_the_average_itself():
    ensemble = make_ensemble(OVERLAPPING, "residual")
    inputs = ensemble.features_and_logits(pixel_values=PIXELS)
    mask = torch.tensor([True, False, True, True]).expand(len(PIXELS), -1)
    ensemble.fusion.set_scale(0.0)
    average, head = ensemble.fusion.average(*inputs, mask), ensemble.fusion.head(*inputs, mask)
    assert torch.equal(ensemble.fusion(*inputs, mask), average)
    ensemble.fusion.set_scale(0.5)
    torch.testing.assert_close(ensemble.fusion(*inputs, mask), average + 0.5 * head)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_features_and_logits_are_what_the_fusion_takes(kind):
    ensemble = make_ensemble(OVERLAPPING, kind, others=(3,))
    assert ensemble.vote_sizes == ensemble.config.vote_sizes == [4, 3, 4, 6]
    features, logits = ensemble.features_and_logits(pixel_values=PIXELS)
    assert torch.equal(logits, torch.cat(ensemble.votes(pixel_values=PIXELS), dim=1))
    expected = ensemble.fusion(features, logits, torch.ones(len(PIXELS), 4))
    assert torch.equal(ensemble(PIXELS).logits, expected)
    votes = ensemble.votes(pixel_values=PIXELS)
    votes[1] = None
    assert torch.equal(side_by_side(votes, ensemble.vote_sizes, like=features)[:, 4:7], torch.zeros(len(PIXELS), 3))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [OVERLAPPING, [ALL] * 3, [ALL]], ids=["overlapping", "copies", "one"])
def test_every_kind_is_saved_whole_and_in_part(groups, kind, tmp_path):
    ensemble = make_ensemble(groups, kind, focus_groups=[group[:1] for group in groups])
    ensemble.save_pretrained(tmp_path)
    loaded = EDViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(PIXELS).logits, ensemble(PIXELS).logits)
    assert loaded.config.focus_groups == [group[:1] for group in groups]
    held = set(load_file(tmp_path / "fusion.safetensors"))
    assert held == set(ensemble.fusion.state_dict())
    assert ("scale" in held, "temperature" in held or "average.temperature" in held) == (
        kind == "residual",
        kind != "mlp",
    )
    for index in range(len(groups)):
        part = EDViTForImageClassification.from_pretrained(tmp_path, sub_models=[index])
        mask = torch.arange(len(groups)) == index
        torch.testing.assert_close(part(PIXELS).logits, ensemble(PIXELS, sub_model_mask=mask).logits)
    features = EDViTModel.from_pretrained(tmp_path)(PIXELS).pooler_output
    assert torch.equal(features, ensemble.features(pixel_values=PIXELS))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_kind_is_cast_with_its_ensemble(kind, dtype, tmp_path):
    ensemble = make_ensemble(OVERLAPPING, kind)
    expected = ensemble(PIXELS).logits
    ensemble.save_pretrained(tmp_path)
    for model in (
        copy.deepcopy(ensemble).to(dtype),
        EDViTForImageClassification.from_pretrained(tmp_path, dtype=dtype),
    ):
        assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
        logits = model(PIXELS.to(dtype)).logits
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), expected, atol=0.1, rtol=0.1)
    assert ensemble.to("meta")(PIXELS.to("meta")).logits.shape == (4, len(NAMES))


@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_trains_every_kind_and_goes_on_from_its_checkpoint(kind, tmp_path):
    rows = [{"pixel_values": image, "labels": i} for i, image in enumerate(PIXELS)]
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_steps": 1, "seed": 1}

    def trained(steps, resume):
        model = make_ensemble([ALL] * 2, kind, sub_model_dropout=0.3)
        arguments = TrainingArguments(tmp_path, per_device_train_batch_size=2, max_steps=steps, **options)
        Trainer(model=model, args=arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return model

    first = trained(2, None)
    again = trained(2, str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(a, again.state_dict()[key]) for key, a in first.state_dict().items())
    before = make_ensemble([ALL] * 2, kind).sub_models[0].vit.embeddings.cls_token
    assert not torch.equal(before, first.sub_models[0].vit.embeddings.cls_token)


@torch.no_grad()
def test_what_was_saved_before_there_were_kinds_loads_as_an_mlp(tmp_path):
    ensemble = make_ensemble([[0, 1], [2, 4], [3]], "mlp")
    ensemble.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("fusion_kind", "fusion_other", "focus_groups"):
        del values[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    loaded = EDViTForImageClassification.from_pretrained(tmp_path)
    assert type(loaded.fusion) is FusionHead
    assert torch.equal(loaded(PIXELS).logits, ensemble(PIXELS).logits)


def test_gradients_reach_present_votes_alone_and_stay_finite():
    ensemble = make_ensemble(OVERLAPPING, "residual")
    logits = torch.randn(2, sum(ensemble.vote_sizes))
    logits[:, :4] = math.nan  # of the absent sub-model
    logits.requires_grad_()
    features = torch.randn(2, sum(ensemble.feature_sizes))
    mask = torch.tensor([False, True, True, True]).expand(2, -1)
    ensemble.fusion(features, logits, mask).logsumexp(1).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, :4] == 0).all()
    assert (logits.grad[:, 4:] != 0).any()


@pytest.mark.parametrize("bad", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]])
def test_temperatures_that_say_nothing_are_refused(bad):
    with pytest.raises(ValueError, match="Expected 2 finite temperatures above 0"):
        make_ensemble([ALL, ALL], "residual").fusion.set_temperatures(torch.tensor(bad))


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_a_scale_that_drowns_the_average_is_refused(bad):
    with pytest.raises(ValueError, match="Expected a finite scale of at least 0"):
        make_ensemble([ALL], "residual").fusion.set_scale(bad)


def test_votes_over_different_labels_have_no_mean_without_a_rule():
    with pytest.raises(ValueError, match=r"all vote over the same 5 classes.*without some of them: \[0\]"):
        make_ensemble([[0, 1, 2], ALL], "average", fusion_other=None)


def test_classes_may_stand_in_several_groups_and_in_another_order():
    stock = [sub_model(group).config.to_dict() for group in OVERLAPPING]
    config = EDViTConfig(sub_model_configs=stock, class_groups=OVERLAPPING, id2label=dict(enumerate(NAMES)))
    assert config.num_labels == 5
    assert list(config.sub_model_labels(3).values()) == ["eel", "ant", "bee", "cat", "dog"]
