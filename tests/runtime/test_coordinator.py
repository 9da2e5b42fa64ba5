# SPDX-License-Identifier: Apache-2.0
"""The coordinator on a simulated clock: who is waited for, what is fused, and what is refused, whatever devices do."""

import argparse
import contextlib
import dataclasses
import logging
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import DataError, EDViTError, QuorumError
from edvit_hf.runtime import Coordinator, CoordinatorConfig, MonotonicClock, SubModelRequest
from support.benchmarks import benchmark
from support.drills import Faults, FaultyEngine, SimulatedClock, StubEngine
from support.tiny_ensemble import FEATURES, SIZE, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4], [5]]
EVERYONE = range(len(GROUPS))
DEADLINE_MS = 50.0
INPUTS = {"pixel_values": np.zeros((2, 3, SIZE, SIZE), np.float32)}
SPOILT = ["not_finite", "wrong_shape", "wrong_scale", "stale", "swapped"]
REASON_OF = {
    "not_finite": "not finite",
    "wrong_shape": "shape",
    "wrong_scale": "out of range",
    "stale": "version",
    "swapped": "identity",
    "loss": "deadline",
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_tiny_ensemble(tmp_path_factory.mktemp("ensemble"), GROUPS)


@pytest.fixture(scope="module")
def fleet(manifest):
    """Build a coordinator over stubs that can be made to misbehave: (coordinator, engine, clock)."""

    def build(faults=None, *, latency_ms=10.0, seed=0, **values):
        clock = SimulatedClock()
        sound = {index: Faults(latency_ms=latency_ms + index) for index in EVERYONE}
        engine = FaultyEngine(StubEngine(manifest), clock, {**sound, **(faults or {})}, seed=seed)
        config = CoordinatorConfig(**{"deadline_ms": DEADLINE_MS, **values})
        return Coordinator(manifest, engine, config, clock=clock), engine, clock

    return build


def test_everybody_answers_and_the_slowest_decides_when(fleet):
    coordinator, _, clock = fleet()
    found = coordinator.gather(INPUTS)
    assert list(found.responses) == list(EVERYONE)
    assert not found.missing
    assert clock.now() == pytest.approx(0.013)
    assert found.asked_ms == pytest.approx(13)
    for index, response in found.responses.items():
        assert response.sub_model == index
        assert response.features.shape == (2, FEATURES)


def test_a_late_sub_model_is_masked_at_the_deadline_and_its_answer_dropped(fleet):
    coordinator, _, clock = fleet({2: Faults(latency_ms=500)})
    found = coordinator.gather(INPUTS)
    assert found.missing == {2: "deadline"}
    assert clock.now() == pytest.approx(DEADLINE_MS / 1e3)
    clock.advance(1)
    assert coordinator.status()["requests"]["dropped"] == 1
    assert coordinator.gather(INPUTS).missing == {2: "deadline"}


def test_a_deadline_may_be_given_for_one_request(fleet):
    coordinator, _, clock = fleet({2: Faults(latency_ms=70)})
    assert not coordinator.gather(INPUTS, deadline_ms=100).missing
    assert clock.now() == pytest.approx(0.07)


@pytest.mark.parametrize("fault", SPOILT)
def test_what_must_not_be_fused_is_masked_at_once_with_its_reason(fleet, fault, caplog):
    coordinator, _, clock = fleet({1: Faults(latency_ms=5, **{fault: 1.0})})
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        found = coordinator.gather(INPUTS)
    assert found.missing == {1: REASON_OF[fault]}
    assert clock.now() == pytest.approx(0.013)  # nobody waits for it
    assert f"sub-model 1 is missing from an answer: {REASON_OF[fault]}" in caplog.text


def test_what_the_caller_leaves_out_is_not_asked_and_no_fault(fleet):
    coordinator, engine, _ = fleet({0: Faults(is_unavailable=True)})
    for _ in range(3):
        assert coordinator.gather(INPUTS, absent=[0, 1, 2]).missing == dict.fromkeys((0, 1, 2), "absent")
    assert set(coordinator.status()["breakers"].values()) == {"closed"}
    assert engine.done == {}


@pytest.mark.parametrize(("faults", "answers"), [(Faults(is_hung=True), 2), (Faults(is_unavailable=True), 1)])
def test_the_breaker_opens_after_two_misses_or_one_refusal_and_then_nobody_waits(fleet, faults, answers):
    coordinator, _, clock = fleet({3: faults})
    for _ in range(answers):
        assert set(coordinator.gather(INPUTS).missing) == {3}
    before = clock.now()
    found = coordinator.gather(INPUTS)
    assert found.missing == {3: "breaker"}
    assert clock.now() - before == pytest.approx(0.012)  # the slowest that is alive
    assert coordinator.status()["breakers"] == {0: "closed", 1: "closed", 2: "closed", 3: "open"}


def test_one_miss_between_answers_never_opens_the_breaker(fleet):
    coordinator, engine, _ = fleet()
    sound = engine.faults[3]
    for hung in (True, False) * 4:
        engine.faults[3] = Faults(is_hung=True) if hung else sound
        assert coordinator.gather(INPUTS).missing == ({3: "deadline"} if hung else {})


def test_a_good_probe_closes_the_breaker_and_a_bad_one_does_not(fleet):
    coordinator, engine, clock = fleet({3: Faults(is_hung=True)}, probe_pause_s=1, probe_timeout_s=0.5)
    for _ in range(2):
        coordinator.gather(INPUTS)
    clock.advance(20)
    assert coordinator.gather(INPUTS).missing == {3: "breaker"}
    engine.faults[3] = Faults(latency_ms=3)
    clock.advance(5.6)  # the longest pause, and the time a probe may take
    assert not coordinator.gather(INPUTS).missing
    engine.faults[3] = Faults(is_hung=True)  # a single miss was enough after a probe; after an answer it takes two
    assert coordinator.gather(INPUTS).missing == {3: "deadline"}
    assert coordinator.gather(INPUTS).missing == {3: "deadline"}
    assert coordinator.gather(INPUTS).missing == {3: "breaker"}


def test_a_sub_model_that_answers_probes_but_no_request_opens_again_at_its_first_miss(fleet):
    coordinator, _, clock = fleet({3: Faults(latency_ms=5, loss=1.0)}, probe_pause_s=1)
    for _ in range(2):
        coordinator.gather(INPUTS)
    clock.advance(1.1)
    assert coordinator.gather(INPUTS).missing == {3: "deadline"}
    assert coordinator.gather(INPUTS).missing == {3: "breaker"}


def test_a_stale_device_stays_out_though_it_answers_probes(manifest):
    clock = SimulatedClock()
    old = dataclasses.replace(manifest, ensemble=dataclasses.replace(manifest.ensemble))
    object.__setattr__(old.ensemble, "content_hash", "f" * 64)
    engine = StubEngine(old)
    coordinator = Coordinator(manifest, engine, CoordinatorConfig(deadline_ms=DEADLINE_MS), clock=clock)
    for _ in range(2):
        with pytest.raises(QuorumError, match="0 version; 1 version; 2 version; 3 version"):
            coordinator.gather(INPUTS)
    clock.advance(60)
    assert set(coordinator.status()["breakers"].values()) == {"open"}


def test_copies_and_late_answers_to_older_requests_change_nothing(fleet):
    coordinator, engine, _ = fleet({index: Faults(latency_ms=4, duplicate=1.0) for index in EVERYONE})
    for _ in range(20):
        found = coordinator.gather(INPUTS)
        assert not found.missing
        assert {response.request_id for response in found.responses.values()} == {found.request_id}
    dropped = coordinator.status()["requests"]["dropped"]
    assert engine.done["duplicate"] == 80
    assert dropped >= 80 + 76 - 8  # each copy, and each left-over that a later request met; the last are on their way


def test_a_future_that_brings_another_requests_answer_is_not_waited_for(manifest):
    engine = StubEngine(manifest)
    other = SubModelRequest(request_id="other", content_hash="", budget_ms=None, inputs=INPUTS)

    class Confused(StubEngine):
        def submit(self, index, request):
            return engine.submit(index, other if index == 0 else request)

    coordinator = Coordinator(manifest, Confused(manifest), CoordinatorConfig(), clock=SimulatedClock())
    assert coordinator.gather(INPUTS).missing == {0: "identity"}


@pytest.mark.parametrize("lost", [3, 4])
def test_a_lost_quorum_is_an_error_as_soon_as_it_is_certain(fleet, lost):
    coordinator, _, clock = fleet({index: Faults(latency_ms=2, not_finite=1.0) for index in range(lost)})
    with pytest.raises(QuorumError, match="an answer needs at least 2; missing: 0 not finite; 1") as caught:
        coordinator.gather(INPUTS)
    assert clock.now() == pytest.approx(0.002)
    assert set(caught.value.missing.values()) == {"not finite"}
    assert coordinator.status()["requests"]["failed"] == 1


def test_the_quorum_can_be_chosen_and_is_else_half_of_those_asked(fleet):
    dead = {index: Faults(is_unavailable=True) for index in (0, 1, 2)}
    assert list(fleet(dead, quorum=1)[0].gather(INPUTS).responses) == [3]
    with pytest.raises(QuorumError, match="Only 3 of 4 can be present, and an answer needs at least 4"):
        fleet({0: Faults(is_unavailable=True)}, quorum=4)[0].gather(INPUTS)
    assert fleet(dead)[0].gather(INPUTS, absent=[0, 1]).missing == {0: "absent", 1: "absent", 2: "unavailable"}
    with pytest.raises(QuorumError, match="No sub-model is present: all 4 are absent"):
        fleet()[0].gather(INPUTS, absent=EVERYONE)


def test_an_input_at_fault_is_the_callers_error_and_opens_no_breaker(manifest):
    class Picky(StubEngine):
        def submit(self, index, request):
            if index == 1:
                raise DataError("Expected another input.")
            return super().submit(index, request)

    coordinator = Coordinator(manifest, Picky(manifest), clock=SimulatedClock())
    for _ in range(3):
        with pytest.raises(DataError, match="another input"):
            coordinator.gather(INPUTS)
    assert set(coordinator.status()["breakers"].values()) == {"closed"}
    assert coordinator.status()["requests"]["refused"] == 3


def test_an_engine_that_breaks_costs_one_sub_model_and_not_the_answer(manifest, caplog):
    class Broken(StubEngine):
        def submit(self, index, request):
            return {}["no such key"] if index == 2 else super().submit(index, request)

    coordinator = Coordinator(manifest, Broken(manifest), clock=SimulatedClock())
    assert coordinator.gather(INPUTS).missing == {2: "failed"}
    assert "sub-model 2 failed: KeyError" in caplog.text


def test_what_is_no_response_costs_one_sub_model(manifest):
    class Confused(StubEngine):
        def submit(self, index, request):
            pending = super().submit(index, request)
            if index == 2:
                pending = Future()
                pending.set_result({"features": None})
            return pending

    coordinator = Coordinator(manifest, Confused(manifest), clock=SimulatedClock())
    assert coordinator.gather(INPUTS).missing == {2: "failed"}


def test_a_probe_that_is_given_up_is_cancelled(manifest):
    clock, probes = SimulatedClock(), []

    class Silent(StubEngine):
        def submit(self, index, request):
            pending = Future()
            pending.set_running_or_notify_cancel()
            return pending if index == 3 else super().submit(index, request)

        def probe(self, index):
            probes.append(Future())
            return probes[-1]

    config = CoordinatorConfig(deadline_ms=DEADLINE_MS, misses_to_open=1)
    coordinator = Coordinator(manifest, Silent(manifest), config, clock=clock)
    assert coordinator.gather(INPUTS).missing == {3: "deadline"}
    clock.advance(30)
    assert len(probes) > 3
    assert all(probe.cancelled() for probe in probes[:-1])


@pytest.mark.parametrize("deadline_ms", [float("inf"), 1e300])
def test_a_deadline_beyond_what_a_thread_can_wait_is_a_long_one(manifest, deadline_ms):
    clock = MonotonicClock()
    engine = FaultyEngine(StubEngine(manifest), clock, {index: Faults(latency_ms=5) for index in EVERYONE})
    coordinator = Coordinator(manifest, engine, CoordinatorConfig(deadline_ms=deadline_ms), clock=clock)
    assert not coordinator.gather(INPUTS).missing


def test_without_a_deadline_a_silent_sub_model_is_an_error_on_a_simulated_clock(fleet):
    coordinator, _, _ = fleet({0: Faults(is_hung=True)}, deadline_ms=None)
    with pytest.raises(EDViTError, match="Set a deadline"):
        coordinator.gather(INPUTS)


@pytest.mark.parametrize(("waited_ms", "state"), [(30, "closed"), (10, "open")])
def test_who_had_less_than_half_of_the_deadline_after_the_line_is_not_blamed(fleet, monkeypatch, waited_ms, state):
    coordinator, _, clock = fleet({3: Faults(latency_ms=45)})

    @contextlib.contextmanager
    def slow_line(deadline):
        clock.advance(waited_ms / 1e3)
        yield

    monkeypatch.setattr(coordinator._line, "enter", slow_line)
    for _ in range(2):
        assert coordinator.gather(INPUTS).missing == {3: "deadline"}
    assert coordinator.status()["breakers"][3] == state


def test_setting_the_time_of_day_moves_no_deadline(manifest, monkeypatch):
    clock_of_day = iter([1e9, 0.0] * 1000)
    monkeypatch.setattr("time.time", lambda: next(clock_of_day))
    coordinator = Coordinator(manifest, StubEngine(manifest), CoordinatorConfig(deadline_ms=5_000))
    assert not coordinator.gather(INPUTS).missing


def test_a_closed_coordinator_says_so(fleet):
    coordinator, _, _ = fleet()
    coordinator.close()
    coordinator.close()
    with pytest.raises(EDViTError, match="got one that was closed"):
        coordinator.gather(INPUTS)


@pytest.mark.parametrize("values", [{"deadline_ms": 0}, {"quorum": 0}, {"misses_to_open": -1}, {"max_queued": -1}])
def test_values_with_which_nothing_could_be_answered_are_refused(values):
    with pytest.raises(EDViTError, match=next(iter(values))):
        CoordinatorConfig(**values)


shares = st.sampled_from([0.0, 0.2, 0.6])


@given(data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_whatever_happens_an_answer_is_sound_and_nobody_waits_beyond_the_deadline(fleet, manifest, data, seed):
    faults = {
        index: Faults(
            latency_ms=data.draw(st.floats(0, 80)),
            jitter_ms=data.draw(st.floats(0, 40)),
            is_hung=data.draw(st.booleans()) and index == 0,
            loss=data.draw(shares),
            duplicate=data.draw(shares),
            **{name: data.draw(shares) for name in SPOILT},
        )
        for index in EVERYONE
    }
    coordinator, _, clock = fleet(faults, seed=seed)
    truth = StubEngine(manifest)
    for _ in range(12):
        begin, refused = clock.now(), None
        try:
            found = coordinator.gather(INPUTS)
        except QuorumError as error:
            refused = error.missing
        else:
            assert len(found.responses) >= 2
            assert sorted([*found.responses, *found.missing]) == list(EVERYONE)
            for index, response in found.responses.items():
                true = truth.submit(
                    index, SubModelRequest(request_id=found.request_id, content_hash="", budget_ms=None, inputs=INPUTS)
                ).result()
                np.testing.assert_array_equal(response.features, true.features)
                assert response.content_hash == manifest.ensemble.content_hash
                assert response.request_id == found.request_id
        assert refused is None or len(refused) > 2
        assert clock.now() - begin <= DEADLINE_MS / 1e3 + 1e-9
        clock.advance(0.3)


def test_the_benchmark_of_faults_finds_nothing_wrong():
    faults = benchmark("runtime.runtime_faults")
    manifest = faults.toy_manifest()
    arguments = argparse.Namespace(requests=1500, deadline_ms=25.0, seed=3)
    found = faults.simulated(arguments, manifest, faults.toy_fusion(manifest, 0))
    assert found["beyond_deadline"] == 0
    assert found["wrong_answers"] == {}
    assert {"whole", "degraded"} <= set(found["results"]) <= {"whole", "degraded", "no quorum"}
    assert {"loss", "duplicate", "not_finite", "stale"} <= set(found["faults_done"])
    assert {row["reason"] for row in found["missing"]} >= {"breaker", "deadline", "not finite", "version"}
