# SPDX-License-Identifier: Apache-2.0
"""What of a graph can be int8, and edits of graphs that hold 8-bit weights.

Products with constant weights, convolutions and the tables of embeddings can be quantized; tables are quantized here,
everything else by onnxruntime.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edvit_hf.export.graphs.derived import drop_unused_constants

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

PRODUCTS = ("MatMul", "Gemm")
TABLE, CONVOLUTION = "Gather", "Conv"
FROM_GEMM = "_MatMul"  # what onnxruntime appends to the name of a Gemm that it turned into a MatMul and an Add
_VOTE = "logits"  # the graph output whose producer, the vote head (or the end of the fusion head), stays float
_FUSION = "fusion"  # a module of this name, the fusion head inside the graph of a whole ensemble, stays float


@dataclass(frozen=True, kw_only=True)
class QuantizableNode:
    """One node with a constant weight that int8 may replace."""

    name: str  # of the node
    op_type: str  # "MatMul", "Gemm", "Conv", or "Gather" for a table of embeddings
    path: str  # the module it came from, "vit.layers.0.attention.q_proj"; the node's name if nothing tells it
    reads: str  # the tensor it reads besides its weight; nodes that read the same one share its quantization
    weight: str  # name of the constant
    shape: tuple[int, ...]  # of the constant
    num_inputs: int  # values that each output channel sums up; of a table its rows

    @property
    def num_values(self) -> int:
        """Values of the weight."""
        return math.prod(self.shape)

    @property
    def float_cost(self) -> int:
        """Bytes that the file grows by if this weight stays float32."""
        return 3 * self.num_values


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes that stay float together, because they read the same tensor (query, key and value do)."""

    label: str  # "vit.layers.0.attention.k_proj+q_proj+v_proj"
    nodes: tuple[str, ...]  # their names
    cost: int  # bytes that the file grows by if they stay float32


def quantizable_nodes(model: "ModelProto", *, op_types: Collection[str]) -> list[QuantizableNode]:
    """The nodes of these types with a constant float weight, in the graph's order, without vote and fusion heads.

    Products of two activations (attention) have no constant and are left out.
    """
    from onnx import TensorProto

    constants = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    reading: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            reading.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        place = 0 if node.op_type == TABLE else 1
        if node.op_type not in op_types or len(node.input) <= place or node.input[place] not in constants:
            continue
        shape = tuple(constants[node.input[place]].dims)
        if len(shape) < 2 or (node.op_type == TABLE and not _picks_rows(node, shape)):
            continue
        biases = [*node.input[2:], *_added(reading.get(node.output[0], []), constants)]
        path = _module_path(node, node.input[place], biases)
        if _is_head(node, reading, path):
            continue
        found.append(
            QuantizableNode(
                name=node.name,
                op_type=node.op_type,
                path=path,
                reads=node.input[1 - place],
                weight=node.input[place],
                shape=shape,
                num_inputs=_num_inputs(node, shape),
            )
        )
    return found


def node_groups(nodes: Iterable[QuantizableNode]) -> list[NodeGroup]:
    """Group nodes by what they read, in the order of the nodes; tables of embeddings are each their own."""
    grouped: dict[tuple[str, str], list[QuantizableNode]] = {}
    for node in nodes:
        grouped.setdefault(("", node.name) if node.op_type == TABLE else ("reads", node.reads), []).append(node)
    return [
        NodeGroup(
            label=_join_paths([n.path for n in members]),
            nodes=tuple(n.name for n in members),
            cost=sum(n.float_cost for n in members),
        )
        for members in grouped.values()
    ]


def _attribute(node: "NodeProto", name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _picks_rows(node: "NodeProto", shape: tuple[int, ...]) -> bool:
    """Whether a Gather looks up rows of a table, as embeddings do."""
    return len(shape) == 2 and _attribute(node, "axis", 0) == 0


def _num_inputs(node: "NodeProto", shape: tuple[int, ...]) -> int:
    if node.op_type == CONVOLUTION:  # (out, in / groups, ...)
        return math.prod(shape[1:])
    transposed = node.op_type == "Gemm" and _attribute(node, "transB", 0) == 1
    return shape[-1] if transposed else shape[-2]


def _added(consumers: Iterable["NodeProto"], constants: Collection[str]) -> list[str]:
    """Constants added to a product: its bias."""
    return [name for node in consumers if node.op_type == "Add" for name in node.input if name in constants]


def _module_path(node: "NodeProto", weight: str, biases: Iterable[str]) -> str:
    """The module's name, from that of its weight or bias: tracing transposes weights and forgets their names."""
    for name in (weight, *biases):
        stem = name.removesuffix(".weight").removesuffix(".bias")
        if stem != name:
            return stem.removeprefix("sub_model.")
    return node.name


def _is_head(node: "NodeProto", reading: dict[str, list["NodeProto"]], path: str) -> bool:
    """Whether a node makes the vote, or belongs to the fusion head."""
    ends = [node, *(n for n in reading.get(node.output[0], []) if n.op_type == "Add")]
    return _FUSION in path.split(".") or any(_VOTE in end.output for end in ends)


def _join_paths(paths: list[str]) -> str:
    """Join a.q and a.v as "a.q+v"; paths with different parents are joined whole."""
    parents = {path.rpartition(".")[0] for path in paths}
    if len(paths) == 1 or len(parents) > 1:
        return "+".join(paths)
    return f"{parents.pop()}.{'+'.join(sorted(path.rpartition('.')[2] for path in paths))}".removeprefix(".")


_LARGEST = 127  # of signed weights that are symmetric about zero
_QUANTIZED = "_quant"  # what onnxruntime appends to the names of nodes
_FLOAT_BYTES = 4


def quantize_tables(model: "ModelProto", names: Collection[str]) -> None:
    """Turn the tables that these Gathers look up into int8, in place.

    int8 rows are picked, then scaled: Gather, DequantizeLinear. One scale per column, that is, per value of an
    embedding: free beside the rows, and closer than onnxruntime's own, which gives a whole table one scale and zero
    point. One per row would be closer still and weigh 4 bytes a row. A table that several nodes read is converted once.
    """
    from onnx import helper, numpy_helper

    if not names:
        return
    graph, wanted = model.graph, set(names)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    done: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.name not in wanted:
            continue
        table = node.input[0]
        if table not in done:
            values = numpy_helper.to_array(constants[table])
            scales = np.maximum(np.abs(values).max(axis=0) / _LARGEST, np.finfo(np.float32).tiny).astype(np.float32)
            rows = np.clip(np.rint(values / scales), -_LARGEST, _LARGEST).astype(np.int8)
            done[table] = f"{table}_scale"
            graph.initializer.append(numpy_helper.from_array(rows, f"{table}_quantized"))
            graph.initializer.append(numpy_helper.from_array(scales, done[table]))
        picked, answer = f"{node.output[0]}_quantized", node.output[0]
        node.input[0], node.output[0] = f"{table}_quantized", picked
        dequantize = helper.make_node(
            "DequantizeLinear", [picked, done[table]], [answer], f"{node.name}_scaled", axis=-1
        )
        nodes.append(dequantize)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused_constants(graph)


def drop_zero_points(model: "ModelProto") -> None:
    """Leave out, in place, the zero points of weights where all are zero, as signed weights have them.

    They are optional in ONNX, weigh a byte per channel, and zero is what their absence means.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        place = {"MatMulInteger": 3, "DequantizeLinear": 2}.get(node.op_type)
        if place is None or len(node.input) != place + 1 or node.input[place - 2] not in constants:
            continue
        zero_point = constants.get(node.input[place])
        if zero_point is not None and not numpy_helper.to_array(zero_point).any():
            del node.input[place]
    drop_unused_constants(graph)


def read_originals(model: "ModelProto", names: Collection[str]) -> None:
    """Let every node but these read activations as they were before their quantization, in place.

    onnxruntime's quantizer hands the rounded activation to everybody who reads it: after a norm, the residual too.
    The answers of these nodes themselves (a convolution's) stay as they are.
    """
    graph, wanted = model.graph, set(names)
    made_by = {name: node for node in graph.node for name in node.output}
    originals = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and (before := made_by.get(node.input[0])) is not None:
            producer = made_by.get(before.input[0])
            if before.op_type == "QuantizeLinear" and (producer is None or producer.name not in wanted):
                originals[node.output[0]] = before.input[0]
    for node in graph.node:
        if node.name not in wanted:
            for place, name in enumerate(node.input):
                node.input[place] = originals.get(name, name)


def quantized_names(model: "ModelProto") -> set[str]:
    """Names, in the fp32 graph, of the nodes that use 8-bit weights here."""
    weights = _weights(model.graph)
    scaled = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights}
    active = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    names = set()
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            names.add(node.name.removesuffix(_QUANTIZED).removesuffix(FROM_GEMM))
        elif node.op_type == "Gather" and node.input[0] in weights:
            names.add(node.name)
        elif len(node.input) > 1 and node.input[1] in scaled and node.input[0] in active:
            names.add(node.name.removesuffix(FROM_GEMM))
    return names


def weight_bytes(model: "ModelProto") -> tuple[int, int]:
    """Bytes of the 8-bit weights with their scales and zero points, and of the same weights in float32."""
    graph = model.graph
    weights = _weights(graph)
    extras: set[str] = set()  # constants that belong to the weights
    picked = {node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[0] in weights}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights | picked:
            extras.update(node.input[1:])
        elif node.op_type == "MatMulInteger":
            extras.update([f"{node.input[1].removesuffix('_quantized')}_scale", *node.input[3:]])
    constants = {tensor.name: tensor for tensor in graph.initializer}
    count = sum(math.prod(constants[name].dims) for name in weights)
    return count + sum(_num_bytes(constants[name]) for name in extras), _FLOAT_BYTES * count


def _weights(graph: "GraphProto") -> set[str]:
    """Names of the 8-bit constants that stand for weights; zero points have at most one dimension."""
    from onnx import TensorProto

    types = (TensorProto.INT8, TensorProto.UINT8)
    return {tensor.name for tensor in graph.initializer if tensor.data_type in types and len(tensor.dims) > 1}


def _num_bytes(tensor: "TensorProto") -> int:
    from onnx import helper

    return math.prod(tensor.dims) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
