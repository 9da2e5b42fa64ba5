# SPDX-License-Identifier: Apache-2.0
"""The benchmark of accuracy after pruning: balanced items, winners on validation, going on where it stopped."""

import json
import sys

import numpy as np
import pytest

from edvit_hf.recipe import load_recipe
from edvit_hf.recipe.running import stage_dir
from support.benchmarks import benchmark


@pytest.fixture
def module():
    return benchmark("pruning.prune_accuracy")


def test_half_of_the_items_come_from_the_group(module):
    labels = np.repeat(np.arange(10), 30)
    items = module.balanced_items(labels, [2, 7], 40, seed=0)
    assert len(set(items)) == 40
    assert np.isin(labels[items], [2, 7]).sum() == 20
    assert len(module.balanced_items(labels, [2, 7], 10_000, seed=0)) == 120  # as many as the group has
    assert len(module.balanced_items(labels, list(range(10)), 50, seed=0)) == 50  # there is no outside


def test_winners_are_chosen_on_validation(module):
    def cell(keep, compensated, validation, test):
        return {"attention": "whole", "keep": keep, "compensated": compensated, "validation": validation, "test": test}

    rows = [
        {"method": method, "teacher": teacher, "cells": [cell("1/2", False, v, t), cell("1/2", True, v + 0.1, t)]}
        for method, v, t in (("kl", 0.5, 0.9), ("fisher", 0.7, 0.1))
        for teacher in (0, 1)
    ]
    summary = module.summarise(rows)
    best = module.winners(summary)
    first = {"method": "fisher", "attention": "whole", "compensated": True, "validation": 0.8, "test": 0.1}
    assert best["ranking_over_keeps"][0] == first
    assert best["per_keep"]["1/2 without compensation"]["method"] == "fisher"
    assert summary[0]["validation_sd"] == 0


def test_it_measures_every_cell_and_goes_on_where_it_stopped(module, finished_trip, tmp_path, monkeypatch, capsys):
    path, work = finished_trip
    teacher = stage_dir(work, "teacher") / "model"
    heads = load_recipe(path).teacher.from_scratch["num_attention_heads"]
    assert heads % 2 == 0
    command = ["x", str(teacher), "--recipe", str(path), "--keep", "1/2", "--kinds", "whole", "--num-groups", "1"]
    command += ["--samples-per-class", "2", "--compensation-samples", "60", "--evaluation-items", "40"]
    command += ["--results-dir", str(tmp_path)]

    def run(*methods):
        monkeypatch.setattr(sys, "argv", [*command, "--methods", *methods])
        module.main()
        return json.loads((tmp_path / "prune_accuracy_tiny.json").read_text())

    first = run("magnitude")
    second = run("magnitude", "random")
    assert [row["method"] for row in second["rows"]] == ["magnitude", "random"]
    assert second["rows"][0] == first["rows"][0]
    assert {(e["method"], e["compensated"]) for e in second["summary"]} == {
        (method, flag) for method in ("magnitude", "random") for flag in (False, True)
    }
    assert "| magnitude | " in capsys.readouterr().out
    command[-3] = "20"  # other evaluation items
    with pytest.raises(SystemExit, match="other settings"):
        run("magnitude")
