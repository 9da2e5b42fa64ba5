# SPDX-License-Identifier: Apache-2.0
"""Static int8 files: ranges from calibration data, what is quantized by them, and bad calibration data."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edvit_hf.errors import DataError, ExportGateError
from edvit_hf.export.gates import GraphSession
from edvit_hf.export.graphs.derived import load_graph
from edvit_hf.export.int8.dynamic import PRESETS, quantize_graph
from edvit_hf.export.int8.nodes import quantizable_nodes
from edvit_hf.export.int8.static import calibrate, quantize_graph_static
from edvit_hf.manifest import Calibration
from support.tiny_architectures import tiny_inputs
from support.tiny_export import PIXELS, exported_architectures, exported_images

STATIC = replace(PRESETS["arm64"], mode="static")
IMAGES = {"pixel_values": PIXELS}
METHODS = ("minmax", "entropy", "percentile")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root, _, _, manifest = exported_images(tmp_path_factory)
    return root / manifest.sub_models[0].variant().file


@pytest.fixture(scope="module")
def ranges(source):
    return calibrate(source, IMAGES)


@pytest.fixture(scope="module")
def text_sources(tmp_path_factory):
    root, _, manifest = exported_architectures(tmp_path_factory, "bert", "distilbert")
    return [root / entry.variant().file for entry in manifest.sub_models]


def distance(got, expected):
    return np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))


@pytest.mark.parametrize("isa", PRESETS)
def test_products_and_the_patch_embedding_are_int8_and_all_else_float(source, ranges, tmp_path, isa):
    preset, target = replace(PRESETS[isa], mode="static"), tmp_path / "int8.onnx"
    nodes = quantize_graph_static(source, target, preset, ranges, num_expected=6)
    assert (nodes.num_nodes, nodes.op_types) == (7, ["Conv", "MatMul"])
    assert nodes.weight_bytes <= 0.27 * nodes.weight_bytes_fp32
    graph = onnx.load(target).graph
    makers = {name: node for node in graph.node for name in node.output}
    after = {"Conv"}  # whose answers are quantized too
    for node in graph.node:
        read = [makers[name].op_type for name in node.input if name in makers]
        if node.op_type in ("LayerNormalization", "Softmax", "Gelu", "Mul") or "logits" in node.output:
            assert "DequantizeLinear" not in read, node.name
        if node.op_type == "QuantizeLinear" and node.input[0] in makers:
            after.add(makers[node.input[0]].op_type)
    assert after == {"Conv", "LayerNormalization", "Slice", "Gelu", "Reshape"}  # the token that is read
    wanted = TensorProto.UINT8 if isa == "avx2" else TensorProto.INT8
    assert {t.data_type for t in graph.initializer if t.name.endswith("_quantized") and len(t.dims) > 1} == {wanted}


def test_attention_multiplies_in_float(source, ranges, tmp_path):
    quantize_graph_static(source, tmp_path / "int8.onnx", STATIC, ranges)
    graph, original = onnx.load(tmp_path / "int8.onnx").graph, onnx.load(source).graph
    constants = {t.name for t in original.initializer}
    attention = [n.name for n in original.node if n.op_type == "MatMul" and n.input[1] not in constants]
    assert len(attention) == 2
    scaled = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    assert not [n.name for n in graph.node if n.name in attention and set(n.input) & scaled]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_answers_close_to_fp32(source, tmp_path, method):
    expected = GraphSession(source)(**IMAGES)["features"]
    ranges = calibrate(source, IMAGES, method=method, batch_size=8)
    assert (ranges.method, ranges.num_items) == (method, len(PIXELS))
    quantize_graph_static(source, tmp_path / "int8.onnx", STATIC, ranges)
    assert 0 < distance(GraphSession(tmp_path / "int8.onnx")(**IMAGES)["features"], expected) < 0.1


def test_the_answer_to_an_item_does_not_depend_on_its_batch(source, ranges, tmp_path):
    """Unlike in a dynamic file: ranges are fixed."""
    quantize_graph_static(source, tmp_path / "int8.onnx", STATIC, ranges)
    session = GraphSession(tmp_path / "int8.onnx")
    alone = np.concatenate([session(pixel_values=PIXELS[i : i + 1])["features"] for i in range(6)])
    np.testing.assert_allclose(session(pixel_values=PIXELS[:6])["features"], alone, atol=1e-5)


def test_methods_differ_by_outliers_and_ranges_do_not_depend_on_batches(source):
    outlying = np.tile(PIXELS, (60, 1, 1, 1))
    outlying[3, 0, 0, 0] = 20.0  # one of 230 400 values

    def width(method, batch_size):
        ranges = calibrate(source, {"pixel_values": outlying}, method=method, batch_size=batch_size)
        return float(np.ptp(np.ravel(ranges.tensors["pixel_values"].range_value)))

    assert width("minmax", 1200) == pytest.approx(float(np.ptp(outlying)))
    assert width("minmax", 300) == width("minmax", 1200)
    for method in ("entropy", "percentile"):
        assert np.ptp(PIXELS) * 0.9 < width(method, 1200) < 0.9 * width("minmax", 1200)


def test_ranges_are_found_for_what_is_quantized_and_nothing_else(source, ranges):
    nodes = quantizable_nodes(load_graph(source), op_types=("MatMul", "Gemm", "Conv"))
    convolution = next(n.output[0] for n in load_graph(source).graph.node if n.op_type == "Conv")
    assert set(ranges.tensors.keys()) == {node.reads for node in nodes} | {convolution}


def test_texts_have_int8_tables_and_residuals_in_float(text_sources, tmp_path):
    inputs = {name: values.numpy() for name, values in tiny_inputs("bert", 8).items()}
    for source in text_sources:
        target = tmp_path / "int8.onnx"
        nodes = quantize_graph_static(source, target, STATIC, calibrate(source, inputs))
        assert {"Gather", "Gemm", "MatMul"} == set(nodes.op_types)
        assert nodes.weight_bytes <= 0.27 * nodes.weight_bytes_fp32
        assert distance(GraphSession(target)(**inputs)["features"], GraphSession(source)(**inputs)["features"]) < 0.1
        graph = onnx.load(target).graph
        tables = {n.output[0] for n in graph.node if n.op_type == "Gather"}
        scaled = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in tables}
        sums = [n for n in graph.node if n.op_type == "Add"]
        assert not [n.name for n in sums if set(n.input) & scaled]  # BERT adds what its norms answer


def test_nodes_kept_in_float_are_float(source, ranges, tmp_path):
    convolution = [n.name for n in quantizable_nodes(load_graph(source), op_types=["Conv"])]
    nodes = quantize_graph_static(source, tmp_path / "int8.onnx", STATIC, ranges, kept_float=convolution)
    assert nodes.op_types == ["MatMul"]
    assert nodes.kept_float == ["vit.embeddings.patch_embeddings.projection"]
    graph = onnx.load(tmp_path / "int8.onnx").graph
    assert next(n for n in graph.node if n.op_type == "Conv").input[0] == "pixel_values"


def test_the_same_file_comes_out_every_time_and_the_manifest_can_say_how(source, ranges, tmp_path):
    first, again = tmp_path / "a.onnx", tmp_path / "b.onnx"
    nodes = quantize_graph_static(source, first, STATIC, ranges)
    quantize_graph_static(source, again, STATIC, ranges)
    assert first.read_bytes() == again.read_bytes()
    calibration = Calibration(method="minmax", split="train", num_items=ranges.num_items)
    described = STATIC.describe(nodes, calibration)
    assert (described.mode, described.calibration, described.weight_bytes) == (
        "static",
        calibration,
        nodes.weight_bytes,
    )
    assert STATIC.suffix == "qint8_arm64_static"


def test_weights_weigh_the_same_in_both_modes(source, ranges, tmp_path):
    kept = [n.name for n in quantizable_nodes(load_graph(source), op_types=["Conv"])]
    static = quantize_graph_static(source, tmp_path / "a.onnx", STATIC, ranges, kept_float=kept)
    dynamic = quantize_graph(source, tmp_path / "b.onnx", PRESETS["arm64"])
    assert (static.weight_bytes, static.weight_bytes_fp32) == (dynamic.weight_bytes, dynamic.weight_bytes_fp32)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"Expected calibration data for the inputs \['pixel_values'\], got \[\]"),
        ({"pixels": PIXELS}, r"got \['pixels'\]"),
        ({"pixel_values": PIXELS[:0]}, "at least one"),
        ({"pixel_values": np.where(PIXELS > 2, np.nan, PIXELS)}, "Expected finite calibration data, got"),
        ({"pixel_values": np.where(PIXELS > 2, np.inf, PIXELS)}, "Expected finite calibration data, got"),
    ],
)
def test_bad_calibration_data_is_refused(source, inputs, message):
    with pytest.raises(DataError, match=message):
        calibrate(source, inputs)


def test_unknown_methods_and_ranges_of_another_graph_are_refused(source, ranges, text_sources, tmp_path):
    with pytest.raises(DataError, match="minmax, entropy, percentile, got 'average'"):
        calibrate(source, IMAGES, method="average")
    with pytest.raises(DataError, match="They were measured on another graph"):
        quantize_graph_static(text_sources[0], tmp_path / "int8.onnx", STATIC, ranges)


def test_broken_and_empty_graphs_are_refused(source, ranges, tmp_path_factory, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(source.read_bytes()[:3000])
    with pytest.raises(ExportGateError, match="Expected an intact ONNX file"):
        calibrate(tmp_path / "broken.onnx", IMAGES)
    with pytest.raises(ExportGateError, match="Expected an intact ONNX file"):
        quantize_graph_static(tmp_path / "broken.onnx", tmp_path / "int8.onnx", STATIC, ranges)
    root, _, _, manifest = exported_images(tmp_path_factory)
    with pytest.raises(ExportGateError, match="expected at least one product"):
        calibrate(root / manifest.fusion.variants[0].file, {"features": PIXELS, "votes": PIXELS, "mask": PIXELS})


def test_nothing_is_printed(source, capsys):
    calibrate(source, IMAGES, method="entropy")
    assert capsys.readouterr() == ("", "")


def test_a_file_that_the_engine_cannot_open_is_refused_in_plain_words(tmp_path):
    """It happens: onnxruntime 1.31 stumbles over its own rewriting of signed activations from operator set 21 on."""
    (tmp_path / "model_qint8_tensorrt_static.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportGateError, match=r"^model_qint8_tensorrt_static\.onnx: .* cannot open it"):
        GraphSession(tmp_path / "model_qint8_tensorrt_static.onnx")
