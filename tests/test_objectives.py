"""The objectives, the data they read and the teacher's stored logits."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import tiny_vit
from edvit_hf.data import Augmentation
from edvit_hf.errors import DataError, TrainingError
from edvit_hf.modeling_edvit import FusionHead
from edvit_hf.training import (
    DistillData,
    FuseConfig,
    FuseData,
    distill_objective,
    fuse_objective,
    group_distribution,
    teacher_logits,
)
from test_training import assert_same_run, interrupting, make_split, run, weights


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

    def forward(self, pixel_values):
        return self


def test_the_distillation_loss_is_its_formula():
    teacher, own, labels = torch.randn(6, 5), torch.randn(6, 3), torch.tensor([2, 0, 4, 1, 3, 2])
    batch = {"pixel_values": torch.zeros(6), "labels": labels, "teacher_logits": teacher}
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
    batch = {
        "pixel_values": torch.zeros(6),
        "labels": torch.zeros(6, dtype=torch.long),
        "teacher_logits": teacher,
    }
    loss, _ = distill_objective([0, 3], 3.0, 1.0)(FixedLogits(own), batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_distillation_pairs_every_item_with_its_own_logits_of_the_same_view():
    split = make_split(augmentation=Augmentation(shift=0.3))
    teacher = tiny_vit()
    stored = teacher_logits(teacher, split, views=2, batch_size=7, progress=False)
    assert stored.shape == (2, 48, 4)
    assert stored.dtype == np.float32
    data = DistillData(split, stored, [1, 2], negatives_per_positive=0.5, seed=3)
    for epoch in (0, 1, 4):
        data.set_epoch(epoch)
        assert len(data) == 36  # 24 of the group, 12 others
        batch = data.batch(np.array([5, 0, 30]))
        with torch.inference_mode():
            assert torch.allclose(teacher(batch["pixel_values"]).logits, batch["teacher_logits"], atol=1e-4)


def test_a_plain_model_is_distilled_from_every_item():
    split = make_split()
    data = DistillData(split, np.zeros((1, 48, 4), dtype=np.float32), None)
    assert sorted(data.items) == list(range(48))
    everything = DistillData(split, np.zeros((1, 48, 4), dtype=np.float32), [0, 1, 2, 3])
    assert len(everything) == 48


def test_logits_of_another_split_are_refused():
    with pytest.raises(DataError, match=r"\(views, 48, classes\)"):
        DistillData(make_split(), np.zeros((1, 47, 4), dtype=np.float32), None)
    with pytest.raises(DataError, match="paired by position"):
        FuseData(np.zeros((2, 5, 3), np.float32), np.zeros(5, np.int64), np.zeros((5, 4), np.float32))


def test_an_unaugmented_split_runs_the_teacher_once():
    split = make_split(augmentation=Augmentation())
    calls = []
    teacher = tiny_vit()
    teacher.register_forward_hook(lambda *_: calls.append(1))
    stored = teacher_logits(teacher.train(), split, views=3, batch_size=48, progress=False)
    assert len(calls) == 1
    assert stored.shape == (3, 48, 4)
    assert np.array_equal(stored[0], stored[2])
    assert teacher.training


def test_a_teacher_with_broken_weights_is_refused():
    teacher = tiny_vit()
    teacher.classifier.bias.data[2] = math.nan
    with pytest.raises(TrainingError, match=r"item 0, view 0, label 2"):
        teacher_logits(teacher, make_split(), views=1, progress=False)


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
