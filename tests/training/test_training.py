# SPDX-License-Identifier: Apache-2.0
"""The loop, its checkpoints and its values."""

import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm.auto import tqdm

from edvit_hf.data import ArrayStore, Augmentation, ImageSplit
from edvit_hf.errors import CheckpointError, RecipeError, TrainingError
from edvit_hf.training import (
    ClassifyData,
    DistillConfig,
    FuseConfig,
    TrainConfig,
    classify_objective,
    epoch_batches,
    epoch_order,
    joint_config,
    train,
)
from edvit_hf.training.optimizer import learning_rate_scale, undecayed_parameters
from support.ready import run_ready
from support.tiny_architectures import tiny_vit


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch):
    monkeypatch.setattr("edvit_hf.training.loop.EPOCH_CHECKPOINT_SECONDS", 0.0)


def make_split(num_items=48, num_labels=4, augmentation=None):
    """Images whose brightness by quadrant tells the class: learnable in a few steps."""
    random = np.random.default_rng(0)
    labels = np.arange(num_items) % num_labels
    pixels = random.integers(0, 60, (num_items, 3, 8, 8), dtype=np.uint8)
    for item, label in enumerate(labels):
        row, column = divmod(int(label), 2)
        pixels[item, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 150
    return ImageSplit(ArrayStore(pixels), labels, augmentation=augmentation or Augmentation(shift=0.1))


def make_model():
    """A tiny ViT with dropout, so that a lost random state shows."""
    model = tiny_vit(num_layers=1)
    model.config.hidden_dropout_prob = 0.2
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return model


CONFIG = TrainConfig(epochs=3, batch_size=10, gradient_accumulation_steps=2, learning_rate=3e-3, seed=7)


def run(model, folder, config=CONFIG, objective=None, data=None):
    data = ClassifyData(make_split()) if data is None else data
    objective = objective or classify_objective(0.1)
    return train(model, data, objective, config, checkpoint_dir=folder, description="teacher", progress=False)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_run(model, log, expected_weights, expected_log):
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected_weights[name]), f"{name} differs"
    timeless = [
        [{k: v for k, v in entry.items() if "second" not in k} for entry in one.epochs] for one in (log, expected_log)
    ]
    assert timeless[0] == timeless[1]


def interrupting(objective, call, error):
    """The objective, raising at its n-th call."""
    calls = 0

    def interrupted(model, batch):
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return objective(model, batch)

    return interrupted


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    os.environ["EDVIT_NUM_THREADS"] = "1"
    model = make_model()
    log = run(model, tmp_path_factory.mktemp("uninterrupted"))
    return weights(model), log


def test_training_learns_and_logs_every_epoch(tmp_path):
    model = tiny_vit()
    config = TrainConfig(epochs=8, batch_size=12, learning_rate=5e-3)
    log = run(model, tmp_path, config, classify_objective(), ClassifyData(make_split()))
    assert [entry["epoch"] for entry in log.epochs] == list(range(1, 9))
    assert log.epochs[-1]["loss"] < 0.5 * log.epochs[0]["loss"], log.epochs
    assert log.epochs[-1]["accuracy"] > 0.9, log.epochs
    assert json.loads(json.dumps(log.to_dict()))["epochs"] == log.epochs
    assert (log.passes, log.best_epoch) == (8 * 48, None)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# 48 items in batches of 10 are 5 batches, so 3 optimiser steps per epoch, the last with one batch.
@pytest.mark.parametrize("every_steps", [None, 2])
@pytest.mark.parametrize("call", [7, 10, 14])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, uninterrupted, every_steps, call):
    config = TrainConfig(
        epochs=3,
        batch_size=10,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        seed=7,
        checkpoint_every_steps=every_steps,
    )
    with pytest.raises(KeyboardInterrupt):
        run(make_model(), tmp_path, config, interrupting(classify_objective(0.1), call, KeyboardInterrupt()))
    resumed_calls = 0

    def counting(model, batch):
        nonlocal resumed_calls
        resumed_calls += 1
        return classify_objective(0.1)(model, batch)

    torch.manual_seed(999)  # the caller's random state must not matter
    model = make_model()
    log = run(model, tmp_path, config, counting)
    assert_same_run(model, log, *uninterrupted)
    assert resumed_calls < 15, "nothing was taken from the checkpoint"


# Two processes, one forked by the other before torch starts any thread; both die by SIGKILL.
KILLED = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
import test_training as t
from edvit_hf.training import checkpoints, loop
loop.EPOCH_CHECKPOINT_SECONDS = 0.0
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
objective, write, calls = t.classify_objective(0.1), checkpoints.write_json, 0
def killed_in_a_step(model, batch):
    global calls
    calls += 1
    if calls == 13: kill()
    return objective(model, batch)
def killed_in_a_checkpoint(path, data):
    kill() if data["epoch"] == 2 else write(path, data)
folder = t.Path(sys.argv[2])
child = os.fork()
if child == 0:
    t.run(t.make_model(), folder / "step", objective=killed_in_a_step)
    os._exit(0)
assert os.waitpid(child, 0)[1] == signal.SIGKILL
checkpoints.write_json = killed_in_a_checkpoint
t.run(t.make_model(), folder / "checkpoint")
"""


def test_a_run_killed_by_sigkill_resumes_to_the_same_bits(tmp_path, uninterrupted):
    done = run_ready(KILLED, Path(__file__).parent, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    for moment in ("step", "checkpoint"):
        folder = tmp_path / moment
        assert any(folder.glob("*.partial")) == (moment == "checkpoint")
        model = make_model()
        log = run(model, folder)
        assert_same_run(model, log, *uninterrupted)
        assert not any(folder.glob("*.partial"))


def test_short_epochs_are_not_all_saved_but_the_last_is(tmp_path, monkeypatch):
    monkeypatch.setattr("edvit_hf.training.loop.EPOCH_CHECKPOINT_SECONDS", 1000.0)
    run(make_model(), tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["epoch_00003_step_00000009"]


def test_a_finished_run_returns_its_result_without_a_step(tmp_path, uninterrupted):
    run(make_model(), tmp_path)
    model = make_model()
    log = run(model, tmp_path, objective=interrupting(classify_objective(0.1), 1, AssertionError("a step")))
    assert_same_run(model, log, *uninterrupted)


def test_only_the_newest_two_checkpoints_stay(tmp_path):
    run(make_model(), tmp_path)
    epochs = [json.loads((folder / "progress.json").read_text())["epoch"] for folder in sorted(tmp_path.iterdir())]
    assert epochs == [2, 3]


def test_changed_values_start_over_with_a_warning(tmp_path, caplog):
    run(make_model(), tmp_path, TrainConfig(epochs=1, batch_size=10))
    config = TrainConfig(epochs=2, batch_size=10)
    model, fresh = make_model(), make_model()
    run(model, tmp_path, config)
    assert "other values" in caplog.text
    run(fresh, tmp_path / "fresh", config)
    assert_same_weights = weights(fresh)
    assert all(torch.equal(value, assert_same_weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_works(tmp_path, uninterrupted, file):
    run(make_model(), tmp_path)
    newest = sorted(tmp_path.iterdir())[-1]
    (newest / file).write_bytes((newest / file).read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"Delete .*epoch_00003"):
        run(make_model(), tmp_path)
    for part in newest.iterdir():
        part.unlink()
    newest.rmdir()
    model = make_model()
    assert_same_run(model, run(model, tmp_path), *uninterrupted)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_run_step_epoch_batch_and_remedy(tmp_path, value):
    calls = 0

    def objective(model, batch):
        nonlocal calls
        calls += 1
        loss, figures = classify_objective()(model, batch)
        return (loss * value if calls == 8 else loss), figures

    # 5 batches an epoch, two per step: batch 3 of epoch 2 opens step 3 + 2.
    where = rf"teacher: the loss became {value} in optimiser step 5 \(epoch 2 of 3, batch 3\);"
    with pytest.raises(TrainingError, match=where) as error:
        run(make_model(), tmp_path, objective=objective)
    assert "`learning_rate` (now 0.003)" in str(error.value)


def test_a_gradient_that_is_not_finite_is_blamed_on_its_own_step_not_on_the_loss_after_it(tmp_path):
    calls = 0

    def objective(model, batch):
        nonlocal calls
        calls += 1
        loss, figures = classify_objective()(model, batch)
        if calls == 7:  # finite, but its slope is not: d sqrt(x) at 0
            loss = loss + (loss * 0).sqrt()
        return loss, figures

    with pytest.raises(TrainingError, match=r"the gradient became nan in optimiser step 4 \(epoch 2 of 3, batch 2\)"):
        run(make_model(), tmp_path, objective=objective)
    saved = [json.loads((folder / "progress.json").read_text()) for folder in tmp_path.iterdir()]
    assert [progress["optimizer_steps"] for progress in saved] == [3], "a checkpoint of spoilt weights was kept"


def test_accumulated_batches_step_like_one_large_batch(tmp_path):
    results = []
    for batch_size, steps in ((48, 1), (12, 4)):
        model = tiny_vit()
        config = TrainConfig(epochs=2, batch_size=batch_size, gradient_accumulation_steps=steps)
        run(model, tmp_path / str(steps), config, classify_objective())
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*results, atol=2e-4)


def test_bf16_trains_and_hands_back_an_unwrapped_float32_model(tmp_path):
    model = tiny_vit()
    before = model.classifier.weight.clone()
    run(model, tmp_path, TrainConfig(epochs=1, batch_size=16, mixed_precision="bf16"))
    assert "forward" not in vars(model)
    assert model.classifier.weight.dtype == torch.float32
    assert not torch.equal(before, model.classifier.weight)
    run(tiny_vit(), tmp_path / "next", TrainConfig(epochs=1, batch_size=16))  # another precision, same process


def test_fp16_without_a_gpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingError, match="needs a GPU"):
        run(tiny_vit(), tmp_path, TrainConfig(epochs=1, mixed_precision="fp16"))


def test_frozen_parameters_stay_and_an_all_frozen_model_is_refused(tmp_path):
    model = tiny_vit()
    model.vit.requires_grad_(False)
    before = weights(model)
    run(model, tmp_path, TrainConfig(epochs=1, batch_size=16))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    with pytest.raises(TrainingError, match="no parameter that requires gradients"):
        run(model.requires_grad_(False), tmp_path / "frozen")


def test_data_loading_processes_change_nothing(tmp_path):
    results = []
    for workers in (0, 2):
        model = make_model()
        run(model, tmp_path / str(workers), TrainConfig(epochs=1, batch_size=16, num_workers=workers))
        results.append(weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_no_items_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="no items"):
        run(tiny_vit(), tmp_path, data=ClassifyData(make_split().select([])))


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (TrainConfig, "epochs", 0),
        (TrainConfig, "epochs", 1.5),
        (TrainConfig, "epochs", True),
        (TrainConfig, "batch_size", 0),
        (TrainConfig, "learning_rate", -1e-3),
        (TrainConfig, "learning_rate", 0.0),
        (TrainConfig, "learning_rate", math.nan),
        (TrainConfig, "learning_rate", "1e-3"),
        (TrainConfig, "weight_decay", -0.1),
        (TrainConfig, "warmup_fraction", 1.0),
        (TrainConfig, "label_smoothing", 1.0),
        (TrainConfig, "max_grad_norm", 0.0),
        (TrainConfig, "gradient_accumulation_steps", 0),
        (TrainConfig, "mixed_precision", False),
        (TrainConfig, "checkpoint_every_steps", 0),
        (TrainConfig, "num_workers", -1),
        (TrainConfig, "seed", -1),
        (TrainConfig, "track", ""),
        (TrainConfig, "track", True),
        (DistillConfig, "objective", "soft"),
        (DistillConfig, "hard", "yes"),
        (DistillConfig, "hard_weight", 1.5),
        (DistillConfig, "relation_weights", (0.1, 0.2)),
        (DistillConfig, "temperature", 0.0),
        (DistillConfig, "distillation_weight", 1.1),
        (DistillConfig, "negatives_per_positive", -0.5),
        (DistillConfig, "views", 0),
        (FuseConfig, "hidden_size", -1),
        (FuseConfig, "dropout", 1.0),
        (FuseConfig, "sub_model_dropout", 1.0),
        (FuseConfig, "joint", 1),
        (FuseConfig, "joint_epochs", 0),
        (FuseConfig, "joint_learning_rate", 0.0),
        (FuseConfig, "joint_batch_size", 0),
        (FuseConfig, "joint_views", 0),
        (FuseConfig, "token_weight", -1.0),
        (FuseConfig, "vote_weight", math.inf),
        (TrainConfig, "patience", 0),
        (TrainConfig, "patience", 2.5),
        (DistillConfig, "votes", "some"),
        (DistillConfig, "focus_weight", 0.0),
        (FuseConfig, "kind", "max"),
        (FuseConfig, "other", "zero"),
        (FuseConfig, "joint_patience", 0),
        (FuseConfig, "feedback_weight", -0.1),
        (FuseConfig, "diversity_weight", 1.0),
    ],
)
def test_values_that_cannot_train_are_refused_at_birth(config, field, value):
    with pytest.raises(RecipeError, match=f"`{field}` must"):
        config(**{"epochs": 1, field: value})


def test_values_can_be_checked_without_torch():
    code = "import sys, edvit_hf.training.config as c; c.FuseConfig(epochs=1); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_learning_rate_rises_linearly_then_falls_as_a_cosine():
    scale = [learning_rate_scale(step / 100, 0.1) for step in range(101)]
    assert scale[5] == pytest.approx(0.5)
    assert scale[10] == 1.0
    assert scale[55] == pytest.approx(0.5)
    assert scale[100] == pytest.approx(0.0, abs=1e-12)
    assert learning_rate_scale(0.0, 0.0) == 1.0


def test_biases_norms_and_embeddings_are_not_decayed():
    names = undecayed_parameters(tiny_vit(num_layers=1))
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings", "classifier.bias"} <= names
    assert any("layernorm" in name for name in names)
    assert "classifier.weight" not in names


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    order = epoch_order(50, 3, 1)
    np.random.seed(5)
    assert np.array_equal(order, epoch_order(50, 3, 1))
    assert sorted(order) == list(range(50))
    assert not np.array_equal(order, epoch_order(50, 3, 2))
    assert not np.array_equal(order, epoch_order(50, 4, 1))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=400),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    has_lengths=st.booleans(),
)
def test_every_item_is_in_one_batch_of_an_epoch_and_only_one_batch_is_short(
    lengths, batch_size, seed, epoch, has_lengths
):
    values = np.array(lengths) if has_lengths else None
    batches = epoch_batches(len(lengths), batch_size, seed, epoch, values)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    again = epoch_batches(len(lengths), batch_size, seed, epoch, values)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))


def test_batches_of_items_of_like_length_pad_little_and_change_with_the_epoch():
    lengths = np.random.default_rng(0).integers(1, 200, 2000)

    def padded(batches):
        return sum(len(batch) * lengths[batch].max() for batch in batches)

    sorted_batches, plain = epoch_batches(2000, 16, 0, 0, lengths), epoch_batches(2000, 16, 0, 0)
    assert padded(sorted_batches) < 1.1 * lengths.sum() < 1.5 * lengths.sum() < padded(plain)
    firsts = [lengths[batch].mean() for batch in sorted_batches]
    assert np.corrcoef(np.arange(len(firsts)), firsts)[0, 1] < 0.5, "batches come in the order of their lengths"
    assert not np.array_equal(sorted_batches[0], epoch_batches(2000, 16, 0, 1, lengths)[0])


def test_the_values_of_joint_tuning_take_the_usual_places():
    config = FuseConfig(epochs=30, joint=True, joint_epochs=4, joint_learning_rate=1e-4, joint_batch_size=64, views=3)
    joint = joint_config(config)
    assert (joint.epochs, joint.learning_rate, joint.batch_size, joint.views) == (4, 1e-4, 64, 3)
    assert joint_config(FuseConfig(epochs=1, views=3, joint_views=2)).views == 2


def test_the_bar_counts_speed_and_time_left_from_where_a_run_resumes(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run(make_model(), tmp_path, objective=interrupting(classify_objective(0.1), 7, ZeroDivisionError()))
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr("edvit_hf.training.loop.tqdm", Bar)
    run(make_model(), tmp_path)
    (bar,) = bars
    assert (bar.initial, bar.n, bar.total) == (48, 3 * 48, 3 * 48)
    assert {"loss", "accuracy"} <= {part.split("=")[0] for part in bar.postfix.split(", ")}


def test_resuming_with_another_number_of_processes_is_warned_of(tmp_path, caplog):
    for saved, is_said in ((1, False), (2, True)):
        folder = tmp_path / str(saved)
        with pytest.raises(ZeroDivisionError):
            run(make_model(), folder, objective=interrupting(classify_objective(0.1), 7, ZeroDivisionError()))
        for path in folder.glob("*/progress.json"):
            progress = json.loads(path.read_text())
            assert progress["num_processes"] == 1
            path.write_text(json.dumps({**progress, "num_processes": saved}))
        caplog.clear()
        run(make_model(), folder)
        said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "process" in r.getMessage()]
        assert bool(said) == is_said
        if is_said:
            assert "was saved by 2 process(es), 1 go on: the result will differ" in said[0]
            newest = sorted(folder.glob("*/progress.json"))[-1]
            assert json.loads(newest.read_text())["num_processes"] == 1
