# SPDX-License-Identifier: Apache-2.0
"""Sub-models in lockstep: the same as each by itself, from one pass of the teacher; relations between tokens."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import assert_same_run, interrupting, make_split, run, weights
from torch.nn import functional as F

from edvit_hf.architectures.tables import architecture_of_config
from edvit_hf.errors import TrainingError
from edvit_hf.training import DistillConfig, DistillData, Lockstep, LockstepData, lockstep_objective, teacher_outputs
from edvit_hf.training.loading import epoch_order
from edvit_hf.training.relations import (
    captured,
    log_relations,
    queries_keys_values,
    relation_divergence,
    relation_source,
)
from support.tiny_architectures import ARCHITECTURE_NAMES, TEXT, tiny_inputs, tiny_model, tiny_vit


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")
    monkeypatch.setattr("edvit_hf.training.loop.EPOCH_CHECKPOINT_SECONDS", 0.0)


GROUPS = [[0, 1], [2], [3]]
DEKD = DistillConfig(
    epochs=2,
    batch_size=10,
    learning_rate=3e-3,
    seed=7,
    objective="dekd",
    views=1,
    max_grad_norm=0.1,
    gradient_accumulation_steps=2,
)


def sub_models(dropout=0.0):
    """Three sub-models of other widths and depths than the teacher's 4 layers of 32."""
    shapes = [
        {"hidden_size": 16, "num_heads": 2, "num_layers": 1},
        {"hidden_size": 24, "num_heads": 4, "num_layers": 3},
        {"hidden_size": 8, "num_heads": 1, "num_layers": 2},
    ]
    models = [
        tiny_vit(len(group) + 1, intermediate_size=16, seed=index, **shape)
        for index, (group, shape) in enumerate(zip(GROUPS, shapes, strict=True))
    ]
    for model in models:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
    return models


@pytest.fixture(scope="module")
def teacher():
    return tiny_vit(num_layers=4, seed=11)


@pytest.fixture(scope="module")
def logits(teacher):
    return teacher_outputs(teacher, make_split(), views=2, progress=False).logits


def lockstep_data(logits, groups=GROUPS, **options):
    return LockstepData(make_split(), logits, groups, **options)


@settings(max_examples=25, deadline=None)
@given(
    negatives=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    groups=st.sampled_from([GROUPS, [[3, 0], [1, 2]], [[2], None], [[0, 1, 2, 3]]]),
)
def test_every_sub_model_gets_the_very_items_it_would_get_alone(negatives, seed, epoch, groups):
    split, stored = make_split(), np.random.default_rng(0).random((2, 48, 4), dtype=np.float32)
    data = LockstepData(split, stored, groups, negatives_per_positive=negatives, seed=seed)
    data.set_epoch(epoch)
    together = data.batch(np.arange(len(data)))
    assert len(np.unique(data.items)) == len(data.items)
    assert data.membership.any(axis=1).all()
    for column, group in enumerate(groups):
        alone = DistillData(split, stored, group, negatives_per_positive=negatives, seed=seed)
        alone.set_epoch(epoch)
        assert sorted(alone.items) == data.items[data.membership[:, column]].tolist()
        batch = alone.batch(np.argsort(alone.items))
        own = together["membership"][:, column]
        for name in ("labels", "teacher_logits"):
            assert torch.equal(batch[name], together[name][own])
        assert torch.equal(batch["inputs"]["pixel_values"], together["inputs"]["pixel_values"][own])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    size=st.integers(1, 20),
    groups=st.sampled_from([[[0, 1, 2, 3]] * 3, [[0, 1], [2], [1, 0]], [None, [3], None]]),
)
def test_those_of_the_same_classes_meet_all_their_items_in_orders_of_their_own(seed, epoch, size, groups):
    split, stored = make_split(), np.random.default_rng(0).random((2, 48, 4), dtype=np.float32)
    data = LockstepData(split, stored, groups, seed=seed)
    data.set_epoch(epoch)
    met = [[] for _ in groups]
    for start in range(0, len(data), size):
        indices = np.arange(start, min(start + size, len(data)))
        batch = data.batch(indices)
        assert batch["membership"].any(dim=1).all()
        assert (batch["membership"].sum(dim=0) <= size).all()
        items = np.unique(data.orders[indices][data.orders[indices] >= 0])
        for name, expected in (("labels", split.labels[items]), ("teacher_logits", stored[epoch % 2, items])):
            np.testing.assert_array_equal(batch[name].numpy(), expected)
        for column, own in enumerate(met):
            own += items[batch["membership"][:, column].numpy()].tolist()
    for own, alone in zip(met, data.sub_models, strict=True):
        assert sorted(own) == sorted(alone.items_of(epoch))
    visited = data.orders[epoch_order(len(data), seed, epoch)]  # as training goes through the positions
    assert visited[:, 0].tolist() != visited[:, 2].tolist()
    assert all(np.any(np.diff(own[own >= 0]) < 0) for own in visited.T)


def test_a_position_is_as_long_as_the_longest_item_that_a_sub_model_meets_there(logits):
    split = make_split()
    lengths = np.random.default_rng(1).integers(3, 20, len(split))
    split.__class__ = type("Texts", (type(split),), {"lengths": lengths})
    data = LockstepData(split, logits, [[0, 1], [1, 0], None])
    data.set_epoch(1)
    for length, items in zip(data.lengths, data.orders, strict=True):
        assert length == max(lengths[item] for item in items if item >= 0)


def test_copies_in_lockstep_that_start_alike_become_different_models(tmp_path, teacher, logits):
    size = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 16}
    groups = [[0, 1, 2, 3]] * 2
    lockstep = Lockstep([tiny_vit(4, seed=1, **size) for _ in groups])
    objective = lockstep_objective(lockstep, groups, DEKD, teacher)
    log = run(lockstep, tmp_path, DEKD, objective, lockstep_data(logits, groups))
    first, second = (model.state_dict() for model in lockstep.sub_models)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    assert np.isfinite(log.epochs[-1]["loss"])


class OnlyColumn:
    """The batches of a `LockstepData`, with one sub-model's membership alone."""

    lengths = None

    def __init__(self, data, column):
        self.data, self.column = data, column

    def set_epoch(self, epoch):
        self.data.set_epoch(epoch)

    def __len__(self):
        return len(self.data)

    def batch(self, indices):
        batch = self.data.batch(indices)
        return {**batch, "membership": batch["membership"][:, [self.column]]}


@pytest.mark.parametrize("objective", ["kd", "dekd", "none"])
def test_a_sub_model_in_lockstep_takes_the_steps_it_would_take_alone(tmp_path, teacher, logits, objective):
    config = dataclasses.replace(DEKD, objective=objective)
    together = Lockstep(sub_models())
    run(
        together, tmp_path / "all", config, lockstep_objective(together, GROUPS, config, teacher), lockstep_data(logits)
    )
    for column, start in enumerate(sub_models()):
        before = weights(start)
        alone = Lockstep([start])
        only = lockstep_objective(alone, [GROUPS[column]], config, teacher)
        run(alone, tmp_path / str(column), config, only, OnlyColumn(lockstep_data(logits), column))
        for name, value in together.sub_models[column].state_dict().items():
            assert torch.equal(value, start.state_dict()[name]), f"sub-model {column}: {name} differs"
        assert any(not torch.equal(value, before[name]) for name, value in start.state_dict().items())


def test_lockstep_resumes_to_the_same_bits(tmp_path, teacher, logits):
    config, start = dataclasses.replace(DEKD, epochs=3), Lockstep(sub_models(dropout=0.2))
    log = run(
        start, tmp_path / "whole", config, lockstep_objective(start, GROUPS, config, teacher), lockstep_data(logits)
    )
    expected = weights(start)
    assert {"loss", "accuracy", "divergence", "relations"} <= set(log.epochs[0])
    cut = Lockstep(sub_models(dropout=0.2))
    broken = interrupting(lockstep_objective(cut, GROUPS, config, teacher), 8, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run(cut, tmp_path / "cut", config, broken, lockstep_data(logits))
    again = Lockstep(sub_models(dropout=0.2))
    objective = lockstep_objective(again, GROUPS, config, teacher)
    log_again = run(again, tmp_path / "cut", config, objective, lockstep_data(logits))
    assert_same_run(again, log_again, expected, log)


def test_the_teacher_runs_once_per_batch_and_not_past_its_middle(tmp_path, teacher, logits):
    calls = {0: 0, 1: 0, 2: 0}
    hooks = [
        teacher.vit.layers[layer].register_forward_pre_hook(
            lambda *_, layer=layer: calls.update({layer: calls[layer] + 1})
        )
        for layer in calls
    ]
    before = weights(teacher)
    model, config = Lockstep(sub_models()), dataclasses.replace(DEKD, epochs=1)
    data = lockstep_data(logits)
    try:
        run(model, tmp_path, config, lockstep_objective(model, GROUPS, config, teacher), data)
    finally:
        for hook in hooks:
            hook.remove()
    batches = math.ceil(len(data) / config.batch_size)
    assert calls == {0: batches, 1: batches, 2: 0}  # four layers: the middle is number 4 // 2 - 1
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_of_dekd_is_its_formula(teacher, logits):
    (model, _, _), batch = sub_models(), lockstep_data(logits).batch(np.arange(12))
    own = batch["membership"][:, 0]
    objective = lockstep_objective(lockstep := Lockstep([model]), [GROUPS[0]], DEKD, teacher)
    loss, figures = objective(lockstep, {**batch, "membership": own[:, None]})
    pixels, labels, stored = batch["inputs"]["pixel_values"][own], batch["labels"][own], batch["teacher_logits"][own]
    answers = model(pixels).logits
    pooled = torch.stack([stored[:, 0], stored[:, 1], stored[:, 2:].logsumexp(dim=1)], dim=1)
    targets = torch.where(labels < 2, labels, 2)
    expected = 0.5 * F.cross_entropy(answers, targets) + 0.5 * F.cross_entropy(answers, pooled.argmax(dim=1))
    hidden = {
        "own": model.vit.layers[0].layernorm_before(model.vit.embeddings(pixels)),
        "teacher": teacher.vit.layers[1].layernorm_before(teacher.vit.layers[0](teacher.vit.embeddings(pixels))),
    }
    attention = {"own": model.vit.layers[0].attention, "teacher": teacher.vit.layers[1].attention}
    total = 0.0
    for weight, part in zip((0.2, 0.1, 0.3), "qkv", strict=True):
        relations = {}
        for who, states in hidden.items():
            values = getattr(attention[who], f"{part}_proj")(states)  # (B, T, D), heads of 8 side by side
            relations[who] = torch.softmax(values @ values.transpose(1, 2) / 8**0.5, dim=-1)
        p, q = relations["teacher"], relations["own"]
        total += weight * (p * (p.log() - q.log())).sum(dim=(1, 2)).mean()
    assert figures["relations"].item() == pytest.approx(total.item() / 1, rel=1e-4)  # one layer
    assert loss.item() == pytest.approx((expected + total).item(), rel=1e-4)
    soft, _ = lockstep_objective(lockstep, [GROUPS[0]], dataclasses.replace(DEKD, hard=False), teacher)(
        lockstep, {**batch, "membership": own[:, None]}
    )
    divergence = F.kl_div(
        (answers / 2).log_softmax(1), (pooled / 2).log_softmax(1), log_target=True, reduction="batchmean"
    )
    kd = 0.7 * 4 * divergence + 0.3 * F.cross_entropy(answers, targets)
    assert soft.item() == pytest.approx((kd + total).item(), rel=1e-4)


def test_a_sub_model_without_rows_in_a_batch_gets_no_gradient_and_spoils_nothing(teacher, logits):
    lockstep = Lockstep(sub_models())
    batch = lockstep_data(logits).batch(np.arange(8))
    batch["membership"][:, 1] = False
    loss, figures = lockstep_objective(lockstep, GROUPS, DEKD, teacher)(lockstep, batch)
    loss.backward()
    gradients = [[p.grad for p in sub_model.parameters()] for sub_model in lockstep.sub_models]
    assert all(not gradient.any() for gradient in gradients[1]), "and not None: processes wait for every gradient"
    assert all(any(gradient.any() for gradient in of_one) for of_one in (gradients[0], gradients[2]))
    two = Lockstep([lockstep.sub_models[0], lockstep.sub_models[2]])
    fewer = {**batch, "membership": batch["membership"][:, [0, 2]]}
    expected, expected_figures = lockstep_objective(two, [GROUPS[0], GROUPS[2]], DEKD, teacher)(two, fewer)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert figures["accuracy"].item() == pytest.approx(expected_figures["accuracy"].item())


def test_matching_relations_brings_them_together(tmp_path, teacher, logits):
    lockstep = Lockstep(sub_models())
    config = DistillConfig(
        epochs=12, batch_size=12, learning_rate=5e-3, objective="dekd", relation_weights=(2.0, 2.0, 2.0)
    )
    log = run(lockstep, tmp_path, config, lockstep_objective(lockstep, GROUPS, config, teacher), lockstep_data(logits))
    assert log.epochs[-1]["relations"] < 0.6 * log.epochs[0]["relations"], log.epochs


@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_half_a_pass_reads_what_a_whole_pass_makes(name):
    model, inputs = (
        tiny_model(name, **{"n_layers" if name == "distilbert" else "num_hidden_layers": 5}),
        tiny_inputs(name),
    )
    table, source = architecture_of_config(model.config), relation_source(model)
    assert source.depth == 5
    for path, linear in zip(
        (table.attention_query, table.attention_key, table.attention_value), source.linears, strict=True
    ):
        assert model.get_submodule(path.format(layer=1)) is linear
    with torch.no_grad(), captured(source) as whole:
        before = model(**inputs).logits
    seen = []
    handle = model.get_submodule(table.layers)[2].register_forward_pre_hook(lambda *_: seen.append(2))
    half = queries_keys_values(model, source, inputs)
    handle.remove()
    assert not seen
    assert all(torch.equal(one, other) for one, other in zip(half, whole, strict=True))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before), "the cut pass left something behind"


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    padding=st.integers(0, 5),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_padding_does_not_count(lengths, padding, widths, seed):
    generator = torch.Generator().manual_seed(seed)
    size = max(lengths) + padding
    mask = (torch.arange(size) < torch.tensor(lengths)[:, None]).long()
    theirs, own = (torch.randn(len(lengths), size, width, generator=generator) for width in widths)
    padded = relation_divergence(log_relations(theirs, 4, mask), log_relations(own, 2, mask), mask)
    single = [
        relation_divergence(log_relations(theirs[i : i + 1, :n], 4), log_relations(own[i : i + 1, :n], 2))
        for i, n in enumerate(lengths)
    ]
    assert padded.item() == pytest.approx(torch.stack(single).mean().item(), rel=1e-4, abs=1e-5)
    assert padded.item() >= -1e-5
    same = relation_divergence(log_relations(theirs, 4, mask), log_relations(theirs, 4, mask), mask)
    assert same.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("names", [("vit", "deit"), ("deit", "vit"), ("bert", "distilbert"), ("distilbert", "bert")])
def test_sub_models_of_another_architecture_learn_the_relations_of_the_same_tokens(names):
    theirs, own = (tiny_model(name, seed=index) for index, name in enumerate(names))
    inputs = tiny_inputs(names[0], n=6)
    lockstep = Lockstep([own, tiny_model(names[0], seed=5)])
    groups = [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    with torch.no_grad():
        stored = theirs(**inputs).logits
    batch = {
        "inputs": inputs,
        "labels": torch.arange(6) % 5,
        "teacher_logits": stored,
        "membership": torch.ones(6, 2, dtype=torch.bool),
    }
    loss, figures = lockstep_objective(lockstep, groups, DEKD, theirs)(lockstep, batch)
    loss.backward()
    source = relation_source(own)
    assert figures["relations"].isfinite()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in source.linears)
    if names[0] in TEXT:
        return
    dropped = relation_source(theirs).num_dropped(source), source.num_dropped(relation_source(theirs))
    assert dropped == tuple({"vit": 1, "deit": 2}[name] for name in names)


def test_what_cannot_be_compared_is_refused(teacher):
    lockstep = Lockstep(sub_models())
    with pytest.raises(TrainingError, match="no teacher was given"):
        lockstep_objective(lockstep, GROUPS, DEKD)
    with pytest.raises(TrainingError, match="one class group per sub-model"):
        lockstep_objective(lockstep, GROUPS[:2], DEKD, teacher)
    fine = Lockstep([tiny_vit(2, patch_size=2)])
    with pytest.raises(TrainingError, match="4 patches per input, the other 16"):
        lockstep_objective(fine, [[1]], DEKD, teacher)
    lockstep_objective(fine, [[1]], dataclasses.replace(DEKD, objective="kd"))


def test_a_table_without_keys_and_values_is_named(monkeypatch, teacher):
    table = dataclasses.replace(architecture_of_config(teacher.config), attention_key=None)
    monkeypatch.setattr("edvit_hf.training.relations.architecture_of_config", lambda config: table)
    with pytest.raises(TrainingError, match=r"vit table names no `attention_key`"):
        relation_source(teacher)
