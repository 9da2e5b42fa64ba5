# SPDX-License-Identifier: Apache-2.0
"""What was learnt is no test: equal splits are refused at once, shared rows before anything is trained."""

import dataclasses

import pytest

from edvit_hf.errors import DataError, RecipeError
from edvit_hf.recipe import run, running, staging
from edvit_hf.recipe.running import open_trip, stage_dir
from edvit_hf.recipe.stages import teacher as teacher_stage
from edvit_hf.recipe.stages.evaluate import _overlap
from edvit_hf.storage import read_json
from support.dataset_files import own_cache  # noqa: F401
from support.tiny_recipe import tiny_recipe
from support.tiny_tasks import TEXT, task_recipe


@pytest.mark.parametrize(
    ("dataset", "named"),
    [
        ({"train_split": "test"}, "`dataset.train_split` and `dataset.test_split` are both 'test'"),
        ({"test_split": "train"}, "`dataset.train_split` and `dataset.test_split` are both 'train'"),
        ({"validation_split": "train"}, "`dataset.train_split` and `dataset.validation_split` are both 'train'"),
        ({"validation_split": "test"}, "`dataset.validation_split` and `dataset.test_split` are both 'test'"),
    ],
)
def test_one_split_in_two_roles_is_refused_as_the_recipe_is_read(tmp_path, dataset, named):
    with pytest.raises(RecipeError, match=named):
        tiny_recipe(tmp_path, dataset=dataset)
    tiny_recipe(tmp_path, dataset={"train_split": "test", "test_split": None})


@pytest.fixture
def leaking(tmp_path, monkeypatch):
    """A text set whose test file holds three training rows and no other doubles; and what was built of it."""

    def write(name, rows):
        lines = [f"{label} says number {number},{label}" for number, label in rows]
        (tmp_path / "data" / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")

    (tmp_path / "data").mkdir()
    write("train", [(i, "abcd"[i % 4]) for i in range(80)])
    write("test", [*((i, "abcd"[i % 4]) for i in range(3)), *((i, "abcd"[i % 4]) for i in range(100, 137))])
    built = []
    monkeypatch.setattr(teacher_stage, "base_model", lambda trip: built.append(trip) or pytest.fail("built"))
    return built


def recipe_of(folder, **dataset):
    return task_recipe(folder, TEXT, dataset={"on_overlap": "raise", **dataset})


def test_shared_rows_are_refused_before_a_model_is_built(tmp_path, leaking):
    with pytest.raises(DataError, match=r"\d of 40 test rows .* training rows, too: row \d of 'test' \('a says num"):
        run(recipe_of(tmp_path), tmp_path / "work", stages=["teacher"])
    assert not leaking
    assert not (stage_dir(tmp_path / "work", "teacher") / "processor").exists()


@pytest.mark.parametrize(("choice", "is_left"), [("keep", True), ("drop", False)])
def test_kept_and_dropped_rows_are_counted_in_the_results(tmp_path, leaking, monkeypatch, choice, is_left):
    checks = dataclasses.replace(running.STAGES[0], function=teacher_stage._check_overlap)
    monkeypatch.setattr(running, "STAGES", (checks, *running.STAGES[1:]))
    recipe = recipe_of(tmp_path, on_overlap=choice)
    run(recipe, tmp_path / "work", stages=["teacher"])
    found = _overlap(open_trip(recipe, tmp_path / "work", ""))
    assert found == read_json(stage_dir(tmp_path / "work", "teacher") / "overlap.json")
    assert found["on_overlap"] == choice
    in_training, in_validation = (found["shared"][f"{role}_test"]["num_shared"] for role in ("train", "validation"))
    assert in_training + in_validation == (3 if is_left else 0)
    assert sum(found["dropped"].values()) == (0 if is_left else 3)


def test_another_choice_is_another_teacher(tmp_path, leaking):
    recipes = [recipe_of(tmp_path, on_overlap=choice) for choice in ("raise", "drop", "keep")]
    assert len({staging.key_of(running.STAGES[0], recipe, {}, None) for recipe in recipes}) == 3
