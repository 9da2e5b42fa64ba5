# SPDX-License-Identifier: Apache-2.0
"""Training until validation stops rising: when the rate falls, which weights stay, and what a resumed run does."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import assert_same_run, interrupting, make_model, make_split, weights

from edvit_hf.errors import RecipeError, TrainingError
from edvit_hf.recipe.validating import validate_ensemble, validate_fusion, validate_votes
from edvit_hf.training import ClassifyData, FuseConfig, TrainConfig, classify_objective, joint_config, train
from edvit_hf.training.checkpoints import Progress
from edvit_hf.training.stopping import AT_BOUND, NOT_RISING, last_epoch, note_epoch, rate_scale


@pytest.fixture(autouse=True)
def _every_epoch_is_saved_by_one_thread(monkeypatch):
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")
    monkeypatch.setattr("edvit_hf.training.loop.EPOCH_CHECKPOINT_SECONDS", 0.0)


def walk(config, accuracies):
    """The progress after a run whose validation says `accuracies`, from the start on, and the rates of its epochs."""
    progress, rates = Progress(run=""), []
    note_epoch(config, progress, {"accuracy": accuracies[0]})
    while progress.epoch < last_epoch(config, progress):
        rates.append(rate_scale(progress.epoch + 0.5, config, progress))
        progress.epoch += 1
        note_epoch(config, progress, {"accuracy": accuracies[progress.epoch]})
    return progress, rates


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 5), st.sampled_from([0.0, 0.1, 0.5]))
def test_a_run_ends_within_its_bound_and_its_rate_holds_and_then_falls(data, epochs, patience, warmup):
    accuracies = data.draw(st.lists(st.integers(0, 3), min_size=epochs + 1, max_size=epochs + 1))
    config = TrainConfig(epochs=epochs, patience=patience, warmup_fraction=warmup)
    progress, rates = walk(config, accuracies)
    assert 1 <= len(rates) <= epochs
    assert progress.best_epoch == accuracies.index(max(accuracies[: len(rates) + 1]))
    start, length = progress.cooldown
    assert start + length == len(rates)
    assert progress.stopped == NOT_RISING or len(rates) == epochs
    held = rates[int(np.ceil(warmup * epochs)) : start]
    assert held == [1.0] * len(held)
    fall = rates[max(start, int(np.ceil(warmup * epochs))) :]
    assert all(a > b for a, b in itertools.pairwise(fall))
    if progress.stopped == NOT_RISING:
        rise = max(accuracies[: start + 1])
        assert accuracies[: start + 1].index(rise) <= start - patience


def test_the_rate_falls_after_patience_epochs_or_where_nothing_else_has_room():
    config = TrainConfig(epochs=40, patience=3, warmup_fraction=0.0)
    progress, rates = walk(config, [*range(10), *[0] * 40])
    assert (progress.best_epoch, progress.cooldown, progress.stopped) == (9, [12, 3], NOT_RISING)
    assert rates[12:] == pytest.approx([5 / 6, 3 / 6, 1 / 6])
    progress, _ = walk(config, list(range(41)))
    assert (progress.cooldown, progress.stopped, last_epoch(config, progress)) == ([32, 8], AT_BOUND, 40)


def test_equal_accuracies_are_parted_by_the_loss():
    config, progress = TrainConfig(epochs=9, patience=5), Progress(run="")
    told = []
    for epoch, loss in enumerate([0.5, 0.4, 0.6, 0.4]):
        progress.epoch = epoch
        told.append(note_epoch(config, progress, {"accuracy": 0.9, "loss": loss}))
    assert told == [True, True, False, False]


CONFIG = TrainConfig(epochs=8, patience=2, batch_size=10, learning_rate=3e-3, seed=7, warmup_fraction=0.0)
SCORES = [0.1, 0.5, 0.7, 0.6, 0.6, 0.2]


def scripted(kept, scores=SCORES):
    """Says what the script says of the n-th epoch, and keeps the weights that it saw."""

    def validate(model):
        assert not model.training
        epoch = len(kept)
        kept.append(weights(model))
        return {"accuracy": scores[epoch]}

    return validate


def run(folder, validate, objective=None, config=CONFIG):
    model, objective = make_model(), objective or classify_objective(0.1)
    options = {"checkpoint_dir": folder, "description": "run", "progress": False, "validate": validate}
    return model, train(model, ClassifyData(make_split()), objective, config, **options)


def test_the_weights_of_the_best_epoch_are_kept_and_the_log_says_why_and_after_how_much(tmp_path, caplog):
    kept = []
    with caplog.at_level("INFO", logger="edvit_hf"):
        model, log = run(tmp_path, scripted(kept))
    assert (log.best_epoch, log.stopped, len(log.epochs)) == (2, NOT_RISING, 5)
    assert log.passes == 5 * 48
    assert [entry["validation_accuracy"] for entry in log.epochs] == SCORES[1:]
    assert all(torch.equal(value, kept[2][name]) for name, value in model.state_dict().items())
    assert "5 epochs, 240 item passes" in caplog.text
    assert "validation stopped rising, the weights after epoch 2 are kept" in caplog.text
    again, log_again = run(tmp_path, scripted([]))  # finished: nothing is measured anew
    assert_same_run(again, log_again, weights(model), log)
    assert log_again.to_dict() == log.to_dict()


def test_a_run_that_gains_nothing_returns_what_it_began_with(tmp_path):
    model, log = run(tmp_path, scripted([], [0.9, *SCORES]))
    assert log.best_epoch == 0
    assert all(torch.equal(value, weights(make_model())[name]) for name, value in model.state_dict().items())


# 48 items in batches of 10: five batches an epoch; the rate falls from the fifth epoch on.
@pytest.mark.parametrize("call", [3, 14, 23])
def test_an_interrupted_run_that_keeps_its_best_resumes_to_the_same_bits(tmp_path, call):
    kept = []
    whole, log = run(tmp_path / "whole", scripted(kept))
    config = dataclasses.replace(CONFIG, checkpoint_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", scripted([]), interrupting(classify_objective(0.1), call, KeyboardInterrupt()), config)
    done = (call - 1) // 5
    model, resumed = run(tmp_path / "parts", scripted(kept[: done + 1]), config=config)
    assert_same_run(model, resumed, weights(whole), log)
    assert (resumed.best_epoch, resumed.passes, resumed.stopped) == (log.best_epoch, log.passes, log.stopped)


def test_a_run_without_patience_looks_at_no_validation_item_and_trains_as_ever(tmp_path):
    def forbidden(model):
        raise AssertionError

    config = dataclasses.replace(CONFIG, epochs=2, patience=None)
    model, log = run(tmp_path / "with", forbidden, config=config)
    plain, plain_log = run(tmp_path / "without", None, config=config)
    assert_same_run(model, log, weights(plain), plain_log)
    assert (log.best_epoch, log.stopped, log.passes) == (None, AT_BOUND, 96)


def test_patience_needs_something_to_judge_by_and_a_whole_number(tmp_path):
    with pytest.raises(TrainingError, match="`patience: 2` ends a run by what it gains on validation items"):
        run(tmp_path, None)
    for values in ({"patience": 0}, {"joint_patience": 0}):
        with pytest.raises(RecipeError, match=next(iter(values))):
            FuseConfig(epochs=1, **values)
    assert joint_config(FuseConfig(epochs=1, patience=2, joint_patience=4)).patience == 4


class Votes(torch.nn.Module):
    """Answers with given logits by the position that the item's first pixel names."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.scale = logits, torch.nn.Parameter(torch.ones(()))

    def forward(self, **inputs):
        return type("Answer", (), {"logits": self.logits[: len(next(iter(inputs.values())))]})()


def test_other_counts_as_much_as_a_whole_class_group():
    split = make_split(num_items=8)  # labels 0..3 in turn
    own_right = torch.tensor([3.0, 0.0, 0.0]).expand(8, -1)  # always the first class of the group
    found = validate_votes(split, [[0, 1]], 4)(Votes(own_right))
    assert found["accuracy"] == pytest.approx((0.5 + 0.0) / 2)
    other = torch.tensor([0.0, 0.0, 3.0]).expand(8, -1)
    assert validate_votes(split, [[0, 1]], 4)(Votes(other))["accuracy"] == pytest.approx((0.0 + 1.0) / 2)
    everyone = torch.eye(4)[split.labels]
    assert validate_votes(split, [None], 4)(Votes(everyone))["accuracy"] == 1.0


def test_a_fusion_is_judged_with_none_one_and_two_absent():
    class First(torch.nn.Module):
        """Right where the first of three sub-models is there."""

        def __init__(self):
            super().__init__()
            self.feature_sizes, self.scale = [1, 1, 1], torch.nn.Parameter(torch.ones(()))

        def forward(self, features, logits, mask):
            return torch.where(mask[:, :1] != 0, logits, -logits)

    labels = np.array([0, 1, 1])
    votes = torch.eye(2)[labels]
    found = validate_fusion(torch.zeros(3, 3), votes, labels)(First())
    absent = [found[f"accuracy_{count}_absent"] for count in range(3)]
    assert absent == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert callable(validate_ensemble(make_split()))
