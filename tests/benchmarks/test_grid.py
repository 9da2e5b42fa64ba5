# SPDX-License-Identifier: Apache-2.0
"""The benchmarks behind the tables: a grid of seeds and numbers of sub-models, and one choice changed at a time."""

import json
import sys
from itertools import chain

import pytest

from edvit_hf.recipe import load_recipe
from edvit_hf.storage import read_json, write_json
from support.benchmarks import benchmark
from support.tiny_recipe import write_tiny_recipe

SMALL = ["--train-items", "60", "--distill-epochs", "1", "--fuse-epochs", "1", "--views", "1"]


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Run benchmarks/trips/grid.py on a recipe of `tmp_path` in this process."""
    places = ["--work-dir", str(tmp_path / "work"), "--results-dir", str(tmp_path / "results")]

    def run(recipe, *options):
        monkeypatch.setattr(sys, "argv", ["grid.py", str(recipe), *places, *options])
        benchmark("trips.grid").main()

    return run


def stage_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/done.json")}


def test_a_grid_runs_every_number_behind_one_teacher_and_gathers_the_cells(grid, tmp_path):
    recipe = write_tiny_recipe(tmp_path, evaluate={"baseline_epochs": 1})
    options = ["--num-sub-models", "2", "3", "--seeds", "0"]
    grid(recipe, *options, "--in-process")
    work = tmp_path / "work" / "tiny_seed0"
    before = stage_files(work)
    grid(recipe, *options, "--in-process")  # nothing is left to do
    assert stage_files(work) == before
    grid(recipe, *options, "--collect")
    result = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert result["own_num_sub_models"] == 2
    assert result["command"].endswith("--num-sub-models 2 3 --seeds 0")
    assert [(cell["num_sub_models"], cell["seed"]) for cell in result["cells"]] == [(2, 0), (3, 0)]
    own, other = result["cells"]
    assert set(own["export"]) == {"parity", "accuracy"}  # the recipe's own number is exported, and only that
    assert "export" not in other
    assert {"export", "card"} == set(own["stages"]) - set(other["stages"])
    for cell in result["cells"]:
        check_cell(cell)
    rows = [{row["name"]: row["accuracy"] for row in cell["rows"]} for cell in (own, other)]
    assert rows[0]["teacher"] == rows[1]["teacher"]  # made once per seed; the plain models follow the fullest device


def check_cell(cell):
    assert cell["num_test_items"] == 60
    assert {"teacher", "fuse"} == set(cell["validation"])
    assert len(cell["sub_models"]) == len(cell["class_groups"]) == len(cell["absent"]) == cell["num_sub_models"]
    assert sorted(chain.from_iterable(cell["class_groups"])) == list(range(10))
    assert cell["wall_seconds"] > 0
    for row in cell["rows"]:
        assert {"accuracy", "macro_f1", "parameters_per_device", "macs_per_device", "against_teacher"} <= set(row)
        if row["name"] != "teacher":
            assert {"difference", "low", "high", "low_one_sided"} <= set(row["against_teacher"])


def test_finished_cells_of_another_recipe_are_not_taken_over(grid, tmp_path):
    recipe = write_tiny_recipe(tmp_path)
    cell = tmp_path / "work" / "tiny_seed0" / "cell_2.json"
    cell.parent.mkdir(parents=True)
    write_json(cell, {"recipe_values": {"teacher": {"epochs": 99}}})
    with pytest.raises(SystemExit, match="other values of the recipe"):
        grid(recipe, "--in-process")


def test_a_grid_without_a_finished_cell_writes_nothing(grid, tmp_path):
    with pytest.raises(SystemExit, match="no finished cell"):
        grid(write_tiny_recipe(tmp_path), "--collect")
    assert not (tmp_path / "results").exists()


def test_an_ablation_compares_the_answers_of_one_question_and_resumes(finished_trip, tmp_path, monkeypatch):
    recipe, work = finished_trip
    module = benchmark("trips.ablation")
    places = ["--recipe", str(recipe), "--out", str(tmp_path / "out"), "--results-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["x", str(work), *places, *SMALL, "--questions", "compensation"])
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    module.main()
    result = read_json(tmp_path / "ablation_tiny.json")
    assert [(run["variant"], run["seed"]) for run in result["runs"]] == [("recipe", 0), ("compensation: without", 0)]
    answers = result["questions"]["compensation"]["answers"]
    assert {name: answer["is_recipe"] for name, answer in answers.items()} == {"with": True, "without": False}
    best = max(answers, key=lambda name: answers[name]["validation_mean"])
    assert result["questions"]["compensation"]["winner_on_validation"] == best
    for run in result["runs"]:
        assert set(run["seconds"]) == set(module.STAGES)
        answer = answers["with" if run["variant"] == "recipe" else "without"]
        assert answer["test_mean"] == run["accuracy"]["test"]
        assert answer["minutes"] == pytest.approx(sum(run["seconds"].values()) / 60)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before
    module.main()  # resumed: not a figure changes, the seconds included
    assert read_json(tmp_path / "ablation_tiny.json")["runs"] == result["runs"]


def test_every_answer_of_an_ablation_is_a_recipe_and_each_question_has_the_recipes_own(tmp_path):
    module, recipe = benchmark("trips.ablation"), load_recipe(write_tiny_recipe(tmp_path))
    for answers in module.CHOICES.values():
        variants = [module.changed(recipe, change) for change in answers.values()]
        assert len({repr(variant) for variant in variants}) == len(answers)
        assert sum(module.as_it_is(recipe, change) for change in answers.values()) == 1


def against(difference, half=0.01):
    low_one_sided = difference - 0.8 * half
    values = {"difference": difference, "low": difference - half, "high": difference + half}
    return {**values, "low_one_sided": low_one_sided}


def report_cell(seed, count, ensemble, plain, *, plain_against=None):
    """A cell whose teacher is at 90 %, with the ensemble and the plain model so far from it."""

    def row(name, difference, parameters, **more):
        figures = {"name": name, "accuracy": 0.9 + difference, "macro_f1": 0.8 + difference}
        figures["against_teacher"] = None if name == "teacher" else against(difference)
        sizes = {"parameters_per_device": parameters, "parameters": parameters, "macs_per_device": 2_000_000}
        return {**figures, **sizes, **more}

    rows = [
        row("teacher", 0.0, 280_000),
        row("ensemble", ensemble, 14_000),
        row("plain model, total size", plain / 2, 70_000),
        row("plain model, per-device size", plain, 14_000, against_ensemble=plain_against or against(plain)),
    ]
    environment = {"commit": "0123456789abcdef", "machine": {"cpu": "Some CPU", "cores": 2}}
    absent = [{"num_absent": k, "accuracy_mean": 0.9 - 0.1 * k} for k in range(count)]
    cost = {"wall_seconds": 60.0, "peak_memory_mib": 500, "environment": environment}
    return {"seed": seed, "num_sub_models": count, "num_test_items": 1000, "rows": rows, "absent": absent, **cost}


def report(cells):
    data = {"own_num_sub_models": 2, "command": "python grid.py", "cells": cells}
    return "\n".join(benchmark("report.grids").grid("fsdd_small", data, full=True))


def test_the_table_of_a_grid_has_a_line_for_each_number_and_one_for_what_they_share():
    cells = [report_cell(seed, count, -0.01 * count, -0.02) for count in (2, 3) for seed in (0, 1)]
    text = report(cells)
    first = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    of_each = [f"{row} of {count}" for row in ("ensemble", "plain model, total size") for count in (2, 3)]
    assert first == ["teacher", *of_each, "plain model, per-device size"]
    line = next(line for line in text.splitlines() if line.startswith("| ensemble of 3"))
    values = [value.strip() for value in line.strip("| ").split(" | ")[1:]]
    assert values[0].startswith("87.00")
    assert values[1].startswith("77.00")
    assert values[3:] == ["14,000", "20.0", "55", "2.00"]  # parameters, times smaller, KiB, MMACs
    assert "1,000 test items, 2 seeds (0, 1)" in text
    assert "Cost: 4 minutes" in text


def rival_cell(seed, count, gap, share, deployed):
    """The same as results of schema 2 state it."""
    cell = report_cell(seed, count, 0.0, -0.02)
    names = {"plain model, total size": "plain, N times the size", "plain model, per-device size": "replicas"}
    copies = {**cell["rows"][1], "name": "copies", "against_ensemble": against(-0.01)}
    cell["rows"].append(copies)
    for row in cell["rows"]:
        row["name"] = names.get(row["name"], row["name"])
        most = 0 if row["name"] in ("teacher", "plain, N times the size") else count - 1
        accuracies = [row["accuracy"] - 0.05 * k for k in range(most + 1)]
        row["absent"] = [
            {"num_absent": k, "accuracy": a, "worst": a, "num_subsets": 1} for k, a in enumerate(accuracies)
        ]
        row |= {"passes": {"per_device": 1000, "total": 1000 * count}, "minutes": 2.5 + seed}
    cell["class_groups"] = [[c] for c in range(count)]
    cell["gap"] = {"plain": 0.88, "large": 0.88 + gap / 100, "points": gap, "share": share}
    cell["choice"] = deployed and {"name": deployed, "what": deployed, "verdict": f"deploy: {deployed} because"}
    return cell


def test_results_with_rivals_have_a_table_with_devices_absent_the_gap_and_what_to_deploy():
    cells = [
        rival_cell(0, 3, 4.0, {"ensemble": 0.5}, "the ensemble"),
        rival_cell(1, 3, 6.0, {"ensemble": 1.0}, "copies"),
    ]
    text = report([*cells, report_cell(0, 2, -0.01, -0.02)])
    assert "| copies of 3 |" in text
    table = [line.strip("| ").split(" | ") for line in text[text.index("beside the ensemble of 3") :].splitlines()[2:8]]
    rows = {name: [value.split(" ")[0] for value in values] for name, *values in table}
    assert rows["ensemble"] == ["90.0", "85.0", "80.0", "75", "1,000", "3,000", "3.0"]
    assert rows["plain, N times the size"][1:3] == ["no", "no"]
    assert dict(zip(["name", "0", "1", "2", "gap"], table[1], strict=False))["gap"] == "75 (50 to 100)"
    assert "two plain models: 5.0 (4.0 to 6.0) points. Deploy: the ensemble (1 of 2), copies (1 of 2)." in text
    assert "beside the ensemble of 2" not in text, "results of an earlier version state none of it"


def test_the_overview_of_rivals_leaves_out_what_earlier_results_lack():
    write = benchmark("report.rivals").overview
    earlier = {"cells": [report_cell(0, 2, -0.01, -0.02)]}
    assert write({"fsdd_small": earlier}) == []
    small = {"cells": [rival_cell(0, 2, 1.0, {}, None)]}
    text = "\n".join(write({"fsdd_small": earlier, "trec6_small": small}))
    line = next(line for line in text.splitlines() if line.startswith("| TREC"))
    assert line.strip("| ").split(" | ")[1:] == [
        *("not measured", "2", "1", "88.0", "89.0", "90.0", "1.0"),
        *("90.0", "85.0", "no answer", "gap too small"),  # with both absent
    ]


def test_one_seed_carries_its_paired_interval():
    text = report([report_cell(0, 2, -0.02, -0.05)])
    assert "-2.00 [-3.00, -1.00]" in next(line for line in text.splitlines() if line.startswith("| ensemble of 2"))


@pytest.mark.parametrize(
    ("difference", "half", "is_near"),
    [(0.01, 0.01, True), (-0.004, 0.0, True), (-0.02, 0.01, False), (-0.006, 0.01, True), (-0.006, 0.001, False)],
)
def test_near_the_teacher_is_half_a_point_or_within_the_one_sided_interval(difference, half, is_near):
    assert benchmark("report.grids").near_teacher(against(difference, half)) is is_near


def test_the_verdicts_count_seeds_and_say_whether_there_was_anything_to_gain():
    better, worse, neither = (against(difference) for difference in (-0.03, 0.02, 0.001))
    cells = [
        report_cell(0, 2, -0.001, -0.04, plain_against=better),
        report_cell(1, 2, -0.05, -0.01, plain_against=worse),
        report_cell(0, 3, -0.001, -0.01, plain_against=neither),
    ]
    text = " ".join(benchmark("report.grids").verdicts(cells, [2, 3]))
    assert "2: 1 of 2; 3: 1 of 1" in text
    assert "2: better 1, worse 1, neither 0; 3: better 0, worse 0, neither 1" in text
    assert "in 1 of 3 cases" in text
    text = " ".join(benchmark("report.grids").verdicts(cells[1:], [2, 3]))
    assert "nowhere three points below" in text


def test_folds_are_averaged_row_by_row_and_compared_within_each_fold():
    def row(name, value):
        return {"name": name, "accuracy": value, "macro_f1": value / 2, "parameters_per_device": 10}

    accuracies = {1: (0.8, 0.7), 4: (0.6, 0.7)}
    folds = [{"fold": f, "rows": [row("teacher", t), row("ensemble", e)]} for f, (t, e) in accuracies.items()]
    teacher, ensemble = benchmark("trips.esc10_folds").summary(folds)
    assert teacher["accuracy"]["by_fold"] == {"1": 0.8, "4": 0.6}
    assert teacher["macro_f1"]["mean"] == pytest.approx(0.35)
    assert ensemble["accuracy"]["sd"] == 0
    assert ensemble["difference_to_teacher_mean"] == pytest.approx(0)
    assert ensemble["difference_to_teacher_sd"] == pytest.approx(0.02**0.5)
    assert benchmark("trips.esc10_folds").summary(folds[:1])[1]["accuracy"]["sd"] is None
