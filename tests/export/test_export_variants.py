# SPDX-License-Identifier: Apache-2.0
"""int8 and fp16 files: which are made for which hardware, by which gate they are accepted, and what a search finds."""

import logging
import shutil

import numpy as np
import onnx
import pytest

from edvit_hf.cli.tables import export_tables
from edvit_hf.errors import DataError, EDViTError, ExportGateError
from edvit_hf.export import CalibrationItems, ExportConfig, SplitAnswers, export_ensemble
from edvit_hf.export.build import GraphBuilder
from edvit_hf.export.gates import GraphSession
from edvit_hf.export.variants import VariantMaker, VariantRequest, requested_variants
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.manifest import Manifest
from edvit_hf.published.export import export_report
from edvit_hf.runtime import EDViTRuntime
from support.tiny_export import GROUPS, PIXELS, PROFILE, exported_architectures, exported_everything, exported_images

pytestmark = pytest.mark.slow

INT8 = VariantRequest(kind="int8", preset="avx2", profiles=(PROFILE,))
LABELS = np.repeat([0, 1, 2, 3], 5)


def test_profiles_with_the_same_instructions_share_their_int8_files():
    wanted = requested_variants(ExportConfig(), ["raspberry-pi-5", "x86-avx2", "raspberry-pi-4b", "jetson-nano"])
    assert [(w.kind, w.preset, w.profiles) for w in wanted] == [
        ("int8", "arm64", ("raspberry-pi-5", "raspberry-pi-4b", "jetson-nano")),
        ("int8", "avx2", ("x86-avx2",)),
        ("fp16", None, ()),
    ]
    only = ExportConfig(precisions=("fp32", "int8_static"))
    assert [w.kind for w in requested_variants(only, ["x86-avx2"])] == ["int8_static"]
    assert requested_variants(ExportConfig(precisions=()), ["jetson-nano"]) == []


def test_what_a_profile_asks_for_is_what_is_made_for_it():
    for name, profile in load_profiles().items():
        assert [w.kind for w in requested_variants(ExportConfig(), [name])] == sorted(profile.export, key=_order)


def test_a_jetson_orin_gets_static_int8_that_its_gpu_can_read(maker):
    wanted = requested_variants(ExportConfig(), ["jetson-orin-nano"])
    assert [(w.kind, w.preset) for w in wanted] == [("int8", "arm64"), ("int8_static", "tensorrt"), ("fp16", None)]
    made = maker(None)
    for variant in made.make(wanted[1]):
        assert variant.name == "qint8_tensorrt_static"
        assert variant.profiles == ["jetson-orin-nano"]
        assert (variant.quantization.weight_type, variant.quantization.activation_type) == ("QInt8", "QInt8")
        graph = onnx.load(made.build.staging / variant.file).graph
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert pairs
        for node in pairs:  # TensorRT knows signed values around zero only
            points = [tensors[name] for name in node.input[2:]]
            types = {each.i for each in node.attribute if each.name == "output_dtype"}
            assert all(point.dtype == np.int8 and not point.any() for point in points)
            assert points or node.op_type == "DequantizeLinear" or types == {onnx.TensorProto.INT8}


def _order(kind):
    return ("int8", "int8_static", "fp16").index(kind)


def test_one_export_writes_everything_for_several_kinds_of_hardware(tmp_path_factory):
    root, _, manifest = exported_everything(tmp_path_factory)
    assert Manifest.load(root) == manifest
    smaller = ["qint8_arm64", "quint8_avx2", "qint8_arm64_static", "quint8_avx2_static", "fp16"]
    names = ["fp32", *smaller, "raw", *(f"raw_{name}" for name in smaller)]
    for entry in manifest.sub_models:
        assert [v.name for v in entry.variants] == names
        by_name = {v.name: v for v in entry.variants}
        assert by_name["qint8_arm64"].profiles == ["raspberry-pi-5", "raspberry-pi-4b"]
        assert by_name["quint8_avx2_static"].profiles == ["x86-avx2"]
        assert by_name["fp16"].profiles == by_name["raw_fp16"].profiles == []
        static = by_name["qint8_arm64_static"].quantization
        assert (static.mode, static.calibration.method, static.calibration.split) == ("static", "minmax", "train")
        assert static.calibration.num_items == len(PIXELS)
        assert by_name["qint8_arm64"].quantization.calibration is None
        assert by_name["fp16"].bytes < 0.7 * by_name["fp32"].bytes
        assert {v.inputs for v in entry.variants if v.name.startswith("raw")} == {"raw"}
        assert by_name["raw"].accuracy is None
        assert by_name["raw"].accuracy_note == "that of model.onnx, whose graph stands behind the preprocessing"
        assert by_name["fp16"].accuracy["split"] == "test"
    assert [v.file for v in manifest.whole] == [
        f"onnx/model{raw}{suffix}.onnx"
        for raw in ("", "_raw")
        for suffix in ("", "_quantized", "_quantized_static", "_fp16")
    ]
    assert {v.file for v in manifest.variants} == {p.relative_to(root).as_posix() for p in root.rglob("*.onnx")}
    assert set(manifest.ensemble.accuracy) == {"fp32", *names[1:6]}
    assert set(manifest.ensemble.gates) == set(names[1:6])
    quantized = manifest.whole[1]
    assert quantized.profiles == ["raspberry-pi-5", "raspberry-pi-4b"]  # of the first profile asked for
    parts = [entry.variant("int8", "raspberry-pi-5") for entry in manifest.sub_models]
    assert quantized.num_quantized_nodes == sum(part.num_quantized_nodes for part in parts)
    assert quantized.quantization.weight_bytes == sum(part.quantization.weight_bytes for part in parts)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_graph_of_the_whole_answers_like_its_parts(tmp_path_factory, precision):
    root = exported_everything(tmp_path_factory)[0]
    file = {"fp32": "onnx/model.onnx", "fp16": "onnx/model_fp16.onnx", "int8": "onnx/model_quantized.onnx"}[precision]
    parts = EDViTRuntime.from_pretrained(root, precision=precision, profile="raspberry-pi-5")
    for batch in (1, 2, 5):
        logits = GraphSession(root / file)(pixel_values=PIXELS[:batch])["logits"]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = parts.predict(PIXELS[:batch]).probabilities
        np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), expected, atol=2e-6)
    graph = onnx.load(root / file).graph
    assert [value.name for value in graph.input] == ["pixel_values"]
    assert [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output] == [["batch", 4]]
    assert not [node for node in graph.node if node.doc_string or node.metadata_props]
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read  # votes and their weights are left out


def test_raw_files_take_pictures_and_answer_as_the_transform_and_the_prepared_file_do(tmp_path_factory):
    root, _, manifest = exported_everything(tmp_path_factory)
    from edvit_hf.transforms import load_transform

    picture = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    inputs = load_transform(root, "image-classification").inputs(picture)
    for entry in manifest.sub_models:
        by_name = {v.name: root / v.file for v in entry.variants}
        for name in ("fp32", "fp16"):
            raw = GraphSession(by_name["raw" if name == "fp32" else f"raw_{name}"])(image=picture[None])
            prepared = GraphSession(by_name[name])(**inputs)
            for output in ("features", "logits"):
                np.testing.assert_allclose(raw[output], prepared[output], atol=1e-2 if name == "fp16" else 1e-5)


def test_texts_have_no_raw_files(tmp_path_factory):
    root, _, _ = exported_architectures(tmp_path_factory, "bert", "distilbert")
    inputs = {"input_ids": np.ones((8, 4), np.int64), "attention_mask": np.ones((8, 4), np.int64)}
    with pytest.raises(EDViTError, match="got one of texts"):
        export_ensemble(root, config=ExportConfig(with_preprocessing=True), inputs=inputs, progress=False)


def test_static_int8_without_items_to_calibrate_on_is_refused_if_asked_for_and_else_left_out(tmp_path_factory, caplog):
    from edvit_hf.export.ensemble import _possible

    asked = ExportConfig(profiles=("jetson-orin-nano",), precisions=("int8_static",))
    with pytest.raises(DataError, match="Expected items to calibrate"):
        _possible(requested_variants(asked, asked.profiles), asked, None)
    by_profile = ExportConfig()
    profiles = [name for name, profile in load_profiles().items() if "int8_static" in profile.export] or ["x86-avx2"]
    static = VariantRequest(kind="int8_static", preset="avx2", profiles=("x86-avx2",))
    wanted = [*requested_variants(by_profile, profiles), static]
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        assert all(each.kind != "int8_static" for each in _possible(wanted, by_profile, None))
    assert "no static int8 for" in caplog.text
    items = CalibrationItems(split="train", inputs={})
    assert _possible(wanted, by_profile, items) == wanted


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_images(tmp_path_factory)


def answers(*wrong):
    """A measure that finds so many items of the last two classes wrong, one number after the other."""
    left = iter(wrong)

    def measure(predict, class_group=None):
        predictions = LABELS.copy()
        predictions[20 - next(left) :] = 0
        return SplitAnswers(split="validation", labels=LABELS, predictions=predictions)

    return measure


@pytest.fixture
def maker(exported, tmp_path):
    """Makes a maker over a copy of the exported fp32 files, so that nothing is traced again."""

    def make(gate, **values):
        root, model, _, manifest = exported
        shutil.copytree(root, tmp_path / "copy", dirs_exist_ok=True)
        config = ExportConfig(profiles=(PROFILE,), **values)
        build = GraphBuilder(model, tmp_path / "copy", config=config, inputs={"pixel_values": PIXELS})
        fp32 = build.open_ensemble([entry.variants[0] for entry in manifest.sub_models])
        calibration = CalibrationItems(split="train", inputs={"pixel_values": PIXELS})
        return VariantMaker(build, fp32, gate=gate, calibration=calibration)

    return make


def test_only_the_gating_split_decides_and_the_test_split_is_asked_once_for_each_accepted_variant(exported):
    _, _, asked, manifest = exported
    assert asked[:2] == [("validation", None)] * 2  # fp32, then the one int8 attempt that was needed
    assert asked[2:] == [("test", each) for each in [None, None, *GROUPS, *GROUPS]]
    assert {row["split"] for row in manifest.ensemble.accuracy.values()} == {"test"}
    gate = manifest.ensemble.gates["quint8_avx2"]
    assert (gate["split"], gate["num_items"], gate["passed"]) == ("validation", 8, True)
    assert (gate["max_loss"], gate["max_group_loss"], gate["max_net_flips"]) == (0.005, 0.01, 2)
    assert sum(group["num_items"] for group in gate["groups"]) == 8
    int8 = [entry.variants[1] for entry in manifest.sub_models]
    assert gate["num_quantized_nodes"] == sum(v.num_quantized_nodes for v in int8)
    weights = sum(v.quantization.weight_bytes for v in int8), sum(v.quantization.weight_bytes_fp32 for v in int8)
    assert gate["weight_ratio"] == weights[0] / weights[1]


def test_int8_that_loses_accuracy_is_refused_with_the_class_group_that_loses_most(maker):
    made = maker(answers(1, 5, 5))
    with pytest.raises(
        ExportGateError, match=r"expected at most 2 more of 20.*class group 1, the worst \(c1, c3;.*--auto"
    ):
        made.make(INT8)
    assert made.gates == {}


def test_fp16_passes_the_same_gate(maker):
    fp16 = VariantRequest(kind="fp16", preset=None, profiles=())
    with pytest.raises(ExportGateError, match="fp16: expected at most 2 more of 20 validation items wrong"):
        maker(answers(0, 3)).make(fp16)
    made = maker(answers(0, 2))
    assert [v.name for v in made.make(fp16)] == ["fp16", "fp16"]
    assert made.gates["fp16"]["accuracy_fp16"] == 0.9
    assert "weight_ratio" not in made.gates["fp16"]


def test_reduced_range_is_tried_when_accuracy_falls_and_the_manifest_says_so(maker):
    made = maker(answers(1, 5, 2))
    variants = made.make(INT8)
    assert [v.quantization.reduce_range for v in variants] == [True, True]
    assert (made.gates["quint8_avx2"]["accuracy_int8"], made.gates["quint8_avx2"]["net_flips"]) == (0.9, 1)


def test_int8_without_a_measure_is_written_and_said_to_be_ungated(maker, caplog):
    made = maker(None, auto=True)
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        assert len(made.make(INT8)) == 2
    assert made.gates == {}
    assert "passed no accuracy gate" in caplog.text


def test_a_search_keeps_float_what_it_must_and_the_manifest_says_what(maker):
    """The gate opens only once the first sub-model keeps a group of nodes in float: the search has to find that."""
    reference = []

    def measure(predict, class_group=None):
        features = predict.answers({"pixel_values": PIXELS})["features"]
        reference.append(features)
        error = np.abs(features - reference[0]).mean()
        errors.append(error)
        predictions = LABELS.copy()
        if len(reference) > 1 and error > 0.6 * errors[1]:
            predictions[10:] = 0
        return SplitAnswers(split="validation", labels=LABELS, predictions=predictions)

    errors = []
    made = maker(measure, auto=True)
    variants = made.make(INT8)
    kept = [name for variant in variants for name in variant.quantization.kept_float]
    assert kept
    assert all(variant.num_quantized_nodes >= 1 for variant in variants)
    (name,) = made.gates
    assert variants[0].name == name
    gate = made.gates[name]
    assert gate["passed"]
    assert gate["tried"][0]["num_kept_float"] == 0
    assert not gate["tried"][0]["passed"]
    assert any(row["num_kept_float"] and row["passed"] for row in gate["tried"])
    for variant in variants:
        assert (made.build.staging / variant.file).is_file()
    assert not [p for p in made.build.staging.iterdir() if p.name.startswith("tmp")]


def test_every_profile_has_a_preset():
    from edvit_hf.export.int8.dynamic import PRESETS

    assert {profile.quantization for profile in load_profiles().values()} <= set(PRESETS)


def test_a_plan_gives_each_device_the_file_that_its_kind_runs_best(tmp_path_factory, monkeypatch):
    from dataclasses import replace as changed

    from edvit_hf.published import plan as published_plan
    from edvit_hf.published.plan import planned_variant

    entry = exported_everything(tmp_path_factory)[-1].sub_models[0]
    profiles = load_profiles()

    def chosen(profile, quantization):
        return planned_variant(entry, profile, quantization).name

    for name, quantization, expected in [
        ("raspberry-pi-5", "arm64", "qint8_arm64"),
        ("jetson-nano", "arm64", "qint8_arm64"),  # fp16 is for its GPU; here int8 of the same instructions runs
        ("intel-n100", "avx2", "quint8_avx2"),
        ("x86-avx512-vnni", "avx512_vnni", "fp32"),  # nothing was exported for it
        ("my-own-board", "arm64", "qint8_arm64"),  # a measured profile
    ]:
        assert chosen(name, quantization) == expected
    orders = {("fp16", "int8"): "fp16", ("int8_static", "int8"): "qint8_arm64_static", (): "fp32"}
    for export, expected in orders.items():
        other = {**profiles, "raspberry-pi-5": changed(profiles["raspberry-pi-5"], export=export)}
        monkeypatch.setattr(published_plan, "load_profiles", lambda other=other: other)
        assert chosen("raspberry-pi-5", "arm64") == expected


def test_the_table_shows_every_variant_and_its_gate(tmp_path_factory):
    root, _, manifest = exported_everything(tmp_path_factory)
    (table,) = export_tables(export_report(root, manifest))
    cells = [list(map(str, column.cells)) for column in table.columns]
    assert cells[0][:3] == ["fp32", "qint8_arm64", "quint8_avx2"]
    assert cells[0][-1] == "whole raw_fp16"
    assert cells[1][1] == "raspberry-pi-5 raspberry-pi-4b"
    gate = manifest.ensemble.gates["qint8_arm64"]
    assert cells[-2][1] == f"{gate['net_flips']} (2)"
    assert cells[-1][1].endswith("(2)")
    assert cells[-1][0] == ""
    report = export_report(root, manifest) | {"accuracy_note": "not measured: no data"}
    assert export_tables(report)[1:] == ["accuracy: not measured: no data"]
    first = report["variants"][0]
    first["accuracy"] = {**first["accuracy"], "dataset": {"name": "pets"}}
    assert export_tables(report)[1] == "gates and accuracy: measured on pets"
    # fp32 may have its accuracy from an earlier export while what was added now passed no gate
    report = export_report(root, manifest)
    next(row for row in report["variants"] if row["name"] == "quint8_avx2")["gate"] = None
    assert export_tables(report)[1:] == ["passed no gate: quint8_avx2"]
