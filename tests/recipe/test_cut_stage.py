# SPDX-License-Identifier: Apache-2.0
"""What the prune stage makes: compensated cuts, seeded samples; and what is refused before a teacher is trained."""

import dataclasses
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

from edvit_hf.errors import PruningError
from edvit_hf.pruning import PruningPlan, compensate, prune
from edvit_hf.recipe import run
from edvit_hf.recipe.running import stage_dir, stages_of
from edvit_hf.recipe.schema import TeacherConfig
from edvit_hf.recipe.stages.split import teacher_confusions
from edvit_hf.recipe.trip import Trip, load_model
from edvit_hf.storage import read_json
from support.tiny_recipe import tiny_recipe


def trip_of(recipe, work):
    return Trip(recipe, {stage.name: stage_dir(work, stage.name) for stage in stages_of(recipe)})


@pytest.fixture(scope="module")
def finished(finished_trip):
    """The finished trip, to look into. Read only."""
    return trip_of(tiny_recipe(finished_trip[0].parent), finished_trip[1])


def cut_again(trip, index, *, sample=None):
    """The stored plan of a sub-model, cut anew from the teacher; compensated on `sample`."""
    stored = read_json(trip.folders["prune"] / f"pruning_plan_{index:02d}.json")
    plan, group = PruningPlan.from_dict(stored), trip.class_groups[index]
    pruned = prune(trip.teacher, plan, group)
    if sample is not None:
        compensate(pruned, trip.teacher, plan, group, trip.data.train.inputs(sample), progress=False)
    return pruned.state_dict()


def alike(first, second):
    return all(torch.allclose(value, second[key], rtol=1e-4, atol=1e-5) for key, value in first.items())


@pytest.mark.parametrize("num_samples", [None, 32])
def test_sub_models_are_compensated_on_items_inside_and_outside_their_group(finished, tmp_path, num_samples):
    trip = finished
    if num_samples is not None:
        work = tmp_path / "work"
        shutil.copytree(finished.folders["teacher"].parent, work)
        recipe = tiny_recipe(tmp_path, prune={"compensation_samples": num_samples})
        run(recipe, work, stages=["prune"])
        trip = trip_of(recipe, work)
    config = trip.recipe.prune
    for index, group in enumerate(trip.class_groups):
        stored = load_model(trip.folders["prune"] / f"sub_models/{index:02d}").state_dict()
        mixed = trip.mixed_training_sample(group, config.compensation_samples, config.seed)
        scored = trip.training_sample(group, config.samples_per_class, config.seed)
        is_own = np.isin(trip.data.train.labels[mixed], group)
        assert 0.4 < is_own.mean() < 0.6
        assert len(mixed) == (num_samples or len(trip.data.train))  # fewer items than asked for: all of them
        assert alike(stored, cut_again(trip, index, sample=mixed))
        assert not alike(stored, cut_again(trip, index))
        assert not alike(stored, cut_again(trip, index, sample=scored))


def test_without_compensation_the_plain_cut_is_stored(finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished.folders["teacher"].parent, work)
    recipe = tiny_recipe(tmp_path, prune={"compensate": False})
    run(recipe, work, stages=["prune"])
    trip = trip_of(recipe, work)
    for index in range(2):
        stored = load_model(trip.folders["prune"] / f"sub_models/{index:02d}").state_dict()
        assert alike(stored, cut_again(trip, index))


def test_training_samples_are_drawn_evenly_by_their_seed(finished):
    labels, group = finished.data.train.labels, [2, 7]
    first, again, other = (finished.training_sample(group, 5, seed) for seed in (0, 0, 1))
    assert Counter(labels[first].tolist()) == {2: 5, 7: 5}
    assert (np.diff(first) > 0).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({tuple(finished.training_sample(group, 5, seed)) for seed in range(6)}) == 6
    assert len(finished.training_sample(group, 10_000, 0)) == np.isin(labels, group).sum()


def test_mixed_samples_are_drawn_by_their_seed(finished):
    labels, group = finished.data.train.labels, [2, 7]
    samples = [finished.mixed_training_sample(group, 20, seed) for seed in range(6)]
    assert len({tuple(sample) for sample in samples}) == 6
    assert all(np.isin(labels[sample], group).sum() == 10 for sample in samples)
    assert np.array_equal(samples[3], finished.mixed_training_sample(group, 20, 3))
    assert len(finished.mixed_training_sample(range(10), 20, 0)) == 20  # nothing lies outside all classes


def test_a_class_without_items_has_the_confusions_of_the_other_direction(finished):
    everything = teacher_confusions(finished, 10_000, 0)
    labels = finished.data.train.labels
    trip = trip_of(finished.recipe, finished.folders["teacher"].parent)
    trip.__dict__["data"] = dataclasses.replace(
        finished.data, train=finished.data.train.select(np.flatnonzero(~np.isin(labels, [3, 8])))
    )
    without = teacher_confusions(trip, 10_000, 0)
    assert without[3, 8] == without[8, 3] == 0
    assert (without == without.T).all()
    there = [c for c in range(10) if c not in (3, 8)]
    np.testing.assert_allclose(without[np.ix_(there, there)], everything[np.ix_(there, there)])
    with torch.inference_mode():
        items = np.flatnonzero(labels == 5)
        given = trip.teacher(**finished.data.train.inputs(items)).logits.softmax(-1).mean(0)
    assert without[5, 3] == pytest.approx(float(given[3]), rel=1e-4)  # whole, not halved


def test_a_model_that_no_table_covers_is_refused_before_any_training(tmp_path):
    labels = {i: str(i) for i in range(10)}
    config = DeiTConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=32,
        patch_size=4,
        image_size=8,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "teacher")
    teacher = TeacherConfig(checkpoint=str(tmp_path / "teacher"), epochs=1, checkpoint_every_steps=1)
    recipe = dataclasses.replace(tiny_recipe(tmp_path), teacher=teacher)
    with pytest.raises(PruningError, match=r"deit table does not cover the parameter 'cls_classifier\.weight'"):
        run(recipe, tmp_path / "work", stages=["teacher"])
    assert not (stage_dir(tmp_path / "work", "teacher") / "checkpoints").exists()
