# SPDX-License-Identifier: Apache-2.0
"""Measure a text teacher with its whole vocabulary and with parts of it: accuracy, size, tokens, and what is identical.

    python benchmarks/pruning/vocabulary.py WORK --recipe trec6_minilm --keep seen 7630 3815

WORK is a run of the recipe whose teacher stage is done. For every value of `--keep`, as `prune.vocabulary` takes them,
the teacher's tokenizer and word embedding are cut to the pieces of the training texts, and nothing is retrained.
Writes accuracy on validation and test items, the paired 95 % interval against the whole vocabulary, how many times as
many tokens the texts have, and, over the test items of kept pieces alone, the largest difference of a logit. Writes
results/vocabulary_<recipe>.json.
"""

import argparse
import copy
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import SPLITS, command_line, write_results

from edvit_hf.data import Split, TaskData, iterate_batches, with_vocabulary
from edvit_hf.evaluation.evaluator import paired_interval, torch_predict
from edvit_hf.pruning.vocabulary import cut_vocabulary
from edvit_hf.recipe.running import stage_dir
from edvit_hf.recipe.schema import load_recipe
from edvit_hf.recipe.trip import Trip, load_array, save_array
from edvit_hf.training import DistillConfig, DistillData, distill_objective, teacher_outputs, train


def logits_of(model: torch.nn.Module, split: Split, batch_size: int) -> np.ndarray:
    """(N, C) float32 of plain items."""
    predict = torch_predict(model.eval())
    batches = iterate_batches(split, batch_size)
    return np.concatenate([predict({k: np.asarray(v) for k, v in batch["inputs"].items()}) for batch in batches])


def read_alike(before: Split, after: Split, kept: np.ndarray) -> np.ndarray:
    """Which items are the same pieces under either tokenizer, (N,) bool."""
    found = []
    for row in range(len(before)):
        old, new = (split.inputs([row])["input_ids"][0].numpy() for split in (before, after))
        found.append(old.tolist() == kept[new].tolist())
    return np.array(found)


def retrain(trip: Trip, model: torch.nn.Module, data: TaskData, arguments: argparse.Namespace) -> None:
    """Learn the teacher's answers to one view of the training items, on the tokens of `data`."""
    path = arguments.work / "one_view_outputs.safetensors"
    if not path.is_file():
        found = teacher_outputs(trip.teacher, trip.teacher_data.train, views=1, batch_size=256)
        save_array(path, found.logits)
    shared = {"batch_size": 32, "weight_decay": 0.01, "views": 1}
    config = DistillConfig(epochs=arguments.retrain_epochs, learning_rate=arguments.learning_rate, **shared)
    items = DistillData(data.train, load_array(path), None, negatives_per_positive=1.0, seed=config.seed)
    objective = distill_objective(None, config.temperature, config.distillation_weight)
    with tempfile.TemporaryDirectory() as folder:
        options = {"checkpoint_dir": Path(folder), "description": f"{data.vocab_size} pieces", "distributed": False}
        train(model.train(), items, objective, config, **options)


def measure(
    trip: Trip, data: TaskData, arguments: argparse.Namespace, whole: dict[str, np.ndarray] | None
) -> dict[str, Any]:
    """One row: the teacher with the vocabulary of `data`."""
    model, kept, batch_size = copy.deepcopy(trip.teacher), data.kept_pieces, arguments.batch_size
    if kept is not None:
        cut_vocabulary(model, kept.tolist())
    if arguments.retrain_epochs:
        retrain(trip, model, data, arguments)
    logits = {name: logits_of(model, getattr(data, name), batch_size) for name in SPLITS}
    right = {name: found.argmax(1) == getattr(data, name).labels for name, found in logits.items()}
    embedding = model.get_input_embeddings().weight.numel()
    row: dict[str, Any] = {
        "pieces": data.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "embedding_share": embedding / trip.teacher.get_input_embeddings().weight.numel(),
        "accuracy": {name: float(values.mean()) for name, values in right.items()},
    }
    if whole is None or kept is None:
        return row | {"logits": logits}
    for name in ("train", *SPLITS):
        before, after = getattr(trip.teacher_data, name), getattr(data, name)
        row.setdefault("times_as_many_tokens", {})[name] = len(after.tokens) / len(before.tokens)
    labels = data.test.labels
    row["against_whole"] = dataclasses.asdict(paired_interval(right["test"], whole["test"].argmax(1) == labels))
    if arguments.retrain_epochs:
        return row
    alike = read_alike(trip.teacher_data.test, data.test, kept)
    gap = np.abs(logits["test"] - whole["test"])[alike]
    row["identity"] = {"num_items": int(alike.sum()), "largest_difference": float(gap.max(initial=0.0))}
    return row


def main() -> None:
    """Measure and write."""
    add, parse = command_line(__doc__)
    add("work", type=Path, metavar="WORK", help="finished teacher stage of the recipe")
    add("--recipe", default="trec6_minilm")
    add("--keep", nargs="+", default=["seen", "7630", "3815"], help="values of `prune.vocabulary`")
    add("--batch-size", type=int, default=1, help="1: no padding, so that equal pieces can be equal bits")
    add("--retrain-epochs", type=int, default=0)
    add("--learning-rate", type=float, default=3e-5, help="of the retraining")
    arguments: argparse.Namespace = parse()
    recipe = load_recipe(arguments.recipe)
    recipe = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, vocabulary=None))
    trip = Trip(recipe, {"teacher": stage_dir(arguments.work, "teacher")})
    first = measure(trip, trip.teacher_data, arguments, None)
    whole = first.pop("logits")
    rows = {"whole": first}
    print(f"whole: {first}", flush=True)
    for keep in arguments.keep:
        data = with_vocabulary(trip.teacher_data, "seen" if keep == "seen" else int(keep))
        rows[keep] = measure(trip, data, arguments, whole)
        print(f"{keep}: {rows[keep]}", flush=True)
    content = {"num_test_items": len(trip.teacher_data.test), "threads": torch.get_num_threads(), "rows": rows}
    recipe_name, more = (
        Path(arguments.recipe).stem,
        ["retrain_epochs", "learning_rate"] * bool(arguments.retrain_epochs),
    )
    name = f"vocabulary_{'retrained_' if more else ''}{recipe_name}"
    options = {"name": name, "places": "WORK", "recipe": recipe_name}
    write_results(__file__, arguments, content, "recipe", "keep", "batch_size", *more, **options)


if __name__ == "__main__":
    main()
