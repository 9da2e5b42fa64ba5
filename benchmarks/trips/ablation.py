# SPDX-License-Identifier: Apache-2.0
"""Compare choices of a recipe: one value changed at a time, behind one finished teacher.

    EDVIT_DATA_DIR=... python benchmarks/trips/ablation.py WORK --recipe fsdd_small --seeds 0 1 2 --train-items 0

Each variant is split, planned, pruned, distilled and fused as the recipe says but for its own change; every seed is the
seed of distillation and fusion. Winners are chosen on validation; test accuracy stands beside it. Writes
results/ablation_<recipe>.json after every run and goes on from there.
"""

import argparse
import dataclasses
import hashlib
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import SPLITS, command_line, write_results

from edvit_hf.recipe.schema import Recipe, load_recipe, recipe_values
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json
from trips.reduced_trip import REDUCED, accuracies, add_options, reduced_trip, reduction, run_stages

STAGES = ("split", "plan", "prune", "distill", "fuse")
# Question -> name of the answer -> the recipe values that make it.
CHOICES: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "objective": {
        "none": {"distill": {"objective": "none"}},
        "kd": {"distill": {"objective": "kd"}},
        "dekd": {"distill": {"objective": "dekd"}},
        "dekd, soft": {"distill": {"objective": "dekd", "hard": False}},
    },
    "fusion": {"frozen": {"fuse": {"joint": False}}, "joint": {"fuse": {"joint": True}}},
    "other": {
        "with": {"distill": {"negatives_per_positive": 1.0}},
        "without": {"distill": {"negatives_per_positive": 0.0}},
    },
    "groups": {
        "balanced": {"split": {"strategy": "balanced"}},
        "similarity": {"split": {"strategy": "similarity", "similarity": "group"}},
    },
    "compensation": {"with": {"prune": {"compensate": True}}, "without": {"prune": {"compensate": False}}},
}


def changed(recipe: Recipe, change: dict[str, dict[str, Any]]) -> Recipe:
    """The recipe with these values."""
    sections = {name: dataclasses.replace(getattr(recipe, name), **values) for name, values in change.items()}
    return dataclasses.replace(recipe, **sections)


def as_it_is(recipe: Recipe, change: dict[str, dict[str, Any]]) -> bool:
    """Whether the recipe already says so."""
    return changed(recipe, change) == recipe


def main() -> None:
    """Run what is missing, write, print."""
    add, parse = command_line(__doc__)
    add("source", type=Path, help="work directory with a finished teacher of the recipe")
    add("--recipe", required=True)
    add("--seeds", type=int, nargs="+", default=[0], help="of distillation and fusion")
    add("--questions", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    add("--frozen", action="store_true", help="compare all but `fusion` without joint tuning")
    add("--out", type=Path, default=Path("work/ablation"))
    add_options(add)
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    if arguments.frozen:
        recipe = changed(recipe, {"fuse": {"joint": False}})
    data = Trip(recipe, {"teacher": arguments.source / "01_teacher"}).data
    path = arguments.results_dir / f"ablation_{recipe.name}.json"
    settings = hashlib.sha256(repr((recipe_values(recipe), reduction(arguments))).encode()).hexdigest()
    runs: list[dict[str, Any]] = []
    if path.is_file():
        stored = read_json(path)
        if stored["settings"] != settings:
            raise SystemExit(f"{path} holds runs of other settings. Move it away, or give its options again.")
        runs = stored["runs"]
    for question in arguments.questions:
        for answer, change in CHOICES[question].items():
            for seed in arguments.seeds:
                is_default = as_it_is(recipe, change)
                name = "recipe" if is_default else f"{question}: {answer}"
                if any((run["variant"], run["seed"]) == (name, seed) for run in runs):
                    continue
                variant = changed(recipe, change)
                variant = changed(variant, {"distill": {"seed": seed}, "fuse": {"seed": seed}})
                cell = arguments.out / recipe.name / name.replace(": ", "_").replace(", ", "_") / f"seed{seed}"
                trip = reduced_trip(arguments.source, variant, cell, reduction(arguments), data, own_split=True)
                seconds = run_stages(trip, STAGES)
                accuracy = accuracies(trip.ensemble, trip)
                runs.append({"variant": name, "seed": seed, "accuracy": accuracy, "seconds": seconds})
                write(arguments, recipe, runs, settings)
                print(name, seed, accuracy, seconds)
    write(arguments, recipe, runs, settings)


def write(arguments: argparse.Namespace, recipe: Recipe, runs: list[dict[str, Any]], settings: str) -> None:
    """Every answer of every question beside the others, as far as they have been measured."""
    questions = {}
    for question, answers in CHOICES.items():
        rows = {}
        for answer, change in answers.items():
            name = "recipe" if as_it_is(recipe, change) else f"{question}: {answer}"
            own = [run for run in runs if run["variant"] == name]
            if own:
                rows[answer] = summary(own, is_default=name == "recipe")
        if rows:
            winner = max(rows, key=lambda answer: rows[answer]["validation_mean"])
            questions[question] = {"answers": rows, "winner_on_validation": winner}
    names = ("recipe", "seeds", *REDUCED, "frozen")
    result = {"settings": settings, "questions": questions, "runs": runs}
    shown = {"name": f"ablation_{recipe.name}", "places": "WORK", "recipe": recipe.name}
    write_results(__file__, arguments, result, *names, **shown)


def summary(runs: list[dict[str, Any]], *, is_default: bool) -> dict[str, Any]:
    """Means over the seeds, in fractions and minutes."""
    found: dict[str, Any] = {"num_seeds": len(runs), "is_recipe": is_default}
    for name in SPLITS:
        values = [run["accuracy"][name] for run in runs]
        found[f"{name}_mean"] = statistics.mean(values)
        found[f"{name}_min"], found[f"{name}_max"] = min(values), max(values)
    found["minutes"] = statistics.mean(sum(run["seconds"].values()) for run in runs) / 60
    return found


if __name__ == "__main__":
    main()
