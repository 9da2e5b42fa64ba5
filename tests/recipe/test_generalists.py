# SPDX-License-Identifier: Apache-2.0
"""Sub-models that are cut for a class group and vote over every class: `distill.votes: all`."""

import dataclasses
import json

import numpy as np
import pytest

from edvit_hf.errors import RecipeError
from edvit_hf.recipe import run
from edvit_hf.recipe.keys import chosen_values
from edvit_hf.recipe.running import stage_dir, stages_of
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json, write_json
from support.tiny_recipe import tiny_recipe

STAGES = ("teacher", "split", "plan", "prune", "distill")


def trip_of(recipe, work):
    return Trip(recipe, {stage.name: stage_dir(work, stage.name) for stage in stages_of(recipe)})


@pytest.fixture(scope="module")
def generalists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generalists")
    recipe = tiny_recipe(folder, distill={"votes": "all", "focus_weight": 2.0})
    run(recipe, folder / "work", stages=STAGES)
    return trip_of(recipe, folder / "work")


def test_each_generalist_is_cut_for_its_group_and_votes_over_every_class(generalists):
    trip = generalists
    everyone = list(range(10))
    assert trip.class_groups == [everyone, everyone]
    assert sorted(c for group in trip.focus_groups for c in group) == everyone
    names = [trip.teacher.config.id2label[c] for c in everyone]
    for sub_model in trip.sub_models("distill"):
        assert [sub_model.config.id2label[c] for c in everyone] == names  # no "other"
    plans = [json.dumps(read_json(trip.folders["prune"] / f"pruning_plan_{i:02d}.json")) for i in range(2)]
    assert plans[0] != plans[1]


def test_its_plan_says_what_each_was_cut_for_before_and_after_the_groups_are_known(generalists):
    trip = generalists
    assert [s.focus for s in trip.plan.sub_models] == trip.focus_groups
    before = plan_recipe(trip.recipe)
    assert sorted(c for s in before.sub_models for c in s.focus) == list(range(10))
    assert all(s.classes == list(range(10)) for s in before.sub_models)
    assert not any("placeholders" in note for note in before.notes)
    similar = dataclasses.replace(trip.recipe.split, strategy="similarity")
    notes = plan_recipe(dataclasses.replace(trip.recipe, split=similar)).notes
    assert any("placeholders" in note for note in notes)
    distill = dataclasses.replace(trip.recipe.distill, votes="group")
    specialists = plan_recipe(dataclasses.replace(trip.recipe, distill=distill))
    assert [s.focus for s in specialists.sub_models] == [None, None]


def test_each_generalist_sees_every_training_item_in_every_epoch(generalists):
    log = read_json(generalists.folders["distill"] / "training/00/training_log.json")["epochs"]
    seen = [entry["samples_per_second"] * entry["seconds"] for entry in log]
    assert seen == pytest.approx([len(generalists.data.train)] * 2)


def test_generalists_have_seeds_of_their_own_and_specialists_share_one(generalists, tmp_path):
    assert generalists.sub_model_seed(3, 0) == 3
    assert generalists.sub_model_seed(3, 1) != 3
    specialists = trip_of(tiny_recipe(tmp_path), tmp_path)
    specialists.folders["split"].mkdir()
    write_json(specialists.folders["split"] / "class_groups.json", {"class_groups": generalists.focus_groups})
    assert [specialists.sub_model_seed(3, index) for index in range(2)] == [3, 3]
    assert specialists.focus_groups == specialists.class_groups


def test_copies_of_one_group_draw_other_samples(generalists):
    seeds = [generalists.sub_model_seed(0, index) for index in range(2)]
    first, second = (generalists.training_sample(range(10), 4, seed) for seed in seeds)
    assert not np.array_equal(first, second)


def test_the_weight_of_a_focus_is_read_with_votes_over_all_classes_alone(tmp_path):
    with pytest.raises(RecipeError, match=r"`distill\.focus_weight` is read only with `votes: all`"):
        tiny_recipe(tmp_path, distill={"focus_weight": 2.0})


def test_results_of_recipes_without_votes_stay_good(tmp_path):
    plain = tiny_recipe(tmp_path)
    assert "votes" not in chosen_values(plain, ("distill",))["distill"]
    assert chosen_values(plain, ("split", "distill.votes")).keys() == {"split"}
    generalists = tiny_recipe(tmp_path, distill={"votes": "all"})
    assert chosen_values(generalists, ("distill.votes",)) == {"distill.votes": "all"}
