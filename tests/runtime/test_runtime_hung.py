# SPDX-License-Identifier: Apache-2.0
"""A sub-model whose run never ends: left alone after two misses, and nothing piles up behind it."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from edvit_hf.errors import QuorumError
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime, LocalEngine, MonotonicClock
from support.tiny_ensemble import SIZE, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]
PIXELS = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
PROBE = {"pixel_values": np.zeros((1, 3, SIZE, SIZE), np.float32)}
CLOSED = dict.fromkeys(range(3), "closed")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    write_tiny_ensemble(folder, GROUPS)
    return folder


class Hung:
    """Stands for a session that is at one operator for ever, or until `end` is set."""

    def __init__(self):
        self.end = threading.Event()

    def run(self, *_):
        self.end.wait(60)
        raise RuntimeError("it hung")


@pytest.fixture
def hung():
    session = Hung()
    yield session
    session.end.set()


def load(root, session, schedule, **values):
    """A runtime whose sub-model 0 is asked first, and run by `session`."""
    sound = EDViTRuntime.from_pretrained(root, num_threads=1)
    others = {index: other for index, other in sound.coordinator.engine.sessions.items() if index > 0}
    engine = LocalEngine(
        {0: session, **others}, content_hash=sound.manifest.ensemble.content_hash, probe=PROBE, schedule=schedule
    )
    config = CoordinatorConfig(**{"quorum": 1, "probe_pause_s": 60, "longest_probe_pause_s": 60, **values})
    return EDViTRuntime.from_pretrained(root, engine=engine, config=config)


def wait_until_open(runtime, **options):
    """Ask until sub-model 0 is left alone, after two misses; or more, where its thread was late to begin."""
    for asked in range(50):
        if runtime.status()["breakers"][0] == "open":
            assert asked >= 2
            return
        with pytest.raises(QuorumError):
            runtime.predict(PIXELS, deadline_ms=100, **options)
    pytest.fail("it is still asked")


def test_in_turn_only_the_one_that_hangs_is_left_alone(root, hung):
    runtime = load(root, hung, "in_turn")
    wait_until_open(runtime)
    assert runtime.status()["breakers"] == {**CLOSED, 0: "open"}  # the two that waited behind it are not blamed
    hung.end.set()
    assert runtime.predict(PIXELS, deadline_ms=30_000).missing == {0: "breaker"}


def test_a_worker_that_hangs_is_left_alone_though_its_later_requests_never_began(root, hung):
    runtime = load(root, hung, "workers")
    wait_until_open(runtime, absent=[1, 2])  # 0 is all that is asked, so that no slow machine can spoil the test
    assert runtime.status()["breakers"] == {**CLOSED, 0: "open"}
    assert runtime.predict(PIXELS, deadline_ms=30_000).missing == {0: "breaker"}


def test_who_waits_behind_a_run_that_somebody_still_waits_for_is_not_blamed(root, hung):
    engine = load(root, hung, "workers").coordinator.engine
    first, second = (engine.submit(0, engine.request(PROBE)) for _ in range(2))
    while not first.running():
        time.sleep(0.001)
    assert second.cancel()
    assert not first.cancel()
    assert not engine.submit(0, engine.request(PROBE)).cancel()  # now it is an earlier run of its own that hangs


def test_what_nobody_waits_for_any_more_is_forgotten_behind_a_run_that_hangs(root, hung):
    engine = load(root, hung, "in_turn").coordinator.engine
    first = engine.submit(0, engine.request(PROBE))
    while not first.running():
        time.sleep(0.001)
    inputs = {"pixel_values": np.zeros((1, 3, SIZE, SIZE), np.float32)}
    alive = weakref.ref(inputs["pixel_values"])
    engine.submit(1, engine.request(inputs)).cancel()
    del inputs
    gc.collect()
    assert alive() is None


def test_a_sub_model_that_can_run_nothing_costs_itself_and_not_the_answer(root, hung):
    hung.end.set()
    assert load(root, hung, "in_turn").predict(PIXELS).missing == {0: "failed"}


def test_a_forgotten_runtime_is_collected_though_a_breaker_is_open(root, hung):
    pause = {"probe_pause_s": 0.02, "longest_probe_pause_s": 0.02, "probe_timeout_s": 0.02}
    runtime = load(root, hung, "workers", misses_to_open=1, **pause)
    with pytest.raises(QuorumError):
        runtime.predict(PIXELS, absent=[1, 2], deadline_ms=50)
    alive = weakref.ref(runtime.coordinator)
    hung.end.set()
    del runtime
    end = time.monotonic() + 30
    while alive() is not None:
        assert time.monotonic() < end, "probes keep it alive"
        gc.collect()
        time.sleep(0.05)


def test_a_call_that_fails_does_not_stop_the_clock(caplog):
    clock, done = MonotonicClock(), threading.Event()
    clock.call_at(clock.now(), lambda: 1 / 0)
    clock.call_at(clock.now() + 0.01, done.set)
    assert done.wait(30)
    assert "a call at a set time failed" in caplog.text
