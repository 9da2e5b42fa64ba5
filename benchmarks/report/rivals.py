# SPDX-License-Identifier: Apache-2.0
"""Write what stands beside an ensemble with devices absent, the gap, and what to deploy; nothing of earlier results."""

from collections import Counter
from typing import Any

from report.figures import ABSENT, spread, table
from report.results import NAMES, at, each

PLAIN, LARGE = "replicas", "plain, N times the size"
EARLIER = {PLAIN: "plain model, per-device size", LARGE: "plain model, total size"}  # names in results of schema 1
NO_ANSWER = "no answer"
MOST_ABSENT = 2
RULE = (
    "Deployed is something else than the plain model on every device only where its accuracy, averaged over 0, 1 and 2 "
    "absent, is higher by a paired interval that excludes zero; the intervals of all compared hold together with 95 %."
)


def named(cell: Any, name: str) -> Any:
    """The row of this name, or that results of an earlier version call otherwise, or None."""
    rows = {row["name"]: row for row in at(cell, "rows") or []}
    return rows.get(name, rows.get(EARLIER.get(name, name)))


def has_rivals(cell: Any) -> bool:
    """Whether its rows state what is left with devices absent."""
    return any(at(row, "absent") for row in at(cell, "rows") or [])


def rivals(cells: list[Any], counts: list[int | None]) -> list[str]:
    """A table for each number of sub-models, mean and range over the seeds, and what to deploy."""
    lines: list[str] = []
    for count in counts:
        chosen = [cell for cell in cells if at(cell, "num_sub_models") == count and has_rivals(cell)]
        if chosen:
            lines += [*_rivals_table(chosen, count), "", *_gap_and_choice(chosen), ""]
    return lines


def _rivals_table(cells: list[Any], count: int | None) -> list[str]:
    names = list(dict.fromkeys(row["name"] for cell in cells for row in cell["rows"]))
    rows = []
    for name in names:
        found = [(cell, row) for cell in cells if (row := named(cell, name)) is not None]
        absent = [_absent([row for _, row in found], number) for number in range(MOST_ABSENT + 1)]
        shares = [share for cell, _ in found if (share := at(cell, "gap", "share", name)) is not None]
        passes = [spread(each([row for _, row in found], "passes", key), ",.0f", 1) for key in ("per_device", "total")]
        minutes = spread(each([row for _, row in found], "minutes"), ".1f", 1)
        rows.append([name, *absent, spread(shares, ".0f") if shares else "", *passes, minutes])
    devices = "" if count is None else f" of {count} sub-models"
    head = f"beside the ensemble{devices} | 0 absent % | 1 absent % | 2 absent % | of the gap % | "
    return table(head + "item passes of a device | of all | minutes", rows)


def _absent(rows: list[Any], num_absent: int) -> str:
    """Accuracy with so many devices absent: mean and range over the seeds."""
    entries = [entry for row in rows for entry in at(row, "absent") or [] if entry["num_absent"] == num_absent]
    if entries:
        return spread(each(entries, "accuracy"), ".1f")
    return NO_ANSWER if any(at(row, "absent") for row in rows) else ABSENT


def _gap_and_choice(cells: list[Any]) -> list[str]:
    """The gap in points, and what the rule chose in how many seeds."""
    points = each(cells, "gap", "points")
    gap = f"Gap between the two plain models: {spread(points, '.1f', 1)} points. " if points else ""
    chosen = Counter(each(cells, "choice", "what"))
    found = ", ".join(f"{what} ({number} of {len(cells)})" for what, number in chosen.most_common())
    return [f"{gap}Deploy: {found}. {RULE}" if found else f"{gap}What to deploy: {ABSENT}."]


def overview(found: dict[str, Any]) -> list[str]:
    """All recipes whose results state it, a line for each number of sub-models: the gap, shares, and what to deploy."""
    rows = []
    for name, data in found.items():
        cells_of = [cell for cell in at(data, "cells") or at(data, "runs") or [] if has_rivals(cell)]
        for count in sorted({len(at(cell, "class_groups") or []) for cell in cells_of}):
            cells = [cell for cell in cells_of if len(at(cell, "class_groups") or []) == count]
            ensembles = [named(cell, "ensemble") for cell in cells]
            accuracies = [_both(cells, one) for one in (PLAIN, LARGE, "copies")]
            absent = [_absent(ensembles, number) for number in range(MOST_ABSENT + 1)]
            shares = each(cells, "gap", "share", "ensemble")
            gap = spread(each(cells, "gap", "points"), ".1f", 1)
            deployed = Counter(each(cells, "choice", "what")).most_common(1)
            what = f"{deployed[0][0]} ({deployed[0][1]} of {len(cells)})" if deployed else ABSENT
            line = [NAMES.get(name, name), what, str(count), str(len(cells)), *accuracies, gap, *absent]
            rows.append([*line, spread(shares, ".0f") if shares else "gap too small"])
    if not rows:
        return []
    head = (
        "accuracy % (range over seeds) | deploy | sub-models | seeds | replicas | plain, N times the size | copies | "
    )
    head += "gap, points | ensemble, 0 absent | 1 absent | 2 absent | of the gap %"
    return ["**Whether collaboration pays**", "", *table(head, rows, 2), "", RULE, ""]


def _both(cells: list[Any], name: str) -> str:
    return spread(each([named(cell, name) for cell in cells], "accuracy"), ".1f")
