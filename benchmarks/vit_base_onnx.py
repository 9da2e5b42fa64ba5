# SPDX-License-Identifier: Apache-2.0
"""How much faster is one sub-model (2 of 12 heads) than ViT-Base in ONNX Runtime, and what eats the rest?

    python benchmarks/vit_base_onnx.py

Exports both with random weights through the library's exporter and times them on one thread, fp32, one image, in
fresh processes in shuffled order. Beside the ratio: the ratio of the MACs, the time by operator from ONNX Runtime's own
profile (taken apart from the timing, which profiling slows down), and the share of the gap that each part explains.
Writes results/vit_base_onnx.json.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification

from edvit_hf.costs import ModelShape
from edvit_hf.export.onnx import draw_sub_model, save_graph
from edvit_hf.export.optimum_config import resolve_onnx_config
from edvit_hf.profiling import summary
from edvit_hf.provenance import environment
from edvit_hf.storage import write_json

RESULTS = Path(__file__).parent / "results"
OPSET, TARGET = 20, 20
TEACHER_LABELS, SUB_MODEL_LABELS = 10, 2  # ten classes in groups of one: each sub-model votes its class or "other"
BASE = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 96, "num_attention_heads": 12, "num_hidden_layers": 2, "intermediate_size": 192}
# Kernels of onnxruntime after its fusions -> what they are.
PARTS = {
    "linear maps": ("linear",),
    "attention products": ("attention",),
    "patch convolution": ("Conv", "ReorderInput", "ReorderOutput"),
    "softmax": ("Softmax",),
    "activation function": ("Gelu", "BiasGelu"),
    "layer norm": ("LayerNormalization", "SkipLayerNormalization"),
    "additions": ("Add", "Mul"),
    "moves": ("Transpose", "Reshape", "Concat", "Slice", "Expand", "Shape"),
}
TIMER = (
    "import json, sys; from pathlib import Path; from edvit_hf.profiling.timing import *; "
    "samples = time_rounds([open_session(Path(sys.argv[1]), 1)], rounds=int(sys.argv[2])); "
    "print(json.dumps(samples[0].milliseconds))"
)
KERNELS = (
    "import sys; from pathlib import Path; from edvit_hf.profiling.timing import *; "
    "session = open_session(Path(sys.argv[1]), 1, trace=Path(sys.argv[1]).with_suffix('')); "
    "feed = random_feed(session); [session.run(None, feed) for _ in range(2 * int(sys.argv[2]))]; "
    "print(session.end_profiling())"
)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--keep-heads", type=int, default=2, help="heads that the sub-model keeps of 12")
    add("--rounds", type=int, default=7, help="fresh processes per variant, in shuffled order")
    add("--repeats", type=int, default=11, help="timed runs per process")
    add("--seed", type=int, default=0, help="of weights and orders")
    add("--tiny", action="store_true", help="a toy teacher instead of ViT-Base, to try the script")
    add("--results-dir", type=Path, default=RESULTS)
    return parser.parse_args()


def export(shape: ModelShape, path: Path, seed: int) -> None:
    """A stock ViT of this shape with random weights, through our exporter."""
    torch.manual_seed(seed)
    values = {key: value for key, value in shape.config.items() if key != "model_type"}
    config = ViTConfig(**values, num_labels=shape.widths.labels)
    shape.architecture.set_widths(config, shape.widths)
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # all zero in a new model: the exporter would store them once
                parameter.normal_(std=0.02)
    save_graph(draw_sub_model(model, resolve_onnx_config(config), opset=OPSET), path)


def fresh(code: str, path: Path, repeats: int) -> str:
    """What `code` prints last in a process of its own."""
    command = [sys.executable, "-c", code, str(path), str(repeats)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def kernel_name(event: dict[str, Any]) -> str:
    """Operator of one kernel call; a MatMul is told apart by its second input: stored weights (2-D) or activations."""
    operator = event["args"]["op_name"]
    if operator not in ("MatMul", "FusedMatMul", "Gemm"):
        return operator
    shapes = [next(iter(one.values())) for one in event["args"].get("input_type_shape", [])]
    return "attention" if len(shapes) > 1 and len(shapes[1]) == 4 else "linear"


def breakdown(path: Path, repeats: int, shape: ModelShape) -> dict[str, Any]:
    """Milliseconds per image and part, and the GFLOP/s of the two kinds of products."""
    trace = Path(fresh(KERNELS, path, repeats))
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

    Linear maps shrink with the square of the width, everything else in proportion to it: these parts are in excess
    even where every kernel runs at the teacher's speed.
    """
    excess = {
        part: round(sub_model["parts_ms"][part] - teacher["parts_ms"][part] / macs_ratio, 4)
        for part in teacher["parts_ms"]
    }
    total = sum(excess.values())
    return {"excess_ms": excess, "excess_total_ms": round(total, 4),
            "shares_of_excess": {part: round(value / total, 4) for part, value in excess.items()}}  # fmt: skip


def main() -> None:
    """Export, time, break down, write."""
    arguments = parse_arguments()
    sizes = TINY if arguments.tiny else BASE
    teacher = ModelShape.from_config({"model_type": "vit", **sizes}, num_labels=TEACHER_LABELS)
    shapes = {"teacher": teacher, "sub_model": teacher.keep(arguments.keep_heads, num_labels=SUB_MODEL_LABELS)}
    samples: dict[str, list[float]] = {name: [] for name in shapes}
    medians: dict[str, list[float]] = {name: [] for name in shapes}
    with tempfile.TemporaryDirectory() as temporary:
        paths = {name: Path(temporary) / f"{name}.onnx" for name in shapes}
        for name, shape in shapes.items():
            export(shape, paths[name], arguments.seed)
        order, shuffler = list(shapes), random.Random(arguments.seed)
        for _ in range(arguments.rounds):
            shuffler.shuffle(order)
            for name in order:
                found = json.loads(fresh(TIMER, paths[name], arguments.repeats))
                samples[name] += found
                medians[name].append(round(statistics.median(found), 4))
        parts = {name: breakdown(paths[name], arguments.repeats, shape) for name, shape in shapes.items()}
    timings = {
        name: {"parameters": shape.parameters, "macs": shape.macs, **summary(samples[name]),
               "process_medians_ms": medians[name], "profile": parts[name]}
        for name, shape in shapes.items()
    }  # fmt: skip
    macs_ratio = teacher.macs / shapes["sub_model"].macs
    result = {
        "schema_version": 1,
        "command": f"python benchmarks/vit_base_onnx.py --keep-heads {arguments.keep_heads} --rounds "
        f"{arguments.rounds} --repeats {arguments.repeats} --seed {arguments.seed}"
        + (" --tiny" if arguments.tiny else ""),
        "seed": arguments.seed,
        "environment": environment(),
        "what": "onnxruntime fp32, one thread, one 224 px image, all graph optimisations; random weights",
        "teacher_sizes": sizes,
        "keep_heads": arguments.keep_heads,
        "latency_ratio": round(timings["teacher"]["median_ms"] / timings["sub_model"]["median_ms"], 2),
        "latency_ratios_of_rounds": [round(t / s, 2) for t, s in zip(*medians.values(), strict=True)],
        "macs_ratio": round(macs_ratio, 2),
        "macs_ratio_of_parts": {
            part: round(macs / macs_of_parts(shapes["sub_model"])[part], 2)
            for part, macs in macs_of_parts(teacher).items()
        },
        "target_latency_ratio": TARGET,
        "gap": gap(parts["teacher"], parts["sub_model"], macs_ratio),
        **timings,
    }
    arguments.results_dir.mkdir(parents=True, exist_ok=True)
    path = arguments.results_dir / "vit_base_onnx.json"
    write_json(path, result)
    print(json.dumps({key: result[key] for key in ("latency_ratio", "latency_ratios_of_rounds", "macs_ratio", "gap")},
                     indent=2))  # fmt: skip
    print(f"written: {path}")


if __name__ == "__main__":
    main()
