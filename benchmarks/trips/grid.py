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
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command, command_line, write_results

from edvit_hf.recipe import Recipe, load_recipe, run
from edvit_hf.recipe.running import STAGES, ensemble_dir, stage_dir
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.storage import read_json, write_json

# What a benchmark keeps of results.json; earlier results lack some of it.
OF_RESULTS = ("environment", "class_groups", "rows", "absent", "sub_models", "gap", "choice", "rare_classes")
UP_TO_RESULTS = [stage.name for stage in STAGES if stage.name not in ("export", "card")]


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
        if is_finished(cell, values):
            continue
        begin = time.perf_counter()
        one = {"num_sub_models": count, "seeds": seed}
        made_by = command(__file__, one, "num_sub_models", "seeds", places=arguments.recipe)
        made_by = f"edvit run {arguments.recipe} --seed {seed}" if is_own else made_by
        run(recipe, folder, stages=None if is_own else UP_TO_RESULTS, command=made_by)
        seconds = round(time.perf_counter() - begin, 1)
        write_json(cell, {**describe(folder, is_own=is_own), "recipe_values": values, "wall_seconds": seconds})


def is_finished(cell: Path, values: Any) -> bool:
    """Whether a cell has been measured.

    Raises:
        SystemExit: It was, with other values of the recipe.
    """
    if cell.is_file() and read_json(cell).get("recipe_values", values) != values:
        raise SystemExit(f"{cell} was measured with other values of the recipe. Delete {cell.parent}, or move it.")
    return cell.is_file()


def stage_costs(folder: Path, names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Seconds, memory and commit of every finished stage of a run, or of these."""
    records = [read_json(path) for path in sorted(folder.glob("*/done.json"))]
    keys = ("seconds", "resumed", "peak_memory_mib", "commit")
    return {r["stage"]: {key: r[key] for key in keys} for r in records if names is None or r["stage"] in names}


def describe(folder: Path, *, is_own: bool) -> dict[str, Any]:
    """What the report needs of a finished cell."""
    results = read_json(stage_dir(folder, "evaluate") / "results.json")
    stages = stage_costs(folder, None if is_own else UP_TO_RESULTS)
    validation = {n: read_json(stage_dir(folder, n) / "validation.json") for n in ("teacher", "fuse")}
    cell = {
        "seed": results["seed"],
        "num_sub_models": len(results["class_groups"]),
        "num_test_items": results["dataset"]["num_test_items"],
        "validation": validation,
        "stage_seconds_total": round(sum(s["seconds"] for s in stages.values()), 1),
        "peak_memory_mib": max(s["peak_memory_mib"] for s in stages.values()),
        "stages": stages,
        **{key: results[key] for key in OF_RESULTS if key in results},
    }
    if is_own:
        manifest = read_json(ensemble_dir(folder) / "manifest.json")
        cell["export"] = {key: manifest["ensemble"][key] for key in ("parity", "accuracy")}
    return cell


def main() -> None:
    """Run the cells that are missing, then gather all of them."""
    add, parse = command_line(__doc__)
    add("recipe")
    add("--num-sub-models", type=int, nargs="+", help="default: the recipe's own")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--processes", type=int, default=1, help="seeds side by side; set EDVIT_NUM_THREADS to share the cores")
    add("--work-dir", type=Path, default=Path("work/grid"))
    add("--collect", action="store_true", help="only gather finished cells")
    add("--in-process", action="store_true", help=argparse.SUPPRESS)
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
            words = [sys.executable, __file__, arguments.recipe, "--in-process", "--seeds", str(seed)]
            words += ["--work-dir", str(arguments.work_dir), "--num-sub-models", *counts]
            running.append(subprocess.Popen(words))
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
    name, recipe = Path(arguments.recipe).stem, load_recipe(arguments.recipe)
    found = {"num_sub_models": sorted({cell["num_sub_models"] for cell in cells})}
    found["seeds"] = sorted({cell["seed"] for cell in cells})
    result = {
        "own_num_sub_models": recipe.split.num_sub_models,
        "item_passes_of_sub_models": {count: passes(recipe, count) for count in found["num_sub_models"]},
        "cells": [{key: value for key, value in cell.items() if key != "recipe_values"} for cell in cells],
    }
    write_results(__file__, arguments, result, *found, name=name, places=f"recipes/{name}.yaml", **found)
    if failed:
        raise SystemExit(1)


def passes(recipe: Recipe, count: int) -> float:
    """Passes over all training items that so many sub-models had together: what an equally trained plain model gets."""
    ratio = min(recipe.distill.negatives_per_positive, count - 1)
    joint = recipe.fuse.joint_epochs * count if recipe.fuse.joint else 0
    return round(recipe.distill.epochs * (1 + ratio) + joint, 1)


if __name__ == "__main__":
    main()
