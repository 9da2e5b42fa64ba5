# SPDX-License-Identifier: Apache-2.0
"""`objective: spread`: as few sub-models per device as possible, then the fastest; links that are not stated."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edvit_hf.architectures.costs import ModelShape, fusion_parameters
from edvit_hf.cli import app
from edvit_hf.errors import RecipeError
from edvit_hf.planning.failures import classes_lost, knowledge
from edvit_hf.planning.fleet import ASSUMED_LINK_MS, ASSUMED_MBIT_PER_S, Device, Fleet, load_fleet
from edvit_hf.planning.keep_search import plan
from edvit_hf.planning.placed_plan import goal, place
from edvit_hf.planning.placing import greedy, spread_out
from edvit_hf.planning.program import TimeBudget
from edvit_hf.planning.splitting import SplitConfig, split_classes
from edvit_hf.storage import MIB
from support.placements import costs_of, device, load, problems


def spread(costs):
    return dataclasses.replace(costs, fleet=dataclasses.replace(costs.fleet, objective="spread"))


def placement_of(result):
    names = [d.name for d in result.devices]
    return [names.index(s.device) for s in result.sub_models]


def fitting(problem):
    num_items, num_devices = problem.shape
    return [p for p in itertools.product(range(num_devices), repeat=num_items) if problem.fits(p)]


def could_be_parted(problem, placement):
    """Whether a device runs two or more while an empty one has room for one of them."""
    counts = problem.counts(placement)
    for item, home in enumerate(placement):
        for empty in np.flatnonzero(counts == 0) if counts[home] > 1 else ():
            moved = [int(empty) if i == item else d for i, d in enumerate(placement)]
            if problem.fits(moved):
                return True
    return False


@settings(max_examples=30, deadline=None)
@given(problems(), st.booleans())
def test_no_device_runs_two_while_an_empty_one_has_room_for_one_of_them(costs, exact):
    costs = spread(costs)
    problem = goal(costs)
    if (greedy(problem) is None and not exact) or not fitting(problem):
        return
    placement = placement_of(place(costs, exact=exact))
    assert problem.fits(placement)
    assert not could_be_parted(problem, placement)


@settings(max_examples=50, deadline=None)
@given(problems())
def test_the_exact_spread_is_the_least_crowded_of_all_and_the_fastest_of_those(costs):
    costs = spread(costs)
    problem = goal(costs)
    everything = fitting(problem)
    if not everything:
        return
    found = place(costs, exact=True)
    placement = placement_of(found)
    least = min(map(problem.crowding, everything))
    assert problem.crowding(placement) == least >= problem.least_crowding
    best = min(problem.objective(p) for p in everything if problem.crowding(p) == least)
    assert problem.objective(placement) == pytest.approx(best, rel=1e-6)
    assert found.placement["most_on_one_device"] == problem.counts(placement).max()


def test_the_solver_spreads_further_than_single_moves():
    sizes = [4, 2, 2]  # the big one alone fits a, both small ones fit b or c; moving one of a's two is not enough
    loads = [load(size=size * MIB) for size in sizes]
    devices = [device("a", memory_mib=4.0), device("b", memory_mib=2.0), device("c", memory_mib=2.0)]
    costs = spread(costs_of(loads, *devices))
    assert placement_of(place(costs, exact=True))[0] == 0
    problem = goal(costs_of([load(size=size * MIB) for size in (3, 3, 2, 2)], device("a", memory_mib=10), device("b")))
    problem = dataclasses.replace(problem, crowding_limit=16)
    found = spread_out(problem, [0, 0, 0, 0], TimeBudget(5.0), exact=True)
    assert found.is_proven
    assert sorted(problem.counts(found.placement)) == [2, 2]


def test_a_fast_device_takes_all_for_latency_and_says_so_and_one_with_spread():
    loads = [load(macs=10**7) for _ in range(3)]
    devices = [device("pc", "intel-n100"), *(device(name, link_ms=40.0) for name in "abc")]
    costs = costs_of(loads, *devices)
    fast = place(costs, exact=True)
    assert {s.device for s in fast.sub_models} == {"pc"}
    note = next(note for note in fast.notes if "failure" in note)
    assert note.startswith("pc runs 3 of 3 sub-models, which its failure takes away, while a, b, c could run some")
    assert "--objective spread" in note
    apart = place(spread(costs), exact=True)
    assert len({s.device for s in apart.sub_models}) == 3
    assert not any("failure" in note for note in apart.notes)
    assert apart.latency_ms > fast.latency_ms
    assert (fast.placement["objective"], apart.placement["objective"]) == ("latency", "spread")


@pytest.mark.parametrize("exact", [True, False])
def test_more_sub_models_than_devices_are_spread_evenly(exact):
    loads = [load(macs=m * 10**6) for m in (9, 4, 4, 25, 10, 9, 4)]
    found = place(spread(costs_of(loads, device("fast", "intel-n100"), device("a"), device("b"))), exact=exact)
    assert sorted(len(d.sub_models) for d in found.devices) == [2, 2, 3]


@pytest.mark.parametrize("coverage", [2, 3])
@pytest.mark.parametrize(("num_items", "num_devices"), [(4, 2), (4, 3), (5, 2), (5, 3), (6, 2), (6, 4), (7, 3)])
def test_neighbours_that_share_classes_run_on_different_devices(num_items, num_devices, coverage):
    groups = split_classes(14, SplitConfig(num_sub_models=num_items, coverage=coverage))
    loads = [dataclasses.replace(load(), classes=tuple(group)) for group in groups]
    costs = spread(costs_of(loads, *(device(f"d{i}") for i in range(num_devices))))
    found = place(costs, exact=True)
    problem, knows = goal(costs), knowledge(groups)
    even = [p for p in fitting(problem) if problem.crowding(p) == problem.least_crowding]
    least = min(int(classes_lost(knows, p, num_devices).sum()) for p in even)
    placement = placement_of(found)
    assert problem.crowding(placement) == problem.least_crowding
    assert classes_lost(knows, placement, num_devices).sum() == least
    assert found.placement["most_classes_lost"] == classes_lost(knows, placement, num_devices).max()


def test_what_a_failure_leaves_unknown_is_what_nobody_else_knows():
    knows = knowledge([[0, 1], [1, 2], [7]])
    assert classes_lost(knows, [0, 1, 1], 3).tolist() == [1, 2, 0]
    assert classes_lost(knows, [0, 0, 2], 3).tolist() == [3, 0, 1]
    costs = costs_of([dataclasses.replace(load(), classes=(0, 1)) for _ in range(3)], device("a"), device("b"))
    assert place(spread(costs), exact=True).placement["most_classes_lost"] == 0  # copies


def test_links_that_are_not_stated_count_as_a_modest_wifi_and_the_plan_says_so():
    costs = costs_of([load(), load()], device("a"), device("b", link_ms=0, link_mbit_per_s=100))
    problem = costs.problem()
    assert problem.fixed_ms.tolist() == [ASSUMED_LINK_MS, 0.0]
    sending = problem.busy_ms - costs.known_ms
    assert sending[0] == pytest.approx([8 * 64 / ASSUMED_MBIT_PER_S / 1e3, 8 * 64 / 100 / 1e3])
    assert problem.remote_ms == pytest.approx(8 * 3 * 32 * 32 / ASSUMED_MBIT_PER_S / 1e3)
    notes = costs.notes()
    assert f"link not stated: `link_ms` of a is assumed to be {ASSUMED_LINK_MS:g} (a modest Wi-Fi)" in notes
    assert f"link not stated: `link_mbit_per_s` of a is assumed to be {ASSUMED_MBIT_PER_S:g} (a modest Wi-Fi)" in notes
    assert any(note.startswith("link not stated: `uplink_mbit_per_s` is assumed") for note in notes)
    alone = costs_of([load()], device("hub"), coordinator="hub")
    assert not any("link not stated" in note for note in alone.notes())
    assert alone.problem().fixed_ms.tolist() == [0.0]


def test_alike_devices_need_no_search_although_every_input_takes_time_on_the_uplink():
    costs = costs_of([load() for _ in range(4)], *(device(name) for name in "abcde"))
    problem = costs.problem()
    assert problem.objective([0, 1, 2, 3]) == pytest.approx(problem.lower_bound)
    assert place(costs, exact=True).placement["gap"] == pytest.approx(0.0)


def test_the_fleet_file_names_the_objective(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("objective: spread\ndevices: [{name: a, profile: x86-avx2}]\n")
    assert load_fleet(path).objective == "spread"
    path.write_text("devices: [{name: a, profile: x86-avx2}]\n")
    assert load_fleet(path).objective == "latency"
    path.write_text("objective: speed\ndevices: [{name: a, profile: x86-avx2}]\n")
    with pytest.raises(RecipeError, match=r"objective.*latency.*spread.*speed"):
        load_fleet(path)


@pytest.mark.parametrize("objective", ["latency", "spread"])
def test_the_command_takes_another_objective(tmp_path, objective):
    devices = [f"{{name: {n}, profile: {p}}}" for n, p in (("pc", "intel-n100"), ("a", "raspberry-pi-4b"))]
    path = tmp_path / "fleet.yaml"
    path.write_text(f"coordinator: pc\nobjective: latency\ndevices: [{', '.join(devices)}]\n")
    command = ["plan", "digits", "--fleet", str(path), "--objective", objective, "--format", "json"]
    done = json.loads(CliRunner().invoke(app, command).stdout)
    assert done["placement"]["objective"] == objective
    numbers = sorted(len(row["sub_models"]) for row in done["devices"])
    assert numbers == ([2, 3] if objective == "spread" else [0, 5])  # the coordinator needs no link


def teacher(heads=4, labels=6):
    sizes = {"hidden_size": 8 * heads, "num_attention_heads": heads, "num_hidden_layers": 2, "image_size": 8}
    config = {"model_type": "vit", **sizes, "intermediate_size": 12 * heads, "patch_size": 4}
    return ModelShape.from_config(config, num_labels=labels)


def fleet_of(*memories, objective="latency", **shared):
    devices = tuple(Device(name=f"d{i}", profile="x86-avx2", memory_mib=m) for i, m in enumerate(memories))
    return Fleet(devices=devices, name="test", objective=objective, **shared)


def mib_of(shape, heads, labels):
    return shape.keep(heads, num_labels=labels).bytes / MIB


EVERYTHING = list(range(6))


def test_a_big_device_does_not_buy_a_larger_keep_by_taking_all():
    shape = teacher()
    small, big = mib_of(shape, 2, 6) * 1.01, mib_of(shape, 4, 6) * 3.01
    for objective, heads, most in (("latency", 4, 3), ("spread", 2, 1)):
        found = plan(shape, [EVERYTHING] * 3, fleet_of(big, small, small, objective=objective), fusion_hidden_size=0)
        assert (found.keep_heads, found.placement["most_on_one_device"]) == (heads, most)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.5, 1.1, 2.1, 2.6, 3.3, 5.0, 9.0]), min_size=1, max_size=4), st.integers(1, 4))
def test_the_keep_with_spread_is_the_largest_at_which_sub_models_spread_as_far_as_the_smallest_do(room, count):
    shape, groups = teacher(), [EVERYTHING] * count
    sizes = {heads: mib_of(shape, heads, 6) for heads in range(1, 5)}
    memories = [times * sizes[1] for times in room]

    def least(heads):
        """The least crowding at this keep, over all placements; None where nothing fits."""
        placements = (np.bincount(p, minlength=len(room)) for p in itertools.product(range(len(room)), repeat=count))
        fits = [n for n in placements if all(k * sizes[heads] <= m for k, m in zip(n, memories, strict=True))]
        return min((int((n**2).sum()) for n in fits), default=None)

    if count == 1 or least(1) is None:
        return
    expected = max(heads for heads in sizes if least(heads) == least(1))
    found = plan(shape, groups, fleet_of(*memories, objective="spread"), fusion_hidden_size=0, fusion_kind="average")
    assert found.keep_heads == expected
    assert (np.array([len(d.sub_models) for d in found.devices]) ** 2).sum() == least(1)


def test_bigger_devices_carry_bigger_copies():
    shape = teacher()
    memories = [mib_of(shape, heads, 6) * 1.01 for heads in (1, 2, 4)]
    fleet = fleet_of(*memories, objective="spread")
    options = {"keep": "per-sub-model", "fusion_hidden_size": 64, "fusion_kind": "average"}
    found = plan(shape, [EVERYTHING] * 3, fleet, **options)
    assert sorted((s.keep_heads, s.device) for s in found.sub_models) == [(1, "d0"), (2, "d1"), (4, "d2")]
    assert found.fusion_parameters == 0
    assert all(s.widths.labels == 6 for s in found.sub_models)  # no "other"


def test_a_single_sub_model_is_carried_by_every_device_and_sized_for_all_of_them():
    shape = teacher()
    memories = [mib_of(shape, heads, 6) * 1.01 for heads in (4, 2, 3)]
    found = plan(shape, [EVERYTHING], fleet_of(*memories), fusion_hidden_size=0, fusion_kind="average")
    assert found.keep_heads == 2
    assert sorted([s.device for s in found.sub_models] + [r.device for r in found.replicas]) == ["d0", "d1", "d2"]
    assert {r.index for r in found.replicas} == {0}
    assert "one sub-model: each device that carries it answers on its own" in found.notes
    total = mib_of(shape, 1, 6) * 3.01
    shared = plan(
        shape, [EVERYTHING], fleet_of(*memories, total_mib=total), fusion_hidden_size=0, fusion_kind="average"
    )
    assert (shared.keep_heads, len(shared.replicas)) == (1, 2)


def test_a_device_without_room_for_the_single_sub_model_is_named():
    shape = teacher()
    tiny = mib_of(shape, 1, 6) * 0.5
    fleet = fleet_of(mib_of(shape, 3, 6) * 1.01, tiny)
    found = plan(shape, [EVERYTHING], fleet, keep="per-sub-model", fusion_hidden_size=0)
    assert (found.keep_heads, found.sub_models[0].device, found.replicas) == (3, "d0", [])
    assert "one sub-model: each device that carries it answers on its own; no room on d1" in found.notes


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 0, 1]], [EVERYTHING, [0, 1, 2], [3, 4, 5]]])
def test_overlapping_groups_are_planned_with_the_outputs_that_each_has(groups):
    shape = teacher()
    found = plan(shape, groups, fleet_of(None, None, None), keep=2, fusion_hidden_size=8)
    for part, group in zip(found.sub_models, groups, strict=True):
        labels = len(group) + (len(group) < 6)
        assert part.widths.labels == labels
        assert part.parameters == shape.keep(2, num_labels=labels).parameters
    assert found.fusion_parameters == fusion_parameters([16, 16, 16], 6, 8)
