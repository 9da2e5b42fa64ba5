# SPDX-License-Identifier: Apache-2.0
"""What a card says of the rivals: a table with devices absent, the gap, the rare classes, and what to deploy.

Comes in: the plain mapping of results.json, of any version: of what it does not state, nothing is said. The verdict is
the one that the evaluate stage wrote (`edvit_hf.evaluation.choice`); here it is only shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edvit_hf.card.markup import NOT_MEASURED, count, markdown_table, percent, plain
from edvit_hf.card.rows import MEANINGS, REPLICAS, absent_of, result_row, verdict
from edvit_hf.tasks import LEAST_GAP

NO_ANSWER = "no answer"


def most_absent(results: Mapping[str, Any]) -> int | None:
    """With how many devices absent the rows were measured at most; None of results that do not state it."""
    found = [entry["num_absent"] for row in results["rows"] for entry in row.get("absent") or []]
    return max(found, default=None)


def rivals_table(results: Mapping[str, Any]) -> str:
    """Every row with 0, 1 and 2 devices absent, its difference to the plain model, and its training; else empty."""
    last = most_absent(results)
    if last is None:
        return ""
    numbers = range(last + 1)
    absent = [f"{number} absent" for number in numbers]
    to_plain = f"to `{REPLICAS}`, {' / '.join(map(str, numbers))} absent"
    header = ["model", *absent, to_plain, "of the gap", "item passes of a device (all)", "minutes"]
    lines = []
    for row in results["rows"]:
        name = plain(row.get("name", NOT_MEASURED))
        lines.append(
            [
                f"**{name}**" if row.get("kind") == "ensemble" else name,
                *(accuracy_absent(row, number) for number in numbers),
                _to_plain(row),
                share_of_gap(results, str(row.get("name"))),
                passes(row),
                NOT_MEASURED if row.get("minutes") is None else f"{row['minutes']:.1f}",
            ]
        )
    return markdown_table(header, lines)


def accuracy_absent(row: Mapping[str, Any], num_absent: int) -> str:
    """Accuracy with so many devices absent; "no answer" of what stands on one machine."""
    if not row.get("absent"):
        return NOT_MEASURED
    found = absent_of(row, num_absent)
    return NO_ANSWER if found is None else percent(found.get("accuracy"))


def _to_plain(row: Mapping[str, Any]) -> str:
    """Differences in points at each number absent, with their intervals."""
    if row.get("name") == REPLICAS:
        return "reference"
    return " / ".join(_interval(each) for each in row.get("against_replicas") or []) or NOT_MEASURED


def _interval(found: Mapping[str, Any]) -> str:
    return f"{100 * found['difference']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def share_of_gap(results: Mapping[str, Any], name: str) -> str:
    """How much of the gap a row recovers: 0 % is the plain model of a device's size, 100 % the large one."""
    gap = results.get("gap")
    if not gap:
        return NOT_MEASURED
    share = (gap.get("share") or {}).get(name)
    return f"{100 * share:.0f} %" if share is not None else "gap too small"


def passes(row: Mapping[str, Any]) -> str:
    """Item passes of one device's model and, in brackets, of all devices' together."""
    found = row.get("passes")
    if not found:
        return NOT_MEASURED
    own, total = count(found.get("per_device")), count(found.get("total"))
    return own if own == total else f"{own} ({total})"


def gap_finding(results: Mapping[str, Any]) -> str:
    """What the gap is, and how much of it the ensemble recovers; says where it is too small to be shared."""
    gap = results.get("gap")
    if not gap:
        return ""
    both = (
        f"One plain model of a device's size answers {percent(gap['plain'])} right, one of the size of all devices "
        f"together {percent(gap['large'])}: a gap of {gap['points']:.1f} points."
    )
    if not gap.get("share"):
        return (
            f"{both} That is under {100 * LEAST_GAP:g} points: there is little that collaboration could recover here."
        )
    share = gap["share"].get("ensemble")
    return both if share is None else f"{both} With all present the ensemble recovers {100 * share:.0f} % of it."


def deployment(results: Mapping[str, Any]) -> str:
    """What to deploy and why, and the gap, as sentences; empty of results that have no verdict."""
    text = verdict(results).removeprefix("deploy: ")
    parts = (f"{plain(text)}.", gap_finding(results), strategy_finding(results)) if text else ()
    return " ".join(part for part in parts if part)


def strategy_finding(results: Mapping[str, Any]) -> str:
    """What `strategy: auto` tried and chose before anything was tested; empty where the recipe chose itself."""
    found = results.get("strategy")
    if not found:
        return ""
    tried = ", ".join(f"`{plain(name)}`" for name in found.get("tried") or [])
    return (
        f"The strategy was chosen on validation items among {tried}: `{plain(found.get('name'))}`, "
        f"{plain(str(found.get('verdict', '')).removeprefix('deploy: '))}."
    )


def meanings(results: Mapping[str, Any]) -> str:
    """What the rows' names mean, as a list; empty where no such row is there."""
    found = [f"- `{name}`: {what}." for name, what in MEANINGS.items() if result_row(results, name)]
    return "\n".join(found)


def rare_table(results: Mapping[str, Any]) -> str:
    """Macro F1 and the recall of the classes with the fewest training items; empty where none is rare."""
    rare: Sequence[Mapping[str, Any]] = results.get("rare_classes") or []
    if not rare:
        return ""
    names = [f"{plain(each.get('name'))} ({each.get('num_train_items')})" for each in rare]
    header = ["model", "macro F1", *(f"recall of {name}" for name in names)]
    lines = []
    for row in results["rows"]:
        recall = row.get("rare_recall") or []
        cells = [percent(recall[place]) if place < len(recall) else NOT_MEASURED for place in range(len(rare))]
        lines.append([plain(row.get("name", NOT_MEASURED)), percent(row.get("macro_f1")), *cells])
    return markdown_table(header, lines)
