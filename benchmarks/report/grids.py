# SPDX-License-Identifier: Apache-2.0
"""Write the tables of recipes that were measured for several numbers of sub-models and seeds."""

import re
from typing import Any

from report.figures import figure, machine, points, seeds_text, spread, table, variants_of
from report.results import NAMES, at, command, commit, each, reduce
from report.rivals import LARGE, PLAIN, named, rivals

MARGIN = 0.005  # half a point
COLUMNS = " | accuracy % | macro-F1 % | points to the teacher | parameters per device | times smaller | "
COLUMNS += "KiB per device | MMACs per device"
COPIES = ("plain, all passes", "copies", "copies, passes per device")
RIVALS = ("small CNN", "TF-IDF + linear, per-device size")
SHARED = ("teacher", PLAIN, "small CNN", "TF-IDF + linear, per-device size", "TF-IDF + linear")


def grid(name: str, data: Any, full: bool) -> list[str]:
    """One recipe: what does not change with the number of sub-models once, the rest for each number."""
    cells = data["cells"]
    own = data["own_num_sub_models"]
    counts = sorted({cell["num_sub_models"] for cell in cells})
    of_own = [cell for cell in cells if cell["num_sub_models"] == (own if own in counts else counts[-1])]
    seeds = sorted({cell["seed"] for cell in cells})
    lines = [row(shared, of_own) for shared in SHARED[:1]]
    for count in counts:
        chosen = [cell for cell in cells if cell["num_sub_models"] == count]
        lines.append(row("ensemble", chosen, f"ensemble of {count}"))
    for count in counts:
        chosen = [cell for cell in cells if cell["num_sub_models"] == count]
        large = each([named(cell, LARGE) for cell in chosen], "name")
        lines.append(row(LARGE, chosen, f"{large[0]} of {count}" if large else None))
    for rival in COPIES:
        for count in counts:
            lines.append(row(rival, [c for c in cells if c["num_sub_models"] == count], f"{rival} of {count}"))
    lines += [row(shared, of_own) for shared in SHARED[1:]]
    items = at(of_own[0], "num_test_items")
    return [
        f"**{NAMES.get(name, name)}**, {figure(items)} test items, {seeds_text(seeds)}",
        "",
        *table(COLUMNS, [line for line in lines if line]),
        "",
        *verdicts(cells, counts),
        *rivals(cells, list(counts)),
        *effort(data, of_own),
        *absent(cells, counts),
        *exported(of_own),
        cost(name, data, cells, full),
        "",
    ]


def overview(found: dict[str, Any]) -> list[str]:
    """All recipes in one table, a line for each number of sub-models: accuracies, mean and range over the seeds."""
    rows, sources = [], []
    for name, data in found.items():
        for count in sorted({cell["num_sub_models"] for cell in data["cells"]}):
            cells = [cell for cell in data["cells"] if cell["num_sub_models"] == count]
            small = [named(cell, rival) for cell in cells for rival in RIVALS]
            size = at(named(cells[0], "ensemble"), "parameters_per_device")
            absent_one = [cell["absent"][1]["accuracy_mean"] for cell in cells if len(cell["absent"]) > 1]
            names = ("teacher", "ensemble", PLAIN, LARGE)
            found_of = [[named(cell, one) for cell in cells] for one in names] + [[r for r in small if r]]
            accuracies = [spread(each(rows_of, "accuracy"), ".1f") for rows_of in found_of]
            smaller = figure(at(named(cells[0], "teacher"), "parameters") / size, ".1f")
            sizes = [smaller, figure(size * 4 / 1024, ",.0f"), spread(absent_one, ".1f")]
            rows.append([NAMES.get(name, name), str(count), str(len(cells)), *accuracies, *sizes])
        sources.append(f"`{name}.json` ({', '.join(dict.fromkeys(commit(cell) for cell in data['cells']))})")
    if not rows:
        return []
    head = "accuracy % (range over seeds) | sub-models | seeds | teacher | ensemble | plain, per-device size | "
    head += "plain, total size | small CNN or TF-IDF of per-device size | times smaller | KiB per device | "
    head += "ensemble, one absent"
    return [
        "**Images, sounds and texts, one recipe shape**",
        "",
        *table(head, rows),
        "",
        "Macro-F1, paired intervals, MACs and further rivals: [REPORT.md](../benchmarks/REPORT.md). Files: "
        f"{', '.join(sources)}.",
        "",
    ]


def row(name: str, cells: list[Any], shown: str | None = None) -> list[str]:
    """One line, mean and range over the seeds; empty where no cell has such a row."""
    rows = [found for cell in cells if (found := named(cell, name)) is not None]
    if not rows:
        return []
    teacher = reduce(max, each([named(cell, "teacher") for cell in cells], "parameters"))
    size, macs = at(rows[0], "parameters_per_device"), at(rows[0], "macs_per_device")
    return [
        shown or rows[0]["name"],
        spread(each(rows, "accuracy")),
        spread(each(rows, "macro_f1")),
        points(each(rows, "against_teacher")),
        figure(size, ","),
        figure(teacher / size if teacher and size else None, ".1f"),
        figure(size * 4 / 1024 if size else None, ",.0f"),
        figure(macs / 1e6 if macs is not None else None, ".2f"),
    ]


def verdicts(cells: list[Any], counts: list[int]) -> list[str]:
    """The two questions, answered by the paired intervals of each seed."""
    lines = []
    near, pays, asked = [], [], []
    for count in counts:
        chosen = [cell for cell in cells if cell["num_sub_models"] == count]
        ensembles = [named(cell, "ensemble") for cell in chosen]
        is_near = sum(near_teacher(ensemble["against_teacher"]) for ensemble in ensembles)
        near.append(f"{count}: {is_near} of {len(chosen)}")
        plain = [named(cell, PLAIN) for cell in chosen]
        short = [p for p in plain if p and p["against_teacher"]["difference"] <= -0.03]
        asked.append(len(short))
        wins = sum(p["against_ensemble"]["high"] < 0 for p in plain if p)
        loses = sum(p["against_ensemble"]["low"] > 0 for p in plain if p)
        pays.append(f"{count}: better {wins}, worse {loses}, neither {len(chosen) - wins - loses}")
    lines.append(
        "Ensemble at most max(0.5 point, its one-sided 95 % interval) below the teacher, in so many seeds, by number "
        f"of sub-models: {'; '.join(near)}."
    )
    gain = "nowhere three points below the teacher: there is little to gain."
    if any(asked):
        gain = f"three points or more below the teacher in {sum(asked)} of {len(cells)} cases."
    lines.append(
        f"Ensemble against the plain model of one device's size (95 % interval excludes zero): {'; '.join(pays)}. The "
        f"plain model is {gain}"
    )
    return [*lines, ""]


def effort(data: Any, cells: list[Any]) -> list[str]:
    """How long both sides trained: passes over the training items."""
    passes = at(data, "item_passes_of_sub_models")
    plain = named(cells[0], PLAIN)
    if not passes or not plain:
        return []
    epochs = re.search(r"(\d+) epochs", plain["note"])
    shared = ", ".join(f"{count}: {figure(value, '.0f')}" for count, value in passes.items())
    return [
        f"Passes over the training items of all sub-models together, by their number: {shared}; of the plain model of "
        f"one device's size, whatever their number: {epochs.group(1) if epochs else 'not recorded'}.",
        "",
    ]


def near_teacher(against: dict[str, float]) -> bool:
    """Whether the deficit is at most half a point, or no more than its one-sided interval allows."""
    difference = against["difference"]
    return -difference <= max(MARGIN, difference - against["low_one_sided"])


def absent(cells: list[Any], counts: list[int]) -> list[str]:
    """Mean accuracy with 0, 1, 2 sub-models absent, for each number of them."""
    lines = []
    for count in counts:
        chosen = [cell for cell in cells if cell["num_sub_models"] == count]
        columns = list(zip(*(at(cell, "absent") or [] for cell in chosen), strict=False))[:3]
        lines.append(f"{count}: " + ", ".join(f"{spread(each(column, 'accuracy_mean'))} %" for column in columns))
    return [f"With 0, 1, 2 sub-models absent, of {'; of '.join(lines)}.", ""]


def exported(cells: list[Any]) -> list[str]:
    """Accuracy of the exported variants of the recipe's own number of sub-models."""
    exports = each(cells, "export")
    if not exports:
        return []
    variants, parity = variants_of(exports)
    return [f"On onnxruntime: {variants}; fp32 at most {parity} of the largest logit away from torch.", ""]


def cost(name: str, data: Any, cells: list[Any], full: bool) -> str:
    """Seconds, memory, machine, command and commits."""
    seconds = sum(each(cells, "wall_seconds"))
    memory = figure(reduce(max, each(cells, "peak_memory_mib")), ".0f", " MiB")
    commits = ", ".join(dict.fromkeys(commit(cell) for cell in cells))
    place = f" File `results/{name}.json`." if full else ""
    return (
        f"Cost: {seconds / 60:.0f} minutes for all of it, one thread beside other work, at most {memory}, on "
        f"{machine(cells[0])}. Command: `{command(data)}`; {commits}.{place}"
    )
