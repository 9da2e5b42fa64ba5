# SPDX-License-Identifier: Apache-2.0
"""The objectives, the data they read and the teacher's stored logits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import assert_same_run, interrupting, make_split, run, weights
from torch.nn import functional as F

from edvit_hf.data import Augmentation
from edvit_hf.errors import DataError, TrainingError
from edvit_hf.modeling_edvit import FusionHead, forward_sub_model
from edvit_hf.training import (
    ClassifyData,
    DistillData,
    Focus,
    FuseConfig,
    FuseData,
    JointData,
    classify_objective,
    distill_objective,
    fuse_objective,
    group_distribution,
    teacher_outputs,
)
from support.tiny_architectures import tiny_model, tiny_vit


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")
    monkeypatch.setattr("edvit_hf.training.loop.EPOCH_CHECKPOINT_SECONDS", 0.0)


def test_the_group_distribution_pools_what_is_left_into_other():
    logits = torch.randn(5, 6, dtype=torch.float64)
    pooled = group_distribution(logits, [1, 4]).exp()
    full = logits.softmax(dim=-1)
    assert torch.allclose(pooled[:, :2], full[:, [1, 4]])
    assert torch.allclose(pooled[:, 2], full[:, [0, 2, 3, 5]].sum(dim=-1))
    for all_classes in (None, list(range(6))):
        assert torch.equal(group_distribution(logits, all_classes), logits.log_softmax(dim=-1))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_sub_model_that_matches_softened_targets_matches_the_true_posterior(temperature):
    logits, group = torch.randn(5, 6, dtype=torch.float64), [1, 4]
    matching = group_distribution(logits, group)  # as logits of a sub-model
    softened = group_distribution(logits, group, temperature=temperature)
    assert torch.allclose((matching / temperature).log_softmax(dim=-1), softened)


class FixedLogits(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self):
        return self


def test_the_distillation_loss_is_its_formula():
    teacher, own, labels = torch.randn(6, 5), torch.randn(6, 3), torch.tensor([2, 0, 4, 1, 3, 2])
    batch = {"inputs": {}, "labels": labels, "teacher_logits": teacher}
    loss, figures = distill_objective([2, 4], 2.0, 0.7)(FixedLogits(own), batch)
    pooled = torch.stack([teacher[:, 2], teacher[:, 4], teacher[:, [0, 1, 3]].logsumexp(dim=1)], dim=1)
    p, q = (pooled / 2).softmax(dim=1), (own / 2).softmax(dim=1)
    divergence = (p * (p / q).log()).sum(dim=1).mean()
    targets = torch.tensor([0, 2, 1, 2, 2, 0])
    assert loss.item() == pytest.approx((0.7 * 4 * divergence + 0.3 * F.cross_entropy(own, targets)).item(), rel=1e-5)
    assert figures["accuracy"].item() == pytest.approx((own.argmax(dim=1) == targets).float().mean().item())


def test_a_sub_model_that_agrees_with_the_teacher_has_no_divergence():
    teacher = torch.randn(6, 5)
    own = group_distribution(teacher, [0, 3]) + 1.5
    batch = {"inputs": {}, "labels": torch.zeros(6, dtype=torch.long), "teacher_logits": teacher}
    loss, _ = distill_objective([0, 3], 3.0, 1.0)(FixedLogits(own), batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_distillation_pairs_every_item_with_its_own_logits_of_the_same_view():
    split = make_split(augmentation=Augmentation(shift=0.3))
    teacher = tiny_vit()
    stored, features = teacher_outputs(teacher, split, views=2, batch_size=7, progress=False)
    assert (stored.shape, features.shape) == ((2, 48, 4), (2, 48, 32))
    assert stored.dtype == features.dtype == np.float32
    data = DistillData(split, stored, [1, 2], negatives_per_positive=0.5, seed=3)
    for epoch in (0, 1, 4):
        data.set_epoch(epoch)
        assert len(data) == 36  # 24 of the group, 12 others
        batch = data.batch(np.array([5, 0, 30]))
        with torch.inference_mode():
            assert torch.allclose(teacher(**batch["inputs"]).logits, batch["teacher_logits"], atol=1e-4)
    joint = JointData(split, stored, features)
    joint.set_epoch(3)
    batch = joint.batch(np.array([5, 0, 30]))
    with torch.inference_mode():
        feature, logits = forward_sub_model(teacher, batch["inputs"])
    assert torch.allclose(feature, batch["teacher_features"], atol=1e-4)
    assert torch.allclose(logits, batch["teacher_logits"], atol=1e-4)


def test_a_plain_model_is_distilled_from_every_item():
    split = make_split()
    data = DistillData(split, np.zeros((1, 48, 4), dtype=np.float32), None)
    assert sorted(data.items) == list(range(48))
    everything = DistillData(split, np.zeros((1, 48, 4), dtype=np.float32), [0, 1, 2, 3])
    assert len(everything) == 48


def test_logits_of_another_split_are_refused():
    with pytest.raises(DataError, match=r"\(views, 48, classes\)"):
        DistillData(make_split(), np.zeros((1, 47, 4), dtype=np.float32), None)
    with pytest.raises(DataError, match="paired by view"):
        JointData(make_split(), np.zeros((2, 48, 4), np.float32), np.zeros((1, 48, 8), np.float32))
    with pytest.raises(DataError, match="paired by position"):
        FuseData(np.zeros((2, 5, 3), np.float32), np.zeros(5, np.int64), np.zeros((5, 4), np.float32))


class LongShort:
    """A `Split` of texts of very different lengths."""

    def __init__(self, num_items=30, num_labels=5):
        random = np.random.default_rng(0)
        self.labels, self.lengths = np.arange(num_items) % num_labels, random.integers(2, 13, num_items)
        self.ids = random.integers(1, 50, (num_items, 12))
        self.augmentation, self.widths = Augmentation(), []

    def __len__(self):
        return len(self.labels)

    def inputs(self, indices, view=None):
        width = self.lengths[indices].max()
        self.widths.append(int(width))
        mask = np.arange(width) < self.lengths[indices][:, None]
        ids = torch.from_numpy(self.ids[indices][:, :width] * mask)
        return {"input_ids": ids, "attention_mask": torch.from_numpy(mask.astype(np.int64))}


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_texts_run_longest_first_and_keep_their_own_outputs(name):
    split, teacher = LongShort(), tiny_model(name)
    stored = teacher_outputs(teacher, split, views=1, batch_size=6, progress=False)
    assert split.widths == sorted(split.widths, reverse=True)
    assert split.widths[-1] < split.widths[0]
    with torch.inference_mode():
        for item in range(len(split)):
            feature, logits = forward_sub_model(teacher, split.inputs(np.array([item])))
            assert torch.allclose(logits[0], torch.from_numpy(stored.logits[0, item]), atol=1e-4)
            assert torch.allclose(feature[0], torch.from_numpy(stored.features[0, item]), atol=1e-4)
    data = DistillData(split, stored.logits, [0, 3])
    data.set_epoch(2)
    assert np.array_equal(data.lengths, split.lengths[data.items])
    batch = data.batch(np.array([3, 1]))
    assert batch["inputs"]["attention_mask"].sum(dim=1).tolist() == data.lengths[[3, 1]].tolist()


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=8), smoothing=st.sampled_from([0.0, 0.1]))
def test_soft_targets_that_are_sure_cost_what_labels_cost(labels, smoothing):
    hard = torch.tensor(labels)
    logits = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(len(labels)))
    batch = {"inputs": {}, "labels": hard}
    expected = classify_objective(smoothing)(FixedLogits(logits), batch)
    soft = classify_objective(smoothing)(FixedLogits(logits), {**batch, "targets": F.one_hot(hard, 4).float()})
    assert soft[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert soft[1]["accuracy"] == expected[1]["accuracy"]


def test_mixed_items_are_a_function_of_seed_epoch_and_position():
    split = make_split()
    data = ClassifyData(split, mixup_alpha=0.8, cutmix_alpha=1.0, num_labels=4, seed=5)
    chosen = np.array([7, 3, 40, 11])
    first = data.batch(chosen)
    assert first["targets"].shape == (4, 4)
    assert torch.allclose(first["targets"].sum(dim=1), torch.ones(4))
    assert torch.equal(first["labels"], torch.from_numpy(split.labels[chosen]))
    torch.manual_seed(99)
    again = data.batch(chosen)
    assert torch.equal(first["targets"], again["targets"])
    assert torch.equal(first["inputs"]["pixel_values"], again["inputs"]["pixel_values"])
    data.set_epoch(1)
    assert not torch.equal(first["targets"], data.batch(chosen)["targets"])
    with pytest.raises(DataError, match="`num_labels`"):
        ClassifyData(split, mixup_alpha=0.8)


def test_an_unaugmented_split_runs_the_teacher_once():
    split = make_split(augmentation=Augmentation())
    calls = []
    teacher = tiny_vit()
    teacher.classifier.register_forward_hook(lambda *_: calls.append(1))
    stored = teacher_outputs(teacher.train(), split, views=3, batch_size=48, progress=False)
    assert len(calls) == 1
    assert stored.logits.shape == (3, 48, 4)
    assert np.array_equal(stored.logits[0], stored.logits[2])
    assert teacher.training


def test_a_teacher_with_broken_weights_is_refused():
    teacher = tiny_vit()
    teacher.classifier.bias.data[2] = math.nan
    with pytest.raises(TrainingError, match=r"logit 2 for item 0, view 0 is nan"):
        teacher_outputs(teacher, make_split(), views=1, progress=False)


def make_fusion(num_items=64):
    """Two sub-models that see one half of the classes each."""
    random = np.random.default_rng(0)
    labels = np.arange(num_items) % 4
    features = random.normal(0, 0.3, (2, num_items, 8)).astype(np.float32)
    features[:, np.arange(num_items), labels] += 2.0
    logits = 4 * np.eye(4, dtype=np.float32)[labels]
    return FuseData(features, labels, np.stack([logits, logits])), FusionHead([4, 4], 4, 16, 0.1)


def test_a_fusion_head_learns_and_resumes_to_the_same_bits(tmp_path):
    config = FuseConfig(epochs=4, batch_size=16, learning_rate=1e-2, sub_model_dropout=0.3)
    objective = fuse_objective(config.sub_model_dropout, config.distillation_weight, config.temperature)
    data, head = make_fusion()
    start = weights(head)
    log = run(head, tmp_path / "whole", config, objective, data)
    assert log.epochs[-1]["loss"] < log.epochs[0]["loss"]
    expected = weights(head)
    head.load_state_dict(start)
    with pytest.raises(ZeroDivisionError):
        run(head, tmp_path / "cut", config, interrupting(objective, 10, ZeroDivisionError()), data)
    log_again = run(head, tmp_path / "cut", config, objective, data)
    assert_same_run(head, log_again, expected, log)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.floats(0.1, 10.0),
    st.floats(0.0, 1.0),
    st.sampled_from([0.0, 0.1]),
)
def test_an_item_of_the_focus_counts_as_often_as_its_weight_says(labels, focus_weight, weight, smoothing):
    batch = {
        "inputs": {},
        "labels": torch.tensor(labels),
        "teacher_logits": torch.randn(len(labels), 6, dtype=torch.float64),
    }
    model = FixedLogits(torch.randn(len(labels), 6, dtype=torch.float64))
    focus = Focus([1, 4], focus_weight)
    found, _ = distill_objective(None, 2.0, weight, smoothing, focus=focus)(model, batch)
    plain = distill_objective(None, 2.0, weight, smoothing)
    counts = [focus_weight if label in (1, 4) else 1.0 for label in labels]
    by_item = [
        plain(FixedLogits(model.logits[[i]]), {**batch, **{k: batch[k][[i]] for k in ("labels", "teacher_logits")}})[0]
        for i in range(len(labels))
    ]
    expected = sum(c * float(loss) for c, loss in zip(counts, by_item, strict=True)) / sum(counts)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_focus_of_weight_one_changes_no_bit():
    batch = {"inputs": {}, "labels": torch.tensor([0, 1, 4]), "teacher_logits": torch.randn(3, 6)}
    model = FixedLogits(torch.randn(3, 6))
    found, plain = (distill_objective(None, 2.0, 0.7, focus=focus)(model, batch)[0] for focus in (Focus([1]), None))
    assert torch.equal(found, plain)
