# SPDX-License-Identifier: Apache-2.0
"""Plan 200 random fleets of 2 to 20 unequal devices: exact against greedy placement, every budget checked.

    python benchmarks/planning/planner_fleets.py

Plans a ViT-Base split into 2 to 20 sub-models on each fleet, checks every plan against all budgets by arithmetic of its
own, and compares the exact placement with the greedy one, and the fastest with the one that spreads sub-models most, at
the same keep: results/planner_fleets.json.
"""

import dataclasses
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import BudgetError
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.keep_search import plan
from edvit_hf.planning.plan import Plan

NUM_CLASSES, FUSION_HIDDEN = 100, 256
TEACHER = ModelShape.from_config({"model_type": "vit"}, num_labels=NUM_CLASSES)
SPEEDS = ("raspberry-pi-4b", "raspberry-pi-5", "intel-n100")  # the profiles with a known speed
UNKNOWN = ("jetson-nano", "jetson-orin-nano", "x86-avx2")


def random_fleet(rng: random.Random) -> tuple[Fleet, list[list[int]]]:
    """A fleet whose budgets bind (of the size of a few heads per sub-model), and class groups.

    A quarter of the fleets is drawn scarce, so that not even the smallest sub-models fit many of them.
    """
    num_devices, num_sub_models = rng.randint(2, 20), rng.randint(2, 20)
    share = max(1.0, num_sub_models / num_devices)
    is_scarce = rng.random() < 1 / 4
    middle = TEACHER.keep(1 if is_scarce else rng.randint(1, 6), num_labels=6)
    scale = 0.5 if is_scarce else 1.0
    has_unknown = rng.random() < 0.2
    devices = []
    for number in range(num_devices):
        profile = rng.choice(UNKNOWN) if has_unknown and rng.random() < 0.3 else rng.choice(SPEEDS)
        known = load_profiles()[profile]
        size, energy = scale * share * rng.uniform(0.4, 2.5), None
        if profile in SPEEDS and rng.random() < 0.3:
            energy = known.watts * 2 * middle.macs / known.sustained_gflops / 1e6 * share * rng.uniform(0.8, 3)
        memory = round(size * middle.bytes / 2**20, 2) if rng.random() < 0.9 else None
        macs = int(share * rng.uniform(0.8, 3) * middle.macs) if rng.random() < 0.3 else None
        budgets = {"memory_mib": memory, "macs": macs, "energy_mj": energy}
        links = {"link_mbit_per_s": rng.choice([None, 20, 100]), "link_ms": rng.choice([None, 1, 5])}
        devices.append(Device(name=f"device-{number}", profile=profile, **budgets, **links))
    mib = num_sub_models * middle.bytes / 2**20
    total = round(mib * rng.uniform(0.7, 2), 1) if rng.random() < 0.5 else None
    uplink, hub = rng.choice([None, 20, 100]), devices[0].name if rng.random() < 0.5 else None
    whole = {"total_mib": total, "uplink_mbit_per_s": uplink, "coordinator": hub}
    fleet = Fleet(devices=tuple(devices), name="random", **whole)
    parts = np.array_split(np.random.default_rng(rng.randint(0, 10**9)).permutation(NUM_CLASSES), num_sub_models)
    return fleet, [sorted(int(c) for c in part) for part in parts]


def vit_costs(width: int, ffn: int, labels: int) -> tuple[int, int]:
    """Parameters and MACs of a cut ViT-Base, written out; independent of the library's tables."""
    tokens, layers = 197, 12
    layer = 4 * (width * width + width) + 2 * width * ffn + ffn + width + 4 * width
    parameters = 768 * width + width + width + tokens * width + layers * layer + 2 * width + width * labels + labels
    layer_macs = tokens * (4 * width * width + 2 * width * ffn) + 2 * tokens * tokens * width
    return parameters, 196 * 768 * width + layers * layer_macs + width * labels


def broken_budgets(result: Plan, fleet: Fleet, groups: list[list[int]]) -> list[str]:
    """Every budget that a plan breaks, by arithmetic of its own on names, keeps and classes alone."""
    held: dict[str, list[int]] = {device.name: [] for device in fleet.devices}
    for entry in [*result.sub_models, *result.replicas]:
        held[entry.device].append(entry.index)
    doubled = [name for name, indices in held.items() if len(set(indices)) < len(indices)]
    costs, widths = [], []
    for index, group in enumerate(groups):
        keep = result.sub_models[index].keep_heads
        costs.append(vit_costs(64 * keep, 256 * keep, len(group) + 1))
        widths.append(64 * keep)
    inputs = sum(widths) + len(widths)
    fusion = inputs * FUSION_HIDDEN + FUSION_HIDDEN + FUSION_HIDDEN * NUM_CLASSES + NUM_CLASSES
    broken = []
    runs = sorted(s.index for s in result.sub_models)
    if runs != list(range(len(groups))):
        broken.append(f"sub-models that run: {runs}")
    broken += [f"{name}: holds a sub-model twice, so its replica is no help" for name in doubled]
    total = fusion * 4
    for device in fleet.devices:
        is_hub = device.name == fleet.coordinator
        parameters = sum(costs[i][0] for i in held[device.name])
        macs = sum(costs[i][1] for i in held[device.name]) + (fusion if is_hub else 0)
        total += 4 * parameters
        memory = device.memory_mib or load_profiles()[device.profile].memory_mib
        if memory is not None and 4 * parameters + 4 * fusion * is_hub > memory * 2**20:
            broken.append(f"{device.name}: memory_mib")
        if device.macs is not None and macs > device.macs:
            broken.append(f"{device.name}: macs")
        if device.energy_mj is not None:
            known = load_profiles()[device.profile]
            if known.watts * 2 * macs / known.sustained_gflops / 1e6 > device.energy_mj * (1 + 1e-9):
                broken.append(f"{device.name}: energy_mj")
    if fleet.total_mib is not None and total > fleet.total_mib * 2**20:
        broken.append("total_mib")
    return broken


def measure(count: int, seed: int) -> dict[str, Any]:
    """Plan `count` random fleets."""
    rng = random.Random(seed)
    plan(TEACHER, [[0], list(range(1, NUM_CLASSES))], _free(2), keep=1, fusion_hidden_size=0)  # the solver is imported
    rows = []
    for number in range(count):
        fleet, groups = random_fleet(rng)
        row: dict[str, Any] = {"fleet": number, "num_devices": len(fleet.devices), "num_sub_models": len(groups)}
        started = time.perf_counter()
        try:
            result = plan(TEACHER, groups, fleet, fusion_hidden_size=FUSION_HIDDEN, placement="exact")
        except BudgetError as error:
            rows.append({**row, "nearest": error.nearest, "seconds": round(time.perf_counter() - started, 3)})
            continue
        row["seconds"] = round(time.perf_counter() - started, 3)
        found = result.placement
        row |= {"keep_heads": result.keep_heads, "num_replicas": len(result.replicas), **_without_seconds(found)}
        row["placement_seconds"] = found["seconds"]
        row["broken"] = broken_budgets(result, fleet, groups)
        row["greedy_keep_heads"] = _greedy_keep(groups, fleet)
        row["spread"] = _spread(result, groups, fleet)
        rows.append(row)
    return {"rows": rows, "summary": summary(rows)}


def _free(count: int) -> Fleet:
    return Fleet(devices=tuple(Device(name=str(i), profile=SPEEDS[0]) for i in range(count)))


def _without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "seconds"}


def _greedy_keep(groups: list[list[int]], fleet: Fleet) -> int | None:
    """The largest keep that the greedy placement alone can place."""
    try:
        return plan(TEACHER, groups, fleet, fusion_hidden_size=FUSION_HIDDEN, placement="greedy").keep_heads
    except BudgetError:
        return None


def _spread(result: Plan, groups: list[list[int]], fleet: Fleet) -> dict[str, Any]:
    """The plan with `objective: spread` at the keep of the fastest, and what it breaks."""
    keep, apart = result.keep_heads, dataclasses.replace(fleet, objective="spread")
    started = time.perf_counter()
    found = plan(TEACHER, groups, apart, keep=keep, fusion_hidden_size=FUSION_HIDDEN, placement="exact")
    return {
        "seconds": round(time.perf_counter() - started, 3),
        **{key: found.placement[key] for key in ("most_on_one_device", "objective_ms")},
        "num_devices_used": len({s.device for s in found.sub_models}),
        "num_devices_used_by_fastest": len({s.device for s in result.sub_models}),
        "broken": broken_budgets(found, fleet, groups),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the table of the report shows."""
    planned = [row for row in rows if "keep_heads" in row]
    both = [row for row in planned if row["greedy_ms"] is not None]
    faster = [1 - row["objective_ms"] / row["greedy_ms"] for row in both]
    gains = [gain for gain in faster if gain > 1e-6]
    slower = [row["spread"]["objective_ms"] / row["objective_ms"] - 1 for row in planned]
    most = [(row["most_on_one_device"], row["spread"]["most_on_one_device"]) for row in planned]
    return {
        "num_planned": len(planned),
        "num_infeasible": len(rows) - len(planned),
        "num_broken_budgets": sum(len(row["broken"]) + len(row["spread"]["broken"]) for row in planned),
        "num_exact_worse_than_greedy": sum(row["objective_ms"] > row["greedy_ms"] * (1 + 1e-9) for row in both),
        "num_exact_faster": len(gains),
        "mean_reduction_where_faster": round(float(np.mean(gains)), 4) if gains else None,
        "max_reduction": round(max(faster), 4) if faster else None,
        "num_greedy_cannot_place_this_keep": len(planned) - len(both),
        "num_larger_keep_than_greedy": sum((row["greedy_keep_heads"] or 0) < row["keep_heads"] for row in planned),
        "num_proven_optimal": sum(row["gap"] <= 1e-6 for row in planned),
        "max_gap": max((row["gap"] for row in planned), default=None),
        "max_placement_seconds": max((row["placement_seconds"] for row in planned), default=None),
        "median_seconds": round(float(np.median([row["seconds"] for row in planned])), 3) if planned else None,
        "max_seconds": max((row["seconds"] for row in planned), default=None),
        "num_less_on_one_device_with_spread": sum(spread < fastest for fastest, spread in most),
        "mean_most_on_one_device": round(float(np.mean([fastest for fastest, _ in most])), 3) if most else None,
        "mean_most_on_one_device_with_spread": round(float(np.mean([spread for _, spread in most])), 3)
        if most
        else None,
        "median_slower_with_spread": round(float(np.median(slower)), 4) if slower else None,
        "max_slower_with_spread": round(max(slower), 4) if slower else None,
        "max_seconds_with_spread": max((row["spread"]["seconds"] for row in planned), default=None),
        "max_seconds_infeasible": max((row["seconds"] for row in rows if "keep_heads" not in row), default=None),
    }


def main() -> None:
    """Plan all fleets and write the results."""
    add, parse = command_line(__doc__)
    add("--num-fleets", type=int, default=200)
    add("--seed", type=int, default=0)
    options = parse()
    result = measure(options.num_fleets, options.seed)
    head = {"seed": options.seed, "teacher": "ViT-Base, 224 px", "machine": platform.machine()}
    write_results(__file__, options, {**head, **result}, "num_fleets", "seed")
    for key, value in result["summary"].items():
        print(f"{key:36s} {value}")


if __name__ == "__main__":
    main()
