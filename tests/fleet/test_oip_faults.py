# SPDX-License-Identifier: Apache-2.0
"""Faults of several machines, injected into real `edvit worker` processes: killed, stopped, cut off, lying, stale."""

import contextlib
import random
import signal
import time

import numpy as np
import pytest

from edvit_hf.errors import EDViTError, QuorumError
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from edvit_hf.runtime.engines.oip import OIPEngine
from support.cut_link import CutLink
from support.device_shares import copy_share
from support.tiny_ensemble import TASK_GROUPS, write_tiny_ensemble
from support.worker_processes import WorkerProcess, start_all, workers_of

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 9, 3), dtype=np.uint8)
DEADLINE_MS = 800.0
LONG_MS = 30_000.0
QUICK = {"probe_pause_s": 0.1, "longest_probe_pause_s": 0.2, "probe_timeout_s": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    write_tiny_ensemble(folder, TASK_GROUPS)
    return folder


@pytest.fixture(scope="module")
def devices(root, tmp_path_factory):
    """pi0 runs sub-model 0, pi1 1, and pi2 2; pi2 also has a file of 1."""
    shares = [copy_share(root, tmp_path_factory.mktemp(f"pi{n}"), *held) for n, held in enumerate(([0], [1], [2, 1]))]
    started = start_all(*(lambda share=share: WorkerProcess(share) for share in shares))
    with workers_of(*started):
        yield started


@pytest.fixture
def fleet(devices):
    """The devices, all of which answer before and after a test."""
    yield devices
    for each in devices:
        if each.process.poll() is None:
            each.send(signal.SIGCONT)
        else:
            each.start()


@pytest.fixture(scope="module")
def local(root):
    with EDViTRuntime.from_pretrained(root, num_threads=1) as runtime:
        yield runtime


def addresses(devices):
    return {f"pi{number}": each.address for number, each in enumerate(devices)}


def placement_of(root, replicas=()):
    entry = Manifest.load(root).ensemble
    placed = {f"pi{n}": PlacedDevice(profile="x", sub_models=[PlacedFile(index=n)]) for n in range(3)}
    placed["pi2"].replicas.extend(PlacedFile(index=index) for index in replicas)
    identity = EnsembleIdentity(id=entry.id, content_hash=entry.content_hash)
    return PlacementFile(ensemble=identity, fleet="test", num_sub_models=3, devices=placed)


def runtime_of(root, devices, *, replicas=(), deadline_ms=LONG_MS, **config):
    # Without pings of the transport: a device that hangs is noticed by the deadline alone.
    placement = placement_of(root, replicas)
    engine = OIPEngine(addresses(devices), placement=placement, probe_pause_s=0.1, keepalive_s=None)
    settings = CoordinatorConfig(deadline_ms=deadline_ms, **{**QUICK, **config})
    runtime = EDViTRuntime.from_pretrained(root, engine=engine, config=settings)
    assert runtime(IMAGE, deadline_ms=LONG_MS).missing == {}  # and it is connected
    return runtime


def until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def check_equal(local, answer):
    expected = local(IMAGE, absent=sorted(answer.missing))
    np.testing.assert_array_equal(answer.probabilities, expected.probabilities)


def test_a_killed_device_is_missing_at_once_and_back_without_a_new_coordinator(root, fleet, local):
    with runtime_of(root, fleet) as runtime:
        fleet[1].send(signal.SIGKILL)
        answer = runtime(IMAGE)
        assert answer.missing == {1: "unavailable"}
        assert answer.total_milliseconds < LONG_MS / 4  # the deadline is not waited for
        assert answer.missing_classes == ("class_1",)
        check_equal(local, answer)
        assert runtime(IMAGE).missing == {1: "breaker"}
        fleet[1].start()
        until(lambda: not _missing(runtime))
        check_equal(local, runtime(IMAGE))


def test_a_stopped_device_is_left_alone_after_two_misses_and_taken_back_when_it_goes_on(root, fleet, local):
    with runtime_of(root, fleet, deadline_ms=DEADLINE_MS) as runtime:
        fleet[1].send(signal.SIGSTOP)
        reasons = [runtime(IMAGE).missing.get(1) for _ in range(4)]
        assert reasons[:2] == ["deadline"] * 2
        assert "breaker" in reasons
        check_equal(local, runtime(IMAGE))
        fleet[1].send(signal.SIGCONT)
        until(lambda: not _missing(runtime))


def test_a_stopped_device_does_not_hold_up_a_request_without_a_deadline_for_ever(root, fleet):
    engine = OIPEngine(addresses(fleet), placement=placement_of(root), keepalive_s=0.2)
    with EDViTRuntime.from_pretrained(root, engine=engine, config=CoordinatorConfig(**QUICK)) as runtime:
        assert runtime(IMAGE).missing == {}
        fleet[1].send(signal.SIGSTOP)
        time.sleep(0.1)  # or it may answer once more
        begin = time.monotonic()
        assert runtime(IMAGE).missing == {1: "unavailable"}  # pings of the transport went unanswered
        assert time.monotonic() - begin < 30  # gRPC's own minute is not waited for


def test_the_replica_of_a_killed_device_answers_within_the_same_request(root, fleet):
    with runtime_of(root, fleet, replicas=[1]) as runtime:
        fleet[1].send(signal.SIGKILL)
        assert [runtime(IMAGE).missing for _ in range(3)] == [{}, {}, {}]
        routes = runtime.status()["engine"]["routes"]["1"]
        assert [each["health"] for each in routes] == ["unreachable", "up"]
        fleet[1].start()
        until(lambda: runtime.status()["engine"]["routes"]["1"][0]["health"] == "up")


def test_the_replica_of_a_stopped_device_is_asked_first_from_the_next_request_on(root, fleet):
    with runtime_of(root, fleet, replicas=[1], deadline_ms=DEADLINE_MS) as runtime:
        fleet[1].send(signal.SIGSTOP)
        assert runtime(IMAGE).missing[1] == "deadline"
        assert [runtime(IMAGE, deadline_ms=LONG_MS).missing for _ in range(3)] == [{}, {}, {}]
        fleet[1].send(signal.SIGCONT)
        until(lambda: runtime.status()["engine"]["routes"]["1"][0]["health"] == "up")
        assert runtime(IMAGE, deadline_ms=LONG_MS).missing == {}


def test_a_link_that_swallows_everything_is_a_device_that_hangs_and_one_that_is_mended_is_taken_back(root, fleet):
    with CutLink(fleet[1].port) as link:
        workers = {**addresses(fleet), "pi1": f"127.0.0.1:{link.port}"}
        engine = OIPEngine(workers, placement=placement_of(root), keepalive_s=0.3)
        config = CoordinatorConfig(deadline_ms=DEADLINE_MS, **QUICK)
        with EDViTRuntime.from_pretrained(root, engine=engine, config=config) as runtime:
            assert runtime(IMAGE, deadline_ms=LONG_MS).missing == {}
            link.cut()
            until(lambda: _missing(runtime).get(1) == "breaker")
            link.mend()
            until(lambda: not _missing(runtime))


def test_without_a_quorum_there_is_no_answer_and_it_is_told_at_once(root, fleet):
    with runtime_of(root, fleet) as runtime:
        for each in fleet[:2]:
            each.send(signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(QuorumError, match="0 unavailable; 1 unavailable"):
            runtime(IMAGE)
        assert time.monotonic() - begin < LONG_MS / 4e3


def test_setting_the_time_of_day_moves_no_deadline(root, fleet, monkeypatch):
    with runtime_of(root, fleet) as runtime:
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert runtime(IMAGE, deadline_ms=LONG_MS).missing == {}


def test_every_answer_under_random_faults_is_the_local_engines_for_those_present(root, fleet, local):
    rng, alive = random.Random(0), {0: "up", 1: "up", 2: "up"}
    expected = {}
    with runtime_of(root, fleet, replicas=[1], deadline_ms=DEADLINE_MS) as runtime:
        for number in range(120):
            if number % 6 == 5:
                _disturb(rng, fleet, alive)
            with contextlib.suppress(QuorumError):
                answer = runtime(IMAGE)
                key = tuple(sorted(answer.missing))
                if key not in expected:
                    expected[key] = local(IMAGE, absent=key).probabilities
                np.testing.assert_array_equal(answer.probabilities, expected[key])
        assert runtime.status()["requests"]["refused"] == 0
        for each in fleet:
            if each.process.poll() is None:
                each.send(signal.SIGCONT)
            else:
                each.start()
        until(lambda: not _missing(runtime))


def _missing(runtime):
    try:
        return runtime(IMAGE).missing
    except EDViTError:
        return {"all": "no quorum"}


def _disturb(rng, fleet, alive):
    """Kill, stop, let go on, or start one device again; at most one is down at a time."""
    down = [number for number, state in alive.items() if state != "up"]
    if down:
        number = down[0]
        if alive[number] == "stopped":
            fleet[number].send(signal.SIGCONT)
        else:
            fleet[number].start(wait=False)
        alive[number] = "up"
        return
    number = rng.randrange(3)
    alive[number] = rng.choice(["stopped", "killed"])
    if fleet[number].process.poll() is None:
        fleet[number].send(signal.SIGSTOP if alive[number] == "stopped" else signal.SIGKILL)
