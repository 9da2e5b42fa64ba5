# SPDX-License-Identifier: Apache-2.0
"""Reading early: the last layer computes the tokens that are read, and nothing else changes."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper

from edvit_hf.export.graphs.draw import draw_in_full
from edvit_hf.export.graphs.read_early import read_early
from edvit_hf.export.optimum_config import resolve_onnx_config
from edvit_hf.parts_edvit import NUM_FEATURE_TOKENS
from support.benchmarks import benchmark
from support.tiny_architectures import TEXT, tiny_inputs, tiny_model

pytestmark = pytest.mark.slow

ARCHITECTURES = ("vit", "audio-spectrogram-transformer", "bert")  # the export tests draw the others with it
PRODUCTS = 6  # of the last layer on its readers' tokens: queries, scores, mixture, output, two of the FFN
_DRAWN = {}


def drawn(name):
    """The graph of a tiny model of one layer, without any rewrite; drawing takes a second or two."""
    if name not in _DRAWN:
        layers = "n_layers" if name == "distilbert" else "num_hidden_layers"
        model = tiny_model(name, num_labels=3, **{layers: 1})
        _DRAWN[name] = draw_in_full(model, resolve_onnx_config(model.config), opset=20)
    return ModelProto.FromString(_DRAWN[name].SerializeToString())


def run(model, inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def inputs_of(name, n, seed=0, length=None):
    inputs = {key: values.numpy() for key, values in tiny_inputs(name, n, seed).items()}
    return inputs if length is None else {key: values[:, :length] for key, values in inputs.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_stay_and_the_last_layer_shrinks(name):
    before, after = drawn(name), drawn(name)
    assert read_early(after) == PRODUCTS
    onnx.checker.check_model(after, full_check=True)
    for n, length in ((1, None), (2, 5), (5, None)) if name in TEXT else ((1, None), (5, None)):
        inputs = inputs_of(name, n, seed=n, length=length)
        expected, got = run(before, inputs), run(after, inputs)
        for key, values in expected.items():
            assert got[key].shape == values.shape
            np.testing.assert_allclose(got[key], values, rtol=0, atol=2e-6 * np.abs(values).max())
    tokens = []
    for model in (before, after):
        (activation,) = (node.output[0] for node in model.graph.node if node.op_type == "Gelu")
        model.graph.output.append(helper.make_empty_tensor_value_info(activation))
        tokens.append(run(model, inputs_of(name, 2))[activation].shape[1])
    assert tokens[1] == NUM_FEATURE_TOKENS[name] < tokens[0]


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_names_of_nodes_and_weights_stay(name):
    """The quantizer finds products by them, and the count of what it must cover does not change."""
    before, after = drawn(name), drawn(name)
    read_early(after)

    def products(model):
        stored = {tensor.name for tensor in model.graph.initializer}
        nodes = (node for node in model.graph.node if node.op_type in ("MatMul", "Gemm"))
        return [(node.name, node.input[1]) for node in nodes if node.input[1] in stored]

    assert products(after) == products(before)
    assert [v.name for v in after.graph.input] == [v.name for v in before.graph.input]
    assert len(after.graph.node) <= len(before.graph.node) + 2
    assert len({node.name for node in after.graph.node}) == len(after.graph.node)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_once_more_changes_no_answer(name):
    once = drawn(name)
    read_early(once)
    twice = ModelProto.FromString(once.SerializeToString())
    again = read_early(twice)
    if name not in TEXT:  # of texts, inference does not tell that one token is left
        assert again == 0
        assert twice == once
    inputs = inputs_of(name, 3)
    for key, values in run(once, inputs).items():
        np.testing.assert_array_equal(run(twice, inputs)[key], values)


def test_a_graph_whose_tokens_are_all_read_stays_as_it_is():
    model = drawn("vit")
    last = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    model.graph.output.append(helper.make_empty_tensor_value_info(last.output[0]))
    before = model.SerializeToString(deterministic=True)
    assert read_early(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_a_graph_without_tokens_stays_as_it_is():
    text = '<ir_version: 10, opset_import: ["" : 20]> head (float[N, 4] features) => (float[N, 4] logits) '
    model = onnx.parser.parse_model(text + "{ scores = Softmax <axis = -1> (features) logits = Gelu (scores) }")
    before = model.SerializeToString(deterministic=True)
    assert read_early(model) == 0
    assert model.SerializeToString(deterministic=True) == before


@pytest.fixture(scope="module")
def fuse_attention():
    """The benchmark's rewrite, which the export does not make."""
    return benchmark("speed.vit_base_rewrites").fuse_attention


@pytest.mark.parametrize("name", ["vit", "audio-spectrogram-transformer"])
@pytest.mark.parametrize("early", [False, True])
def test_attention_as_one_operator_gives_the_same_answers(fuse_attention, name, early):
    before, after = drawn(name), drawn(name)
    after.opset_import[0].version = 23
    if early:
        read_early(after)
    assert fuse_attention(after) == 1
    onnx.checker.check_model(after, full_check=True)
    types = [node.op_type for node in after.graph.node]
    assert types.count("Attention") == 1
    assert "Softmax" not in types
    for n in (1, 5):
        inputs = inputs_of(name, n, seed=n)
        for key, values in run(before, inputs).items():
            np.testing.assert_allclose(run(after, inputs)[key], values, rtol=0, atol=2e-6 * np.abs(values).max())
    assert fuse_attention(after) == 0


def test_attention_stays_with_a_mask_in_older_operator_sets_and_where_its_weights_are_read(fuse_attention):
    masked, older, read = drawn("bert"), drawn("vit"), drawn("vit")
    masked.opset_import[0].version = read.opset_import[0].version = 23
    softmax = next(node for node in read.graph.node if node.op_type == "Softmax")
    read.graph.output.append(helper.make_empty_tensor_value_info(softmax.output[0]))
    for model in (masked, older, read):
        before = model.SerializeToString(deterministic=True)
        assert fuse_attention(model) == 0
        assert model.SerializeToString(deterministic=True) == before
