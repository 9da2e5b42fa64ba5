"""float16 files: half the bytes, for engines that compute in float16 (GPUs, browsers, phones).

Inputs and outputs stay float32, so that nobody has to feed or read such a file differently. On a CPU without float16
kernels onnxruntime computes in float32 between casts: slower than the fp32 file, and no smaller in memory.
"""

import contextlib
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edvit_hf.errors import ExportGateError, MissingExtraError
from edvit_hf.export.graph_edits import clean_like, load_graph, sort_nodes
from edvit_hf.export.onnx import save_graph

if TYPE_CHECKING:
    from onnx import ModelProto

_LARGEST = float(np.finfo(np.float16).max)


def halve_graph(source: Path, target: Path, *, kept_float: Collection[str] = ()) -> None:
    """Write the float16 variant of an fp32 graph.

    Args:
        source (`Path`): fp32 ONNX file.
        target (`Path`): Where the float16 file goes.
        kept_float (`Collection[str]`): Names of nodes that stay float32, with their weights.

    Raises:
        ExportGateError: If `source` is no intact ONNX file or holds no float32 weights, or if a weight exceeds what
            float16 can hold (65504).
        MissingExtraError: If onnx or onnxruntime is not installed.
    """
    try:
        import onnx

        with _search_path_kept():
            from onnxruntime.transformers import float16
    except ImportError as error:
        raise MissingExtraError("Converting to float16", "export", "onnx and onnxruntime") from error
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
