"""Reads and edits graphs that hold 8-bit weights: tables of embeddings, zero points, counts and bytes."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from edvit_hf.export.graph_edits import drop_unused_constants
from edvit_hf.export.quantizable import FROM_GEMM

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

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
