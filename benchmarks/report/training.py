# SPDX-License-Identifier: Apache-2.0
"""Write the sections on choices of training, smaller devices, the training loop, preprocessing, and ESC-10."""

from typing import Any

import numpy as np

from report.figures import deviation, figure, goal, percent, section, source, spread, table
from report.results import NAMES, Results, at, each, of_file, reduce


def training(results: Results, full: bool) -> list[str]:
    """Ablations, smaller devices, loop and preprocessing."""
    lines = [*ablations(results, full), *smaller_devices(results, full)]
    lines += section("The training loop", [*loop(results, full), *teacher_passes(results, full)], full)
    return [*lines, *section("Preprocessing", preprocessing(results, full), full), *folds(results, full)]


def ablations(results: Results, full: bool) -> list[str]:
    """One value changed at a time, behind one teacher."""
    lines: list[str] = []
    for name, data in results.starting_with("ablation_").items():
        rows = []
        for question, found in (at(data, "questions") or {}).items():
            if len(found["answers"]) < 2:
                continue  # nothing to compare yet
            for answer, row in found["answers"].items():
                wins = " (best)" if answer == found["winner_on_validation"] else ""
                shown = answer + (", as in the recipe" if row["is_recipe"] else "")
                middle = f"{percent(row['validation_mean'])}{wins}"
                ends = f"{percent(row['validation_min'])} to {percent(row['validation_max'])}"
                rows.append([question, shown, middle, ends, percent(row["test_mean"]), f"{row['minutes']:.1f}"])
        seeds = max((row["num_seeds"] for q in data["questions"].values() for row in q["answers"].values()), default=0)
        lines += [
            f"{NAMES.get(name, name)}: one value of the recipe changed at a time, {seeds} seeds of distillation and "
            f"fusion behind one teacher ({source(f'ablation_{name}', data, full)})",
            "",
            *table(["question", "answer", "validation %", "range", "test %", "minutes"], rows, num_texts=2),
            "",
        ]
    return section("What each choice is worth", lines, full)


def smaller_devices(results: Results, full: bool) -> list[str]:
    """Where splitting begins to pay: means over the seeds, the interval over all their test items together."""
    lines: list[str] = []
    for name, data in results.starting_with("smaller_devices_").items():
        rows = []
        for keep, count in sorted({(row["keep_heads"], row["num_sub_models"]) for row in data["rows"]}):
            own = [row for row in data["rows"] if (row["keep_heads"], row["num_sub_models"]) == (keep, count)]
            sizes = own[0]["parameters"]
            cells = [f"{keep} of the heads, {count} sub-models", str(len(own)), f"{sizes['sub_model']:,}"]
            cells.append(f"{sizes['teacher'] / sizes['sub_model']:.0f}")
            cells += [spread(each(own, "accuracy", kind)) for kind in ("teacher", "plain", "ensemble")]
            rows.append([*cells, pooled(own)])
        head = "kept | seeds | parameters per device | times smaller | teacher % | plain, per-device size % | "
        head += "ensemble % | ensemble - plain, points"
        where = source(f"smaller_devices_{name}", data, full)
        lines += [f"{NAMES.get(name, name)} ({where})", "", *table(head, rows), ""]
    return section("When does splitting pay? Smaller devices", lines, full)


def pooled(rows: list[Any]) -> str:
    """Difference in points with its 95 % interval: a bootstrap over the test items of all seeds together."""
    won, lost = (sum(row[key] for row in rows) for key in ("only_ensemble_right", "only_plain_right"))
    items = sum(row["ensemble_minus_plain"]["num_items"] for row in rows)
    drawn = np.random.default_rng(0).multinomial(items, [won / items, lost / items, 1 - (won + lost) / items], 2000)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / items, [0.025, 0.975])
    return f"{percent((won - lost) / items, sign='+')} [{percent(low, sign='+')}, {percent(high, sign='+')}]"


@of_file("loop_against_trainer")
def loop(data: Any, full: bool) -> list[str]:
    """Our loop against transformers' Trainer."""
    return [
        f"- samples/s of our loop over those of transformers' `Trainer`, {at(row, 'model')}, mixed precision "
        f"{at(row, 'mixed_precision')}: {figure(at(row, 'ratio'), '.2f')} {goal(at(row, 'ratio'), 0.97, '≥')} "
        f"({source('loop_against_trainer', data, full)})"
        for row in at(data, "rows") or []
    ]


def teacher_passes(results: Results, full: bool) -> list[str]:
    """N sub-models do not cost N teacher passes."""
    data = results.get("teacher_passes")
    lines = []
    for row in at(data, "rows") or []:
        parts = ", ".join(f"{key} {figure(value, '.2f')}" for key, value in (at(row, "times_stored") or {}).items())
        lines.append(
            f"- {at(row, 'num_sub_models')} sub-models, seconds of an epoch relative to `kd` from stored outputs: "
            f"{parts} "
            f"({source('teacher_passes', data, full)})"
        )
    return lines


@of_file("preprocessing_share")
def preprocessing(data: Any, full: bool) -> list[str]:
    """Share of a training step that makes the batch."""
    kinds = ("teacher", "sub-model")
    rows = [
        [
            at(row, "recipe"),
            *(percent(at(row, k, "share"), 1) for k in kinds),
            figure(at(row, "decoding_seconds"), ".1f"),
        ]
        for row in at(data, "rows") or []
    ]
    worst = reduce(max, each([at(row, kind) for row in data["rows"] for kind in kinds], "share"))
    head = "recipe | % of a teacher's step | % of a sub-model's step | s to decode the data once"
    limit = goal(None if worst is None else 100 * worst, 10, "≤", " %")
    return [
        *table(head, rows),
        "",
        f"Largest share {percent(worst, 1)} % {limit}; {source('preprocessing_share', data, full)}.",
    ]


@of_file("esc10_folds")
def folds(data: Any, full: bool) -> list[str]:
    """ESC-10 over its five folds."""
    rows = []
    for row in at(data, "summary") or []:
        accuracy, size = at(row, "accuracy"), figure(row["parameters_per_device"], ",")
        cells = [row["name"], f"{percent(at(accuracy, 'mean'))}{deviation(at(accuracy, 'sd'))}"]
        cells += [percent(at(row, "macro_f1", "mean")), size, ", ".join(at(accuracy, "by_fold") or {})]
        rows.append(cells)
    head = " | accuracy %, mean and deviation over folds | macro-F1 % | parameters per device | folds measured"
    return section("ESC-10", [*table(head, rows), "", f"({source('esc10_folds', data, full)})"], full)
