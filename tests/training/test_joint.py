# SPDX-License-Identifier: Apache-2.0
"""The whole ensemble tuned end to end, for every modality."""

import dataclasses

import numpy as np
import pytest
import torch
from test_training import assert_same_run, interrupting, make_split, run, weights
from torch.nn import functional as F

from edvit_hf.auto import ensemble_class
from edvit_hf.errors import TrainingError
from edvit_hf.modeling_edvit import forward_sub_model
from edvit_hf.training import (
    FuseConfig,
    JointData,
    JointModel,
    TeacherOutputs,
    group_distribution,
    joint_config,
    joint_objective,
    shares_right,
    teacher_outputs,
)
from support.tiny_architectures import tiny_inputs, tiny_model, tiny_vit


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")
    monkeypatch.setattr("edvit_hf.training.loop.EPOCH_CHECKPOINT_SECONDS", 0.0)


GROUPS = [[0, 1], [2, 3]]
CONFIG = FuseConfig(
    epochs=30,
    seed=3,
    joint=True,
    joint_epochs=3,
    joint_learning_rate=3e-3,
    joint_batch_size=16,
    sub_model_dropout=0.3,
    views=2,
)


def unnamed(model):
    """A sub-model whose labels have no names yet: the ensemble gives it those of its group."""
    model.config.id2label = {i: f"LABEL_{i}" for i in range(model.config.num_labels)}
    return model


def make_average(groups, other=None):
    """Three sub-models whose votes are averaged: over all classes, or over groups that overlap."""
    size = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 16}
    labels = [len(group) + (len(group) < 4) for group in groups]
    subs = [unnamed(tiny_vit(count, **size, seed=seed)) for seed, count in enumerate(labels, start=1)]
    names = {i: f"class_{i}" for i in range(4)}
    kind = {"fusion_kind": "average", "fusion_other": other}
    return ensemble_class("image-classification").from_sub_models(subs, groups, id2label=names, **kind)


def right_with_absences(ensemble):
    split = make_split()
    with torch.inference_mode():
        features, logits = ensemble.eval().features_and_logits(**split.inputs(np.arange(len(split))))
    return shares_right(ensemble.fusion, features, logits, split.labels).mean(axis=1)


@pytest.mark.parametrize(
    ("groups", "other"), [([[0, 1, 2, 3]] * 3, None), ([[0, 1, 2], [1, 2, 3], [0, 2, 3]], "spread")]
)
def test_joint_tuning_of_an_average_improves_it_with_none_one_and_two_absent(tmp_path, outputs, groups, other):
    ensemble = make_average(groups, other)
    before = right_with_absences(ensemble)
    config = dataclasses.replace(CONFIG, joint_epochs=20)
    tune(JointModel(ensemble, 32), tmp_path, outputs, config, joint_objective(groups, config))
    after = right_with_absences(ensemble)
    assert (after >= before).all()
    assert after[0] > max(0.9, before[0])
    assert after[1] > before[1] + 0.2


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_an_absent_sub_model_learns_from_its_own_vote_and_features_alone(outputs, absent, monkeypatch):
    groups = [[0, 1, 2, 3]] * 3
    model = JointModel(make_average(groups), 32)
    mask = torch.ones(10, 3, dtype=torch.bool)
    mask[:, absent] = False
    monkeypatch.setattr("edvit_hf.training.joint.sample_sub_model_mask", lambda *given, **options: mask)
    batch = JointData(make_split(), outputs.logits, outputs.features).batch(np.arange(10))
    config = dataclasses.replace(CONFIG, token_weight=0.0, vote_weight=0.0)
    joint_objective(groups, config)(model, batch)[0].backward()
    moved = [
        sum(float(p.grad.abs().sum()) for p in sub_model.parameters() if p.grad is not None)
        for sub_model in model.ensemble.sub_models
    ]
    assert [value > 0 for value in moved] == [index != absent for index in range(3)]


def make_ensemble(dropout=0.0):
    size = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 16}
    subs = [unnamed(tiny_vit(3, **size, seed=seed)) for seed in (1, 2)]
    torch.manual_seed(0)
    ensemble = ensemble_class("image-classification").from_sub_models(
        subs, GROUPS, id2label={i: f"class_{i}" for i in range(4)}, fusion_hidden_size=16
    )
    for module in ensemble.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return ensemble


@pytest.fixture(scope="module")
def outputs():
    """A teacher that is right: its logits say the label, its features differ by class."""
    split = make_split()
    features = teacher_outputs(tiny_vit(seed=11), split, views=2, progress=False).features
    logits = np.broadcast_to(4 * np.eye(4, dtype=np.float32)[split.labels], (2, 48, 4)).copy()
    return TeacherOutputs(logits, features)


def tune(model, folder, outputs, config=CONFIG, objective=None):
    data = JointData(make_split(), outputs.logits, outputs.features)
    return run(model, folder, joint_config(config), objective or joint_objective(GROUPS, config), data)


def test_joint_tuning_improves_fusion_features_and_votes_and_leaves_an_ensemble(tmp_path, outputs):
    ensemble = make_ensemble()
    names, before = set(ensemble.state_dict()), weights(ensemble)
    config = dataclasses.replace(CONFIG, joint_epochs=30, sub_model_dropout=0.1)
    log = tune(JointModel(ensemble, 32), tmp_path, outputs, config)
    first, last = log.epochs[0], log.epochs[-1]
    assert last["accuracy"] > 0.9, log.epochs
    assert last["vote_accuracy"] > 0.85 > first["vote_accuracy"], log.epochs
    assert last["token_error"] < 0.7 * first["token_error"], log.epochs
    assert set(ensemble.state_dict()) == names, "the mapping must not travel with the ensemble"
    after = ensemble.state_dict()
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"0", "1", "layers"} <= moved, "sub-models and fusion head are tuned alike"
    assert not ensemble.training


def test_joint_tuning_resumes_to_the_same_bits(tmp_path, outputs):
    model = JointModel(make_ensemble(dropout=0.2), 32)
    log = tune(model, tmp_path / "whole", outputs)
    expected = weights(model)
    cut, broken = JointModel(make_ensemble(dropout=0.2), 32), joint_objective(GROUPS, CONFIG)
    with pytest.raises(ZeroDivisionError):
        tune(cut, tmp_path / "cut", outputs, objective=interrupting(broken, 5, ZeroDivisionError()))
    torch.manual_seed(123)  # the first weights of the mapping must not depend on it
    again = JointModel(make_ensemble(dropout=0.2), 32)
    assert_same_run(again, tune(again, tmp_path / "cut", outputs), expected, log)


def test_the_joint_loss_is_its_formula(outputs):
    config = dataclasses.replace(CONFIG, sub_model_dropout=0.0, token_weight=0.3, vote_weight=0.7)
    model = JointModel(make_ensemble(), 32)
    data = JointData(make_split(), outputs.logits, outputs.features)
    batch = data.batch(np.arange(10))
    loss, figures = joint_objective(GROUPS, config)(model, batch)

    def kd(logits, targets, group):
        p = group_distribution(batch["teacher_logits"], group, temperature=2.0).exp()
        q = (logits / 2).softmax(dim=1)
        return 0.5 * 4 * (p * (p / q).log()).sum(dim=1).mean() + 0.5 * F.cross_entropy(logits, targets)

    labels = batch["labels"]
    answers = [forward_sub_model(sub_model, batch["inputs"]) for sub_model in model.ensemble.sub_models]
    features = torch.cat([feature for feature, _ in answers], dim=1)
    fused = model.ensemble.fusion(features, torch.cat([vote for _, vote in answers], dim=1), torch.ones(10, 2))
    token = ((model.mapping(features) - batch["teacher_features"]) ** 2).mean()
    votes = [
        kd(answers[0][1], labels.clamp(max=2), GROUPS[0]),
        kd(answers[1][1], torch.where(labels >= 2, labels - 2, 2), GROUPS[1]),
    ]
    expected = kd(fused, labels, None) + 0.3 * token + 0.7 * (votes[0] + votes[1]) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert figures["token_error"].item() == pytest.approx(token.item(), rel=1e-5)


def test_feedback_draws_votes_to_their_average_and_diversity_apart(outputs):
    groups = [[0, 1, 2, 3]] * 3
    model, batch = (
        JointModel(make_average(groups), 32),
        JointData(make_split(), outputs.logits, outputs.features).batch(np.arange(10)),
    )
    config = dataclasses.replace(CONFIG, kind="average", sub_model_dropout=0.0)
    plain, _ = joint_objective(groups, config)(model, batch)
    fed, _ = joint_objective(groups, dataclasses.replace(config, feedback_weight=0.3))(model, batch)
    apart, _ = joint_objective(groups, dataclasses.replace(config, diversity_weight=0.4))(model, batch)
    votes = [vote.detach() for vote in model.ensemble.votes(**batch["inputs"])]
    mean = torch.stack([vote.log_softmax(1) for vote in votes]).mean(0)
    target = (mean / 2).log_softmax(1)
    feedback = sum(4 * (target.exp() * (target - (v / 2).log_softmax(1))).sum(1).mean() for v in votes) / 3
    p = torch.stack([vote.softmax(1) for vote in votes])
    spread = ((p - p.mean(0)) ** 2).sum(-1).mean()
    assert (fed - plain).item() == pytest.approx(0.3 * float(feedback), rel=1e-3)
    assert (plain - apart).item() == pytest.approx(0.4 * float(spread), rel=1e-3)


def test_terms_that_compare_what_cannot_be_compared_are_refused_before_anything_is_trained():
    with pytest.raises(TrainingError, match=r"`feedback_weight` \(0\.1\).*`kind: mlp` takes none"):
        joint_objective([[0, 1]] * 2, dataclasses.replace(CONFIG, feedback_weight=0.1))
    for groups in (GROUPS, [[0, 1, 2], [3]]):
        config = dataclasses.replace(CONFIG, kind="average", other="spread", diversity_weight=0.1)
        with pytest.raises(TrainingError, match=r"`diversity_weight` \(0\.1\).*different classes"):
            joint_objective(groups, config)
        joint_objective(groups, dataclasses.replace(config, diversity_weight=0.0, feedback_weight=0.1))


def test_the_mapping_starts_at_its_least_squares_fit(outputs):
    random = np.random.default_rng(0)
    features, true = random.normal(size=(200, 32)).astype(np.float32), random.normal(size=(32, 7)).astype(np.float32)
    targets = features @ true + 3.0
    model = JointModel(make_ensemble(), 7)
    model.fit_mapping(features, targets)
    error = (model.mapping(torch.from_numpy(features)).detach().numpy() - targets).std()
    assert error < 0.02 * targets.std()
    assert torch.equal(*(JointModel(make_ensemble(), 7).mapping.weight for _ in range(2)))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("image-classification", ("vit", "deit")),
        ("audio-classification", ("audio-spectrogram-transformer",) * 2),
        ("text-classification", ("bert", "distilbert")),
    ],
)
def test_every_kind_of_ensemble_is_tuned(task, names):
    groups = [[0, 1], [2, 3, 4]]
    sizes = [len(group) + 1 for group in groups]
    subs = [unnamed(tiny_model(name, seed=n, num_labels=n)) for name, n in zip(names, sizes, strict=True)]
    labels = {i: f"class_{i}" for i in range(5)}
    ensemble = ensemble_class(task).from_sub_models(subs, groups, id2label=labels, fusion_hidden_size=8)
    model = JointModel(ensemble, 32)
    batch = {
        "inputs": tiny_inputs(names[0], n=6),
        "labels": torch.arange(6) % 5,
        "teacher_logits": torch.randn(6, 5),
        "teacher_features": torch.randn(6, 32),
    }
    loss, _ = joint_objective(groups, CONFIG)(model, batch)
    loss.backward()
    lost = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not lost, "processes that train together wait for every gradient"
