# SPDX-License-Identifier: Apache-2.0
"""The commands a user types, on a finished trip."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.recipe.running import ensemble_dir
from support.tiny_recipe import write_tiny_recipe

runner = CliRunner()


def invoke(*arguments):
    return runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray(np.kron(np.eye(8, dtype=np.uint8) * 255, np.ones((4, 4), np.uint8))).save(path)
    return path


def test_run_prints_the_table_and_where_the_ensemble_lies(finished_trip):
    path, work = finished_trip
    done = invoke("run", path, "--work-dir", work)
    assert done.exit_code == 0
    assert "plain, N times the size" in done.output
    assert "deploy: " in done.output
    assert "up to date, skipped" in done.output
    assert str(ensemble_dir(work)) in done.output.replace("\n", "")


def test_run_as_json_is_one_document(finished_trip):
    path, work = finished_trip
    done = invoke("run", path, "--work-dir", work, "--format", "json")
    document = json.loads(done.stdout)
    assert document["results"]["rows"][1]["name"] == "ensemble"
    assert all(stage["skipped"] for stage in document["stages"])


def test_plan_needs_no_training(tmp_path):
    done = invoke("plan", write_tiny_recipe(tmp_path), "--format", "json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert {s["device"] for s in document["sub_models"]} == {"d0", "d1"}
    assert document["teacher"]["bytes"] == 4 * document["teacher"]["parameters"]
    assert "times smaller" in invoke("plan", write_tiny_recipe(tmp_path)).output


def test_plan_of_the_deployment_recipe_has_the_promised_keys_and_figures(tmp_path):
    done = invoke("plan", "cifar10_vit_base", "--format", "json", "--figure", tmp_path / "plan.png")
    document = json.loads(done.stdout)
    teacher, sub_models = document["teacher"], document["sub_models"]
    assert set(teacher) == {"parameters", "bytes", "macs"}
    assert round(teacher["parameters"] / 1e6, 2) == 85.81
    for sub_model in sub_models:
        assert {"device", "classes", "parameters", "bytes", "macs", "predicted_ms"} <= set(sub_model)
        assert round(sub_model["parameters"] / 1e6, 2) == 2.50
        # Its own two outputs make it a little smaller than the same cut with all ten, which is what papers compare.
        assert round(teacher["parameters"] / sub_model["parameters"], 2) == 34.27
        assert round(teacher["macs"] / sub_model["macs"], 2) == 29.11
    assert (document["same_head"]["size_ratio"], document["same_head"]["macs_ratio"]) == (34.26, 29.11)
    assert sorted(s["device"] for s in sub_models) == [f"pi-{i}" for i in range(10)]
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_plan_takes_another_fleet_and_way_of_placing():
    done = invoke("plan", "cifar10_vit_base", "--fleet", "five_x86", "--placement", "greedy", "--format", "json")
    document = json.loads(done.stdout)
    assert (document["fleet"], document["placement"]["method"]) == ("five_x86", "greedy")
    assert document["latency_ms"] is None  # nothing tells the speed of a generic x86 machine
    assert invoke("plan", "cifar10_vit_base", "--fleet", "nowhere").exit_code == 1


def test_predict_names_the_class_every_vote_and_what_an_absence_changes(finished_trip, picture):
    folder = ensemble_dir(finished_trip[1])
    report = json.loads(invoke("predict", folder, picture, "--format", "json").stdout)
    assert report["label"] in report["probabilities"]
    assert sum(report["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert [vote["present"] for vote in report["votes"]] == [True, True]
    assert [w["sub_model"] for w in report["without"]] == [0, 1]
    table = invoke("predict", folder, picture)
    assert table.exit_code == 0
    assert report["label"] in table.output


def test_predict_without_a_sub_model_gives_the_announced_answer(finished_trip, picture):
    folder = ensemble_dir(finished_trip[1])
    whole = json.loads(invoke("predict", folder, picture, "--format", "json").stdout)
    dropped = json.loads(invoke("predict", folder, picture, "--drop", 1, "--format", "json").stdout)
    assert dropped["votes"][1]["vote"] is None
    assert dropped["label"] == whole["without"][1]["label"]
    assert dropped["probability"] == pytest.approx(whole["without"][1]["probability"], abs=1e-6)


def test_predict_with_every_sub_model_dropped_is_refused(finished_trip, picture):
    done = invoke("predict", ensemble_dir(finished_trip[1]), picture, "--drop", 0, "--drop", 1)
    assert done.exit_code == 1


def test_evaluate_agrees_with_the_results_of_the_run(finished_trip):
    folder = ensemble_dir(finished_trip[1])
    report = json.loads(invoke("evaluate", folder, "--format", "json").stdout)
    results = json.loads((folder / "results.json").read_text())
    assert report["rows"][0]["accuracy"] == pytest.approx(results["rows"][1]["accuracy"], abs=1e-9)
    assert [row["absent"] for row in report["rows"]] == [[], [0], [1]]
    assert report["verdict"] == results["choice"]["verdict"]
    for measured, recorded in zip(report["absent"], results["absent"], strict=True):
        assert measured == pytest.approx(recorded, abs=1e-9), "onnxruntime answers as torch did"
    done = invoke("evaluate", folder, "--precision", "int8", "--max-items", 10)
    assert done.exit_code == 0
    assert done.output.rstrip().endswith(results["choice"]["verdict"]), "it ends with what to deploy"
    done = invoke("evaluate", folder, "--max-items", 0)
    assert done.exit_code == 1
    assert "at least one item" in done.output


def test_the_card_says_what_the_runtime_answers_and_evaluate_measures_it_anew(finished_trip, tmp_path):
    folder = tmp_path / "ensemble"
    shutil.copytree(ensemble_dir(finished_trip[1]), folder)
    results = json.loads((folder / "results.json").read_text())
    recorded = results["runtime"].pop("variants")
    assert next(iter(recorded)) == "fp32"
    assert [row["num_absent"] for row in recorded["fp32"]["absent"]] == [0, 1]
    assert "answered by the runtime" in (folder / "README.md").read_text()

    del results["runtime"], results["choice"]
    (folder / "results.json").write_text(json.dumps(results))
    measured = json.loads(invoke("evaluate", folder, "--save", "--format", "json").stdout)
    saved = json.loads((folder / "results.json").read_text())["runtime"]
    assert saved == measured
    assert saved["variants"] == recorded
    assert saved["command"] == "edvit evaluate DIR --save"

    assert saved["dataset"] == results["dataset"]["test"]
    assert saved["is_own_data"]
    said = invoke("evaluate", folder, "--max-items", 3).output
    assert "what to deploy: the results in DIR do not say" in said, "as those of an earlier version"

    done = invoke("evaluate", folder, "--save", "--max-items", 3)
    assert done.exit_code == 1
    assert "--max-items" in done.output
    (folder / "results.json").unlink()
    done = invoke("evaluate", folder, "--save")
    assert done.exit_code == 1
    assert "results.json" in done.output


def test_evaluate_takes_a_file_that_only_names_data_and_the_card_shows_what_is_other_as_what_it_is(
    finished_trip, tmp_path
):
    folder = tmp_path / "ensemble"
    shutil.copytree(ensemble_dir(finished_trip[1]), folder)
    own = json.loads((folder / "results.json").read_text())["runtime"]
    path = tmp_path / "few.yaml"
    path.write_text("dataset: {path: digits, max_test_samples: 30}\n")
    shown = invoke("evaluate", folder, "--recipe", path, "--max-items", 20).output
    assert "measured on digits, split test, at most 30, 30 items, the first 20 of them; other data than" in _flat(shown)
    shown = invoke("evaluate", folder, "--recipe", path, "--save").output
    assert "measured on digits, split test, at most 30, 30 items; other data than the results in DIR" in _flat(shown)
    assert invoke("card", folder).exit_code == 0
    card = (folder / "README.md").read_text()
    assert json.loads((folder / "results.json").read_text())["runtime"] == own
    line = next(line for line in card.splitlines() if line.startswith("| digits, split test, at most 30, 30 items | `"))
    assert line.endswith("| `edvit evaluate DIR --recipe few --save` |")
    assert "### On other data" in card
    assert "test items of digits, split test, at most 60 (fingerprint `" in card
    assert f"measured on {own['num_items']} items" not in line


def _flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dataset: {path: digits, max_tets_samples: 30}", "max_test_samples"),
        ("task: image-classification", "dataset"),
        ("task: audio-classification\ndataset: {path: digits}", "audio-classification"),
        ("dataset: {path: digits}\nfleet: x.yaml", "teacher"),
        ("[]", "mapping"),
        ("{}", "dataset"),
    ],
)
def test_a_file_that_only_names_data_is_read_strictly(finished_trip, tmp_path, content, message):
    (tmp_path / "data.yaml").write_text(content)
    done = invoke("evaluate", ensemble_dir(finished_trip[1]), "--recipe", tmp_path / "data.yaml")
    assert done.exit_code == 1
    assert message in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "does not exist"),
        (("plan", "nowhere.yaml"), "does not exist"),
        (("evaluate", "/nonexistent"), "exported ensemble"),
        (("predict", "/nonexistent", "x.png"), "exported ensemble"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_1(arguments, message):
    done = invoke(*arguments)
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


def test_predict_on_something_that_is_no_image(finished_trip, tmp_path):
    (tmp_path / "not.png").write_text("hello")
    done = invoke("predict", ensemble_dir(finished_trip[1]), tmp_path / "not.png")
    assert done.exit_code == 1
    assert "image" in done.output


def test_a_wrong_command_line_is_exit_code_2():
    assert invoke("run").exit_code == 2
    assert invoke("fly").exit_code == 2


def test_doctor_reports_machine_versions_and_threads(monkeypatch):
    done = invoke("doctor", "--offline", "--format", "json")
    report = json.loads(done.stdout)
    assert done.exit_code == (0 if report["healthy"] else 3)
    assert report["versions"]["torch"]
    assert {f["subject"] for f in report["findings"]} >= {"threads"}


@pytest.mark.parametrize(
    ("installed", "subject"),
    [
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, "torch and torchvision"),
        ({"torch": "2.13.0+cpu", "timm": "1.0.31"}, "timm without torchvision"),
        ({"torch": "2.13.0+cpu", "optimum-onnx": "0.1.0"}, "optimum-onnx and transformers 5"),
    ],
)
def test_doctor_knows_the_bad_pairs(monkeypatch, installed, subject):
    from edvit_hf.cli import machine

    monkeypatch.setattr(machine, "_installed", installed.get)
    assert [f.subject for f in machine._bad_pairs() if f.level == "bad"] == [subject]


def test_doctor_says_whether_the_hub_can_be_reached(monkeypatch):
    from edvit_hf.cli import machine

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "not reachable" in machine._hub(0.5).text


@pytest.mark.parametrize("command", ["run", "plan", "evaluate", "predict", "doctor"])
def test_help_says_what_the_command_does(command):
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert len(done.output) > 300
