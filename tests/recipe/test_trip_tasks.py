# SPDX-License-Identifier: Apache-2.0
"""The whole trip for sounds and texts: every stage on real tiny data, and what is published at its end."""

import json

import numpy as np
import pytest

from edvit_hf import EDViTRuntime
from edvit_hf.errors import DataError, RecipeError
from edvit_hf.manifest import Manifest
from edvit_hf.published.measure import measure_exported
from edvit_hf.recipe import load_recipe, run
from edvit_hf.recipe.running import ensemble_dir, open_trip, stage_dir
from edvit_hf.storage import read_json
from support.tiny_tasks import AUDIO, TEXT, task_recipe

pytestmark = pytest.mark.slow

TASKS = {"audio": AUDIO, "text": TEXT}
CHANGES = {
    "audio": {
        "distill": {"objective": "kd", "epochs": 12, "learning_rate": 0.003},
        "fuse": {"epochs": 40, "learning_rate": 0.003, "joint": True, "joint_epochs": 1},
    },
    "text": {"distill": {"objective": "dekd"}, "fuse": {"epochs": 20}},
}
FILES = {
    "audio": {"preprocessor_config.json", "sub_models/01/preprocessor_config.json"},
    "text": {"tokenizer.json", "tokenizer_config.json", "sub_models/01/tokenizer.json"},
}
BASELINES = {
    "audio": ["replicas", "plain, N times the size", "copies", "small CNN"],
    "text": [
        "replicas",
        "plain, N times the size",
        "copies",
        "TF-IDF + linear, per-device size",  # once: these texts give fewer terms than one device holds
    ],
}


@pytest.fixture(scope="module", params=list(TASKS))
def finished(request, tmp_path_factory):
    """A trip of each task: (its kind, recipe folder, work directory). Read only."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = task_recipe(folder, TASKS[request.param], **CHANGES[request.param])
    run(recipe, folder / "work", command="edvit run tiny.yaml")
    return request.param, folder, folder / "work"


def test_the_teacher_learns_and_every_rival_stands_beside_the_ensemble(finished):
    kind, _, work = finished
    results = read_json(stage_dir(work, "evaluate") / "results.json")
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["teacher", "ensemble", *BASELINES[kind]]
    assert rows["teacher"]["accuracy"] > 0.8, "the classes of the tiny data can be told apart"
    assert rows["ensemble"]["accuracy"] > 0.5
    for row in rows.values():
        assert 0 <= row["calibration_error"] <= 1
        assert row["parameters"] > 0
    assert results["task"] == TASKS[kind]["task"]
    assert [row["num_absent"] for row in results["absent"]] == [0, 1]


def test_what_is_published_reads_raw_input_without_torch_and_agrees_with_the_test_split(finished):
    kind, folder, work = finished
    published = ensemble_dir(work)
    found = {str(path.relative_to(published)) for path in published.rglob("*")}
    assert FILES[kind] <= found
    manifest = Manifest.load(published)
    assert manifest.ensemble.task == TASKS[kind]["task"]
    ensemble = EDViTRuntime.from_pretrained(published)
    answer = ensemble(folder / "data/test/tone_2/000.wav") if kind == "audio" else ensemble("the rain and the snow")
    assert answer.probabilities.shape == (1, 4)
    measured = measure_exported(published, task_recipe(folder, TASKS[kind], **CHANGES[kind]))
    expected = read_json(stage_dir(work, "evaluate") / "results.json")["rows"][1]["accuracy"]
    assert measured["rows"][0]["accuracy"] == pytest.approx(expected, abs=1e-9)
    card = (published / "README.md").read_text()
    assert f"pipeline_tag: {TASKS[kind]['task']}" in card


def test_the_published_folder_works_in_a_stock_pipeline(finished):
    from transformers import pipeline

    kind, folder, work = finished
    task = TASKS[kind]["task"]
    if kind == "text":
        answer = pipeline(task, model=str(ensemble_dir(work)))("red and blue", truncation=True)
    else:
        import soundfile

        sound, rate = soundfile.read(folder / "data/test/tone_1/004.wav", dtype="float32")
        answer = pipeline(task, model=str(ensemble_dir(work)))({"raw": sound, "sampling_rate": rate})
    assert {"label", "score"} <= set(answer[0])


def test_a_second_run_does_nothing(finished):
    kind, folder, work = finished
    records = run(task_recipe(folder, TASKS[kind], **CHANGES[kind]), work)
    assert all(record.skipped for record in records)


def test_another_number_of_sub_models_trains_neither_teacher_nor_rivals_again(finished):
    kind, folder, work = finished
    before = {path: path.stat().st_mtime_ns for path in (work / "01_teacher").rglob("model.safetensors")}
    assert len(before) >= 3  # the teacher and its rivals
    recipe = task_recipe(
        folder, TASKS[kind], **CHANGES[kind], split={"num_sub_models": 4}, evaluate={"baselines": False}
    )
    run(recipe, folder / "other", stages=["teacher"])
    changed = run(recipe, work, stages=["split", "plan"])
    assert [record.skipped for record in changed] == [False, False]
    assert {path: path.stat().st_mtime_ns for path in (work / "01_teacher").rglob("model.safetensors")} == before
    # The finished trip is read by other tests: put it back.
    run(task_recipe(folder, TASKS[kind], **CHANGES[kind]), work)


def test_the_tokenizer_is_stored_before_the_teacher_trains_and_read_again(tmp_path):
    recipe = task_recipe(tmp_path, TEXT, teacher={**TEXT["teacher"], "epochs": 1})
    run(recipe, tmp_path / "work", stages=["teacher"])
    stored = tmp_path / "work/01_teacher/processor/tokenizer.json"
    words = json.loads(stored.read_text())["model"]["vocab"]
    assert (tmp_path / "work/01_teacher/model/tokenizer.json").read_text() == stored.read_text()

    trip = open_trip(recipe, tmp_path / "work", "")
    assert json.loads(trip.data.processor["tokenizer.json"])["model"]["vocab"] == words


@pytest.mark.parametrize(
    ("task", "change", "error", "message"),
    [
        (TEXT, {"teacher": {"mixup_alpha": 0.2}}, RecipeError, "token ids cannot be blended"),
        (TEXT, {"augmentation": {"flip": True}}, ValueError, "flip"),
        (AUDIO, {"augmentation": {"token_dropout": 0.1}}, ValueError, "token_dropout"),
        (AUDIO, {"dataset": {"text": {"max_length": 8}}}, ValueError, r"dataset\.text"),
        (AUDIO, {"fuse": {"token_weight": 2.0}}, RecipeError, "joint: true"),
        (AUDIO, {"distill": {"hard": False}}, RecipeError, "objective: dekd"),
    ],
)
def test_values_of_another_task_or_unread_ones_are_refused(tmp_path, task, change, error, message):
    with pytest.raises(error, match=message):
        task_recipe(tmp_path, task, **change)


def test_a_checkpoint_that_reads_other_inputs_is_refused(tmp_path):
    recipe = task_recipe(tmp_path, AUDIO, teacher={**AUDIO["teacher"], "epochs": 1})
    run(recipe, tmp_path / "work", stages=["teacher"])
    checkpoint = {"checkpoint": str(tmp_path / "work/01_teacher/model"), "epochs": 1, "from_scratch": None}
    other = task_recipe(
        tmp_path, AUDIO, teacher=checkpoint, dataset={"audio": {**AUDIO["dataset"]["audio"], "max_length": 12}}
    )
    with pytest.raises(DataError, match=r"`dataset.audio.max_length` is 12, .* says 8"):
        run(other, tmp_path / "other", stages=["teacher"])
    same = task_recipe(tmp_path, AUDIO, teacher=checkpoint)
    run(same, tmp_path / "same", stages=["teacher"])
    assert np.isfinite(read_json(tmp_path / "same/01_teacher/validation.json")["accuracy"])


@pytest.mark.parametrize("path", sorted((load_recipe("digits").folder).glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_read_and_planned_without_data(path):
    from edvit_hf.recipe.stages.plan import plan_recipe

    recipe = load_recipe(path)
    plan = plan_recipe(recipe)
    assert len(plan.sub_models) == recipe.split.num_sub_models
    assert path.read_text().startswith(f"# {path.stem}: "), "a recipe opens with a lab note"
