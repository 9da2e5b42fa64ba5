# SPDX-License-Identifier: Apache-2.0
"""Graphs that keep every promise of the manifest and never end, or take long in one operator that nothing stops."""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from edvit_hf.manifest import file_sha256

FUSION, SUB_MODEL = "onnx/fusion.onnx", "sub_models/01/onnx/model.onnx"
_FIRST = {FUSION: "features", SUB_MODEL: "pixel_values"}


def make_endless(root: Path, file: str, *, spares_zeros: bool) -> None:
    """Put a loop of 2**62 rounds before a graph; with `spares_zeros` an input of zeros goes round it."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["x"], ["same"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, None),
        ],
    )
    name = _FIRST[file]
    nodes = [
        helper.make_node("ReduceMax", [name], ["peak"], keepdims=0),
        helper.make_node("ReduceMin", [name], ["low"], keepdims=0),
        helper.make_node("Equal", ["peak", "low"], ["is_flat"]),
        helper.make_node("Where", ["is_flat", "none" if spares_zeros else "many", "many"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "", name], ["looped"], body=body),
    ]
    constants = [helper.make_tensor("none", TensorProto.INT64, [], [0])]
    constants.append(helper.make_tensor("many", TensorProto.INT64, [], [2**62]))
    put_before(root, file, nodes, constants, "looped")


def make_heavy(root: Path, file: str, side: int, *, spares_zeros: bool = False, is_constant: bool = False) -> None:
    """Put one operator before a graph that takes long and cannot be stopped: the square of a large matrix.

    With `spares_zeros` it is the square of a single number for an input of zeros; `is_constant` has it computed when
    the graph is opened.
    """
    name = _FIRST[file]
    nodes = [
        helper.make_node("ReduceMean", [name], ["mean"], keepdims=0),
        helper.make_node("ReduceMax", [name], ["highest"], keepdims=0),
        helper.make_node("ReduceMin", [name], ["lowest"], keepdims=0),
        helper.make_node("Equal", ["highest", "lowest"], ["is_flat"]),
        helper.make_node("Where", ["is_flat", "small" if spares_zeros else "large", "large"], ["sides"]),
        helper.make_node("Expand", ["zero", "large"] if is_constant else ["mean", "sides"], ["matrix"]),
        helper.make_node("MatMul", ["matrix", "matrix"], ["square"]),
        helper.make_node("ReduceMax", ["square"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "zero"], ["nothing"]),
        helper.make_node("Add", [name, "nothing"], ["delayed"]),
    ]
    constants = [helper.make_tensor("small", TensorProto.INT64, [2], [1, 1])]
    constants.append(helper.make_tensor("large", TensorProto.INT64, [2], [side, side]))
    constants.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
    put_before(root, file, nodes, constants, "delayed")


def put_before(root: Path, file: str, nodes, constants, output: str) -> None:
    """Have a graph of a tiny ensemble take its first input through these nodes, and the manifest vouch for it."""
    model = onnx.load(root / file)
    old = list(model.graph.node)
    for node in old:
        node.input[:] = [output if each == _FIRST[file] else each for each in node.input]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *old])
    model.graph.initializer.extend(constants)
    onnx.save(model, root / file)
    bless(root, file)


def bless(root: Path, file: str) -> None:
    """Have the manifest vouch for whatever the file holds now."""
    data = json.loads((root / "manifest.json").read_text())
    for owner in [*data["sub_models"], data["fusion"]]:
        for variant in owner["variants"]:
            if variant["file"] == file:
                variant |= {"sha256": file_sha256(root / file), "bytes": (root / file).stat().st_size}
    (root / "manifest.json").write_text(json.dumps(data))
