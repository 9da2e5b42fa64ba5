# SPDX-License-Identifier: Apache-2.0
"""Static int8: ranges of activations from calibration data, weights and activations as QuantizeLinear pairs (QDQ).

Products with constant weights and the convolution that embeds patches, nothing else: norms, softmax, GELU, additions,
products of two activations (attention), the vote head and the fusion head stay float. A product's answer stays float
too; onnxruntime then runs it as one operator, with the error of a dynamic file. With quantized answers, its default,
the error was up to half as large again and the file slower. Only the convolution's answer is quantized: without that no
engine has an integer kernel for it. BERT's pooler and DistilBERT's `pre_classifier` see one row per item: onnxruntime
computes them in float from their 8-bit weights, and only bytes are gained.
"""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from edvit_hf.errors import DataError, named_extra
from edvit_hf.export.config import CalibrationMethod
from edvit_hf.export.gates import as_feeds
from edvit_hf.export.graphs.derived import load_graph
from edvit_hf.export.int8.dynamic import (
    QuantizationPreset,
    QuantizedNodes,
    chosen_nodes,
    finish,
    is_per_channel,
    root_logger_diverted,
)
from edvit_hf.export.int8.nodes import CONVOLUTION, PRODUCTS, TABLE, QuantizableNode, read_originals

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime.quantization import TensorsData

_PERCENTILE = 99.999  # as Optimum's preset
_ENTROPY_BINS = 256  # onnxruntime's 128 leave one candidate, the full range; 1024 took 7 times as long, no closer
_BATCH = 16
_OP_TYPES = (*PRODUCTS, CONVOLUTION)


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The range of every activation that a static file may quantize, measured once and used for any attempt."""

    method: CalibrationMethod
    num_items: int
    tensors: "TensorsData"


def calibrate(
    source: Path, inputs: Mapping[str, np.ndarray], *, method: CalibrationMethod = "minmax", batch_size: int = _BATCH
) -> Ranges:
    """Run an fp32 graph on calibration data and find the ranges of its activations.

    Args:
        source: fp32 ONNX file.
        inputs: The graph's inputs by name, rows first, prepared as in training; never the split that is reported. Some
            hundred items.
        method: "minmax" takes the extremes, "percentile" all but the outermost 0.001 %, "entropy" the range whose 8-bit
            histogram loses the least information.
        batch_size: Items at a time. Histograms hold a batch's activations in memory.

    Raises:
        DataError: If there are no items, the names differ from the graph's, or a value is not finite.
        ExportGateError: If `source` is no intact ONNX file.
    """
    with named_extra("Calibrating", "export"):
        from onnxruntime.quantization import calibrate as ort
    if method not in get_args(CalibrationMethod):
        raise DataError(
            f"Expected a calibration method among {', '.join(get_args(CalibrationMethod))}, got {method!r}. Ranges "
            "would be found in a way nobody asked for. Correct the name."
        )
    graph = load_graph(source)
    feeds = _check_calibration(inputs, [value.name for value in graph.graph.input])
    nodes = chosen_nodes(graph, _OP_TYPES, num_expected=None, kept_float=(), what=source.name)
    wanted = _activations(graph, nodes)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "minmax": (ort.MinMaxCalibrater, {}),
        "entropy": (ort.EntropyCalibrater, {"num_bins": _ENTROPY_BINS}),
        "percentile": (ort.PercentileCalibrater, {"percentile": _PERCENTILE}),
    }
    kind, options = kinds[method]
    num_items = len(next(iter(feeds.values())))
    with tempfile.TemporaryDirectory() as folder, root_logger_diverted():
        calibrator = kind(source, _OP_TYPES, str(Path(folder) / "calibration.onnx"), **options)
        select = calibrator.select_tensors_to_calibrate  # would take attention's products and all answers as well
        calibrator.select_tensors_to_calibrate = lambda model: (wanted, select(model)[1])
        calibrator.augment_graph()
        calibrator.create_inference_session()
        for start in range(0, num_items, batch_size):
            batch = {name: values[start : start + batch_size] for name, values in feeds.items()}
            calibrator.collect_data(_OneBatch(batch))  # one at a time: it holds every activation of what it is given
        tensors = calibrator.compute_data()
    return Ranges(method=method, num_items=num_items, tensors=tensors)


def quantize_graph_static(
    source: Path,
    target: Path,
    preset: QuantizationPreset,
    ranges: Ranges,
    *,
    num_expected: int | None = None,
    kept_float: Collection[str] = (),
) -> QuantizedNodes:
    """Write the static int8 variant of an fp32 graph and count what was quantized.

    Tables of embeddings become int8 as in a dynamic file, and `num_expected` and `kept_float` mean what they do there;
    convolutions are not counted. `ranges` is what `calibrate` found on the same file.

    Raises:
        ExportGateError: As `quantize_graph` does.
        DataError: If the ranges belong to another graph.
    """
    with named_extra("Quantizing", "export"):
        from onnxruntime.quantization import QDQQuantizer, QuantType
    graph = load_graph(source)
    nodes = chosen_nodes(graph, (*_OP_TYPES, TABLE), num_expected=num_expected, kept_float=kept_float, what=source.name)
    wanted = {name: node for name, node in nodes.items() if node.op_type != TABLE}
    if missing := sorted(_activations(graph, wanted) - set(ranges.tensors.keys())):
        raise DataError(
            f"Expected ranges of every activation of {source.name}, got none of {missing[:3]} ({len(missing)} in all). "
            "They were measured on another graph. Calibrate this one."
        )
    weight_type = getattr(QuantType, preset.weight_type)
    one_scale = [{"quant_type": weight_type, "symmetric": True, "reduce_range": preset.reduce_range}]
    options = {
        "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
        "QuantizeBias": False,
        "WeightSymmetric": True,
        "ActivationSymmetric": preset.activation_type == "QInt8",
        "TensorQuantOverrides": {
            node.weight: one_scale for node in wanted.values() if not is_per_channel(node, preset)
        },
    }
    with root_logger_diverted():
        quantizer = QDQQuantizer(
            graph,
            preset.per_channel,
            preset.reduce_range,
            weight_type,
            getattr(QuantType, preset.activation_type),
            ranges.tensors,
            list(wanted),
            [],
            list(_OP_TYPES),
            options,
        )
        quantizer.quantize_model()
    quantized = quantizer.model.model
    read_originals(quantized, wanted)
    return finish(quantized, source, target, preset, nodes, kept_float=kept_float)


def _activations(graph: "ModelProto", nodes: Mapping[str, QuantizableNode]) -> set[str]:
    """Tensors that need a range: what products and convolutions read, and what convolutions answer."""
    reads = {node.reads for node in nodes.values()}
    return reads | {n.output[0] for n in graph.graph.node if n.name in nodes and n.op_type == CONVOLUTION}


def _check_calibration(inputs: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """The calibration data as the graph takes it.

    Raises:
        DataError: If it does not fit the graph.
    """
    advice = "Ranges found on it would not hold for real inputs."
    if set(inputs) != set(names):
        raise DataError(
            f"Expected calibration data for the inputs {names}, got {sorted(inputs)}. {advice} Give prepared items of "
            "the training split."
        )
    counts = {name: len(values) for name, values in inputs.items()}
    if min(counts.values()) == 0 or len(set(counts.values())) > 1:
        raise DataError(
            f"Expected the same number of calibration items, at least one, for every input, got {counts}. {advice} "
            "Give some hundred items of the training split."
        )
    feeds = as_feeds(inputs)
    for name, values in feeds.items():
        if broken := int((~np.isfinite(values)).sum()):
            raise DataError(
                f"Expected finite calibration data, got {broken} values of {name!r} that are not. {advice} Find the "
                "items that are broken and leave them out."
            )
    return feeds


class _OneBatch:
    """One batch as onnxruntime's calibrators read data."""

    def __init__(self, batch: dict[str, np.ndarray]) -> None:
        self._left = [batch]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the batch, then nothing."""
        return self._left.pop() if self._left else None
