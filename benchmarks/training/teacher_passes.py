# SPDX-License-Identifier: Apache-2.0
"""Measure what the teacher costs while N sub-models learn from it: stored logits, lockstep, or a pass for each.

    python benchmarks/training/teacher_passes.py

Seconds of one epoch of all N sub-models, one thread, at the sizes of mnist_small; noise for pixels, which does not
change the cost. Rows:

- stored: `kd` from stored logits, each sub-model by itself; the teacher's passes for the views are told beside it
- lockstep_kd: the same losses, but all sub-models in one loop
- lockstep_dekd: `dekd`, half a pass of the teacher per batch for all sub-models together
- dekd_alone: `dekd`, each sub-model by itself: half a pass of the teacher per batch of every sub-model
- naive: `kd`, each sub-model by itself with a whole pass of the teacher per batch, nothing stored

and what half a pass saves. Writes results/teacher_passes.json.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, seconds_of, write_results

from edvit_hf.data import ArrayStore, ImageSplit
from edvit_hf.training import (
    DistillConfig,
    DistillData,
    Lockstep,
    LockstepData,
    distill_objective,
    lockstep_objective,
    teacher_outputs,
    train,
)
from edvit_hf.training.relations import queries_keys_values, relation_source

NUM_CLASSES = 10
TEACHER = {"hidden_size": 96, "num_attention_heads": 8, "num_hidden_layers": 4, "intermediate_size": 384}
SUB_MODEL = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 96}
IMAGE = {"image_size": 28, "patch_size": 7}


def vit(sizes: dict[str, int], num_labels: int) -> ViTForImageClassification:
    """A model from scratch."""
    labels = {i: str(i) for i in range(num_labels)}
    return ViTForImageClassification(ViTConfig(**sizes, **IMAGE, id2label=labels))


class Epochs:
    """One epoch of all sub-models, trained in each of the ways."""

    def __init__(self, num_sub_models: int, options: argparse.Namespace) -> None:
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (options.num_items, 3, 28, 28), dtype=np.uint8)
        self.split = ImageSplit(ArrayStore(pixels), np.arange(options.num_items) % NUM_CLASSES)
        torch.manual_seed(0)
        self.teacher = vit(TEACHER, NUM_CLASSES).eval()
        self.groups = [group.tolist() for group in np.array_split(np.arange(NUM_CLASSES), num_sub_models)]
        start = time.perf_counter()
        self.stored = teacher_outputs(self.teacher, self.split, views=1, progress=False).logits
        self.seconds_to_store = time.perf_counter() - start
        self.kd = DistillConfig(epochs=1, batch_size=options.batch_size, checkpoint_every_steps=10**9)
        self.dekd = dataclasses.replace(self.kd, objective="dekd")

    def sub_models(self) -> list[ViTForImageClassification]:
        """Fresh sub-models."""
        return [vit(SUB_MODEL, len(group) + 1) for group in self.groups]

    def run(self, model: nn.Module, data: Any, objective: Any, config: DistillConfig) -> float:
        """Seconds of the epoch."""
        with tempfile.TemporaryDirectory() as folder:
            place = {"checkpoint_dir": Path(folder), "description": "epoch", "progress": False}
            log = train(model, data, objective, config, **place)
        return log.epochs[0]["seconds"]

    def alone(self, changed: Callable[[Any], Any] = lambda plain: plain) -> float:
        """Each by itself, from stored logits or with its objective changed."""
        total = 0.0
        for model, group in zip(self.sub_models(), self.groups, strict=True):
            objective = changed(distill_objective(group, self.kd.temperature, self.kd.distillation_weight))
            total += self.run(model, DistillData(self.split, self.stored, group), objective, self.kd)
        return total

    def with_teacher(self, plain: Any) -> Any:
        """The objective with a pass of the teacher for every batch."""

        def objective(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.no_grad():
                logits = self.teacher(**batch["inputs"]).logits
            return plain(model, {**batch, "teacher_logits": logits})

        return objective

    def lockstep(self, config: DistillConfig, *, together: bool = True) -> float:
        """All in one loop, or each in a lockstep of its own."""
        pairs, total = list(zip(self.sub_models(), self.groups, strict=True)), 0.0
        for part in [pairs] if together else [[pair] for pair in pairs]:
            sub_models, groups = (list(column) for column in zip(*part, strict=True))
            model = Lockstep(sub_models)
            objective = lockstep_objective(model, groups, config, self.teacher)
            total += self.run(model, LockstepData(self.split, self.stored, groups), objective, config)
        return total

    def teacher_pass(self, repeats: int, batch_size: int) -> dict[str, float]:
        """Seconds of a whole and of half a pass of the teacher over one batch."""
        inputs, source = self.split.inputs(np.arange(batch_size)), relation_source(self.teacher)

        def whole() -> None:
            with torch.no_grad():
                self.teacher(**inputs)

        seconds = {
            "whole": timed(whole, 5 * repeats),
            "half": timed(lambda: queries_keys_values(self.teacher, source, inputs), 5 * repeats),
        }
        return {**seconds, "half_of_whole": round(seconds["half"] / seconds["whole"], 3)}


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds."""
    call()
    return round(statistics.median(seconds_of(call) for _ in range(repeats)), 5)


def measure(num_sub_models: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of an epoch in each way, taken in turn, and their ratios to stored logits."""
    epochs = Epochs(num_sub_models, options)
    ways: dict[str, Callable[[], float]] = {
        "stored": epochs.alone,
        "lockstep_kd": lambda: epochs.lockstep(epochs.kd),
        "lockstep_dekd": lambda: epochs.lockstep(epochs.dekd),
        "dekd_alone": lambda: epochs.lockstep(epochs.dekd, together=False),
        "naive": lambda: epochs.alone(epochs.with_teacher),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            seconds[name].append(way())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "num_sub_models": num_sub_models,
        "seconds_to_store_one_view": round(epochs.seconds_to_store, 3),
        "seconds_per_epoch": {name: round(value, 3) for name, value in medians.items()},
        "times_stored": {name: round(value / medians["stored"], 3) for name, value in medians.items()},
        "dekd_alone_over_lockstep": round(medians["dekd_alone"] / medians["lockstep_dekd"], 3),
        "teacher_pass_seconds": epochs.teacher_pass(options.repeats, options.batch_size),
    }


def main() -> None:
    """Measure every number of sub-models, write, print."""
    add, parse = command_line(__doc__)
    add("--num-sub-models", type=int, nargs="+", default=[2, 5])
    add("--num-items", type=int, default=2560)
    add("--batch-size", type=int, default=128)
    add("--repeats", type=int, default=3)
    arguments = parse()
    os.environ["EDVIT_NUM_THREADS"] = "1"
    rows = []
    for count in arguments.num_sub_models:
        rows.append(measure(count, arguments))
        print(json.dumps(rows[-1]))
    write_results(
        __file__, arguments, {"torch_threads": 1, "rows": rows}, "num_sub_models", "num_items", "batch_size", "repeats"
    )


if __name__ == "__main__":
    main()
