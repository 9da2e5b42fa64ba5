# SPDX-License-Identifier: Apache-2.0
"""Reading early: a rewrite of a sub-model's graph that keeps its answers and computes fewer tokens.

A sub-model is read at its first token or two: whatever its last layer computes for the others goes nowhere.
`read_early` moves the reading in front of that work, in plain operators that every runtime has. What it gains, and what
gained less: docs/guides/speed.md.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edvit_hf.errors import named_extra

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_TOKENS = 1  # axis of the tokens in hidden states (B, T, d)
_LARGEST = np.iinfo(np.int64).max
_ELEMENTWISE = frozenset(("Add", "Mul", "Sub", "Div", "Gelu", "Tanh", "Relu", "Erf", "Sqrt", "Cast", "Identity"))
_ROWS = frozenset(("LayerNormalization", "Softmax"))  # each row by itself, where their axis is the last

Edge = tuple[int, int]  # node, number of its input
Need = tuple[int, int]  # axis, how many leading entries of it are read


class ReadGraph:
    """A graph with who makes and who reads each value, and the shapes that inference finds."""

    def __init__(self, model: "ModelProto") -> None:
        import onnx

        self.graph: GraphProto = model.graph
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.made_by = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.read_by: dict[str, list[Edge]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for position, name in enumerate(node.input):
                self.read_by[name].append((index, position))
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self.shapes: dict[str, list[Any]] = {
            value.name: [dim.dim_param or dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
            for value in values
        }
        self.shapes |= {name: list(tensor.dims) for name, tensor in self.stored.items()}

    def rank(self, name: str) -> int | None:
        """Number of axes of a value, None where inference does not tell."""
        return len(self.shapes[name]) if name in self.shapes else None

    def values(self, name: str) -> list[int] | None:
        """The whole numbers in a stored scalar or row, None for anything else."""
        from onnx import TensorProto, numpy_helper

        tensor = self.stored.get(name)
        if tensor is None or tensor.data_type != TensorProto.INT64 or len(tensor.dims) > 1:
            return None
        return [int(value) for value in np.atleast_1d(numpy_helper.to_array(tensor))]

    def attribute(self, node: "NodeProto", name: str, default: Any) -> Any:
        """An attribute of a node."""
        from onnx import helper

        return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def read_early(model: "ModelProto") -> int:
    """Rewrite the last layer in place so that only tokens that are read are computed; keys and values stay whole.

    Walks from the slices and picks of the first tokens towards the inputs, as long as every reader of a value needs
    no more than the first tokens of it: through norms, activations, sums, products with weights, the attention's
    softmax and the splitting and joining of its heads. Where the way ends, the slice is put.

    Args:
        model: Of one sub-model, hidden states (B, T, d); any architecture that the export draws.

    Returns:
        How many products now run on the first tokens alone; 0 where nothing could be moved, and the graph is as it was.

    Differs from an exact proof: a reshape is taken to split or join heads where its ranks and known sizes say so;
    of texts, inference does not know all sizes. The export measures the parity of every file in any case.
    """
    with named_extra("Exporting", "export"):
        import onnx  # noqa: F401
    graph = ReadGraph(model)
    needs = dict(_readings(graph))
    narrowed: dict[str, Need] = {}
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        need = _need_of(graph, node.output[0], needs) if len(node.output) == 1 else None
        passed = None if need is None else _pass_on(graph, node, *need)
        if need is not None and passed is not None:
            narrowed[node.output[0]] = need
            needs |= {(index, position): (axis, need[1]) for position, axis in passed.items()}
    products = [name for name in narrowed if graph.nodes[graph.made_by[name]].op_type == "MatMul"]
    if products:
        _rewrite(graph, needs, narrowed)
    return len(products)


def _readings(graph: ReadGraph) -> Iterator[tuple[Edge, Need]]:
    """Find the nodes that slice off the first tokens or pick the first one."""
    for index, node in enumerate(graph.nodes):
        if not node.input or graph.rank(node.input[0]) != 3:
            continue
        first = [graph.values(name) for name in node.input[1:]]
        if node.op_type == "Slice" and len(first) >= 3:
            begin, end, axes = first[:3]
            is_plain = begin == [0] and axes == [_TOKENS] and first[3:] in ([], [[1]])
            if is_plain and end is not None and 0 < end[0] < _LARGEST:
                yield (index, 0), (_TOKENS, end[0])
        if node.op_type == "Gather" and graph.attribute(node, "axis", 0) == _TOKENS and first == [[0]]:
            yield (index, 0), (_TOKENS, 1)


def _need_of(graph: ReadGraph, name: str, needs: Mapping[Edge, Need]) -> Need | None:
    """What all readers of a value need of it together; None if one of them needs everything."""
    found = [needs.get(edge) for edge in graph.read_by[name]]
    known = [need for need in found if need is not None]
    if name in graph.outputs or not known or len(known) < len(found) or len({axis for axis, _ in known}) > 1:
        return None
    return known[0][0], max(count for _, count in known)


def _pass_on(graph: ReadGraph, node: "NodeProto", axis: int, count: int) -> dict[int, int] | None:
    """Inputs of a node that may be cut if its output is -> along which axis; None where it must stay whole."""
    rank = graph.rank(node.output[0])
    if rank is None:
        return None
    rules: dict[str, Callable[[], dict[int, int] | None]] = {
        # Rows of the first factor make the rows of the product.
        "MatMul": lambda: {0: axis} if graph.rank(node.input[0]) == rank and axis == rank - 2 else None,
        "Transpose": lambda: {0: list(graph.attribute(node, "perm", []))[axis]},
        "Reshape": lambda: {0: axis} if _keeps_tokens(graph, node, axis) else None,
    }
    if node.op_type in rules:
        return rules[node.op_type]()
    if node.op_type in _ROWS:
        last = graph.attribute(node, "axis", -1) in (-1, rank - 1)
        return {0: axis} if last and axis < rank - 1 else None
    if node.op_type not in _ELEMENTWISE:
        return None
    passed = {}
    for position, name in enumerate(node.input):
        own = (graph.rank(name) or 0) - rank + axis  # shapes are aligned at their last axis
        size = graph.shapes[name][own] if name in graph.shapes and own >= 0 else 1
        if graph.rank(name) is None or (name in graph.stored and size != 1):
            return None
        if size != 1:
            passed[position] = own
    return passed


def _keeps_tokens(graph: ReadGraph, node: "NodeProto", axis: int) -> bool:
    """Whether a reshape splits or joins the axes behind the tokens only: (B, T, d) <-> (B, T, heads, size)."""
    before, after = graph.shapes.get(node.input[0]), graph.shapes.get(node.output[0])
    if before is None or after is None or axis != _TOKENS or {len(before), len(after)} != {3, 4}:
        return False
    inner = inner_sizes(graph, node)
    sizes = before[_TOKENS], after[_TOKENS]
    return inner is not None and (sizes[0] == sizes[1] or not all(isinstance(size, int) for size in sizes))


def inner_sizes(graph: ReadGraph, node: "NodeProto") -> list[int] | None:
    """What a reshape makes of the axes behind the tokens."""
    name = node.input[1]
    stored = graph.values(name)
    if stored is not None:
        return stored[2:]
    maker = graph.nodes[graph.made_by[name]] if name in graph.made_by else None
    if maker is None or maker.op_type != "Concat":
        return None
    parts = [graph.values(part) for part in maker.input[2:]]  # the first two are read from the inputs' shape
    return None if any(part is None or len(part) != 1 for part in parts) else [part[0] for part in parts if part]


def _rewrite(graph: ReadGraph, needs: Mapping[Edge, Need], narrowed: Mapping[str, Need]) -> None:
    """Insert a slice at each cut, and let reshapes copy the number of tokens."""
    from onnx import helper, numpy_helper

    def store(key: str, values: list[int]) -> str:
        name = f"early_{key}_{'_'.join(map(str, values))}".replace("-", "m")
        if name not in graph.stored:
            graph.stored[name] = numpy_helper.from_array(np.array(values, np.int64), name)
            graph.graph.initializer.append(graph.stored[name])
        return name

    cuts: dict[str, NodeProto] = {}
    for (index, position), (axis, count) in needs.items():
        node = graph.nodes[index]
        source = node.input[position]
        inside = node.output[0] in narrowed
        if not inside or source in narrowed:
            continue
        cut = f"{source}_first_{count}"
        if cut not in cuts:
            bounds = [store("index", [0]), store("index", [count]), store("index", [axis])]
            cuts[cut] = helper.make_node("Slice", [source, *bounds], [cut], name=f"node_{cut}")
        node.input[position] = cut
    for name in narrowed:
        node = graph.nodes[graph.made_by[name]]
        if node.op_type == "Reshape":
            node.input[1] = store("shape", [0, 0, *(inner_sizes(graph, node) or [])])
            del node.attribute[:]  # with `allowzero` a 0 would be a size, without it copies one
    _replace_nodes(graph, needs, narrowed, cuts)


def _replace_nodes(
    graph: ReadGraph, needs: Mapping[Edge, Need], narrowed: Mapping[str, Need], cuts: "Mapping[str, NodeProto]"
) -> None:
    """Write the nodes back in order: each cut behind its source, and without the slices that have become idle."""
    idle: dict[str, str] = {}
    for (index, _), need in needs.items():
        node = graph.nodes[index]
        if node.op_type == "Slice" and narrowed.get(node.input[0]) == need and node.output[0] not in graph.outputs:
            idle[node.output[0]] = node.input[0]
    behind: dict[str, list[NodeProto]] = defaultdict(list)
    for cut in cuts.values():
        behind[cut.input[0]].append(cut)
    ordered: list[NodeProto] = [cut for name in [v.name for v in graph.graph.input] for cut in behind.pop(name, [])]
    for node in graph.nodes:
        if node.output[0] in idle:
            continue
        for position, name in enumerate(node.input):
            node.input[position] = idle.get(name, name)
        ordered.append(node)
        ordered += [cut for name in node.output for cut in behind.pop(name, [])]
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]  # `del` ends what it removes
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    drop_unread(graph.graph)


def drop_unread(graph: "GraphProto") -> None:
    """Remove nodes and stored tensors that nothing reads any more (the sizes that reshapes named)."""
    kept = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if kept & set(node.output):
            kept |= set(node.input)
            nodes.append(type(node).FromString(node.SerializeToString()))
    tensors = [type(t).FromString(t.SerializeToString()) for t in graph.initializer if t.name in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(tensors)
