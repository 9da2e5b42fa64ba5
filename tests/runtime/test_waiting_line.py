# SPDX-License-Identifier: Apache-2.0
"""The line before the sub-models: bounded, in order, and refused early with a hint."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edvit_hf.errors import OverloadedError
from edvit_hf.runtime import Coordinator, CoordinatorConfig, MonotonicClock
from edvit_hf.runtime.waiting_line import RequestLine
from support.drills import Faults, FaultyEngine, SimulatedClock, StubEngine
from support.tiny_ensemble import SIZE, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]
INPUTS = {"pixel_values": np.zeros((1, 3, SIZE, SIZE), np.float32)}
SERVICE_S = 0.05


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_tiny_ensemble(tmp_path_factory.mktemp("ensemble"), GROUPS)


class HandClock(SimulatedClock):
    """Stands still while threads wait, until the test moves it: no machine is too slow for it."""

    def wait(self, condition, until):
        condition.wait(0.001)  # may return early


def eventually(is_so):
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def busy_fleet(manifest):
    """Build a coordinator whose sub-models take `SERVICE_S`, with one request served and `waiting` in line."""
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as ends:

        def build(*, waiting, **values):
            clock = HandClock()
            engine = FaultyEngine(
                StubEngine(manifest), clock, {i: Faults(latency_ms=1e3 * SERVICE_S) for i in range(3)}
            )
            coordinator = Coordinator(manifest, engine, CoordinatorConfig(**values), clock=clock)
            asked = []

            def ask():
                asked.append(pool.submit(coordinator.gather, INPUTS))
                eventually(
                    lambda: (
                        sum(coordinator.status()["queue"][key] for key in ("in_flight", "queued"))
                        == len(asked) - sum(each.done() for each in asked)
                    )
                )

            def finish():
                def all_done():
                    clock.advance(SERVICE_S)
                    return all(each.done() for each in asked)

                eventually(all_done)
                return [each.exception() for each in asked]

            ends.callback(finish)
            ask()
            eventually(lambda: len(clock._calls) == 3)  # all have been asked
            clock.advance(SERVICE_S)
            assert asked[0].result(30).asked_ms == pytest.approx(1e3 * SERVICE_S)  # now it knows how long one takes
            for _ in range(1 + waiting):
                ask()
            return coordinator, finish

        yield build


def test_more_requests_than_may_wait_are_turned_away_at_once_with_a_hint(busy_fleet):
    coordinator, finish = busy_fleet(waiting=2, max_queued=2)
    for _ in range(5):
        with pytest.raises(OverloadedError, match="2 requests wait already, the most that may") as caught:
            coordinator.gather(INPUTS)  # in this thread: the clock stands, so it would never return if it waited
        assert caught.value.retry_after_ms == pytest.approx(1e3 * SERVICE_S * 2.5)  # two, and half of the one served
    assert finish() == [None] * 4
    assert coordinator.status()["queue"] == {"in_flight": 0, "queued": 0, "rejected": 5}
    assert coordinator.status()["requests"]["refused"] == 5


def test_a_request_that_would_be_late_is_turned_away_before_it_waits(busy_fleet):
    coordinator, _ = busy_fleet(waiting=1, deadline_ms=2.4e3 * SERVICE_S)
    with pytest.raises(OverloadedError, match="longer than its deadline"):  # 1.5 until its turn, and 1 for itself
        coordinator.gather(INPUTS)
    assert coordinator.status()["queue"] == {"in_flight": 1, "queued": 1, "rejected": 1}


def test_a_turn_that_does_not_come_by_the_deadline_is_refused_then():
    clock = SimulatedClock()
    line = RequestLine(clock, max_in_flight=1, max_queued=4)
    with line.enter(None), pytest.raises(OverloadedError, match="its turn did not come by its deadline"):
        line.enter(0.05).__enter__()
    assert clock.now() == pytest.approx(0.05)
    with line.enter(clock.now() + 1):  # and the line is as before
        assert line.status() == {"in_flight": 1, "queued": 0, "rejected": 1}


def test_the_first_to_come_is_the_first_to_be_served():
    clock = MonotonicClock()
    line, order = RequestLine(clock, max_in_flight=1, max_queued=10), []

    def visit(number):
        with line.enter(None):
            order.append(number)

    threads = []
    with line.enter(None):
        for number in range(5):
            threads.append(threading.Thread(target=visit, args=(number,)))
            threads[-1].start()
            while line.status()["queued"] <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(5))


def test_a_fault_while_being_served_frees_the_place():
    line = RequestLine(MonotonicClock(), max_in_flight=1, max_queued=0)
    for _ in range(3):
        with pytest.raises(KeyError), line.enter(None):
            raise KeyError
    assert line.status() == {"in_flight": 0, "queued": 0, "rejected": 0}


def test_calls_happen_in_the_order_of_their_times_and_not_before():
    clock, happened, done = MonotonicClock(), [], threading.Event()
    start = clock.now()
    for delay in (0.06, 0.02, 0.04):
        clock.call_at(start + delay, lambda delay=delay: happened.append((delay, clock.now() - start)))
    clock.call_at(start + 0.08, done.set)
    assert done.wait(30)
    assert [delay for delay, _ in happened] == [0.02, 0.04, 0.06]
    assert all(at >= delay for delay, at in happened)
    clock.call_at(clock.now() - 1, done.clear)  # what is past is done at once, by a new thread if the old has ended
    eventually(lambda: not done.is_set())
