"""Dynamic int8: weights quantized ahead per output channel, activations at run time; MatMul and Gemm only.

Norms, softmax, GELU, the vote head and the fusion head stay float: quantizing those costs ten times the
error and runs slower on CPUs. Static quantization was slower than fp32 there and is left out. Of texts, the
embedding tables stay float too (Gather), while BERT's pooler and DistilBERT's `pre_classifier`, through which
only the vote goes, are quantized: they are as large as an attention's output map.

Activations get one scale per product and batch: the int8 answer to an item depends a little on what else is in
its batch, padding included. fp32 answers do not.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edvit_hf.errors import ExportGateError, MissingExtraError
from edvit_hf.export.onnx import clean_graph, save_graph
from edvit_hf.export.optimum_config import EDViTOnnxConfig
from edvit_hf.manifest import Quantization

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

QUANTIZED_OP_TYPES = ("MatMul", "Gemm")
_KEPT_FLOAT = "logits"  # the graph output whose producer, the vote head, stays float


@dataclass(frozen=True, kw_only=True)
class QuantizationPreset:
    """How weights are quantized for one instruction set. Activations are unsigned 8 bit on all of them.

    Source: the presets of Optimum's `AutoQuantizationConfig` (optimum/onnxruntime/configuration.py).
    Differs: MatMul and Gemm only, without the vote head.
    """

    isa: str
    weight_type: str  # "QInt8" or "QUInt8", names of onnxruntime's QuantType
    per_channel: bool = True
    reduce_range: bool = False  # 7-bit weights: against saturation of 16-bit sums without VNNI
    may_reduce_range: bool = False

    @property
    def suffix(self) -> str:
        """File suffix, as sentence-transformers and Optimum write it: "qint8_avx512_vnni"."""
        return f"{self.weight_type.lower()}_{self.isa}"

    def attempts(self) -> "Iterator[QuantizationPreset]":
        """The preset, then with reduced range where that is known to help if accuracy falls."""
        yield self
        if self.may_reduce_range:
            yield replace(self, reduce_range=True)

    def describe(self, nodes: "QuantizedNodes") -> Quantization:
        """What the manifest records."""
        return Quantization(
            preset=self.isa,
            mode="dynamic",
            weight_type=self.weight_type,
            activation_type="QUInt8",
            per_channel=self.per_channel,
            reduce_range=self.reduce_range,
            weight_bytes=nodes.weight_bytes,
            weight_bytes_fp32=nodes.weight_bytes_fp32,
        )


PRESETS = {
    preset.isa: preset
    for preset in (
        QuantizationPreset(isa="arm64", weight_type="QInt8"),
        QuantizationPreset(isa="avx2", weight_type="QUInt8", may_reduce_range=True),
        QuantizationPreset(isa="avx512", weight_type="QInt8", may_reduce_range=True),
        QuantizationPreset(isa="avx512_vnni", weight_type="QInt8"),
    )
}


@dataclass(frozen=True, kw_only=True)
class QuantizedNodes:
    """What a quantization run really quantized."""

    num_nodes: int
    op_types: list[str]
    weight_bytes: int  # of the quantized weights, with their scales and zero points
    weight_bytes_fp32: int  # of the same weights before


def quantize_graph(
    source: Path, target: Path, preset: QuantizationPreset, onnx_config: EDViTOnnxConfig, *, num_expected: int
) -> QuantizedNodes:
    """Write the int8 variant of an fp32 graph and count what was quantized.

    Args:
        source (`Path`): fp32 ONNX file.
        target (`Path`): Where the int8 file goes.
        preset (`QuantizationPreset`): One of `PRESETS`, or an attempt of it.
        onnx_config (`EDViTOnnxConfig`): Names of inputs, outputs and axes.
        num_expected (`int`): Linear maps of the sub-model without its vote head: all must be quantized.

    Raises:
        ExportGateError: If fewer nodes were quantized: an upgrade of onnxruntime may skip layers in silence.
        MissingExtraError: If onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise MissingExtraError("Quantizing", "export", "onnx and onnxruntime") from error
    model = onnx.load(source)
    op_type_by_name = {node.name: node.op_type for node in model.graph.node}
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # it is shape-complete
    target.parent.mkdir(parents=True, exist_ok=True)
    with _root_logger_diverted():
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=list(QUANTIZED_OP_TYPES),
            per_channel=preset.per_channel,
            reduce_range=preset.reduce_range,
            weight_type=getattr(QuantType, preset.weight_type),
            nodes_to_exclude=_vote_head_names(model),
        )
    quantized = onnx.load(target)
    clean_graph(quantized, onnx_config)
    _drop_unused_domains(quantized)
    onnx.checker.check_model(quantized, full_check=True)
    save_graph(quantized, target)
    nodes = _count_quantized(op_type_by_name, quantized)
    if nodes.num_nodes < num_expected:
        raise ExportGateError(
            f"{target.name}: expected {num_expected} quantized nodes, got {nodes.num_nodes}. The file "
            f"would claim int8 "
            f"and run float. This onnxruntime quantizes less than expected: use the version in "
            f"constraints.txt."
        )
    return nodes


def _vote_head_names(model: "ModelProto") -> list[str]:
    """Names of the node that makes the vote; onnxruntime turns a Gemm into a MatMul before it excludes."""
    names = [node.name for node in model.graph.node if _KEPT_FLOAT in node.output]
    return [*names, *(f"{name}_MatMul" for name in names)]


@contextlib.contextmanager
def _root_logger_diverted() -> Iterator[None]:
    """Repeat at DEBUG level what onnxruntime's quantizer logs, per node, straight to the root logger."""

    def divert(record: logging.LogRecord) -> bool:
        logger.debug("onnxruntime: %s", record.getMessage())
        return False

    logging.root.addFilter(divert)
    try:
        yield
    finally:
        logging.root.removeFilter(divert)


def _drop_unused_domains(model: "ModelProto") -> None:
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _count_quantized(op_type_by_name: dict[str, str], quantized: "ModelProto") -> QuantizedNodes:
    """Integer products in the quantized graph, and the op types of the nodes they replaced, by name."""
    names = [node.name for node in quantized.graph.node if node.op_type == "MatMulInteger"]
    originals = [name.removesuffix("_quant").removesuffix("_MatMul") for name in names]
    op_types = sorted({op_type_by_name.get(name, "MatMul") for name in originals})
    after, before = _weight_bytes(quantized)
    return QuantizedNodes(num_nodes=len(names), op_types=op_types, weight_bytes=after, weight_bytes_fp32=before)


def _weight_bytes(quantized: "ModelProto") -> tuple[int, int]:
    """Bytes of the 8-bit weights with their scales and zero points, and of the same weights in float32."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in quantized.graph.initializer}
    weights = {node.input[1] for node in quantized.graph.node if node.op_type == "MatMulInteger"}
    stems = {name.removesuffix("_quantized") for name in weights}
    scales = sum(4 * sizes.get(f"{stem}_scale", 0) + sizes.get(f"{stem}_zero_point", 0) for stem in stems)
    count = sum(sizes[name] for name in weights)
    return count + scales, 4 * count
