# SPDX-License-Identifier: Apache-2.0
"""Compare the latency that `edvit profile` predicts with what real exports take.

    python benchmarks/planning/latency_prediction.py

Measures a fresh profile of this machine (which sees none of the sizes below), exports stock classifiers with random
weights at the sizes of sub-models (ViT-Base at 224 px cut to 1 to 8 of 12 heads and to thin heads, small ones at
32 px, an AST cut to 2 of 12 heads), and times each on one thread in fresh processes, in shuffled rounds.
Writes results/latency_prediction.json: predicted and measured milliseconds, spread, relative errors.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import ASTConfig, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import BASE, command_line, sizes_of, write_results

from edvit_hf.architectures.axes import AttentionKind
from edvit_hf.architectures.costs import ModelShape
from edvit_hf.export.graphs.draw import draw_graph, plain_attention, save_graph
from edvit_hf.hardware.latency import predicted_ms
from edvit_hf.hardware.profiles import DeviceProfile
from edvit_hf.hardware.profiling import profile_machine
from edvit_hf.hardware.timing import summary
from speed.vit_base_models import ONNX_TIMER, OPSET, draw, stock_model, timed

LABELS, TARGET = 11, 0.10
TINY_32 = sizes_of(192, heads=3, layers=12, image_size=32, patch_size=4)
SMALL_32 = sizes_of(96, heads=4, layers=6, ffn=192, image_size=32, patch_size=4)
# name -> (model type, teacher's sizes, heads' worth kept, whole or thin heads)
SIZES: dict[str, tuple[str, dict[str, int], int, AttentionKind]] = {
    **{f"ViT-Base, {heads} of 12 heads": ("vit", BASE, heads, "whole") for heads in range(1, 9)},
    **{f"ViT-Base, {heads} heads' worth of thin heads": ("vit", BASE, heads, "thin") for heads in (3, 6)},
    "ViT 192 wide, 32 px, 1 of 3 heads": ("vit", TINY_32, 1, "whole"),
    "ViT 192 wide, 32 px, 2 of 3 heads": ("vit", TINY_32, 2, "whole"),
    "ViT 96 wide, 32 px, 2 of 4 heads": ("vit", SMALL_32, 2, "whole"),
    "AST, 2 of 12 heads": ("audio-spectrogram-transformer", BASE, 2, "whole"),
}
TINY = ("ViT 192 wide, 32 px, 1 of 3 heads", "ViT 96 wide, 32 px, 2 of 4 heads")


class SpectrogramAxes:
    """What `draw_graph` needs to know of an AST, whose input is a spectrogram (batch, frames, bins)."""

    def __init__(self, config: ASTConfig) -> None:
        self.sizes = (3, config.max_length, config.num_mel_bins)
        self.inputs = {"input_values": {0: "batch"}}
        self.outputs = {"features": {0: "batch"}, "logits": {0: "batch"}}

    def example_inputs(self) -> dict[str, torch.Tensor]:
        """Dummy inputs."""
        return {"input_values": torch.randn(self.sizes)}


class SpectrogramGraph(torch.nn.Module):
    """AST as a sub-model: spectrogram -> feature (before the classifier's own norm) and vote."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return both answers by name."""
        feature = self.model.base_model(input_values).last_hidden_state[:, :2].mean(dim=1)
        return {"features": feature, "logits": self.model.classifier(feature)}


def sub_model_shape(model_type: str, sizes: dict[str, int], keep_heads: int, attention: AttentionKind) -> ModelShape:
    """The shape after keeping so many heads' worth of the teacher."""
    teacher = ModelShape.from_config({"model_type": model_type, **sizes}, num_labels=LABELS)
    return teacher.keep(keep_heads, num_labels=LABELS, attention=attention)


def export(shape: ModelShape, path: Path, seed: int) -> None:
    """A stock classifier of this shape with random weights, through our exporter."""
    model = stock_model(shape, seed)
    if shape.architecture.model_type == "vit":
        graph = draw(model, early=True)
    else:
        with plain_attention(model):
            graph = draw_graph(SpectrogramGraph(model).eval(), SpectrogramAxes(model.config), opset=OPSET)
    save_graph(graph, path)


def measure(folder: Path, names: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All samples of every size, from so many fresh processes each."""
    samples: dict[str, list[float]] = {name: [] for name in names}
    medians: dict[str, list[float]] = {name: [] for name in names}
    shuffler = random.Random(arguments.seed)
    for _ in range(arguments.rounds):
        shuffler.shuffle(names)
        for name in names:
            found, _ = timed(ONNX_TIMER, folder / f"{list(SIZES).index(name)}.onnx", arguments.repeats)
            samples[name] += found
            medians[name].append(round(statistics.median(found), 4))
    return {name: {**summary(samples[name]), "process_medians_ms": medians[name]} for name in sorted(names)}


def rows_of(profile: DeviceProfile, measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Predicted beside measured."""
    rows = []
    for name in SIZES:
        if name in measured:
            shape = sub_model_shape(*SIZES[name])
            predicted = predicted_ms(shape, profile)
            error = predicted / measured[name]["median_ms"] - 1
            sizes = {"tokens": shape.tokens, "parameters": shape.parameters, "macs": shape.macs}
            estimate = {"predicted_ms": round(predicted, 4), "relative_error": round(error, 4)}
            rows.append({"name": name, **sizes, **measured[name], **estimate})
    return rows


def main() -> None:
    """Profile, export, time, compare, write."""
    add, parse = command_line(__doc__)
    add("--rounds", type=int, default=5, help="fresh processes per size, in shuffled rounds")
    add("--repeats", type=int, default=9, help="timed runs per process")
    add("--seed", type=int, default=0, help="of weights, inputs and orders")
    add("--quick", action="store_true", help="a quick profile and the two smallest sizes, to try the script")
    arguments = parse()
    names = list(TINY if arguments.quick else SIZES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            export(sub_model_shape(*SIZES[name]), folder / f"{list(SIZES).index(name)}.onnx", arguments.seed)
            print(f"exported: {name}")
        begin = time.perf_counter()
        profile = profile_machine("this-machine", quick=arguments.quick, seed=arguments.seed)
        seconds = round(time.perf_counter() - begin, 1)
        rows = rows_of(profile, measure(folder, names, arguments))
    errors = [abs(row["relative_error"]) for row in rows]
    result = {
        "seed": arguments.seed,
        "what": "onnxruntime fp32, one thread, one input; real exports of stock models, random weights",
        "median_relative_error": round(statistics.median(errors), 4),
        "max_relative_error": round(max(errors), 4),
        "target_median_relative_error": TARGET,
        "profile_seconds": seconds,
        "rows": rows,
        "profile": {
            "latency_ms_per_unit": dict(profile.latency),
            "sustained_gflops": profile.sustained_gflops,
            "fits": profile.provenance["fits"],
        },
    }
    for row in rows:
        measured, predicted = row["median_ms"], row["predicted_ms"]
        print(f"{row['name']:36} {measured:9.3f} ms, predicted {predicted:9.3f} ms ({row['relative_error']:+.1%})")
    print(f"median error {result['median_relative_error']:.1%}, profile took {seconds} s")
    write_results(__file__, arguments, result, "rounds", "repeats", "seed", "quick")


if __name__ == "__main__":
    main()
