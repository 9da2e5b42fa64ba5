# SPDX-License-Identifier: Apache-2.0
"""A published ensemble on one's own fleet: the example in the Space, a checkpoint's config, broken folders."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.cli import app
from edvit_hf.cli.tables import plan_table
from edvit_hf.errors import BudgetError, ManifestError
from edvit_hf.hardware.latency import total_ms
from edvit_hf.hardware.profiles import FIGURES, LATENCY_FEATURES, DeviceProfile, save_profile
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import SCHEMA_VERSION, load_placement
from edvit_hf.planning.costs import FleetCosts, FusionCosts, Load
from edvit_hf.planning.figure import draw_plan
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.placed_plan import place_loads
from edvit_hf.published.files import read_published
from edvit_hf.published.plan import _vote_size, is_published, plan_published
from support.tiny_ensemble import write_tiny_ensemble

SPACE = Path(__file__).resolve().parents[2] / "space_app/model/digits"
FLEET = """
coordinator: laptop
uplink_mbit_per_s: 50
devices:
  - {name: laptop, profile: x86-avx512-vnni, memory_mib: 0.2}
  - {name: pi-a, profile: raspberry-pi-4b, memory_mib: 0.25, link_ms: 2, link_mbit_per_s: 20}
  - {name: pi-b, profile: raspberry-pi-5, link_ms: 1}
"""
SUB_MODEL = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FLEET)
    return path


def write_checkpoint(folder, groups=((0, 1), (2,)), **changes):
    folder.mkdir(exist_ok=True)
    config = {
        "model_type": "edvit",
        "class_groups": [list(g) for g in groups],
        "fusion_hidden_size": 8,
        "sub_model_configs": [{**SUB_MODEL, "id2label": {str(i): str(i) for i in range(len(g) + 1)}} for g in groups],
        "parent": {"parameters": 9000, "macs": 100_000},
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_the_example_gets_files_that_suit_each_device(fleet, tmp_path):
    plan, placement = plan_published(str(SPACE), fleet)
    manifest = Manifest.load(SPACE)
    assert placement.ensemble.content_hash == manifest.ensemble.content_hash
    assert sorted(s.index for s in plan.sub_models) == [0, 1, 2, 3, 4]
    # The Raspberry Pi 5 takes the very bytes of the laptop's int8 file: the bundle holds them once.
    used = {"laptop": "qint8_avx512_vnni", "pi-a": "fp32", "pi-b": "qint8_avx512_vnni"}
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


def test_copies_and_overlapping_groups_are_placed_one_on_each_device_with_spread(fleet, tmp_path):
    for groups, kind in (([(0, 1, 2)] * 3, "average"), ([(0, 1), (1, 2), (2, 0)], "mlp")):
        folder = write_checkpoint(tmp_path / kind, groups, fusion_kind=kind)
        plan, placement = plan_published(str(folder), fleet, objective="spread")
        assert [len(device.sub_models) for device in placement.devices.values()] == [1, 1, 1]
        assert [s.classes for s in plan.sub_models] == [sorted(group) for group in groups]
        assert (plan.fusion_parameters == 0) == (kind == "average")
        assert plan.placement["objective"] == "spread"


@pytest.mark.parametrize("has_manifest", [False, True])
def test_a_plan_of_generalists_says_what_each_was_cut_for(fleet, tmp_path, has_manifest):
    focus = [[0, 2], [1]]
    folder = write_checkpoint(tmp_path / "e", [(0, 1, 2)] * 2, fusion_kind="average", focus_groups=focus)
    if has_manifest:
        dataclasses.replace(
            write_tiny_ensemble(folder, [[0, 1, 2]] * 2, kind="average"), focus_groups=focus
        ).save(folder)  # fmt: skip
    plan, _ = plan_published(str(folder), fleet)
    assert [s.focus for s in plan.sub_models] == focus
    assert "cut for classes [0, 2], votes over 3" in str(plan)
    assert "0 2; votes over all 3" in map(str, plan_table(plan).columns[2].cells)


def test_focus_groups_that_do_not_belong_to_the_class_groups_are_refused(tmp_path):
    for focus in ([[0, 2]], [[2], [1]]):
        folder = write_checkpoint(tmp_path / "e", [(0, 1), (1, 2)], focus_groups=focus)
        with pytest.raises(ManifestError, match="`focus_groups` must name, for each of 2 sub-models, some of its"):
            read_published(str(folder))


def test_votes_with_an_other_that_no_class_is_left_for_are_counted_with_it(fleet, tmp_path):
    folder = write_checkpoint(tmp_path / "e", [(0, 1, 2)] * 2, fusion_kind="average")
    plan, _ = plan_published(str(folder), fleet)
    assert [s.feature_bytes for s in plan.sub_models] == [4 * 4] * 2
    manifest = SimpleNamespace(vote_sizes=[3, 4])
    ensemble = dataclasses.replace(read_published(str(folder)), manifest=manifest)
    assert [_vote_size(ensemble, index) for index in range(2)] == [3, 4]


def test_a_single_sub_model_is_placed_on_every_device_that_each_pulls(fleet, tmp_path):
    folder = write_checkpoint(tmp_path / "e", [(0, 1, 2)], fusion_kind="average")
    plan, placement = plan_published(str(folder), fleet)
    held = {name: [e.index for e in [*d.sub_models, *d.replicas]] for name, d in placement.devices.items()}
    assert held == {"laptop": [0], "pi-a": [0], "pi-b": [0]}
    assert load_placement(placement.save(tmp_path)) == placement
    assert "one sub-model: each device that carries it answers on its own" in plan.notes


MEASURED = DeviceProfile(
    name="mine",
    isa="avx512_vnni",
    quantization="avx512_vnni",
    memory_mib=8000,
    cores=2,
    sustained_gflops=100.0,
    sources=dict.fromkeys(FIGURES, "a test"),
    latency=dict.fromkeys(LATENCY_FEATURES, 0.01),
)


def copy_of_space(folder, **files):
    """The example without its graphs, with other values in its results.json (and other files)."""
    shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns("*.onnx", "assets"))
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder


def test_a_space_folder_is_predicted_by_the_measured_profile_from_the_configs_beside_its_graphs(tmp_path):
    save_profile(MEASURED, tmp_path / "mine.yaml")
    (tmp_path / "fleet.yaml").write_text("devices: [{name: a, profile: mine.yaml}]")
    ensemble = read_published(str(SPACE))
    plan, _ = plan_published(str(SPACE), tmp_path / "fleet.yaml")
    for index, row in ensemble.results.sub_models.items():
        shape = ensemble.shapes[index]
        assert (shape.parameters, shape.macs) == (row.parameters, row.macs)
        assert (shape.widths.residual, shape.widths.heads, shape.widths.head_dim) == (24, 2, 12)
        assert plan.sub_models[index].predicted_ms == pytest.approx(total_ms(shape, MEASURED.latency), abs=1e-3)
    assert any("int8 files run on a: their time is predicted as that of fp32" in note for note in plan.notes)


@pytest.mark.parametrize("config", [None, {"model_type": "swin"}])
def test_an_older_folder_without_configs_is_placed_by_what_was_recorded_and_says_that_no_time_is_predicted(
    tmp_path, config
):
    folder = copy_of_space(tmp_path / "space")
    for path in folder.glob("sub_models/*/config.json"):
        path.unlink() if config is None else path.write_text(json.dumps(config))
    ensemble = read_published(str(folder))
    assert set(ensemble.shapes) == {None}
    save_profile(MEASURED, tmp_path / "mine.yaml")
    (tmp_path / "fleet.yaml").write_text("devices: [{name: a, profile: mine.yaml}]")
    plan, _ = plan_published(str(folder), tmp_path / "fleet.yaml")
    row = ensemble.results.sub_models[0]
    assert (plan.sub_models[0].parameters, plan.sub_models[0].macs) == (row.parameters, row.macs)
    assert plan.sub_models[0].predicted_ms is None
    assert plan.latency_ms is None
    assert any("the latency model of a needs sizes" in note for note in plan.notes)


SUB_MODELS = [
    {**SUB_MODEL, "id2label": {"0": "a", "1": "b", "2": "other"}},
    {**SUB_MODEL, "id2label": {"0": "c", "1": "other"}},
]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sub_model_configs": [1, 2]}, r"`sub_model_configs\[0\]` must be an object"),
        ({"sub_model_configs": None}, "`sub_model_configs` must be a list"),
        ({"sub_model_configs": SUB_MODELS[:1]}, "one group per sub-model"),
        ({"class_groups": [1, 2]}, r"`class_groups\[0\]` must be a list"),
        ({"class_groups": []}, "one group per sub-model"),
        ({"class_groups": [[0, 1], [1, 1]]}, "class 1 stands twice in class group 1"),
        ({"class_groups": [[0, 1], [3]]}, "every class from 0 on, and no empty group"),
        ({"class_groups": [[0, 1, 2], []]}, "no empty group"),
        ({"class_groups": [["a"], ["b"]]}, "must be of type int"),
        ({"fusion_hidden_size": "x"}, "`fusion_hidden_size` must be of type int"),
        ({"fusion_hidden_size": None}, "`fusion_hidden_size` must be of type int"),
        ({"fusion_kind": "median"}, r"`fusion_kind` must be one of \['mlp', 'average', 'residual'\]"),
        ({"fusion_hidden_size": -8}, "`fusion_hidden_size` must be 0 or more"),
        ({"sub_model_configs": [SUB_MODELS[0], {**SUB_MODELS[1], "hidden_size": 0}]}, r"\[1\]`: `hidden_size` must be"),
        ({"sub_model_configs": [SUB_MODELS[0], {**SUB_MODELS[1], "hidden_size": 1.5}]}, "`hidden_size` must be"),
        ({"sub_model_configs": [SUB_MODELS[0], {**SUB_MODELS[1], "id2label": 5}]}, "id2label` must be an object"),
        ({"sub_model_configs": SUB_MODELS[::-1]}, "must name the 2 classes of its group and other, got 2"),
        ({"sub_model_configs": [SUB_MODELS[0], {**SUB_MODELS[1], "model_type": "swin"}]}, "No axis table"),
        ({"parent": [1]}, "`parent` must be an object"),
        ({"parent": {"parameters": "many"}}, r"`parent\.parameters` must be of type int"),
        ({"parent": {"parameters": -5}}, "`parameters` must be a positive count"),
        ({"parent": {"macs": -(10**90)}}, "`macs` must be a positive count"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key(tmp_path, fleet, change, message):
    folder = write_checkpoint(tmp_path / "e", **{"sub_model_configs": SUB_MODELS, **change})
    with pytest.raises(ManifestError, match=rf"config\.json: .*{message}"):
        plan_published(str(folder), fleet)


ROW = {"index": 0, "parameters": 10, "macs": 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sub_models": [{"index": 0, "parameters": 10}]}, r"`sub_models\[0\]\.macs` is missing"),
        ({"sub_models": [{**ROW, "macs": "x"}]}, r"`sub_models\[0\]\.macs` must be of type int"),
        ({"sub_models": [{**ROW, "parameters": -1}]}, "`parameters` must be a positive count"),
        ({"sub_models": {}}, "`sub_models` must be a list"),
        ({"sub_models": [7]}, r"`sub_models\[0\]` must be an object"),
        ({"rows": None}, "`rows` must be a list"),
        ({"rows": [1]}, r"`rows\[0\]` must be an object"),
        ({"rows": [{"kind": "ensemble"}]}, r"`rows\[0\]\.parameters` of the ensemble is missing"),
        ({"rows": [{"kind": "ensemble", "parameters": 9}]}, "more parameters than its sub-models"),
        ({"rows": [{"kind": "teacher", "parameters": 9.5}]}, "must be of type int"),
    ],
)
def test_results_that_cannot_be_are_refused_by_key(tmp_path, fleet, change, message):
    results = {**json.loads((SPACE / "results.json").read_text()), **change}
    with pytest.raises(ManifestError, match=rf"results\.json: .*{message}"):
        plan_published(str(copy_of_space(tmp_path / "space", results=results)), fleet)


@pytest.mark.parametrize(
    ("size", "expected"),
    [({"height": 8, "width": 6}, (8, 6)), (28, (28, 28)), (None, None), ({"shortest_edge": 8}, None)],
)
def test_the_input_size_is_read_in_every_form(tmp_path, size, expected):
    folder = copy_of_space(tmp_path / "space", preprocessor_config={"size": size})
    assert read_published(str(folder)).image_size == expected


@pytest.mark.parametrize("size", [0, "8", {"height": 8}, {"height": 8, "width": -1}, [8, 8]])
def test_an_input_size_that_cannot_be_is_refused(tmp_path, size):
    with pytest.raises(ManifestError, match=r"preprocessor_config\.json: `size`"):
        read_published(str(copy_of_space(tmp_path / "space", preprocessor_config={"size": size})))


def test_a_config_that_leaves_the_fusion_head_to_the_default_means_the_librarys(tmp_path, fleet):
    folder = write_checkpoint(tmp_path / "e")
    config = json.loads((folder / "config.json").read_text())
    del config["fusion_hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_published(str(folder)).fusion_hidden_size == 128
    source = (SPACE.parents[2] / "src/edvit_hf/configuration_edvit.py").read_text()  # importing it takes seconds
    assert "fusion_hidden_size: int = 128\n" in source


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
    with pytest.raises(ManifestError, match="got text that breaks"):
        plan_published(str(other), fleet)
    (other / "config.json").write_text("[]")
    with pytest.raises(ManifestError, match="got a list instead of an object"):
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
    "schema_version": SCHEMA_VERSION,
    "ensemble": None,
    "fleet": "f",
    "coordinator": None,
    "num_sub_models": 2,
    "devices": {
        "a": {"profile": "arm64", "sub_models": [{"index": 0}, {"index": 1}]},
        "b": {"profile": "arm64", "replicas": [{"index": 1}]},
    },
    "latency_ms": None,
}


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
    with pytest.raises(ManifestError, match=r"placement.*found no file"):
        load_placement(tmp_path)
    (tmp_path / "placement.json").write_text("{")
    with pytest.raises(ManifestError, match="got text that breaks"):
        load_placement(tmp_path)


def test_the_command_writes_the_placement_and_prints_the_table(fleet, tmp_path):
    runner, target = CliRunner(), str(tmp_path / "out.json")
    arguments = ["plan", str(SPACE), "--fleet", str(fleet), "--output", target, "--figure", str(tmp_path / "p.png")]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert all(f"sub-model {i}" in done.output for i in range(5))
    assert "qint8_avx512_vnni" in done.output
    assert "MiB held" in done.output
    assert "int8 files run on pi-b: " in done.output  # and of no device whose time nobody predicts
    assert load_placement(Path(target)).fleet == "mine"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads(runner.invoke(app, [*arguments, "--format", "json"]).stdout)
    assert {"device", "classes", "parameters", "bytes", "macs", "predicted_ms"} <= set(document["sub_models"][0])


def test_options_that_would_be_ignored_and_files_that_could_not_be_written_are_refused_first(fleet, tmp_path):
    def plan(*arguments):
        return CliRunner().invoke(app, ["plan", *map(str, arguments)])

    space = (SPACE, "--fleet", fleet)
    assert plan(*space, "--num-classes", 10).exit_code == 2
    assert plan("cifar10_vit_base", "--output", tmp_path / "p.json").exit_code == 2
    (tmp_path / "folder.png").mkdir()
    for bad in ("absent/p.png", "folder.png", "p.jpg", "p"):
        done = plan(*space, "--output", tmp_path, "--figure", tmp_path / bad)
        assert (done.exit_code, "Traceback" in done.output) == (1, False)
        assert plan("cifar10_vit_base", "--figure", tmp_path / bad).exit_code == 1
    for bad in ("absent/p.json", "p.yaml"):
        assert plan(*space, "--output", tmp_path / bad).exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "folder.png"}
    assert plan(*space, "--output", tmp_path).exit_code == 0
    assert load_placement(tmp_path / "placement.json").fleet == "mine"


def test_the_figure_holds_every_label_whole_and_shows_tiny_parts():
    loads = [
        Load(classes=(i,), parameters=250, bytes=1000, macs=10**6, feature_bytes=64, input_bytes=64) for i in range(20)
    ]
    names = ["the-old-board-behind-the-shelf-in-the-kitchen-of-the-second-floor", *(f"d{i}" for i in range(19))]
    devices = tuple(Device(name=name, profile="raspberry-pi-4b", memory_mib=400) for name in names)
    fleet = Fleet(devices=devices, name="a-fleet-with-a-name-that-nobody-could-ever-want-to-read-to-its-end")
    figure = draw_plan(place_loads(FleetCosts.of(fleet, loads, FusionCosts(parameters=10))))
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels())]
    for text in [*texts, figure._suptitle]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
    bars = [bar for axes in figure.axes for bar in axes.patches]
    assert len(bars) >= 40
    assert all(bar.get_linewidth() < 0.5 for bar in bars)


def test_without_a_fleet_every_sub_model_has_a_device_of_its_own_and_the_plan_says_so(tmp_path):
    done = CliRunner().invoke(app, ["plan", str(SPACE), "--output", str(tmp_path), "--format", "json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["notes"][0].startswith("no fleet is named: one device of the kind arm64, without budgets")
    placed = load_placement(tmp_path / "placement.json")
    assert [[each.index for each in device.sub_models] for device in placed.devices.values()] == [[i] for i in range(5)]
    assert {device.profile for device in placed.devices.values()} == {"arm64"}
