# SPDX-License-Identifier: Apache-2.0
"""The local engine: schedules that answer alike, runs that are stopped, threads that end, and who may use it."""

import gc
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edvit_hf.errors import EDViTError
from edvit_hf.hardware.machine import usable_cores
from edvit_hf.hardware.timing import quiet_options
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime, LocalEngine
from edvit_hf.runtime.engines.schedules import (
    AT_ONCE,
    SCHEDULES,
    measure_schedules,
    num_lanes,
    options_for,
    quickest,
    shared_out,
    threads_for,
)
from support.tiny_ensemble import SIZE, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]
PIXELS = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
SHAPE = (1, 3, SIZE, SIZE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    write_tiny_ensemble(folder, GROUPS)
    return folder


class Stub:
    """Stands for a session: sleeps, then gives features of ones."""

    def __init__(self, seconds=0.0, features=4, votes=3):
        self.seconds, self.features, self.votes = seconds, features, votes
        self.runs = []

    def run(self, names, feeds, options=None):
        begin = time.perf_counter()
        time.sleep(self.seconds)
        self.runs.append((begin, time.perf_counter()))
        rows = len(next(iter(feeds.values())))
        return [np.ones((rows, self.features), np.float32), np.ones((rows, self.votes), np.float32)]


def engine_of(sessions, schedule):
    probe = {"pixel_values": np.zeros(SHAPE, np.float32)}
    return LocalEngine(dict(enumerate(sessions)), content_hash="0" * 64, probe=probe, schedule=schedule)


@pytest.mark.parametrize("schedule", ["auto", *SCHEDULES])
def test_every_schedule_gives_the_same_answer(root, schedule):
    expected = EDViTRuntime.from_pretrained(root, num_threads=1).predict(PIXELS)
    with EDViTRuntime.from_pretrained(root, schedule=schedule) as runtime:
        np.testing.assert_array_equal(runtime.predict(PIXELS).probabilities, expected.probabilities)
        chosen = runtime.status()["engine"]["schedule"]
    assert chosen in SCHEDULES if schedule == "auto" else chosen == schedule


def test_an_unknown_schedule_or_engine_is_named(root):
    options = "auto, in_turn, in_turn_spinning, per_core, workers"
    with pytest.raises(EDViTError, match=f"`schedule` must be one of {options}, got 'fast'"):
        EDViTRuntime.from_pretrained(root, schedule="fast")
    with pytest.raises(EDViTError, match="got 'ray'"):
        EDViTRuntime.from_pretrained(root, engine="ray")


def test_in_turn_runs_one_at_a_time():
    stubs = [Stub(0.03) for _ in range(3)]
    engine = engine_of(stubs, "in_turn")
    request = engine.request({"pixel_values": np.zeros(SHAPE, np.float32)})
    for pending in [engine.submit(index, request) for index in range(3)]:
        assert pending.result().compute_ms >= 29
    runs = [stub.runs[0] for stub in stubs]
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(runs))


def test_workers_run_at_once():
    everybody = threading.Barrier(3)

    class Meeting(Stub):
        def run(self, names, feeds, options=None):
            everybody.wait(30)  # breaks unless all three are here
            return super().run(names, feeds, options)

    engine = engine_of([Meeting() for _ in range(3)], "workers")
    request = engine.request({"pixel_values": np.zeros(SHAPE, np.float32)})
    responses = [pending.result() for pending in [engine.submit(index, request) for index in range(3)]]
    assert [response.sub_model for response in responses] == [0, 1, 2]
    assert not everybody.broken


def test_one_worker_per_core_never_runs_more_at_once_than_there_are_cores():
    stubs = [Stub(0.03) for _ in range(5)]
    probe = {"pixel_values": np.zeros(SHAPE, np.float32)}
    engine = LocalEngine(
        dict(enumerate(stubs)),
        content_hash="0" * 64,
        probe=probe,
        schedule="per_core",
        num_threads=2,
        sizes={0: 5, 1: 4, 2: 3, 3: 3, 4: 1},
    )
    for pending in [engine.submit(index, engine.request(probe)) for index in range(5)]:
        pending.result()
    runs = {index: stub.runs[0] for index, stub in enumerate(stubs)}
    for begin, _ in runs.values():
        assert sum(other[0] <= begin < other[1] for other in runs.values()) <= 2
    assert runs[3][0] >= runs[0][1] - 1e-3, "0 and 3 have one worker, 1 and 2 the other"
    assert runs[2][0] >= runs[1][1] - 1e-3


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 4))
def test_shares_are_at_most_a_third_beyond_the_best(sizes, lanes):
    sizes = sorted(sizes, reverse=True)
    share = shared_out(dict(enumerate(sizes)), lanes)
    assert list(share) == list(range(len(sizes)))

    def longest(places):
        return max(sum(size for size, place in zip(sizes, places, strict=True) if place == i) for i in range(lanes))

    best = min(longest(places) for places in itertools.product(range(lanes), repeat=len(sizes)))
    assert longest(share.values()) <= (4 / 3) * best


@pytest.mark.parametrize(
    ("schedule", "models", "threads", "lanes"),
    [("in_turn", 5, 2, 1), ("workers", 5, 2, 5), ("per_core", 5, 2, 2), ("per_core", 2, 8, 2)],
)
def test_how_many_run_at_a_time(schedule, models, threads, lanes):
    assert num_lanes(schedule, models, threads) == lanes


def test_with_a_core_for_each_there_are_no_shares_to_try(root, monkeypatch):
    tried = []

    def measure(engines, *_, **__):
        tried.append(list(engines))
        return {each: [1.0] for each in engines}

    monkeypatch.setattr("edvit_hf.runtime.engines.schedules.measure_schedules", measure)
    EDViTRuntime.from_pretrained(root, num_threads=3).close()
    EDViTRuntime.from_pretrained(root, num_threads=2).close()
    assert tried == [["in_turn", "in_turn_spinning", "workers"], list(SCHEDULES)]


def test_one_thread_or_one_sub_model_leaves_nothing_to_time(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.engines.schedules.measure_schedules", None)
    assert EDViTRuntime.from_pretrained(root, num_threads=1).status()["engine"]["schedule"] == "in_turn"
    assert EDViTRuntime.from_pretrained(root, sub_models=[1]).status()["engine"]["schedule"] == "in_turn"
    monkeypatch.setattr("edvit_hf.runtime.engines.local.usable_cores", lambda: 1)
    assert EDViTRuntime.from_pretrained(root).status()["engine"]["schedule"] == "in_turn"


def test_the_schedule_with_the_lowest_95th_percentile_is_taken():
    steady, sometimes_late = [10.0] * 40, [5.0] * 36 + [50.0] * 4
    assert quickest({"in_turn": sometimes_late, "in_turn_spinning": [11.0] * 40, "workers": steady}) == "workers"


def test_timing_stops_when_its_time_is_over_and_takes_turns():
    engines = {schedule: engine_of([Stub(0.01)], schedule) for schedule in SCHEDULES}
    begin = time.perf_counter()
    found = measure_schedules({each: engine.run_all for each, engine in engines.items()}, seconds=0.15)
    assert time.perf_counter() - begin > 0.15
    assert len({len(times) for times in found.values()}) == 1
    assert 1 <= len(found["workers"]) <= 5  # each round takes 0.03 s at least


@pytest.mark.parametrize(
    ("schedule", "models", "threads", "expected"),
    [
        ("in_turn", 3, None, min(4, usable_cores())),
        ("in_turn", 3, 8, 8),
        ("workers", 3, 8, 2),
        ("workers", 3, 2, 1),
        ("workers", 1, 16, 4),
        ("per_core", 3, 2, 1),
        ("per_core", 2, 4, 2),
    ],
)
def test_threads_of_one_run(schedule, models, threads, expected):
    assert threads_for(schedule, models, threads) == expected
    options = options_for(schedule, models, threads)
    assert options.intra_op_num_threads == expected
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_threads_that_spin_stop_with_their_run():
    options = options_for("in_turn_spinning", 3, 2)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def slow_graph(path, products=400, size=192):
    """A sub-model of many operators, a few tenths of a second on one thread."""
    nodes = [helper.make_node("Flatten", ["pixel_values"], ["flat"], axis=1)]
    nodes.append(helper.make_node("MatMul", ["flat", "first"], ["x0"]))
    nodes.append(helper.make_node("MatMul", ["column", "x0"], ["y0"]))
    for number in range(products):
        nodes.append(helper.make_node("MatMul", [f"y{number}", "square"], [f"z{number}"]))
        nodes.append(helper.make_node("Tanh", [f"z{number}"], [f"y{number + 1}"]))
    nodes.append(helper.make_node("Slice", [f"y{products}", "start", "end"], ["features"]))
    nodes.append(helper.make_node("Identity", ["features"], ["logits"]))
    rng = np.random.default_rng(0)
    constants = {
        "first": rng.normal(size=(3 * SIZE * SIZE, size)).astype(np.float32),
        "square": (rng.normal(size=(size, size)) / size**0.5).astype(np.float32),
        "column": np.ones((size, 1), np.float32),
        "start": np.array([0, 0]),
        "end": np.array([1, 4]),
    }
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, list(SHAPE))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("features", "logits")],
        [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_a_run_nobody_waits_for_is_stopped_and_the_session_stays_usable(tmp_path):
    import onnxruntime

    slow_graph(tmp_path / "slow.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "slow.onnx", quiet_options(1))
    engine = engine_of([session], "in_turn")
    request = engine.request({"pixel_values": np.ones(SHAPE, np.float32)})
    pending, waiting = engine.submit(0, request), engine.submit(0, request)
    assert waiting.cancel()  # it had not begun
    while not pending.running():
        time.sleep(0.001)
    assert not pending.cancel()
    with pytest.raises(EDViTError, match="was stopped"):  # and not a response: its end was never reached
        pending.result(timeout=30)
    first, second = (engine.submit(0, request).result() for _ in range(2))
    np.testing.assert_array_equal(first.features, second.features)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_largest_sub_model_is_asked_first_at_once_and_last_in_turn(root, schedule):
    manifest = Manifest.load(root)
    size = {entry.index: entry.variant("fp32").bytes for entry in manifest.sub_models}
    with EDViTRuntime.from_pretrained(root, schedule=schedule) as runtime:
        order = runtime.coordinator.engine.sub_models
        assert [size[index] for index in order] == sorted(size.values(), reverse=schedule in AT_ONCE)
        assert runtime.loaded == (0, 1, 2)
        assert runtime.predict(np.zeros((1, 3, SIZE, SIZE), np.float32)).present == (True, True, True)


def test_trying_all_schedules_prints_nothing(root, capfd):
    """onnxruntime writes to the process's own stream when an option is set twice."""
    with EDViTRuntime.from_pretrained(root, num_threads=2) as runtime:
        assert runtime.status()["engine"]["schedule"] in SCHEDULES
    assert capfd.readouterr() == ("", "")


def test_a_hundred_threads_get_the_same_bits(root):
    runtime = EDViTRuntime.from_pretrained(root, num_threads=1, config=CoordinatorConfig(max_queued=100))
    expected = runtime.predict(PIXELS).probabilities
    with ThreadPoolExecutor(100) as pool:
        for answer in pool.map(lambda _: runtime.predict(PIXELS), range(100)):
            np.testing.assert_array_equal(answer.probabilities, expected)
            assert not answer.degraded


def engine_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("edvit-local")}


@pytest.mark.parametrize("how", ["close", "collect"])
def test_threads_end_with_the_runtime(root, how):
    before = engine_threads()
    runtime = EDViTRuntime.from_pretrained(root, schedule="workers")
    runtime.predict(PIXELS)
    own = engine_threads() - before
    assert len(own) == 3
    if how == "close":
        runtime.close()
        with pytest.raises(EDViTError, match="was closed"):
            runtime.predict(PIXELS)
    del runtime
    gc.collect()
    for thread in own:
        thread.join(30)
        assert not thread.is_alive()


def test_work_given_to_a_closed_engine_is_cancelled():
    engine = engine_of([Stub()], "in_turn")
    engine.close()
    engine.close()
    assert engine.submit(0, engine.request({"pixel_values": np.zeros(SHAPE, np.float32)})).cancelled()


def test_a_probe_runs_the_graph(root):
    runtime = EDViTRuntime.from_pretrained(root, num_threads=1)
    response = runtime.coordinator.engine.probe(1).result(30)
    assert response.sub_model == 1
    assert response.content_hash == runtime.manifest.ensemble.content_hash
    stub = Stub(features=4)
    engine = engine_of([stub], "in_turn")
    stub.run = lambda *_: [np.full((1, 4), np.nan), np.ones((1, 3))]
    with pytest.raises(EDViTError, match="not finite"):
        engine.probe(0).result(30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["predict", "batch", "stream"])
def test_a_forked_process_is_told_to_load_its_own(root, how):
    runtime = EDViTRuntime.from_pretrained(root, num_threads=1)
    picture = np.zeros((9, 9, 3), np.uint8)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            list(getattr(runtime, how)([picture])) if how != "predict" else runtime.predict(PIXELS)
            said = b"it answered"
        except EDViTError as error:
            said = str(error).encode()
        finally:
            os.write(writing, said)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert b"start processes with `spawn`" in pipe.read()
    os.waitpid(child, 0)
