# SPDX-License-Identifier: Apache-2.0
"""Write what simulated fleets would answer: a line for the results, and the tables of docs/scaling.md."""

from collections.abc import Mapping
from typing import Any

from report.figures import ABSENT, figure, goal, percent, source, table
from report.results import Results, at, of_file

ONE, EACH, SHARED = "one ensemble", "groups, an uplink each", "groups, one uplink"
TITLES = {
    "x86 core": "a core of an AMD EPYC (service times measured)",
    "raspberry-pi-4b": "Raspberry Pi 4B (published speed and watts; no board was measured)",
}


@of_file("fleet_simulation")
def simulated(data: Any, full: bool) -> list[str]:
    """How far the simulation is from what was measured, and what it says of a thousand devices."""
    checked = at(data, "validation")
    most, points = at(checked, "max_relative_error"), at(checked, "max_points")
    runs = len(at(checked, "rows") or []) or None
    allowed = at(checked, "reached", "max_relative_error", "at_most")
    lines = [
        f"- simulated fleets: beside {figure(runs)} runs of the real coordinator over processes that wait, on a link "
        f"shaped to {figure(at(checked, 'link', 'mbit_per_s'))} Mbit/s ({at(checked, 'ran_on') or ABSENT}), p50, p95 "
        f"and answers a second are {percent(at(checked, 'median_relative_error'), 1)} % off at the median, "
        f"{percent(most, 1)} % at most {goal_percent(most, allowed)}, shares of degraded, failed and rejected "
        f"{figure(points, '.1f')} points at most. Simulated, with uplinks of 1 Gbit/s: a thousand devices of one "
        f"ensemble give {throughput(data, ONE)}, 200 ensembles of five {throughput(data, EACH)}, the same behind one "
        f"uplink {throughput(data, SHARED)} ([scaling]({'../docs/' if full else ''}scaling.md); "
        f"{source('fleet_simulation', data, full)})"
    ]
    return [*lines, "", *comparison(data), ""] if full else lines


def goal_percent(value: Any, limit: Any) -> str:
    """The bracket behind a relative error."""
    return "" if limit is None else goal(None if value is None else 100 * value, 100 * limit, "≤", " %")


def throughput(data: Any, series: str) -> str:
    """Answers a second of a thousand x86 cores, and what is in the way."""
    row = point(data, series, "x86 core", 1000.0, 1000)
    return f"{figure(at(row, 'throughput_per_s'), ',.1f')} answers a second (limit: {at(row, 'limit') or ABSENT})"


def point(data: Any, series: str, kind: str, uplink: float, devices: int) -> Mapping[str, Any] | None:
    """One row of the sweep."""
    for row in at(data, "sweep", "rows") or []:
        found = (at(row, "series"), at(row, "kind"), at(row, "uplink_mbit_per_s"), at(row, "devices"))
        if found == (series, kind, uplink, devices):
            return row
    return None


def comparison(data: Any) -> list[str]:
    """Measured and simulated, side by side."""
    rows = []
    for row in at(data, "validation", "rows") or []:
        pairs = [
            f"{figure(at(row, 'measured', key), form)} / {figure(at(row, 'simulated', key), form)}"
            for key, form in (("p50_ms", ".0f"), ("p95_ms", ".0f"), ("throughput_per_s", ".2f"))
        ]
        pairs += [
            f"{figure(at(row, 'measured', key), '.1f')} / {figure(at(row, 'simulated', key), '.1f')}"
            for key in ("degraded_percent", "failed_percent", "rejected_percent")
        ]
        late = figure(at(row, "plain_wait_late_p95_ms"), ".1f")
        rows.append([str(at(row, "scenario") or ABSENT), figure(at(row, "devices")), *pairs, late])
    columns = "p50 ms | p95 ms | answers/s | degraded % | failed % | rejected % | a plain wait is late by, p95 ms"
    return table(f"measured / simulated | devices | {columns}", rows)


@of_file("fleet_simulation")
def scaling(data: Any, full: bool) -> list[str]:
    """The tables of docs/scaling.md."""
    del full
    lines = [f"Source: {source('fleet_simulation', data, False)}.", ""]
    lines += ["### The simulation beside what was measured", "", *comparison(data), ""]
    for kind, title in TITLES.items():
        service = at(data, "sweep", "kinds", kind, "service_ms")
        lines += [f"### Simulated: {title}, {figure(service, '.1f')} ms a sub-model", ""]
        for uplink in (100.0, 1000.0):
            lines += [f"Simulated, uplinks of {uplink:g} Mbit/s:", "", *sweep_table(data, kind, uplink), ""]
    return lines


def sweep_table(data: Any, kind: str, uplink: float) -> list[str]:
    """One ensemble beside groups, by the number of devices."""
    sizes = dict.fromkeys(at(row, "devices") for row in at(data, "sweep", "rows") or [])
    rows = []
    for size in filter(None, sizes):
        one, each, shared = (point(data, series, kind, uplink, size) for series in (ONE, EACH, SHARED))
        cells = [told(one, "throughput_per_s", ",.2f"), told(one, "p99_ms_at_light", ",.0f"), word(one)]
        cells += [told(each, "throughput_per_s", ",.1f"), told(each, "p99_ms_at_light", ",.0f"), word(each)]
        cells += [told(shared, "throughput_per_s", ",.1f")]
        cells += [told(row, "energy_mj_per_answer", ",.0f") for row in (one, each)] if kind != "x86 core" else []
        cells += ["" if row is None else percent(at(row, "away", "degraded"), 1) for row in (one, each)]
        rows.append([figure(size), *cells])
    head = "devices | one ensemble: answers/s | p99 ms | limit | ensembles of 5: answers/s | p99 ms | limit"
    head += " | behind one uplink: answers/s"
    head += " | mJ per answer: one ensemble | ensembles of 5" if kind != "x86 core" else ""
    return table(f"{head} | degraded %: one ensemble | ensembles of 5", rows)


def told(row: Any, key: str, form: str) -> str:
    """A figure; empty where there is no such point."""
    return "" if row is None else figure(at(row, key), form)


def word(row: Any) -> str:
    """What gives out first, in a word."""
    return "" if row is None else str(at(row, "limit") or ABSENT).removeprefix("coordinator ").removeprefix("slowest ")


def block(results: Results) -> str:
    """What stands between the markers of docs/scaling.md."""
    return "".join(f"{line}\n" for line in scaling(results, False))
