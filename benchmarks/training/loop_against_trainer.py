# SPDX-License-Identifier: Apache-2.0
"""Compare samples per second of our training loop and of transformers' `Trainer`: same model, data, batch, precision.

    python benchmarks/training/loop_against_trainer.py

One thread, one process per row, the two in turn and in changing order; batches are built alike for both (whole
batches from RAM, no copy per item), and neither writes checkpoints. The first epoch warms up and is not counted.
AdamW, clipping and a cosine with warm-up in both. Writes results/loop_against_trainer.json.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, sizes_of, write_results

from edvit_hf.data import ArrayStore, ImageSplit
from edvit_hf.training import ClassifyData, TrainConfig, classify_objective, train

# The teacher of mnist_small, and one as wide as those that are fine-tuned.
MODELS: dict[str, dict[str, int]] = {
    "mnist_small": sizes_of(72, heads=9, layers=4, image_size=28, patch_size=7),
    "vit_small_32": sizes_of(384, heads=6, layers=6, image_size=32, patch_size=4),
}
PRECISIONS = ("no", "bf16")
NUM_LABELS = 10
AS_OURS = {"save_strategy": "no", "report_to": "none", "logging_steps": 20, "disable_tqdm": True}
AS_OURS |= {"remove_unused_columns": False, "optim": "adamw_torch_fused"}


def make_model(name: str) -> ViTForImageClassification:
    """The model from scratch, seeded."""
    torch.manual_seed(0)
    labels = {i: str(i) for i in range(NUM_LABELS)}
    return ViTForImageClassification(ViTConfig(**MODELS[name], id2label=labels))


def make_split(name: str, num_items: int) -> ImageSplit:
    """Noise: what is learnt does not change the speed."""
    size, random = MODELS[name]["image_size"], np.random.default_rng(0)
    pixels = random.integers(0, 256, (num_items, 3, size, size), dtype=np.uint8)
    return ImageSplit(ArrayStore(pixels), np.arange(num_items) % NUM_LABELS)


class Items(torch.utils.data.Dataset):
    """The split as `Trainer` reads it: a whole batch at a time, as our loop does."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """One batch."""
        chosen = np.asarray(indices)
        return {**self.split.inputs(chosen), "labels": torch.from_numpy(self.split.labels[chosen])}


class EpochClock(TrainerCallback):
    """Seconds of every epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Stop, when the device has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def run_ours(name: str, precision: str, options: argparse.Namespace) -> list[float]:
    """Seconds of every epoch of our loop."""
    sizes = {"epochs": options.epochs + 1, "batch_size": options.batch_size}
    config = TrainConfig(**sizes, mixed_precision=precision, checkpoint_every_steps=10**9)
    with tempfile.TemporaryDirectory() as folder:
        data, place = ClassifyData(make_split(name, options.num_items)), {"checkpoint_dir": Path(folder)}
        objective = classify_objective()
        log = train(make_model(name), data, objective, config, **place, description="ours", progress=False)
    return [epoch["seconds"] for epoch in log.epochs]


def run_trainer(name: str, precision: str, options: argparse.Namespace) -> list[float]:
    """Seconds of every epoch of `Trainer`."""
    values, clock = TrainConfig(epochs=options.epochs + 1), EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=values.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=values.learning_rate,
            weight_decay=values.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=values.warmup_fraction,
            max_grad_norm=values.max_grad_norm,
            bf16=precision == "bf16",
            use_cpu=options.device == "cpu",
            dataloader_pin_memory=options.device == "gpu",
            **AS_OURS,
        )
        data = {"train_dataset": Items(make_split(name, options.num_items)), "data_collator": lambda batch: batch}
        Trainer(make_model(name), arguments, **data, callbacks=[clock]).train()
    return clock.seconds


def measure(loop: str, name: str, precision: str, options: argparse.Namespace) -> float:
    """Samples per second of one loop, the first epoch left out; in a process of its own."""
    os.environ["EDVIT_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    seconds = {"ours": run_ours, "trainer": run_trainer}[loop](name, precision, options)[1:]
    return len(seconds) * options.num_items / sum(seconds)


def main() -> None:
    """Measure every model and precision, write, print."""
    add, parse = command_line(__doc__)
    add("--models", nargs="+", default=["mnist_small"], choices=MODELS)
    add("--precisions", nargs="+", default=["no"], choices=PRECISIONS)
    add("--num-items", type=int, default=6400, help="per epoch; rounded to whole batches")
    add("--epochs", type=int, default=3, help="counted, beside the one that warms up")
    add("--batch-size", type=int, default=128)
    add("--repeats", type=int, default=5)
    add("--device", choices=("cpu", "gpu"), default="cpu")
    arguments = parse()
    arguments.num_items -= arguments.num_items % arguments.batch_size
    context, rows = multiprocessing.get_context("spawn"), []
    for name in arguments.models:
        for precision in arguments.precisions:
            speeds: dict[str, list[float]] = {"ours": [], "trainer": []}
            for repeat in range(arguments.repeats):
                for loop in sorted(speeds, reverse=repeat % 2 == 1):
                    with context.Pool(1) as pool:
                        speeds[loop].append(pool.apply(measure, (loop, name, precision, arguments)))
            pairs = zip(speeds["ours"], speeds["trainer"], strict=True)
            medians = {loop: statistics.median(values) for loop, values in speeds.items()}
            rows.append(
                {
                    "model": name,
                    "mixed_precision": precision,
                    "batch_size": arguments.batch_size,
                    "samples_per_second": {loop: [round(v, 1) for v in values] for loop, values in speeds.items()},
                    "median": {loop: round(value, 1) for loop, value in medians.items()},
                    "ratio": round(medians["ours"] / medians["trainer"], 4),
                    "ratios_of_pairs": [round(a / b, 4) for a, b in pairs],
                }
            )
            print(json.dumps(rows[-1]))
    result = {
        "torch_threads": 1,
        "device": arguments.device if arguments.device == "cpu" else torch.cuda.get_device_name(),
        "rows": rows,
    }
    names = ("models", "precisions", "num_items", "epochs", "repeats", "device")
    write_results(__file__, arguments, result, *names)


if __name__ == "__main__":
    main()
