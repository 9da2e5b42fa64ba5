"""int8 files: what is quantized, and by which gate they are accepted."""

import logging
import shutil

import onnx
import onnxruntime
import pytest

from edvit_hf.errors import DataError, ExportGateError
from edvit_hf.export import ExportConfig
from edvit_hf.export.build import GraphBuilder, judged
from edvit_hf.export.ensemble import _quantize
from edvit_hf.export.optimum_config import resolve_onnx_config
from edvit_hf.export.quantization import PRESETS, quantize_graph
from edvit_hf.manifest import load_profiles
from tiny_export import GROUPS, PIXELS, PROFILE, exported_images


class Bar:
    """A progress bar that shows nothing."""

    def set_postfix_str(self, *_, **__): ...
    def update(self): ...


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_images(tmp_path_factory)


@pytest.fixture
def builder(exported, tmp_path):
    """A builder over a copy of the exported files, so that later steps run without tracing again."""
    root, model, _, _ = exported
    shutil.copytree(root, tmp_path / "copy")
    config = ExportConfig(profile=PROFILE, max_int8_accuracy_loss=0.05)
    return GraphBuilder(model, tmp_path / "copy", config=config, inputs={"pixel_values": PIXELS})


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_int8_keeps_norms_softmax_and_the_vote_head_float(exported):
    root, _, _, manifest = exported
    graph = onnx.load(root / manifest.sub_models[0].variant("int8", PROFILE).file).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("LayerNormalization") == 3
    assert ops.count("Softmax") == ops.count("Gelu") == 1
    head = next(node for node in graph.node if "logits" in node.output)
    assert head.op_type in ("Gemm", "MatMul", "Add")
    weights = {t.name: t.data_type for t in graph.initializer if "classifier.weight" in t.name}
    assert set(weights.values()) == {onnx.TensorProto.FLOAT}, weights


@pytest.mark.parametrize("isa", PRESETS)
def test_every_preset_quantizes_all_linear_maps_per_channel_into_its_weight_type(exported, tmp_path, isa):
    root, model, _, manifest = exported
    preset, config = PRESETS[isa], resolve_onnx_config(model.sub_models[0].config)
    source, target = root / manifest.sub_models[0].variant().file, tmp_path / "int8.onnx"
    for attempt in preset.attempts():
        nodes = quantize_graph(source, target, attempt, config, num_expected=6)
        assert nodes.num_nodes == 6
        graph = onnx.load(target).graph
        expected = onnx.TensorProto.UINT8 if isa == "avx2" else onnx.TensorProto.INT8
        weights = [t for t in graph.initializer if t.name.endswith("_quantized")]
        assert {t.data_type for t in weights} == {expected}
        points = {t.name: t for t in graph.initializer}
        by_name = [n.input[3] for n in graph.node if n.op_type == "MatMulInteger"]
        assert all(list(points[name].dims)[-1:] in ([32], [48]) for name in by_name)
        session(target).run(None, {"pixel_values": PIXELS[:1]})
    assert len(list(preset.attempts())) == (2 if isa in ("avx2", "avx512") else 1)


def test_a_quantizer_that_skips_layers_is_refused(exported, tmp_path):
    root, model, _, manifest = exported
    config = resolve_onnx_config(model.sub_models[0].config)
    source = root / manifest.sub_models[0].variant().file
    with pytest.raises(ExportGateError, match="expected 7 quantized nodes, got 6"):
        quantize_graph(source, tmp_path / "int8.onnx", PRESETS["avx2"], config, num_expected=7)


def test_only_the_gating_split_decides_and_the_test_split_is_asked_once_for_each_accepted_variant(exported):
    _, _, asked, manifest = exported
    assert asked[:2] == [("validation", None)] * 2  # fp32, then the one int8 attempt that was needed
    assert asked[2:] == [("test", each) for each in [None, None, *GROUPS, *GROUPS]]
    assert {row["split"] for row in manifest.ensemble.accuracy.values()} == {"test"}
    gate = manifest.ensemble.gates["quint8_avx2"]
    assert (gate["split"], gate["num_items"], gate["passed"]) == ("validation", 8, True)
    assert (gate["max_loss"], gate["max_net_flips"], gate["tolerance"]) == (0.005, 2, 0.25)


def judge_rows(*accuracies):
    rows = iter([{"split": "validation", "accuracy": a, "num_items": 20} for a in accuracies])
    return lambda predict, class_group=None: next(rows)


def test_int8_that_loses_accuracy_is_refused(builder):
    gates = {}
    with pytest.raises(ExportGateError, match="expected at most 2 more of 20 validation items wrong than fp32"):
        _quantize(builder, None, judge_rows(0.9, 0.7, 0.7), gates, Bar())
    assert gates == {}


def test_reduced_range_is_tried_when_accuracy_falls_and_the_manifest_says_so(builder):
    gates = {}
    variants = _quantize(builder, None, judge_rows(0.9, 0.7, 0.85), gates, Bar())
    assert [v.quantization.reduce_range for v in variants] == [True, True]
    assert (gates["quint8_avx2"]["accuracy_int8"], gates["quint8_avx2"]["net_flips"]) == (0.85, 1)


def test_int8_without_a_judge_is_written_and_said_to_be_ungated(builder, caplog):
    gates = {}
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        assert len(_quantize(builder, None, None, gates, Bar())) == 2
    assert gates == {}
    assert "passed no accuracy gate" in caplog.text


def test_a_judge_that_does_not_name_its_items_is_refused():
    with pytest.raises(DataError, match="`split`, `num_items` and `accuracy`"):
        judged(lambda predict, class_group: {"accuracy": 1.0}, None)


def test_every_profile_has_a_preset():
    assert {profile.quantization for profile in load_profiles().values()} <= set(PRESETS)
