# SPDX-License-Identifier: Apache-2.0
"""Deadlines come from anybody: who asks for too much gets a poor answer, and nobody else does."""

import numpy as np
import pytest

from edvit_hf.errors import QuorumError
from edvit_hf.runtime import Coordinator, CoordinatorConfig
from support.drills import Faults, FaultyEngine, SimulatedClock, StubEngine
from support.tiny_ensemble import SIZE, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4], [5]]
EVERYONE = range(len(GROUPS))
USUAL_MS = 10.0


def inputs(batch_size=1):
    return {"pixel_values": np.zeros((batch_size, 3, SIZE, SIZE), np.float32)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_tiny_ensemble(tmp_path_factory.mktemp("ensemble"), GROUPS)


@pytest.fixture
def fleet(manifest):
    def build(faults=None, *, deadline_ms=None):
        clock = SimulatedClock()
        sound = dict.fromkeys(EVERYONE, Faults(latency_ms=USUAL_MS))
        engine = FaultyEngine(StubEngine(manifest), clock, sound | (faults or {}))
        return Coordinator(manifest, engine, CoordinatorConfig(deadline_ms=deadline_ms), clock=clock), engine

    return build


def ask_often(coordinator, deadline_ms, batch_size=1):
    for _ in range(4):
        with pytest.raises(QuorumError):
            coordinator.gather(inputs(batch_size), deadline_ms=deadline_ms)


@pytest.mark.parametrize("own", [None, 100.0])
@pytest.mark.parametrize("wanted", [0.5, 9.0])
def test_a_deadline_that_no_device_can_meet_costs_nobody_else_anything(fleet, own, wanted):
    coordinator, _ = fleet(deadline_ms=own)
    coordinator.gather(inputs())
    ask_often(coordinator, wanted)
    assert set(coordinator.status()["breakers"].values()) == {"closed"}
    assert not coordinator.gather(inputs()).missing


def test_a_large_batch_takes_longer_and_that_is_no_fault(fleet):
    coordinator, engine = fleet()
    coordinator.gather(inputs())
    engine.faults = dict.fromkeys(EVERYONE, Faults(latency_ms=16 * USUAL_MS))
    ask_often(coordinator, 8 * USUAL_MS, batch_size=16)
    assert set(coordinator.status()["breakers"].values()) == {"closed"}


@pytest.mark.parametrize("wanted", [None, 40.0, 1000.0])
@pytest.mark.parametrize("own", [25.0, 100.0])
def test_who_hangs_is_left_alone_whoever_asks(fleet, own, wanted):
    coordinator, engine = fleet(deadline_ms=own)
    coordinator.gather(inputs())
    engine.faults[2] = Faults(is_hung=True)
    for _ in range(2):
        assert coordinator.gather(inputs(), deadline_ms=wanted).missing == {2: "deadline"}
    assert coordinator.status()["breakers"][2] == "open"


def test_who_hangs_from_the_start_is_left_alone_too(fleet):
    coordinator, _ = fleet({2: Faults(is_hung=True)})
    for _ in range(2):
        coordinator.gather(inputs(), deadline_ms=15.0)
    assert coordinator.status()["breakers"][2] == "open"


def test_the_runtimes_own_deadline_is_held_against_a_device_that_has_become_slow(fleet):
    coordinator, engine = fleet(deadline_ms=2 * USUAL_MS)
    coordinator.gather(inputs())
    engine.faults[1] = Faults(latency_ms=5 * USUAL_MS)
    for _ in range(2):
        assert coordinator.gather(inputs()).missing == {1: "deadline"}
    assert coordinator.status()["breakers"][1] == "open"


class LateWaiter(SimulatedClock):
    """Wakes whoever waits 5 ms after the deadline, as a busy machine does; answers arrive meanwhile."""

    def wait(self, condition, until):
        super().wait(condition, None if until is None else until + 0.005)


@pytest.mark.parametrize(("latency_ms", "missing"), [(19.0, {}), (23.0, {3: "deadline"})])
def test_what_comes_after_the_deadline_is_not_taken_though_the_waiter_sleeps_on(manifest, latency_ms, missing):
    clock = LateWaiter()
    faults = dict.fromkeys(EVERYONE, Faults(latency_ms=USUAL_MS)) | {3: Faults(latency_ms=latency_ms)}
    coordinator = Coordinator(
        manifest, FaultyEngine(StubEngine(manifest), clock, faults), CoordinatorConfig(deadline_ms=20.0), clock=clock
    )
    assert coordinator.gather(inputs()).missing == missing
    assert coordinator.status()["requests"]["dropped"] == len(missing)
