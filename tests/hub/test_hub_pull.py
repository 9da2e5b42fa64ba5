# SPDX-License-Identifier: Apache-2.0
"""`edvit pull`: what one device needs and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edvit_hf.bench import bench_ensemble
from edvit_hf.cli import app
from edvit_hf.errors import HubError, ManifestError
from edvit_hf.hub import pull, select_by_profile
from edvit_hf.hub.selection import select_by_placement
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime import EDViTRuntime
from support.fresh import run_without
from support.hub_ensemble import PROFILES, REPO, files_of, pull_small, write_publishable

pytest_plugins = ["support.hub_fixtures"]
runner = CliRunner()
KIB_128 = 128 * 1024


def test_a_device_gets_its_graph_config_processor_and_the_manifest_and_nothing_else(published, hub, tmp_path):
    repository, root = published
    done = pull_small(tmp_path / "pi")
    files = ["sub_models/02/onnx/model_qint8_arm64.onnx", "sub_models/02/config.json", "preprocessor_config.json"]
    assert files_of(tmp_path / "pi") == {f: (root / f).read_bytes() for f in [*files, "manifest.json"]}
    on_disk = sum(p.stat().st_size for p in (tmp_path / "pi").rglob("*") if p.is_file())
    assert done.bytes_on_disk == on_disk
    variant = done.selection.variants[2]
    assert on_disk == sum(len((root / f).read_bytes()) for f in [*files, "manifest.json"])
    assert on_disk <= variant.bytes + KIB_128
    assert done.revision == repository.branches["main"]
    asked = {line.split("/resolve/")[1].partition("/")[2] for line in hub.seen("/resolve/")}
    assert asked == {"manifest.json", *files}
    assert sorted(p.name for p in tmp_path.iterdir() if "pi" in p.name) == ["pi"]  # nothing is left beside it


def test_a_second_pull_asks_for_the_manifest_alone_and_a_damaged_file_for_itself(published, hub, tmp_path):
    pull_small(tmp_path / "pi")
    hub.requests.clear()
    again = pull_small(tmp_path / "pi")
    assert again.unchanged
    assert again.bytes_fetched == 0
    assert all("manifest.json" in line for line in hub.seen("(GET|HEAD) /lab/tiny/resolve|/cdn/"))
    graph = tmp_path / "pi/sub_models/02/onnx/model_qint8_arm64.onnx"
    graph.write_bytes(b"x" * graph.stat().st_size)
    hub.requests.clear()
    mended = pull_small(tmp_path / "pi")
    assert mended.bytes_fetched == graph.stat().st_size
    assert len(hub.seen("GET /cdn/")) == 1
    assert pull_small(tmp_path / "pi").unchanged


def test_a_new_version_replaces_the_folder_whole(published, tmp_path):
    repository, _ = published
    first = pull_small(tmp_path / "pi")
    new = tmp_path / "new"
    write_publishable(new, profiles=PROFILES, seed=3)
    for path, data in files_of(new).items():
        repository.put(path, data)
    second = pull_small(tmp_path / "pi")
    assert second.content_hash != first.content_hash
    assert files_of(tmp_path / "pi")["manifest.json"] == (new / "manifest.json").read_bytes()
    old = pull_small(tmp_path / "pi", revision=first.revision)
    assert (old.content_hash, old.revision) == (first.content_hash, first.revision)


def test_another_choice_replaces_the_folder_and_fetches_only_what_is_new(published, hub, tmp_path):
    pull_small(tmp_path / "pi")
    hub.requests.clear()
    done = pull_small(tmp_path / "pi", sub_models=[0, 2], fusion=True)
    assert sorted(done.selection.variants) == [0, 2]
    assert len(hub.seen("GET /cdn/")) == 2  # sub-model 0 and the fusion head; sub-model 2 was there
    assert "onnx/fusion.onnx" in files_of(tmp_path / "pi")


def test_a_pulled_folder_answers_like_the_whole_with_the_others_absent(published, tmp_path):
    _, root = published
    pull_small(tmp_path / "pi", sub_models=[0, 2], precision="fp32", fusion=True)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    part = EDViTRuntime.from_pretrained(tmp_path / "pi", sub_models=[0, 2]).predict(pixels)
    whole = EDViTRuntime.from_pretrained(root).predict(pixels, absent=[1])
    assert np.array_equal(part.probabilities, whole.probabilities)


def placement(manifest, **changes):
    def file(i):
        return f"sub_models/{i:02d}/onnx/model_qint8_arm64.onnx"

    values = {
        "ensemble": EnsembleIdentity(id=manifest.ensemble.id, content_hash=manifest.ensemble.content_hash),
        "fleet": "home",
        "coordinator": "hall",
        "num_sub_models": 3,
        "devices": {
            "hall": PlacedDevice(profile="x86-avx2"),
            "pi3": PlacedDevice(
                profile="raspberry-pi-5",
                sub_models=[PlacedFile(index=2, variant="qint8_arm64", file=file(2))],
                replicas=[PlacedFile(index=0)],
            ),
            "pi4": PlacedDevice(
                profile="raspberry-pi-5", sub_models=[PlacedFile(index=i, file=file(i)) for i in (0, 1)]
            ),
            "spare": PlacedDevice(profile="x86-avx2"),
        },
    }
    return PlacementFile(**{**values, **changes})


def test_a_placement_says_what_each_device_needs(published, tmp_path):
    file = placement(Manifest.load(published[1])).save(tmp_path / "placement.json")
    pi3 = pull(REPO, placement=file, device="pi3", output=tmp_path / "pi3")
    assert {i: v.name for i, v in pi3.selection.variants.items()} == {0: "qint8_arm64", 2: "qint8_arm64"}
    assert pi3.selection.fusion is None
    hall = pull(REPO, placement=file, device="hall", output=tmp_path / "hall")
    assert set(files_of(tmp_path / "hall")) == {"onnx/fusion.onnx", "preprocessor_config.json", "manifest.json"}
    assert hall.selection.variants == {}
    assert pull(REPO, placement=file, device="pi4", fusion=True, output=tmp_path / "pi4").selection.fusion


def test_without_a_coordinator_every_share_answers_as_it_was_pulled(published, tmp_path):
    held = [PlacedFile(index=i, file=f"sub_models/{i:02d}/onnx/model.onnx") for i in range(3)]
    devices = {
        "pi3": PlacedDevice(profile="raspberry-pi-5", sub_models=held[::2]),
        "pi4": PlacedDevice(profile="raspberry-pi-5", sub_models=held[1:2]),
    }
    made = placement(Manifest.load(published[1]), coordinator=None, devices=devices)
    file = made.save(tmp_path / "placement.json")
    pulled = pull(REPO, placement=file, device="pi3", output=tmp_path / "pi3")
    assert pulled.selection.fusion is not None
    runtime = EDViTRuntime.from_pretrained(tmp_path / "pi3", schedule="in_turn")
    assert runtime.loaded == (0, 2)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    whole = EDViTRuntime.from_pretrained(published[1])
    expected = whole.predict(pixels, absent=[1]).probabilities
    assert runtime.predict(pixels).probabilities == pytest.approx(expected)
    report = bench_ensemble(tmp_path / "pi3", repeats=1, progress=False)
    assert [row.owner for row in report.rows] == ["sub-model 0", "sub-model 2", "fusion head"]


def test_each_device_of_a_single_sub_model_gets_all_that_it_needs_to_answer_alone(published):
    whole = Manifest.load(published[1])
    everything = list(range(len(whole.label_names)))
    only = replace(whole.sub_models[0], class_group=everything, vote_size=len(everything))
    manifest = replace(whole, class_groups=[everything], sub_models=[only])
    held = [PlacedFile(index=0)]
    devices = {
        "hall": PlacedDevice(profile="raspberry-pi-5", sub_models=held),
        "pi3": PlacedDevice(profile="raspberry-pi-5", replicas=held),
        "tiny": PlacedDevice(profile="raspberry-pi-5"),
    }
    placed = placement(manifest, num_sub_models=1, devices=devices, coordinator=None)
    for device in ("hall", "pi3"):
        selection = select_by_placement(manifest, placed, device)
        assert (list(selection.variants), selection.fusion) == ([0], manifest.fusion.variant("fp32"))
    with pytest.raises(HubError, match="It is a spare"):
        select_by_placement(manifest, placed, "tiny")


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({}, "pi33", r"Did you mean `pi3`"),
        ({}, "spare", "gives it no sub-model and another device fuses"),
        ({"ensemble": EnsembleIdentity(id="x", content_hash="0" * 64)}, "pi3", "pieces of different versions"),
        ({"ensemble": None}, "pi3", "got one of no ensemble"),
        (
            {
                "num_sub_models": 1,
                "devices": {"pi3": PlacedDevice(profile="x", sub_models=[PlacedFile(index=0)])},
                "coordinator": None,
            },
            "pi3",
            "Expected a placement of 3 sub-models",
        ),
        (
            {
                "coordinator": None,
                "devices": {
                    "pi3": PlacedDevice(
                        profile="x",
                        sub_models=[
                            PlacedFile(index=0, file="sub_models/00/onnx/other.onnx"),
                            PlacedFile(index=1),
                            PlacedFile(index=2),
                        ],
                    )
                },
            },
            "pi3",
            "'sub_models/00/onnx/other.onnx', which this ensemble lacks",
        ),
    ],
)
def test_a_placement_that_does_not_fit_is_refused(published, tmp_path, changes, device, message):
    file = placement(Manifest.load(published[1]), **changes).save(tmp_path / "placement.json")
    with pytest.raises(HubError, match=message):
        pull(REPO, placement=file, device=device, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sub_models": [3]}, r"from 0 to 2 \(0: \"class_0\", \"class_2\"; 1: .*got 3"),
        ({"sub_models": [-1]}, "got -1"),
        ({"profile": "raspberry-pi-6"}, "Did you mean `raspberry-pi-5`"),
        ({"profile": None}, r"Name one with --profile \(raspberry-pi-5, x86-avx2\), or --precision fp32"),
        ({"profile": "x86-avx512"}, "Take one that fits any hardware .--precision fp32., or export"),
        ({"precision": "fp16"}, "only: fp32 for any hardware; quint8_avx2 for x86-avx2"),
        ({"raw_inputs": True}, "precision int8 and raw inputs, got only: fp32 for any"),
        ({"sub_models": []}, "got no sub-model"),
        ({"device": "pi3"}, "got only --device"),
        ({"placement": "x", "device": "pi3"}, "got both"),
        ({"revision": "v9"}, "has no such revision"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(published, tmp_path, options, message):
    with pytest.raises(HubError, match=message):
        pull_small(tmp_path / "pi", **options)
    assert not (tmp_path / "pi").exists()


def test_hardware_with_the_same_instructions_takes_the_same_file_and_fp32_is_for_all(published):
    manifest = Manifest.load(published[1])
    assert select_by_profile(manifest, [0], profile="jetson-nano").variants[0].name == "qint8_arm64"
    fp32 = select_by_profile(manifest, [0], profile="x86-avx512", precision="fp32")
    assert fp32.variants[0].name == "fp32"
    assert select_by_profile(manifest, [0], profile=None, precision="fp32").variants == fp32.variants
    assert select_by_profile(manifest, [], profile=None, fusion=True).fusion is not None


def test_an_unknown_repository_is_told_from_an_incomplete_one(published, hub, tmp_path):
    with pytest.raises(HubError, match="knows no repository 'lab/other'"):
        pull("lab/other", sub_models=[0], precision="fp32", output=tmp_path / "out")
    hub.create("lab/empty")
    with pytest.raises(HubError, match="lacks a file"):
        pull("lab/empty", sub_models=[0], precision="fp32", output=tmp_path / "out")
    with pytest.raises(HubError):
        pull("no such folder", sub_models=[0], precision="fp32", output=tmp_path / "out")


def test_a_local_folder_is_pulled_from_with_the_same_checks(tmp_path):
    root = tmp_path / "origin"
    write_publishable(root, profiles=PROFILES)
    done = pull(str(root), sub_models=[1], profile="x86-avx2", output=tmp_path / "device")
    assert done.revision is None
    assert pull(str(root), sub_models=[1], profile="x86-avx2", output=tmp_path / "device").unchanged
    graph = root / "sub_models/01/onnx/model_quint8_avx2.onnx"
    graph.write_bytes(graph.read_bytes()[::-1])
    with pytest.raises(ManifestError, match="expected sha256"):
        pull(str(root), sub_models=[1], profile="x86-avx2", output=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(HubError, match="A folder has one state only"):
        pull(str(root), sub_models=[1], profile="x86-avx2", revision="v1", output=tmp_path / "other")


def test_the_folder_is_named_after_repository_and_choice(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pull_small(None).folder == Path("tiny_2")
    assert pull_small(None, sub_models=[0, 1], fusion=True).folder == Path("tiny_0_1")
    file = placement(Manifest.load(published[1])).save(tmp_path / "placement.json")
    assert pull(REPO, placement=file, device="pi3").folder == Path("tiny_pi3")
    assert pull("origin", sub_models=[0], precision="fp32").folder == Path("origin_0")


def test_the_command_line_tells_what_it_fetched(published, tmp_path):
    arguments = ["pull", REPO, "--sub-model", "2", "--profile", "raspberry-pi-5", "--output", str(tmp_path / "pi")]
    done = runner.invoke(app, [*arguments, "--format", "json"])
    answer = json.loads(done.stdout)
    assert answer["bytes_on_disk"] - answer["graph_bytes"] < KIB_128
    assert answer["revision"] == published[0].branches["main"]
    again = runner.invoke(app, arguments)
    assert "up to date from lab/tiny" in again.output
    refused = runner.invoke(app, [*arguments[:-1], str(tmp_path)])
    assert refused.exit_code == 1
    assert "--output" in refused.output


def test_a_path_that_is_written_in_a_roundabout_way_names_the_same_file(tmp_path):
    root = tmp_path / "origin"
    manifest = write_publishable(root)
    entry = manifest.sub_models[1]
    first = replace(entry.variants[0], file="./sub_models/01//onnx/./model.onnx")
    entries = [manifest.sub_models[0], replace(entry, variants=[first]), manifest.sub_models[2]]
    replace(manifest, sub_models=entries).save(root)
    options = {"sub_models": [1], "precision": "fp32", "output": tmp_path / "device"}
    pull(str(root), **options)
    assert (tmp_path / "device/sub_models/01/onnx/model.onnx").is_file()
    assert pull(str(root), **options).unchanged


def test_raw_input_files_are_taken_on_request(published, tmp_path):
    manifest = Manifest.load(published[1])
    entry = manifest.sub_models[2]
    raw = replace(
        entry.variants[-1], inputs="raw", file="sub_models/02/onnx/model_raw_qint8_arm64.onnx", profiles=["arm64"]
    )
    manifest = replace(manifest, sub_models=[*manifest.sub_models[:2], replace(entry, variants=[*entry.variants, raw])])
    chosen = select_by_profile(manifest, [2], profile="raspberry-pi-5", raw_inputs=True)
    assert chosen.variants[2].name == "raw_qint8_arm64"
    assert select_by_profile(manifest, [2], profile="raspberry-pi-5").variants[2].name == "qint8_arm64"


PULL = """
from edvit_hf.hub import pull
done = pull({repo!r}, sub_models=[1], precision="fp32", fusion=True, output={output!r})
from edvit_hf.runtime import EDViTRuntime
EDViTRuntime.from_pretrained({output!r}, sub_models=[1])
import sys
print(sorted({{"torch", "transformers", "safetensors", "numpy", "huggingface_hub"}} & sys.modules.keys()))
"""


HEAVY = ("torch", "transformers", "safetensors", "accelerate", "datasets")


def test_a_device_pulls_and_loads_without_torch_and_a_folder_even_without_the_hubs_client(tmp_path):
    root = tmp_path / "origin"
    write_publishable(root)
    code = PULL.format(repo=str(root), output=str(tmp_path / "device"))
    assert run_without((*HEAVY, "huggingface_hub", "tqdm"), code) == "['numpy']"


def test_a_device_pulls_from_the_hub_without_torch(hub, tmp_path, monkeypatch):
    root = tmp_path / "origin"
    write_publishable(root)
    hub.create(REPO, files_of(root))
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    code = PULL.format(repo=REPO, output=str(tmp_path / "device"))
    assert run_without(HEAVY, code) == "['huggingface_hub', 'numpy']"


def test_without_the_hubs_client_the_error_names_the_extra():
    code = """
from edvit_hf.hub import pull
try:
    pull("lab/tiny", sub_models=[1], precision="fp32")
except ImportError as error:
    print(error)
"""
    text = run_without((*HEAVY, "huggingface_hub"), code)
    assert "`huggingface_hub`" in text
    assert "pip install 'edvit_hf[hub]'" in text


def test_offline_mode_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        pull_small(tmp_path / "pi")


def test_ten_sub_models_in_three_variants_leave_the_manifest_room_for_config_and_processor(tmp_path):
    root = tmp_path / "origin"
    manifest = write_publishable(root, profiles=PROFILES)
    rng, first = np.random.default_rng(0), manifest.sub_models[0]
    statistics = [rng.normal(size=128).astype(np.float32).tolist() for _ in range(10)]
    entries = [
        replace(
            first,
            index=i,
            class_group=[i],
            vote_size=2,
            feature_size=128,
            path=f"sub_models/{i:02d}",
            feature_mean=statistics[i],
            feature_std=[abs(value) for value in statistics[i]],
            variants=[replace(v, file=v.file.replace("/00/", f"/{i:02d}/")) for v in first.variants],
        )
        for i in range(10)
    ]
    large = replace(
        manifest, sub_models=entries, class_groups=[[i] for i in range(10)], label_names=[str(i) for i in range(10)]
    )
    assert len(large.to_json()) < KIB_128 - 16 * 1024
    assert Manifest.from_json(large.to_json()) == large
