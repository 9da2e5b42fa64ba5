# SPDX-License-Identifier: Apache-2.0
"""What is left of attention kind and compensation once the sub-models are distilled and fused?

    python benchmarks/pruning/variants_distilled.py WORK ... --recipe mnist_small --out FOLDER

Every WORK is a finished run of the recipe under another seed, and is only read: its teacher, class groups and stored
teacher logits are used. Each variant (kind of attention, with or without compensation) is pruned, distilled and fused
on fewer items and epochs (see the options); accuracies are on the whole validation and test splits. Interrupted, the
same command resumes. Writes results/variants_distilled_<recipe>.json; the winner is chosen on validation data.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command, command_line, once, write_results

from edvit_hf.architectures.axes import AttentionKind
from edvit_hf.recipe.running import stage_dir
from edvit_hf.recipe.schema import load_recipe
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json
from trips.reduced_trip import REDUCED, add_options, pruned_row, reduced_trip, reduction

VARIANTS = list(itertools.product(get_args(AttentionKind), (False, True)))


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser, add = command_line(__doc__)
    add("work_dirs", type=Path, nargs="+", help="finished runs, one per seed; only read")
    add("--recipe", required=True, help="the recipe of those runs, name or path")
    add("--out", type=Path, required=True, help="folder for the models of every cell")
    add("--importance", default="fisher", help="scores of every variant")
    add("--compensation-samples", type=int, default=1024)
    add_options(add)
    return parser.parse_args()


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean accuracies of every variant over its seeds."""
    names = dict.fromkeys(row["variant"] for row in rows)
    return {
        name: {
            split: statistics.mean(row["accuracy"][split] for row in rows if row["variant"] == name)
            for split in ("validation", "test")
        }
        for name in names
    }


def main() -> None:
    """Every variant on every run; the results are written after each cell."""
    arguments = parse_arguments()
    recipe = load_recipe(arguments.recipe)
    seeds = [read_json(stage_dir(work, "teacher") / "done.json")["seeds"]["teacher"] for work in arguments.work_dirs]
    names = ("recipe", "out", "importance", "compensation_samples", *REDUCED)
    made_by = command(__file__, arguments, *names, places="WORK_DIR...", recipe=recipe.name, out="FOLDER")
    data, rows = Trip(recipe, {}).data, []
    result = {
        "recipe": recipe.name,
        "seeds": seeds,
        "importance": arguments.importance,
        "keep_heads": recipe.prune.keep_heads,
        "reduced": dataclasses.asdict(reduction(arguments)),
        "num_items": {name: len(getattr(data, name)) for name in ("train", "validation", "test")},
    }
    for (source, seed), (kind, compensated) in itertools.product(
        zip(arguments.work_dirs, seeds, strict=True), VARIANTS
    ):
        variant = f"{kind}{', compensated' if compensated else ''}"
        cell = arguments.out / f"{kind}_{'compensated' if compensated else 'plain'}_seed{seed}"
        own = recipe.with_seed(seed)
        given = {"importance": arguments.importance, "compensation_samples": arguments.compensation_samples}
        prune = dataclasses.replace(own.prune, attention=kind, compensate=compensated, **given)
        own = dataclasses.replace(own, prune=prune)
        trip = reduced_trip(source, own, cell, reduction(arguments), data, own_split=False)
        rows.append(once(cell / "row.json", functools.partial(pruned_row, trip, variant=variant, seed=seed)))
        print(json.dumps(rows[-1]))
        means = summary(rows)
        best = max(means, key=lambda name: means[name]["validation"])
        found = {**result, "summary": means, "winner_on_validation": best, "rows": rows}
        write_results(arguments.results_dir, f"variants_distilled_{recipe.name}", made_by, found)
    print(json.dumps(summary(rows), indent=2))


if __name__ == "__main__":
    main()
