# SPDX-License-Identifier: Apache-2.0
"""The whole trip: what is skipped, what is re-run, what is refused, and what it leaves."""

import dataclasses
import fcntl
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.data.contents import FileHashes
from edvit_hf.errors import CheckpointError, DataError, PruningError, RecipeError, WorkDirError
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.planning.splitting import similarity_within
from edvit_hf.recipe import STAGES, run, staging
from edvit_hf.recipe.running import ensemble_dir, stage_dir
from edvit_hf.recipe.schema import TeacherConfig
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.recipe.staging import key_of, stored_record
from edvit_hf.recipe.trip import load_array, load_model
from support.tiny_recipe import fingerprint, tiny_recipe, write_tiny_recipe

NAMES = [stage.name for stage in STAGES]


KEEP_NOTHING = {"keep_heads": "auto", "keep_ratios": {"residual": 0.5, "attention": 0.1, "ffn": 0.5}}


def keys(recipe):
    """The key of every stage, with the keep that the recipe gives."""
    found = {"plan.keep_heads": str(recipe.prune.keep_heads)}
    for stage in STAGES:
        found[stage.name] = key_of(stage, recipe, found, stage.sources(recipe, FileHashes()))
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
        "replicas",
        "plain, N times the size",
        "copies",
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
        ({"split": {"strategy": "similarity"}}, set(NAMES) - {"teacher"}),
        ({"prune": {"compensate": False}}, set(NAMES) - {"teacher", "split", "plan"}),
        ({"prune": {"attention": "merged"}}, set(NAMES) - {"teacher", "split"}),
        ({"dataset": {"num_labels": None}}, set()),
        ({"prune": {"rounds": 1}}, set()),
    ],
)
def test_changing_a_value_re_runs_exactly_the_stages_it_touches(finished_trip, tmp_path, change, touched):
    path, work = finished_trip
    changed = keys(tiny_recipe(tmp_path, **change))
    assert {
        name for name in NAMES if stored_record(stage_dir(work, name) / "done.json", changed[name]) is None
    } == touched
    assert all(
        stored_record(stage_dir(work, n) / "done.json", k) is not None
        for n, k in keys(tiny_recipe(path.parent)).items()
    )


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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prune": {"keep_heads": 3}}, PruningError, "between 1 and the teacher's 2 heads"),
        ({"split": {"num_sub_models": 11}}, RecipeError, "only 10 classes"),
        ({"split": {"strategy": "given", "class_groups": [[0, 1], []]}}, RecipeError, "class group 1 is empty"),
        ({"split": {"strategy": "given", "class_groups": [[0], [0, 1]]}}, RecipeError, "stand in no class group"),
        ({"split": {"strategy": "given", "class_groups": [[*range(10)], [0]]}}, RecipeError, "in group 0 and in"),
        ({"teacher": {"from_scratch": {"model_type": "nonsense"}}}, PruningError, "known: audio-spect"),
        ({"dataset": {"path": "imagefolder", "data_dir": "/nonexistent"}}, DataError, "nonexistent"),
        ({"dataset": {"num_labels": 9}}, RecipeError, "has 10 classes"),
        ({"split": {"sizes": "proportional"}}, RecipeError, "profile 'x86-avx2' of device 'd0' states none"),
        ({"split": {"strategy": "similarity", "num_sub_models": 11}}, RecipeError, "only 10 classes"),
        ({"prune": {"keep_heads": 1, "rounds": 2}}, RecipeError, "only 1 of 2 heads"),
        ({"prune": KEEP_NOTHING}, PruningError, "rounds to zero"),
        ({"prune": {"keep_heads": [1, 3]}}, PruningError, "between 1 and the teacher's 2 heads"),
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

    monkeypatch.setattr(staging.shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(tmp_path, card={"title": "Mine"}), work)
    assert stored_record(stage_dir(work, "card") / "done.json", keys(tiny_recipe(tmp_path))["card"]) is None


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


def test_a_class_group_without_training_items_is_refused_before_any_training(tmp_path):
    pixels, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2
    for split in ("train", "test"):
        for name in "abc":
            (tmp_path / "data" / split / name).mkdir(parents=True)
        for index, label in enumerate(labels):
            Image.fromarray(pixels[index]).save(tmp_path / "data" / split / "ab"[label] / f"{index}.png")
    Image.fromarray(pixels[0]).save(tmp_path / "data" / "test" / "c" / "0.png")
    data = {"path": "imagefolder", "data_dir": str(tmp_path / "data"), "num_labels": 3, "max_train_samples": None}
    data["on_overlap"] = "keep"  # all pictures are alike
    recipe = tiny_recipe(tmp_path, dataset=data, split={"strategy": "given", "class_groups": [[0, 1], [2]]})
    with pytest.raises(DataError, match=r"class group 1 .classes \[2\]. has no item"):
        run(recipe, tmp_path / "work", stages=["teacher"])


@pytest.fixture
def ready_teacher(finished_trip):
    """A recipe that takes the finished trip's teacher as it is, with these promised sizes."""

    def recipe(folder, **config):
        model = stage_dir(finished_trip[1], "teacher") / "model"
        promised = {"model_type": "vit", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
        promised |= {"intermediate_size": 32, "patch_size": 4, "image_size": 8} | config
        teacher = TeacherConfig(checkpoint=str(model), epochs=0, config={k: v for k, v in promised.items() if v})
        return dataclasses.replace(tiny_recipe(folder), teacher=teacher)

    return recipe


def test_a_checkpoint_that_agrees_with_the_promised_sizes_is_taken(ready_teacher, tmp_path):
    run(ready_teacher(tmp_path, num_labels=3), tmp_path / "work", stages=["teacher"])
    assert (stage_dir(tmp_path / "work", "teacher") / "model").is_dir()


@pytest.mark.parametrize(
    ("promised", "message"),
    [
        ({"hidden_size": 32}, "hidden_size = 32, the checkpoint has 16"),
        ({"image_size": 224}, "image_size = 224, the checkpoint has 8"),
        ({"model_type": "deit"}, "model_type = 'deit', the checkpoint has 'vit'"),
        ({"intermediate_size": None}, "ffn = 3072, the checkpoint has 32"),  # planning took the stock default
    ],
)
def test_a_checkpoint_that_differs_from_the_promised_sizes_is_refused(ready_teacher, tmp_path, promised, message):
    with pytest.raises(RecipeError, match=message):
        run(ready_teacher(tmp_path, **promised), tmp_path / "work", stages=["teacher"])


def test_groups_by_similarity_follow_the_trained_teachers_confusions(finished_trip, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)
    within = {}
    for kind in ("group", "separate"):
        recipe = tiny_recipe(tmp_path, split={"strategy": "similarity", "similarity": kind})
        run(recipe, work, stages=["split", "plan"])
        found = json.loads((stage_dir(work, "split") / "class_groups.json").read_text())
        matrix = load_array(stage_dir(work, "split") / "confusions.safetensors")
        assert matrix.shape == (10, 10)
        assert (matrix == matrix.T).all()
        assert 0 < matrix.sum() < 10  # probabilities given to other classes, one row of them per class
        assert sorted(len(g) for g in found["class_groups"]) == [5, 5]
        assert found["similarity_within"] == pytest.approx(similarity_within(found["class_groups"], matrix))
        within[kind] = found["similarity_within"]
    balanced = json.loads((stage_dir(finished_trip[1], "split") / "class_groups.json").read_text())["class_groups"]
    assert within["separate"] < similarity_within(balanced, matrix) < within["group"]


def test_overlapping_groups_are_planned_with_their_own_outputs(finished_trip, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)
    recipe = tiny_recipe(tmp_path, split={"num_sub_models": 3, "coverage": 2})
    run(recipe, work, stages=["split", "plan"])
    found = json.loads((stage_dir(work, "split") / "class_groups.json").read_text())
    groups = found["class_groups"]
    assert found["focus_groups"] == groups
    assert sorted(c for group in groups for c in group) == sorted([*range(10)] * 2)
    planned = json.loads((stage_dir(work, "plan") / "plan.json").read_text())["sub_models"]
    assert [entry["classes"] for entry in planned] == groups
    assert [entry["widths"]["labels"] for entry in planned] == [len(group) + 1 for group in groups]
    assert plan_recipe(recipe).to_dict()["sub_models"] == planned


def test_generalists_are_cut_for_their_groups_and_planned_with_an_output_for_every_class(finished_trip, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)
    recipe = tiny_recipe(tmp_path, split={"coverage": 1}, distill={"votes": "all"}, fuse={"kind": "average"})
    run(recipe, work, stages=["split", "plan"])
    found = json.loads((stage_dir(work, "split") / "class_groups.json").read_text())
    assert found["class_groups"] == [list(range(10))] * 2
    assert sorted(c for group in found["focus_groups"] for c in group) == list(range(10))
    planned = json.loads((stage_dir(work, "plan") / "plan.json").read_text())
    assert [entry["widths"]["labels"] for entry in planned["sub_models"]] == [10, 10]
    assert planned["fusion_parameters"] == 0
    assert plan_recipe(recipe).to_dict()["sub_models"] == planned["sub_models"]


def test_group_sizes_follow_the_speed_of_the_devices(finished_trip, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)
    recipe = tiny_recipe(tmp_path, split={"sizes": "proportional"})
    devices = [{"name": "slow", "profile": "raspberry-pi-4b"}, {"name": "fast", "profile": "raspberry-pi-5"}]
    (tmp_path / "fleet.yaml").write_text(json.dumps({"devices": devices}))
    run(recipe, work, stages=["split", "plan"])
    groups = json.loads((stage_dir(work, "split") / "class_groups.json").read_text())["class_groups"]
    speeds = [load_profiles()[d["profile"]].sustained_gflops for d in devices]
    assert len(groups[0]) < len(groups[1])
    assert abs(len(groups[0]) - 10 * speeds[0] / sum(speeds)) <= 0.5


@pytest.mark.parametrize(
    ("prune", "shape"),
    [
        ({"keep_heads": 1, "attention": "thin"}, (8, 2, 4, 16)),
        ({"keep_heads": 1, "attention": "merged"}, (8, 1, 8, 16)),
        ({"keep_heads": [1, 2]}, (8, 1, 8, 16)),
        ({"keep_heads": "auto", "keep_ratios": {"residual": 1.0, "attention": 0.5, "ffn": 0.25}}, (16, 1, 8, 8)),
    ],
    ids=["thin", "merged", "per sub-model", "ratios"],
)
def test_every_way_of_cutting_makes_a_stock_sub_model_of_the_planned_sizes(finished_trip, tmp_path, prune, shape):
    work = tmp_path / "work"
    shutil.copytree(finished_trip[1], work)
    run(tiny_recipe(tmp_path, prune=prune), work, stages=["plan", "prune", "distill", "fuse"])
    config = load_model(stage_dir(work, "prune") / "sub_models/00").config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (config.hidden_size, config.num_attention_heads, head_dim, config.intermediate_size) == shape
    planned = json.loads((stage_dir(work, "plan") / "plan.json").read_text())["sub_models"]
    for index in range(2):
        built = load_model(stage_dir(work, "distill") / f"sub_models/{index:02d}")
        assert sum(p.numel() for p in built.parameters()) == planned[index]["parameters"]


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
