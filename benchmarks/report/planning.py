# SPDX-License-Identifier: Apache-2.0
"""Write the sections on splitting, and on planning and latency: plans for fleets, latency predicted and measured."""

from typing import Any

from report.figures import ABSENT, deviation, figure, finding, goal, percent, section, source, table
from report.pruning import reduced
from report.results import Results, at, each, of_file, reduce
from report.scaling import simulated
from report.speed import engines, operators


def splitting(results: Results, full: bool) -> list[str]:
    """Balanced splits next to those by the teacher's confusions."""
    lines = []
    for name, data in results.starting_with("split_strategies_").items():
        head, rows = "split | runs | confusions within a group % | validation % | test %", []
        for strategy, entry in (at(data, "summary") or {}).items():
            cells = at(entry, "cells")
            deviations = {s: at(entry, f"{s}_std") if (cells or 0) > 1 else None for s in ("validation", "test")}
            texts = [f"{percent(at(entry, s))}{deviation(sd)}" for s, sd in deviations.items()]
            rows.append([strategy, figure(cells), percent(at(entry, "within"), 1), *texts])
        teacher = ", ".join(f"{s} {percent(at(data, 'teacher', 'accuracy', s))} %" for s in ("validation", "test"))
        best = at(data, "winner_on_validation") or ABSENT
        lines += [
            f"{name}, {reduced(data)} (teacher: {teacher}); winner on validation: {best} "
            f"({source(f'split_strategies_{name}', data, full)}):",
            "",
            *table(head, rows),
            "",
        ]
        if full:
            lines += [*splitting_rows(at(data, "rows") or []), ""]
    return section("Splitting", lines, full)


def splitting_rows(rows: list[Any]) -> list[str]:
    """Every run."""
    texts = []
    for row in rows:
        groups = "; ".join(",".join(map(str, group)) for group in at(row, "class_groups") or []) or ABSENT
        cells = [percent(at(row, "within"), 1), *(percent(at(row, "accuracy", s)) for s in ("validation", "test"))]
        texts.append([at(row, "split") or ABSENT, groups, figure(at(row, "training_seed")), *cells])
    head = "split | class groups | training seed | confusions within a group % | validation % | test %"
    return table(head, texts, num_texts=2)


@of_file("planner_fleets")
def planner(data: Any, full: bool) -> list[str]:
    """Exact and greedy placement on random fleets."""
    found = at(data, "summary")
    planned, worse, broken, seconds = (
        at(found, key) for key in ("num_planned", "num_exact_worse_than_greedy", "num_broken_budgets", "max_seconds")
    )
    fleets = len(at(data, "rows") or []) or None
    gain, proven = percent(at(found, "mean_reduction_where_faster"), 0), figure(at(found, "num_proven_optimal"))
    text = (
        f"planner on {figure(fleets)} random fleets of 2 to 20 devices {goal(fleets, 200, '≥')}, {figure(planned)} "
        f"feasible: exact placement worse than greedy on {figure(worse)} {goal(worse, 0, '=')}, faster on "
        f"{figure(at(found, 'num_exact_faster'))} (there by {gain} % on average), proven best on {proven}, largest gap "
        f"{percent(at(found, 'max_gap'), 1)} %; budgets broken by independent arithmetic {figure(broken)} "
        f"{goal(broken, 0, '=')}; at most {figure(seconds, '.2f')} s a plan {goal(seconds, 1, '≤')}; with `objective: "
        f"spread` fewer sub-models on the fullest device of {figure(at(found, 'num_less_on_one_device_with_spread'))} "
        f"fleets, {percent(at(found, 'median_slower_with_spread'), 1)} % slower in the median, at most "
        f"{percent(at(found, 'max_slower_with_spread'), 0)} %"
    )
    rows = [[key.removeprefix("num_").replace("_", " "), figure(value, "")] for key, value in (found or {}).items()]
    return finding("planner_fleets", data, text, table(["", ""], rows), full)


@of_file("latency_prediction")
def latency(data: Any, full: bool) -> list[str]:
    """Predicted against measured."""
    rows = at(data, "rows") or []
    error, limit = at(data, "median_relative_error"), at(data, "target_median_relative_error") or 0.1
    median = None if error is None else 100 * error
    text = (
        f"latency predicted after `edvit profile` ({figure(at(data, 'profile_seconds'), '.0f')} s) against measured, "
        f"onnxruntime, one thread, {len(rows)} sizes {goal(len(rows), 8, '≥')}: median error {figure(median, '.1f')} % "
        f"{goal(median, round(100 * limit), '≤', ' %')}, largest {percent(at(data, 'max_relative_error'), 1)} %"
    )
    cells = [
        [
            at(row, "name") or ABSENT,
            figure(at(row, "parameters"), ","),
            figure(at(row, "macs") and at(row, "macs") / 1e6, ",.1f"),
            *(figure(at(row, key), ",.2f") for key in ("median_ms", "lower_ms", "upper_ms", "predicted_ms")),
            percent(at(row, "relative_error"), 1, "+"),
        ]
        for row in rows
    ]
    head = " | parameters | MMACs | measured ms | lower quartile | upper quartile | predicted ms | error %"
    return finding("latency_prediction", data, text, table(head, cells), full)


@of_file("vit_base_onnx")
def onnx(data: Any, full: bool) -> list[str]:
    """One sub-model against ViT-Base, and what eats the difference to the ratio of the MACs."""
    ratio, shares = at(data, "latency_ratio"), at(data, "gap", "shares_of_excess") or {}
    largest = sorted(((v, part) for part, v in shares.items() if v is not None), reverse=True)[:3]
    eaters = ", ".join(f"{part} {percent(share, 0)} %" for share, part in largest) or ABSENT
    text = (
        f"one sub-model ({figure(at(data, 'keep_heads'))} of 12 heads) against ViT-Base, onnxruntime fp32, one "
        f"thread: {figure(ratio, '.1f')} times faster {goal(ratio, at(data, 'target_latency_ratio') or 20, '≥')}, "
        f"{figure(at(data, 'macs_ratio'), '.1f')} times fewer MACs; of the time beyond that share go to: {eaters}"
        + engines(data)
    )
    both = {"macs_ratio_of_parts": at(data, "macs_ratio_of_parts")}
    int8 = ["", "In int8:", "", *onnx_parts(both | at(data, "int8"))] if at(data, "int8") else []
    return finding("vit_base_onnx", data, text, [*onnx_parts(data), *int8], full)


def onnx_parts(data: Any) -> list[str]:
    """Time by part of both models."""
    models = ("teacher", "sub_model")
    parts = at(data, "teacher", "profile", "parts_ms") or at(data, "gap", "excess_ms") or {}
    medians = [figure(at(data, model, "median_ms"), ",.3f") for model in models]
    rows = [["whole model, not profiled", *medians, figure(at(data, "latency_ratio"), ".1f"), *[""] * 4]]
    for part in parts:
        whole, small = milliseconds = [at(data, model, "profile", "parts_ms", part) for model in models]
        cells = [part, *(figure(value, ",.3f") for value in milliseconds)]
        cells.append(figure(whole / small, ".1f") if whole is not None and small else "")
        speeds = [at(data, model, "profile", "gflops", part) for model in models]
        cells += ["" if speed is None else f"{speed:.0f}" for speed in speeds]
        cells.append(figure(at(data, "gap", "excess_ms", part), ".3f"))
        rows.append([*cells, percent(at(data, "gap", "shares_of_excess", part), 0)])
    ratios = ", ".join(
        f"{part} {figure(value, '.1f')}" for part, value in (at(data, "macs_ratio_of_parts") or {}).items()
    )
    rounds = each(at(data, "latency_ratios_of_rounds"))
    head = "part | ViT-Base ms | sub-model ms | ratio | ViT-Base GFLOP/s | sub-model GFLOP/s | excess ms | "
    return [
        *table(f"{head}share of the excess %", rows),
        "",
        f"Excess: the sub-model's time beyond ViT-Base's divided by the ratio of all MACs. Ratio of the MACs by part: "
        f"{ratios or ABSENT}. Ratios of the single rounds: {figure(reduce(min, rounds), '.1f')} to "
        f"{figure(reduce(max, rounds), '.1f')}.",
    ]


def planning(results: Results, full: bool) -> list[str]:
    """Plans, predictions, and what a sub-model gains."""
    lines = [line for part in (planner, latency, simulated, onnx, operators) for line in part(results, full)]
    return section("Planning and latency", lines, full)
