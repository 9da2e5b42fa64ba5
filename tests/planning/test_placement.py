# SPDX-License-Identifier: Apache-2.0
"""Placement: greedy, the exact search, and the nearest budgets, against brute force over all placements."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import BudgetError, RecipeError
from edvit_hf.hardware.latency import total_ms
from edvit_hf.hardware.profiles import FIGURES, LATENCY_FEATURES, DeviceProfile
from edvit_hf.planning.costs import Load, input_bytes
from edvit_hf.planning.placed_plan import place
from edvit_hf.planning.placing import fastest, feasible, greedy, raise_budgets
from edvit_hf.planning.problem import Problem
from edvit_hf.planning.program import TimeBudget
from edvit_hf.storage import MIB
from support.placements import costs_of, device, load, problems


def best_by_brute_force(problem):
    num_items, num_devices = problem.shape
    fitting = [p for p in itertools.product(range(num_devices), repeat=num_items) if problem.fits(p)]
    return min((problem.objective(p) for p in fitting), default=None)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_exact_placement_is_the_best_of_all_and_infeasibility_is_proven(costs):
    problem = costs.problem()
    best = best_by_brute_force(problem)
    found = feasible(problem, TimeBudget(5.0), exact=True)
    assert (found.placement is None) == (best is None)
    if best is None:
        assert found.is_proven
        return
    assert problem.fits(found.placement)
    exact = fastest(problem, found.placement, TimeBudget(5.0))
    assert exact.is_proven
    assert problem.fits(exact.placement)
    assert problem.objective(exact.placement) == pytest.approx(best, rel=1e-6)
    assert exact.bound <= problem.objective(exact.placement) * (1 + 1e-9)
    assert problem.lower_bound <= best * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_raised_budgets_make_room_and_any_less_does_not(costs):
    problem = costs.problem()
    if best_by_brute_force(problem) is not None:
        return
    kinds = [kind for kind, limits in problem.limits.items() if np.isfinite(limits).any()]
    kinds += ["total"] if np.isfinite(problem.total_limit) else []
    raised = raise_budgets(problem, kinds, TimeBudget(5.0)).raised
    limits = {kind: problem.limits[kind] + raised.get(kind, 0) for kind in problem.limits}
    total = problem.total_limit + float(raised.get("total", np.zeros(1))[0])
    roomy = dataclasses.replace(problem, limits=limits, total_limit=total)
    assert best_by_brute_force(roomy) is not None
    for kind, rises in raised.items():
        for index in np.flatnonzero(rises > 0):
            if kind == "total":
                less = dataclasses.replace(roomy, total_limit=total * 0.999)
            else:
                lower = roomy.limits[kind].copy()
                lower[index] *= 0.999
                less = dataclasses.replace(roomy, limits={**limits, kind: lower})
            assert best_by_brute_force(less) is None, (kind, index)


def test_exact_finds_the_packing_that_greedy_misses():
    sizes = [3, 3, 2, 2, 2]
    loads = [load(macs=m * 10**6, size=m * MIB) for m in sizes]
    costs = costs_of(loads, *(device(f"d{i}", memory_mib=6.0) for i in range(2)))
    assert greedy(costs.problem()) is None  # 3 | 3, then 2 and 2 go apart, and the last 2 has no place
    plan = place(costs, exact=True)
    assert sorted(len(d.sub_models) for d in plan.devices) == [2, 3]
    assert plan.placement["greedy_ms"] is None
    with pytest.raises(BudgetError):
        place(costs, exact=False)


def test_greedy_gives_the_most_expensive_to_the_device_with_the_most_compute_left():
    loads = [load(macs=m * 10**6) for m in (10, 30, 20)]
    devices = [device("small", macs=35_000_000), device("big", macs=50_000_000)]
    assert greedy(costs_of(loads, *devices).problem()) == [1, 1, 0]  # 30 to big, 20 to small, 10 to big


def test_an_energy_budget_sends_work_to_the_frugal_device():
    loads = [load(macs=10**8)]
    costs = costs_of(loads, device("fast", "raspberry-pi-5", energy_mj=1.0), device("slow"))
    assert place(costs, exact=True).sub_models[0].device == "slow"


def test_latency_is_the_formula_of_the_documentation():
    loads = [load(macs=10**8), load(macs=3 * 10**8), load(macs=2 * 10**8)]
    devices = [
        device("hub", "raspberry-pi-5"),
        device("a", link_ms=2.0, link_mbit_per_s=1.0),
        device("b", "intel-n100"),
    ]
    costs = costs_of(loads, *devices, coordinator="hub", uplink_mbit_per_s=8.0)
    plan = place(costs, exact=True)
    speeds = {"hub": 30.249, "a": 11.889, "b": 37.224}
    totals = []
    for name, gflops in speeds.items():
        own = [s for s in plan.sub_models if s.device == name]
        compute = sum(2 * s.macs / gflops / 1e6 for s in own)
        rate = {"a": 1.0, "b": 50.0}.get(name)  # that of b is not stated: 2 ms and 50 Mbit/s are assumed
        link = 2.0 + len(own) * 8 * 64 / rate / 1e3 if rate and own else 0.0
        totals.append(compute + link)
    remote = sum(s.device != "hub" for s in plan.sub_models)
    uplink = remote * 8 * 3 * 32 * 32 / 8.0 / 1e3
    fusion = 2 * 1000 / 30.249 / 1e6
    assert plan.latency_ms == pytest.approx(max(totals) + uplink + fusion, abs=2e-3)
    assert plan.uplink_ms == pytest.approx(uplink, abs=1e-3)


def test_a_slow_uplink_keeps_everything_on_the_coordinator():
    loads = [load(macs=10**7) for _ in range(3)]
    devices = [device("hub"), device("a"), device("b")]
    far = place(costs_of(loads, *devices, coordinator="hub", uplink_mbit_per_s=0.1), exact=True)
    # Links and an uplink that are not stated would count as a modest Wi-Fi, which a sub-model of 2 ms does not pay for.
    devices = [device("hub"), *(device(name, link_ms=0, link_mbit_per_s=1000) for name in "ab")]
    near = place(costs_of(loads, *devices, coordinator="hub", uplink_mbit_per_s=1000), exact=True)
    assert {s.device for s in far.sub_models} == {"hub"}
    assert {s.device for s in near.sub_models} == {"hub", "a", "b"}


def test_devices_of_unknown_speed_count_as_slower_than_the_slowest_known_and_are_not_predicted():
    loads = [load(macs=10**8) for _ in range(3)]
    costs = costs_of(loads, device("a"), device("b"), device("c", "jetson-nano"))
    assert costs.assumed_ms[:, 2] == pytest.approx(1.001 * costs.known_ms[:, 1])
    plan = place(costs, exact=True)
    assert {s.device for s in plan.sub_models} == {"a", "b", "c"}  # one each is still the fastest
    assert plan.latency_ms is None
    assert next(s.predicted_ms for s in plan.sub_models if s.device == "c") is None
    assert any("no speed is known of c" in note for note in plan.notes)
    none_known = place(costs_of(loads, *(device(n, "jetson-nano") for n in "abc")), exact=True)
    assert sorted(s.device for s in none_known.sub_models) == ["a", "b", "c"]
    assert none_known.latency_ms is None


@pytest.mark.parametrize("exact", [True, False])
def test_a_tie_does_not_cost_the_prediction(exact):
    costs = costs_of(
        [load(macs=10**8), load(macs=10**8)],
        device("jetson", "jetson-nano"),
        device("pi-a", "raspberry-pi-5"),
        device("pi-b", "raspberry-pi-5"),
    )
    plan = place(costs, exact=exact)
    assert {s.device for s in plan.sub_models} == {"pi-a", "pi-b"}
    assert plan.latency_ms is not None


def test_exact_is_strictly_faster_where_greedy_packs_badly():
    loads = [load(macs=m * 10**7) for m in (5, 5, 4, 4, 3, 3, 3)]  # greedy, the largest first: 11 for 9
    costs = costs_of(loads, *(device(n) for n in "abc"))
    exact, by_greedy = place(costs, exact=True), place(costs, exact=False)
    assert exact.latency_ms < 0.98 * by_greedy.latency_ms
    assert exact.placement["greedy_ms"] == by_greedy.placement["objective_ms"] > exact.placement["objective_ms"]


def test_without_a_budget_the_memory_of_the_profile_is_the_limit():
    loads = [load(size=3000 * MIB), load(size=3000 * MIB)]
    with pytest.raises(BudgetError, match=r"instead of 4096 \(the memory of its profile\)") as caught:
        place(costs_of(loads, device("pi")), exact=True)
    assert caught.value.nearest == {"devices.pi.memory_mib": 6000}
    plan = place(costs_of(loads, device("pi", memory_mib=6000)), exact=True)  # a board with more
    assert plan.devices[0].memory_limit_mib == 6000
    roomy = place(costs_of(loads, device("x", "intel-n100")), exact=True)  # of which nothing is known
    assert roomy.devices[0].memory_limit_mib is None


def test_a_message_counts_budgets_not_devices_and_writes_no_exponents():
    loads = [load(macs=3 * 10**8, size=2 * MIB) for _ in range(9)]
    devices = [device(f"d{i}", macs=130_000_000, memory_mib=1) for i in range(9)]
    with pytest.raises(BudgetError) as caught:
        place(costs_of(loads, *devices), exact=True)
    message = str(caught.value)
    assert f"and {len(caught.value.nearest) - 6} budgets more" in message
    assert "e+0" not in message
    with pytest.raises(BudgetError, match=r"at least 300000000 instead of 130000000[,;]"):
        place(costs_of(loads[:1], device("a", macs=130_000_000)), exact=True)


@pytest.mark.filterwarnings("error")
def test_devices_without_the_budget_that_binds_give_no_warning():
    loads = [load(size=4 * MIB) for _ in range(3)]
    devices = [device("a", "intel-n100", memory_mib=1), device("b", "intel-n100", macs=1)]
    with pytest.raises(BudgetError, match="must be at least") as caught:
        place(costs_of(loads, *devices), exact=False)
    assert all(np.isfinite(value) and value > 0 for value in caught.value.nearest.values())


MEASURED = DeviceProfile(
    name="measured",
    isa="avx2",
    quantization="avx2",
    sustained_gflops=100.0,
    watts=10.0,
    sources=dict.fromkeys(FIGURES, "a test"),
    latency=dict.fromkeys(LATENCY_FEATURES, 0.5),
)


def test_a_measured_profile_without_sizes_predicts_nothing_instead_of_its_peak_speed():
    measured = device("mine", "mine.yaml", measured=MEASURED)
    plan = place(costs_of([load()], measured), exact=True)
    assert plan.sub_models[0].predicted_ms is None
    assert any("the latency model of mine needs sizes" in note for note in plan.notes)
    mixed = place(costs_of([load()], measured, device("pi")), exact=True)
    assert mixed.sub_models[0].device == "pi"  # the peak of 100 GFLOP/s does not draw it
    shape = ModelShape.from_config({"model_type": "vit"}, num_labels=2)
    plan = place(costs_of([Load.of_shape(shape, [0], None)], measured), exact=True)
    assert plan.sub_models[0].predicted_ms == pytest.approx(total_ms(shape, MEASURED.latency), abs=1e-3)
    budgeted = device("mine", "mine.yaml", measured=MEASURED, energy_mj=1e9)
    with pytest.raises(RecipeError, match=r"`energy_mj`.*sizes of the sub-models are not known"):
        costs_of([load()], budgeted)


def test_notes_tell_where_the_fusion_head_is_timed_that_speeds_mix_and_how_long_texts_are():
    text = Load.of_shape(ModelShape.from_config({"model_type": "bert"}, num_labels=3), [0, 1], None)
    measured = device("mine", "mine.yaml", measured=MEASURED)
    notes = " ".join(costs_of([text], measured, device("pi")).notes())
    assert "timed at the speed of pi, the slowest: no `coordinator` is given" in notes
    assert "mine by a measured latency model, pi by published GFLOP/s" in notes
    assert "texts of 512 tokens" in notes
    silent = " ".join(costs_of([load()], device("pi"), coordinator="pi").notes())
    assert not any(word in silent for word in ("fusion head", "calibration", "tokens"))


def test_spare_devices_hold_replicas_of_what_would_hurt_most_within_their_budgets():
    loads = [load(macs=10**8), load(macs=3 * 10**8)]
    devices = [
        device("a", "raspberry-pi-5"),
        device("b", "raspberry-pi-5"),
        device("c"),
        device("d"),
        device("tiny", memory_mib=0.5),
    ]
    plan = place(costs_of(loads, *devices), exact=True)
    assert {r.device for r in plan.replicas} == {"c", "d"}
    assert sorted(r.index for r in plan.replicas) == [0, 1]  # fewest copies first: not twice the same
    held = {d.name: (d.sub_models, d.replicas) for d in plan.devices}
    assert held["tiny"] == ([], [])
    assert not set(held["c"][0])
    slowest = max(plan.sub_models, key=lambda s: s.predicted_ms).index
    assert next(r.index for r in plan.replicas if r.device == "c") == slowest


def test_replicas_count_for_the_total_budget():
    loads = [load(), load()]
    devices = [device(n) for n in "abcd"]
    assert len(place(costs_of(loads, *devices, total_mib=3.5), exact=True).replicas) == 1
    assert len(place(costs_of(loads, *devices), exact=True).replicas) == 2


def test_an_exhausted_clock_keeps_the_greedy_placement_and_reports_a_gap():
    loads = [load(macs=m * 10**7) for m in (7, 7, 6, 6, 5, 5, 4, 4, 4)]
    problem = costs_of(loads, *(device(n) for n in "abc")).problem()
    start = greedy(problem)
    found = fastest(problem, start, TimeBudget(0.0))
    assert found.placement == start
    assert not found.is_proven
    assert 0 < found.bound <= problem.objective(start)


def test_input_bytes_are_those_that_travel():
    image = ModelShape.from_config({"model_type": "vit"}, num_labels=2)
    sound = ModelShape.from_config({"model_type": "audio-spectrogram-transformer"}, num_labels=2)
    text = ModelShape.from_config({"model_type": "bert"}, num_labels=2, sequence_length=128)
    assert input_bytes(image) == 224 * 224 * 3
    assert input_bytes(sound) == 4 * 1024 * 128
    assert input_bytes(text) == 4 * 128


def test_the_search_counts_alike_sub_models_and_devices_once():
    loads = [load() for _ in range(6)] + [load(size=2 * MIB)]
    problem: Problem = costs_of(loads, *(device(n) for n in "abc"), device("x", memory_mib=9)).problem()
    assert [len(group) for group in problem.kinds_of_items] == [6, 1]
    assert [len(group) for group in problem.kinds_of_devices] == [3, 1]
