# SPDX-License-Identifier: Apache-2.0
"""Write the sections on whole trips, their exports and absent sub-models, and start-up times."""

from typing import Any

from report.figures import (
    ABSENT,
    figure,
    machine,
    percent,
    points,
    section,
    seeds_text,
    source,
    spread,
    table,
    variants_of,
)
from report.grids import grid, overview
from report.results import NAMES, Results, at, command, commit, each, reduce
from report.rivals import overview as overview_of_rivals
from report.rivals import rivals


def trips(results: Results, full: bool) -> list[str]:
    """Every recipe that has been through all stages."""
    lines: list[str] = []
    for name in NAMES:
        data = results.get(name)
        if at(data, "runs"):
            lines += trip(name, data, full)
        elif at(data, "cells") and full:
            lines += grid(name, data, full)
    if not full:
        lines += overview_of_rivals({name: data for name in NAMES if (data := results.get(name))})
        lines += overview({name: data for name in NAMES if at(data := results.get(name), "cells")})
    return ["## Trips", "", *lines] if full and lines else lines


def trip(name: str, data: Any, full: bool) -> list[str]:
    """One recipe: accuracy, difference to the teacher and size of every row."""
    runs = data["runs"]
    teacher = at((at(runs[0], "rows") or [None])[0], "parameters")
    rows = []
    for index, row in enumerate(at(runs[0], "rows") or []):
        values = [run["rows"][index] for run in runs if index < len(at(run, "rows") or [])]
        size, macs = at(row, "parameters_per_device"), at(row, "macs_per_device")
        rows.append(
            [
                at(row, "name") or "unnamed",
                spread(each(values, "accuracy")),
                points(each(values, "against_teacher")) or ("" if index == 0 else ABSENT),
                figure(size, ","),
                figure(teacher / size if teacher and size else None, ".1f"),
                figure(macs / 1e6 if macs is not None else None, ".2f"),
            ]
        )
    head = " | accuracy % | points to the teacher | parameters per device | times smaller | MMACs per device"
    return [
        f"**{NAMES.get(name, name)}**, {seeds_text(each(runs, 'seed'))}",
        "",
        *table(head, rows),
        "",
        *rivals(runs, [None]),
        f"Ensemble with 0, 1, 2 sub-models absent: {absent(runs)}.",
        f"Cost a seed: {cost(runs)}, on {machine(runs[0])}. {trip_source(name, data, full)}",
        "",
    ]


def trip_source(name: str, data: Any, full: bool) -> str:
    """Command and commits; the seeds of one file may have been run at several."""
    commits = ", ".join(dict.fromkeys(commit(run) for run in data["runs"]))
    place = f" File `results/{name}.json`." if full else ""
    return f"Command: `{command(data)}`; {commits}.{place}"


def absent(runs: list[Any]) -> str:
    """Mean accuracy over all choices of so many absent sub-models."""
    columns = zip(*(at(run, "absent") or [] for run in runs), strict=False)
    found = [spread(each(column, "accuracy_mean")) for column in list(columns)[:3]]
    return ", ".join(f"{text} %" for text in found) or ABSENT


def cost(runs: list[Any]) -> str:
    """Seconds and memory of one seed."""
    walls, totals = each(runs, "wall_seconds"), each(runs, "stage_seconds_total")
    memory = figure(reduce(max, each(runs, "peak_memory_mib")), ".0f", " MiB")
    if walls:
        return f"{max(walls):.0f} s wall, at most {memory}"
    if not totals:
        return f"time {ABSENT}, at most {memory}"
    ends = dict.fromkeys(f"{end:.0f}" for end in (min(totals), max(totals)))
    time = f"{' to '.join(ends)} s in the stages"
    if any(at(stage, "resumed") for run in runs for stage in (at(run, "stages") or {}).values()):
        time += " (of interrupted and resumed stages the last process alone)"
    return f"{time}, at most {memory}"


def exported(results: Results, full: bool) -> list[str]:
    """Accuracy and parity of the exported variants, then sub-model dropout."""
    lines = []
    for name in NAMES:
        data = results.get(name)
        exports = each(at(data, "runs"), "export")
        if not exports:
            continue
        variants, parity = variants_of(exports)
        text = f"fp32 against torch at most {parity} of the largest logit (`{name}.json`)"
        lines.append(f"- {name}: {variants or ABSENT}; {text}")
    return section("Exported ensembles on onnxruntime, sub-model dropout", lines + dropout(results, full), full)


def dropout(results: Results, full: bool) -> list[str]:
    """What dropping whole sub-models while training the fusion head buys."""
    lines = []
    for name, data in results.starting_with("sub_model_dropout_").items():
        values = (at(data, "mean") or {}).items()
        texts = [
            f"rate {rate}: {percent(at(m, 'all_present'))} % with all sub-models present, "
            f"{percent(at(m, 'one_absent_mean'))} % on average with one absent"
            for rate, m in values
        ]
        where = source(f"sub_model_dropout_{name}", data, full)
        what = "sub-model dropout (mean over the seeds of the head)"
        lines.append(f"- {name}, {what}, {'; '.join(texts) or ABSENT} ({where})")
    return lines


def start_up(results: Results, full: bool) -> list[str]:
    """Import and second-run times."""
    lines, imports = [], results.get("import_time")
    if imports is not None:
        texts = [
            f"`import {module}` {figure(at(row, 'median'), '.2f')} s "
            f"({figure(at(row, 'min'), '.2f')} to {figure(at(row, 'max'), '.2f')})"
            for module, row in (at(imports, "seconds") or {}).items()
        ]
        repeats = reduce(min, each((at(imports, "seconds") or {}).values(), "repeats"))
        lines.append(
            f"- {', '.join(texts) or ABSENT}; median (and range) of {figure(repeats)} fresh processes "
            f"({source('import_time', imports, full)})"
        )
    seconds = {name: each(at(results.get(name), "runs"), "second_run_seconds") for name in NAMES}
    texts = [f"{name} {spread(values, '.1f', 1)} s (`{name}.json`)" for name, values in seconds.items() if values]
    lines += [f"- second `edvit run`, everything up to date: {', '.join(texts)}"] if texts else []
    return section("Start-up", lines, full)
