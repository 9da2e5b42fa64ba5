# SPDX-License-Identifier: Apache-2.0
"""Measure what other ways to write or run the graph of a small sub-model gain, one by one.

    python benchmarks/speed/vit_base_operators.py

The sub-model of ViT-Base (2 of 12 heads, random weights) is written in other ways: read early (the last layer computes
only the token that is read), with a fixed batch, projections merged, attention folded or as one operator, patches as a
product; onnxruntime's own optimiser for transformers; onnxruntime with fewer of its fusions. Every way is compared
with the graph as first drawn, in fp32 and in the export's dynamic int8: sessions of all of them in one process, rounds
in shuffled order, several processes; a ratio is taken within a process. Writes results/vit_base_operators.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import BASE, TINY, command_line, write_results

from edvit_hf.export.graphs.draw import save_graph
from edvit_hf.export.graphs.read_early import read_early
from edvit_hf.hardware.timing import open_session
from speed import vit_base_rewrites as rewrites
from speed.vit_base_models import draw, instructions_of_this_machine, on_one_thread, quantize, shapes, stock_model

DRAWN, EARLY = "as first drawn", "read early"
WORTH = 1.03  # a gain that counts
SHALLOW = 4  # layers, as the small recipes have: the fewer, the larger the share of the last
# name -> what is done to the graph; after reading early, so that gains on top of it show.
WAYS: dict[str, tuple[Callable[[ModelProto], Any], ...]] = {
    DRAWN: (),
    EARLY: (read_early,),
    "fixed batch of 1": (read_early, rewrites.fix_batch),
    "attention folded": (read_early, rewrites.fold_attention),
    "projections merged": (read_early, rewrites.merge_projections),
    "patches as a product": (read_early, rewrites.patches_as_product),
    "Attention operator of opset 23": (read_early, rewrites.use_attention_operator),
    "MultiHeadAttention of onnxruntime": (read_early, rewrites.use_multi_head_attention),
    "GELU by tanh (other answers)": (read_early, rewrites.approximate_gelu),
}
FP32_ONLY = ("MultiHeadAttention of onnxruntime",)  # the quantizer cannot tell the types behind foreign operators
OPTIMISER, LEVELS = "onnxruntime.transformers.optimizer", {"no fusions": 0, "basic fusions": 1, "extended fusions": 2}
RACE = """
import json, statistics, sys
from pathlib import Path
import onnxruntime
from edvit_hf.hardware.timing import open_session, time_rounds
level, options = None, onnxruntime.SessionOptions
def with_level():
    found = options()
    if level is not None:
        found.graph_optimization_level = onnxruntime.GraphOptimizationLevel(level)
    return found
onnxruntime.SessionOptions = with_level
sessions = []
for file, level in json.loads(sys.argv[1]):
    sessions.append(open_session(Path(file), 1))
samples = time_rounds(sessions, rounds=int(sys.argv[2]), seed=int(sys.argv[3]))
print(json.dumps([[statistics.median(s.milliseconds), s.disturbed_share] for s in samples]))
"""


def optimised_by_onnxruntime(path: Path, target: Path, heads: int, width: int) -> dict[str, int]:
    """Run onnxruntime's own offline optimiser for transformers; returns what it fused."""
    from onnxruntime.transformers.optimizer import optimize_model

    found = optimize_model(str(path), model_type="vit", num_heads=heads, hidden_size=width, opt_level=0)
    found.save_model_to_file(str(target))
    return {name: count for name, count in found.get_fused_operator_statistics().items() if count}


def write_ways(folder: Path, drawn: ModelProto, ways: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The files of every way by precision, each with the level of fusions it is opened with; None: all."""
    files: dict[str, dict[str, Any]] = {"fp32": {}, "int8": {}}
    for index, (name, steps) in enumerate(ways.items()):
        model = ModelProto.FromString(drawn.SerializeToString())
        for step in steps:
            step(model)
        onnx.checker.check_model(model)
        path = folder / f"way_{index}.onnx"
        save_graph(model, path)
        files["fp32"][name] = (str(path), None)
        if name not in FP32_ONLY:
            target = folder / f"way_{index}_int8.onnx"
            quantize(path, target)
            files["int8"][name] = (str(target), None)
    return files


def add_engine_ways(folder: Path, files: dict[str, dict[str, Any]], *, heads: int, width: int) -> dict[str, int]:
    """Add onnxruntime's offline optimiser, and onnxruntime with fewer fusions; returns what the optimiser fused."""
    fused = optimised_by_onnxruntime(Path(files["fp32"][EARLY][0]), folder / "fused.onnx", heads, width)
    files["fp32"][OPTIMISER] = (str(folder / "fused.onnx"), None)
    for found in files.values():
        found |= {name: (found[EARLY][0], level) for name, level in LEVELS.items()}
    return fused


def differences(files: dict[str, Any], size: int) -> Iterator[tuple[str, float]]:
    """How far each way's answers are from the first's, of the largest value."""
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    reference = None
    for name, (file, _) in files.items():
        session = open_session(Path(file), 1)
        got = session.run(["features", "logits"], {"pixel_values": pixels})
        reference = got if reference is None else reference
        yield name, float(max(np.abs(g - r).max() / np.abs(r).max() for g, r in zip(got, reference, strict=True)))


def race(files: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> dict[str, list[list[tuple[float, float]]]]:
    """By precision: of every process, median ms and disturbed share of each way."""
    found: dict[str, list[list[tuple[float, float]]]] = {precision: [] for precision in files}
    with tqdm(total=arguments.processes * len(files), desc="vit_base_operators", unit="process") as bar:
        for process in range(arguments.processes):
            for precision, ways in files.items():
                listed = json.dumps(list(ways.values()))
                found[precision].append(
                    json.loads(on_one_thread(RACE, listed, arguments.rounds, arguments.seed + process))
                )
                bar.update()
    return found


def summed_up(
    ways: dict[str, Any], found: list[list[tuple[float, float]]], differs: dict[str, float]
) -> dict[str, Any]:
    """Each way against the graph as first drawn and against the one that is read early, within each process."""
    rows, names = {}, list(ways)
    for index, name in enumerate(names):
        row: dict[str, Any] = {
            "median_ms": round(statistics.median(one[index][0] for one in found), 4),
            "disturbed_share": round(statistics.mean(one[index][1] for one in found), 4),
            "difference": float(f"{differs[name]:.2g}"),
        }
        keys = (("gain", "gain_of_processes", DRAWN), ("gain_on_top", "gain_on_top_of_processes", EARLY))
        for key, each, reference in keys:
            against = [one[names.index(reference)][0] / one[index][0] for one in found]
            row |= {key: round(statistics.median(against), 4), each: [round(value, 4) for value in against]}
        rows[name] = row
    return rows


def main() -> None:
    """Write every way, race them, sum up."""
    add, parse = command_line(__doc__)
    add("--keep-heads", type=int, default=2, help="heads that the sub-model keeps of 12")
    add("--processes", type=int, default=7, help="fresh processes, each with sessions of all ways")
    add("--rounds", type=int, default=21, help="timed runs of every way per process, in shuffled order")
    add("--seed", type=int, default=0, help="of weights and orders")
    add("--tiny", action="store_true", help="a toy teacher instead of ViT-Base, to try the script")
    arguments = parse()
    sizes = TINY if arguments.tiny else BASE
    shape, shallow = (
        shapes(each, arguments.keep_heads)["sub_model"] for each in (sizes, {**sizes, "num_hidden_layers": SHALLOW})
    )
    with tempfile.TemporaryDirectory() as temporary:
        drawn = draw(stock_model(shape, arguments.seed), early=False)
        size = drawn.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        folders = [Path(temporary) / name for name in ("deep", "shallow")]
        files = write_ways(folders[0], drawn, WAYS)
        fused = add_engine_ways(folders[0], files, heads=shape.widths.heads, width=shape.widths.residual)
        differs = {precision: dict(differences(ways, size)) for precision, ways in files.items()}
        found = race(files, arguments)
        drawn = draw(stock_model(shallow, arguments.seed), early=False)
        two = write_ways(folders[1], drawn, {name: WAYS[name] for name in (DRAWN, EARLY)})
        two_found = race(two, arguments)
        two_differs = {precision: dict(differences(ways, size)) for precision, ways in two.items()}
    result = {
        "seed": arguments.seed,
        **instructions_of_this_machine(),
        "what": "one sub-model of ViT-Base, onnxruntime, one thread, one 224 px image; random weights. All ways but "
        "the first read early. gain: of the first's time over this one's; gain_on_top: of the one that reads early",
        "keep_heads": arguments.keep_heads,
        "load_average": round(os.getloadavg()[0], 2),
        "worth": WORTH,
        "fused_by_the_optimiser": fused,
        "ways": {precision: summed_up(files[precision], found[precision], differs[precision]) for precision in files},
        "shallow": {"layers": SHALLOW, "ways": {p: summed_up(two[p], two_found[p], two_differs[p]) for p in two}},
    }
    listed = [(p, name, row) for p, ways in result["ways"].items() for name, row in ways.items()]
    listed += [(f"{p} {SHALLOW} layers", EARLY, ways[EARLY]) for p, ways in result["shallow"]["ways"].items()]
    for precision, name, row in listed:
        gains = f"x{row['gain']:.3f}  x{row['gain_on_top']:.3f} on top"
        print(f"{precision} {name:36s} {row['median_ms']:8.3f} ms  {gains}  {row['difference']:.1e}")
    write_results(__file__, arguments, result, "keep_heads", "processes", "rounds", "seed", "tiny")


if __name__ == "__main__":
    main()
