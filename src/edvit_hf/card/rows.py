# SPDX-License-Identifier: Apache-2.0
"""Names of the rows in `results.json`, and how results of any version are asked for them.

Results of schema 2 state for every row what is left with devices absent, how long it was trained, and the gap between
one plain model of a device's size and one of all devices' together. Earlier ones do not; nothing is made up for them.
"""

from collections.abc import Mapping
from typing import Any

REPLICAS = "replicas"  # the plain model of one device's size, on every device
ALL_PASSES = "plain, all passes"
LARGE = "plain, N times the size"
COPIES = "copies"
DEVICE_COPIES = "copies, passes per device"
SMALL_CNN = "small CNN"
TFIDF = "TF-IDF + linear"
TFIDF_DEVICE_SIZE = f"{TFIDF}, per-device size"
PLAIN_DEVICE_SIZE = "plain model, per-device size"  # as results of schema 1 call what `replicas` are copies of
PLAIN_TOTAL_SIZE = "plain model, total size"  # and these the one of N times the size

MEANINGS: Mapping[str, str] = {
    REPLICAS: "one plain distilled model of a device's size, the same on every device",
    ALL_PASSES: "the same model, given the epochs of all devices together",
    LARGE: "one plain distilled model of the size of all devices together, on a single machine",
    COPIES: "plain models of a device's size with other seeds, one on each device, their log-probabilities averaged; "
    "given as many item passes, all together, as the sub-models all together",
    DEVICE_COPIES: "the same, each given the epochs of the plain model",
}


def result_row(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The result row called `name`; an empty mapping when the run measured none."""
    return next((row for row in results["rows"] if row.get("name") == name), {})


def plain_row(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain model of one device's size, whatever results call it; empty where it was not measured."""
    return result_row(results, REPLICAS) or result_row(results, PLAIN_DEVICE_SIZE)


def large_row(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain model of all devices' size together, whatever results call it; empty where it was not measured."""
    return result_row(results, LARGE) or result_row(results, PLAIN_TOTAL_SIZE)


def is_tfidf(row: Mapping[str, Any]) -> bool:
    """Whether a row is the linear classifier of texts, at whatever size: nothing was distilled into it."""
    return str(row.get("name")).startswith(TFIDF)


def absent_of(row: Mapping[str, Any], num_absent: int) -> Mapping[str, Any] | None:
    """What a row's accuracy is with so many devices absent; None where it was not measured or nothing answers."""
    entries = row.get("absent") or []
    return next((entry for entry in entries if entry.get("num_absent") == num_absent), None)


def verdict(results: Mapping[str, Any]) -> str:
    """What to deploy and why, as the evaluate stage wrote it; empty where it wrote nothing."""
    text = (results.get("choice") or {}).get("verdict")
    return text if isinstance(text, str) else ""


def no_verdict(results: Mapping[str, Any]) -> str:
    """Why results do not say what to deploy, as a sentence; empty where they do."""
    if verdict(results):
        return ""
    if not results:
        return "what to deploy: DIR holds no results that could say it"
    if "choice" not in results:
        return "what to deploy: the results in DIR do not say, they are of an earlier version"
    return (
        f"what to deploy: not said, `{REPLICAS}` was not measured beside the ensemble (`evaluate.baselines`, "
        "`evaluate.rivals`)"
    )


def left_out(results: Mapping[str, Any]) -> str:
    """Which rivals were not trained and about what they would take, as a sentence; empty where none was left out."""
    rows = results.get("left_out") or []
    if not rows:
        return ""
    each = [f"{row['rival']}{_about(row.get('minutes'))}" for row in rows]
    asked = ", ".join(row["rival"] for row in rows)
    return f"not trained beside it: {', '.join(each)}. `evaluate: {{rivals: [{asked}]}}` in the recipe trains them"


def _about(minutes: float | None) -> str:
    if minutes is None:
        return ""
    return f" (about {minutes:.0f} min)" if minutes >= 1 else " (less than a minute)"


def deployed(results: Mapping[str, Any]) -> str:
    """What to deploy, without the reasons; empty where the evaluate stage chose nothing."""
    what = (results.get("choice") or {}).get("what")
    return what if isinstance(what, str) else ""
