# SPDX-License-Identifier: Apache-2.0
"""Write what a text teacher loses with a part of its vocabulary."""

import re
from typing import Any

from report.figures import ABSENT, figure, finding, goal, percent, table
from report.results import Results, at

GOAL_POINTS, GOAL_SHARE = 0.3, 0.25


def vocabularies(results: Results, full: bool) -> list[str]:
    """One line per recipe: the teacher with parts of its vocabulary, not retrained."""
    lines = []
    for name, data in results.starting_with("vocabulary_").items():
        rows: dict[str, Any] = at(data, "rows") or {}
        whole = at(rows, "whole", "accuracy", "test")
        cells, said, within = [], [], []
        for keep, row in rows.items():
            lost = None if whole is None else 100 * (whole - (at(row, "accuracy", "test") or 0.0))
            share, items = at(row, "embedding_share"), at(row, "identity", "num_items")
            same = (
                "" if items is None else f"{figure(at(row, 'identity', 'largest_difference'), '.1g')} on {items} items"
            )
            counts = [figure(at(row, key), ",") for key in ("pieces", "parameters")]
            accuracies = [percent(at(row, "accuracy", split)) for split in ("validation", "test")]
            times = figure(at(row, "times_as_many_tokens", "test"), ".2f") if keep != "whole" else "1"
            cells.append([keep, *counts, *accuracies, figure(lost, ".1f"), times, same])
            if keep != "whole":
                said.append(f"{figure(at(row, 'pieces'), ',')} pieces {figure(lost, '.1f')}")
                within += [lost] if lost is not None and share is not None and share <= GOAL_SHARE else []
        best = min(within, default=None)
        text = (
            f"points that the teacher of {name.removeprefix('retrained_')} loses on test with a part of its "
            f"{figure(at(rows, 'whole', 'pieces'), ',')} pieces, {_how(name, data)}: {', '.join(said) or ABSENT}; "
            f"{figure(best, '.1f')} at a quarter of the embedding or less {goal(best, GOAL_POINTS, '≤')}"
        )
        head = "vocabulary | pieces | parameters | validation % | test % | points lost | tokens of a text, times"
        head += " | largest difference of a logit on texts of kept pieces"
        lines += finding(f"vocabulary_{name}", data, text, table(head, cells), full)
    return lines


def _how(name: str, data: Any) -> str:
    if not name.startswith("retrained_"):
        return "not retrained"
    epochs = re.search(r"--retrain-epochs (\d+)", at(data, "command") or "")
    return f"both retrained for {epochs.group(1) if epochs else ABSENT} epoch(s) on the teacher's answers"
