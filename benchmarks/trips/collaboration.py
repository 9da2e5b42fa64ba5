# SPDX-License-Identifier: Apache-2.0
"""Measure what collaboration pays: every strategy against replicas and larger plain models, at 0, 1 and 2 absent.

    python benchmarks/trips/collaboration.py RECIPE [--seeds 0 1 2] [--tries NAMES] [--work-dir FOLDER]

For each seed the recipe's teacher, then every strategy (see `recipe.strategies`) at the same size and the same passes
per device, one plain model of all devices' size, and one of a device's size that is trained as long as all devices
together. All are measured on the test items; what `strategy: auto` with its defaults would choose on validation items
stands beside the best of all in hindsight. Interrupted, the same command resumes; `edvit run` in the same folder shares
the teacher. Writes results/collaboration_<recipe>.json after each seed.
"""

import dataclasses
import functools
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, once, write_results

from edvit_hf.evaluation.choice import Candidate, choose
from edvit_hf.evaluation.evaluator import paired_interval
from edvit_hf.recipe.choosing import (
    absences_of,
    is_worth_trying,
    large_model,
    read_choice,
    rightly_answered,
    tried_trip,
)
from edvit_hf.recipe.running import open_trip, run, tried_stages
from edvit_hf.recipe.schema import Recipe, load_recipe, recipe_values
from edvit_hf.recipe.stages.compared import plain_model
from edvit_hf.recipe.stages.effort import of_all_classes
from edvit_hf.recipe.strategies import BASE, AutoConfig, Tried
from edvit_hf.recipe.trip import Trip
from edvit_hf.tasks import MOST_ABSENT

TEACHER, LARGE, LONGER = "teacher", "plain, N times the size", "plain, all passes"


def measure(recipe: Recipe, work_dir: Path) -> dict[str, Any]:
    """One seed: all rows, the choice on validation items, and the one in hindsight."""
    begin = time.monotonic()
    run(recipe, work_dir, stages=["teacher", "choose"])
    trip, stages = open_trip(recipe, work_dir), tried_stages(recipe)
    choice = read_choice(trip.folders["choose"])
    trips = {name: tried_trip(trip, name, stages) for name in choice["tried"]}
    found = {name: [each.correct for each in absences_of(tried, "test")] for name, tried in trips.items()}
    rivals = {TEACHER: trip.teacher, LARGE: large_model(trip, trips[BASE]), LONGER: longer(trip, trips[BASE])}
    found |= {name: [rightly_answered(model, trip, "test").astype(float)] for name, model in rivals.items()}
    hindsight = choose({name: Candidate(found[name]) for name in trips}, BASE)
    means = {name: float(np.mean(accuracies(found[name], found, everywhere=True))) for name in trips}
    automatic = chosen_automatically(trips, choice["gap"])
    return {
        "num_sub_models": recipe.split.num_sub_models,
        "num_test_items": len(trip.data.test),
        "rows": {name: row(name, found, trips.get(name), trip) for name in found},
        "gap_points": points(found[LARGE][0].mean() - found[BASE][0].mean()),
        "validation": choice,
        "chosen": automatic,
        "hindsight": hindsight.to_dict(),
        "best": max(means, key=lambda name: means[name]),
        "regret_points": points(max(means.values()) - means[automatic]),
        "minutes": round((time.monotonic() - begin) / 60, 1),
    }


def chosen_automatically(trips: Mapping[str, Trip], gap: Mapping[str, float]) -> str:
    """What `strategy: auto` with its defaults keeps, from validation items alone, of what was trained here."""
    auto = AutoConfig()
    if not is_worth_trying(gap, auto):
        return BASE
    known = {name: [each.correct for each in absences_of(trips[name])] for name in (BASE, *auto.tries) if name in trips}
    count = min((len(each) for name, each in known.items() if name != BASE), default=1)
    return choose({name: Candidate(each[:count]) for name, each in known.items()}, BASE, by="on average").name


def longer(trip: Trip, base: Trip) -> Any:
    """The plain model of a device's size, trained as long as all devices together."""
    distill = base.recipe.distill
    distill = dataclasses.replace(distill, epochs=distill.epochs * trip.recipe.split.num_sub_models)
    keep = base.plan.sub_models[0].widths
    assert keep is not None
    return plain_model(trip, keep.heads, of_all_classes(distill))


def accuracies(
    shares: list[np.ndarray], found: dict[str, list[np.ndarray]], *, everywhere: bool = False
) -> list[float]:
    """With 0, 1, 2 absent; a single model that is on every device is the same at any absence, another has the first."""
    count = min(MOST_ABSENT + 1, max(len(each) for each in found.values()))
    values = [float(share.mean()) for share in shares]
    return values * count if everywhere and len(values) == 1 else values


def row(name: str, found: dict[str, list[np.ndarray]], tried: Trip | None, trip: Trip) -> dict[str, Any]:
    """Accuracies, the share of the gap, and paired intervals against the plain models at every absence."""
    base, longer_one, large = found[BASE][0], found[LONGER][0], found[LARGE][0]
    gap, own = large.mean() - base.mean(), accuracies(found[name], found, everywhere=name in (BASE, LONGER))
    return {
        "accuracy": own,
        "share_of_gap": round((own[0] - base.mean()) / gap, 3) if gap >= 0.02 else None,
        "against_replicas": [interval(share, base) for share in found[name]],
        "against_all_passes": [interval(share, longer_one) for share in found[name]],
        "epochs": None if tried is None else tried.recipe.distill.epochs,
        "joint_epochs": None if tried is None or not tried.recipe.fuse.joint else tried.recipe.fuse.joint_epochs,
        "parameters_per_sub_model": None if tried is None else [s.parameters for s in tried.plan.sub_models],
        "times_smaller_than_teacher": None
        if tried is None
        else round(trip.teacher_shape.parameters / max(s.parameters for s in tried.plan.sub_models), 2),
    }


def interval(own: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """In points."""
    found = paired_interval(own, other)
    return {name: points(getattr(found, name)) for name in ("difference", "low", "high")}


def points(share: float) -> float:
    """A share of the items as percentage points."""
    return round(100 * float(share), 2)


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds."""
    rows: dict[str, dict[str, Any]] = {}
    for name in seeds[0]["rows"]:
        each = np.array([seed["rows"][name]["accuracy"] for seed in seeds])
        rows[name] = {
            "accuracy": each.mean(axis=0).round(4).tolist(),
            "spread_all_present": round(float(np.ptp(each[:, 0])), 4),
        }
    gap = rows[LARGE]["accuracy"][0] - rows[BASE]["accuracy"][0]
    for found in rows.values():
        share = (found["accuracy"][0] - rows[BASE]["accuracy"][0]) / gap if gap >= 0.02 else None
        found["share_of_gap"] = None if share is None else round(share, 3)
    return {
        "rows": rows,
        "gap_points": points(gap),
        "regret_points_mean": round(statistics.mean(s["regret_points"] for s in seeds), 2),
        "regret_points_worst": max(s["regret_points"] for s in seeds),
    }


def main() -> None:
    """Every seed; the results are written after each."""
    add, parse = command_line(__doc__)
    add("recipe", help="name or path")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--tries", nargs="+", default=list(get_args(Tried)), choices=get_args(Tried))
    add("--work-dir", type=Path, default=None, help="default: work/collaboration")
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    auto = AutoConfig(tries=tuple(arguments.tries), min_gap=-1.0)
    seeds = []
    for seed in arguments.seeds:
        work_dir = (arguments.work_dir or Path("work/collaboration")) / f"{recipe.name}_seed{seed}"
        own = dataclasses.replace(recipe.with_seed(seed), strategy="auto", auto=auto)
        values = json.dumps(recipe_values(own), sort_keys=True, default=str)  # another recipe is measured anew
        path = work_dir / f"row_{hashlib.sha256(values.encode()).hexdigest()[:12]}.json"
        found = once(path, functools.partial(measure, own, work_dir))
        seeds.append({"seed": seed, **found})
        content = {"recipe": recipe.name, "tries": arguments.tries, "summary": summary(seeds), "seeds": seeds}
        names, name = ("seeds", "tries"), f"collaboration_{recipe.name}"
        write_results(__file__, arguments, content, *names, name=name, places=recipe.name)
    print(json.dumps(content["summary"], indent=1))


if __name__ == "__main__":
    main()
