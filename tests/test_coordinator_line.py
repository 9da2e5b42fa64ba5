"""The line before the sub-models, on the machine's own clock: bounded, in order, and refused early with a hint."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edvit_hf.errors import EDViTError, OverloadedError, QuorumError
from edvit_hf.runtime import Coordinator, CoordinatorConfig, Faults, FaultyEngine, MonotonicClock, StubEngine
from edvit_hf.runtime.admission import Admission
from tiny_ensemble import SIZE, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]
INPUTS = {"pixel_values": np.zeros((1, 3, SIZE, SIZE), np.float32)}
SERVICE_S = 0.05


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_tiny_ensemble(tmp_path_factory.mktemp("ensemble"), GROUPS)


def slow_fleet(manifest, **values):
    """A coordinator whose sub-models take `SERVICE_S` for every answer."""
    clock = MonotonicClock()
    engine = FaultyEngine(StubEngine(manifest), clock, {i: Faults(latency_ms=1e3 * SERVICE_S) for i in range(3)})
    return Coordinator(manifest, engine, CoordinatorConfig(**values), clock=clock)


def attempts(coordinator, count):
    """What becomes of `count` requests that come at once: (seconds, error or None) of each."""
    barrier = threading.Barrier(count)

    def one(_):
        barrier.wait()
        begin = time.monotonic()
        try:
            coordinator.gather(INPUTS)
        except EDViTError as error:
            return time.monotonic() - begin, error
        return time.monotonic() - begin, None

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_more_requests_than_may_wait_are_turned_away_at_once_with_a_hint(manifest):
    coordinator = slow_fleet(manifest, max_queued=2)
    coordinator.gather(INPUTS)  # now it knows how long one takes
    found = attempts(coordinator, 8)
    refused = [(seconds, error) for seconds, error in found if error is not None]
    assert len(refused) == 5
    for seconds, error in refused:
        assert isinstance(error, OverloadedError)
        assert seconds < SERVICE_S
        assert 1e3 * SERVICE_S * 0.5 < error.retry_after_ms < 1e3 * SERVICE_S * 10
    assert coordinator.status()["queue"] == {"in_flight": 0, "queued": 0, "rejected": 5}
    assert coordinator.status()["requests"]["refused"] == 5


def test_a_request_that_would_be_late_is_turned_away_before_it_waits(manifest):
    coordinator = slow_fleet(manifest, deadline_ms=2.5e3 * SERVICE_S)
    coordinator.gather(INPUTS)
    found = attempts(coordinator, 12)
    served = [seconds for seconds, error in found if error is None]
    refused = [error for _, error in found if error is not None]
    assert len(served) <= 3
    # One whose turn came so late that nobody could answer any more is no line's fault.
    assert all(isinstance(error, (OverloadedError, QuorumError)) for error in refused)
    assert any("longer than its deadline" in str(error) for error in refused)
    assert all(seconds < 2.5 * SERVICE_S + 0.5 for seconds in served)


def test_a_turn_that_does_not_come_by_the_deadline_is_refused_then(manifest):
    clock = MonotonicClock()
    line = Admission(clock, max_in_flight=1, max_queued=4)
    begin = clock.now()
    with line.enter(None), pytest.raises(OverloadedError, match="its turn did not come by its deadline"):
        line.enter(begin + 0.05).__enter__()
    assert 0.04 < clock.now() - begin < 1
    with line.enter(clock.now() + 1):  # and the line is as before
        assert line.status() == {"in_flight": 1, "queued": 0, "rejected": 1}


def test_the_first_to_come_is_the_first_to_be_served():
    clock = MonotonicClock()
    line, order = Admission(clock, max_in_flight=1, max_queued=10), []

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
    line = Admission(MonotonicClock(), max_in_flight=1, max_queued=0)
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
    assert done.wait(5)
    assert [delay for delay, _ in happened] == [0.02, 0.04, 0.06]
    assert all(at >= delay for delay, at in happened)
    clock.call_at(clock.now() - 1, done.clear)  # what is past is done at once, by a new thread if the old has ended
    for _ in range(1000):
        if not done.is_set():
            return
        time.sleep(0.005)
    raise AssertionError("a call in the past was never made")
