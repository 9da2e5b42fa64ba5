# SPDX-License-Identifier: Apache-2.0
"""What the fuse stage makes of votes: their average, calibrated; tuned jointly; and a residual head on top."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from edvit_hf.data.contents import FileHashes
from edvit_hf.errors import RecipeError
from edvit_hf.evaluation.choice import Candidate, choose
from edvit_hf.modeling_edvit import VoteAverage
from edvit_hf.recipe import run
from edvit_hf.recipe.keys import fuse_sources, key_values
from edvit_hf.recipe.running import stage_dir, stages_of
from edvit_hf.recipe.stages import fuse as stage
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json
from edvit_hf.tasks import MAX_SUBSETS, absent_subsets
from edvit_hf.training import absences, fit_temperatures
from support.tiny_recipe import tiny_recipe

BEFORE = ("teacher", "split", "plan", "prune", "distill")
ALL = {"votes": "all"}


def trip_of(recipe, work):
    return Trip(recipe, {stage.name: stage_dir(work, stage.name) for stage in stages_of(recipe)})


@pytest.fixture(scope="module")
def generalists(tmp_path_factory):
    """A trip of generalists up to the fuse stage, to copy."""
    folder = tmp_path_factory.mktemp("generalists")
    run(tiny_recipe(folder, distill=ALL), folder / "work", stages=BEFORE)
    return folder / "work"


def fused(generalists, folder, **fuse):
    recipe = tiny_recipe(folder, distill=ALL, fuse=fuse)
    if not (folder / "work").exists():
        shutil.copytree(generalists, folder / "work")
    run(recipe, folder / "work", stages=[*BEFORE, "fuse"])  # the plan knows what the fusion weighs
    trip = trip_of(recipe, folder / "work")
    return trip, read_json(trip.folders["fuse"] / "validation.json")


def same_weights(first, second):
    state = second.state_dict()
    return all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


def test_an_average_trains_nothing_and_calibrates_every_vote(generalists, tmp_path):
    trip, found = fused(generalists, tmp_path, kind="average")
    ensemble = trip.ensemble
    assert ensemble.config.fusion_kind == "average"
    assert ensemble.config.focus_groups == trip.focus_groups
    assert ensemble.fusion.temperature.tolist() == pytest.approx(found["temperatures"])
    assert set(found["temperatures"]) != {1.0}
    assert read_json(trip.folders["fuse"] / "training_log.json") == {}
    for index, distilled in enumerate(trip.sub_models("distill")):
        own = ensemble.sub_models[index].state_dict()
        assert all(torch.equal(value, own[name]) for name, value in distilled.state_dict().items())
    split = trip.data.validation
    with torch.inference_mode():
        inputs, everyone = split.inputs(np.arange(len(split))), torch.ones(2, dtype=torch.bool)
        answers = ensemble(**inputs, sub_model_mask=everyone).logits.argmax(dim=-1).numpy()
        alone = ensemble(**inputs, sub_model_mask=torch.tensor([True, False])).logits
        own = ensemble.votes(**inputs)[0]
    assert (answers == split.labels).mean() == pytest.approx(found["accuracy"])
    assert torch.equal(alone.argmax(dim=-1), own.argmax(dim=-1))


@pytest.mark.parametrize(("kind", "where"), [("average", "joint_objective"), ("residual", "fuse_objective")])
def test_an_interrupted_fusion_of_votes_resumes_to_the_same_bits(generalists, tmp_path, monkeypatch, kind, where):
    joint = {"kind": kind, "joint": True, "joint_epochs": 2, "joint_patience": 2, "joint_batch_size": 32}
    whole, found = fused(generalists, tmp_path / "whole", **joint)
    assert kind == "residual" or found["joint"] == found["accuracy"]
    real, calls = getattr(stage, where), []

    def interrupted(*given, **options):
        objective = real(*given, **options)

        def stop_at_the_sixth(model, batch):
            calls.append(1)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return objective(model, batch)

        return stop_at_the_sixth

    with monkeypatch.context() as patch:
        patch.setattr(stage, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fused(generalists, tmp_path / "parts", **joint)
    parts, again = fused(generalists, tmp_path / "parts", **joint)
    assert same_weights(whole.ensemble, parts.ensemble)
    assert found == again


@pytest.mark.parametrize("joint", [False, True])
def test_a_residual_head_is_added_as_far_as_it_is_better_on_validation(generalists, tmp_path, joint):
    trip, found = fused(generalists, tmp_path, kind="residual", joint=joint, **({"joint_epochs": 1} if joint else {}))
    fusion = trip.ensemble.fusion
    assert float(fusion.scale) == found["scale"]
    better = [tried["scale"] for tried in found["scales"] if tried["low"] > 0]
    assert found["scale"] == max(better, default=0.0)
    assert found["accuracy"] >= found["joint" if joint else "frozen"] or found["scale"] > 0
    assert not torch.equal(fusion.head.layers[-1].weight, torch.zeros_like(fusion.head.layers[-1].weight))  # it learnt


def test_a_scale_is_chosen_by_a_paired_interval_and_is_zero_without_gain():
    labels = np.arange(200) % 2
    votes = torch.zeros(200, 2)
    votes[:, 0] = 0.1  # always class 0: half of them right

    class Fusion(torch.nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.gain, self.scale, self.feature_sizes = gain, 0.0, [1]

        def set_scale(self, scale):
            self.scale = scale

        def forward(self, features, logits, mask):
            return logits + self.scale * self.gain * features

    features = torch.nn.functional.one_hot(torch.from_numpy(labels), 2).float()
    for gain, expected in ((1.0, 1.0), (0.0, 0.0), (-1.0, 0.0)):
        ensemble = type("Ensemble", (), {"fusion": Fusion(gain)})()
        average = stage.shares_right(ensemble.fusion, features, votes, labels)
        found = stage._choose_scale(ensemble, features, votes, labels, average)
        assert found["scale"] == ensemble.fusion.scale == expected


class Corrected(torch.nn.Module):
    """An average of three votes over three classes, and a correction of so many noise logits."""

    def __init__(self):
        super().__init__()
        self.average = VoteAverage([[0, 1, 2]] * 3, [3] * 3, 3, [1] * 3)
        self.feature_sizes, self.scale = [1] * 3, 0.0

    def set_scale(self, scale):
        self.scale = scale

    def forward(self, features, logits, mask):
        return self.average(None, logits, mask) + self.scale * features


@pytest.mark.slow
def test_what_is_fitted_on_the_items_of_a_choice_rarely_makes_noise_a_gain():
    """Temperatures and scale are fitted on the validation items on which a strategy is chosen."""
    taken, groups = 0, [[0, 1, 2]] * 3
    for trial in range(20):
        torch.manual_seed(trial)
        labels = np.random.default_rng(trial).integers(0, 3, 200)
        signal = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).float().repeat(1, 3)
        plain, votes = (1.5 * signal + torch.randn(200, 9) for _ in range(2))
        base, fusion = Corrected(), Corrected()
        fusion.average.set_temperatures(fit_temperatures(votes, labels, groups, [3] * 3))
        noise = torch.randn(200, 3)
        average = stage.shares_right(fusion, noise, votes, labels)
        stage._choose_scale(type("Ensemble", (), {"fusion": fusion})(), noise, votes, labels, average)
        own, other = (
            stage.shares_right(each, noise, given, labels) for each, given in ((fusion, votes), (base, plain))
        )
        taken += choose({"replicas": Candidate(other), "generalists": Candidate(own)}, "replicas").name != "replicas"
    assert taken <= 1


def test_the_recipes_bound_on_subsets_reaches_what_validation_decides(generalists, tmp_path, monkeypatch):
    asked = set()

    def counted(num_sub_models, num_absent, limit=None):
        asked.add(limit)
        return absent_subsets(num_sub_models, num_absent, limit=limit)

    monkeypatch.setattr(absences, "absent_subsets", counted)
    shutil.copytree(generalists, tmp_path / "work")
    until = {"epochs": 1, "patience": 1, "joint": True, "joint_epochs": 1, "joint_patience": 1}
    changes = {"distill": ALL, "fuse": {"kind": "residual", **until}, "evaluate": {"max_subsets": 1}}
    recipe = tiny_recipe(tmp_path, **changes)
    run(recipe, tmp_path / "work", stages=[*BEFORE, "fuse"])
    assert asked == {1}
    other = dataclasses.replace(recipe, evaluate=dataclasses.replace(recipe.evaluate, max_subsets=2))
    (record,) = run(other, tmp_path / "work", stages=["fuse"])
    assert not record.skipped, "other subsets may decide otherwise"


@pytest.mark.parametrize(
    ("fuse", "is_read"),
    [({}, False), ({"patience": 1}, True), ({"kind": "residual"}, True), ({"joint": True, "joint_patience": 1}, True)],
)
def test_a_bound_on_subsets_is_part_of_the_fuse_stage_where_it_is_read_and_not_the_usual_one(tmp_path, fuse, is_read):
    for most in (5, MAX_SUBSETS):
        recipe = tiny_recipe(tmp_path, distill=ALL, fuse=fuse, evaluate={"max_subsets": most})
        expected = {"max_subsets": 5} if is_read and most == 5 else None
        assert fuse_sources(recipe, FileHashes()) == expected


def test_votes_over_groups_are_averaged_with_a_rule_for_other_alone(tmp_path):
    with pytest.raises(RecipeError, match=r"`fuse\.kind: average` averages votes.*`fuse\.other: spread`"):
        tiny_recipe(tmp_path, fuse={"kind": "average"})
    with pytest.raises(RecipeError, match=r"`fuse\.other` is read only with `kind: average` or `kind: residual`"):
        tiny_recipe(tmp_path, fuse={"other": "spread"})
    for key in ("feedback_weight", "diversity_weight"):
        with pytest.raises(RecipeError, match=f"`fuse.{key}` is read only with"):
            tiny_recipe(tmp_path, fuse={key: 0.1, "joint": True})
        assert key not in key_values(tiny_recipe(tmp_path))["fuse"]
    assert tiny_recipe(tmp_path, fuse={"kind": "average", "other": "spread"}).fuse.other == "spread"
    assert tiny_recipe(tmp_path, fuse={"kind": "residual"}, split={"coverage": 2}).votes_over_all
    with pytest.raises(RecipeError, match="`kind`"):
        dataclasses.replace(tiny_recipe(tmp_path).fuse, kind="max")


def test_groups_whose_other_is_spread_are_averaged(tmp_path):
    recipe = tiny_recipe(tmp_path, fuse={"kind": "average", "other": "spread"}, distill={"epochs": 1})
    run(recipe, tmp_path / "work", stages=[*BEFORE, "fuse"])
    trip = trip_of(recipe, tmp_path / "work")
    inputs = trip.data.validation.inputs(np.arange(8))
    with torch.inference_mode():
        probabilities = trip.ensemble(**inputs, sub_model_mask=torch.tensor([True, False])).logits.exp()
    outside = trip.class_groups[1]
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(8), atol=1e-5)
    assert torch.allclose(probabilities[:, outside], probabilities[:, outside[:1]].expand(-1, len(outside)))


@pytest.mark.slow
def test_every_training_of_a_trip_may_end_when_validation_stops_rising(tmp_path):
    until = {"epochs": 3, "patience": 1}
    changes = {"teacher": until, "distill": {**until, **ALL}}
    fuse = {**until, "kind": "residual", "joint": True, "joint_epochs": 3, "joint_patience": 1}
    recipe = tiny_recipe(tmp_path, **changes, fuse=fuse)
    run(recipe, tmp_path / "work", stages=[*BEFORE, "fuse"])
    trip = trip_of(recipe, tmp_path / "work")
    logs = [read_json(trip.folders["teacher"] / "training_log.json")]
    logs += [read_json(trip.folders["distill"] / f"training/{i:02d}/training_log.json") for i in range(2)]
    fused = read_json(trip.folders["fuse"] / "training_log.json")
    for log in (*logs, fused["head"], fused["joint"]):
        values = [entry["validation_accuracy"] for entry in log["epochs"]]
        assert log["best_epoch"] == 0 or values[log["best_epoch"] - 1] == max(values)
        assert log["passes"] == len(log["epochs"]) * len(trip.data.train)
    best = fused["joint"]["best_epoch"]
    found = read_json(trip.folders["fuse"] / "validation.json")
    if best:
        assert found["joint"] == pytest.approx(
            fused["joint"]["epochs"][best - 1]["validation_accuracy_0_absent"], abs=0.1
        )
