# SPDX-License-Identifier: Apache-2.0
"""The benchmarks that run part of a trip on fewer items: what they reduce, what they compare, how they resume."""

import json
import sys

import numpy as np
import pytest

from edvit_hf.recipe import run
from edvit_hf.recipe.trip import Trip
from support.benchmarks import benchmark
from support.tiny_recipe import VALUES, tiny_recipe

SMALL = ["--train-items", "60", "--distill-epochs", "1", "--fuse-epochs", "1", "--views", "1"]


@pytest.fixture
def result_of(finished_trip, tmp_path, monkeypatch):
    """Run a benchmark on the tiny trip and return what it wrote."""

    def run(name, *options):
        recipe, work = finished_trip
        places = ["--recipe", str(recipe), "--out", str(tmp_path / "out"), "--results-dir", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["x", str(work), *places, *(options or SMALL)])
        benchmark(name).main()
        return json.loads((tmp_path / f"{name.split('.')[1]}_tiny.json").read_text())

    return run


def test_fewer_items_keep_the_share_of_every_class():
    labels = np.repeat([0, 1, 2], [300, 60, 30])
    items = benchmark("trips.reduced_trip").Reduction(train_items=130).items(labels)
    assert np.bincount(labels[items]).tolist() == [100, 20, 10]
    assert (np.diff(items) > 0).all()
    assert len(benchmark("trips.reduced_trip").Reduction().items(labels)) == 390


def test_every_importance_is_compared_with_exact_kl_after_distillation(result_of, finished_trip, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in finished_trip[1].rglob("*")}
    options = [*SMALL, "--methods", "kl", "random", "--samples-per-class", "2"]
    result = result_of("pruning.importance_distilled", *options)
    assert [(row["method"], row["seed"]) for row in result["rows"]] == [("kl", 0), ("random", 0)]
    assert result["summary"]["kl"]["test"]["mean"] == result["rows"][0]["accuracy"]["test"]
    assert result["reduced"]["train_items"] == 60
    assert {p: p.stat().st_mtime_ns for p in finished_trip[1].rglob("*")} == before
    assert result_of("pruning.importance_distilled", *options)["rows"] == result["rows"]  # resumed: seconds and all
    with pytest.raises(SystemExit, match="other settings"):
        result_of("pruning.importance_distilled", *options, "--keep-heads", "2")


def test_differences_are_in_units_of_the_seeds_deviation():
    rows = [
        {"method": method, "seed": seed, "accuracy": {"validation": value, "test": value}, "seconds": {"prune": 1.0}}
        for method, values in (("kl", (0.90, 0.92, 0.94)), ("fisher", (0.91, 0.93, 0.95)), ("random", (0.8, 0.9, 0.8)))
        for seed, value in enumerate(values)
    ]
    found = benchmark("pruning.importance_distilled").summary(rows)
    assert found["kl"]["test"]["std"] == pytest.approx(0.02)
    assert found["fisher"]["test"]["in_seed_deviations_of_kl"] == pytest.approx(0.5)
    assert found["fisher"]["test"]["within_one_seed_deviation"]
    assert not found["random"]["test"]["within_one_seed_deviation"]


def test_every_split_is_measured_and_the_winner_is_chosen_on_validation(result_of):
    result = result_of("trips.split_strategies", *SMALL, "--split-seeds", "0", "1")
    names = ["balanced 0", "balanced 1", "similarity group", "similarity separate"]
    assert [row["split"] for row in result["rows"]] == names
    within = {row["split"]: row["within"] for row in result["rows"]}
    assert within["similarity separate"] <= within["balanced 0"] <= within["similarity group"]
    means = result["summary"]
    assert means[result["winner_on_validation"]]["validation"] == max(m["validation"] for m in means.values())
    for row in result["rows"]:
        assert sum(row["within_of_each_group"]) == pytest.approx(row["within"])


def test_pruning_rounds_run_where_pruning_is_asked_for(tmp_path):
    module = benchmark("trips.reduced_trip")
    teacher = {"from_scratch": {**VALUES["teacher"]["from_scratch"], "num_attention_heads": 4}, "epochs": 1}
    recipe = tiny_recipe(tmp_path, teacher=teacher, prune={"keep_heads": 1, "rounds": 2})
    run(recipe, tmp_path / "work", stages=["teacher", "split"])
    reduced = module.Reduction(train_items=60, distill_epochs=1, fuse_epochs=1, views=1)
    data = Trip(recipe, {}).data
    trip = module.reduced_trip(tmp_path / "work", recipe, tmp_path / "cell", reduced, data, own_split=False)
    seconds = module.run_stages(trip, ("plan", "prune", "distill"))
    assert list(seconds) == ["plan", "prune_round1", "retrain_round1", "prune", "distill"]
    assert [m.config.num_attention_heads for m in trip.sub_models("prune_round1")] == [2, 2]
    assert [m.config.num_attention_heads for m in trip.sub_models("distill")] == [1, 1]
