# SPDX-License-Identifier: Apache-2.0
"""A text trip whose sub-models know fewer words than their teacher: plan, stages, export and devices agree."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from edvit_hf.errors import DataError, PruningError, RecipeError
from edvit_hf.planning.plan import Plan
from edvit_hf.pruning import PruneConfig
from edvit_hf.recipe import run
from edvit_hf.recipe.keys import key_values
from edvit_hf.recipe.running import stage_dir, stages_of
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.recipe.trip import Trip
from edvit_hf.transforms import TextTransform
from support.tiny_recipe import tiny_recipe
from support.tiny_tasks import AUDIO, TEXT, task_recipe

WORDS = 70


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    short = {"teacher": {"epochs": 2}, "distill": {"epochs": 1}, "evaluate": {"baseline_epochs": 1}}
    recipe = task_recipe(folder, TEXT, prune={"vocabulary": WORDS}, **short)
    names = [stage.name for stage in stages_of(recipe)]
    run(recipe, folder / "work", stages=names[: names.index("evaluate") + 1])
    folders = {name: stage_dir(folder / "work", name) for name in names}
    return recipe, Trip(recipe, folders), folder / "work"


def test_every_model_but_the_teacher_knows_the_kept_words_alone(done):
    _, trip, work = done
    whole = trip.teacher_data.vocab_size
    assert trip.data.vocab_size == WORDS < whole <= trip.teacher.config.vocab_size == 128
    for folder in sorted((work / "05_distill" / "sub_models").iterdir()):
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == WORDS
        assert TextTransform.from_file(folder).vocab_size == WORDS
    assert TextTransform.from_file(work / "01_teacher" / "model").vocab_size == whole
    plain = list((work / "01_teacher" / "compared").rglob("model/config.json"))
    assert {json.loads(path.read_text())["vocab_size"] for path in plain} == {WORDS}
    assert trip.ensemble.config.vocab_size == WORDS


def test_the_plan_counts_the_kept_words_before_and_after_reading_them(done):
    recipe, trip, work = done
    models = [
        sum(t.numel() for t in load_file(f).values()) for f in sorted(work.glob("04_prune/sub_models/*/*.safetensors"))
    ]
    assert [s.parameters for s in trip.plan.sub_models] == models
    assert [s.parameters for s in plan_recipe(recipe).sub_models] == models
    assert trip.plan.teacher["parameters"] == sum(p.numel() for p in trip.teacher.parameters())
    results = json.loads((work / "07_evaluate" / "results.json").read_text())
    by_name = {row["name"]: row for row in results["rows"]}
    assert by_name["ensemble"]["parameters"] == sum(models) + trip.plan.fusion_parameters
    for row in results["rows"]:
        if row["name"].startswith("plain"):
            assert row["config"]["vocab_size"] == WORDS


def test_a_device_reads_a_text_as_the_ensemble_learnt_it(done):
    _, trip, work = done
    transform, test = TextTransform.from_file(work / "06_fuse" / "ensemble"), trip.data.test
    for row, text in enumerate(test.texts(range(len(test)))):
        found = test.inputs([row])
        for name, array in transform.inputs(text).items():
            np.testing.assert_array_equal(array, found[name])


def test_a_teacher_is_scored_by_its_own_tokens(done, monkeypatch):
    _, trip, _ = done
    from edvit_hf.recipe.stages import cut

    def scores(model, sample, *rest, **more):
        raise LookupError(int(sample["input_ids"].max()))

    monkeypatch.setattr(cut, "unit_scores", scores)
    with pytest.raises(LookupError) as found:
        cut.prune_for(trip, [0, 1], 1)
    assert found.value.args[0] >= WORDS


def test_seen_words_are_bounded_by_all_until_the_texts_are_read(done, tmp_path):
    recipe = task_recipe(tmp_path, TEXT, prune={"vocabulary": "seen"})
    plan = plan_recipe(recipe)
    assert any("until the texts are read" in note for note in plan.notes)
    assert plan.sub_models[0].parameters > plan_recipe(done[0]).sub_models[0].parameters
    run(recipe, tmp_path / "work", stages=["teacher", "split", "plan"])
    after = Plan.from_dict(json.loads((tmp_path / "work" / "03_plan" / "plan.json").read_text()))
    assert after.sub_models[0].parameters < plan.sub_models[0].parameters
    assert not any("until the texts are read" in note for note in after.notes)


def test_what_cannot_be_is_refused_before_anything_is_trained(tmp_path):
    for value in (0, -3, True, 2.5, "most"):
        with pytest.raises((PruningError, RecipeError), match="vocabulary"):
            PruneConfig(vocabulary=value)
    with pytest.raises(RecipeError, match="the task is image-classification"):
        tiny_recipe(tmp_path / "image", prune={"vocabulary": 100})
    with pytest.raises(RecipeError, match="the task is audio-classification"):
        task_recipe(tmp_path / "audio", AUDIO, prune={"vocabulary": "seen"})
    with pytest.raises(RecipeError, match="the same tokens"):
        task_recipe(tmp_path / "text", TEXT, prune={"vocabulary": "seen"}, distill={"objective": "dekd"})
    recipe = task_recipe(tmp_path / "text", TEXT, prune={"vocabulary": 9})
    with pytest.raises(DataError, match=r"at least \d+ pieces, got 9"):
        run(recipe, tmp_path / "work", stages=["teacher"])
    assert not list((tmp_path / "work").rglob("*.safetensors"))


def test_recipes_without_it_keep_their_results(tmp_path):
    assert "vocabulary" not in key_values(tiny_recipe(tmp_path))["prune"]
