# SPDX-License-Identifier: Apache-2.0
"""Measure the share of a training step that goes into making its batch, in every small recipe whose data are there.

    EDVIT_DATA_DIR=... python benchmarks/training/preprocessing_share.py

The teacher from scratch as the recipe trains it (augmented views, mixing), and a sub-model of the planned sizes (units
cut at random) as it is distilled; a step is batch, forward, backward, clipping and optimiser. Steps of the two take
turns, one thread, medians. The random numbers of a view are drawn once for all items: their seconds are spread over
the steps of an epoch. Decoding happens once, before training. Writes results/preprocessing_share.json.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import ROOT, command_line, write_results

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import DataError
from edvit_hf.pruning import make_plan, prune, unit_scores
from edvit_hf.recipe import Recipe, load_recipe
from edvit_hf.recipe.stages.plan import plan_groups
from edvit_hf.recipe.stages.split import groups_before_training
from edvit_hf.recipe.stages.teacher import base_model
from edvit_hf.recipe.trip import Trip
from edvit_hf.training import ClassifyData, DistillData, EpochData, TrainConfig, classify_objective, distill_objective
from edvit_hf.training.loading import epoch_batches
from edvit_hf.training.objectives import Objective
from edvit_hf.training.optimizer import clip_gradients, clip_groups, make_optimizer

RECIPES = ROOT / "recipes"
GOAL = 0.10
WARM_UP = 3
NEW_VIEW = 1  # the warm-up reads view 0


class Training:
    """A model with everything that one step of it needs."""

    def __init__(self, model: torch.nn.Module, data: EpochData, objective: Objective, config: TrainConfig) -> None:
        self.model, self.data, self.objective, self.config = model.train(), data, objective, config
        self.optimizer = make_optimizer(model, config)
        self.groups = clip_groups(model)
        data.set_epoch(0)
        batches = epoch_batches(len(data), config.batch_size, config.seed, 0, data.lengths)
        self.steps_per_epoch = len(batches)
        whole = [batch for batch in batches if len(batch) == config.batch_size]
        self.positions: Iterator[np.ndarray] = cycle(whole or batches)
        self.first = whole[0] if whole else batches[0]
        self.batch_seconds: list[float] = []
        self.step_seconds: list[float] = []

    def step(self) -> None:
        """One step; keeps its seconds and those of its batch."""
        positions = next(self.positions)
        begin = time.perf_counter()
        batch = self.data.batch(positions)
        built = time.perf_counter()
        loss, _ = self.objective(self.model, batch)
        loss.backward()
        clip_gradients(self.groups, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.batch_seconds.append(built - begin)
        self.step_seconds.append(time.perf_counter() - begin)

    def view_seconds(self) -> float:
        """What the first batch of a new view takes longer than the same batch the next time."""
        self.data.set_epoch(NEW_VIEW)
        seconds = []
        positions = self.first[self.first < len(self.data)]
        for _ in range(3):
            begin = time.perf_counter()
            self.data.batch(positions)
            seconds.append(time.perf_counter() - begin)
        return max(0.0, seconds[0] - min(seconds[1:]))

    def figures(self) -> dict[str, Any]:
        """Milliseconds and the share."""
        batch, step = (statistics.median(s[WARM_UP:]) for s in (self.batch_seconds, self.step_seconds))
        drawn = self.view_seconds() / self.steps_per_epoch
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "batch_size": self.config.batch_size,
            "batch_ms": round(1e3 * batch, 3),
            "step_ms": round(1e3 * step, 3),
            "new_view_ms_per_step": round(1e3 * drawn, 4),
            "share": round((batch + drawn) / (step + drawn), 4),
        }


def trainings(trip: Trip) -> dict[str, Training]:
    """The teacher of a recipe and its first planned sub-model, untrained."""
    recipe, data = trip.recipe, trip.data
    torch.manual_seed(recipe.teacher.seed)
    teacher, num_labels = base_model(trip), len(data.label_names)
    shape = ModelShape.from_config(teacher.config.to_dict(), num_labels=num_labels)
    planned = plan_groups(recipe, shape, groups_before_training(recipe, num_labels)[0]).sub_models[0]
    group = list(planned.classes)
    assert planned.widths is not None
    scores = unit_scores(teacher, data.train.inputs([0, 1]), group, method="random", progress=False)
    plan = make_plan(scores, teacher.config, planned.widths, attention=recipe.prune.attention)
    sub_model = prune(teacher, plan, group)
    logits = np.zeros((2, len(data.train), num_labels), np.float32)
    distill, values = recipe.distill, recipe.teacher
    ratio = distill.negatives_per_positive
    mixing = {"mixup_alpha": values.mixup_alpha, "cutmix_alpha": values.cutmix_alpha, "num_labels": num_labels}
    whole = ClassifyData(data.train, **mixing, seed=values.seed)
    own = DistillData(data.train, logits, group, negatives_per_positive=ratio, seed=distill.seed)
    distilled = distill_objective(group, distill.temperature, distill.distillation_weight)
    return {
        "teacher": Training(teacher, whole, classify_objective(values.label_smoothing), values),
        "sub-model": Training(sub_model, own, distilled, distill),
    }


def measure(recipe: Recipe, steps: int) -> dict[str, Any]:
    """One recipe. Raises what loading its data raises."""
    with tempfile.TemporaryDirectory() as folder:
        trip = Trip(recipe, {"teacher": Path(folder)})
        begin = time.perf_counter()
        data = trip.data
        decoding = time.perf_counter() - begin
        found = trainings(trip)
    for _ in range(WARM_UP + steps):
        for training in found.values():
            training.step()
    rows = {name: training.figures() for name, training in found.items()}
    return {
        "recipe": recipe.name,
        "num_items": len(data.train) + len(data.validation) + len(data.test),
        "decoding_seconds": round(decoding, 2),
        "steps": steps,
        **rows,
        "is_within_goal": all(row["share"] <= GOAL for row in rows.values()),
    }


def small_recipes() -> list[str]:
    """Names of the small recipes, `digits` first."""
    return ["digits", *sorted(path.stem for path in RECIPES.glob("*_small.yaml") if "vit" not in path.stem)]


def main() -> None:
    """Measure every recipe, write, print."""
    add, parse = command_line(__doc__)
    add("--recipes", nargs="+", default=small_recipes())
    add("--steps", type=int, default=30)
    add("--threads", type=int, default=1)
    arguments = parse()
    os.environ["EDVIT_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.recipes:
        try:
            rows.append(measure(load_recipe(name), arguments.steps))
        except DataError as error:
            print(f"{name}: left out, {error}")
            continue
        print(json.dumps(rows[-1]))
    recipes = None if arguments.recipes == small_recipes() else arguments.recipes
    result = {"goal": GOAL, "torch_threads": arguments.threads, "rows": rows}
    write_results(__file__, arguments, result, "steps", "threads", "recipes", recipes=recipes)


if __name__ == "__main__":
    main()
