# SPDX-License-Identifier: Apache-2.0
"""Take a recipe through its trip for several numbers of sub-models and seeds, with one teacher per seed.

    EDVIT_DATA_DIR=... python benchmarks/trips/grid.py recipes/fsdd_small.yaml --num-sub-models 2 3 5 10 --seeds 0 1 2
    python benchmarks/trips/grid.py recipes/fsdd_small.yaml --num-sub-models 2 3 5 10 --seeds 0 1 2 --collect

Each seed is one process with its own work directory, `--processes` of them side by side. Teacher, teacher outputs and
baselines are made once per seed and serve every number of sub-models. What is finished is not repeated, so the command
resumes; `--collect` only gathers what there is. The recipe's own number of sub-models comes last and is exported too.
Writes `benchmarks/results/<recipe>.json`: a cell per seed and number of sub-models.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from edvit_hf.hardware.provenance import environment
from edvit_hf.recipe import Recipe, load_recipe, run
from edvit_hf.recipe.running import STAGES, ensemble_dir, stage_dir
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.storage import read_json, write_json
from harness import RESULTS

UP_TO_RESULTS = [stage.name for stage in STAGES if stage.name not in ("export", "card")]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("recipe")
    add("--num-sub-models", type=int, nargs="+", help="default: the recipe's own")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--processes", type=int, default=1, help="seeds side by side; set EDVIT_NUM_THREADS to share the cores")
    add("--work-dir", type=Path, default=Path("work/grid"))
    add("--collect", action="store_true", help="only gather finished cells")
    add("--in-process", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def folder_of(arguments: argparse.Namespace, seed: int) -> Path:
    """Work directory of a seed."""
    folder: Path = arguments.work_dir / f"{Path(arguments.recipe).stem}_seed{seed}"
    return folder


def numbers(arguments: argparse.Namespace, recipe: Recipe) -> list[int]:
    """Numbers of sub-models, the recipe's own last."""
    own = recipe.split.num_sub_models
    wanted = arguments.num_sub_models or [own]
    return sorted(wanted, key=lambda count: (count == own, count))


def run_seed(arguments: argparse.Namespace, seed: int) -> None:
    """Every cell of one seed, in this process; each leaves a file when it is finished."""
    base, folder = load_recipe(arguments.recipe).with_seed(seed), folder_of(arguments, seed)
    for count in numbers(arguments, base):
        is_own = count == base.split.num_sub_models
        recipe = dataclasses.replace(base, split=dataclasses.replace(base.split, num_sub_models=count))
        cell = folder / f"cell_{count}.json"
        values = json.loads(json.dumps(recipe_values(recipe), default=str))
        if cell.is_file():
            if read_json(cell).get("recipe_values", values) != values:
                raise SystemExit(f"{cell} was measured with other values of the recipe. Delete {folder}, or move it.")
            continue
        begin = time.perf_counter()
        command = f"python benchmarks/trips/grid.py {arguments.recipe} --num-sub-models {count} --seeds {seed}"
        command = f"edvit run {arguments.recipe} --seed {seed}" if is_own else command
        run(recipe, folder, stages=None if is_own else UP_TO_RESULTS, command=command)
        seconds = round(time.perf_counter() - begin, 1)
        write_json(cell, {**describe(folder, is_own=is_own), "recipe_values": values, "wall_seconds": seconds})


def describe(folder: Path, *, is_own: bool) -> dict[str, Any]:
    """What the report needs of a finished cell."""
    results = read_json(stage_dir(folder, "evaluate") / "results.json")
    stages = {}
    for path in sorted(folder.glob("*/done.json")):
        record = read_json(path)
        if is_own or record["stage"] in UP_TO_RESULTS:
            stages[record["stage"]] = {k: record[k] for k in ("seconds", "resumed", "peak_memory_mib", "commit")}
    validation = {n: read_json(stage_dir(folder, n) / "validation.json") for n in ("teacher", "fuse")}
    cell = {
        "seed": results["seed"],
        "num_sub_models": len(results["class_groups"]),
        "num_test_items": results["dataset"]["num_test_items"],
        "validation": validation,
        "stage_seconds_total": round(sum(s["seconds"] for s in stages.values()), 1),
        "peak_memory_mib": max(s["peak_memory_mib"] for s in stages.values()),
        "stages": stages,
        **{key: results[key] for key in ("environment", "class_groups", "rows", "absent", "sub_models")},
    }
    if is_own:
        manifest = read_json(ensemble_dir(folder) / "manifest.json")
        cell["export"] = {key: manifest["ensemble"][key] for key in ("parity", "accuracy")}
    return cell


def main() -> None:
    """Run the cells that are missing, then gather all of them."""
    arguments = parse()
    if arguments.in_process:
        run_seed(arguments, arguments.seeds[0])
        return
    waiting = [] if arguments.collect else list(arguments.seeds)
    running: list[subprocess.Popen[bytes]] = []
    failed = 0
    while waiting or running:
        while waiting and len(running) < arguments.processes:
            seed = waiting.pop(0)
            counts = [str(n) for n in numbers(arguments, load_recipe(arguments.recipe))]
            command = [sys.executable, __file__, arguments.recipe, "--in-process", "--seeds", str(seed)]
            command += ["--work-dir", str(arguments.work_dir), "--num-sub-models", *counts]
            running.append(subprocess.Popen(command, env=os.environ.copy()))
        for process in list(running):
            if process.poll() is not None:
                running.remove(process)
                if process.returncode:
                    failed += 1
                    print(f"a seed failed with exit code {process.returncode}: run again to resume", file=sys.stderr)
        time.sleep(0.5)
    cells = [
        read_json(path) for seed in arguments.seeds for path in sorted(folder_of(arguments, seed).glob("cell_*.json"))
    ]
    cells.sort(key=lambda cell: (cell["num_sub_models"], cell["seed"]))
    if not cells:
        raise SystemExit("no finished cell to write")
    name = Path(arguments.recipe).stem
    found = sorted({cell["num_sub_models"] for cell in cells})
    counts = " ".join(map(str, found))
    seeds = " ".join(map(str, sorted({cell["seed"] for cell in cells})))
    write_json(
        RESULTS / f"{name}.json",
        {
            "command": f"python benchmarks/trips/grid.py recipes/{name}.yaml --num-sub-models {counts} --seeds {seeds}",
            "own_num_sub_models": load_recipe(arguments.recipe).split.num_sub_models,
            "item_passes_of_sub_models": {count: passes(load_recipe(arguments.recipe), count) for count in found},
            "environment": environment(),
            "cells": [{key: value for key, value in cell.items() if key != "recipe_values"} for cell in cells],
        },
    )
    if failed:
        raise SystemExit(1)


def passes(recipe: Recipe, count: int) -> float:
    """Passes over all training items that so many sub-models had together: what an equally trained plain model gets."""
    ratio = min(recipe.distill.negatives_per_positive, count - 1)
    joint = recipe.fuse.joint_epochs * count if recipe.fuse.joint else 0
    return round(recipe.distill.epochs * (1 + ratio) + joint, 1)


if __name__ == "__main__":
    main()
