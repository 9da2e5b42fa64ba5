# SPDX-License-Identifier: Apache-2.0
"""Compare importance scores by the accuracy once the sub-models are distilled and fused.

    python benchmarks/pruning/importance_distilled.py WORK0 WORK1 WORK2 --recipe mnist_small --out FOLDER

Every WORK is a finished run of the recipe under another seed, and is only read: its teacher, class groups and stored
teacher logits are used. Each (method, run) is pruned with that method, distilled and fused on fewer items and epochs
(see the options), without compensation, which would hide most of what scores do; accuracies are on the whole
validation and test splits. Interrupted, the same command resumes.
Writes results/importance_distilled_<recipe>.json: difference to exact KL in standard deviations over the seeds.
"""

import statistics
import sys
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import SPLITS, command_line, write_results

from edvit_hf.pruning.config import ImportanceMethod
from edvit_hf.recipe.schema import load_recipe
from trips.reduced_trip import REDUCED, add_options, prune_on_runs, seeds_of

REFERENCE = "kl"


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per method: mean, standard deviation over the seeds, and the paired difference to exact KL in those units."""
    found: dict[str, dict[str, Any]] = {}
    by_cell = {(row["method"], row["seed"]): row for row in rows}
    for method in dict.fromkeys(row["method"] for row in rows):
        found[method] = {}
        for split in SPLITS:
            own = {seed: row["accuracy"][split] for (name, seed), row in by_cell.items() if name == method}
            exact = {s: by_cell[REFERENCE, s]["accuracy"][split] for s in own if (REFERENCE, s) in by_cell}
            entry: dict[str, Any] = {"mean": statistics.mean(own.values()), "std": None, "seeds": len(own)}
            if len(own) > 1:
                entry["std"] = statistics.stdev(own.values())
            if len(exact) == len(own) > 1:
                deviation = statistics.stdev(exact.values())
                difference = statistics.mean(own[s] - exact[s] for s in own)
                entry |= {
                    "difference_to_kl": difference,
                    "in_seed_deviations_of_kl": difference / deviation if deviation else None,
                    "within_one_seed_deviation": abs(difference) <= deviation,
                }
            found[method][split] = entry
        found[method]["prune_seconds"] = statistics.mean(r["seconds"]["prune"] for r in rows if r["method"] == method)
    return found


def main() -> None:
    """Every method on every run; the results are written after each cell."""
    add, parse = command_line(__doc__)
    add("work_dirs", type=Path, nargs="+", help="finished runs, one per seed; only read")
    add("--recipe", required=True, help="the recipe of those runs, name or path")
    add("--out", type=Path, required=True, help="folder for the models of every cell")
    methods, usual = get_args(ImportanceMethod), ["kl", "hybrid", "fisher", "linear"]
    add("--methods", nargs="+", default=usual, choices=methods, help="exact kl must be among them")
    add("--samples-per-class", type=int, default=16, help="items per class that are scored")
    add("--keep-heads", type=int, help="default: the recipe's")
    add_options(add)
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    if REFERENCE not in arguments.methods:
        raise SystemExit("--methods must hold kl: the others are compared with it.")
    seeds = seeds_of(arguments.work_dirs)
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f"the runs have the seeds {seeds}: the same run twice says nothing about the spread.")
    keep = arguments.keep_heads or recipe.prune.keep_heads
    same = {"samples_per_class": arguments.samples_per_class, "keep_heads": keep}
    variants = {
        name: ({"method": name}, {"importance": name, "compensate": False, **same}) for name in arguments.methods
    }
    names = ("recipe", "out", "methods", "samples_per_class", *REDUCED)
    shown = {
        "name": f"importance_distilled_{recipe.name}",
        "places": "WORK_DIR...",
        "recipe": recipe.name,
        "out": "FOLDER",
    }

    def write(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
        found = {**about, **same, "summary": summary(rows), "rows": rows}
        write_results(__file__, arguments, found, *names, **shown)

    prune_on_runs(arguments, recipe, variants, write)


if __name__ == "__main__":
    main()
