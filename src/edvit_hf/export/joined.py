"""The whole ensemble as one graph, made of sub-models' files and the fusion head's: inputs -> logits.

What the gate accepted is then exactly what runs, in int8 too, whatever was kept float; the fusion head stays float. And
it takes no time: tracing ten sub-models of four layers a second time, as one module, took 27 s of a processor and made
a file 3 % smaller, joining them took 0.3 s.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edvit_hf.export.onnx import clean_graph
from edvit_hf.export.optimum_config import EDViTOnnxConfig

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def join_graphs(sub_models: Sequence[Path], fusion: Path, onnx_config: EDViTOnnxConfig) -> "ModelProto":
    """Join the graphs of all sub-models (inputs -> features) and of the fusion head, with everybody present.

    Args:
        sub_models (`Sequence[Path]`): Prepared-input graphs in order; their votes are left out.
        fusion (`Path`): The fusion head's graph.
        onnx_config (`EDViTOnnxConfig`): Of the ensemble.

    Returns:
        `onnx.ModelProto`: One clean graph.
    """
    import onnx
    from onnx import TensorProto, compose, helper

    parts = [onnx.load(path) for path in sub_models]
    head = compose.add_prefix(onnx.load(fusion), "fusion/")
    joined = onnx.ModelProto()
    joined.CopyFrom(head)
    graph = joined.graph
    for owner in (graph.node, graph.initializer, graph.input, graph.output):
        del owner[:]
    for index, part in enumerate(parts):
        features = _without_vote(part.graph)
        prefix = f"sub_model_{index:02d}/"
        renamed = compose.add_prefix(part, prefix, rename_inputs=False).graph
        graph.node.extend(node for node in renamed.node if set(node.output) & {prefix + name for name in features})
        graph.initializer.extend(tensor for tensor in renamed.initializer if tensor.name in _inputs_of(graph))
    graph.input.extend(parts[0].graph.input)
    names = [f"sub_model_{index:02d}/features" for index in range(len(parts))]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph.initializer.append(helper.make_tensor("joined/num_sub_models", TensorProto.INT64, [1], [len(parts)]))
    graph.node.extend(
        [
            helper.make_node("Concat", names, ["fusion/features"], name="joined/features", axis=1),
            helper.make_node("Shape", names[:1], ["joined/batch"], name="joined/batch", start=0, end=1),
            helper.make_node("Concat", ["joined/batch", "joined/num_sub_models"], ["joined/mask_shape"],
                             name="joined/mask_shape", axis=0),
            helper.make_node("ConstantOfShape", ["joined/mask_shape"], ["fusion/mask"], name="joined/mask", value=one),
            *head.graph.node,
            helper.make_node("Identity", ["fusion/logits"], ["logits"], name="joined/logits"),
        ]
    )  # fmt: skip
    graph.initializer.extend(head.graph.initializer)
    (logits,) = head.graph.output
    graph.output.add().CopyFrom(logits)
    graph.output[0].name = "logits"
    _join_operator_sets(joined, parts)
    clean_graph(joined, onnx_config)
    onnx.checker.check_model(joined, full_check=True)
    return joined


def _without_vote(graph: "GraphProto") -> set[str]:
    """Every value that the features are computed from, and the features themselves."""
    wanted = {"features"}
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
