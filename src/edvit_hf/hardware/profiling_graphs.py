# SPDX-License-Identifier: Apache-2.0
"""Encoders to measure with: the operators that the export writes, in its order, with random weights. No torch."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import named_extra

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20  # the export's default
_LABELS = 11
_PATCH = 8

# (residual, heads, head_dim, ffn, layers, rows and columns of patches). They spread tokens, depth and each width
# apart from the others, so that no two terms of the latency model grow alike; none is the size of a stock teacher.
_QUICK = (
    (16, 1, 16, 16, 1, 2, 2),
    (48, 3, 16, 192, 4, 5, 5),
    (80, 2, 40, 320, 12, 8, 8),
    (96, 8, 12, 144, 4, 16, 16),
    (80, 1, 80, 640, 8, 14, 14),
    (176, 11, 16, 704, 12, 12, 13),
    (288, 4, 72, 1152, 4, 13, 14),
    (576, 8, 72, 2304, 4, 7, 7),
    (704, 11, 64, 2816, 3, 12, 15),
    (112, 2, 56, 448, 2, 20, 50),
)
_FULL = (
    *_QUICK,
    (32, 2, 16, 64, 12, 3, 3),
    (144, 6, 24, 288, 6, 8, 8),
    (224, 4, 32, 896, 8, 14, 14),
    (160, 10, 32, 320, 6, 14, 15),
    (352, 5, 72, 1408, 9, 13, 15),
    (480, 8, 60, 960, 6, 10, 10),
    (640, 10, 64, 2560, 4, 14, 14),
    (208, 4, 52, 832, 3, 18, 36),
)


def shapes_to_measure(*, quick: bool = False) -> list[ModelShape]:
    """The encoders that `edvit profile` measures, from the smallest that runs to nearly ViT-Base's width."""
    return [encoder_shape(*sizes) for sizes in (_QUICK if quick else _FULL)]


def encoder_shape(
    residual: int, heads: int, head_dim: int, ffn: int, layers: int, rows: int, columns: int
) -> ModelShape:
    """The shape of a ViT of these widths on `rows` x `columns` patches."""
    config = {
        "model_type": "vit",
        "hidden_size": residual,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "image_size": [rows * _PATCH, columns * _PATCH],
        "patch_size": _PATCH,
    }
    return ModelShape.from_config(config, num_labels=_LABELS)


class _Writer:
    """An ONNX graph under construction."""

    def __init__(self, seed: int) -> None:
        with named_extra("Profiling a machine", "profile"):
            from onnx import helper, numpy_helper
        self._helper, self._numpy = helper, numpy_helper
        self._random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and return the name of its only output."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, values: Any) -> str:
        """A stored tensor."""
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(self._numpy.from_array(np.asarray(values), name))
        return name

    def weight(self, *sizes: int) -> str:
        """Random weights that keep values at about unit size."""
        scale = np.float32(1 / math.sqrt(max(1, math.prod(sizes[:-1]))))
        return self.constant(self._random.standard_normal(sizes, dtype=np.float32) * scale)

    def linear(self, inputs: str, num_inputs: int, num_outputs: int) -> str:
        """A product and an addition, as the export writes a Linear on tokens."""
        product = self.add("MatMul", inputs, self.weight(num_inputs, num_outputs))
        return self.add("Add", product, self.weight(num_outputs))

    def norm(self, inputs: str, width: int) -> str:
        """LayerNorm over the residual channels."""
        scale = self.constant(np.ones(width, np.float32))
        return self.add("LayerNormalization", inputs, scale, self.weight(width), axis=-1, epsilon=1e-12)

    def shape(self, *sizes: int) -> str:
        """A target shape for Reshape; 0 keeps the size, -1 takes the rest."""
        return self.constant(np.array(sizes, np.int64))


def encoder_graph(shape: ModelShape, *, seed: int = 0) -> "ModelProto":
    """A ViT classifier of this shape as the export would draw it: pixels (batch, C, H, W) -> features and logits.

    Raises:
        MissingExtraError: If onnx is not installed.
    """
    with named_extra("Profiling a machine", "profile"):
        from onnx import TensorProto, helper
    writer, w = _Writer(seed), shape.widths
    height, width = shape.config["image_size"]
    hidden = _embed(writer, shape)
    for _ in range(w.layers):
        hidden = _layer(writer, hidden, shape)
    hidden = writer.norm(hidden, w.residual)
    first, last, axis = (writer.constant(np.array([value], np.int64)) for value in (0, 1, 1))
    features = writer.add("ReduceMean", writer.add("Slice", hidden, first, last, axis), axis, keepdims=0)
    logits = writer.add("Gemm", features, writer.weight(w.residual, w.labels), writer.weight(w.labels))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        writer.nodes,
        "edvit_encoder",
        [value("pixel_values", TensorProto.FLOAT, ["batch", 3, height, width])],
        [
            value(features, TensorProto.FLOAT, ["batch", w.residual]),
            value(logits, TensorProto.FLOAT, ["batch", w.labels]),
        ],
        writer.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def matmul_graph(size: int, *, seed: int = 0) -> "ModelProto":
    """One product of an input (size, size) with stored weights (size, size).

    Raises:
        MissingExtraError: If onnx is not installed.
    """
    with named_extra("Profiling a machine", "profile"):
        from onnx import TensorProto, helper
    writer = _Writer(seed)
    output = writer.add("MatMul", "rows", writer.weight(size, size))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("rows", output)]
    graph = helper.make_graph(writer.nodes, "edvit_matmul", values[:1], values[1:], writer.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def _embed(writer: _Writer, shape: ModelShape) -> str:
    """Patches by convolution, the class token before them, positions added."""
    residual, tokens = shape.widths.residual, shape.tokens
    kernel = writer.weight(residual, 3, _PATCH, _PATCH)
    patches = writer.add("Conv", "pixel_values", kernel, writer.weight(residual), strides=[_PATCH, _PATCH])
    patches = writer.add("Reshape", patches, writer.shape(0, residual, -1))
    patches = writer.add("Transpose", patches, perm=[0, 2, 1])
    batch = writer.add("Shape", "pixel_values", start=0, end=1)
    sizes = writer.add("Concat", batch, writer.shape(1), writer.shape(residual), axis=0)
    token = writer.add("Expand", writer.weight(1, 1, residual), sizes)
    hidden = writer.add("Concat", token, patches, axis=1)
    return writer.add("Add", hidden, writer.weight(1, tokens, residual))


def _layer(writer: _Writer, hidden: str, shape: ModelShape) -> str:
    """One pre-norm encoder layer."""
    w, tokens = shape.widths, shape.tokens
    normed = writer.norm(hidden, w.residual)
    query, key, value = (writer.linear(normed, w.residual, w.attention) for _ in range(3))
    split = writer.shape(0, tokens, w.heads, w.head_dim)
    query, value = (
        writer.add("Transpose", writer.add("Reshape", one, split), perm=[0, 2, 1, 3]) for one in (query, value)
    )
    key = writer.add("Transpose", writer.add("Reshape", key, split), perm=[0, 2, 3, 1])
    products = writer.add("MatMul", query, key)
    scaled = writer.add("Mul", products, writer.constant(np.float32(w.head_dim**-0.5)))
    context = writer.add("MatMul", writer.add("Softmax", scaled, axis=-1), value)
    context = writer.add("Transpose", context, perm=[0, 2, 1, 3])
    context = writer.add("Reshape", context, writer.shape(0, tokens, w.attention))
    hidden = writer.add("Add", writer.linear(context, w.attention, w.residual), hidden)
    units = writer.add("Gelu", writer.linear(writer.norm(hidden, w.residual), w.residual, w.ffn))
    return writer.add("Add", writer.linear(units, w.ffn, w.residual), hidden)
