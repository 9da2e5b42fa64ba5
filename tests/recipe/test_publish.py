# SPDX-License-Identifier: Apache-2.0
"""What is published: figures of the test split, the rule that accepted int8, and no folder of this machine."""

import dataclasses
import json

import pytest

from edvit_hf.recipe import STAGES, load_recipe
from edvit_hf.recipe.running import ensemble_dir, stage_dir
from edvit_hf.recipe.stages.publish import card, without_folders
from edvit_hf.recipe.trip import Trip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/data/mnist", "mnist"),
        ("/home/me/data/mnist/", "mnist"),
        ("~/data/mnist", "mnist"),
        ("C:\\Users\\me\\mnist", "mnist"),
        ("ylecun/mnist", "ylecun/mnist"),
        ("fleets/five_x86.yaml", "fleets/five_x86.yaml"),
        ({"teacher": {"checkpoint": "/srv/vit"}}, {"teacher": {"checkpoint": "vit"}}),
        ((0.5, "/a/b"), [0.5, "b"]),
        (None, None),
        (0.5, 0.5),
    ],
)
def test_absolute_paths_keep_their_last_component_only(value, expected):
    assert without_folders(value) == expected


def test_no_folder_of_this_machine_is_published(finished_trip, tmp_path):
    path, work = finished_trip
    recipe = load_recipe(path)
    folder = "/home/somebody/secret-project"
    recipe = dataclasses.replace(
        recipe,
        dataset=dataclasses.replace(recipe.dataset, data_dir=f"{folder}/digits"),
        teacher=dataclasses.replace(recipe.teacher, checkpoint=f"{folder}/vit", from_scratch=None),
    )
    folders = {stage.name: stage_dir(work, stage.name) for stage in STAGES}
    results = json.loads((folders["evaluate"] / "results.json").read_text())
    results["recipe_values"]["dataset"]["data_dir"] = f"{folder}/digits"
    results["recipe_values"]["teacher"]["checkpoint"] = f"{folder}/vit"
    results["command"] = f"edvit run {folder}/digits.yaml --seed 0"
    results["dataset"]["label_names"][3] = "/m/03"  # a label name is no path, whatever it looks like
    folders["evaluate"], folders["card"] = tmp_path / "evaluate", tmp_path / "card"
    folders["evaluate"].mkdir()
    (folders["evaluate"] / "results.json").write_text(json.dumps(results))
    trip = Trip(recipe, folders)
    vars(trip)["data"] = Trip(load_recipe(path), folders).data  # the folder is of another machine
    card(trip)
    published = tmp_path / "card" / "ensemble"
    for name in ("results.json", "README.md", "placement.json", "manifest.json"):
        assert "somebody" not in (published / name).read_text(), name
    written = json.loads((published / "results.json").read_text())
    assert written["recipe_values"]["dataset"]["data_dir"] == "digits"
    assert written["recipe_values"]["teacher"]["checkpoint"] == "vit"
    assert written["dataset"]["label_names"][3] == "/m/03"
    assert written["command"] == "edvit run digits.yaml --seed 0"
    assert [stage["name"] for stage in written["stages"]] == [*(s["name"] for s in results["stages"]), "export"]
    assert written["rows"] == results["rows"]


def test_int8_was_accepted_on_validation_and_every_accuracy_is_of_the_whole_test_split(finished_trip):
    folder = ensemble_dir(finished_trip[1])
    manifest = json.loads((folder / "manifest.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    ensemble, sizes = manifest["ensemble"], results["dataset"]
    assert {(r["split"], r["num_items"]) for r in ensemble["accuracy"].values()} == {("test", sizes["num_test_items"])}
    (gate,) = ensemble["gates"].values()
    assert (gate["split"], gate["num_items"]) == ("validation", sizes["num_validation_items"])
    assert ensemble["accuracy"]["fp32"]["accuracy"] == pytest.approx(results["rows"][1]["accuracy"])
    for entry, measured in zip(manifest["sub_models"], results["sub_models"], strict=True):
        fp32 = entry["variants"][0]["accuracy"]
        assert (fp32["split"], fp32["num_items"]) == ("test", sizes["num_test_items"])
        assert fp32["accuracy"] == pytest.approx(measured["vote_accuracy"])
        assert fp32["group_accuracy"] == pytest.approx(measured["group_accuracy"])
    card = (folder / "README.md").read_text()
    assert f"validation, {gate['num_items']} items" in card
    assert len(gate["groups"]) == len(manifest["class_groups"])
    assert [variant["file"] for variant in manifest["whole"]] == ["onnx/model.onnx", "onnx/model_quantized.onnx"]
    assert "path/to/this/folder" in card
