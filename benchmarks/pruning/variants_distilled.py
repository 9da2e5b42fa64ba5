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
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))
from edvit_hf.architectures.axes import AttentionKind
from edvit_hf.hardware.provenance import environment
from edvit_hf.recipe.running import stage_dir
from edvit_hf.recipe.schema import load_recipe
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json, write_json
from harness import RESULTS
from trips.reduced_trip import accuracies, add_options, reduced_trip, reduction, run_stages

VARIANTS = list(itertools.product(get_args(AttentionKind), (False, True)))


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("work_dirs", type=Path, nargs="+", help="finished runs, one per seed; only read")
    add("--recipe", required=True, help="the recipe of those runs, name or path")
    add("--out", type=Path, required=True, help="folder for the models of every cell")
    add("--importance", default="fisher", help="scores of every variant")
    add("--compensation-samples", type=int, default=1024)
    add("--results-dir", type=Path, default=RESULTS)
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
    data, rows = Trip(recipe, {}).data, []
    result = {
        "schema_version": 1,
        "recipe": recipe.name,
        "command": f"python benchmarks/pruning/variants_distilled.py WORK_DIR... --recipe {recipe.name} --out FOLDER "
        f"--importance {arguments.importance} --compensation-samples {arguments.compensation_samples} "
        f"--train-items {arguments.train_items} --distill-epochs {arguments.distill_epochs} "
        f"--fuse-epochs {arguments.fuse_epochs} --views {arguments.views}",
        "seeds": seeds,
        "importance": arguments.importance,
        "keep_heads": recipe.prune.keep_heads,
        "reduced": dataclasses.asdict(reduction(arguments)),
        "num_items": {name: len(getattr(data, name)) for name in ("train", "validation", "test")},
        "environment": environment(),
    }
    for (source, seed), (kind, compensated) in itertools.product(
        zip(arguments.work_dirs, seeds, strict=True), VARIANTS
    ):
        variant = f"{kind}{', compensated' if compensated else ''}"
        cell = arguments.out / f"{kind}_{'compensated' if compensated else 'plain'}_seed{seed}"
        own = recipe.with_seed(seed)
        prune = dataclasses.replace(
            own.prune, importance=arguments.importance, attention=kind, compensate=compensated,
            compensation_samples=arguments.compensation_samples,
        )  # fmt: skip
        own = dataclasses.replace(own, prune=prune)
        trip = reduced_trip(source, own, cell, reduction(arguments), data, own_split=False)
        if not (cell / "row.json").is_file():
            seconds = run_stages(trip, ("plan", "prune", "distill", "fuse"))
            row = {"variant": variant, "seed": seed, "accuracy": accuracies(trip.ensemble, trip), "seconds": seconds}
            write_json(cell / "row.json", row)
        rows.append(read_json(cell / "row.json"))
        print(json.dumps(rows[-1]))
        found = summary(rows)
        arguments.results_dir.mkdir(parents=True, exist_ok=True)
        path = arguments.results_dir / f"variants_distilled_{recipe.name}.json"
        winner = max(found, key=lambda name: found[name]["validation"])
        write_json(path, {**result, "summary": found, "winner_on_validation": winner, "rows": rows})
    print(json.dumps(summary(rows), indent=2))


if __name__ == "__main__":
    main()
