"""A published ensemble on one's own fleet: the example in the Space, a checkpoint's config, broken folders."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.costs import ModelShape
from edvit_hf.errors import BudgetError, ManifestError
from edvit_hf.manifest import Manifest
from edvit_hf.placement_file import SCHEMA_VERSION, load_placement
from edvit_hf.recipe.published_plan import is_published, plan_published, read_published

SPACE = Path(__file__).resolve().parents[1] / "space_app/model"
FLEET = """
coordinator: laptop
uplink_mbit_per_s: 50
devices:
  - {name: laptop, profile: x86-avx512-vnni, memory_mib: 0.2}
  - {name: pi-a, profile: raspberry-pi-4b, memory_mib: 0.25, link_ms: 2, link_mbit_per_s: 20}
  - {name: pi-b, profile: raspberry-pi-5, link_ms: 1}
"""
SUB_MODEL = {"model_type": "vit", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
             "intermediate_size": 32, "image_size": 8, "patch_size": 4}  # fmt: skip


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FLEET)
    return path


def write_checkpoint(folder, groups=((0, 1), (2,)), **changes):
    folder.mkdir(exist_ok=True)
    config = {
        "model_type": "edvit", "class_groups": [list(g) for g in groups], "fusion_hidden_size": 8,
        "sub_model_configs": [
            {**SUB_MODEL, "id2label": {str(i): str(i) for i in range(len(g) + 1)}} for g in groups
        ],
        "parent": {"parameters": 9000, "macs": 100_000},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_the_example_gets_files_that_suit_each_device(fleet, tmp_path):
    plan, placement = plan_published(str(SPACE), fleet)
    manifest = Manifest.load(SPACE)
    assert placement.ensemble.content_hash == manifest.ensemble.content_hash
    assert sorted(s.index for s in plan.sub_models) == [0, 1, 2, 3, 4]
    used = {"laptop": "qint8_avx512_vnni", "pi-a": "fp32", "pi-b": "fp32"}
    for name, device in placement.devices.items():
        for entry in [*device.sub_models, *device.replicas]:
            assert entry.variant == used[name]
            assert (SPACE / entry.file).is_file()
    # The budget counts the bytes of the chosen file: int8 ones take about half.
    sizes = {v.file: v.bytes for v in manifest.variants}
    held = sum(sizes[entry.file] for entry in placement.devices["laptop"].sub_models)
    laptop = next(device for device in plan.devices if device.name == "laptop")
    assert 0 < held + 4 * plan.fusion_parameters == laptop.bytes <= 0.2 * 2**20
    assert 4 * plan.fusion_parameters < sizes["onnx/fusion.onnx"]
    assert plan.teacher["parameters"] == 339_658
    assert plan.size_ratio == pytest.approx(339_658 / 22_539)
    path = placement.save(tmp_path)
    assert load_placement(path) == load_placement(tmp_path) == placement
    assert not list(tmp_path.glob("*.partial"))


def test_a_checkpoint_with_a_config_alone_is_placed_by_its_exact_sizes(fleet, tmp_path):
    plan, placement = plan_published(str(write_checkpoint(tmp_path / "e")), fleet)
    shape = ModelShape.from_config(SUB_MODEL, num_labels=3)
    first = plan.sub_models[0]
    assert (first.parameters, first.macs) == (shape.parameters, shape.macs)
    assert placement.ensemble is None
    assert {entry.file for device in placement.devices.values() for entry in device.sub_models} == {None}


def test_a_budget_that_is_too_small_is_named_with_what_would_do(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("devices: [{name: a, profile: raspberry-pi-5, memory_mib: 0.01}]")
    with pytest.raises(BudgetError, match=r"`devices\.a\.memory_mib` must be at least") as caught:
        plan_published(str(SPACE), path)
    (value,) = caught.value.nearest.values()
    path.write_text(f"devices: [{{name: a, profile: raspberry-pi-5, memory_mib: {value * 1.0001}}}]")
    assert len(plan_published(str(SPACE), path)[0].devices[0].sub_models) == 5
    path.write_text(f"devices: [{{name: a, profile: raspberry-pi-5, memory_mib: {value * 0.999}}}]")
    with pytest.raises(BudgetError):
        plan_published(str(SPACE), path)


@pytest.mark.parametrize(
    ("target", "expected"),
    [(str(SPACE), True), ("someone/an-ensemble", True), ("recipes/none.yaml", False), ("digits", False)],
)
def test_what_counts_as_a_published_ensemble(target, expected):
    assert is_published(target) == expected


def test_broken_folders_are_refused_with_the_reason(tmp_path, fleet):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="got neither"):
        plan_published(str(tmp_path / "empty"), fleet)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ManifestError, match="It is another model"):
        plan_published(str(other), fleet)
    (other / "config.json").write_text("{")
    with pytest.raises(ManifestError, match="expected JSON"):
        plan_published(str(other), fleet)
    (other / "config.json").write_text("[]")
    with pytest.raises(ManifestError, match="expected a JSON object"):
        plan_published(str(other), fleet)
    mixed = write_checkpoint(tmp_path / "mixed")
    shutil.copy(SPACE / "manifest.json", mixed)
    with pytest.raises(ManifestError, match="two ensembles"):
        plan_published(str(mixed), fleet)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(SPACE / "manifest.json", bare)
    with pytest.raises(ManifestError, match=r"results\.json that lists"):
        plan_published(str(bare), fleet)


def test_a_hub_id_that_cannot_be_fetched_is_one_clear_error(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ManifestError, match=r"neither here nor could it be fetched.*Check the name"):
        read_published("someone/an-ensemble-that-is-not-here")


GOOD = {
    "schema_version": SCHEMA_VERSION, "ensemble": None, "fleet": "f", "coordinator": None, "num_sub_models": 2,
    "devices": {
        "a": {"profile": "arm64", "sub_models": [{"index": 0}, {"index": 1}]},
        "b": {"profile": "arm64", "replicas": [{"index": 1}]},
    },
    "latency_ms": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema version 2, got 1"),
        ({"fleet": 3}, "`fleet` must be of type str"),
        ({"surprise": 1}, "unknown key `surprise`"),
        ({"devices": []}, "`devices` must be an object"),
        ({"devices": {"a": {"profile": "arm64", "sub_models": [{"index": 0}]}}}, "exactly once"),
        ({"devices": {"a": {"sub_models": []}}}, r"`devices\.a\.profile` is missing"),
        ({"devices": {**GOOD["devices"], "c": {"profile": "arm64", "replicas": [{"index": 7}]}}}, "does not exist"),
        ({"devices": {**GOOD["devices"], "a": {"profile": "arm64", "sub_models": [{"index": "0"}]}}}, "type int"),
        ({"coordinator": "z"}, "`coordinator` must be one of"),
    ],
)
def test_a_placement_is_read_strictly(tmp_path, change, message):
    path = tmp_path / "placement.json"
    path.write_text(json.dumps(GOOD))
    assert load_placement(path).devices["b"].replicas[0].index == 1
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ManifestError, match=message):
        load_placement(path)


def test_a_placement_that_is_absent_or_no_json_is_named(tmp_path):
    with pytest.raises(ManifestError, match="No placement"):
        load_placement(tmp_path)
    (tmp_path / "placement.json").write_text("{")
    with pytest.raises(ManifestError, match="expected JSON"):
        load_placement(tmp_path)


def test_the_command_writes_the_placement_and_prints_the_table(fleet, tmp_path):
    runner, target = CliRunner(), str(tmp_path / "out.json")
    arguments = ["plan", str(SPACE), "--fleet", str(fleet), "--output", target, "--figure", str(tmp_path / "p.png")]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "replica of" in done.output or "sub-model 4" in done.output
    assert load_placement(Path(target)).fleet == "mine"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads(runner.invoke(app, [*arguments, "--format", "json"]).stdout)
    assert {"device", "classes", "parameters", "bytes", "macs", "predicted_ms"} <= set(document["sub_models"][0])
    assert runner.invoke(app, ["plan", str(SPACE)]).exit_code == 2
