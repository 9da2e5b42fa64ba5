# SPDX-License-Identifier: Apache-2.0
"""Compare class groups: a seeded shuffle, classes that the teacher confuses together, or apart.

    python benchmarks/trips/split_strategies.py WORK_DIR --recipe mnist_small --out FOLDER

WORK_DIR holds a finished `teacher` stage (its stored teacher logits are used if there are any) and is only read. Every
split goes through split, plan, prune, distill and fuse on fewer items and epochs (see the options); accuracies are on
the whole validation and test splits. Interrupted, the same command resumes. Writes
results/split_strategies_<recipe>.json; the winner is chosen on validation data.
"""

import dataclasses
import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import SPLITS, command_line, once, write_results

from edvit_hf.planning.splitting import SplitConfig, check_similarity, similarity_within
from edvit_hf.recipe.schema import Recipe, load_recipe
from edvit_hf.recipe.stages.split import teacher_confusions
from edvit_hf.recipe.trip import Trip
from trips.reduced_trip import REDUCED, accuracies, add_options, reduced_trip, reduction, reduction_of, run_stages

SPLITTING = ("split", "plan", "prune", "distill", "fuse")


def variants(recipe: Recipe, seeds: list[int]) -> dict[str, SplitConfig]:
    """Name -> split; all with the recipe's number of sub-models."""
    count, samples = recipe.split.num_sub_models, recipe.split.samples_per_class
    found = {f"balanced {seed}": SplitConfig(num_sub_models=count, seed=seed) for seed in seeds}
    for kind in ("group", "separate"):
        found[f"similarity {kind}"] = SplitConfig(
            num_sub_models=count, strategy="similarity", similarity=kind, samples_per_class=samples
        )
    return found


def measure(trip: Trip, name: str, seed: int, confusions: np.ndarray) -> dict[str, Any]:
    """One row: the trip behind one split."""
    seconds = run_stages(trip, SPLITTING)
    matrix = check_similarity(confusions, len(confusions))
    return {
        "split": name,
        "strategy": name.rsplit(" ", 1)[0] if name.startswith("balanced") else name,
        "training_seed": seed,
        "class_groups": trip.class_groups,
        "within": similarity_within(trip.class_groups, confusions),
        "within_of_each_group": [float(matrix[np.ix_(g, g)].sum() / matrix.sum()) for g in trip.class_groups],
        "accuracy": accuracies(trip.ensemble, trip),
        "seconds": seconds,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Mean and spread of each strategy over its cells."""
    found: dict[str, dict[str, float | int]] = {}
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == strategy]
        found[strategy] = {"cells": len(own), "within": statistics.mean(row["within"] for row in own)}
        for split in SPLITS:
            values = [row["accuracy"][split] for row in own]
            found[strategy][split] = statistics.mean(values)
            found[strategy][f"{split}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return found


def main() -> None:
    """Every split with every training seed; the results are written after each cell."""
    add, parse = command_line(__doc__)
    add("work_dir", type=Path, help="a run with a finished teacher; only read")
    add("--recipe", required=True, help="the recipe of that run, name or path")
    add("--out", type=Path, required=True, help="folder for the models of every cell")
    add("--split-seeds", type=int, nargs="+", default=[0, 1, 2], help="of the balanced splits")
    add("--training-seeds", type=int, nargs="+", default=[0], help="of pruning, distillation and fusion")
    add_options(add)
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    data = Trip(recipe, {}).data
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "split_seeds": arguments.split_seeds,
        "training_seeds": arguments.training_seeds,
        **reduction_of(arguments, data),
    }
    names = ("recipe", "out", *REDUCED)
    shown = {"name": f"split_strategies_{recipe.name}", "places": "WORK_DIR", "recipe": recipe.name, "out": "FOLDER"}
    for seed in arguments.training_seeds:
        for name, split in variants(recipe, arguments.split_seeds).items():
            own = dataclasses.replace(recipe.with_seed(seed), split=split)
            cell = arguments.out / f"{name.replace(' ', '_')}_seed{seed}"
            trip = reduced_trip(arguments.work_dir, own, cell, reduction(arguments), data, own_split=True)
            if "confusions" not in result:
                confusions = teacher_confusions(trip, recipe.split.samples_per_class, 0)
                result["teacher"] = {"accuracy": accuracies(trip.teacher, trip)}
                result["confusions"] = confusions.tolist()
            rows.append(once(cell / "row.json", functools.partial(measure, trip, name, seed, confusions)))
            print(json.dumps(rows[-1]))
            means = summary(rows)
            best = max(means, key=lambda strategy: means[strategy]["validation"])
            found = {**result, "summary": means, "winner_on_validation": best, "rows": rows}
            write_results(__file__, arguments, found, *names, **shown)
    print(json.dumps(means, indent=2))


if __name__ == "__main__":
    main()
