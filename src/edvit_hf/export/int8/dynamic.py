# SPDX-License-Identifier: Apache-2.0
"""int8 files: presets, dynamic quantization, and the count of what was really quantized.

Dynamic: weights are quantized ahead, activations at run time. Products (MatMul, Gemm) and the tables of embeddings
only. Norms, softmax, GELU, the vote head and the fusion head stay float: quantizing those costs ten times the error
and runs slower on CPUs. BERT's pooler and DistilBERT's `pre_classifier`, through which only the vote goes, are
quantized: they are as large as an attention's output map. Static files, with ranges of activations from calibration
data, are made in `static`.

Activations get one scale per product and batch: the int8 answer to an item depends a little on what else is in
its batch, padding included. fp32 answers do not.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edvit_hf.errors import ExportGateError, named_extra
from edvit_hf.export.graphs.derived import clean_like, load_graph, sort_nodes
from edvit_hf.export.graphs.draw import save_graph
from edvit_hf.export.int8.nodes import (
    CONVOLUTION,
    FROM_GEMM,
    PRODUCTS,
    TABLE,
    QuantizableNode,
    drop_zero_points,
    quantizable_nodes,
    quantize_tables,
    quantized_names,
    weight_bytes,
)
from edvit_hf.manifest import Calibration, Quantization

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QuantizationPreset:
    """How weights are quantized for one instruction set.

    Source: the presets of Optimum's `AutoQuantizationConfig` (optimum/onnxruntime/configuration.py).
    Differs: products and tables of embeddings only, without the vote head.

    Attributes:
        isa: Instruction set.
        weight_type: "QInt8" or "QUInt8", names of onnxruntime's QuantType; tables are always signed.
        per_channel: One scale per output channel, where a channel is wide enough.
        min_channel_inputs: What is wide enough. Scales of narrower channels weigh too much: with its float32 scale and
            8-bit zero point a channel of K inputs takes (K + 5) bytes where float32 took 4 K, above 0.27 for K < 63. On
            weights 12 to 16 wide one scale raised the output error by a quarter and cost no accuracy.
        reduce_range: 7-bit weights: against saturation of 16-bit sums without VNNI.
        may_reduce_range: Whether that is worth a try if accuracy falls.
        mode: "dynamic", or "static" for ranges from calibration.
        activation_type: "QUInt8", or "QInt8" with symmetric ranges, for engines that know no zero point; static only.
    """

    isa: str
    weight_type: str
    per_channel: bool = True
    min_channel_inputs: int = 64
    reduce_range: bool = False
    may_reduce_range: bool = False
    mode: Literal["dynamic", "static"] = "dynamic"
    activation_type: Literal["QUInt8", "QInt8"] = "QUInt8"

    @property
    def suffix(self) -> str:
        """File suffix, as sentence-transformers and Optimum write it: "qint8_avx512_vnni", with "_static" if so."""
        return f"{self.weight_type.lower()}_{self.isa}{'_static' if self.mode == 'static' else ''}"

    def attempts(self) -> "Iterator[QuantizationPreset]":
        """The preset, then with reduced range where that is known to help if accuracy falls."""
        yield self
        if self.may_reduce_range:
            yield replace(self, reduce_range=True)

    def settings(self) -> "list[QuantizationPreset]":
        """Everything that a sweep tries before it keeps nodes in float, the preset first.

        Reduced range (where it may help), the other sign, a scale for every channel however narrow (a few bytes more,
        a fifth less error on weights 12 to 16 wide), and one scale for each weight (accuracy sometimes rises).
        """
        other = "QUInt8" if self.weight_type == "QInt8" else "QInt8"
        types = (self.weight_type, other) if self.activation_type == "QUInt8" else (self.weight_type,)
        signs = [replace(each, weight_type=w) for w in types for each in self.attempts()]
        channels: list[dict[str, Any]] = [{}, {"min_channel_inputs": 1}, {"per_channel": False}]
        return [replace(each, **changed) for changed in channels for each in signs]

    def describe(self, nodes: "QuantizedNodes", calibration: Calibration | None = None) -> Quantization:
        """What the manifest records; `calibration` for a static file."""
        return Quantization(
            preset=self.isa,
            mode=self.mode,
            weight_type=self.weight_type,
            activation_type=self.activation_type,
            per_channel=nodes.per_channel,
            reduce_range=self.reduce_range,
            weight_bytes=nodes.weight_bytes,
            weight_bytes_fp32=nodes.weight_bytes_fp32,
            kept_float=nodes.kept_float,
            calibration=calibration,
        )


PRESETS = {
    "arm64": QuantizationPreset(isa="arm64", weight_type="QInt8"),
    "avx2": QuantizationPreset(isa="avx2", weight_type="QUInt8", may_reduce_range=True),
    "avx512": QuantizationPreset(isa="avx512", weight_type="QInt8", may_reduce_range=True),
    "avx512_vnni": QuantizationPreset(isa="avx512_vnni", weight_type="QInt8"),
}

# TensorRT takes signed symmetric weights and activations only, and those as QuantizeLinear pairs: Optimum's `tensorrt`.
TENSORRT = QuantizationPreset(isa="tensorrt", weight_type="QInt8", mode="static", activation_type="QInt8")
STATIC_PRESETS = {**{isa: replace(preset, mode="static") for isa, preset in PRESETS.items()}, "tensorrt": TENSORRT}


@dataclass(frozen=True, kw_only=True)
class QuantizedNodes:
    """What a quantization run really quantized."""

    num_nodes: int  # products, convolutions and tables
    op_types: list[str]
    per_channel: bool  # whether any product has a scale per output channel
    weight_bytes: int  # of the quantized weights, with their scales and zero points
    weight_bytes_fp32: int  # of the same weights before
    kept_float: list[str] = field(default_factory=list)  # modules that could be quantized and were left float


def quantize_graph(
    source: Path,
    target: Path,
    preset: QuantizationPreset,
    *,
    num_expected: int | None = None,
    kept_float: Collection[str] = (),
) -> QuantizedNodes:
    """Write the dynamic int8 variant of an fp32 graph (of a sub-model or the whole) and count what was quantized.

    The graph must hold at least `num_expected` products with constant weights, the linear maps of the torch model
    without its vote head; None trusts it. Nodes in `kept_float` stay float.

    Raises:
        ExportGateError: If `source` is no intact ONNX file, holds nothing to quantize or fewer products than expected,
            or if onnxruntime left a node float that was not to be: an upgrade may skip layers in silence.
    """
    with named_extra("Quantizing", "export"):
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    model = load_graph(source)
    nodes = chosen_nodes(model, (*PRODUCTS, TABLE), num_expected=num_expected, kept_float=kept_float, what=source.name)
    products = [node for node in nodes.values() if node.op_type != TABLE]
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # it is shape-complete
    quantized = model
    with tempfile.TemporaryDirectory() as folder, root_logger_diverted():
        for per_channel in (True, False):
            names = [n.name for n in products if is_per_channel(n, preset) == per_channel]
            if not names:
                continue
            quantize_dynamic(
                quantized,
                Path(folder) / "int8.onnx",
                op_types_to_quantize=list(PRODUCTS),
                per_channel=per_channel,
                reduce_range=preset.reduce_range,
                weight_type=getattr(QuantType, preset.weight_type),
                nodes_to_quantize=[*names, *(f"{name}{FROM_GEMM}" for name in names)],
            )
            quantized = onnx.load(Path(folder) / "int8.onnx")
    return finish(quantized, source, target, preset, nodes, kept_float=kept_float)


def is_per_channel(node: QuantizableNode, preset: QuantizationPreset) -> bool:
    """Whether a product or convolution gets one scale per output channel."""
    return preset.per_channel and node.num_inputs >= preset.min_channel_inputs


def chosen_nodes(
    model: "ModelProto", op_types: Collection[str], *, num_expected: int | None, kept_float: Collection[str], what: str
) -> dict[str, QuantizableNode]:
    """The nodes to quantize, by name.

    Raises:
        ExportGateError: If there are none, fewer products than expected, or `kept_float` names others.
    """
    nodes = {node.name: node for node in quantizable_nodes(model, op_types=op_types)}
    if unknown := sorted(set(kept_float) - set(nodes)):
        raise ExportGateError(
            f"{what}: expected nodes to keep in float among those that can be quantized, got {unknown[:5]} "
            f"({len(unknown)} in all). The graph is another one than they were chosen for. Choose anew."
        )
    num_products = sum(node.op_type in PRODUCTS for node in nodes.values())
    if num_expected is not None and num_products < num_expected:
        raise ExportGateError(
            f"{what}: expected {num_expected} products with constant weights, found {num_products}. The file would "
            "claim int8 and run float. The exporter draws linear maps otherwise than expected: use the versions in "
            "constraints.txt."
        )
    chosen = {name: node for name, node in nodes.items() if name not in set(kept_float)}
    if not any(node.op_type != TABLE for node in chosen.values()):
        raise ExportGateError(
            f"{what}: expected at least one product with constant weights to quantize, found none of {len(nodes)} "
            "candidates. The file would claim int8 and compute in float. Use the fp32 file."
        )
    return chosen


def finish(
    quantized: "ModelProto",
    source: Path,
    target: Path,
    preset: QuantizationPreset,
    nodes: dict[str, QuantizableNode],
    *,
    kept_float: Collection[str],
) -> QuantizedNodes:
    """Quantize the tables, clean, check, count and write a graph that onnxruntime has quantized.

    Raises:
        ExportGateError: If a chosen node is still float.
    """
    import onnx

    original = load_graph(source)
    quantize_tables(quantized, [node.name for node in nodes.values() if node.op_type == TABLE])
    drop_zero_points(quantized)
    clean_like(quantized, original)
    sort_nodes(quantized.graph)
    left = sorted(set(nodes) - quantized_names(quantized))
    if left:
        raise ExportGateError(
            f"{target.name}: expected {len(nodes)} quantized nodes, got {len(nodes) - len(left)}; {left[:5]} are "
            "float. The file would claim int8 and run float. This onnxruntime quantizes less than expected: use the "
            "version in constraints.txt."
        )
    onnx.checker.check_model(quantized, full_check=True)
    save_graph(quantized, target)
    after, before = weight_bytes(quantized)
    paths = {n.name: n.path for n in quantizable_nodes(original, op_types=(*PRODUCTS, TABLE, CONVOLUTION))}
    return QuantizedNodes(
        num_nodes=len(nodes),
        op_types=sorted({node.op_type for node in nodes.values()}),
        per_channel=any(is_per_channel(node, preset) for node in nodes.values() if node.op_type != TABLE),
        weight_bytes=after,
        weight_bytes_fp32=before,
        kept_float=[path for name, path in paths.items() if name in set(kept_float)],
    )


@contextlib.contextmanager
def root_logger_diverted() -> Iterator[None]:
    """Repeat at DEBUG level what onnxruntime's quantizer prints and logs, per node, straight to the root logger."""

    def divert(record: logging.LogRecord) -> bool:
        logger.debug("onnxruntime: %s", record.getMessage())
        return False

    printed = io.StringIO()
    logging.root.addFilter(divert)
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        logging.root.removeFilter(divert)
        for line in printed.getvalue().splitlines():
            logger.debug("onnxruntime: %s", line)
