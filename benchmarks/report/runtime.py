# SPDX-License-Identifier: Apache-2.0
"""Write the section on the runtime: its price, its answers beside torch's, failing devices, HTTP, and the Space."""

from typing import Any

from report.figures import ABSENT, figure, goal, percent, section, source, table
from report.results import NAMES, Results, at, each, of_file, reduce

OUTCOMES = ("whole", "degraded", "no quorum", "turned away")
CLOCKS = {"simulated": "the injected clock", "real": "the machine's clock"}


def runtime(results: Results, full: bool) -> list[str]:
    """Overhead, schedules, one device, agreement; then the faults."""
    lines = [*local(results, full), *faults(results, full), *served(results, full), *space(results, full)]
    lines += [*fleet_on_ray(results, full), *fleet_faults(results, full)]
    lines += [*hostile(results, full), *hostile_requests(results, full), *isolation(results, full)]
    return section("Runtime", lines, full)


@of_file("runtime_local")
def local(data: Any, full: bool) -> list[str]:
    """What the local engine costs and how well it uses the cores."""
    idle, busy, device = (at(data, key) for key in ("schedules", "schedules_busy", "device"))
    overhead, defaults = at(data, "overhead", "ratio"), at(idle, "runtime_over_defaults")
    small = at(data, "overhead", "small_input", "ratio")
    best, best_busy = at(idle, "runtime_over_best"), at(busy, "runtime_over_best")
    resident, start = at(device, "resident_mib"), at(device, "cold_start_s")
    return [
        f"- local engine: {figure(overhead, '.3f')} times the slowest of three sleeping stubs (20, 25, 30 ms) "
        f"{goal(overhead, 1.02, '≤')}, {figure(small, '.3f')} on inputs of 32 px; three "
        "real sub-models (ViT-Base cut to 2, 2 and 3 of 12 heads, two cores): "
        f"{figure(defaults, '.2f')} of onnxruntime's defaults {goal(defaults, 0.6, '≤')}, {figure(best, '.2f')} of the "
        f"best of {count(idle)} hand-tuned schedules {goal(best, 1.05, '≤')}, with one core busy "
        f"{figure(best_busy, '.2f')} {goal(best_busy, 1.1, '≤')} ({source('runtime_local', data, full)})",
        *(schedules(data) if full else []),
        f"- a device with one int8 sub-model of 2 of 12 heads: {figure(resident, '.0f')} MiB resident "
        f"{goal(resident, 90, '≤')}, {figure(start, '.2f')} s from the start of the process to its first answer "
        f"{goal(start, 0.8, '≤')}",
        *agreement(data, full),
    ]


@of_file("ray_engine")
def fleet_on_ray(data: Any, full: bool) -> list[str]:
    """What the Ray engine adds, how soon a killed process is back, what a device's processes take."""
    median, p95 = (at(data, "ray", "ratio", key) for key in ("median", "p95"))
    back = reduce(max, at(data, "seconds_until_whole_after_kill_9"))
    memory, sent = at(data, "device_memory_mib", "all"), at(data, "bytes_to_each_device")
    return [
        f"- Ray engine, three devices ({at(data, 'machines') or ABSENT}), {figure(sent, ',.0f')} bytes to each: whole "
        f"requests take {figure(median, '.3f')} times the slowest of three sleeping stubs (20, 25, 30 ms) "
        f"{goal(median, 1.20, '≤')}, 95th percentile {figure(p95, '.3f')} {goal(p95, 1.30, '≤')}; after `kill -9` of a "
        f"sub-model's process answers are whole again within {figure(back, '.1f')} s {goal(back, 3.0, '≤')}; Ray's "
        f"processes and ours on a device take {figure(memory, '.0f')} MiB ({source('ray_engine', data, full)})"
    ]


@of_file("fleet_faults")
def fleet_faults(data: Any, full: bool) -> list[str]:
    """What processes that are killed, stopped, cut off, slowed and restarted do to answers over OIP."""
    found, breaker = at(data, "campaign"), at(data, "breaker", "degraded_over_slowest_live")
    wrong, infinite, lost = (
        at(data, "targets", name, "found")
        for name in ("wrong answers", "answers that are not finite", "neither answered nor rejected")
    )
    faults_ = reduce(sum, [count for count in (at(found, "events") or {}).values() if count])
    late, tail, back = at(found, "requests_beyond"), at(found, "beyond_deadline_p99_9_ms"), at(data, "recovery_s")
    worst, plain = reduce(max, back or []), at(found, "plain_wait_beyond_max_ms")
    last = at(found, "beyond_deadline_max_ms")
    lines = [
        f"- OIP engine, four processes ({at(data, 'ran_on') or ABSENT}), {figure(faults_)} faults (killed, stopped, "
        f"cut off, slowed, restarted with another version or with values that are no numbers), deadline "
        f"{figure(at(data, 'deadline_ms'), 'g', ' ms')}: of {figure(at(data, 'requests'))} requests {figure(late)} "
        f"ended more than 10 ms after it {goal(late, 0, '=')}, the latest {figure(last, '+.1f')} "
        f"ms from it, 99.9th percentile {figure(tail, '+.1f')} ms {goal(tail, 10, '≤', ' ms')}; of "
        f"{figure(at(found, 'plain_waits'))} plain waits of that length meanwhile "
        f"{figure(at(found, 'plain_waits_beyond'))} did, the latest {figure(plain, '+.1f')} "
        f"ms. Wrong answers {figure(wrong)} {goal(wrong, 0, '=')}, not finite {figure(infinite)} "
        f"{goal(infinite, 0, '=')}, neither answered nor rejected {figure(lost)} {goal(lost, 0, '=')}; after `kill -9` "
        f"the replica answers within {figure(worst, '.2f')} s {goal(worst, 3.0, '≤')}; once the breaker is open an "
        f"answer takes {figure(breaker, '.2f')} times the slowest live sub-model (20, 25 ms) {goal(breaker, 1.2, '≤')} "
        f"({source('fleet_faults', data, full)})"
    ]
    return [*lines, *(fleet_outcomes(data) if full else [])]


def fleet_outcomes(data: Any) -> list[str]:
    """What was done to the devices, and what became of the requests."""
    parts = (("fault", "events", "times"), ("outcome", "results", "requests"), ("missing as", "missing", "sub-models"))
    lines = []
    for head, key, counted in parts:
        rows = [[name, figure(value)] for name, value in (at(data, "campaign", key) or {}).items()]
        lines += ["", *table([head, counted], rows)]
    return [*lines, ""]


def count(schedules_: Any) -> str:
    """How many schedules were tuned by hand: all but the runtime's and onnxruntime's own."""
    names = at(schedules_, "median_ms")
    return ABSENT if names is None else str(len(set(names) - {"runtime", "onnxruntime defaults"}))


def schedules(data: Any) -> list[str]:
    """Every schedule's latency, idle and with one core busy."""
    idle, busy = at(data, "schedules"), at(data, "schedules_busy")
    rows = [
        [name, *(figure(at(found, key, name), ".1f") for found in (idle, busy) for key in ("median_ms", "p95_ms"))]
        for name in at(idle, "median_ms") or {}
    ]
    return ["", *table("schedule | idle: median ms | p95 | one core busy: median ms | p95", rows), ""]


def agreement(data: Any, full: bool) -> list[str]:
    """Items that the runtime and torch answer differently."""
    rows = at(data, "agreement") or []
    items, differ = each(rows, "items"), each(rows, "differ")
    if not rows or len(items) != len(rows) or len(differ) != len(rows):
        return [f"- runtime against torch: {ABSENT}"]
    share = sum(differ) / sum(items)
    largest = reduce(max, each(rows, "largest_difference_of_a_probability"))
    lines = [
        f"- runtime against the torch ensemble, fp32, whole test splits of {len(rows)} recipes: {sum(differ)} of "
        f"{sum(items):,} items get another label {goal(share, 0.001, '≤')}; probabilities differ by at most "
        f"{figure(largest, '.1e')}"
    ]
    if full:
        names = [NAMES.get(at(row, "ensemble"), at(row, "ensemble") or ABSENT) for row in rows]
        counts = [[figure(at(row, key)) for key in ("items", "differ")] for row in rows]
        cells = [[name, *figures] for name, figures in zip(names, counts, strict=True)]
        lines += ["", *table("ensemble | items | other label", cells), ""]
    return lines


@of_file("runtime_faults")
def faults(data: Any, full: bool) -> list[str]:
    """Deadlines kept, nothing wrong fused, and the price of a degraded answer."""
    limit, simulated, real, breaker = (at(data, key) for key in ("deadline_ms", "simulated", "real", "breaker"))
    late, tail = at(simulated, "beyond_deadline"), at(real, "beyond_deadline_p99_9_ms")
    plain, ratio = at(real, "plain_wait_beyond_p99_9_ms"), at(breaker, "degraded_over_slowest_live")
    wrong = [at(part, "wrong_answers") for part in (simulated, real)]
    number = None if None in wrong else sum(count or 0 for kinds in wrong for count in kinds.values())
    lines = [
        f"- devices that lose, hang, repeat, damage and outdate answers, deadline {figure(limit, 'g', ' ms')}: of "
        f"{figure(at(simulated, 'requests'))} requests on an injected clock {figure(late)} beyond it "
        f"{goal(late, 0, '=')}; of {figure(at(real, 'requests'))} on the machine's clock the 99.9th percentile "
        f"{figure(tail, '+.1f')} ms from it {goal(tail, 10, '≤', ' ms')}, a plain wait of that length "
        f"{figure(plain, '+.1f')} ms; wrong features fused: {figure(number)} {goal(number, 0, '=')}; once the breaker "
        f"is open an answer takes {figure(ratio, '.2f')} times the slowest live sub-model {goal(ratio, 1.2, '≤')} "
        f"({source('runtime_faults', data, full)})"
    ]
    return [*lines, *(outcomes(data) if full else [])]


def outcomes(data: Any) -> list[str]:
    """What became of the requests on each clock."""
    rows = []
    for part, words in CLOCKS.items():
        counts = [figure(at(data, part, "results", name) or 0) for name in OUTCOMES]
        times = [figure(at(data, part, key), ".1f") for key in ("p50_ms", "p99_9_ms")]
        injected = reduce(sum, [count for count in (at(data, part, "faults_done") or {}).values() if count])
        rows.append([words, *counts, *times, figure(injected)])
    return ["", *table(["on", *OUTCOMES, "median ms", "p99.9 ms", "faults injected"], rows), ""]


@of_file("serve_load")
def served(data: Any, full: bool) -> list[str]:
    """`edvit serve` under more than it can answer."""
    load, alone = at(data, "overload"), at(data, "unloaded", "p95_ms")
    ratio, memory = at(load, "accepted_p95_over_unloaded"), at(load, "memory_at_end_over_at_start")
    without, share = at(load, "rejected_without_retry_after"), at(load, "rejected_share")
    accepted = at(load, "accepted", "p95_ms")
    return [
        f"- `edvit serve` at {figure(at(load, 'offered_per_s'), '.0f')} requests a second, "
        f"{figure(at(data, 'capacity_per_s'), '.1f')} of which it can answer, for {figure(at(load, 'seconds'))} s: p95 "
        f"of the accepted {figure(accepted, '.0f')} ms, unloaded {figure(alone, '.0f')} ms, ratio "
        f"{figure(ratio, '.2f')} {goal(ratio, 2, '≤')}; memory at the end {figure(memory, '.2f')} of that after 10 s "
        f"{goal(memory, 1.05, '≤')}; {percent(share, 0)} % turned away, half of them within "
        f"{figure(at(load, 'rejected', 'p50_ms'), '.1f')} ms, {figure(without)} without a retry hint "
        f"{goal(without, 0, '=')} ({source('serve_load', data, full)})"
    ]


@of_file("space_start")
def space(data: Any, full: bool) -> list[str]:
    """How soon the Space answers, and how large it is."""
    first, resident = at(data, "median", "first_answer_s"), at(data, "median", "resident_mib_at_the_end")
    inside = at(data, "reached", "inside_ms", "found")
    timed = dict.fromkeys(name.partition(",")[0] for name in at(data, "inside_the_app") or {})
    names = ", ".join(name.replace("_", " ") for name in timed) or ABSENT
    return [
        f"- the Space, `python app.py`: {figure(first, '.1f')} s to the first answer {goal(first, 6, '≤', ' s')}, "
        f"{figure(resident, '.0f')} MiB resident {goal(resident, 400, '≤')}; an answer inside the app takes at most "
        f"{figure(inside, '.1f')} ms at the 95th percentile {goal(inside, 50, '≤')} ({names}, whole and with a device "
        f"unplugged; {source('space_start', data, full)})"
    ]


@of_file("hostile_visitor")
def hostile(data: Any, full: bool) -> list[str]:
    """What one hostile visitor of the Space costs the others."""
    alone, beside = at(data, "alone"), at(data, "beside")
    worst, failed = at(beside, "max_ms"), at(beside, "failed")
    return [
        f"- the Space with one hostile visitor (ensembles that never end, pictures made to cost time): the others' "
        f"answers take {figure(at(beside, 'p50_ms'), '.0f')} ms at the median, {figure(at(beside, 'p95_ms'), '.0f')} "
        f"at the 95th percentile and {figure(worst, '.0f')} at most {goal(worst, 2000, '≤', ' ms')}, "
        f"{figure(failed)} of {figure(at(beside, 'answers'))} failed {goal(failed, 0, '=')}; without that visitor "
        f"{figure(at(alone, 'p50_ms'), '.0f')}, {figure(at(alone, 'p95_ms'), '.0f')} and "
        f"{figure(at(alone, 'max_ms'), '.0f')} ms ({source('hostile_visitor', data, full)})"
    ]


@of_file("hostile_load")
def hostile_requests(data: Any, full: bool) -> list[str]:
    """What hostile requests to `edvit serve` cost the honest ones."""
    ratio, failed, memory, untrue = (
        at(data, "reached", name, "found")
        for name in ("honest_p95_over_without", "honest_failed", "memory_end_over_start", "ready_untrue")
    )
    tasks = at(data, "tasks") or {}
    p95 = " and ".join(
        f"{figure(at(found, 'honest_with', 'p95_ms'), '.0f')} ms ({name})" for name, found in tasks.items()
    )
    return [
        f"- `edvit serve` with a hostile client beside an honest one: p95 of the honest {p95 or ABSENT}, at most "
        f"{figure(ratio, '.2f')} times that without {goal(ratio, 1.5, '≤')}, {figure(failed)} failed "
        f"{goal(failed, 0, '=')}; memory of the server and its children at the end {figure(memory, '.2f')} of that at "
        f"the start {goal(memory, 1.05, '≤')}; `/ready` untrue {figure(untrue)} times, with all readers stopped and "
        f"killed too {goal(untrue, 0, '=')} ({source('hostile_load', data, full)})"
    ]


@of_file("isolation_cost")
def isolation(data: Any, full: bool) -> list[str]:
    """What it costs to read an input in a child process."""
    image = at(data, "inputs", "image", "cost_p50_ms")
    others = {name: at(data, "inputs", name, "cost_p50_ms") for name in ("sound", "text")}
    told = ", ".join(f"{name} {figure(cost, '.2f')}" for name, cost in others.items())
    return [
        f"- reading a 224 px JPEG in a child process costs {figure(image, '.2f')} ms more than in the server's own "
        f"{goal(image, 2, '≤', ' ms')}, median of pairs ({told} ms; {source('isolation_cost', data, full)})"
    ]
