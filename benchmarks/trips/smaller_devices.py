# SPDX-License-Identifier: Apache-2.0
"""Compare the ensemble with one plain model of a device's size, while devices get smaller.

    python benchmarks/trips/smaller_devices.py WORK --recipe fsdd_small --keep-heads 1 2 --num-sub-models 5

WORK is a finished run of the recipe; its teacher is used, and beside it the plain models are kept. For each number of
heads kept: the ensemble of N sub-models, pruned, distilled and fused as the recipe says, and one plain model of the
same size for all classes, with as many item passes as the ensemble's sub-models together. Differences carry the paired
95 % interval over the test items. Writes results/smaller_devices_<recipe>.json after every run and goes on from there.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.evaluation.evaluator import paired_interval, torch_predict
from edvit_hf.recipe.schema import Recipe, load_recipe
from edvit_hf.recipe.stages.compared import measured, plain_model
from edvit_hf.recipe.stages.effort import all_passes, fair_budget
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json
from trips.reduced_trip import Reduction, reduced_trip, run_stages

STAGES = ("split", "plan", "prune", "distill", "fuse")


def variant(recipe: Recipe, keep: int, count: int, seed: int) -> Recipe:
    """The recipe with so many heads kept, so many sub-models and this seed; the rival's passes follow from them."""
    return dataclasses.replace(
        recipe,
        split=dataclasses.replace(recipe.split, num_sub_models=count),
        prune=dataclasses.replace(recipe.prune, keep_heads=keep, seed=seed),
        distill=dataclasses.replace(recipe.distill, seed=seed),
        fuse=dataclasses.replace(recipe.fuse, seed=seed),
        evaluate=dataclasses.replace(recipe.evaluate, baseline_epochs=None),
    )


def compare(trip: Trip, keep: int) -> dict[str, Any]:
    """Teacher, ensemble and plain model on the test split."""
    labels = trip.data.test.labels
    shape = trip.teacher_shape.keep(keep, num_labels=len(trip.data.label_names))
    config = dataclasses.replace(fair_budget(trip, shape.macs), epochs=all_passes(trip))
    models = {"teacher": trip.teacher, "ensemble": trip.ensemble, "plain": plain_model(trip, keep, config)}
    found = {name: measured(trip, torch_predict(model)) for name, model in models.items()}
    right = {name: evaluation.predictions == labels for name, evaluation in found.items()}
    interval = paired_interval(right["ensemble"], right["plain"])
    return {
        "accuracy": {name: evaluation.accuracy for name, evaluation in found.items()},
        "ensemble_minus_plain": dataclasses.asdict(interval),
        "only_ensemble_right": int((right["ensemble"] & ~right["plain"]).sum()),
        "only_plain_right": int((~right["ensemble"] & right["plain"]).sum()),
        "plain_epochs": config.epochs,
        "parameters": {
            "teacher": trip.teacher_shape.parameters,
            "sub_model": max(s.parameters for s in trip.plan.sub_models),
            "plain": shape.parameters,
        },
    }


def main() -> None:
    """Run what is missing, write, print."""
    add, parse = command_line(__doc__)
    add("source", type=Path, help="work directory with a finished teacher of the recipe")
    add("--recipe", required=True)
    add("--keep-heads", type=int, nargs="+", required=True)
    add("--num-sub-models", type=int, nargs="+", required=True)
    add("--seeds", type=int, nargs="+", default=[0], help="of pruning, distillation and fusion")
    add("--out", type=Path, default=Path("work/smaller_devices"))
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    data = Trip(recipe, {"teacher": arguments.source / "01_teacher"}).data
    path = arguments.results_dir / f"smaller_devices_{recipe.name}.json"
    rows: list[dict[str, Any]] = read_json(path)["rows"] if path.is_file() else []
    for keep in arguments.keep_heads:
        for count in arguments.num_sub_models:
            for seed in arguments.seeds:
                key = {"keep_heads": keep, "num_sub_models": count, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                cell = arguments.out / recipe.name / f"keep{keep}_n{count}_seed{seed}"
                own = variant(recipe, keep, count, seed)
                trip = reduced_trip(arguments.source, own, cell, Reduction(), data, own_split=True)
                seconds = run_stages(trip, STAGES)
                rows.append({**key, **compare(trip, keep), "seconds": seconds})
                print(rows[-1])
                write(arguments, recipe, rows)
    write(arguments, recipe, rows)


def write(arguments: argparse.Namespace, recipe: Recipe, rows: list[dict[str, Any]]) -> None:
    """Everything that has been measured so far."""
    keys = {"keep_heads": "keep_heads", "num_sub_models": "num_sub_models", "seeds": "seed"}
    done = {"recipe": recipe.name} | {name: sorted({row[key] for row in rows}) for name, key in keys.items()}
    rows = sorted(rows, key=lambda row: [row[key] for key in keys.values()])
    shown = {"name": f"smaller_devices_{recipe.name}", "places": "WORK"}
    write_results(__file__, arguments, {"rows": rows}, *done, **shown, **done)


if __name__ == "__main__":
    main()
