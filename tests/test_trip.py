"""The whole trip: what is skipped, what is re-run, what is refused, and what it leaves."""

import dataclasses
import fcntl
import json
import shutil

import pytest
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import CheckpointError, DataError, RecipeError, WorkDirError
from edvit_hf.recipe import STAGES, run, running
from edvit_hf.recipe.running import _done, _key, ensemble_dir, stage_dir
from edvit_hf.recipe.schema import TeacherConfig
from tiny_recipe import fingerprint, tiny_recipe, write_tiny_recipe

NAMES = [stage.name for stage in STAGES]


def keys(recipe):
    """The key of every stage, with the keep that the recipe gives."""
    found = {"plan.keep_heads": str(recipe.prune.keep_heads)}
    for stage in STAGES:
        found[stage.name] = _key(stage, recipe, found)
    return {name: found[name] for name in NAMES}


def test_the_trip_leaves_a_folder_ready_to_push(finished_trip):
    _, work = finished_trip
    folder = ensemble_dir(work)
    for name in (
        "README.md",
        "config.json",
        "model.safetensors",
        "fusion.safetensors",
        "preprocessor_config.json",
        "configuration_edvit.py",
        "modeling_edvit.py",
        "manifest.json",
        "results.json",
        "placement.json",
        "onnx/fusion.onnx",
        "sub_models/01/config.json",
        "sub_models/01/model.safetensors",
        "sub_models/01/preprocessor_config.json",
        "sub_models/01/onnx/model.onnx",
    ):
        assert (folder / name).is_file(), name
    assert {"d0", "d1"} == set(json.loads((folder / "placement.json").read_text())["devices"])
    assert not list(work.rglob("*.partial"))


def test_every_stage_records_time_memory_seeds_and_versions(finished_trip):
    _, work = finished_trip
    for name in NAMES:
        done = json.loads((stage_dir(work, name) / "done.json").read_text())
        assert done["seconds"] >= 0
        assert done["peak_memory_mib"] > 50
        assert done["seeds"]["teacher"] == 0
        assert done["versions"]["torch"]


def test_the_results_hold_the_ensemble_and_every_honest_baseline(finished_trip):
    _, work = finished_trip
    results = json.loads((stage_dir(work, "evaluate") / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == [
        "teacher",
        "ensemble",
        "plain model, per-device size",
        "plain model, total size",
        "small CNN",
    ]
    teacher, ensemble, per_device, *_ = results["rows"]
    assert teacher["against_teacher"] is None
    assert ensemble["against_ensemble"] is None
    assert ensemble["against_teacher"]["low"] <= ensemble["against_teacher"]["difference"]
    assert ensemble["parameters_per_device"] * 1.3 > per_device["parameters"] > ensemble["parameters_per_device"] / 1.3
    assert [row["num_absent"] for row in results["absent"]] == [0, 1]
    assert results["absent"][0]["accuracy_mean"] == ensemble["accuracy"]
    assert results["environment"]["machine"]["cores"] >= 1


def test_a_second_run_skips_every_stage(finished_trip):
    path, work = finished_trip
    before = fingerprint(work)
    seen = []
    records = run(tiny_recipe(path.parent), work, observer=lambda stage, what: seen.append((stage, what)))
    assert [record.name for record in records if record.skipped] == NAMES
    assert seen == [(name, "skipped") for name in NAMES]
    assert fingerprint(work) == before


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"export": {"opset": 21}}, {"export", "card"}),
        ({"fuse": {"epochs": 1}}, {"fuse", "evaluate", "export", "card"}),
        ({"fuse": {"hidden_size": 4}}, {"plan", "fuse", "evaluate", "export", "card"}),
        ({"evaluate": {"baselines": False}}, {"evaluate", "card"}),
        ({"card": {"title": "Mine"}}, {"card"}),
        ({"teacher": {"epochs": 1}}, set(NAMES)),
        ({"distill": {"epochs": 1}}, {"distill", "fuse", "evaluate", "export", "card"}),
    ],
)
def test_changing_a_value_re_runs_exactly_the_stages_it_touches(finished_trip, tmp_path, change, touched):
    path, work = finished_trip
    changed = keys(tiny_recipe(tmp_path, **change))
    assert {name for name in NAMES if _done(stage_dir(work, name), changed[name]) is None} == touched
    assert all(_done(stage_dir(work, n), k) is not None for n, k in keys(tiny_recipe(path.parent)).items())


def test_a_stage_without_its_inputs_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="stage 'teacher' has no up-to-date result"):
        run(tiny_recipe(tmp_path), tmp_path / "work", stages=["fuse"])


def test_an_unknown_stage_names_the_known_ones(tmp_path):
    with pytest.raises(RecipeError, match="teacher, split, plan"):
        run(tiny_recipe(tmp_path), tmp_path / "work", stages=["trian"])


def test_a_work_directory_in_use_is_refused(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(WorkDirError, match="in use by another run"):
            run(tiny_recipe(tmp_path), work)


def test_an_unwritable_work_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WorkDirError, match="cannot be written"):
        run(tiny_recipe(tmp_path), tmp_path / "file" / "work")


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="launched as 2 processes"):
        run(tiny_recipe(tmp_path), tmp_path / "work")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prune": {"keep_heads": 3}}, RecipeError, "between 1 and the teacher's 2 heads"),
        ({"split": {"num_sub_models": 11}}, RecipeError, "only 10 classes"),
        ({"split": {"strategy": "given", "class_groups": [[0, 1], []]}}, RecipeError, "class group 1 is empty"),
        ({"split": {"strategy": "given", "class_groups": [[0], [0, 1]]}}, RecipeError, "stands in group 0 and in"),
        ({"teacher": {"from_scratch": {"model_type": "nonsense"}}}, RecipeError, "no stock image classifier"),
        ({"dataset": {"path": "imagefolder", "data_dir": "/nonexistent"}}, DataError, "nonexistent"),
    ],
)
def test_impossible_values_are_refused_before_any_training(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        run(tiny_recipe(tmp_path, **change), tmp_path / "work")
    assert not (stage_dir(tmp_path / "work", "teacher") / "checkpoints").exists()


def test_an_interrupted_clean_up_does_not_leave_a_stage_that_counts_as_done(finished_trip, tmp_path, monkeypatch):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)

    def stopped(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(tmp_path, card={"title": "Mine"}), work)
    assert _done(stage_dir(work, "card"), keys(tiny_recipe(tmp_path))["card"]) is None


def test_other_data_under_the_same_recipe_is_another_run(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, dataset={"local_name": "mine"})
    without = keys(recipe)["teacher"]
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "train-0.parquet").write_bytes(b"1234")
    monkeypatch.setenv("EDVIT_DATA_DIR", str(tmp_path / "data"))
    small = keys(recipe)["teacher"]
    (tmp_path / "data" / "mine" / "train-0.parquet").write_bytes(b"12345")
    assert len({without, small, keys(recipe)["teacher"]}) == 3


def test_results_of_an_earlier_recipe_are_not_shown_as_this_runs(finished_trip, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)
    path = write_tiny_recipe(tmp_path, teacher={"epochs": 1})
    done = CliRunner().invoke(
        app, ["run", str(path), "--work-dir", str(work), "--stages", "teacher", "--format", "json"]
    )
    document = json.loads(done.stdout)
    assert document["results"] is None
    assert document["ensemble"] is None


@pytest.mark.parametrize("section", ["distill", "fuse"])
def test_label_smoothing_is_followed_in_every_training(finished_trip, tmp_path, section):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)
    run(tiny_recipe(tmp_path, **{section: {"label_smoothing": 0.3}}), work, stages=["distill", "fuse"])
    assert fuse_weights(work) != fuse_weights(finished_trip[1])


def fuse_weights(work):
    return (stage_dir(work, "fuse") / "ensemble/fusion.safetensors").read_bytes()


def test_a_checkpoint_folder_can_be_the_teacher_as_it_is(finished_trip, tmp_path):
    import torch
    from transformers import AutoModelForImageClassification

    folder = stage_dir(finished_trip[1], "teacher") / "model"
    recipe = tiny_recipe(tmp_path)
    recipe = dataclasses.replace(recipe, teacher=TeacherConfig(checkpoint=str(folder), epochs=0))
    run(recipe, tmp_path / "work", stages=["teacher", "split", "plan"])
    taken = AutoModelForImageClassification.from_pretrained(stage_dir(tmp_path / "work", "teacher") / "model")
    original = AutoModelForImageClassification.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), original.parameters(), strict=True))
    assert (stage_dir(tmp_path / "work", "plan") / "plan.json").is_file()


def test_a_checkpoint_that_cannot_be_loaded_is_refused(tmp_path):
    recipe = dataclasses.replace(tiny_recipe(tmp_path), teacher=TeacherConfig(checkpoint="no/such-model", epochs=0))
    with pytest.raises(RecipeError, match="cannot be loaded"):
        run(recipe, tmp_path / "work", stages=["teacher"])


def test_a_damaged_sub_model_of_an_earlier_stage_is_named(finished_trip, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)
    weights = stage_dir(work, "prune") / "sub_models/00/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    shutil.rmtree(stage_dir(work, "distill"))
    with pytest.raises(CheckpointError, match=r"04_prune/sub_models/00 cannot be loaded"):
        run(tiny_recipe(finished_trip[0].parent), work)


def damaged(folder, kind):
    """A copy of a teacher checkpoint with one fault."""
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:300])
        return
    tensors = load_file(weights)
    name = next(n for n in tensors if n.endswith("layernorm.weight"))
    if kind == "nan":
        tensors[name] = tensors[name] * float("nan")
    elif kind == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["truncated", "nan", "missing", "misshapen"])
@pytest.mark.parametrize("epochs", [0, 1])
def test_a_damaged_teacher_checkpoint_is_refused(finished_trip, tmp_path, kind, epochs):
    shutil.copytree(stage_dir(finished_trip[1], "teacher") / "model", tmp_path / "teacher")
    damaged(tmp_path / "teacher", kind)
    teacher = TeacherConfig(checkpoint=str(tmp_path / "teacher"), epochs=epochs)
    with pytest.raises((RecipeError, CheckpointError), match="teacher"):
        run(dataclasses.replace(tiny_recipe(tmp_path), teacher=teacher), tmp_path / "work", stages=["teacher"])
    assert not (stage_dir(tmp_path / "work", "teacher") / "model").exists()


def test_a_ready_teacher_with_other_labels_is_refused(finished_trip, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(stage_dir(finished_trip[1], "teacher") / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {k: f"other {v}" for k, v in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    recipe = dataclasses.replace(tiny_recipe(tmp_path), teacher=TeacherConfig(checkpoint=str(folder), epochs=0))
    with pytest.raises(RecipeError, match="classes would be mixed up"):
        run(recipe, tmp_path / "work", stages=["teacher"])
