# SPDX-License-Identifier: Apache-2.0
"""Dynamic int8 files: what is quantized, how many bytes the weights take, and what is refused."""

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edvit_hf.errors import ExportGateError
from edvit_hf.export.graphs.derived import load_graph
from edvit_hf.export.int8 import nodes as int8_nodes
from edvit_hf.export.int8.dynamic import PRESETS, quantize_graph
from edvit_hf.export.int8.nodes import node_groups, quantizable_nodes
from support.tiny_architectures import tiny_inputs
from support.tiny_export import PIXELS, PROFILE, exported_architectures, exported_images

ARM, AVX2 = PRESETS["arm64"], PRESETS["avx2"]
ALL_TYPES = ("MatMul", "Gemm", "Conv", "Gather")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_images(tmp_path_factory)


@pytest.fixture(scope="module")
def source(exported):
    root, _, _, manifest = exported
    return root / manifest.sub_models[0].variant().file


@pytest.fixture(scope="module")
def text_sources(tmp_path_factory):
    root, _, manifest = exported_architectures(tmp_path_factory, "bert", "distilbert")
    return [root / entry.variant().file for entry in manifest.sub_models]


def run(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(["features", "logits"], session.run(["features", "logits"], inputs), strict=True))


def distance(got, expected):
    return np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))


def save_linear(path, *sizes, op_type="MatMul"):
    """A chain of linear maps x (batch, sizes[0]) -> features, and a vote head."""
    generator = np.random.default_rng(0)
    nodes, constants, name = [], [], "x"
    for i, (k, n) in enumerate(itertools.pairwise(sizes)):
        constants.append(
            numpy_helper.from_array(generator.standard_normal((k, n), dtype=np.float32), f"layer{i}.weight")
        )
        last = i == len(sizes) - 2
        nodes.append(helper.make_node(op_type, [name, f"layer{i}.weight"], ["features" if last else f"h{i}"], f"n{i}"))
        name = nodes[-1].output[0]
    constants.append(
        numpy_helper.from_array(generator.standard_normal((3, sizes[-1]), dtype=np.float32), "head.weight")
    )
    nodes.append(helper.make_node("Gemm", ["features", "head.weight"], ["logits"], "head", transB=1))
    values = [("x", sizes[0]), ("features", sizes[-1]), ("logits", 3)]
    x, *outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size]) for n, size in values]
    graph = helper.make_graph(nodes, "linear", [x], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_int8_keeps_norms_softmax_and_the_vote_head_float(exported):
    root, _, _, manifest = exported
    graph = onnx.load(root / manifest.sub_models[0].variant("int8", PROFILE).file).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("LayerNormalization") == 3
    assert ops.count("Softmax") == ops.count("Gelu") == 1
    head = next(node for node in graph.node if "logits" in node.output)
    assert head.op_type in ("Gemm", "MatMul", "Add")
    weights = {t.name: t.data_type for t in graph.initializer if "classifier.weight" in t.name}
    assert set(weights.values()) == {TensorProto.FLOAT}, weights


@pytest.mark.parametrize("isa", PRESETS)
def test_every_preset_quantizes_all_linear_maps_into_its_weight_type(source, tmp_path, isa):
    preset, target = PRESETS[isa], tmp_path / "int8.onnx"
    expected = run(source, {"pixel_values": PIXELS})["features"]
    for attempt in preset.attempts():
        nodes = quantize_graph(source, target, attempt, num_expected=6)
        assert (nodes.num_nodes, nodes.op_types, nodes.kept_float) == (6, ["MatMul"], [])
        graph = onnx.load(target).graph
        wanted = TensorProto.UINT8 if isa == "avx2" else TensorProto.INT8
        assert {t.data_type for t in graph.initializer if t.name.endswith("_quantized")} == {wanted}
        assert [n.op_type for n in graph.node].count("MatMulInteger") == 6
        assert 0 < distance(run(target, {"pixel_values": PIXELS})["features"], expected) < 0.1
    assert len(list(preset.attempts())) == (2 if isa in ("avx2", "avx512") else 1)


def test_a_file_is_as_clean_as_its_source_and_the_same_every_time(source, tmp_path):
    first, again = tmp_path / "a.onnx", tmp_path / "b.onnx"
    quantize_graph(source, first, ARM)
    quantize_graph(source, again, ARM)
    assert first.read_bytes() == again.read_bytes()
    model, original = onnx.load(first), onnx.load(source)
    assert model.graph.input == original.graph.input
    assert model.graph.output == original.graph.output
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert not model.metadata_props
    assert not model.graph.value_info


def scales_of(path):
    graph = onnx.load(path).graph
    return {t.name: list(t.dims) for t in graph.initializer if t.name.endswith("_scale")}


def test_wide_channels_have_a_scale_each_and_narrow_weights_have_one(tmp_path):
    source, target = save_linear(tmp_path / "a.onnx", 64, 63, 7), tmp_path / "int8.onnx"
    nodes = quantize_graph(source, target, ARM)
    scales = {name: dims for name, dims in scales_of(target).items() if "layer" in name}
    assert scales == {"layer0.weight_scale": [63], "layer1.weight_scale": []}
    assert nodes.per_channel
    assert not quantize_graph(source, target, replace(ARM, per_channel=False)).per_channel
    assert scales_of(target)["layer0.weight_scale"] == []
    quantize_graph(source, target, replace(ARM, min_channel_inputs=1))
    assert scales_of(target)["layer1.weight_scale"] == [7]


@given(st.lists(st.integers(2, 140), min_size=2, max_size=4), st.sampled_from(["arm64", "avx2"]))
@settings(max_examples=15, deadline=None)
def test_quantized_weights_take_at_most_the_share_that_is_promised(tmp_path_factory, sizes, isa):
    folder = tmp_path_factory.mktemp("linear")
    source, target = save_linear(folder / "a.onnx", *sizes), folder / "int8.onnx"
    nodes = quantize_graph(source, target, PRESETS[isa])
    count = sum(k * n for k, n in itertools.pairwise(sizes))
    assert nodes.weight_bytes_fp32 == 4 * count
    scales = [n if k >= 64 else 1 for k, n in itertools.pairwise(sizes)]
    each = 4 if isa == "arm64" else 5  # signed weights need no zero point
    assert nodes.weight_bytes == count + sum(each * s for s in scales)
    if all(k * n >= 64 for k, n in itertools.pairwise(sizes)):  # below, even one scale is felt
        assert nodes.weight_bytes <= 0.27 * nodes.weight_bytes_fp32


def test_tables_of_embeddings_become_int8_with_a_scale_per_column(text_sources, tmp_path):
    inputs = {name: values.numpy() for name, values in tiny_inputs("bert", 8).items()}
    for source in text_sources:
        target = tmp_path / "int8.onnx"
        tables = [n for n in quantizable_nodes(load_graph(source), op_types=["Gather"]) if n.op_type == "Gather"]
        assert any("word_embeddings" in table.path for table in tables)
        nodes = quantize_graph(source, target, ARM)
        assert "Gather" in nodes.op_types
        assert nodes.weight_bytes <= 0.27 * nodes.weight_bytes_fp32
        graph = onnx.load(target).graph
        constants = {t.name: t for t in graph.initializer}
        by_name = {node.name: node for node in graph.node}
        floats = {t.name: numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
        for table in tables:
            gather = by_name[table.name]
            scaling = next(n for n in graph.node if n.input and n.input[0] == gather.output[0])
            assert scaling.op_type == "DequantizeLinear"
            rows, scales = (numpy_helper.to_array(constants[n]) for n in (gather.input[0], scaling.input[1]))
            assert (rows.dtype, scales.shape) == (np.int8, (table.shape[1],))
            assert (np.abs(rows * scales - floats[table.weight]) <= scales / 2 * 1.0001).all()
        assert distance(run(target, inputs)["features"], run(source, inputs)["features"]) < 0.1


def test_a_table_that_is_read_twice_is_stored_once(tmp_path):
    table = numpy_helper.from_array(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "words.weight")
    nodes = [helper.make_node("Gather", ["words.weight", name], [f"e{name}"], f"g{name}") for name in "ab"]
    nodes.append(helper.make_node("Add", ["ea", "eb"], ["features"], "sum"))
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"]) for name in "ab"]
    output = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])
    model = helper.make_model(
        helper.make_graph(nodes, "g", values, [output], [table]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    int8_nodes.quantize_tables(model, ["ga", "gb"])
    onnx.checker.check_model(model, full_check=True)
    assert [t.name for t in model.graph.initializer] == ["words.weight_quantized", "words.weight_scale"]
    assert int8_nodes.weight_bytes(model) == (12 + 3 * 4, 48)
    assert int8_nodes.quantized_names(model) == {"ga", "gb"}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"a": np.array([0, 3]), "b": np.array([1, 3])})
    expected = numpy_helper.to_array(table)[[0, 3]] + numpy_helper.to_array(table)[[1, 3]]
    np.testing.assert_allclose(got, expected, atol=0.01)


def test_what_is_quantizable_is_named_by_its_module_and_heads_are_left_out(source, text_sources):
    nodes = quantizable_nodes(load_graph(source), op_types=ALL_TYPES)
    paths = [node.path for node in nodes]
    assert paths[0] == "vit.embeddings.patch_embeddings.projection"
    assert {p.rpartition(".")[2] for p in paths[1:]} == {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}
    assert len(paths) == 7
    texts = [n.path for n in quantizable_nodes(load_graph(text_sources[0]), op_types=ALL_TYPES)]
    assert "bert.pooler.dense" in texts
    assert not [path for path in [*paths, *texts] if path.endswith("classifier")]


def test_a_fusion_head_inside_a_graph_stays_float(tmp_path):
    path = save_linear(tmp_path / "a.onnx", 8, 8, 8)
    model = onnx.load(path)
    model.graph.initializer[1].name = model.graph.node[1].input[1] = "fusion.layer.weight"
    assert [n.name for n in quantizable_nodes(model, op_types=ALL_TYPES)] == ["n0"]


def test_nodes_that_read_the_same_tensor_form_a_group(source):
    nodes = quantizable_nodes(load_graph(source), op_types=("MatMul", "Gemm"))
    groups = node_groups(nodes)
    assert sorted(name for group in groups for name in group.nodes) == sorted(node.name for node in nodes)
    assert sum(group.cost for group in groups) == 3 * sum(node.num_values for node in nodes)
    reads = {node.name: node.reads for node in nodes}
    for group in groups:
        assert len({reads[name] for name in group.nodes}) == 1
    assert any("k_proj+v_proj" in group.label or "k_proj+q_proj+v_proj" in group.label for group in groups)


def test_nodes_kept_in_float_are_float_and_said_to_be(source, tmp_path):
    group = node_groups(quantizable_nodes(load_graph(source), op_types=("MatMul",)))[-1]
    whole, part = (
        quantize_graph(source, tmp_path / "int8.onnx", ARM, num_expected=6, kept_float=kept)
        for kept in ((), group.nodes)
    )
    assert part.num_nodes == whole.num_nodes - len(group.nodes)
    assert part.kept_float == [group.label]
    assert whole.weight_bytes_fp32 - part.weight_bytes_fp32 == group.cost * 4 // 3
    ops = {node.name: node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert {ops[name] for name in group.nodes} == {"MatMul"}


def test_a_graph_with_fewer_linear_maps_than_the_model_is_refused(source, tmp_path):
    with pytest.raises(ExportGateError, match="expected 7 products with constant weights, found 6"):
        quantize_graph(source, tmp_path / "int8.onnx", AVX2, num_expected=7)
    assert not (tmp_path / "int8.onnx").exists()


def test_a_quantizer_that_skips_layers_is_refused(source, tmp_path, monkeypatch):
    from onnxruntime import quantization

    real = quantization.quantize_dynamic

    def lazy(*args, nodes_to_quantize, **kwargs):
        return real(*args, nodes_to_quantize=nodes_to_quantize[1:], **kwargs)

    monkeypatch.setattr(quantization, "quantize_dynamic", lazy)
    with pytest.raises(ExportGateError, match="expected 6 quantized nodes, got 5"):
        quantize_graph(source, tmp_path / "int8.onnx", ARM)


def test_a_graph_without_anything_to_quantize_is_refused(exported, source, tmp_path):
    root, _, _, manifest = exported
    with pytest.raises(ExportGateError, match="expected at least one product"):
        quantize_graph(root / manifest.fusion.variants[0].file, tmp_path / "int8.onnx", ARM)
    everything = [node.name for node in quantizable_nodes(load_graph(source), op_types=("MatMul", "Gemm"))]
    with pytest.raises(ExportGateError, match="expected at least one product"):
        quantize_graph(source, tmp_path / "int8.onnx", ARM, kept_float=everything)


def test_an_int8_file_is_no_source(source, tmp_path):
    quantize_graph(source, tmp_path / "int8.onnx", ARM)
    with pytest.raises(ExportGateError, match="expected at least one product"):
        quantize_graph(tmp_path / "int8.onnx", tmp_path / "again.onnx", ARM)


def test_nodes_of_another_graph_cannot_be_kept(source, tmp_path):
    with pytest.raises(ExportGateError, match=r"got \['node_of_another'\]"):
        quantize_graph(source, tmp_path / "int8.onnx", ARM, kept_float=["node_of_another"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"PK\x03\x04 no graph at all, but a zip",
    ],
)
def test_files_that_are_no_intact_onnx_are_refused(source, tmp_path, damage):
    path = tmp_path / "broken.onnx"
    path.write_bytes(damage(source.read_bytes()))
    with pytest.raises(ExportGateError, match=r"Expected an intact ONNX file, but broken\.onnx is none"):
        quantize_graph(path, tmp_path / "int8.onnx", ARM)
    with pytest.raises(ExportGateError, match="found none"):
        quantize_graph(tmp_path / "absent.onnx", tmp_path / "int8.onnx", ARM)
    assert not (tmp_path / "int8.onnx").exists()


def test_settings_start_with_the_preset_and_are_all_different():
    for preset in PRESETS.values():
        tried = preset.settings()
        assert tried[: len(list(preset.attempts()))] == list(preset.attempts())
        assert len(set(tried)) == len(tried) == (12 if preset.may_reduce_range else 6)
        assert {s.isa for s in tried} == {preset.isa}
        assert {s.weight_type for s in tried} == {"QInt8", "QUInt8"}
