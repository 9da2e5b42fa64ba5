# SPDX-License-Identifier: Apache-2.0
"""Test ESC-10 on each of its five folds in turn: the 80 clips of one are too few for a finding.

    EDVIT_DATA_DIR=... python benchmarks/trips/esc10_folds.py
    EDVIT_DATA_DIR=... python benchmarks/trips/esc10_folds.py --folds 1 --quick --results-dir /tmp/folds

Each fold is the recipe with that fold as its test split, in a work directory of its own, up to the results; what is
finished is not repeated, so the command resumes, and folds that were finished before are gathered as well. `--quick`
trains for an epoch or two, to see that all of it runs. Writes results/esc10_folds.json: accuracy and macro-F1 of every
row in every fold, mean and standard deviation over the folds.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.recipe import Recipe, load_recipe, run
from edvit_hf.recipe.running import stage_dir
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.storage import read_json, write_json
from trips.grid import OF_RESULTS, UP_TO_RESULTS, is_finished

FOLDS = (1, 2, 3, 4, 5)
FIGURES = ("accuracy", "macro_f1")


def of_fold(recipe: Recipe, fold: int) -> Recipe:
    """The recipe tested on this fold."""
    return dataclasses.replace(recipe, dataset=dataclasses.replace(recipe.dataset, test_groups=(fold,)))


def quickened(recipe: Recipe) -> Recipe:
    """The recipe with toy epochs and few samples: it runs, and learns nothing to speak of."""
    return dataclasses.replace(
        recipe,
        teacher=dataclasses.replace(recipe.teacher, epochs=2),
        prune=dataclasses.replace(recipe.prune, samples_per_class=2, compensation_samples=20),
        distill=dataclasses.replace(recipe.distill, epochs=1, views=1),
        fuse=dataclasses.replace(recipe.fuse, epochs=1, views=1, joint_epochs=1),
        evaluate=dataclasses.replace(recipe.evaluate, baseline_epochs=1),
    )


def run_fold(recipe: Recipe, fold: int, folder: Path) -> None:
    """What is missing of one fold; leaves a file when it is finished."""
    recipe, cell = of_fold(recipe, fold), folder / "fold.json"
    values = json.loads(json.dumps(recipe_values(recipe), default=str))
    if is_finished(cell, values):
        return
    run(recipe, folder, stages=UP_TO_RESULTS, command=f"edvit run {recipe.name} (test_groups [{fold}])")
    results = read_json(stage_dir(folder, "evaluate") / "results.json")
    seconds = sum(read_json(path)["seconds"] for path in sorted(folder.glob("*/done.json")))
    keys = [key for key in ("seed", "dataset", *OF_RESULTS) if key in results]
    found = {"fold": fold, "stage_seconds_total": round(seconds, 1), **{key: results[key] for key in keys}}
    write_json(cell, {**found, "recipe_values": values})


def summary(folds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row: figures by fold, mean and standard deviation over the folds, and the distance from the teacher."""
    found = []
    for row in folds[0]["rows"]:
        own = [next(r for r in fold["rows"] if r["name"] == row["name"]) for fold in folds]
        entry: dict[str, Any] = {"name": row["name"], "parameters_per_device": row["parameters_per_device"]}
        for figure in FIGURES:
            values = [r[figure] for r in own]
            entry[figure] = {
                "by_fold": {str(fold["fold"]): value for fold, value in zip(folds, values, strict=True)},
                "mean": statistics.mean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
        teachers = [fold["rows"][0]["accuracy"] for fold in folds]
        gaps = [r["accuracy"] - teacher for r, teacher in zip(own, teachers, strict=True)]
        entry["difference_to_teacher_mean"] = statistics.mean(gaps)
        entry["difference_to_teacher_sd"] = statistics.stdev(gaps) if len(gaps) > 1 else None
        found.append(entry)
    return found


def main() -> None:
    """Run the folds asked for, then gather all that are finished."""
    add, parse = command_line(__doc__)
    add("--recipe", default="esc10_small")
    add("--folds", type=int, nargs="+", default=list(FOLDS), choices=FOLDS)
    add("--quick", action="store_true", help="toy epochs")
    add("--work-dir", type=Path, default=Path("work/esc10_folds"))
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    work = arguments.work_dir / ("quick" if arguments.quick else "whole")
    for fold in arguments.folds:
        run_fold(quickened(recipe) if arguments.quick else recipe, fold, work / f"fold{fold}")
    folds = [read_json(path) for fold in FOLDS if (path := work / f"fold{fold}" / "fold.json").is_file()]
    rows = summary(folds)
    result = {
        "is_quick": arguments.quick,
        "num_folds": len(folds),
        "num_test_items": sum(fold["dataset"]["num_test_items"] for fold in folds),
        "summary": rows,
        "folds": [{key: value for key, value in fold.items() if key != "recipe_values"} for fold in folds],
    }
    done = [fold["fold"] for fold in folds]
    write_results(__file__, arguments, result, "recipe", "folds", "quick", recipe=recipe.name, folds=done)
    for row in rows:
        mean, sd = (row["accuracy"][name] for name in ("mean", "sd"))
        print(f"{row['name']}: {100 * mean:.2f} %" + (f" (sd {100 * sd:.2f})" if sd is not None else ""))


if __name__ == "__main__":
    main()
