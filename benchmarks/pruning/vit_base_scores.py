# SPDX-License-Identifier: Apache-2.0
"""Measure what scores of all 46,848 units of ViT-B/16 cost, next to the exact KL.

    python benchmarks/pruning/vit_base_scores.py

Takes a ViT-B/16 with random weights (cost does not depend on them), 64 random images of 224 px and a class group of 10
out of 100 labels ("other" included: 11 outcomes, the dearer reading of "10 classes"). Measures the plain forward over
these images, the "fisher" scores of all units in the same batches, and its peak memory; extrapolates the exact KL from
masked forwards of one batch per axis and layer. Writes results/vit_base_scores.json.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, seconds_of, write_results

from edvit_hf.hardware.provenance import peak_memory_mib, reset_peak_memory
from edvit_hf.pruning import UnitScores, architecture_of, unit_scores
from edvit_hf.pruning.masks import Masks, layer_input, masked, resumed_at

MOST_FORWARDS, MOST_GIB, LEAST_TIMES_EXACT = 40, 8, 1000


@torch.no_grad()
def forward_seconds(model: PreTrainedModel, images: Tensor, batch_size: int, repeats: int) -> list[float]:
    """Each of several plain forwards over all images, after one to warm up."""

    def forward() -> None:
        for batch in images.split(batch_size):
            model(batch)

    model(images[:batch_size])
    return [round(seconds_of(forward), 3) for _ in range(repeats)]


@torch.no_grad()
def exact_seconds(model: PreTrainedModel, images: Tensor, batch_size: int) -> dict[str, float]:
    """Extrapolated seconds of the exact KL per axis: one masked batch timed per axis and layer, times units and images.

    As `ExactKL` runs it: attention dimensions and FFN units of a layer resume there, residual channels run through.
    """
    architecture = architecture_of(model)
    widths = architecture.widths(model.config)
    rows = images[:batch_size]

    def per_row(masks: Masks, layer: int | None = None) -> float:
        with masked(model, architecture, masks):
            if layer is None:
                return seconds_of(lambda: model(rows)) / len(rows)
            hidden = layer_input(model, architecture, layer, {architecture.main_input: rows})
            with resumed_at(model, architecture, layer, hidden):
                return seconds_of(lambda: model(rows)) / len(rows)

    attention, ffn = (torch.ones(len(rows), size) for size in (widths.attention, widths.ffn))
    layers = range(widths.layers)
    totals = {
        "residual": widths.residual * per_row(Masks(residual=torch.ones(len(rows), widths.residual))),
        "attention": widths.attention * sum(per_row(Masks(attention={i: attention}), i) for i in layers),
        "ffn": widths.ffn * sum(per_row(Masks(ffn={i: ffn}), i) for i in layers),
    }
    return {axis: round(total * len(images), 1) for axis, total in totals.items()}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    torch.manual_seed(arguments.seed)
    model = ViTForImageClassification(ViTConfig(num_labels=arguments.labels)).eval()
    images = torch.randn(arguments.images, 3, 224, 224)
    forwards = forward_seconds(model, images, arguments.batch_size, arguments.repeats)
    found: list[UnitScores] = []

    def score() -> None:
        group = range(arguments.group_size)
        found.append(unit_scores(model, images, group, method="fisher", batch_size=arguments.batch_size))

    reset_peak_memory()
    fisher, peak = seconds_of(score), peak_memory_mib()
    scores = found[0]
    num_units = scores.residual.size + scores.attention.size + scores.ffn.size
    exact = exact_seconds(model, images, arguments.batch_size)
    forward, exact_total = statistics.median(forwards), sum(exact.values())
    return {
        "units": num_units,
        "forward_seconds": forwards,
        "forward_seconds_median": forward,
        "fisher_seconds": round(fisher, 2),
        "fisher_in_forwards": round(fisher / forward, 2),
        "fisher_peak_memory_mib": peak,
        "exact_seconds_extrapolated": exact,
        "exact_in_forwards": round(exact_total / forward),
        "exact_in_forwards_without_resuming": num_units,
        "exact_over_fisher": round(exact_total / fisher),
        "must_reach": {
            "fisher_in_forwards": f"<= {MOST_FORWARDS}",
            "fisher_peak_memory_mib": f"<= {MOST_GIB * 1024}",
            "exact_over_fisher": f">= {LEAST_TIMES_EXACT}",
        },
        "reached": fisher / forward <= MOST_FORWARDS
        and peak <= MOST_GIB * 1024
        and exact_total / fisher >= LEAST_TIMES_EXACT,
    }


def main() -> None:
    """Measure, write, print."""
    add, parse = command_line(__doc__)
    add("--images", type=int, default=64)
    add("--labels", type=int, default=100, help="of the teacher")
    add("--group-size", type=int, default=10, help="classes of the group")
    add("--batch-size", type=int, default=8, help="rows per forward, of everything measured")
    add("--repeats", type=int, default=5, help="plain forwards over all images; the median counts")
    add("--seed", type=int, default=0)
    arguments = parse()
    options = ("images", "labels", "group_size", "batch_size", "repeats", "seed")
    result = {"seed": arguments.seed, "torch_threads": torch.get_num_threads(), **measure(arguments)}
    print(json.dumps(result, indent=2))
    write_results(__file__, arguments, result, *options)


if __name__ == "__main__":
    main()
