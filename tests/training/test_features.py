# SPDX-License-Identifier: Apache-2.0
"""A sub-model learns from the teacher's feature too: the loss is its formula, and it stays a stock model."""

import dataclasses

import numpy as np
import pytest
import torch
from test_training import assert_same_run, interrupting, make_split, run, weights
from torch.nn import functional as F

from edvit_hf.errors import DataError, RecipeError
from edvit_hf.modeling_edvit import forward_sub_model
from edvit_hf.recipe import run as run_recipe
from edvit_hf.recipe.keys import key_values
from edvit_hf.recipe.running import stage_dir
from edvit_hf.recipe.stages.compared import plain_folder
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json
from edvit_hf.training import (
    DistillConfig,
    DistillData,
    Focus,
    MatchedModel,
    TeacherOutputs,
    distill_objective,
    matching_objective,
    teacher_outputs,
)
from support.tiny_architectures import tiny_inputs, tiny_model, tiny_vit
from support.tiny_recipe import tiny_recipe

GROUP = [1, 3]
CONFIG = DistillConfig(epochs=3, batch_size=10, learning_rate=3e-3, seed=5, views=2, feature_weight=1.0)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")
    monkeypatch.setattr("edvit_hf.training.loop.EPOCH_CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def outputs():
    """A teacher that is right: its logits say the label, its features differ by item."""
    split = make_split()
    features = teacher_outputs(tiny_vit(seed=11), split, views=2, progress=False).features
    logits = np.broadcast_to(4 * np.eye(4, dtype=np.float32)[split.labels], (2, 48, 4)).copy()
    return TeacherOutputs(logits, features)


def make_matched(dropout=0.0):
    size = {"hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 16}
    sub_model = tiny_vit(len(GROUP) + 1, **size, seed=1)
    for module in sub_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return MatchedModel(sub_model, 32, seed=4)


def data_of(outputs):
    return DistillData(make_split(), outputs.logits, GROUP, teacher_features=outputs.features, seed=5)


def learn(model, folder, outputs, objective=None, config=CONFIG):
    objective = objective or matching_objective(GROUP, 2.0, 0.7, config.feature_weight)
    return run(model, folder, config, objective, data_of(outputs))


@pytest.mark.parametrize("focus", [None, Focus([3], 2.0)])
def test_the_loss_is_that_of_distillation_and_the_weighted_error_of_the_mapped_feature(outputs, focus):
    matched, batch = make_matched().eval(), data_of(outputs).batch(np.arange(12))
    plain, _ = distill_objective(GROUP, 2.0, 0.7, 0.1, focus=focus)(matched.sub_models[0], batch)
    loss, figures = matching_objective(GROUP, 2.0, 0.7, 0.3, 0.1, focus=focus)(matched, batch)
    feature, _ = forward_sub_model(matched.sub_models[0], batch["inputs"])
    error = F.mse_loss(matched.mapping(feature), batch["teacher_features"])
    assert figures["feature_error"].item() == pytest.approx(error.item(), rel=1e-5)
    assert loss.item() == pytest.approx(plain.item() + 0.3 * error.item(), rel=1e-5)


def test_training_brings_the_feature_nearer_and_leaves_a_stock_model(tmp_path, outputs):
    matched = make_matched()
    names = set(matched.sub_models[0].state_dict())
    log = learn(matched, tmp_path, outputs, config=dataclasses.replace(CONFIG, epochs=30))
    assert log.epochs[-1]["feature_error"] < 0.7 * log.epochs[0]["feature_error"]
    assert log.epochs[-1]["accuracy"] > 0.9
    assert set(matched.sub_models[0].state_dict()) == names


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, outputs):
    model = make_matched(dropout=0.2)
    log, expected = learn(model, tmp_path / "whole", outputs), weights(model)
    broken = interrupting(matching_objective(GROUP, 2.0, 0.7, 1.0), 5, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        learn(make_matched(dropout=0.2), tmp_path / "cut", outputs, broken)
    torch.manual_seed(123)  # the first weights of the mapping must not depend on it
    again = make_matched(dropout=0.2)
    assert_same_run(again, learn(again, tmp_path / "cut", outputs), expected, log)


@pytest.mark.parametrize("name", ["vit", "deit", "audio-spectrogram-transformer", "bert", "distilbert"])
def test_every_architecture_has_a_feature_to_match(name):
    batch = {
        "inputs": tiny_inputs(name, n=4),
        "labels": torch.arange(4),
        "teacher_logits": torch.randn(4, 4),
        "teacher_features": torch.randn(4, 7),
    }
    loss, _ = matching_objective([0, 1], 2.0, 0.5, 1.0)(MatchedModel(tiny_model(name, num_labels=3), 7), batch)
    loss.backward()
    assert loss.isfinite()


def test_features_of_other_views_are_refused(outputs):
    with pytest.raises(DataError, match="Teacher logits of 2 views and features of 1 do not fit"):
        DistillData(make_split(), outputs.logits, GROUP, teacher_features=outputs.features[:1])


@pytest.mark.parametrize("objective", ["dekd", "none"])
def test_a_weight_that_nothing_reads_is_refused(tmp_path, objective):
    with pytest.raises(RecipeError, match=r"`distill\.feature_weight` is read only with `objective: kd`"):
        tiny_recipe(tmp_path, distill={"objective": objective, "feature_weight": 0.5})
    with pytest.raises(RecipeError, match="`feature_weight`"):
        DistillConfig(epochs=1, feature_weight=-0.1)


def folder_of_plain(recipe, tmp_path):
    trip = Trip(recipe, {"teacher": tmp_path})
    trip.__dict__["data"] = type("Data", (), {"train": range(9)})()
    return plain_folder(trip, 1, recipe.distill).name


def test_without_the_weight_every_key_and_every_folder_is_as_it_was(tmp_path):
    plain, matched = tiny_recipe(tmp_path), tiny_recipe(tmp_path / "b", distill={"feature_weight": 0.5})
    assert "feature_weight" not in key_values(plain)["distill"]
    assert key_values(matched)["distill"]["feature_weight"] == 0.5
    assert folder_of_plain(plain, tmp_path) != folder_of_plain(matched, tmp_path)
    assert folder_of_plain(plain, tmp_path) == "plain_935e3d9d321d"


def test_a_trip_learns_from_features_and_its_sub_models_are_stock_models(tmp_path):
    recipe = tiny_recipe(tmp_path, distill={"feature_weight": 1.0})
    run_recipe(recipe, tmp_path / "work", stages=["teacher", "split", "plan", "prune", "distill"])
    folder = stage_dir(tmp_path / "work", "distill")
    for index in range(2):
        first, last = read_json(folder / f"training/{index:02d}/training_log.json")["epochs"]
        assert 0 < last["feature_error"] < first["feature_error"]
    assert not list(folder.rglob("*mapping*"))
