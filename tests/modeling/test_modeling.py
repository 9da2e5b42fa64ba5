# SPDX-License-Identifier: Apache-2.0
"""What the ensemble computes: stock features and votes, a head that survives absent sub-models."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import BertConfig, DeiTConfig, DeiTForImageClassification, Trainer, TrainingArguments, ViTModel

from edvit_hf.auto import EDViTForImageClassification, EDViTModel
from edvit_hf.configuration_edvit import EDViTConfig
from edvit_hf.modeling_edvit import FusionHead, forward_sub_model, sample_sub_model_mask
from support.tiny_architectures import tiny_vit
from support.torch_ensemble import (
    GROUPS,
    NAMES,
    NUM_FEATURES,
    NUM_SUB_MODELS,
    tiny_sub_model,
    tiny_sub_models,
    tiny_torch_ensemble,
)


@pytest.fixture(scope="module")
def ensemble():
    return tiny_torch_ensemble()


@pytest.fixture
def pixels():
    return torch.randn(4, 3, 8, 8)


@torch.no_grad()
def test_each_sub_model_answers_as_the_stock_model_does(pixels):
    subs = tiny_sub_models()
    ensemble = tiny_torch_ensemble(subs)
    features, votes = ensemble.features_and_votes(pixel_values=pixels)
    for sub, vote, feature in zip(subs, votes, features.split(ensemble.feature_sizes, dim=1), strict=True):
        assert torch.equal(vote, sub(pixels).logits)
        assert torch.equal(feature, sub.vit(pixels).last_hidden_state[:, 0])
    assert torch.equal(ensemble.features(pixel_values=pixels), features)
    assert all(torch.equal(a, b) for a, b in zip(ensemble.votes(pixel_values=pixels), votes, strict=True))


@torch.no_grad()
def test_a_sub_model_of_another_architecture_votes_as_stock_too(pixels):
    labels = {0: "dog", 1: "other"}
    config = DeiTConfig(
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_hidden_layers=1,
        image_size=8,
        patch_size=4,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    deit = DeiTForImageClassification(config).eval()
    feature, vote = forward_sub_model(deit, {"pixel_values": pixels})
    assert torch.equal(vote, deit(pixels).logits)
    assert torch.equal(feature, deit.deit(pixels).last_hidden_state[:, 0])
    ensemble = tiny_torch_ensemble([*tiny_sub_models()[:2], deit])
    assert torch.equal(ensemble.votes(pixel_values=pixels)[2], vote)


@torch.no_grad()
def test_logits_cover_all_classes_and_the_loss_is_cross_entropy(ensemble, pixels):
    labels = torch.tensor([0, 4, 2, 1])
    output = ensemble(pixels, labels=labels)
    assert output.logits.shape == (4, len(NAMES))
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, labels))


# P-8: an output class of our own is unknown to the process that reads an exported graph.
# P-9: each further output tensor is gathered into memory by evaluation loops.
@torch.no_grad()
def test_outputs_are_stock_and_hold_nothing_but_loss_and_logits(ensemble, pixels):
    output = ensemble(pixels, labels=torch.zeros(4, dtype=torch.long))
    assert type(output).__module__ == "transformers.modeling_outputs"
    assert list(output) == ["loss", "logits"]
    (logits,) = ensemble(pixels, return_dict=False)
    assert torch.equal(logits, output.logits)


# P-9: extra output tensors turn the predictions of a Trainer into a tuple.
def test_a_trainer_gathers_the_logits_and_nothing_else(tmp_path, pixels):
    ensemble = tiny_torch_ensemble()
    rows = [{"pixel_values": image, "labels": i} for i, image in enumerate(pixels)]
    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=3, report_to=[], use_cpu=True, disable_tqdm=True)
    predicted = Trainer(model=ensemble, args=arguments).predict(rows)
    with torch.no_grad():
        expected = ensemble(pixels, labels=torch.arange(4))
    assert isinstance(predicted.predictions, np.ndarray)
    assert np.allclose(predicted.predictions, expected.logits, atol=1e-6)
    assert predicted.metrics["test_loss"] == pytest.approx(expected.loss.item(), abs=1e-5)


@settings(deadline=None, max_examples=10)
@given(kept=st.integers(0, NUM_SUB_MODELS - 1), seed=st.integers(0, 99), spoiled=st.booleans())
@torch.no_grad()
def test_masking_all_but_one_leaves_logits_to_that_one_alone(ensemble, kept, seed, spoiled):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, NUM_FEATURES, generator=generator)
    others = torch.full_like(features, torch.nan) if spoiled else torch.randn(3, NUM_FEATURES, generator=generator)
    sizes = ensemble.feature_sizes
    own = torch.cat([torch.full((size,), i == kept) for i, size in enumerate(sizes)])
    mask = (torch.arange(NUM_SUB_MODELS) == kept).expand(3, -1)
    expected = ensemble.fusion(features, None, mask)
    assert torch.equal(ensemble.fusion(torch.where(own, features, others), None, mask), expected)
    assert not torch.equal(ensemble.fusion(torch.where(own, -features, features), None, mask), expected)


@torch.no_grad()
def test_an_absent_sub_model_counts_as_its_mean_but_is_known_to_be_absent(ensemble):
    size = ensemble.feature_sizes[0]
    features = torch.randn(2, NUM_FEATURES)
    at_mean = torch.cat([ensemble.fusion.feature_mean[:size].expand(2, -1), features[:, size:]], dim=1)
    mask = torch.tensor([[False, True, True]] * 2)
    assert torch.equal(ensemble.fusion(at_mean, None, mask), ensemble.fusion(features, None, mask))
    assert not torch.equal(ensemble.fusion(at_mean, None, mask), ensemble.fusion(at_mean, None, torch.ones(2, 3)))


@torch.no_grad()
def test_masks_per_ensemble_and_per_row_of_any_type_agree(ensemble, pixels):
    mask = torch.tensor([True, False, True])
    expected = ensemble(pixels, sub_model_mask=mask).logits
    for same in (mask.float(), mask.long(), mask.expand(4, -1), mask.expand(4, -1).float()):
        assert torch.equal(ensemble(pixels, sub_model_mask=same).logits, expected)
    rows = torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    mixed = ensemble(pixels, sub_model_mask=rows).logits
    assert torch.allclose(mixed[0], expected[0], atol=1e-6)
    assert torch.allclose(mixed[1:], ensemble(pixels).logits[1:], atol=1e-6)
    assert not torch.allclose(mixed[0], ensemble(pixels).logits[0])


@pytest.mark.parametrize("shape", [(2,), (4, 2), (1, 4, 3), ()])
def test_a_mask_of_another_shape_is_refused(ensemble, pixels, shape):
    with pytest.raises(ValueError, match=r"Expected `sub_model_mask` \(3,\) or \(batch, 3\)"):
        ensemble(pixels, sub_model_mask=torch.ones(shape))


@pytest.mark.parametrize("mask", [[1, 0, 1], (True, True, True), 1])
def test_a_mask_that_is_no_tensor_is_refused(ensemble, pixels, mask):
    with pytest.raises(ValueError, match=rf"Expected `sub_model_mask` .*got a {type(mask).__name__}"):
        ensemble(pixels, sub_model_mask=mask)


@torch.no_grad()
def test_features_only_model_puts_zeros_for_masked_sub_models(pixels):
    model = tiny_torch_ensemble(cls=EDViTModel)
    assert not hasattr(model, "fusion")
    output = model(pixels, sub_model_mask=torch.tensor([1, 0, 1]))
    parts = output.pooler_output.split(model.feature_sizes, dim=1)
    assert torch.equal(output.last_hidden_state, output.pooler_output)
    assert [bool(part.any()) for part in parts] == [True, False, True]
    assert torch.equal(model(pixels)[0], model.features(pixel_values=pixels))


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.99])
def test_sub_model_dropout_hides_its_share_and_never_everybody(dropout):
    generator = torch.Generator().manual_seed(0)
    mask = sample_sub_model_mask(4000, 5, dropout, generator=generator)
    again = sample_sub_model_mask(4000, 5, dropout, generator=torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool
    assert mask.any(dim=1).all()
    assert torch.equal(mask, again)
    expected = 1 - dropout + dropout**5 / 5  # rows that would be empty keep one of five
    assert abs(mask.float().mean().item() - expected) < 0.01
    if dropout == 0.99:  # who stays is a fair draw
        assert mask.float().mean(dim=0).sub(expected).abs().max() < 0.03


def test_sub_models_are_dropped_in_training_only(pixels):
    ensemble = tiny_torch_ensemble(sub_model_dropout=0.6, fusion_dropout=0.0)
    assert not ensemble.training
    assert torch.equal(ensemble(pixels).logits, ensemble(pixels).logits)
    ensemble.train()
    assert len({tuple(ensemble(pixels).logits[0].tolist()) for _ in range(8)}) > 1
    mask = torch.ones(NUM_SUB_MODELS)
    assert torch.equal(ensemble(pixels, sub_model_mask=mask).logits, ensemble.eval()(pixels).logits)


def test_an_absent_sub_model_gets_no_gradient(pixels):
    ensemble = tiny_torch_ensemble()
    labels = torch.zeros(4, dtype=torch.long)
    ensemble(pixels, labels=labels, sub_model_mask=torch.tensor([1, 0, 1])).loss.backward()
    moved = [sub.vit.layernorm.weight.grad.abs().sum() > 0 for sub in ensemble.sub_models]
    assert moved == [True, False, True]


# P-5: a buffer that is not persistent holds whatever memory held after `from_pretrained`.
def test_every_buffer_is_saved(ensemble):
    buffers = {name for name, _ in ensemble.named_buffers()}
    assert {"fusion.feature_mean", "fusion.feature_std"} <= buffers <= set(ensemble.state_dict())


def test_feature_statistics_standardise():
    head = FusionHead([2, 3], num_labels=4, hidden_size=0, dropout=0.0)
    features, mask = torch.randn(6, 5) * 3 + 2, torch.ones(6, 2)
    standardised = (features - features.mean(0)) / features.std(0)
    expected = head(standardised, None, mask)
    head.set_feature_statistics(features.mean(0), features.std(0))
    assert torch.allclose(head(features, None, mask), expected, atol=1e-5)
    head.set_feature_statistics(torch.zeros(5), torch.zeros(5))
    assert torch.equal(head.feature_std, torch.ones(5))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (torch.zeros(4), torch.ones(5)),
        (torch.zeros(5), torch.ones(1)),
        (torch.full((5,), torch.nan), torch.ones(5)),
        (torch.zeros(5), -torch.ones(5)),
        (torch.zeros(5), torch.full((5,), torch.inf)),
    ],
)
def test_feature_statistics_that_would_spoil_the_head_are_refused(mean, std):
    head = FusionHead([2, 3], num_labels=4, hidden_size=0, dropout=0.0)
    with pytest.raises(ValueError, match="Expected finite statistics of shape"):
        head.set_feature_statistics(mean, std)


def test_hidden_size_zero_is_one_linear_layer():
    linear = FusionHead([2, 3], num_labels=4, hidden_size=0, dropout=0.1)
    hidden = FusionHead([2, 3], num_labels=4, hidden_size=6, dropout=0.1)
    assert sum(p.numel() for p in linear.parameters()) == (5 + 2) * 4 + 4
    assert sum(p.numel() for p in hidden.parameters()) == (5 + 2) * 6 + 6 + 6 * 4 + 4


def test_given_sub_models_are_copied_not_kept():
    subs = tiny_sub_models()
    before = subs[0].classifier.weight.clone()
    ensemble = tiny_torch_ensemble(subs)
    with torch.no_grad():
        ensemble.sub_models[0].classifier.weight.zero_()
    assert torch.equal(subs[0].classifier.weight, before)


# P-6: `save_pretrained` refuses a model in which two sub-models share a tensor.
def test_tensors_that_sub_models_share_are_shared_no_more(tmp_path):
    subs = [tiny_sub_model(group) for group in GROUPS]
    subs[1].vit.embeddings = subs[0].vit.embeddings
    ensemble = tiny_torch_ensemble(subs)
    pointers = [sub.vit.embeddings.cls_token.data_ptr() for sub in ensemble.sub_models]
    assert len(set(pointers)) == NUM_SUB_MODELS
    ensemble.save_pretrained(tmp_path)
    assert EDViTForImageClassification.from_pretrained(tmp_path).num_parameters() == ensemble.num_parameters()


def test_sub_models_of_two_precisions_meet_in_the_wider_one():
    subs = tiny_sub_models()
    subs[0] = subs[0].to(torch.bfloat16)
    ensemble = tiny_torch_ensemble(subs)
    assert {p.dtype for p in ensemble.parameters()} == {torch.float32}
    weight = ensemble.sub_models[0].classifier.weight
    assert torch.equal(weight, subs[0].classifier.weight.float())


def test_sub_models_under_default_names_get_their_groups_names():
    subs = tiny_sub_models()
    subs[0].config.id2label = {i: f"LABEL_{i}" for i in range(3)}
    ensemble = tiny_torch_ensemble(subs)
    assert ensemble.sub_models[0].config.id2label == {0: "ant", 1: "bee", 2: "other"}


def test_groups_in_another_order_than_the_sub_models_are_refused():
    subs = tiny_sub_models()
    with pytest.raises(ValueError, match=r"sub-model 0 to vote over \['cat', 'eel', 'other'\], got \['ant', 'bee'"):
        EDViTForImageClassification.from_sub_models(subs, [[2, 4], [0, 1], [3]], id2label=dict(enumerate(NAMES)))


def test_a_sub_model_without_a_vote_head_is_refused():
    subs = tiny_sub_models()
    subs[2] = ViTModel(subs[2].config)
    with pytest.raises(ValueError, match="sub-model 2 to be a `ViTForImageClassification`, which can vote"):
        tiny_torch_ensemble(subs)


def test_one_sub_model_over_all_classes_works_without_other(pixels):
    sub = tiny_vit(3)
    names = {i: f"class_{i}" for i in range(3)}
    ensemble = EDViTForImageClassification.from_sub_models([sub], [[0, 1, 2]], id2label=names)
    with torch.no_grad():
        assert ensemble.votes(pixel_values=pixels)[0].shape == (4, 3)
        assert ensemble(pixels).logits.shape == (4, 3)


# P-7: `post_init` gathers tied keys and unsplittable modules from direct children; a ModuleList has none.
def test_settings_of_sub_models_reach_the_top(ensemble):
    assert "ViTLayer" in ensemble._no_split_modules
    assert ensemble.all_tied_weights_keys == {}


# P-2: the same for `set_attn_implementation` on a built model.
def test_attention_can_be_changed_for_every_sub_model():
    ensemble = tiny_torch_ensemble()
    ensemble.set_attn_implementation("eager")
    assert {m.config._attn_implementation for m in (ensemble, *ensemble.sub_models)} == {"eager"}


# P-10: some architectures ignore `head_dim` and silently build at full width.
def test_thin_heads_are_built_at_the_width_the_config_names(pixels):
    sub = tiny_sub_model([0]).config.to_dict() | {"head_dim": 4, "num_attention_heads": 2}
    config = EDViTConfig(sub_model_configs=[sub], class_groups=[[0]], id2label={0: "ant"})
    model = EDViTForImageClassification(config)
    assert model.sub_models[0].vit.layers[0].attention.q_proj.weight.shape == (8, 16)
    assert model(pixels).logits.shape == (4, 1)


# P-10: those are refused by name.
def test_an_architecture_that_ignores_head_dim_is_refused(monkeypatch):
    assert not hasattr(BertConfig(), "head_dim")
    monkeypatch.setattr("edvit_hf.configuration_edvit.HONOURS_HEAD_DIM", ("deit",))
    sub = tiny_sub_model([0]).config.to_dict() | {"head_dim": 4}
    with pytest.raises(ValueError, match="`head_dim` is ignored by `vit`"):
        EDViTConfig(sub_model_configs=[sub], class_groups=[[0]])


# P-10: and what was built is compared with the config.
def test_attention_built_at_another_width_than_the_config_names_is_refused(monkeypatch):
    config = EDViTConfig(sub_model_configs=[tiny_sub_model([0]).config.to_dict()], class_groups=[[0]])
    monkeypatch.setattr(
        "edvit_hf.parts_edvit.AutoModelForImageClassification.from_config",
        lambda sub_config: tiny_vit(2, hidden_size=32),
    )
    with pytest.raises(ValueError, match=r"attention width 16, got \[32\]"):
        EDViTForImageClassification(config)


# P-8: the exported forward, too, returns a stock output class.
@torch.no_grad()
def test_exported_graph_answers_other_batches_and_masks():
    ensemble = tiny_torch_ensemble(tiny_sub_models(num_layers=1))
    batch = torch.export.Dim("batch", min=1, max=64)
    example = {"pixel_values": torch.randn(2, 3, 8, 8), "sub_model_mask": torch.ones(2, NUM_SUB_MODELS)}
    program = torch.export.export(
        ensemble, (), kwargs=example, dynamic_shapes={"pixel_values": {0: batch}, "sub_model_mask": {0: batch}}
    ).module()
    for size in (1, 5):
        pixels, mask = torch.randn(size, 3, 8, 8), torch.randint(0, 2, (size, NUM_SUB_MODELS)).float()
        expected = ensemble(pixels, sub_model_mask=mask).logits
        answer = program(pixel_values=pixels, sub_model_mask=mask)
        assert torch.allclose(answer.logits, expected, atol=1e-5)
        assert type(answer).__module__ == "transformers.modeling_outputs"
