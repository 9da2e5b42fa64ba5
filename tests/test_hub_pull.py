"""`edvit pull`: what one device needs and nothing else, verified, whole or not at all."""

import contextlib
import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import HubError, ManifestError, WorkDirError
from edvit_hf.hub import pull, select_by_profile
from edvit_hf.hub import source as source_module
from edvit_hf.manifest import Manifest
from edvit_hf.placement_file import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime import LocalEnsemble
from hub_ensemble import REPO, files_of, write_publishable
from test_import import run_without

pytest_plugins = ("hub_fixtures",)
runner = CliRunner()
KIB_128 = 128 * 1024
PROFILES = ("x86-avx2", "raspberry-pi-5")


@pytest.fixture
def published(hub, tmp_path):
    """The repository and the local folder it was made from."""
    root = tmp_path / "origin"
    write_publishable(root, profiles=PROFILES)
    return hub.create(REPO, files_of(root)), root


def small(output, **options):
    """Pull sub-model 2 for a Raspberry Pi, unless told otherwise."""
    options = {"sub_models": [2], "profile": "raspberry-pi-5", **options}
    return pull(REPO, output=output, **options)


def test_a_device_gets_its_graph_config_processor_and_the_manifest_and_nothing_else(published, hub, tmp_path):
    repository, root = published
    done = small(tmp_path / "pi")
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
    small(tmp_path / "pi")
    hub.requests.clear()
    again = small(tmp_path / "pi")
    assert again.unchanged
    assert again.bytes_fetched == 0
    assert all("manifest.json" in line for line in hub.seen("(GET|HEAD) /lab/tiny/resolve|/cdn/"))
    graph = tmp_path / "pi/sub_models/02/onnx/model_qint8_arm64.onnx"
    graph.write_bytes(b"x" * graph.stat().st_size)
    hub.requests.clear()
    mended = small(tmp_path / "pi")
    assert mended.bytes_fetched == graph.stat().st_size
    assert len(hub.seen("GET /cdn/")) == 1
    assert small(tmp_path / "pi").unchanged


def test_a_new_version_replaces_the_folder_whole(published, tmp_path):
    repository, _ = published
    first = small(tmp_path / "pi")
    new = tmp_path / "new"
    write_publishable(new, profiles=PROFILES, seed=3)
    for path, data in files_of(new).items():
        repository.put(path, data)
    second = small(tmp_path / "pi")
    assert second.content_hash != first.content_hash
    assert files_of(tmp_path / "pi")["manifest.json"] == (new / "manifest.json").read_bytes()
    old = small(tmp_path / "pi", revision=first.revision)
    assert (old.content_hash, old.revision) == (first.content_hash, first.revision)


def test_another_choice_replaces_the_folder_and_fetches_only_what_is_new(published, hub, tmp_path):
    small(tmp_path / "pi")
    hub.requests.clear()
    done = small(tmp_path / "pi", sub_models=[0, 2], fusion=True)
    assert sorted(done.selection.variants) == [0, 2]
    assert len(hub.seen("GET /cdn/")) == 2  # sub-model 0 and the fusion head; sub-model 2 was there
    assert "onnx/fusion.onnx" in files_of(tmp_path / "pi")


def test_a_pulled_folder_answers_like_the_whole_with_the_others_absent(published, tmp_path):
    _, root = published
    small(tmp_path / "pi", sub_models=[0, 2], precision="fp32", fusion=True)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    part = LocalEnsemble.from_pretrained(tmp_path / "pi", sub_models=[0, 2]).predict(pixels)
    whole = LocalEnsemble.from_pretrained(root).predict(pixels, absent=[1])
    assert np.array_equal(part.probabilities, whole.probabilities)


def placement(manifest, **changes):
    def file(i):
        return f"sub_models/{i:02d}/onnx/model_qint8_arm64.onnx"

    values = {
        "ensemble": EnsembleIdentity(id=manifest.ensemble.id, content_hash=manifest.ensemble.content_hash),
        "fleet": "home", "coordinator": "hall", "num_sub_models": 3,
        "devices": {
            "hall": PlacedDevice(profile="x86-avx2"),
            "pi3": PlacedDevice(
                profile="raspberry-pi-5", sub_models=[PlacedFile(index=2, variant="qint8_arm64", file=file(2))],
                replicas=[PlacedFile(index=0)],
            ),
            "pi4": PlacedDevice(
                profile="raspberry-pi-5", sub_models=[PlacedFile(index=i, file=file(i)) for i in (0, 1)]
            ),
            "spare": PlacedDevice(profile="x86-avx2"),
        },
    }  # fmt: skip
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


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({}, "pi33", r"Did you mean `pi3`"),
        ({}, "spare", "gives it no sub-model and another device fuses"),
        ({"ensemble": EnsembleIdentity(id="x", content_hash="0" * 64)}, "pi3", "pieces of different versions"),
        ({"ensemble": None}, "pi3", "got one of no ensemble"),
        (
            {"num_sub_models": 1, "devices": {"pi3": PlacedDevice(profile="x", sub_models=[PlacedFile(index=0)])},
             "coordinator": None},
            "pi3", "Expected a placement of 3 sub-models",
        ),
        (
            {"coordinator": None, "devices": {"pi3": PlacedDevice(profile="x", sub_models=[
                PlacedFile(index=0, file="sub_models/00/onnx/other.onnx"), PlacedFile(index=1), PlacedFile(index=2)])}},
            "pi3", "'sub_models/00/onnx/other.onnx', which this ensemble lacks",
        ),
    ],
)  # fmt: skip
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
        small(tmp_path / "pi", **options)
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


@pytest.mark.parametrize("link", ["sub_models/01/onnx/model.onnx", "sub_models/01", "manifest.json"])
def test_links_in_a_folder_are_refused(tmp_path, link):
    root = tmp_path / "origin"
    write_publishable(root)
    (root / link).rename(tmp_path / "elsewhere")
    (root / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="got a link at"):
        pull(str(root), sub_models=[1], precision="fp32", output=tmp_path / "device")
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../../etc/passwd", "inside the ensemble folder"),
        ("/etc/passwd", "inside the ensemble folder"),
        ("C:\\x.onnx", "inside the ensemble folder"),
        ("sub_models/02/pytorch_model.bin", "Expected ONNX graphs"),
        ("modeling_edvit.py", "Expected ONNX graphs"),
    ],
)
def test_paths_that_leave_the_folder_and_files_that_could_run_code_are_never_fetched(
    published, hub, file, message, tmp_path
):
    repository, _ = published
    data = json.loads(repository.files()["manifest.json"])
    data["sub_models"][2]["variants"][0]["file"] = file
    repository.put("manifest.json", json.dumps(data).encode())
    repository.put("sub_models/02/pytorch_model.bin", b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    hub.requests.clear()
    with pytest.raises(ManifestError, match=message):
        small(tmp_path / "pi", precision="fp32")
    assert all("manifest.json" in line for line in hub.seen("(GET|HEAD) .*/resolve/"))
    assert not hub.seen("/cdn/")


def test_a_repository_with_code_and_pickles_is_pulled_without_them(published, hub, tmp_path):
    repository, _ = published
    repository.put("sub_models/02/pytorch_model.bin", b"pickle")
    repository.put("sub_models/02/modeling_other.py", b"raise SystemExit('ran')")
    small(tmp_path / "pi")
    assert not hub.seen("pytorch_model|modeling_other")
    assert not [p for p in (tmp_path / "pi").rglob("*") if p.suffix in (".bin", ".py")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"schema_version": 99}', "schema version 99 is newer"),
        (b'{"schema_version": 3', "breaks at line"),
        (b"\xff\xfe\x00", "expected UTF-8 text"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_stops_everything(published, hub, tmp_path, text, message):
    published[0].put("manifest.json", text)
    with pytest.raises(ManifestError, match=message):
        small(tmp_path / "pi")
    assert not hub.seen("/cdn/")
    assert not (tmp_path / "pi").exists()


@pytest.mark.parametrize("foreign", ["notes.txt", "model.safetensors", "sub_models/02/onnx/mine.onnx"])
def test_a_folder_that_holds_anything_else_is_never_replaced(published, tmp_path, foreign):
    small(tmp_path / "pi")
    (tmp_path / "pi" / foreign).write_text("mine")
    with pytest.raises(WorkDirError, match=foreign):
        small(tmp_path / "pi", sub_models=[0])
    assert (tmp_path / "pi" / foreign).read_text() == "mine"


def test_only_an_empty_place_or_an_earlier_pull_is_taken(published, tmp_path):
    with pytest.raises(WorkDirError, match="no manifest"):
        small(tmp_path / "hub_cache" / "..")  # a folder with other things
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkDirError):
        small(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert small(tmp_path / "empty").bytes_fetched > 0


def test_the_folder_is_named_after_repository_and_choice(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert small(None).folder == Path("tiny_2")
    assert small(None, sub_models=[0, 1], fusion=True).folder == Path("tiny_0_1")
    file = placement(Manifest.load(published[1])).save(tmp_path / "placement.json")
    assert pull(REPO, placement=file, device="pi3").folder == Path("tiny_pi3")
    assert pull("origin", sub_models=[0], precision="fp32").folder == Path("origin_0")


class Stop(BaseException):
    """An interruption, as Ctrl-C or the end of the process makes it."""


def loads(folder):
    try:
        return LocalEnsemble.from_pretrained(folder, sub_models=[2]).manifest.ensemble.id
    except Exception:
        return None


def stopped_at(step, monkeypatch):
    """Stop at the `step`-th change of the file system that a pull makes."""
    count = iter(range(1000))

    def counted(call):
        def wrapped(*arguments, **options):
            if next(count) == step:
                raise Stop
            return call(*arguments, **options)

        return wrapped

    for owner, name in [(Path, "replace"), (Path, "mkdir"), (Path, "write_bytes"), (Path, "unlink"),
                        (shutil, "copyfile"), (shutil, "rmtree")]:  # fmt: skip
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return count


def test_a_pull_stopped_anywhere_leaves_the_old_state_or_the_new_and_the_next_one_finishes(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    ids = {write_publishable(root, seed=seed).ensemble.id for root, seed in ((old, 0), (new, 1))}
    options = {"sub_models": [2], "precision": "fp32", "fusion": True}
    steps, seen = 0, set()
    while True:
        device = tmp_path / f"device{steps}"
        pull(str(old), output=device, **options)
        with monkeypatch.context() as patch:
            count = stopped_at(steps, patch)
            with contextlib.suppress(Stop):
                pull(str(new), output=device, **options)
            finished = next(count) <= steps
        state = loads(device)
        seen.add(state)
        assert state in {*ids, None}
        assert device.exists() == (state is not None)  # if it is there, it is whole
        pull(str(new), output=device, **options)
        assert loads(device) == "tiny-1"
        assert sorted(p.name for p in tmp_path.iterdir() if device.name in re.split(r"\W", p.name)) == [device.name]
        if finished:
            break
        steps += 1
    assert steps > 8
    assert seen >= ids


def test_a_full_disk_leaves_the_old_state_and_frees_what_was_staged(published, tmp_path, monkeypatch):
    small(tmp_path / "pi")
    before = files_of(tmp_path / "pi")

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = published[1]
    monkeypatch.setattr(source_module.shutil, "copyfile", full)
    with pytest.raises(WorkDirError, match=r"No space left on device.*Free space"):
        pull(str(root), sub_models=[0, 1], precision="fp32", output=tmp_path / "pi")
    assert files_of(tmp_path / "pi") == before
    assert not (tmp_path / ".pi.edvit-partial").exists()


def test_what_was_verified_before_a_stop_is_not_fetched_again(published, hub, tmp_path, monkeypatch):
    from edvit_hf.hub.source import HubSource

    fetch, count = HubSource.fetch, iter(range(100))

    def once(self, *arguments, **options):
        if next(count) == 1:
            raise Stop
        return fetch(self, *arguments, **options)

    monkeypatch.setattr(HubSource, "fetch", once)
    with pytest.raises(Stop):
        small(tmp_path / "pi", sub_models=[0, 1, 2])
    assert not (tmp_path / "pi").exists()
    assert not (tmp_path / ".pi.edvit-partial/manifest.json").exists()
    hub.requests.clear()
    small(tmp_path / "pi", sub_models=[0, 1, 2])
    assert len(hub.seen("GET /cdn/")) == 2


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
from edvit_hf.runtime import LocalEnsemble
LocalEnsemble.from_pretrained({output!r}, sub_models=[1])
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
        small(tmp_path / "pi")


def test_ten_sub_models_in_three_variants_leave_the_manifest_room_for_config_and_processor(tmp_path):
    root = tmp_path / "origin"
    manifest = write_publishable(root, profiles=PROFILES)
    rng, first = np.random.default_rng(0), manifest.sub_models[0]
    statistics = [rng.normal(size=128).astype(np.float32).tolist() for _ in range(10)]
    entries = [
        replace(
            first, index=i, class_group=[i], feature_size=128, path=f"sub_models/{i:02d}", feature_mean=statistics[i],
            feature_std=[abs(value) for value in statistics[i]],
            variants=[replace(v, file=v.file.replace("/00/", f"/{i:02d}/")) for v in first.variants],
        )
        for i in range(10)
    ]  # fmt: skip
    large = replace(
        manifest, sub_models=entries, class_groups=[[i] for i in range(10)], label_names=[str(i) for i in range(10)]
    )
    assert len(large.to_json()) < KIB_128 - 16 * 1024
    assert Manifest.from_json(large.to_json()) == large
