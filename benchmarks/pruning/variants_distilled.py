# SPDX-License-Identifier: Apache-2.0
"""Compare kinds of attention, with and without compensation, once the sub-models are distilled and fused.

    python benchmarks/pruning/variants_distilled.py WORK ... --recipe mnist_small --out FOLDER

Every WORK is a finished run of the recipe under another seed, and is only read: its teacher, class groups and stored
teacher logits are used. Each variant (kind of attention, with or without compensation) is pruned, distilled and fused
on fewer items and epochs (see the options); accuracies are on the whole validation and test splits. Interrupted, the
same command resumes. Writes results/variants_distilled_<recipe>.json; the winner is chosen on validation data.
"""

import itertools
import statistics
import sys
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import SPLITS, command_line, write_results

from edvit_hf.architectures.axes import AttentionKind
from edvit_hf.recipe.schema import load_recipe
from trips.reduced_trip import REDUCED, add_options, prune_on_runs


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean accuracies of every variant over its seeds."""
    names = dict.fromkeys(row["variant"] for row in rows)
    return {
        name: {
            split: statistics.mean(row["accuracy"][split] for row in rows if row["variant"] == name) for split in SPLITS
        }
        for name in names
    }


def main() -> None:
    """Every variant on every run; the results are written after each cell."""
    add, parse = command_line(__doc__)
    add("work_dirs", type=Path, nargs="+", help="finished runs, one per seed; only read")
    add("--recipe", required=True, help="the recipe of those runs, name or path")
    add("--out", type=Path, required=True, help="folder for the models of every cell")
    add("--importance", default="fisher", help="scores of every variant")
    add("--compensation-samples", type=int, default=1024)
    add_options(add)
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    same = {"importance": arguments.importance, "compensation_samples": arguments.compensation_samples}
    variants = {}
    for kind, flag in itertools.product(get_args(AttentionKind), (False, True)):
        label = {"variant": f"{kind}{', compensated' if flag else ''}"}
        folder = f"{kind}_{'compensated' if flag else 'plain'}"
        variants[folder] = (label, {"attention": kind, "compensate": flag, **same})
    names = ("recipe", "out", "importance", "compensation_samples", *REDUCED)
    shown = {
        "name": f"variants_distilled_{recipe.name}",
        "places": "WORK_DIR...",
        "recipe": recipe.name,
        "out": "FOLDER",
    }

    def write(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
        means = summary(rows)
        found = {**about, "importance": arguments.importance, "keep_heads": recipe.prune.keep_heads, "summary": means}
        found |= {"winner_on_validation": max(means, key=lambda name: means[name]["validation"]), "rows": rows}
        write_results(__file__, arguments, found, *names, **shown)

    prune_on_runs(arguments, recipe, variants, write)


if __name__ == "__main__":
    main()
