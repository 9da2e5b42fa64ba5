# SPDX-License-Identifier: Apache-2.0
"""Rewrite the graph that the export draws of a ViT in other ways, for `vit_base_operators.py` to time.

Each takes an ONNX model and changes it in place. They know this one graph: they are for `vit_base_operators.py`, and
what proved worth it is in `edvit_hf.export.graphs.read_early`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from edvit_hf.export.graphs.read_early import ReadGraph, drop_unread, inner_sizes

MICROSOFT = "com.microsoft"
_ATTENTION_SINCE = 23  # operator set
_HEADS_FIRST, _KEYS_TURNED = [0, 2, 1, 3], [0, 2, 3, 1]


@dataclass(frozen=True)
class Attention:
    """One layer's attention: where its three inputs and its output are, and the nodes in between."""

    inputs: tuple[str, str, str]  # queries, keys, values (B, T, attention dimensions), biases added
    output: str  # (B, T, attention dimensions)
    heads: int
    scale: float
    inner: list[NodeProto]


class Editor:
    """A graph with who makes each value."""

    def __init__(self, model: ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}

    def maker(self, name: str) -> NodeProto:
        """The node that makes a value."""
        return next(node for node in self.graph.node if name in node.output)

    def array(self, name: str) -> np.ndarray:
        """A stored tensor."""
        return numpy_helper.to_array(self.stored[name])

    def store(self, name: str, values: np.ndarray) -> str:
        """Add a stored tensor."""
        self.stored[name] = numpy_helper.from_array(values, name)
        self.graph.initializer.append(self.stored[name])
        return name

    def linear(self, name: str) -> tuple[NodeProto, NodeProto]:
        """Product and sum of the linear map that makes a value."""
        total = self.maker(name)
        return self.maker(total.input[0]), total

    def replace(self, old: list[NodeProto], new: list[NodeProto], *, first: bool = False) -> None:
        """Put `new` where the last (or the first) of `old` was."""
        gone = {node.output[0] for node in old}
        places = [index for index, node in enumerate(self.graph.node) if node.output[0] in gone]
        place, nodes = places[0 if first else -1], []
        for index, node in enumerate(self.graph.node):
            if node.output[0] not in gone:
                nodes.append(NodeProto.FromString(node.SerializeToString()))
            if index == place:
                nodes += new
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def replace_attention(self, attention: Attention, operator: str, **values: Any) -> None:
        """Put one operator where an attention was."""
        output = attention.output
        node = helper.make_node(operator, list(attention.inputs), [output], name=f"node_{output}", **values)
        self.replace(attention.inner, [node])

    def attentions(self) -> list[Attention]:
        """Every layer's without a mask, first to last."""
        graph = ReadGraph(self.model)
        found = [_attention_around(graph, node) for node in graph.nodes if node.op_type == "Softmax"]
        return [attention for attention in found if attention is not None]


def fix_batch(model: ModelProto) -> None:
    """Batch 1 and no other: every shape is known, and onnxruntime turns products and sums into Gemm itself."""
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = 1


def fold_attention(model: ModelProto) -> None:
    """The scale goes into the queries' weights, the values' bias into the output's; the keys' bias changes nothing.

    Softmax weights sum to one, and a number added to a whole row of scores does not change them.
    """
    editor = Editor(model)
    for attention in editor.attentions():
        query, key, value = (editor.linear(name) for name in attention.inputs)
        for node, position in ((query[0], 1), (query[1], 1)):
            scaled = editor.array(node.input[position]) * np.float32(attention.scale)
            node.input[position] = editor.store(f"{node.input[position]}_scaled", scaled)
        scaling = next(node for node in attention.inner if node.op_type == "Mul")
        outwards = next(node for node in model.graph.node if attention.output in node.input)
        total = next(node for node in model.graph.node if outwards.output[0] in node.input)
        bias = editor.array(total.input[1]) + editor.array(value[1].input[1]) @ editor.array(outwards.input[1])
        total.input[1] = editor.store(f"{total.input[1]}_folded", bias)
        for gone in (scaling, key[1], value[1]):
            _bypass(editor.graph, gone)


def _bypass(graph: GraphProto, gone: NodeProto) -> None:
    """Take a node out: its readers read its first input."""
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == gone.output[0]:
                node.input[position] = gone.input[0]
    graph.node.remove(gone)


def merge_projections(model: ModelProto) -> None:
    """One product of three times the width instead of three, where all three read the same tokens."""
    editor = Editor(model)
    for index, attention in enumerate(editor.attentions()):
        pairs = [editor.linear(name) for name in attention.inputs]
        if len({product.input[0] for product, _ in pairs}) > 1:
            continue
        weight, bias = (
            editor.store(f"merged_{kind}_{index}", np.concatenate([editor.array(n.input[1]) for n in nodes], axis=-1))
            for kind, nodes in zip(("weight", "bias"), zip(*pairs, strict=True), strict=True)
        )
        names = [f"merged_{index}_{step}" for step in ("product", "sum")]
        new = [
            helper.make_node("MatMul", [pairs[0][0].input[0], weight], names[:1], name=f"node_{names[0]}"),
            helper.make_node("Add", [names[0], bias], names[1:], name=f"node_{names[1]}"),
            helper.make_node("Split", names[1:], list(attention.inputs), axis=2, num_outputs=3),
        ]
        editor.replace([node for pair in pairs for node in pair], new, first=True)


def use_attention_operator(model: ModelProto) -> None:
    """One Attention of ONNX's operator set 23 instead of eleven operators."""
    model.opset_import[0].version = 23
    fuse_attention(model)


def fuse_attention(model: ModelProto) -> int:
    """Write every attention without a mask as one `Attention`, in place: it has a kernel that moves less memory.

    Call it after `read_early`, which does not look into the operator.

    Args:
        model: Of images or sounds. With a mask (texts) attention stays: onnxruntime 1.31 wants a row of the mask for
            every query, and making those costs more than the operator saves.

    Returns:
        How many were written so: 0 of a graph whose operator set is older than 23 and has no such operator.
    """
    if next(entry.version for entry in model.opset_import if entry.domain == "") < _ATTENTION_SINCE:
        return 0
    editor = Editor(model)
    found = editor.attentions()
    for attention in found:
        heads = {"q_num_heads": attention.heads, "kv_num_heads": attention.heads}
        editor.replace_attention(attention, "Attention", scale=attention.scale, **heads)
    if found:
        drop_unread(model.graph)
    return len(found)


def _attention_around(graph: ReadGraph, softmax: NodeProto) -> Attention | None:
    """The attention whose weights a softmax makes; None where it is masked or its weights are read elsewhere too."""
    scaled = _maker(graph, softmax.input[0], "Mul")
    scores = scaled and _maker(graph, scaled.input[0], "MatMul")
    mixed = _reader(graph, softmax.output[0], "MatMul")
    turned = mixed and _reader(graph, mixed.output[0], "Transpose")
    joined = turned and _reader(graph, turned.output[0], "Reshape")
    if not (scaled and scores and mixed and turned and joined) or scaled.input[1] not in graph.stored:
        return None
    scale = numpy_helper.to_array(graph.stored[scaled.input[1]])
    splits = [(scores.input[0], _HEADS_FIRST), (scores.input[1], _KEYS_TURNED), (mixed.input[1], _HEADS_FIRST)]
    inputs, inner, widths = [], [], set()
    for name, order in splits:
        transposed = _maker(graph, name, "Transpose")
        split = transposed and _maker(graph, transposed.input[0], "Reshape")
        sizes = split and inner_sizes(graph, split)
        if not (transposed and split and sizes) or graph.attribute(transposed, "perm", []) != order:
            return None
        inputs.append(split.input[0])
        inner += [split, transposed]
        widths.add((graph.shapes.get(split.input[0], [None])[-1], sizes[-1]))
    if len(widths) > 1 or scale.size > 1 or graph.attribute(turned, "perm", []) != _HEADS_FIRST:
        return None
    width, size = widths.pop()
    if not isinstance(width, int) or size < 1 or width % size or softmax.input[0] == mixed.input[1]:
        return None
    inner += [scores, scaled, softmax, mixed, turned, joined]
    return Attention(tuple(inputs), joined.output[0], width // size, float(scale.reshape(())), inner)


def _maker(graph: ReadGraph, name: str, op_type: str) -> NodeProto | None:
    """The node that makes a value, if it is of that type and its output has one reader."""
    node = graph.nodes[graph.made_by[name]] if name in graph.made_by else None
    alone = node is not None and node.op_type == op_type and len(graph.read_by[name]) == 1
    return node if alone and name not in graph.outputs else None


def _reader(graph: ReadGraph, name: str, op_type: str) -> NodeProto | None:
    """The only node that reads a value, if it is of that type."""
    edges = graph.read_by[name]
    node = graph.nodes[edges[0][0]] if len(edges) == 1 and name not in graph.outputs else None
    return node if node is not None and node.op_type == op_type else None


def use_multi_head_attention(model: ModelProto) -> None:
    """One MultiHeadAttention, an operator of onnxruntime alone, instead of eleven."""
    editor = Editor(model)
    for attention in editor.attentions():
        values = {"scale": attention.scale, "num_heads": attention.heads}
        editor.replace_attention(attention, "MultiHeadAttention", domain=MICROSOFT, **values)
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))


def patches_as_product(model: ModelProto) -> None:
    """The patch convolution as a product of patches that a transposition lays out; int8 then covers it too."""
    editor = Editor(model)
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    flat = next(node for node in model.graph.node if convolution.output[0] in node.input)
    turned = next(node for node in model.graph.node if flat.output[0] in node.input)
    weight, bias = editor.array(convolution.input[1]), convolution.input[2]
    width, channels, height_, width_ = weight.shape
    size = model.graph.input[0].type.tensor_type.shape.dim
    rows, columns = size[2].dim_value // height_, size[3].dim_value // width_
    tiles = editor.store("tiles", np.array([-1, channels, rows, height_, columns, width_]))
    lines = editor.store("lines", np.array([-1, rows * columns, channels * height_ * width_]))
    matrix = editor.store("patch_matrix", np.ascontiguousarray(weight.reshape(width, -1).T))
    new = [
        helper.make_node("Reshape", [convolution.input[0], tiles], ["tiled"]),
        helper.make_node("Transpose", ["tiled"], ["laid_out"], perm=[0, 2, 4, 1, 3, 5]),
        helper.make_node("Reshape", ["laid_out", lines], ["patches"]),
        helper.make_node("MatMul", ["patches", matrix], ["patch_product"], name="node_patch_product"),
        helper.make_node("Add", ["patch_product", bias], list(turned.output), name="node_patch_sum"),
    ]
    editor.replace([convolution, flat, turned], new)


def approximate_gelu(model: ModelProto) -> None:
    """GELU by tanh: another function (answers differ by about 1e-3), as a bound on what a cheaper one could give."""
    for node in model.graph.node:
        if node.op_type == "Gelu":
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("approximate", "tanh"))
