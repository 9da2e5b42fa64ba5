# SPDX-License-Identifier: Apache-2.0
"""float16 files: half the bytes, the same interface, nearly the same answers."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edvit_hf.errors import ExportGateError
from edvit_hf.export.gates import GraphSession
from edvit_hf.export.graphs.derived import halve_graph, load_graph, sort_nodes
from support.tiny_architectures import tiny_inputs
from support.tiny_export import PIXELS, exported_architectures, exported_images


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """fp32 file of an image and of two text sub-models, with inputs."""
    root, _, _, manifest = exported_images(tmp_path_factory)
    texts, _, text_manifest = exported_architectures(tmp_path_factory, "bert", "distilbert")
    tokens = {name: values.numpy() for name, values in tiny_inputs("bert", 8).items()}
    images = [(root / manifest.sub_models[0].variant().file, {"pixel_values": PIXELS})]
    return images + [(texts / entry.variant().file, tokens) for entry in text_manifest.sub_models]


def test_weights_are_float16_and_inputs_and_outputs_stay_as_they_were(sources, tmp_path):
    for source, inputs in sources:
        target = tmp_path / "half.onnx"
        halve_graph(source, target)
        half, original = onnx.load(target), onnx.load(source)
        assert half.graph.input == original.graph.input
        assert half.graph.output == original.graph.output
        kinds = {t.name: t.data_type for t in original.graph.initializer}
        assert TensorProto.FLOAT not in {t.data_type for t in half.graph.initializer}
        for tensor in half.graph.initializer:
            expected = TensorProto.FLOAT16 if kinds[tensor.name] == TensorProto.FLOAT else kinds[tensor.name]
            assert tensor.data_type == expected
        weights = [sum(len(t.raw_data) for t in m.graph.initializer if t.dims) for m in (half, original)]
        assert weights[0] < 0.55 * weights[1]  # integers (positions, shapes) stay 8 bytes
        got, expected = GraphSession(target)(**inputs), GraphSession(source)(**inputs)
        for name in ("features", "logits"):
            assert got[name].dtype == np.float32
            assert 0 < np.abs(got[name] - expected[name]).max() < 0.01 * np.abs(expected[name]).max()


def test_padding_of_texts_still_weighs_nothing(sources, tmp_path):
    source, inputs = sources[1]
    halve_graph(source, tmp_path / "half.onnx")
    mask = inputs["attention_mask"]
    others = {**inputs, "input_ids": np.where(mask == 1, inputs["input_ids"], 7)}
    half = GraphSession(tmp_path / "half.onnx")
    np.testing.assert_array_equal(half(**inputs)["features"], half(**others)["features"])


def test_nodes_can_stay_float32_with_their_weights(sources, tmp_path):
    source, inputs = sources[0]
    node = next(n for n in load_graph(source).graph.node if n.op_type == "LayerNormalization")
    halve_graph(source, tmp_path / "half.onnx", kept_float=[node.name])
    kinds = {t.name: t.data_type for t in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT} == set(node.input[1:])
    GraphSession(tmp_path / "half.onnx")(**inputs)


def test_converting_leaves_the_search_path_of_modules_alone(sources, tmp_path):
    for name in [name for name in sys.modules if name.startswith("onnxruntime.transformers")]:
        del sys.modules[name]
    before = list(sys.path)
    halve_graph(sources[0][0], tmp_path / "half.onnx")
    assert sys.path == before


def test_weights_that_float16_cannot_hold_are_refused_unless_they_stay_float32(sources, tmp_path):
    source, _ = sources[0]
    model = load_graph(source)
    product = next(
        n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in {t.name for t in model.graph.initializer}
    )
    for tensor in model.graph.initializer:
        if tensor.name == product.input[1]:
            values = numpy_helper.to_array(tensor).copy()
            values[0, 0] = 1e5
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(ExportGateError, match=r"expected weights up to 65504, got 1e\+05 in"):
        halve_graph(tmp_path / "large.onnx", tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()
    halve_graph(tmp_path / "large.onnx", tmp_path / "half.onnx", kept_float=[product.name])


def test_a_half_file_is_no_source_and_neither_is_a_broken_one(sources, tmp_path):
    source, _ = sources[0]
    halve_graph(source, tmp_path / "half.onnx")
    with pytest.raises(ExportGateError, match="expected float32 weights, found none"):
        halve_graph(tmp_path / "half.onnx", tmp_path / "quarter.onnx")
    (tmp_path / "broken.onnx").write_bytes(source.read_bytes()[:1000])
    with pytest.raises(ExportGateError, match="Expected an intact ONNX file"):
        halve_graph(tmp_path / "broken.onnx", tmp_path / "half.onnx")


def test_sorting_nodes_keeps_what_is_in_order_and_mends_what_is_not(sources):
    model = load_graph(sources[0][0])
    right = [node.name for node in model.graph.node]
    sort_nodes(model.graph)
    assert [node.name for node in model.graph.node] == right
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    sort_nodes(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert sorted(node.name for node in model.graph.node) == sorted(right)
