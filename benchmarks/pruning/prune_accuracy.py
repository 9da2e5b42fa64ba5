# SPDX-License-Identifier: Apache-2.0
"""Measure accuracy right after pruning, before any retraining, by scores, kind of attention, keep and compensation.

    python benchmarks/pruning/prune_accuracy.py WORK/01_teacher/model ... --recipe mnist_small --figure

Scores every trained teacher (one per seed) with every method for the first class groups, cuts it to every share of its
heads in every kind of attention, and measures the sub-model's own task (its group's classes and "other", as many items
from the group as from outside) on validation and test items, with and without `compensate`. Winners are chosen on
validation. Writes results/prune_accuracy_<recipe>.json after every row (teacher, method, group) and goes on from there
when started again with the same options; prints the tables as markdown.
"""

import argparse
import functools
import hashlib
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import SPLITS, command_line, write_results

from edvit_hf.architectures.axes import AttentionKind, widths_of_heads
from edvit_hf.data.class_groups import class_group_labels
from edvit_hf.planning.splitting import split_classes
from edvit_hf.pruning import UnitScores, architecture_of, compensate, make_plan, prune, unit_scores
from edvit_hf.pruning.config import ImportanceMethod
from edvit_hf.pruning.models import in_batches
from edvit_hf.pruning.score_kl import group_log_probabilities
from edvit_hf.recipe.schema import load_recipe
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json
from report.figures import table
from report.pruning import accuracies, pair

METHODS = get_args(ImportanceMethod)
KINDS = get_args(AttentionKind)
KEEPS = {"3/4": 0.75, "1/2": 0.5, "1/4": 0.25}
TEACHER_SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
SETTINGS = ("samples_per_class", "compensation_samples", "evaluation_items", "num_groups", "keep", "seed")


def balanced_items(labels: np.ndarray, group: list[int], count: int, seed: int) -> np.ndarray:
    """At most `count` indices, seeded: half from the group and half from outside, where there is an outside."""
    generator = np.random.default_rng([seed, *group])
    inside = np.isin(labels, group)
    parts = [generator.permutation(np.flatnonzero(mask)) for mask in (inside, ~inside) if mask.any()]
    size = min(count // len(parts), *map(len, parts))
    return np.sort(np.concatenate([part[:size] for part in parts]))


class Task:
    """The items of one class group: scored, fitted on and judged on."""

    def __init__(self, trip: Trip, group: list[int], arguments: argparse.Namespace) -> None:
        self.group, self.seed, self.data = group, arguments.seed, trip.data
        train = trip.data.train
        self.scored = train.inputs(trip.training_sample(group, arguments.samples_per_class, self.seed))
        self.fitted = self._items("train", arguments.compensation_samples)[0]
        self.judged = {name: self._items(name, arguments.evaluation_items) for name in SPLITS}

    def _items(self, split_name: str, count: int) -> tuple[dict[str, Tensor], np.ndarray]:
        split = getattr(self.data, split_name)
        items = balanced_items(split.labels, self.group, count, self.seed)
        return split.inputs(items), class_group_labels(split.labels[items], self.group)

    def accuracy(self, model: PreTrainedModel, *, is_teacher: bool = False) -> dict[str, float]:
        """Share of right answers per split; of the teacher, by its pooled probabilities."""
        result = {}
        with torch.inference_mode():
            for name, (inputs, labels) in self.judged.items():
                logits = torch.cat([model(**batch).logits for batch in in_batches(inputs, 256)])
                answers = group_log_probabilities(logits, self.group) if is_teacher else logits
                result[name] = round(float((answers.argmax(dim=-1).numpy() == labels).mean()), 5)
        return result


def cells(
    teacher: PreTrainedModel, scores: UnitScores, task: Task, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Accuracy of every cut of one row: attention kind x keep, without and with compensation."""
    widths = architecture_of(teacher).widths(teacher.config)
    labels = min(len(task.group) + 1, widths.labels)
    found = []
    for kind, keep in itertools.product(arguments.kinds, arguments.keep):
        heads = round(KEEPS[keep] * widths.heads)
        after = widths_of_heads(widths, heads, attention=kind, labels=labels)
        plan = make_plan(scores, teacher.config, after, attention=kind)
        model = prune(teacher, plan, task.group)
        cut = task.accuracy(model)
        start = time.perf_counter()
        compensate(model, teacher, plan, task.group, task.fitted, progress=False)
        seconds = round(time.perf_counter() - start, 3)
        compensated = task.accuracy(model)
        for is_compensated, accuracy in ((False, cut), (True, compensated)):
            found.append({"attention": kind, "keep": keep, "compensated": is_compensated, **accuracy})
        found[-1]["seconds"] = seconds
    return found


def measure(result: dict[str, Any], trip: Trip, arguments: argparse.Namespace, write: Callable[[], Any]) -> None:
    """Add the rows that `result` lacks, writing the file after each."""
    done = {(row["teacher"], row["method"], tuple(row["class_group"])) for row in result["rows"]}
    for index, folder in enumerate(arguments.teachers):
        teacher = trip.load(Path(folder))
        for group in split_classes(teacher.config.num_labels, trip.recipe.split)[: arguments.num_groups]:
            missing = [method for method in arguments.methods if (index, method, tuple(group)) not in done]
            if not missing:
                continue
            task = Task(trip, group, arguments)
            for method in missing:
                start = time.perf_counter()
                how = {"batch_size": trip.recipe.prune.batch_size, "seed": arguments.seed, "progress": False}
                scores = unit_scores(teacher, task.scored, group, method=method, **how)
                seconds = round(time.perf_counter() - start, 3)
                row = {"teacher": index, "method": method, "class_group": group, "score_seconds": seconds}
                row |= {"teacher_accuracy": task.accuracy(teacher, is_teacher=True)}
                result["rows"].append(row | {"cells": cells(teacher, scores, task, arguments)})
                write()
                print(f"teacher {index}, group {group}, {method}: {time.perf_counter() - start:.1f} s", flush=True)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per method, kind, keep and compensation: mean over groups and teachers, spread over the teachers' means."""
    found: dict[tuple[Any, ...], dict[int, list[dict[str, float]]]] = {}
    for row in rows:
        for cell in row["cells"]:
            key = (row["method"], cell["attention"], cell["keep"], cell["compensated"])
            found.setdefault(key, {}).setdefault(row["teacher"], []).append(cell)
    summary = []
    for key, per_teacher in found.items():
        entry = dict(zip(("method", "attention", "keep", "compensated"), key, strict=True))
        for split in SPLITS:
            means = [float(np.mean([cell[split] for cell in group_cells])) for group_cells in per_teacher.values()]
            entry[split] = round(float(np.mean(means)), 5)
            entry[f"{split}_sd"] = round(float(np.std(means, ddof=1)), 5) if len(means) > 1 else None
        summary.append(entry)
    return summary


def winners(summary: list[dict[str, Any]]) -> dict[str, Any]:
    """The best on validation: overall (mean over the keeps), and per keep, with and without compensation."""
    overall: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for entry in summary:
        overall.setdefault((entry["method"], entry["attention"], entry["compensated"]), []).append(entry)
    ranking = [
        {"method": method, "attention": kind, "compensated": is_compensated}
        | {split: round(float(np.mean([entry[split] for entry in entries])), 5) for split in SPLITS}
        for (method, kind, is_compensated), entries in overall.items()
    ]
    ranking.sort(key=lambda entry: -entry["validation"])
    best: dict[str, Any] = {"ranking_over_keeps": ranking, "per_keep": {}}
    for keep, is_compensated in dict.fromkeys((entry["keep"], entry["compensated"]) for entry in summary):
        rivals = [e for e in summary if (e["keep"], e["compensated"]) == (keep, is_compensated)]
        name = f"{keep} {'with' if is_compensated else 'without'} compensation"
        best["per_keep"][name] = max(rivals, key=lambda entry: entry["validation"])
    return best


def tables(result: dict[str, Any], columns: list[tuple[str, str]]) -> str:
    """Markdown: one table per split, percent, without → with compensation; a column for each kind and keep."""
    lines = []
    for split in SPLITS:
        cells = accuracies(result, split)
        rows = [[method, *(pair(cells, method, *column) for column in columns)] for method in result["methods"]]
        lines += ["", f"**{split}**, % (without → with compensation)", ""]
        lines += table(["scores", *(" ".join(column) for column in columns)], rows)
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Test accuracy over the keep, one panel per attention kind, one line per method; compensated ones are solid."""
    from matplotlib.figure import Figure

    kinds, keeps, methods = result["kinds"], result["settings"]["keep"], result["methods"]
    colours = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
    shares = accuracies(result, "test")
    figure = Figure(figsize=(4.2 * len(kinds), 4.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for index, method in enumerate(methods):
            for flag, style in ((False, ":"), (True, "-")):
                values = [100 * shares[method, kind, keep, flag] for keep in keeps]
                look = {"color": colours[index], "marker": "osD^v<>Px"[index], "markersize": 4}
                panel.plot(keeps, values, style, label=method if flag else None, **look)
        panel.set_title(f"{kind} heads", fontsize=10)
        panel.set_xlabel("share of the heads kept")
        panel.grid(axis="y", color="#d9d9d9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy right after pruning, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=9, fontsize=8)
    figure.suptitle(f"{result['recipe']}: solid with compensation, dotted without", fontsize=10)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> None:
    """Measure what is missing, then summarise, write, print."""
    add, parse = command_line(__doc__)
    add("teachers", type=Path, nargs="+", help="folders of saved stock classifiers of one shape, one per seed")
    add("--recipe", required=True, help="name or path; gives the dataset, groups and batch size")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add("--keep", nargs="+", choices=list(KEEPS), default=list(KEEPS), help="shares of the heads")
    add("--num-groups", type=int, default=2, help="class groups per teacher")
    add("--samples-per-class", type=int, default=16, help="scored, per class of the group")
    add("--compensation-samples", type=int, default=512, help="fitted on, half of them from the group")
    add("--evaluation-items", type=int, default=1000, help="per split, half of them from the group")
    add("--seed", type=int, default=0, help="of the drawn items and of the random scores")
    add("--figure", action="store_true", help="also write results/prune_accuracy_<recipe>.png")
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    trip = Trip(recipe, {})
    name = f"prune_accuracy_{recipe.name}"
    path = arguments.results_dir / f"{name}.json"
    settings = {name: getattr(arguments, name) for name in SETTINGS} | {"num_teachers": len(arguments.teachers)}
    config = trip.load(Path(arguments.teachers[0])).config
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "seed": arguments.seed,
        "settings": settings,
        "kinds": arguments.kinds,
        "torch_threads": torch.get_num_threads(),
        "teacher": {name: getattr(config, name) for name in TEACHER_SIZES},
        "teacher_sha256": [fingerprint(folder) for folder in arguments.teachers],
        "rows": [],
    }
    if path.is_file():
        stored = read_json(path)
        if any(stored.get(key) != result[key] for key in ("settings", "kinds", "teacher_sha256")):
            raise SystemExit(f"{path} holds other settings or teachers. Move it away, or give its options again.")
        result["rows"] = stored["rows"]
    names = ("recipe", *(["kinds"] if arguments.kinds != list(KINDS) else []), *SETTINGS)
    places = " ".join(f"TEACHER_DIR_{i}" for i in range(len(arguments.teachers)))
    shown = {"name": name, "places": places, "recipe": Path(arguments.recipe).name}
    write = functools.partial(write_results, __file__, arguments, result, *names, **shown)
    measure(result, trip, arguments, write)
    present = {row["method"] for row in result["rows"]}
    result["methods"] = [method for method in METHODS if method in present]
    result["summary"] = summarise(result["rows"])
    result["winners"] = winners(result["summary"])
    write()
    if arguments.figure:
        draw(result, path.with_suffix(".png"))
    print(tables(result, list(itertools.product(arguments.kinds, arguments.keep))))
    for entry in result["winners"]["ranking_over_keeps"][:5]:
        print(entry)


def fingerprint(folder: Path) -> str:
    """SHA-256 of a teacher's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
