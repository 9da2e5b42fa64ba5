# SPDX-License-Identifier: Apache-2.0
"""Measure time and memory of cutting ViT-B/16 into ten sub-models, scores given.

    python benchmarks/pruning/cut_vit_base.py

Random weights and scores: which units stay does not change the cost. One thread, all ten sub-models held at once, one
process per row. Writes results/cut_vit_base.json.
"""

import gc
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.architectures.axes import AttentionKind, Widths, widths_of_heads
from edvit_hf.hardware.provenance import peak_memory_mib, reset_peak_memory
from edvit_hf.pruning import UnitScores, architecture_of, make_plan, prune

NUM_CLASSES = 10
KINDS: tuple[AttentionKind, ...] = ("whole", "thin", "merged")
TINY = {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96, "image_size": 32}


def random_scores(widths: Widths, seed: int) -> UnitScores:
    """Uniform numbers of the shapes that a ViT needs."""
    draw = np.random.default_rng(seed).random
    return UnitScores(
        residual=draw(widths.residual),
        heads=draw((widths.layers, widths.heads)),
        attention=draw((widths.layers, widths.attention)),
        ffn=draw((widths.layers, widths.ffn)),
        pooled=None,
        method="random",
        num_samples=1,
    )


def measure(config: ViTConfig, keep_heads: int, attention: AttentionKind, seed: int) -> dict[str, Any]:
    """Plan and cut one sub-model per class, all of them held until the last is made; in a process of its own.

    Memory that earlier cuts freed may stay resident and be used again, which would hide what this one takes.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    teacher = ViTForImageClassification(config).eval()
    widths = architecture_of(teacher).widths(config)
    after = widths_of_heads(widths, keep_heads, attention=attention, labels=2)
    scores = [random_scores(widths, seed + label) for label in range(NUM_CLASSES)]
    gc.collect()
    reset_peak_memory()
    before, start = peak_memory_mib(), time.perf_counter()
    plans = [make_plan(given, config, after, attention=attention) for given in scores]
    seconds_plans = time.perf_counter() - start
    sub_models = [prune(teacher, plan, [label]) for label, plan in enumerate(plans)]
    seconds = time.perf_counter() - start
    return {
        "keep_heads": keep_heads,
        "attention": attention,
        "seconds": round(seconds, 3),
        "seconds_of_which_plans": round(seconds_plans, 3),
        "peak_mib_above_teacher": round(peak_memory_mib() - before, 1),
        "sub_models_mib": round(sum(4 * p.numel() for model in sub_models for p in model.parameters()) / 2**20, 1),
        "parameters_before": plans[0].parameters_before,
        "parameters_after": plans[0].parameters_after,
    }


def divides(widths: Widths, keep_heads: int, attention: AttentionKind) -> bool:
    """Whether thin heads of one size hold so many heads' worth of dimensions."""
    return attention != "thin" or keep_heads * widths.head_dim % widths.heads == 0


def main() -> None:
    """Measure every keep with every kind of attention that divides, write, print."""
    add, parse = command_line(__doc__)
    add("--keep-heads", type=int, nargs="+", default=[2, 6, 9], help="of 12")
    add("--seed", type=int, default=0, help="of the weights and scores")
    add("--tiny", action="store_true", help="a toy model of 12 heads, to try the script")
    arguments = parse()
    labels = {i: str(i) for i in range(NUM_CLASSES)}
    config = ViTConfig(**(TINY if arguments.tiny else {}), id2label=labels)
    widths = architecture_of(config).widths(config)
    rows = []
    for keep_heads in arguments.keep_heads:
        for attention in KINDS:
            if divides(widths, keep_heads, attention):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    rows.append(pool.apply(measure, (config, keep_heads, attention, arguments.seed)))
                print(json.dumps(rows[-1]))
    result = {"seed": arguments.seed, "torch_threads": 1, "num_sub_models": NUM_CLASSES, "rows": rows}
    write_results(__file__, arguments, result, "keep_heads", "seed", "tiny")


if __name__ == "__main__":
    main()
