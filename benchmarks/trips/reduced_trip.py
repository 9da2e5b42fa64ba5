# SPDX-License-Identifier: Apache-2.0
"""Run single stages behind a finished teacher, on fewer items, views and epochs, for benchmarks that compare them.

Validation and test splits stay whole. Every number that is reduced stands in the results (`Reduction`).
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import SPLITS, once

from edvit_hf.data import TaskData, iterate_batches
from edvit_hf.evaluation.evaluator import evaluate, torch_predict
from edvit_hf.recipe import STAGES
from edvit_hf.recipe.running import stage_dir, stages_of
from edvit_hf.recipe.schema import Recipe
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import read_json, write_json
from edvit_hf.training import TeacherOutputs


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What is less than in the recipe. None: as in the recipe.

    Attributes:
        train_items: Training items, the same share of every class, drawn with a fixed seed.
        distill_epochs: Epochs of every sub-model.
        fuse_epochs: Epochs of the fusion head.
        views: Replayed augmented views.
    """

    train_items: int | None = None
    distill_epochs: int | None = None
    fuse_epochs: int | None = None
    views: int | None = None

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with the reduced values."""
        views = self.views or recipe.distill.views
        distill = dataclasses.replace(
            recipe.distill, epochs=self.distill_epochs or recipe.distill.epochs, views=min(views, recipe.distill.views)
        )
        fuse = dataclasses.replace(
            recipe.fuse, epochs=self.fuse_epochs or recipe.fuse.epochs, views=min(views, recipe.fuse.views)
        )
        return dataclasses.replace(recipe, distill=distill, fuse=fuse)

    def items(self, labels: np.ndarray) -> np.ndarray:
        """Which training items are used, sorted."""
        if self.train_items is None or self.train_items >= len(labels):
            return np.arange(len(labels))
        order = np.random.default_rng(0).permutation(len(labels))
        rank = np.empty(len(labels))  # of an item within its class, as a share
        for label in np.unique(labels):
            own = order[labels[order] == label]
            rank[own] = np.arange(len(own)) / len(own)
        return np.sort(np.argsort(rank, kind="stable")[: self.train_items])


REDUCED = [field.name for field in dataclasses.fields(Reduction)]


def add_options(add: Any) -> None:
    """The command line options that make a `Reduction`."""
    add("--train-items", type=int, default=10_000, help="training items (0: all)")
    add("--distill-epochs", type=int, default=10, help="0: the recipe's")
    add("--fuse-epochs", type=int, default=10, help="0: the recipe's")
    add("--views", type=int, default=2, help="replayed augmented views (0: the recipe's)")


def reduction(arguments: Any) -> Reduction:
    """From the options of `add_options`."""
    return Reduction(**{name: getattr(arguments, name) or None for name in REDUCED})


def reduced_trip(
    source: Path, recipe: Recipe, cell: Path, reduced: Reduction, data: TaskData, *, own_split: bool
) -> Trip:
    """A trip whose teacher (and, unless `own_split`, class groups) are those of the finished run in `source`.

    `source` is only read, but for the teacher's outputs, which are computed there once for all reduced trips.
    """
    stored_views = recipe.distill.views
    folders = {stage.name: stage_dir(cell, stage.name) for stage in stages_of(recipe)}
    folders["teacher"] = stage_dir(source, "teacher")
    if not own_split:
        folders["split"] = stage_dir(source, "split")
    recipe = reduced.recipe(recipe)
    refuse_other_settings(cell, recipe, reduced)
    chosen = reduced.items(data.train.labels)
    trip = Trip(recipe, folders)
    trip.__dict__["data"] = dataclasses.replace(data, train=data.train.select(chosen))
    whole = Trip(dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, views=stored_views)), folders)
    whole.__dict__["data"] = data
    outputs, views = whole.teacher_outputs, recipe.distill.views
    trip.__dict__["teacher_outputs"] = TeacherOutputs(
        logits=outputs.logits[:views, chosen], features=outputs.features[:views, chosen]
    )
    return trip


def refuse_other_settings(cell: Path, recipe: Recipe, reduced: Reduction) -> None:
    """A cell folder continues only the run that began it."""
    settings = repr((recipe.dataset, recipe.split, recipe.prune, recipe.distill, recipe.fuse, reduced))
    path = cell / "settings.json"
    cell.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_json(path, settings)
    elif read_json(path) != settings:
        raise SystemExit(f"{cell} holds results of other settings. Delete it, or choose another --out.")


def run_stages(trip: Trip, names: tuple[str, ...]) -> dict[str, float]:
    """Run these stages (each resumes what an interrupted run left); seconds of each. Pruning brings its rounds."""
    fixed = {stage.name for stage in STAGES}
    seconds = {}
    for stage in stages_of(trip.recipe):
        if stage.name in names or (stage.name not in fixed and "prune" in names):
            trip.folders[stage.name].mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            stage.function(trip)
            seconds[stage.name] = round(time.perf_counter() - start, 2)
    return seconds


def accuracies(model: Any, trip: Trip) -> dict[str, float]:
    """Accuracy on the whole validation and test splits, in fractions."""
    found = {}
    for name in SPLITS:
        batches = iterate_batches(getattr(trip.data, name), trip.recipe.evaluate.batch_size)
        found[name] = evaluate(torch_predict(model), batches, num_labels=len(trip.data.label_names)).accuracy
    return found


def seeds_of(work_dirs: Sequence[Path]) -> list[int]:
    """The seed of each finished run, that of its teacher."""
    return [read_json(stage_dir(work, "teacher") / "done.json")["seeds"]["teacher"] for work in work_dirs]


def prune_on_runs(
    arguments: argparse.Namespace,
    recipe: Recipe,
    variants: Mapping[str, tuple[dict[str, Any], dict[str, Any]]],
    write: Callable[[list[dict[str, Any]], dict[str, Any]], Any],
) -> None:
    """Every variant of pruning on every finished run: pruned, distilled and fused; what was interrupted goes on.

    Args:
        arguments: Hold `work_dirs`, `out` and the options of `add_options`.
        recipe: The recipe of those runs.
        variants: Name of a cell's folder -> what its row says of it, the values of `prune` that make it.
        write: Takes all rows so far, and what is known of the runs; called after each cell.
    """
    data, rows, seeds = Trip(recipe, {}).data, [], seeds_of(arguments.work_dirs)
    about = {"recipe": recipe.name, "seeds": seeds, **reduction_of(arguments, data)}
    for source, seed in zip(arguments.work_dirs, seeds, strict=True):
        for name, (labels, values) in variants.items():
            own = recipe.with_seed(seed)
            own = dataclasses.replace(own, prune=dataclasses.replace(own.prune, **values))
            cell = arguments.out / f"{name}_seed{seed}"
            trip = reduced_trip(source, own, cell, reduction(arguments), data, own_split=False)
            rows.append(once(cell / "row.json", partial(pruned_row, trip, **labels, seed=seed)))
            print(json.dumps(rows[-1]))
            write(rows, about)


def reduction_of(arguments: argparse.Namespace, data: TaskData) -> dict[str, Any]:
    """What a results file says of what was reduced, and of the items that there are."""
    num_items = {name: len(getattr(data, name)) for name in ("train", *SPLITS)}
    return {"reduced": dataclasses.asdict(reduction(arguments)), "num_items": num_items}


def pruned_row(trip: Trip, **about: Any) -> dict[str, Any]:
    """A row of what is left after the sub-models were pruned, distilled and fused."""
    seconds = run_stages(trip, ("plan", "prune", "distill", "fuse"))
    return {**about, "accuracy": accuracies(trip.ensemble, trip), "seconds": seconds}
