"""What of a graph can be quantized: products with constant weights, and the tables of embeddings."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PRODUCTS = ("MatMul", "Gemm")
TABLE, CONVOLUTION = "Gather", "Conv"
FROM_GEMM = "_MatMul"  # what onnxruntime appends to the name of a Gemm that it turned into a MatMul and an Add
_VOTE = "logits"  # the graph output whose producer, the vote head (or the end of the fusion head), stays float
_FUSION = "fusion"  # a module of this name, the fusion head inside the graph of a whole ensemble, stays float


@dataclass(frozen=True, kw_only=True)
class QuantizableNode:
    """One node with a constant weight that int8 may replace.

    Attributes:
        name: Of the node.
        op_type: "MatMul", "Gemm", "Conv", or "Gather" for a table of embeddings.
        path: The module it came from, "vit.layers.0.attention.q_proj"; the node's name if nothing tells it.
        reads: The tensor it reads besides its weight; nodes that read the same one share its quantization.
        weight: Name of the constant.
        shape: Of the constant.
        num_inputs: Values that each output channel sums up; of a table its rows.
    """

    name: str
    op_type: str
    path: str
    reads: str
    weight: str
    shape: tuple[int, ...]
    num_inputs: int

    @property
    def num_values(self) -> int:
        """Values of the weight."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def float_cost(self) -> int:
        """Bytes that the file grows by if this weight stays float32."""
        return 3 * self.num_values


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes that stay float together, because they read the same tensor (query, key and value do).

    Attributes:
        label: "vit.layers.0.attention.k_proj+q_proj+v_proj".
        nodes: Their names.
        cost: Bytes that the file grows by if they stay float32.
    """

    label: str
    nodes: tuple[str, ...]
    cost: int


def quantizable_nodes(model: "ModelProto", *, op_types: Collection[str]) -> list[QuantizableNode]:
    """The nodes of these types with a constant float weight, in the graph's order, without vote and fusion heads.

    Products of two activations (attention) have no constant and are left out.
    """
    from onnx import TensorProto

    constants = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    reading: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            reading.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        place = 0 if node.op_type == TABLE else 1
        if node.op_type not in op_types or len(node.input) <= place or node.input[place] not in constants:
            continue
        shape = tuple(constants[node.input[place]].dims)
        if len(shape) < 2 or (node.op_type == TABLE and not _picks_rows(node, shape)):
            continue
        biases = [*node.input[2:], *_added(reading.get(node.output[0], []), constants)]
        path = _module_path(node, node.input[place], biases)
        if _is_head(node, reading, path):
            continue
        found.append(
            QuantizableNode(
                name=node.name,
                op_type=node.op_type,
                path=path,
                reads=node.input[1 - place],
                weight=node.input[place],
                shape=shape,
                num_inputs=_num_inputs(node, shape),
            )
        )
    return found


def node_groups(nodes: Iterable[QuantizableNode]) -> list[NodeGroup]:
    """Group nodes by what they read, in the order of the nodes; tables of embeddings are each their own."""
    grouped: dict[tuple[str, str], list[QuantizableNode]] = {}
    for node in nodes:
        grouped.setdefault(("", node.name) if node.op_type == TABLE else ("reads", node.reads), []).append(node)
    return [
        NodeGroup(
            label=_join_paths([n.path for n in members]),
            nodes=tuple(n.name for n in members),
            cost=sum(n.float_cost for n in members),
        )
        for members in grouped.values()
    ]


def _attribute(node: "NodeProto", name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _picks_rows(node: "NodeProto", shape: tuple[int, ...]) -> bool:
    """Whether a Gather looks up rows of a table, as embeddings do."""
    return len(shape) == 2 and _attribute(node, "axis", 0) == 0


def _num_inputs(node: "NodeProto", shape: tuple[int, ...]) -> int:
    if node.op_type == CONVOLUTION:  # (out, in / groups, ...)
        count = 1
        for size in shape[1:]:
            count *= size
        return count
    transposed = node.op_type == "Gemm" and _attribute(node, "transB", 0) == 1
    return shape[-1] if transposed else shape[-2]


def _added(consumers: Iterable["NodeProto"], constants: Collection[str]) -> list[str]:
    """Constants added to a product: its bias."""
    return [name for node in consumers if node.op_type == "Add" for name in node.input if name in constants]


def _module_path(node: "NodeProto", weight: str, biases: Iterable[str]) -> str:
    """The module's name, from that of its weight or bias: tracing transposes weights and forgets their names."""
    for name in (weight, *biases):
        stem = name.removesuffix(".weight").removesuffix(".bias")
        if stem != name:
            return stem.removeprefix("sub_model.")
    return node.name


def _is_head(node: "NodeProto", reading: dict[str, list["NodeProto"]], path: str) -> bool:
    """Whether a node makes the vote, or belongs to the fusion head."""
    ends = [node, *(n for n in reading.get(node.output[0], []) if n.op_type == "Add")]
    return _FUSION in path.split(".") or any(_VOTE in end.output for end in ends)


def _join_paths(paths: list[str]) -> str:
    """Join a.q and a.v as "a.q+v"; paths with different parents are joined whole."""
    parents = {path.rpartition(".")[0] for path in paths}
    if len(paths) == 1 or len(parents) > 1:
        return "+".join(paths)
    return f"{parents.pop()}.{'+'.join(sorted(path.rpartition('.')[2] for path in paths))}".removeprefix(".")
