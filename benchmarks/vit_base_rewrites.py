# SPDX-License-Identifier: Apache-2.0
"""Other ways to write an exported ViT, as rewrites of the graph that the export draws; what each gains is measured.

Each takes an ONNX model and changes it in place. They know this one graph: they are for `vit_base_operators.py`, and
what proved worth it is in `edvit_hf.export.tuning`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from edvit_hf.export.tuning import fuse_attention

MICROSOFT = "com.microsoft"


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

    def attentions(self) -> Iterator[Attention]:
        """Every layer's, first to last."""
        for softmax in [node for node in self.graph.node if node.op_type == "Softmax"]:
            scaled = self.maker(softmax.input[0])
            scores = self.maker(scaled.input[0])
            mixed = next(node for node in self.graph.node if softmax.output[0] in node.input)
            turned = next(node for node in self.graph.node if mixed.output[0] in node.input)
            joined = next(node for node in self.graph.node if turned.output[0] in node.input)
            inner, inputs = [softmax, scaled, scores, mixed, turned, joined], []
            for name in (scores.input[0], scores.input[1], mixed.input[1]):
                transposed = self.maker(name)
                split = self.maker(transposed.input[0])
                inner += [transposed, split]
                inputs.append(split.input[0])
            heads = int(self.array(self.maker(self.maker(scores.input[1]).input[0]).input[1])[2])
            scale = float(self.array(scaled.input[1]))
            yield Attention((inputs[0], inputs[1], inputs[2]), joined.output[0], heads, scale, inner)


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
    for attention in list(editor.attentions()):
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
    for index, attention in enumerate(list(editor.attentions())):
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


def use_multi_head_attention(model: ModelProto) -> None:
    """One MultiHeadAttention, an operator of onnxruntime alone, instead of eleven."""
    editor = Editor(model)
    for attention in list(editor.attentions()):
        node = helper.make_node(
            "MultiHeadAttention", list(attention.inputs), [attention.output], domain=MICROSOFT, scale=attention.scale,
            num_heads=attention.heads, name=f"node_{attention.output}",
        )  # fmt: skip
        editor.replace(attention.inner, [node])
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
