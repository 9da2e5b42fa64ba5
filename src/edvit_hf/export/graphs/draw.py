# SPDX-License-Identifier: Apache-2.0
"""Graphs: one sub-model, or the fusion head, as a single clean ONNX file.

The graph comes from `transformers.exporters`. That module calls itself experimental, so a plain
`torch.onnx.export(dynamo=True)` stands behind it; parity is measured after either.
"""

import contextlib
import copy
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from edvit_hf.errors import ExportGateError, named_extra
from edvit_hf.export.graphs.read_early import read_early
from edvit_hf.export.optimum_config import EDViTOnnxConfig, task_of
from edvit_hf.modeling_edvit import forward_sub_model
from edvit_hf.parts_edvit import Fusion
from edvit_hf.tasks import Task

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

_MAX_BYTES = 2**31 - 1  # of a protobuf; above it weights need a side-car, which a renamed file loses
_NOISY = ("torch", "transformers", "onnxscript", "onnx_ir")
_UNMASKED, _MASKED = "edvit_unmasked", "edvit_masked"


def _unmasked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in four plain operators: images and spectrograms need no mask, which stock tracing would add."""
    weights = torch.softmax(query @ key.transpose(2, 3) * scaling, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _masked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in five: what `_padding_bias` gives is added, after which padding weighs exactly nothing."""
    weights = torch.softmax(query @ key.transpose(2, 3) * scaling + attention_mask, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _padding_bias(*, attention_mask: Tensor, dtype: torch.dtype, **_: Any) -> Tensor:
    """The mask (B, T) as what is added to scores, (B, 1, 1, T): 0 for a token, the lowest number for padding."""
    return torch.where(attention_mask[:, None, None, :], 0.0, torch.finfo(dtype).min)


AttentionInterface.register(_UNMASKED, _unmasked_attention)
AttentionInterface.register(_MASKED, _masked_attention)
AttentionMaskInterface.register(_MASKED, _padding_bias)


class SubModelGraph(nn.Module):
    """What is exported of a sub-model: inputs -> feature (B, d') and vote (B, |group| + 1), in one pass.

    The exporters want every input named in `forward`: one class per kind of input.
    """

    def __init__(self, sub_model: PreTrainedModel) -> None:
        super().__init__()
        self.sub_model = sub_model

    def answer(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return both answers by name."""
        features, logits = forward_sub_model(self.sub_model, inputs)
        return {"features": features, "logits": logits}


class _ImageGraph(SubModelGraph):
    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return self.answer(pixel_values=pixel_values)


class _AudioGraph(SubModelGraph):
    def forward(self, input_values: Tensor) -> dict[str, Tensor]:
        return self.answer(input_values=input_values)


class _TextGraph(SubModelGraph):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return self.answer(input_ids=input_ids, attention_mask=attention_mask)


_GRAPHS: dict[Task, type[SubModelGraph]] = {
    "image-classification": _ImageGraph,
    "audio-classification": _AudioGraph,
    "text-classification": _TextGraph,
}


class FusionGraph(nn.Module):
    """What is exported of a fusion: features (B, D), votes (B, V) and float mask (B, S) -> logits (B, L).

    Every kind takes all three, whether it reads them or not: whoever feeds one feeds any.
    """

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, features: Tensor, votes: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the logits by name."""
        return {"logits": self.fusion(features, votes, mask)}


@contextlib.contextmanager
def plain_attention(sub_model: PreTrainedModel) -> Iterator[None]:
    """Trace `sub_model` with attention in plain operators, masked for text; its own returns afterwards."""
    original = sub_model.config._attn_implementation
    is_text = task_of(sub_model.config) == "text-classification"
    sub_model.set_attn_implementation(_MASKED if is_text else _UNMASKED)
    try:
        yield
    finally:
        sub_model.set_attn_implementation(original)


def draw_sub_model(sub_model: PreTrainedModel, onnx_config: EDViTOnnxConfig, *, opset: int) -> "ModelProto":
    """Return the clean graph of a sub-model in eval mode, read early; see `draw_graph` and `read_early.read_early`."""
    graph = draw_in_full(sub_model, onnx_config, opset=opset)
    read_early(graph)
    return graph


def draw_in_full(sub_model: PreTrainedModel, onnx_config: EDViTOnnxConfig, *, opset: int) -> "ModelProto":
    """Return the graph as it was traced: the last layer computes every token, though only the first are read."""
    with plain_attention(sub_model):
        return draw_graph(_GRAPHS[onnx_config.modality](sub_model).eval(), onnx_config, opset=opset)


def draw_graph(module: nn.Module, onnx_config: EDViTOnnxConfig, *, opset: int) -> "ModelProto":
    """Trace `module` into an ONNX model with the inputs, outputs and axis names of `onnx_config`.

    Returns:
        `onnx.ModelProto`: Weights inside; without stack traces, local paths or other metadata.

    Raises:
        ExportGateError: If the graph differs from what was asked for.
    """
    with named_extra("Exporting", "export"):
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it; naming it here makes the error ours)
    symbols = {symbol for axes in onnx_config.inputs.values() for symbol in axes.values()}
    largest = onnx_config.largest_axes
    dims = {symbol: torch.export.Dim(symbol, min=1, max=largest.get(symbol)) for symbol in sorted(symbols)}
    shapes = {name: {axis: dims[symbol] for axis, symbol in axes.items()} for name, axes in onnx_config.inputs.items()}
    with _quiet(), torch.no_grad(), operators_read_once():
        model = _trace(module, onnx_config, shapes, opset)
    clean_graph(model, onnx_config)
    _check_graph(model, onnx_config, opset)
    onnx.checker.check_model(model, full_check=True)
    return model


def _trace(
    module: nn.Module, onnx_config: EDViTOnnxConfig, shapes: dict[str, dict[int, Any]], opset: int
) -> "ModelProto":
    """The graph from transformers' exporter, or from torch's own if that one fails."""
    import onnx_ir

    inputs = onnx_config.example_inputs()
    try:
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

        config = OnnxConfig(opset_version=opset, dynamic_shapes=shapes)
        program = OnnxExporter().export(module, inputs, config=config).program
    except Exception as error:  # the exporter promises no particular error; the fallback raises its own
        logger.warning("export: transformers.exporters failed (%r), falling back to torch.onnx.export", error)
        program = trace_with_torch(module, onnx_config, shapes, opset)
    return onnx_ir.to_proto(program)


def trace_with_torch(
    module: nn.Module, onnx_config: EDViTOnnxConfig, shapes: dict[str, dict[int, Any]], opset: int
) -> Any:
    """The fallback: the graph (`onnx_ir.Model`) from `torch.onnx.export(dynamo=True)`."""
    program = torch.onnx.export(
        module,
        kwargs=onnx_config.example_inputs(),
        input_names=list(onnx_config.inputs),
        output_names=list(onnx_config.outputs),
        dynamic_shapes=shapes,
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # it is None only when a file name is given
    return program.model


def clean_graph(model: "ModelProto", onnx_config: EDViTOnnxConfig) -> None:
    """Remove metadata in place (every node carries a stack trace with local paths) and name the dynamic axes.

    Inferred shapes go too: they spell the batch as an invented symbol, and every runtime infers them again.
    """
    del model.metadata_props[:]
    model.doc_string = ""
    model.graph.name = "edvit"
    _strip(model.graph)
    for function in model.functions:
        _strip(function)
    axes = {**onnx_config.inputs, **onnx_config.outputs}
    for value in [*model.graph.input, *model.graph.output]:
        for axis, symbol in axes.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = symbol


def _strip(graph: Any) -> None:
    """Clear documentation and metadata of a graph or function and of everything in it."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    values = [*graph.input, *graph.output, *graph.initializer] if hasattr(graph, "initializer") else []
    for item in [*values, *graph.node]:
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _strip(inner)


def _check_graph(model: "ModelProto", onnx_config: EDViTOnnxConfig, opset: int) -> None:
    """Refuse a graph whose names, opset or form differ from what the devices rely on."""
    got = {
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
        "operator sets": {entry.domain: entry.version for entry in model.opset_import},
        "functions": len(model.functions),
    }
    expected = {
        "inputs": list(onnx_config.inputs),
        "outputs": list(onnx_config.outputs),
        "operator sets": {"": opset},
        "functions": 0,
    }
    if got != expected:
        raise ExportGateError(
            f"The exported graph should have {expected}, got {got}. Devices feed and read it by these. The exporter's "
            "behaviour changed: use the versions in constraints.txt."
        )


def save_graph(model: "ModelProto", path: Path) -> None:
    """Write a graph as one file without side-car.

    Raises:
        ExportGateError: If it exceeds what one protobuf file can hold.
    """
    size = model.ByteSize()
    if size > _MAX_BYTES:
        raise ExportGateError(
            f"The graph has {size / 2**30:.1f} GiB; one file holds 2 GiB, and a side-car file is lost on the way to a "
            "device. Prune the sub-model further."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Collect what the exporters print, warn and log, and repeat it at DEBUG level under our own name."""
    collector, printed = logging.Handler(), io.StringIO()
    records: list[logging.LogRecord] = []
    collector.emit = records.append  # type: ignore[assignment, method-assign]
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in _NOISY]
    loggers = [logging.getLogger(name) for name in names]
    saved = [(each, each.handlers, each.propagate) for each in loggers]
    try:
        for each in loggers:
            each.handlers, each.propagate = [collector], False
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for each, handlers, propagate in saved:
            each.handlers, each.propagate = handlers, propagate
    for message in [*printed.getvalue().splitlines(), *(str(w.message) for w in caught)]:
        logger.debug("exporter: %s", message)
    for record in records:
        logger.debug("exporter: %s: %s", record.name, record.getMessage())


@contextlib.contextmanager
def operators_read_once() -> Iterator[None]:
    """Within the block torch takes its table of an operator set from memory, once it was read there.

    torch's exporter reads the signatures of some 500 functions anew for every graph, which is a quarter of what a small
    graph costs. They depend on the operator set alone.

    The names are private to torch: where it has others, it reads its table as it always did.
    """
    with contextlib.ExitStack() as changes:
        with contextlib.suppress(ImportError, AttributeError, KeyError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            former = ONNXRegistry.__dict__["from_torchlib"]
            tables = _tables(former.__func__, ONNXRegistry)
            setattr(ONNXRegistry, "from_torchlib", staticmethod(tables))  # noqa: B010
            changes.callback(setattr, ONNXRegistry, "from_torchlib", former)
        yield


@functools.cache
def _tables(read: Callable[..., Any], registry: type) -> Callable[..., Any]:
    """What reads the table of an operator set as `read` does, once."""
    kept = functools.cache(functools.partial(read, registry))

    def table(*arguments: Any, **options: Any) -> Any:
        found = copy.copy(kept(*arguments, **options))
        found.functions = {name: list(functions) for name, functions in found.functions.items()}
        return found  # its own: who asked may add functions

    return table
