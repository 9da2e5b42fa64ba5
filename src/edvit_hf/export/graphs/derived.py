# SPDX-License-Identifier: Apache-2.0
"""Graphs made from finished graphs: the whole ensemble as one, a float16 copy; and how any finished graph is read.

The graph of the whole ensemble is joined from the sub-models' files and the fusion head's. What the gate accepted is
then exactly what runs, in int8 too, whatever was kept float; the fusion head stays float. And it takes no time: tracing
ten sub-models of four layers a second time, as one module, took 27 s of a processor and made a file 3 % smaller,
joining them took 0.3 s.

float16 halves the bytes, for engines that compute in float16 (GPUs, browsers, phones). Inputs and outputs stay float32,
so that nobody has to feed or read such a file differently. On a CPU without float16 kernels onnxruntime computes in
float32 between casts: slower than the fp32 file, and no smaller in memory.
"""

import contextlib
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edvit_hf.errors import ExportGateError, named_extra
from edvit_hf.export.graphs.draw import clean_graph, save_graph
from edvit_hf.export.optimum_config import EDViTOnnxConfig
from edvit_hf.tasks import ANSWERS

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def load_graph(path: Path) -> "ModelProto":
    """Read an ONNX file whole.

    Raises:
        ExportGateError: If there is none, or it is no intact ONNX file.
    """
    with named_extra("Quantizing", "export"):
        import onnx
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


def join_graphs(sub_models: Sequence[Path], fusion: Path, onnx_config: EDViTOnnxConfig) -> "ModelProto":
    """Join the graphs of all sub-models and of the fusion, with everybody present.

    Of a sub-model stays what the fusion reads: its features, its vote or both.

    Returns:
        `onnx.ModelProto`: One clean graph.
    """
    import onnx
    from onnx import TensorProto, compose, helper

    parts = [onnx.load(path) for path in sub_models]
    head = compose.add_prefix(onnx.load(fusion), "fusion/")
    read = [name for name in ANSWERS if f"fusion/{name}" in _inputs_of(head.graph)]
    joined = onnx.ModelProto()
    joined.CopyFrom(head)
    graph = joined.graph
    for owner in (graph.node, graph.initializer, graph.input, graph.output):
        del owner[:]
    for index, part in enumerate(parts):
        wanted = _needed_for([ANSWERS[name] for name in read], part.graph)
        prefix = f"sub_model_{index:02d}/"
        renamed = compose.add_prefix(part, prefix, rename_inputs=False).graph
        graph.node.extend(node for node in renamed.node if set(node.output) & {prefix + name for name in wanted})
        graph.initializer.extend(tensor for tensor in renamed.initializer if tensor.name in _inputs_of(graph))
    graph.input.extend(parts[0].graph.input)
    graph.node.extend(_nodes_between(len(parts), head, read))
    graph.initializer.append(helper.make_tensor("joined/num_sub_models", TensorProto.INT64, [1], [len(parts)]))
    graph.initializer.extend(head.graph.initializer)
    (logits,) = head.graph.output
    graph.output.add().CopyFrom(logits)
    graph.output[0].name = "logits"
    _join_operator_sets(joined, parts)
    clean_graph(joined, onnx_config)
    onnx.checker.check_model(joined, full_check=True)
    return joined


def _nodes_between(num_sub_models: int, head: "ModelProto", read: Sequence[str]) -> "list[NodeProto]":
    """From what is `read` of all sub-models, with everybody present, through the fusion to the logits."""
    from onnx import TensorProto, helper

    names = {each: [f"sub_model_{index:02d}/{ANSWERS[each]}" for index in range(num_sub_models)] for each in read}
    one, shape = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]), ["joined/mask_shape"]
    return [
        *(helper.make_node("Concat", names[each], [f"fusion/{each}"], name=f"joined/{each}", axis=1) for each in read),
        helper.make_node("Shape", names[read[0]][:1], ["joined/batch"], name="joined/batch", start=0, end=1),
        helper.make_node("Concat", ["joined/batch", "joined/num_sub_models"], shape, name=shape[0], axis=0),
        helper.make_node("ConstantOfShape", shape, ["fusion/mask"], name="joined/mask", value=one),
        *head.graph.node,
        helper.make_node("Identity", [head.graph.output[0].name], ["logits"], name="joined/logits"),
    ]


def _needed_for(outputs: Sequence[str], graph: "GraphProto") -> set[str]:
    """Names of all values that these outputs depend on; what only the others need is left out."""
    wanted = set(outputs)
    for node in reversed(graph.node):  # a node stands after those that it reads from
        if set(node.output) & wanted:
            wanted.update(node.input)
    return wanted


def _inputs_of(graph: "GraphProto") -> set[str]:
    return {name for node in graph.node for name in node.input}


def _join_operator_sets(joined: "ModelProto", parts: "Sequence[ModelProto]") -> None:
    """The newest version of each operator set that any part names, and the newest file format."""
    versions: dict[str, int] = {}
    for entry in [entry for model in [joined, *parts] for entry in model.opset_import]:
        versions[entry.domain] = max(entry.version, versions.get(entry.domain, 0))
    del joined.opset_import[:]
    for domain, version in versions.items():
        entry = joined.opset_import.add()
        entry.domain, entry.version = domain, version
    joined.ir_version = max(model.ir_version for model in [joined, *parts])


_LARGEST = float(np.finfo(np.float16).max)


def halve_graph(source: Path, target: Path, *, kept_float: Collection[str] = ()) -> None:
    """Write the float16 variant of an fp32 graph; nodes in `kept_float` stay float32, with their weights.

    Raises:
        ExportGateError: If `source` is no intact ONNX file or holds no float32 weights, or if a weight exceeds what
            float16 can hold (65504).
    """
    with named_extra("Converting to float16", "export"), _search_path_kept():
        import onnx
        from onnxruntime.transformers import float16
    original = load_graph(source)
    model = onnx.ModelProto()
    model.CopyFrom(original)
    _check_weights(model, kept_float, source.name)
    half = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=list(kept_float))
    clean_like(half, original)
    sort_nodes(half.graph)
    onnx.checker.check_model(half, full_check=True)
    save_graph(half, target)


@contextlib.contextmanager
def _search_path_kept() -> Iterator[None]:
    """Undo that `onnxruntime.transformers` adds its own folder, with modules of common names, to the search path."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before


def _check_weights(model: "ModelProto", kept_float: Collection[str], what: str) -> None:
    """Refuse a graph that float16 cannot hold; what a mask adds to scores, a single number, may be cut off.

    Raises:
        ExportGateError: If it has no float32 weights, or one is too large.
    """
    from onnx import TensorProto, numpy_helper

    read = {name for node in model.graph.node if node.name not in set(kept_float) for name in node.input}
    tensors = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims and t.name in read]
    if not tensors:
        raise ExportGateError(
            f"{what}: expected float32 weights, found none. There is nothing to halve; a float16 or int8 file is no "
            "source. Name the fp32 graph of an export."
        )
    for tensor in tensors:
        largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
        if not largest <= _LARGEST:
            raise ExportGateError(
                f"{what}: expected weights up to {_LARGEST:.0f}, got {largest:.3g} in {tensor.name}. float16 holds no "
                "more, and the file would answer otherwise. Keep the nodes that read it in float, or use fp32 or int8."
            )
