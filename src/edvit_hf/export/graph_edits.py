"""Reads an ONNX file with care, and edits that every rewritten graph needs: order, tidiness."""

from pathlib import Path
from typing import TYPE_CHECKING

from edvit_hf.errors import ExportGateError, MissingExtraError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def load_graph(path: Path) -> "ModelProto":
    """Read an ONNX file whole.

    Raises:
        ExportGateError: If there is none, or it is no intact ONNX file.
        MissingExtraError: If onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("Quantizing", "export", "onnx") from error
    if not path.is_file():
        raise ExportGateError(
            f"Expected an ONNX file at {path.name}, found none. There is nothing to convert. Name the fp32 graph of an "
            "export."
        )
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's, which have no common class
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ExportGateError(
            f"Expected an intact ONNX file, but {path.name} is none: {reason}. What is made from it would answer "
            "nonsense. Export the fp32 graph again."
        ) from error
    return model


def clean_like(model: "ModelProto", original: "ModelProto") -> None:
    """Take the description of inputs and outputs from the original graph, in place, and drop metadata."""
    graph = model.graph
    for values, right in ((graph.input, original.graph.input), (graph.output, original.graph.output)):
        del values[:]
        values.extend(right)
    del model.metadata_props[:]
    del graph.value_info[:]
    graph.name, graph.doc_string, model.doc_string = original.graph.name, "", ""
    for item in [*graph.node, *graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    used = {node.domain for node in graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def drop_unused_constants(graph: "GraphProto") -> None:
    """Remove, in place, constants that nothing reads."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def sort_nodes(graph: "GraphProto") -> None:
    """Put every node after those whose answers it reads, in place; nodes that are in order keep it.

    ONNX demands it, and both onnxruntime's quantizer and its float16 converter append nodes at the end.
    """
    made = {name for node in graph.node for name in node.output}
    ready: set[str] = set()
    waiting, ordered = list(graph.node), []
    while waiting:
        late = []
        for node in waiting:
            if all(name in ready or name not in made for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                late.append(node)
        assert len(late) < len(waiting), "a circle in the graph"
        waiting = late
    del graph.node[:]
    graph.node.extend(ordered)
