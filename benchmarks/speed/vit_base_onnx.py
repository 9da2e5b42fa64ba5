# SPDX-License-Identifier: Apache-2.0
"""Measure how much faster one sub-model (2 of 12 heads) is than ViT-Base in ONNX Runtime, and where the rest goes.

    python benchmarks/speed/vit_base_onnx.py

Exports both with random weights through the library's exporter (no weights are downloaded: no time depends on their
values) and times them on one thread on one image, in fp32 and in the export's dynamic int8, in fresh processes in
shuffled order; beside them ViT-Base in torch. Every ratio is taken within one round, from processes that ran next to
each other. Beside the ratios: that of the MACs, the time by operator from ONNX Runtime's own profile (taken apart from
the timing, which profiling slows down), and the share of the gap that each part explains. Writes
results/vit_base_onnx.json.
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import BASE, TINY, command_line, write_results

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.export.graphs.draw import save_graph
from edvit_hf.hardware.timing import summary
from speed.vit_base_models import (
    ONNX_TIMER,
    TORCH_TIMER,
    draw,
    instructions_of_this_machine,
    on_one_thread,
    quantize,
    shapes,
    stock_model,
    timed,
)

TARGETS = {"fp32": 20, "int8": 10, "int8_against_fp32": 1.3}
SUFFIXES = {"fp32": "", "int8": "_int8"}  # of the names of graphs
# Kernels of onnxruntime after its fusions -> what they are.
PARTS = {
    "linear maps": ("linear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger"),
    "attention products": ("attention",),
    "patch convolution": ("Conv", "ReorderInput", "ReorderOutput"),
    "softmax": ("Softmax",),
    "activation function": ("Gelu", "BiasGelu"),
    "layer norm": ("LayerNormalization", "SkipLayerNormalization"),
    "additions": ("Add", "Mul"),
    "moves": ("Transpose", "Reshape", "Concat", "Slice", "Expand", "Shape"),
    "quantizing activations": ("DynamicQuantizeLinear",),
}
KERNELS = (
    "import sys; from pathlib import Path; from edvit_hf.hardware.timing import *; "
    "session = open_session(Path(sys.argv[1]), 1, trace=Path(sys.argv[1]).with_suffix('')); "
    "feed = random_feed(session); [session.run(None, feed) for _ in range(2 * int(sys.argv[2]))]; "
    "print(session.end_profiling())"
)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    add, parse = command_line(__doc__)
    add("--keep-heads", type=int, default=2, help="heads that the sub-model keeps of 12")
    add("--rounds", type=int, default=7, help="fresh processes per variant, in shuffled order")
    add("--repeats", type=int, default=11, help="timed runs per process")
    add("--seed", type=int, default=0, help="of weights and orders")
    add("--tiny", action="store_true", help="a toy teacher instead of ViT-Base, to try the script")
    return parse()


def kernel_name(event: dict[str, Any]) -> str:
    """Operator of one kernel call; a MatMul is told apart by its second input: stored weights (2-D) or activations."""
    operator = event["args"]["op_name"]
    if operator not in ("MatMul", "FusedMatMul", "Gemm"):
        return operator
    sizes = [next(iter(one.values())) for one in event["args"].get("input_type_shape", [])]
    return "attention" if len(sizes) > 1 and len(sizes[1]) == 4 else "linear"


def breakdown(path: Path, repeats: int, shape: ModelShape) -> dict[str, Any]:
    """Milliseconds per image and part, and the GFLOP/s of the products.

    Of a graph that is read early the last layer's products for the other tokens are not computed: its GFLOP/s, which
    are of all MACs of the shape, are a little too high, of both models alike.
    """
    trace = Path(on_one_thread(KERNELS, path, repeats))
    events = json.loads(trace.read_text(encoding="utf-8"))
    trace.unlink()
    calls: dict[str, list[list[int]]] = {}
    for run in runs_of(events):
        totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for event in run:
            totals[kernel_name(event)][0] += event["dur"]
            totals[kernel_name(event)][1] += 1
        for name, total in totals.items():
            calls.setdefault(name, []).append(total)
    kernels = {
        name: {"ms": round(statistics.median(t for t, _ in found) / 1e3, 4), "calls": found[0][1]}
        for name, found in sorted(calls.items())
    }
    parts = {part: round(sum(kernels[n]["ms"] for n in names if n in kernels), 4) for part, names in PARTS.items()}
    known = {name for names in PARTS.values() for name in names}
    parts["rest"] = round(sum(kernel["ms"] for name, kernel in kernels.items() if name not in known), 4)
    speed = {part: round(2 * macs / parts[part] / 1e6, 1) for part, macs in macs_of_parts(shape).items()}
    total = sum(parts.values())
    shares = {part: round(value / total, 4) for part, value in parts.items()}
    return {"kernels_ms": round(total, 4), "parts_ms": parts, "shares": shares, "gflops": speed, "kernels": kernels}


def runs_of(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Kernel events of every counted `run` call of a trace; the first half of the calls is warm-up."""
    begins = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    counted = begins[len(begins) // 2 :]
    limits = [*counted[1:], float("inf")]
    return [[e for e in kernels if begin <= e["ts"] < end] for begin, end in zip(counted, limits, strict=True)]


def convolution_macs(shape: ModelShape) -> int:
    """Multiply-accumulates of the patch embedding."""
    return (shape.tokens - 1) * 3 * math.prod(pair(shape, "patch_size")) * shape.widths.residual


def pair(shape: ModelShape, key: str) -> tuple[int, int]:
    """A size of the config as height and width."""
    value = shape.architecture.value(shape.config, key)
    return (value, value) if isinstance(value, int) else tuple(value)


def macs_of_parts(shape: ModelShape) -> dict[str, int]:
    """Multiply-accumulates of the parts that have any."""
    patches = convolution_macs(shape)
    products = {"attention products": shape.attention_macs, "patch convolution": patches}
    return {"linear maps": shape.linear_macs - patches, **products}


def gap(teacher: dict[str, Any], sub_model: dict[str, Any], macs_ratio: float) -> dict[str, Any]:
    """Where the sub-model's time beyond teacher / MACs ratio lies: each part's excess over its share of the teacher.

    The shares are of the parts in excess together; a part that takes less than its share has a negative one.

    Linear maps shrink with the square of the width, everything else in proportion to it: these parts are in excess
    even where every kernel runs at the teacher's speed.
    """
    excess = {
        part: round(sub_model["parts_ms"][part] - teacher["parts_ms"][part] / macs_ratio, 4)
        for part in teacher["parts_ms"]
    }
    above = sum(value for value in excess.values() if value > 0)
    shares = {part: round(value / above, 4) for part, value in excess.items()}
    return {"excess_ms": excess, "excess_total_ms": round(sum(excess.values()), 4), "shares_of_excess": shares}


def time_all(
    paths: dict[str, Path], arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """All samples and the processes' medians by model, and the share of the runs that were disturbed.

    A round times every model once, in shuffled order; the ratios are taken within a round.
    """
    names = [*paths, "teacher_torch"]
    samples: dict[str, list[float]] = {name: [] for name in names}
    medians: dict[str, list[float]] = {name: [] for name in names}
    shares = []
    size, here = "tiny" if arguments.tiny else "base", Path(__file__).parents[1]
    order, shuffler = list(names), random.Random(arguments.seed)
    with tqdm(total=arguments.rounds * len(names), desc="vit_base_onnx", unit="process") as bar:
        for _ in range(arguments.rounds):
            shuffler.shuffle(order)
            for name in order:
                bar.set_postfix_str(name, refresh=False)
                if name in paths:
                    found, disturbed = timed(ONNX_TIMER, paths[name], arguments.repeats)
                else:
                    found, disturbed = timed(TORCH_TIMER, size, arguments.repeats, here)
                samples[name] += found
                medians[name].append(round(statistics.median(found), 4))
                shares.append(disturbed)
                bar.update()
    return samples, medians, round(statistics.mean(shares), 4)


def ratios(medians: dict[str, list[float]], slow: str, fast: str) -> dict[str, Any]:
    """Slow over fast: the median of the rounds' ratios, and each."""
    found = [s / f for s, f in zip(medians[slow], medians[fast], strict=True)]
    return {"ratio": round(statistics.median(found), 2), "ratios_of_rounds": [round(value, 2) for value in found]}


def compared(
    timings: dict[str, dict[str, Any]], medians: dict[str, list[float]], macs_ratio: float, precision: str
) -> dict[str, Any]:
    """The sub-model against ViT-Base in one precision."""
    teacher, sub_model = (name + SUFFIXES[precision] for name in ("teacher", "sub_model"))
    found = ratios(medians, teacher, sub_model)
    return {
        "latency_ratio": found["ratio"],
        "latency_ratios_of_rounds": found["ratios_of_rounds"],
        "target_latency_ratio": TARGETS[precision],
        "gap": gap(timings[teacher]["profile"], timings[sub_model]["profile"], macs_ratio),
        "teacher": timings[teacher],
        "sub_model": timings[sub_model],
    }


def main() -> None:
    """Export, time, break down, write."""
    arguments = parse_arguments()
    sizes = TINY if arguments.tiny else BASE
    both = shapes(sizes, arguments.keep_heads)
    with tempfile.TemporaryDirectory() as temporary:
        paths = {name: Path(temporary) / f"{name}.onnx" for name in both}
        for name, shape in both.items():
            save_graph(draw(stock_model(shape, arguments.seed), early=True), paths[name])
            paths[f"{name}_int8"] = Path(temporary) / f"{name}_int8.onnx"
            quantize(paths[name], paths[f"{name}_int8"])
        samples, medians, disturbed = time_all(paths, arguments)
        load, timings = os.getloadavg()[0], {}
        for name, path in paths.items():
            shape = both[name.removesuffix("_int8")]
            about = {"parameters": shape.parameters, "macs": shape.macs, "bytes": path.stat().st_size}
            times = {**summary(samples[name]), "process_medians_ms": medians[name]}
            timings[name] = {**about, **times, "profile": breakdown(path, arguments.repeats, shape)}
    macs_ratio = both["teacher"].macs / both["sub_model"].macs
    teacher_macs, sub_model_macs = (macs_of_parts(both[name]) for name in ("teacher", "sub_model"))
    result = {
        "seed": arguments.seed,
        **instructions_of_this_machine(),
        "what": "onnxruntime, one thread, one 224 px image, all graph optimisations, last layer read early in both "
        "models; random weights",
        **{"disturbed_share": disturbed, "load_average": round(load, 2)},
        "teacher_sizes": sizes,
        "keep_heads": arguments.keep_heads,
        "macs_ratio": round(macs_ratio, 2),
        "macs_ratio_of_parts": {part: round(macs / sub_model_macs[part], 2) for part, macs in teacher_macs.items()},
        **compared(timings, medians, macs_ratio, "fp32"),
        "int8": compared(timings, medians, macs_ratio, "int8"),
        "int8_against_fp32": {
            "sub_model": ratios(medians, "sub_model", "sub_model_int8"),
            "teacher": ratios(medians, "teacher", "teacher_int8"),
            "target": TARGETS["int8_against_fp32"],
        },
        "torch": {
            "what": "ViT-Base in torch fp32, stock attention, one thread, inference mode",
            "teacher": {**summary(samples["teacher_torch"]), "process_medians_ms": medians["teacher_torch"]},
            "engine": ratios(medians, "teacher_torch", "teacher"),
            "against_fp32_sub_model": ratios(medians, "teacher_torch", "sub_model"),
            "against_int8_sub_model": ratios(medians, "teacher_torch", "sub_model_int8"),
        },
    }
    keys = ("latency_ratio", "latency_ratios_of_rounds", "macs_ratio", "gap", "int8_against_fp32")
    print(json.dumps({key: result[key] for key in keys}, indent=2))
    write_results(__file__, arguments, result, "keep_heads", "rounds", "repeats", "seed", "tiny", version=2)


if __name__ == "__main__":
    main()
