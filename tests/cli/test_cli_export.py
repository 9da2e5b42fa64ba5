# SPDX-License-Identifier: Apache-2.0
"""`edvit export`: in place, gated on the data that the folder names, and never half-written."""

import json
import logging
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import DataError, ManifestError, RecipeError
from edvit_hf.export import ExportConfig
from edvit_hf.export.build import GraphBuilder
from edvit_hf.hardware.profiles import (
    FIGURES,
    LATENCY_FEATURES,
    DeviceProfile,
    load_profiles,
    save_profile,
    shipped_kind,
)
from edvit_hf.manifest import Manifest
from edvit_hf.published import export as exporting
from edvit_hf.published.export import export_folder, fleet_profiles
from edvit_hf.recipe import load_recipe
from edvit_hf.recipe.running import ensemble_dir
from support.ready import Process
from support.tiny_export import EVERYTHING

pytestmark = pytest.mark.slow


def invoke(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def folder(finished_trip, tmp_path):
    """A copy of a finished ensemble of digits, with the results that name its dataset."""
    shutil.copytree(ensemble_dir(finished_trip[1]), tmp_path / "ensemble")
    return tmp_path / "ensemble"


def test_new_variants_join_the_former_ones_and_are_gated_on_the_validation_split(folder):
    before = Manifest.load(folder)
    results = json.loads((folder / "results.json").read_text())["dataset"]
    done = invoke("export", folder, "--profile", "raspberry-pi-5", "--profile", "raspberry-pi-4b", "--format", "json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    manifest = Manifest.load(folder)
    manifest.verify_files(folder)
    former = [v.name for v in before.sub_models[0].variants]
    assert [row["name"] for row in report["variants"]] == ["fp32", "qint8_arm64", *(n for n in former if n != "fp32")]
    row = report["variants"][1]
    assert row["profiles"] == ["raspberry-pi-5", "raspberry-pi-4b"]
    assert row["num_files"] == len(manifest.sub_models)
    assert row["gate"]["split"] == "validation"
    assert row["gate"]["num_items"] == results["num_validation_items"]
    assert row["gate"]["passed"]
    assert (row["accuracy"]["split"], row["accuracy"]["num_items"]) == ("test", results["num_test_items"])
    assert row["weight_ratio"] == row["gate"]["weight_ratio"] < 0.5
    assert row["accuracy"]["dataset"]["name"] == "digits"
    kept = next(v for v in manifest.sub_models[0].variants if v.name == former[1])
    assert kept == before.sub_models[0].variants[1]
    assert report["accuracy_note"] is None
    assert manifest.ensemble.gates[former[1]] == before.ensemble.gates[former[1]]
    assert manifest.ensemble.content_hash == before.ensemble.content_hash
    assert [each["file"] for each in report["whole"]] == ["onnx/model.onnx", "onnx/model_quantized.onnx"]


def _without_data(folder, monkeypatch, *, is_damaged):
    if is_damaged:
        (folder / "results.json").unlink()
    else:
        monkeypatch.setattr("edvit_hf.published.data.load_task", _no_data)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_gate_that_cannot_run_is_a_refusal_and_leaves_the_folder_as_it_was(folder, monkeypatch, is_damaged):
    _without_data(folder, monkeypatch, is_damaged=is_damaged)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    done = invoke("export", folder, "--profile", "raspberry-pi-5")
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    for part in ("judge int8 by", "--data-dir", "--without-accuracy-gate", "--precision fp32"):
        assert part in said
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("is_damaged", [False, True])
def test_where_no_gate_is_due_parity_alone_is_measured_and_the_reason_recorded(folder, monkeypatch, caplog, is_damaged):
    given = {}
    monkeypatch.setattr(exporting, "export_ensemble", lambda folder, **values: given.update(values))
    _without_data(folder, monkeypatch, is_damaged=is_damaged)
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        export_folder(folder, ExportConfig(precisions=("fp32",)), progress=False)
    assert given["gate"] is given["report"] is given["calibration"] is None
    assert len(given["inputs"]["pixel_values"]) == 64
    expected = "nothing says which dataset it belongs to" if is_damaged else "its dataset was not at hand"
    assert given["no_accuracy"] == f"not measured: {expected} where it was exported"  # and no path of this machine
    assert "no accuracy gate is passed" in caplog.text


def test_an_export_without_its_gate_says_so_in_the_manifest_and_on_the_card(folder):
    done = invoke("export", folder, "--profile", "raspberry-pi-5", "--without-accuracy-gate", "--no-whole")
    assert done.exit_code == 0, done.output
    assert "passed no gate: qint8_arm64" in done.output
    manifest = Manifest.load(folder)
    assert "qint8_arm64" not in manifest.ensemble.gates
    reason = "it was exported without an accuracy gate, as asked"
    assert manifest.ensemble.accuracy_note == "qint8_arm64 passed no accuracy gate"
    added = manifest.sub_models[0].variant("int8", "raspberry-pi-5")
    assert added.accuracy is None
    assert added.accuracy_note == f"not measured: {reason}"
    assert invoke("card", folder).exit_code == 0
    assert f"- `qint8_arm64` passed no accuracy gate; not measured: {reason}." in (folder / "README.md").read_text()


def _no_data(*_, **__):
    raise DataError("Expected data in /home/somebody/data, found none.")


def test_a_dataset_that_is_named_must_be_there_and_belong_to_the_ensemble(finished_trip, folder, monkeypatch):
    recipe = load_recipe(finished_trip[0])
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["0"] = "nought"
    config["label2id"] = {name: int(label) for label, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="only there: '0'; missing there: 'nought'"):
        export_folder(folder, ExportConfig(), recipe=recipe)
    monkeypatch.setattr("edvit_hf.published.data.load_task", _no_data)
    with pytest.raises(DataError, match="found none"):
        export_folder(folder, ExportConfig(), recipe=recipe)


def test_classes_in_another_order_are_told_by_name_and_every_figure_names_its_data(finished_trip, folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    names = list(config["id2label"].values())[::-1]
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    config["label2id"] = {name: index for index, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    given = {}
    monkeypatch.setattr(exporting, "export_ensemble", lambda folder, **values: given.update(values))
    export_folder(folder, ExportConfig(), recipe=load_recipe(finished_trip[0]), progress=False)
    results = json.loads((folder / "results.json").read_text())

    def first_class(inputs):
        return np.eye(10, dtype=np.float32)[np.zeros(len(inputs["pixel_values"]), int)]

    answers = given["report"](first_class)
    nines = sum(load_digits_labels(results) == 9)
    assert int(answers.correct.sum()) == nines, "id 0 is the class called 9 now"
    row = answers.to_row()
    assert row["dataset"] == results["dataset"]["test"]
    assert row["dataset"]["name"] == "digits"
    assert row["is_own_data"] is True
    assert row["command"] == "edvit export DIR --recipe tiny"


def load_digits_labels(results):
    from edvit_hf.data import Augmentation, load_task
    from edvit_hf.data.config import dataset_from_values

    return load_task(dataset_from_values(results["recipe_values"]["dataset"]), Augmentation()).test.labels


def test_an_interruption_leaves_the_former_state(folder, monkeypatch):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def interrupt(self):
        assert (folder / ".export").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(GraphBuilder, "draw_sub_models", interrupt)
    done = invoke("export", folder, "--profile", "raspberry-pi-5")
    assert done.exit_code == 130
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert not (folder / ".export").exists()


def test_a_killed_export_leaves_the_former_state(folder):
    former = Manifest.load(folder)
    process = Process("from edvit_hf.cli import main; main()", "export", folder, "--profile", "raspberry-pi-5")
    try:
        deadline = time.monotonic() + 180
        while not list((folder / ".export").rglob("*.onnx")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert (folder / ".export").is_dir()
    assert Manifest.load(folder) == former
    former.verify_files(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "raspberry-pi5"], "Did you mean `raspberry-pi-5`"),
        (["--opset", "7"], "`opset`"),
        (["--fleet", "none.yaml"], "none.yaml"),
    ],
)
def test_a_setting_that_cannot_be_is_one_message(tmp_path, arguments, message):
    done = invoke("export", tmp_path, *arguments)
    assert (done.exit_code, message in done.output.replace("\n", " ")) == (1, True), done.output


def test_a_folder_without_an_ensemble_is_refused(tmp_path):
    done = invoke("export", tmp_path)
    assert done.exit_code == 1
    assert "Expected a saved ensemble" in done.output


def test_a_fleet_stands_for_the_kinds_of_its_devices(tmp_path):
    measured = DeviceProfile(
        name="my-pi5",
        isa="armv8.2-a+dotprod",
        quantization="arm64",
        memory_mib=8063,
        cores=4,
        sustained_gflops=61.5,
        watts=None,
        sources=dict.fromkeys(FIGURES, "measured: a test"),
        latency=dict.fromkeys(LATENCY_FEATURES, 1e-3),
    )
    save_profile(measured, tmp_path / "mine.yaml")
    profiles = {"a": "x86-avx2", "b": "mine.yaml", "c": "x86-avx2"}
    devices = [{"name": name, "profile": profile} for name, profile in profiles.items()]
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({"devices": devices}))
    assert fleet_profiles(tmp_path / "fleet.yaml") == ("x86-avx2", "raspberry-pi-5")
    odd = DeviceProfile(name="odd", isa="armv9", quantization="arm64", sources=dict.fromkeys(FIGURES, "null: a test"))
    assert shipped_kind(odd) == "arm64"
    for name, profile in load_profiles().items():
        assert shipped_kind(profile) == name
    with pytest.raises(RecipeError):
        fleet_profiles(tmp_path / "none.yaml")
    assert EVERYTHING  # the kinds that the other tests export for are all shipped ones
    assert set(EVERYTHING) <= set(load_profiles())


@pytest.mark.parametrize("kinds", [["int4"], ["int8", "int8"], "int8", [1]])
def test_a_profile_that_asks_for_what_no_export_writes_is_refused(kinds):
    with pytest.raises(ManifestError, match="`export` must list"):
        DeviceProfile(
            name="x", isa="avx2", quantization="avx2", sources=dict.fromkeys(FIGURES, "null: a test"), export=kinds
        )


def test_the_profiles_that_ship_say_what_is_exported_for_them():
    text = Path(load_profiles.__wrapped__.__code__.co_filename).with_name("devices.yaml").read_text()
    written = {name: entry["export"] for name, entry in yaml.safe_load(text).items() if "export" in entry}
    assert set(written) == {"jetson-nano", "jetson-orin-nano"}
    for name, profile in load_profiles().items():
        assert list(profile.export) == written.get(name, ["int8"])
