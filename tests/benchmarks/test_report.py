# SPDX-License-Identifier: Apache-2.0
"""The report: every kind of results file, figures that a file lacks, targets missed, and what is out of date."""

import copy
import json
import random
import re
import sys
from functools import reduce
from itertools import product
from operator import getitem
from pathlib import Path

import pytest

from support.benchmarks import BENCHMARKS, benchmark

ROOT = Path(__file__).resolve().parents[2]
TIMING = ROOT / "src/edvit_hf/hardware/timing.py"
COMMITTED = ("digits", "import_time", "sub_model_dropout_mnist_small", "export_parity", "exported_ensembles")
COMMITTED += (
    "vocabulary_trec6_minilm",
    "fleet_simulation",
    "export_time",
    "runtime_local",
    "runtime_faults",
    "fleet_faults",
    "serve_load",
    "space_start",
)
MACHINE = {"cpu": "Some CPU", "cores": 2}
ENVIRONMENT = {"commit": "0123456789abcdef+changes", "machine": MACHINE, "date": "2026-11-21"}
HEAD = {"schema_version": 1, "environment": ENVIRONMENT}
REDUCED = {"train_items": 10_000, "distill_epochs": 10, "fuse_epochs": None, "views": 2}
PARTS = {"linear maps": 2.0, "attention products": 1.0, "moves": 0.5}
METHODS = ("kl", "fisher", "linear", "hybrid", "taylor", "magnitude", "apoz", "hsic", "random")


def named(names, *values):
    """Values by name, the names between spaces."""
    return dict(zip(names.split(), values, strict=True))


def splits(value):
    return {"validation": value, "test": value - 0.01}


def vit_base_samples():
    """Those of ViT-B/16, as their scripts write them; the figures are invented and stay in the test's folder."""
    scores = named("units forward_seconds_median fisher_seconds fisher_in_forwards", 46848, 20.0, 342.0, 17.1)
    scores |= named("fisher_peak_memory_mib exact_over_fisher exact_in_forwards torch_threads", 1536.0, 1914, 32667, 1)
    scores["exact_seconds_extrapolated"] = {"residual": 1.0, "attention": 2.0, "ffn": 3.0}
    cut = {"seconds_of_which_plans": 0.1, "parameters_after": 2_500_000}
    memory = "peak_mib_above_teacher sub_models_mib"
    cuts = [
        {"keep_heads": n, "attention": kind, "seconds": 4.0 + n / 10, **cut, **named(memory, 100.0 * n, 90.0 * n)}
        for n, kind in product((2, 6), ("whole", "thin", "merged"))
    ]
    profile = {"parts_ms": PARTS, "gflops": {"linear maps": 100.0}}
    onnx = named("keep_heads latency_ratio macs_ratio target_latency_ratio isa", 2, 21.5, 29.11, 20, "avx512_vnni")
    onnx |= {"latency_ratios_of_rounds": [21.0, 22.0], "macs_ratio_of_parts": {"linear maps": 36.0}}
    shares = {"linear maps": 0.2, "attention products": 0.3, "moves": 0.5}
    onnx["gap"] = {"excess_ms": PARTS, "shares_of_excess": shares}
    onnx |= {name: {"median_ms": ms, "profile": profile} for name, ms in (("teacher", 90.0), ("sub_model", 4.0))}
    pair = {"ratio": 1.75, "ratios_of_rounds": [1.7, 1.8]}
    int8 = {key: onnx[key] for key in ("latency_ratios_of_rounds", "gap", "teacher", "sub_model")}
    onnx["int8"] = int8 | {"latency_ratio": 14.4, "target_latency_ratio": 10}
    onnx["int8_against_fp32"] = {"sub_model": pair, "teacher": pair, "target": 1.3}
    onnx["torch"] = {"engine": pair, "against_fp32_sub_model": pair, "against_int8_sub_model": pair | {"ratio": 55.6}}
    way = named("median_ms gain gain_on_top difference", 4.0, 1.07, 1.031, 2e-7)
    way["gain_on_top_of_processes"] = [1.02, 1.04]
    ways = {p: dict.fromkeys(("read early", "Attention operator of opset 23"), way) for p in ("fp32", "int8")}
    size = named("parameters macs median_ms lower_ms upper_ms predicted_ms", 10**6, 10**8, 2.0, 1.9, 2.1, 2.1)
    sizes = [{"name": f"size {i}", **size, "relative_error": 0.05} for i in range(14)]
    errors = {"median_relative_error": 0.052, "max_relative_error": 0.2, "target_median_relative_error": 0.1}
    errors |= {"profile_seconds": 60.0, "rows": sizes}
    return {
        "vit_base_scores": scores | {"command": "python benchmarks/pruning/vit_base_scores.py --images 64 --seed 0"},
        "cut_vit_base": made_by("pruning/cut_vit_base") | {"num_sub_models": 10, "rows": cuts},
        "vit_base_onnx": made_by("speed/vit_base_onnx") | onnx,
        "vit_base_operators": made_by("speed/vit_base_operators")
        | {"ways": ways, "shallow": {"layers": 4, "ways": ways}},
        "latency_prediction": made_by("planning/latency_prediction") | errors,
    }


def hostile_visitor_sample():
    """Figures are invented here too."""
    found = {"alone": named("answers failed p50_ms p95_ms max_ms", 300, 0, 60.0, 90.0, 120.0)}
    found["beside"] = named("answers failed p50_ms p95_ms max_ms", 280, 0, 70.0, 300.0, 900.0)
    return {"hostile_visitor": made_by("space/hostile_visitor") | found}


def hostile_samples():
    """Figures are invented here too."""
    reached = {"honest_p95_over_without": 1.2, "honest_failed": 0, "memory_end_over_start": 1.01, "ready_untrue": 0}
    load = {"reached": {name: {"found": found} for name, found in reached.items()}}
    load["tasks"] = {name: {"honest_with": {"p95_ms": 9.0}} for name in ("image", "audio", "text")}
    cost = {"inputs": {name: {"cost_p50_ms": 0.8} for name in ("image", "sound", "text")}}
    return {
        "hostile_load": made_by("runtime/hostile_load") | load,
        "isolation_cost": made_by("runtime/isolation_cost") | cost,
    }


def collaboration_sample():
    """Invented figures of two strategies and their rivals."""
    found = {"difference": 1.5, "low": 0.5, "high": 2.5}

    def row(accuracy, share, absences=3, epochs=None):
        against = {f"against_{name}": [found] * absences for name in ("replicas", "all_passes")}
        sizes = {"parameters_per_sub_model": [10], "times_smaller_than_teacher": 14.5, "epochs": epochs}
        return {"accuracy": [accuracy] * 3, "share_of_gap": share, "joint_epochs": epochs, **against, **sizes}

    rows = {"replicas": row(0.7, 0.0, 1, 12), "generalists": row(0.78, 0.75, epochs=12), "teacher": row(0.8, 1.2, 1)}
    rows |= {"plain, N times the size": row(0.8, 1.0, 1), "plain, all passes": row(0.72, 0.2, 1)}
    figures = named("num_sub_models num_test_items gap_points regret_points minutes", 5, 500, 10.0, 0.0, 3.0)
    seed = {"seed": 0, "rows": rows, "chosen": "generalists", "best": "generalists", **figures}
    means = {name: {"accuracy": each["accuracy"], "share_of_gap": each["share_of_gap"]} for name, each in rows.items()}
    summary = {"rows": means, **named("gap_points regret_points_mean regret_points_worst", 10.0, 0.0, 0.0)}
    content = {"recipe": "trec6_small", "tries": ["generalists"], "summary": summary, "seeds": [seed]}
    return {"collaboration_trec6_small": made_by("trips/collaboration", "trec6_small") | content}


def made_by(script, *places):
    return {"command": " ".join(["python", f"benchmarks/{script}.py", *places])}


def torch_pruning_sample():
    row = named("parameters seconds memory_mib retraining_seconds", 1000, 1.0, 3.0, 9.0)
    row |= {"before": splits(0.5), "after": splits(0.9)}
    methods = ("edvit_hf hybrid", "torch-pruning taylor")
    rows = [{"method": m, "class_group": group, **row} for group in (None, [4, 6], [2, 7]) for m in methods]
    found = {"torch_pruning": "1.6.1", "settings": {"keep_heads": 2, "epochs": 4}, "rows": rows}
    return made_by("pruning/torch_pruning_comparison", "TEACHER_DIR") | found


def pruning_samples(script):
    """Their summaries are what the scripts themselves make of rows."""
    draw = random.Random(0).random
    kinds = product(("whole", "thin", "merged"), ("3/4", "1/2", "1/4"), (False, True))
    cells = [named("attention keep compensated validation test", *key, draw(), draw()) for key in kinds]
    row = {"class_group": [4, 6], "score_seconds": 1.0, "teacher_accuracy": splits(0.99), "cells": cells}
    rows = [{"teacher": teacher, "method": method, **row} for teacher in (0, 1) for method in METHODS]
    accuracy = script("pruning.prune_accuracy")
    after = made_by("pruning/prune_accuracy", "TEACHER_DIR_0") | {"rows": rows, "summary": accuracy.summarise(rows)}
    after |= {"settings": {"num_teachers": 2, "num_groups": 1}, "winners": accuracy.winners(after["summary"])}
    figures = {
        f"{axis}_{name}": 0.5 + draw() / 2
        for axis in ("residual", "heads", "attention", "ffn")
        for name in ("tau", "tau_pooled", "tau_median", "overlap")
    }
    groups = [
        {"class_group": group, "seconds": dict.fromkeys(METHODS, 1.5), **dict.fromkeys(METHODS[1:], figures)}
        for group in ([4, 6], [2, 7])
    ]
    agreement = made_by("pruning/importance_agreement", "TEACHER_DIR") | {"samples_per_class": 16, "groups": groups}
    agreement["summary"] = script("pruning.importance_agreement").summary(groups, METHODS[1:])
    runs = [
        {"method": method, "seed": seed, "accuracy": splits(0.9 + seed / 100 + shift), "seconds": {"prune": 2.0}}
        for method, shift in (("kl", 0), ("fisher", 0.005), ("hybrid", -0.02))
        for seed in (0, 1, 2)
    ]
    distilled = made_by("pruning/importance_distilled", "WORK_DIR...") | {"seeds": [0, 1, 2], "rows": runs}
    distilled |= {"reduced": REDUCED, "summary": script("pruning.importance_distilled").summary(runs)}
    cell = {"training_seed": 0, "class_groups": [[0, 1], [2, 3]], "within": 0.25, "accuracy": splits(0.7)}
    names = ("balanced 0", "balanced 1", "similarity group", "similarity separate")
    cells = [{"split": name, "strategy": name.rstrip(" 01"), **cell} for name in names]
    split = made_by("trips/split_strategies", "WORK_DIR") | {"reduced": REDUCED, "rows": cells}
    split |= {"teacher": {"accuracy": splits(0.8)}, "winner_on_validation": "similarity group"}
    split["summary"] = script("trips.split_strategies").summary(cells)
    return {
        **{f"prune_accuracy_{recipe}": after for recipe in ("mnist_small", "cifar10_small")},
        **{f"importance_agreement_{recipe}": agreement for recipe in ("digits", "mnist_small", "cifar10_small")},
        "importance_distilled_mnist_small": distilled,
        "split_strategies_cifar10_small": split,
        "torch_pruning_mnist_small": torch_pruning_sample(),
    }


@pytest.fixture(scope="module")
def script():
    return benchmark


@pytest.fixture(scope="module")
def samples(script):
    """One file of every kind: committed ones where there are some, invented ones of the same form elsewhere."""
    found = {name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in COMMITTED}
    earlier = (ROOT / "benchmarks/results/earlier/mnist_small_frozen.json").read_text()
    found["cifar10_small"] = found["mnist_small"] = json.loads(earlier)
    command = "python benchmarks/planning/planner_fleets.py --num-fleets 4"
    planner = {"command": command, **script("planning.planner_fleets").measure(4, 0)}
    own = {**vit_base_samples(), **pruning_samples(script), **hostile_visitor_sample(), **hostile_samples()}
    own |= collaboration_sample()
    own["planner_fleets"] = planner
    return found | {name: {**HEAD, **data} for name, data in own.items()}


@pytest.fixture
def written(script, samples, tmp_path, monkeypatch):
    """Run the report on some files; returns what docs/results.md and REPORT.md then say."""
    folder, speed, scaling = tmp_path / "results", tmp_path / "docs/guides/speed.md", tmp_path / "docs/scaling.md"
    for place in (folder, speed.parent, tmp_path / "benchmarks"):
        place.mkdir(parents=True)
    for page in (speed, scaling):
        page.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")

    def run(found=samples, *options):
        for name, data in found.items():
            (folder / f"{name}.json").write_text(json.dumps(data))
        arguments = ["--results-dir", str(folder), "--root", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["write.py", *arguments, *options])
        script("report.write").main()
        return (tmp_path / "docs/results.md").read_text(), (tmp_path / "benchmarks/REPORT.md").read_text()

    return run


def rendered(script, found, *, full):
    """The report of these results, without any file."""

    class Given(script("report.results").Results):
        def get(self, name):
            return found.get(name)

        def starting_with(self, prefix):
            return {name.removeprefix(prefix): data for name, data in found.items() if name.startswith(prefix)}

    return script("report.write").measured(Given(Path()), full=full)


def paths_in(data, path=()):
    """Every key at every depth; of a list its first entry stands for all."""
    if isinstance(data, list):
        yield from paths_in(data[0], (*path, 0)) if data else ()
    elif isinstance(data, dict):
        for key, value in data.items():
            yield (*path, key)
            yield from paths_in(value, (*path, key))


def test_every_kind_of_result_is_shown_in_both_files_and_the_short_one_stays_readable(written, samples, script):
    short, full = written()
    assert short.startswith("# Measured results\n\nEvery figure")
    assert short.split("\n\n")[2].startswith("**digits")
    for name, data in samples.items():
        command = f"`{script('report.results').command(data)}`"
        assert f"`{name}.json`" in short or command in short, name
        assert f"results/{name}.json" in full, name
        assert command in full, name
    assert short.count("\n") <= 157
    assert "\n\n\n" not in short + full
    titles = ["**digits", "**MNIST", "**CIFAR", "**Exported", "**Pruning", "**Splitting", "**Planning", "**Start-up"]
    places = [short.index(title) for title in titles]
    assert places == sorted(places)
    assert "commit 012345678+changes" in short
    assert "1972 to 2271 s in the stages" in short


def test_measured_figures_stand_beside_their_targets(written):
    short, _ = written()
    for text in (
        "64 images of 224 px: 17.1 forward passes over the same images (target ≤ 40), 1.50 GiB (target ≤ 8)",
        "1,914 times as much (target ≥ 1,000)",
        "keeping 2, 6 of 12 heads, every attention kind: at most 4.6 s (target ≤ 10) and 0.59 GiB above the teacher",
        "14 sizes (target ≥ 8): median error 5.2 % (target ≤ 10 %), largest 20.0 %",
        "21.5 times faster (target ≥ 20), 29.1 times fewer MACs; of the time beyond that share go to: moves 50 %",
        "avx512_vnni): 14.4 times faster (target ≥ 10); the int8 sub-model against the fp32 one 1.75 times (target",
        "against the int8 sub-model: 55.6 times, of which the engine alone 1.75",
        "1.070 times faster in fp32, 1.070 in int8; of 4 layers 1.070 and 1.070. Attention as one operator on top of "
        "it (opset 23): 1.031 and 1.031",
        "4 random fleets of 2 to 20 devices (target ≥ 200: missed)",
        "| `fisher` | 91.50 ± 1.00 | 90.50 ± 1.00 | +0.50 | +0.5 | 2 |",
        "| `hybrid` | 89.00 ± 1.00 | 88.00 ± 1.00 | -2.00 | -2.0: below | 2 |",
        "| torch-pruning taylor | 49.0 → 89.00 | 49.0 → 89.00 | 1.0 | 3 |",
        "| balanced | 2 | 25.0 | 70.00 ± 0.00 | 69.00 ± 0.00 |",
        "| similarity group | 1 | 25.0 | 70.00 | 69.00 |",
    ):
        assert text in short, text


@pytest.mark.parametrize(
    ("name", "keys", "value", "text"),
    [
        ("vit_base_scores", ("fisher_in_forwards",), 40.1, "40.1 forward passes over the same images (target ≤ 40: "),
        ("vit_base_scores", ("fisher_peak_memory_mib",), 9000, "8.79 GiB (target ≤ 8: missed)"),
        ("vit_base_scores", ("exact_over_fisher",), 999, "999 times as much (target ≥ 1,000: missed)"),
        ("cut_vit_base", ("rows", 0, "seconds"), 10.5, "10.5 s (target ≤ 10: missed)"),
        ("cut_vit_base", ("rows", 5, "peak_mib_above_teacher"), 4096, "4.00 GiB above the teacher (target ≤ 3: miss"),
        ("latency_prediction", ("median_relative_error",), 0.12, "12.0 % (target ≤ 10 %: missed)"),
        ("vit_base_onnx", ("latency_ratio",), 19.9, "19.9 times faster (target ≥ 20: missed)"),
        ("vit_base_onnx", ("int8", "latency_ratio"), 9.9, "9.9 times faster (target ≥ 10: missed)"),
        ("vit_base_onnx", ("int8_against_fp32", "sub_model", "ratio"), 1.2, "1.20 times (target ≥ 1.3: missed)"),
        ("planner_fleets", ("summary", "num_exact_worse_than_greedy"), 1, "greedy on 1 (target 0: missed)"),
        ("planner_fleets", ("summary", "num_broken_budgets"), 2, "arithmetic 2 (target 0: missed)"),
        ("planner_fleets", ("summary", "max_seconds"), 1.5, "1.50 s a plan (target ≤ 1: missed)"),
        ("runtime_local", ("device", "resident_mib"), 91.0, "91 MiB resident (target ≤ 90: missed)"),
        ("runtime_local", ("schedules_busy", "runtime_over_best"), 1.2, "one core busy 1.20 (target ≤ 1.1: missed)"),
        ("runtime_faults", ("simulated", "beyond_deadline"), 1, "clock 1 beyond it (target 0: missed)"),
        ("fleet_faults", ("campaign", "requests_beyond"), 7, "7 ended more than 10 ms after it (target 0: missed)"),
        ("runtime_faults", ("real", "wrong_answers"), {"version": 2}, "features fused: 2 (target 0: missed)"),
        ("serve_load", ("overload", "accepted_p95_over_unloaded"), 2.5, "ratio 2.50 (target ≤ 2: missed)"),
        ("hostile_visitor", ("beside", "max_ms"), 2400, "2400 at most (target ≤ 2,000 ms: missed)"),
        ("hostile_visitor", ("beside", "failed"), 3, "3 of 280 failed (target 0: missed)"),
        (
            "hostile_load",
            ("reached", "honest_p95_over_without", "found"),
            1.7,
            "1.70 times that without (target ≤ 1.5: missed)",
        ),
        ("hostile_load", ("reached", "ready_untrue", "found"), 2, "untrue 2 times"),
        (
            "isolation_cost",
            ("inputs", "image", "cost_p50_ms"),
            2.4,
            "2.40 ms more than in the server's own (target ≤ 2 ms",
        ),
        ("space_start", ("median", "first_answer_s"), 7.0, "7.0 s to the first answer (target ≤ 6 s: missed)"),
    ],
)
def test_a_missed_target_is_called_missed(script, samples, name, keys, value, text):
    data = copy.deepcopy(samples[name])
    place = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    for full in (False, True):
        assert text not in rendered(script, {name: samples[name]}, full=full)
        assert text in rendered(script, {name: data}, full=full)


def test_whatever_a_file_lacks_is_not_measured_and_nothing_fails(script, samples):
    changed = 0
    for name in samples.keys() - {"cifar10_small", "prune_accuracy_cifar10_small", "importance_agreement_mnist_small"}:
        before = [rendered(script, {name: samples[name]}, full=full) for full in (False, True)]
        for path in paths_in(samples[name]):
            other = copy.deepcopy(samples[name])
            *above, last = path
            place = reduce(getitem, above, other)
            for lacks in (lambda at, key: at.update({key: None}), dict.pop):
                lacks(place, last)
                after = [rendered(script, {name: other}, full=full) for full in (False, True)]
                changed += after != before
                assert "None" not in after[0] + after[1], (name, path)
    assert changed > 150


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("vit_base_scores", "fisher_in_forwards"),
        ("vit_base_onnx", "latency_ratio"),
        ("latency_prediction", "median_relative_error"),
        ("planner_fleets", "summary"),
    ],
)
def test_a_figure_that_is_absent_reads_not_measured(script, samples, name, key):
    for full in (False, True):
        assert "not measured" not in rendered(script, {name: samples[name]}, full=False)
        without = {k: v for k, v in samples[name].items() if k != key}
        assert "not measured" in rendered(script, {name: without}, full=full)


def test_older_agreement_files_without_attention_dimensions_are_shown(script, samples):
    older = copy.deepcopy(samples["importance_agreement_digits"])
    for figures in older["summary"].values():
        for key in [key for key in figures if key.startswith("attention")]:
            del figures[key]
    lines = rendered(script, {"importance_agreement_digits": older}, full=False).splitlines()
    row = next(line for line in lines if line.startswith("| digits"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[0] == "digits (2 groups)"
    assert cells[3] == "not measured"
    assert all(re.fullmatch(r"[01]\.\d\d / [01]\.\d\d / [01]\.\d\d", cells[i]) for i in (1, 2, 4))


def test_without_results_there_is_no_section(script, tmp_path):
    assert script("report.write").measured(script("report.results").Results(tmp_path), full=True).strip() == ""


@pytest.mark.parametrize("old", ["benchmarks/grid.py", "benchmarks/speed/grid.py", "benchmarks/trips/grid.py"])
def test_a_command_names_its_script_where_it_stands_now(script, old):
    command = script("report.results").command
    assert command({"command": f"python {old} RECIPE --seeds 0"}) == "python benchmarks/trips/grid.py RECIPE --seeds 0"
    assert command({"command": "python benchmarks/gone.py"}) == "python benchmarks/gone.py"
    assert command({}) == "unknown"


def test_the_page_on_speed_keeps_what_stands_around_its_tables(written, tmp_path):
    written()
    page = (tmp_path / "docs/guides/speed.md").read_text()
    assert page.startswith("before\n<!-- measured: begin -->\n### Ratios")
    assert page.endswith("<!-- measured: end -->\nafter\n")


def test_check_passes_until_a_result_changes_and_names_the_files(written, samples):
    written()
    with pytest.raises(SystemExit) as passed:
        written({}, "--check")
    assert passed.value.code == 0
    with pytest.raises(SystemExit, match=r"REPORT.md and docs/results.md and docs/guides/speed.md differ"):
        written({"vit_base_onnx": {**samples["vit_base_onnx"], "latency_ratio": 25.0}}, "--check")


def test_a_page_without_markers_is_refused(script):
    with pytest.raises(SystemExit, match="put both markers back"):
        script("report.write").with_block("no markers", "tables\n")


def test_the_invented_samples_have_the_keys_that_the_scripts_write(samples):
    for name in (*vit_base_samples(), "torch_pruning_mnist_small"):
        file = "torch_pruning_comparison" if name.startswith("torch_pruning") else name
        script = next(BENCHMARKS.rglob(f"{file}.py"))
        code = "".join(path.read_text() for path in (script, BENCHMARKS / "harness.py", TIMING))
        paths = [path for path in paths_in(samples[name]) if path[0] != "environment"]
        for key in {key for path in paths for key in path if isinstance(key, str)}:
            assert key in code, (name, key)


def test_strategies_stand_beside_their_rivals_with_the_share_of_the_gap_and_the_goal(written):
    text, full = written()
    assert "| TREC, 6 question types | generalists | 5 | 1 | 70.0 | 80.0 | 10.0 | 78.0 | 78.0 | 78.0 |" in text
    assert "75 (target ≥ 80 %: missed) | generalists |" in text
    assert "0.00 points below the best in hindsight on average (target ≤ 0.5), 0.00 at worst (target ≤ 1.5)" in text
    row = next(line for line in full.splitlines() if line.startswith("| generalists |"))
    assert "| 75 | +1.5 [+0.5, +2.5] / +1.5 [+0.5, +2.5] / +1.5 [+0.5, +2.5] |" in row
    assert row.endswith("| 12 (12) |")
