# SPDX-License-Identifier: Apache-2.0
"""Simulated fleets: they agree with the plan and with the real coordinator, name their limit, and say `simulated`."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import simpy
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import EDViTError, QuorumError, RecipeError
from edvit_hf.hardware.profiles import DeviceProfile, load_profiles
from edvit_hf.planning.costs import FleetCosts, FusionCosts, Load
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.placed_plan import place_loads
from edvit_hf.runtime import Coordinator, CoordinatorConfig
from edvit_hf.simulation import MEASURED_WORK, CoordinatorWork, FleetModel, Outages, SimulationConfig, simulate
from edvit_hf.simulation.coordinator import Shared, SimulatedCoordinator
from edvit_hf.simulation.fleet import spread_of
from edvit_hf.simulation.tally import Tally
from support.benchmarks import benchmark
from support.drills import Faults, FaultyEngine, SimulatedClock, StubEngine

ROOT = Path(__file__).resolve().parents[2]
NO_WORK = CoordinatorWork(request_ms=0.0, sub_model_ms=0.0, source="none")
INPUTS = {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}


def model_of(count=3, *, service=10.0, uplink=0.0, spread=(0.0, 0.0), watts=np.nan, replicas=(), back=0.0):
    """So many sub-models, each on a device of its own; `replicas` are pairs of sub-model and a further device's."""
    size = count + len(replicas)
    times = np.full((count, size), np.nan)
    times[np.arange(count), np.arange(count)] = service
    endpoints = [[index] for index in range(count)]
    for place, index in enumerate(replicas):
        times[index, count + place] = service
        endpoints[index].append(count + place)
    return FleetModel(
        name="toy",
        devices=tuple(f"d{index}" for index in range(size)),
        endpoints=tuple(tuple(each) for each in endpoints),
        service_ms=times,
        back_ms=np.full((count, size), back),
        uplink_ms=uplink,
        is_remote=np.ones(size, bool),
        fusion_ms=0.0,
        watts=np.full(size, watts),
        spread=np.tile(spread, (size, 1)),
    )


def config_of(rate=1.0, *, work=NO_WORK, requests=1000, **values):
    limits = {key: values.pop(key) for key in list(values) if hasattr(CoordinatorConfig, key)}
    return SimulationConfig(rate=rate, requests=requests, work=work, serving=CoordinatorConfig(**limits), **values)


def plan_of(*devices, coordinator=None, count=2):
    loads = [
        Load(classes=(index,), parameters=10**6, bytes=4 * 10**6, macs=10**8, feature_bytes=512, input_bytes=150_528)
        for index in range(count)
    ]
    fleet = Fleet(devices=devices, coordinator=coordinator, objective="spread", uplink_mbit_per_s=100, name="house")
    return place_loads(FleetCosts.of(fleet, loads, FusionCosts(parameters=1000)), placement="greedy"), fleet


def pi(name, **values):
    return Device(name=name, profile="raspberry-pi-4b", link_ms=2.0, link_mbit_per_s=50, **values)


@pytest.mark.parametrize("coordinator", [None, "a"])
def test_an_idle_fleet_answers_in_the_time_that_its_plan_predicts(coordinator):
    plan, fleet = plan_of(pi("a"), pi("b"), coordinator=coordinator)
    model = FleetModel.of_plan(plan, fleet)
    found = simulate(model, config_of(0.01, requests=20))
    assert found.p50_ms == pytest.approx(plan.latency_ms, rel=1e-4) == model.idle_ms(config_of())
    assert found.energy_mj_per_answer == pytest.approx(sum(s.energy_mj for s in plan.sub_models), rel=1e-4)
    assert (found.whole, found.num_devices, found.num_sub_models) == (1.0, 2, 2)


def test_replicas_of_the_plan_are_further_places_to_ask():
    plan, fleet = plan_of(pi("a"), pi("b"), pi("c"))
    (replica,) = plan.replicas
    endpoints = FleetModel.of_plan(plan, fleet).endpoints
    assert endpoints[replica.index] == (replica.index, 2)
    assert len(endpoints[1 - replica.index]) == 1


def test_a_device_of_unknown_speed_is_an_error_that_says_what_to_measure():
    plan, fleet = plan_of(pi("a"), Device(name="b", profile="arm64"))
    with pytest.raises(RecipeError, match=r"none of b\..*edvit profile --output"):
        FleetModel.of_plan(plan, fleet)


@pytest.mark.parametrize(
    ("limit", "model", "values"),
    [
        ("slowest device", model_of(service=10.0), {"max_in_flight": 8}),
        ("coordinator uplink", model_of(service=1.0, uplink=5.0), {"max_in_flight": 8}),
        (
            "coordinator CPU",
            model_of(service=1.0),
            {"max_in_flight": 8, "work": CoordinatorWork(request_ms=2.0, sub_model_ms=1.0, source="none")},
        ),
        ("requests in flight", model_of(service=10.0, back=20.0), {"max_in_flight": 1}),
    ],
)
def test_under_too_many_requests_it_serves_what_the_named_limit_allows(limit, model, values):
    config = config_of(**values)
    capacities = model.capacities(config)
    found = simulate(model, dataclasses.replace(config, rate=2 * min(capacities.values())))
    assert found.limit.startswith(limit)
    assert min(capacities, key=capacities.get) == limit
    assert found.throughput_per_s == pytest.approx(capacities[limit], rel=0.02)
    assert found.rejected > 0.3
    assert found.busy.get(limit, 1.0) > 0.98


def test_the_same_seed_gives_the_same_figures_and_another_gives_others():
    model, config = model_of(spread=(0.1, 0.3)), config_of(40.0, max_in_flight=4, loss=0.01)
    first = simulate(model, config)
    assert simulate(model, config) == first
    assert simulate(model, dataclasses.replace(config, seed=1)).p99_ms != first.p99_ms


class AwayEngine(FaultyEngine):
    """Real answers after a service time on the clock; none from a device that is away meanwhile."""

    def __init__(self, manifest, clock, service, outages):
        super().__init__(StubEngine(manifest), clock)
        self._service, self._outages = service, outages

    def submit(self, index, request, /):
        now = 1e3 * self._clock.now()
        lost = any(begin < now + self._service and now < end for begin, end in self._outages.of(index))
        self.faults[index] = Faults(latency_ms=self._service, is_hung=lost)
        return super().submit(index, request)

    def probe(self, index, /):
        self.faults[index] = Faults(is_hung=not self._outages.is_up(index, 1e3 * self._clock.now()))
        return super().probe(index)


def real_outcomes(count, config, outages, arrivals, service):
    clock, manifest = SimulatedClock(), benchmark("runtime.runtime_faults").toy_manifest(count)
    engine = AwayEngine(manifest, clock, service, outages)
    coordinator, found = Coordinator(manifest, engine, config.serving, clock=clock), []
    for moment in arrivals:
        clock.advance(moment / 1e3 - clock.now())
        try:
            outcome = "degraded" if coordinator.gather(INPUTS).missing else "whole"
        except QuorumError:
            outcome = "failed"
        found.append((outcome, round(1e3 * clock.now() - moment, 6)))
    return found


def simulated_outcomes(model, config, outages, arrivals):
    env, found = simpy.Environment(), []

    class Log(Tally):
        def note(self, outcome, begin, end):
            found.append((outcome, round(end - begin, 6)))

    coordinator = SimulatedCoordinator(env, model, config, Log(), group=0, uplink=Shared(env), outages=outages)

    def ask():
        for number, moment in enumerate(arrivals):
            yield env.timeout(moment - env.now)
            env.process(coordinator.request(number))

    env.process(ask())
    while len(found) < len(arrivals):
        env.step()
    return found


@pytest.mark.parametrize(
    ("count", "misses", "quorum"), [(2, 2, None), (3, 2, 1), (5, 3, None), (5, None, 3), (1, 1, None)]
)
def test_it_agrees_with_the_real_coordinator_on_every_request_while_devices_die_and_come_back(count, misses, quorum):
    config = config_of(
        deadline_ms=100.0, misses_to_open=misses, quorum=quorum, mean_up_s=20.0, mean_down_s=4.0, probe_pause_s=0.4711
    )
    arrivals = [151.7 * number for number in range(1, 800)]  # no two at a time: the real one is asked by one thread
    outages = Outages(count, mean_up_ms=2e4, mean_down_ms=4e3, until_ms=arrivals[-1], seed=count)
    again = Outages(count, mean_up_ms=2e4, mean_down_ms=4e3, until_ms=arrivals[-1], seed=count)
    simulated = simulated_outcomes(model_of(count, service=30.0), config, again, arrivals)
    assert simulated == real_outcomes(count, config, outages, arrivals, 30.0)
    assert len({outcome for outcome, _ in simulated}) > 1


def test_who_is_late_is_left_out_at_the_deadline_and_too_few_are_no_answer():
    late = model_of(2)
    late.service_ms[1, 1] = 500.0
    found = simulate(late, config_of(0.1, requests=50, deadline_ms=100.0, misses_to_open=None, max_in_flight=8))
    assert (found.degraded, found.p50_ms) == (1.0, 100.0)
    assert simulate(late, config_of(0.1, requests=50, deadline_ms=100.0, quorum=2, max_in_flight=8)).failed == 1.0


def test_a_device_that_is_away_costs_the_deadline_until_its_breaker_opens_and_a_replica_stands_in():
    values = {"deadline_ms": 200.0, "mean_up_s": 20.0, "mean_down_s": 10.0, "requests": 1500, "rate": 5.0}
    patient = simulate(model_of(5), config_of(misses_to_open=None, **values))
    alone = simulate(model_of(5), config_of(**values))
    spare = simulate(model_of(5, replicas=range(5)), config_of(**values))
    assert patient.p50_ms == 200.0
    assert alone.p50_ms < 12.0
    assert alone.degraded + alone.failed > 0.7
    assert spare.whole > 2 * alone.whole


def test_outages_follow_their_rates_and_no_other_device_moves_them():
    few, many = (Outages(size, mean_up_ms=900.0, mean_down_ms=100.0, until_ms=1e6, seed=3) for size in (2, 40))
    assert few.of(1) == many.of(1) != many.of(2)
    away = [sum(min(end, 1e6) - begin for begin, end in many.of(d) if begin < 1e6) / 1e6 for d in range(40)]
    assert np.mean(away) == pytest.approx(0.1, abs=0.01)
    begin, end = many.of(0)[0]
    assert not many.is_up(0, begin)
    assert many.is_up(0, end)
    assert many.is_up(0, begin - 1e-6)
    begins, ends = many.at(end)
    assert begins[0] > end
    assert (ends > end).all()


def test_without_rates_nobody_is_ever_away():
    sound = Outages(3, mean_up_ms=None, mean_down_ms=None, until_ms=1e9, seed=0)
    assert math.isinf(sound.at(1e9)[0].min())
    assert sound.of(0) == []


def test_lost_messages_are_sent_again_and_take_longer():
    clean, lossy = (simulate(model_of(2), config_of(2.0, loss=loss, retry_ms=200.0)) for loss in (0.0, 0.05))
    assert clean.p95_ms < 30.0
    assert lossy.p50_ms < 30.0 < 200.0 < lossy.p95_ms
    assert lossy.whole == 1.0


def test_more_coordinators_answer_as_many_times_more_unless_they_share_an_uplink():
    model = model_of(5, service=1.0, uplink=2.0)
    config = config_of(1000.0, max_in_flight=8, requests=2000)
    one, ten = simulate(model, config), simulate(model, dataclasses.replace(config, coordinators=10))
    shared = simulate(model, dataclasses.replace(config, coordinators=10, one_uplink=True))
    assert one.throughput_per_s == pytest.approx(100, rel=0.02) == shared.throughput_per_s
    assert ten.throughput_per_s == pytest.approx(1000, rel=0.05)
    assert (ten.num_devices, shared.limit) == (50, "coordinator uplink")


def test_energy_is_watts_times_busy_time_and_not_told_where_watts_are_not_known():
    config = config_of(1.0, requests=100)
    assert simulate(model_of(4, watts=5.0), config).energy_mj_per_answer == pytest.approx(4 * 5.0 * 10.0)
    silent = simulate(model_of(4), config)
    assert silent.energy_mj_per_answer is None
    assert "energy is not known" in silent.notes[-1]


def test_a_thousand_devices_are_one_run():
    found = simulate(model_of(1000, spread=(0.05, 0.1)), config_of(10.0, requests=50))
    assert (found.num_devices, found.whole) == (1000, 1.0)
    assert found.p50_ms > 12.0, "the slowest of a thousand draws"


def test_times_vary_as_the_profile_of_the_device_was_measured():
    rows = [{"median_ms": 10.0, "lower_ms": 9.0, "upper_ms": 12.0}] * 3
    values = dataclasses.asdict(load_profiles()["raspberry-pi-4b"]) | {"name": "mine"}
    mine = DeviceProfile(**{**values, "provenance": {"fits": [{"measurements": rows}]}})
    below, above = spread_of(Device(name="a", profile="mine", measured=mine))
    model = model_of(1, service=10.0, spread=(below, above))
    draws = np.concatenate([simulate_services(model, number) for number in range(300)])
    assert np.percentile(draws, (25, 50, 75)) == pytest.approx([9.0, 10.0, 12.0], rel=0.02)
    assert model.busy_ms()[0] == pytest.approx(draws.mean(), rel=0.01)
    assert spread_of(pi("b")) is None


def simulate_services(model, number):
    """Drawn times of one device, a hundred of a request's."""
    from edvit_hf.simulation.devices import SimulatedDevices

    outages = Outages(1, mean_up_ms=None, mean_down_ms=None, until_ms=1.0, seed=0)
    devices = SimulatedDevices(model, config_of(), outages, 0)
    at = np.zeros(100, int)
    return 10.0 * devices._drawn_spread(np.random.default_rng(number), at)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.0}, "`rate` must lie in"),
        ({"rate": -1.0}, "`rate` must lie in"),
        ({"rate": math.nan}, "`rate` must lie in"),
        ({"rate": "5"}, "`rate` must be a number"),
        ({"requests": 0}, "`requests` must be a whole number of at least 1"),
        ({"requests": 10**9}, "`requests` must be at most"),
        ({"coordinators": 0}, "`coordinators` must be a whole number"),
        ({"loss": 1.0}, "`loss` must lie in"),
        ({"retry_ms": 0.0}, "`retry_ms` must lie in"),
        ({"mean_up_s": 5.0}, "got only `mean_up_s`"),
        ({"mean_up_s": 5.0, "mean_down_s": -1.0}, "`mean_down_s` must lie in"),
        ({"mean_up_s": 5.0, "mean_down_s": 1.0}, "expected a deadline"),
        ({"mean_up_s": 5.0, "mean_down_s": 1.0, "deadline_ms": math.inf}, "expected a deadline"),
        ({"max_in_flight": 10**400}, "`max_in_flight` must lie in"),
        ({"deadline_ms": -1.0}, "deadline_ms=-1.0"),
    ],
)
def test_values_that_cannot_be_are_refused(values, message):
    with pytest.raises(EDViTError, match=message):
        config_of(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coordinators": 334}, "at most 1000 devices in all, got 334 coordinators over 3.*at most 333"),
        ({"quorum": 4}, "a quorum of at most 3"),
        (
            {"mean_up_s": 0.001, "mean_down_s": 0.001, "deadline_ms": 100.0, "rate": 0.01, "requests": 10**5},
            "at most 1000000 outages",
        ),
    ],
)
def test_what_the_fleet_cannot_do_is_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        simulate(model_of(3), config_of(**values))


def test_the_work_of_the_coordinator_is_what_the_results_file_says():
    found = json.loads((ROOT / "benchmarks/results/fleet_simulation.json").read_text())
    measured = found["work"]["protocol"]
    assert round(measured["request_ms"], 2) == MEASURED_WORK.request_ms
    assert round(measured["sub_model_ms"], 2) == MEASURED_WORK.sub_model_ms
    assert all(row["simulated"] is True for row in found["sweep"]["rows"])


def invoke(*arguments):
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


def test_the_command_says_simulated_in_its_table_and_in_its_json():
    short = ("--requests", 50)
    done = invoke("cifar10_vit_base", "--rate", 0.5, "--rate", 2, *short)
    assert done.exit_code == 0, done.output
    assert "simulated, not measured" in done.output
    assert "gives out first: requests in flight" in done.output
    found = json.loads(invoke("cifar10_vit_base", "--rate", 0.5, *short, "--format", "json").output)
    assert found["simulated"] is True
    (run,) = found["runs"]
    assert run["simulated"] is True
    assert run["num_devices"] == 10
    assert run["energy_mj_per_answer"] > 0


def test_the_command_names_what_is_missing():
    unknown = invoke("digits", "--rate", 1)
    assert unknown.exit_code == 1
    assert "edvit profile" in unknown.output
    assert invoke("digits", "--rate", 0).exit_code == 1
    assert invoke("digits").exit_code == 2


def test_a_request_in_a_full_line_is_turned_away_as_by_the_runtime():
    config = config_of(max_in_flight=1, max_queued=0, requests=1000, rate=90.0)
    found = simulate(model_of(2), config)
    assert found.whole + found.rejected == 1.0
    # Erlang's loss formula for one server: offered load a is turned away with a / (1 + a)
    assert found.rejected == pytest.approx(0.9 / 1.9, abs=0.04)
