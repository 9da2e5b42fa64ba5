# SPDX-License-Identifier: Apache-2.0
"""Take a recipe through the whole trip as a user would, and record wall time, peak memory and every result.

    python benchmarks/trips/trip.py recipes/digits.yaml --seeds 0
    EDVIT_DATA_DIR=... python benchmarks/trips/trip.py recipes/mnist_small.yaml --seeds 0 1 2

Each seed is one fresh process in its own work directory; a finished one is not repeated, so the command resumes.
Writes `benchmarks/results/<recipe>.json`: one entry a seed, then mean and standard deviation over seeds.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.storage import read_json
from trips.grid import OF_RESULTS, stage_costs


def run_seed(recipe: str, seed: int, work_dir: Path) -> dict[str, Any]:
    """One process of `edvit run`; returns its results with seconds and peak memory of the stages."""
    words = [sys.executable, "-c", "from edvit_hf.cli import main; main()", "run", recipe]
    words += ["--seed", str(seed), "--work-dir", str(work_dir), "--format", "json"]
    begin = time.perf_counter()
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    wall = time.perf_counter() - begin
    document = json.loads(done.stdout)
    stages = stage_costs(work_dir)
    was_fresh = not any(stage["skipped"] for stage in document["stages"])
    was_fresh = was_fresh and not any(stage["resumed"] for stage in stages.values())
    results = document["results"]
    exported = read_json(Path(document["ensemble"]) / "manifest.json")["ensemble"]
    return {
        "seed": seed,
        "wall_seconds": round(wall, 1) if was_fresh else None,
        "wall_note": None if was_fresh else "not measured: some stages were resumed; see the seconds of the stages",
        "stage_seconds_total": round(sum(s["seconds"] for s in stages.values()), 1),
        "peak_memory_mib": max(s["peak_memory_mib"] for s in stages.values()),
        "stages": stages,
        **{key: results[key] for key in OF_RESULTS if key in results},
        "export": {key: exported[key] for key in ("parity", "accuracy")},
        "second_run_seconds": second_run(words),
    }


def second_run(words: list[str]) -> float:
    """Wall time of the same command when every stage is up to date."""
    begin = time.perf_counter()
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    assert all(stage["skipped"] for stage in json.loads(done.stdout)["stages"])
    return round(time.perf_counter() - begin, 1)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, in fractions, of every row."""
    rows = {}
    for index, row in enumerate(runs[0]["rows"]):
        values = [run["rows"][index]["accuracy"] for run in runs]
        to_teacher = [v - run["rows"][0]["accuracy"] for v, run in zip(values, runs, strict=True)]
        rows[row["name"]] = {
            "accuracy_mean": statistics.mean(values),
            "accuracy_sd": statistics.stdev(values) if len(values) > 1 else None,
            "difference_to_teacher_mean": statistics.mean(to_teacher),
            "times_smaller_per_device": runs[0]["rows"][0]["parameters"] / row["parameters_per_device"],
        }
    return {"num_seeds": len(runs), "rows": rows}


def main() -> None:
    """Run the seeds asked for and write the results file."""
    add, parse = command_line(__doc__)
    add("recipe")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--work-dir", type=Path, default=Path("work/benchmarks"))
    arguments = parse()
    name = Path(arguments.recipe).stem
    runs = [run_seed(arguments.recipe, s, arguments.work_dir / f"{name}_seed{s}") for s in arguments.seeds]
    result = {"summary": summary(runs), "runs": runs}
    write_results(__file__, arguments, result, "seeds", name=name, places=arguments.recipe)
    print(json.dumps(summary(runs), indent=2))


if __name__ == "__main__":
    main()
