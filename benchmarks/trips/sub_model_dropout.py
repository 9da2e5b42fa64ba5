# SPDX-License-Identifier: Apache-2.0
"""Measure what sub-model dropout of the fusion head buys when one is absent, and costs when all are present.

    python benchmarks/trips/sub_model_dropout.py WORK_DIR recipes/mnist_small.yaml --seeds 0 1 2

Needs a finished `fuse` stage in WORK_DIR; only the fusion head is trained again, on the features stored there.
Writes `benchmarks/results/sub_model_dropout_<recipe>.json` with accuracies on the test split, in fractions.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.auto import ensemble_class
from edvit_hf.data import Split, iterate_batches
from edvit_hf.modeling_edvit import FusionHead
from edvit_hf.recipe import STAGES, load_recipe
from edvit_hf.recipe.running import stage_dir
from edvit_hf.recipe.trip import Trip, load_array
from edvit_hf.training import FuseConfig, FuseData, fuse_objective, train


def fusion_head(trip: Trip, features: np.ndarray, dropout: float, seed: int) -> FusionHead:
    """A fusion head trained as the recipe says, but with this share of sub-models absent at random.

    With the recipe's own seed and dropout it is the head of the trip, bit for bit.
    """
    config = dataclasses.replace(trip.recipe.fuse, seed=seed, sub_model_dropout=dropout)
    head = fresh_fusion_head(trip, config)
    head.set_feature_statistics(trip.ensemble.fusion.feature_mean, trip.ensemble.fusion.feature_std)
    data = FuseData(features, trip.data.train.labels, trip.teacher_outputs.logits[: config.views])
    objective = fuse_objective(
        dropout, config.distillation_weight, config.temperature, label_smoothing=config.label_smoothing
    )
    with tempfile.TemporaryDirectory() as folder:
        train(head, data, objective, config, checkpoint_dir=Path(folder), description=f"fuse, dropout {dropout}")
    return head.eval()


def fresh_fusion_head(trip: Trip, config: FuseConfig) -> FusionHead:
    """The fusion head as the fuse stage starts it: weights drawn by the ensemble, from the seed."""
    torch.manual_seed(config.seed)
    ensemble = ensemble_class(trip.recipe.task).from_sub_models(
        trip.sub_models("distill"),
        trip.class_groups,
        id2label=trip.teacher.config.id2label,
        fusion_hidden_size=config.hidden_size,
        fusion_dropout=config.dropout,
    )
    head: FusionHead = ensemble.fusion
    return head


def accuracy(head: FusionHead, features: torch.Tensor, labels: np.ndarray, count: int, absent: int | None) -> float:
    """Share of right answers over all classes with one sub-model (or none) absent."""
    mask = torch.ones(len(features), count, dtype=torch.bool)
    if absent is not None:
        mask[:, absent] = False
    with torch.inference_mode():
        return float((head(features, None, mask).argmax(-1).numpy() == labels).mean())


def features_of(trip: Trip, split: Split) -> torch.Tensor:
    """Features of all sub-models, (N, D)."""
    with torch.inference_mode():
        return torch.cat([trip.ensemble.features(**b["inputs"]) for b in iterate_batches(split, 512)])


def main() -> None:
    """Train heads with and without dropout over the seeds and write the comparison."""
    add, parse = command_line(__doc__)
    add("work_dir", type=Path)
    add("recipe")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    trip = Trip(recipe, {stage.name: stage_dir(arguments.work_dir, stage.name) for stage in STAGES})
    stored = load_array(trip.folders["fuse"] / "features.safetensors")
    features, labels, count = features_of(trip, trip.data.test), trip.data.test.labels, len(trip.class_groups)
    rows: list[dict[str, Any]] = []
    for dropout in (0.0, recipe.fuse.sub_model_dropout):
        for seed in arguments.seeds:
            head = fusion_head(trip, stored, dropout, seed)
            one = [accuracy(head, features, labels, count, i) for i in range(count)]
            row = {"sub_model_dropout": dropout, "seed": seed}
            row["all_present"] = accuracy(head, features, labels, count, None)
            rows.append({**row, "one_absent_mean": statistics.mean(one), "one_absent_min": min(one)})
    means = {
        str(d): {k: statistics.mean(r[k] for r in rows if r["sub_model_dropout"] == d) for k in list(rows[0])[2:]}
        for d in (0.0, recipe.fuse.sub_model_dropout)
    }
    result = {"num_test_items": len(labels), "mean": means, "rows": rows}
    shown = {"name": f"sub_model_dropout_{recipe.name}", "places": f"WORK_DIR recipes/{recipe.name}.yaml"}
    write_results(__file__, arguments, result, **shown)
    print(json.dumps(means, indent=2))


if __name__ == "__main__":
    main()
