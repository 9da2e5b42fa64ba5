# SPDX-License-Identifier: Apache-2.0
"""Graphs that never end, in a sub-model or the fusion head: loading ends, deadlines hold, and so does the exit code."""

import contextlib
import copy
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from edvit_hf.errors import DeadlineError, EDViTError, ManifestError
from edvit_hf.runtime import EDViTRuntime, sessions
from edvit_hf.runtime.engines import lanes
from support.hostile_graphs import FUSION, SUB_MODEL, make_endless, make_heavy
from support.tiny_ensemble import SIZE, write_tiny_ensemble

pytestmark = pytest.mark.slow

GROUPS = [[0, 3], [1], [2, 4]]
PIXELS = np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture
def root(tmp_path):
    write_tiny_ensemble(tmp_path, GROUPS)
    return tmp_path


@pytest.fixture(scope="module")
def endless_fusion(tmp_path_factory):
    """A runtime whose fusion head answers zeros, and nothing else."""
    root = tmp_path_factory.mktemp("endless")
    write_tiny_ensemble(root, GROUPS)
    make_endless(root, FUSION, spares_zeros=True)
    with EDViTRuntime.from_pretrained(root, num_threads=1, deadline_ms=20_000) as runtime:
        yield runtime


def load(root, **options):
    return EDViTRuntime.from_pretrained(root, **{"num_threads": 1, **options})


ASKED = {
    "predict": lambda runtime: runtime.predict(PIXELS, deadline_ms=300),
    "a call": lambda runtime: runtime(np.eye(9, dtype=np.uint8)[..., None].repeat(3, 2), deadline_ms=300),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_fusion_head_that_never_ends_costs_the_deadline_and_no_more(endless_fusion, asked):
    begin = time.monotonic()
    for _ in range(2):  # the run before is stopped, so that it stands in nobody's way
        with pytest.raises(DeadlineError, match="fusion head to answer within 0"):
            ASKED[asked](endless_fusion)
    assert 0.5 < time.monotonic() - begin < 5


@pytest.mark.parametrize("how", ["batch", "stream"])
def test_of_several_inputs_each_is_told_that_the_fusion_head_is_late(endless_fusion, how):
    pictures = [np.eye(9, dtype=np.uint8)[..., None].repeat(3, 2)] * 2
    outcomes = list(getattr(endless_fusion, how)(pictures, deadline_ms=300))
    assert [type(outcome.error) for outcome in outcomes] == [DeadlineError] * 2


@pytest.mark.parametrize("how", ["explain", "predict_without"])
def test_what_would_be_without_somebody_has_a_deadline_too(root, how):
    make_endless(root, FUSION, spares_zeros=True)
    runtime = load(root, deadline_ms=300)
    asked = {"explain": (np.eye(9, dtype=np.uint8)[..., None].repeat(3, 2),), "predict_without": (PIXELS, [[0]])}
    with pytest.raises(DeadlineError):
        getattr(runtime, how)(*asked[how])


def test_without_a_deadline_a_fusion_head_is_not_waited_for_for_ever(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.ensemble.LONGEST_FUSION_SECONDS", 0.3)
    make_endless(root, FUSION, spares_zeros=True)
    with pytest.raises(DeadlineError):
        load(root).predict(PIXELS)


def test_a_fusion_head_that_cannot_be_stopped_costs_the_deadline_too(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.opening.WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr(lanes, "CLOSE_SECONDS", 0.1)
    make_heavy(root, FUSION, 4000)
    with pytest.raises(ManifestError, match=f"{FUSION}: expected a fusion head that answers"):
        load(root)


@pytest.mark.parametrize("schedule", ["auto", "in_turn", "workers"])
@pytest.mark.parametrize("file", [FUSION, SUB_MODEL])
def test_loading_ends_though_a_graph_does_not(root, monkeypatch, schedule, file):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr("edvit_hf.runtime.opening.WARM_UP_SECONDS", 0.2)
    make_endless(root, file, spares_zeros=False)
    begin = time.monotonic()
    if file == FUSION:
        with pytest.raises(ManifestError, match=f"{FUSION}: expected a fusion head that answers"):
            load(root, num_threads=2, schedule=schedule)
    else:
        runtime = load(root, num_threads=2, schedule=schedule)
        assert runtime.predict(PIXELS, deadline_ms=300).missing[1] == "deadline"
    assert time.monotonic() - begin < 10


def test_of_the_schedules_one_is_taken_that_lets_a_sub_model_that_hangs_hold_up_no_other(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.WARM_UP_SECONDS", 0.1)
    make_endless(root, SUB_MODEL, spares_zeros=False)
    assert load(root, num_threads=2).coordinator.engine.schedule == "workers"


def test_a_sub_model_that_hangs_only_while_the_schedules_are_tried_is_found_too(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.MEASURE_SECONDS", 0.0)
    assert load(root, num_threads=2).coordinator.engine.schedule == "workers"


def test_a_graph_that_computes_without_end_while_it_is_opened_is_given_up(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.OPEN_SECONDS", 0.0)
    with pytest.raises(ManifestError, match="expected a graph that opens within"):
        load(root)


def test_what_is_constant_in_a_graph_is_not_computed_for_ever_while_it_is_opened(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.OPEN_SECONDS", 0.3)
    make_heavy(root, SUB_MODEL, 4500, is_constant=True)
    begin = time.monotonic()
    with pytest.raises(ManifestError, match=f"{SUB_MODEL}: expected a graph that opens within"):
        load(root)
    assert time.monotonic() - begin < 2


def slowly(monkeypatch, seconds):
    """Have onnxruntime take so long for the n-th file that is opened; later ones open at once."""
    real, waits = onnxruntime.InferenceSession, iter(seconds)

    def opened(*arguments, **options):
        time.sleep(next(waits, 0))
        return real(*arguments, **options)

    monkeypatch.setattr("edvit_hf.runtime.sessions.onnxruntime.InferenceSession", opened)


def test_every_file_has_its_own_time_and_reading_it_costs_none(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.OPEN_SECONDS", 1.0)
    real = sessions.verified_graph

    @contextlib.contextmanager
    def slow_disk(*arguments):
        time.sleep(0.4)
        with real(*arguments) as path:
            yield path

    monkeypatch.setattr(sessions, "verified_graph", slow_disk)
    slowly(monkeypatch, [0.4] * 3)
    with load(root) as runtime:
        assert runtime.loaded == (0, 1, 2)


@pytest.mark.parametrize(
    ("limit", "seconds", "named"),
    [
        (5, [0, 0.5], r"model\.onnx: expected a graph that opens within 0\.2 s, got"),
        (0.5, [0.5], r"opens within 0\.1 s, what was left for all files together, got"),
    ],
)
def test_the_seconds_that_a_file_had_are_named(root, monkeypatch, limit, seconds, named):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.OPEN_SECONDS", 0.2)
    monkeypatch.setattr("edvit_hf.runtime.engines.local.FILES_AT_THEIR_LIMIT", limit)
    slowly(monkeypatch, seconds)
    with pytest.raises(ManifestError, match=named):
        load(root)


def test_what_is_opened_after_it_was_given_up_is_still_the_file_that_was_checked(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.OPEN_SECONDS", 0.1)
    found, is_over = [], threading.Event()

    def opened(path, *_, **__):
        is_over.wait(30)
        found.append(Path(path).read_bytes())

    monkeypatch.setattr("edvit_hf.runtime.sessions.onnxruntime.InferenceSession", opened)
    with pytest.raises(ManifestError, match="expected a graph that opens within"):
        load(root)
    with contextlib.ExitStack() as files:  # whatever number became free is somebody else's now
        for _ in range(20):
            files.enter_context((root / "manifest.json").open("rb"))
        is_over.set()
        assert lanes.stop_everything(30)
    assert len(found) == 1
    assert found[0] in [path.read_bytes() for path in root.rglob("*.onnx")]


SLOW = {
    "the first schedule takes all the time": ([0.4] * 3, {"in_turn"}),
    "a file of the second does not open": ([0, 0, 0, 1.2], {"in_turn"}),
    "a file of the third does not open": ([0] * 7 + [1.2], {"in_turn", "in_turn_spinning"}),
}


@pytest.mark.parametrize("case", SLOW)
def test_schedules_that_cannot_be_opened_in_time_are_given_up_rather_than_the_ensemble(root, monkeypatch, case, caplog):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.OPEN_SECONDS", 1.0)
    seconds, tried = SLOW[case]
    slowly(monkeypatch, seconds)
    with load(root, num_threads=2, schedule="auto") as runtime:
        assert runtime.coordinator.engine.schedule in tried
        assert runtime.predict(PIXELS).missing == {}
    assert "not tried" in caplog.text


def test_of_the_schedules_that_are_left_the_last_is_taken_where_a_sub_model_hangs(root, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.engines.local.OPEN_SECONDS", 1.0)
    monkeypatch.setattr("edvit_hf.runtime.engines.local.WARM_UP_SECONDS", 0.1)
    make_endless(root, SUB_MODEL, spares_zeros=False)
    slowly(monkeypatch, [0] * 7 + [1.2])
    assert load(root, num_threads=2).coordinator.engine.schedule == "in_turn_spinning"


def test_closing_stops_what_runs(root):
    make_endless(root, SUB_MODEL, spares_zeros=True)
    runtime = load(root, schedule="in_turn")
    raised = []

    def ask():
        try:
            runtime.predict(PIXELS)
        except EDViTError as error:
            raised.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    lane = runtime.coordinator.engine._lanes[1]
    while lane.current is None or lane.current.index != 1:
        time.sleep(0.001)
    runtime.close()
    assert not lane._thread.is_alive()
    asking.join(30)
    assert not asking.is_alive()
    assert len(raised) <= 1


# With 800 ms the copy that fills the matrix is over, so that the product runs: that ends long after the process.
_LATE = """
import sys
import numpy as np
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from edvit_hf.runtime.engines import lanes, local
lanes.EXIT_SECONDS, local.WARM_UP_SECONDS = float(sys.argv[2]), 0.01
pixels = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
config = CoordinatorConfig(deadline_ms=float(sys.argv[3]), quorum=1)
runtime = EDViTRuntime.from_pretrained(sys.argv[1], num_threads=1, schedule="workers", config=config)
print(runtime.predict(pixels).missing[1])
sys.exit(7)
"""


@pytest.mark.parametrize(
    ("side", "exit_seconds", "deadline_ms"),
    [(2400, 20, 80), (2400, 0.001, 80), (6000, 0.1, 800)],
    ids=["stops after its operator", "stops while the interpreter ends", "does not stop"],
)
def test_an_operator_that_still_runs_at_exit_costs_neither_answer_nor_exit_code(root, side, exit_seconds, deadline_ms):
    make_heavy(root, SUB_MODEL, side)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _LATE, str(root), str(exit_seconds), str(deadline_ms)],
        **{"capture_output": True, "text": True, "timeout": 60, "check": False},
    )
    assert (done.returncode, done.stdout) == (7, "deadline\n"), done.stderr
    assert time.monotonic() - began < 20


_COMMAND = """
import sys
from edvit_hf.cli import main
from edvit_hf.runtime.engines import lanes, local
lanes.EXIT_SECONDS, local.WARM_UP_SECONDS = 0.1, 0.01
sys.argv[1:] = ["predict", sys.argv[1], sys.argv[2], "--schedule", "workers", "--deadline-ms", "800"]
main()
"""


def test_a_command_ends_well_though_an_operator_does_not_stop(root, tmp_path):
    make_heavy(root, SUB_MODEL, 6000)
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, str(root), str(tmp_path / "image.png")],
        **{"capture_output": True, "text": True, "timeout": 60, "check": False},
    )
    assert done.returncode == 0, done.stderr
    assert "without sub-model 1" in done.stdout


def camera(ready):
    yield np.zeros((9, 9, 3), np.uint8)
    ready.wait(60)  # the next picture
    yield np.ones((9, 9, 3), np.uint8)


@pytest.mark.parametrize("how", ["close", "break", "throw", "forgotten"])
def test_a_stream_is_left_at_once_though_its_source_has_nothing_yet(root, how):
    runtime, ready = load(root), threading.Event()
    begin = time.monotonic()
    stream = runtime.stream(camera(ready))
    next(stream)
    if how == "close":
        stream.close()
    elif how == "throw":
        with pytest.raises(KeyError):
            stream.throw(KeyError("of the caller"))
    del stream
    assert time.monotonic() - begin < 10
    ready.set()


_WAITING = """
import sys, threading
import numpy as np
from edvit_hf.runtime import EDViTRuntime
def camera():
    yield np.zeros((9, 9, 3), np.uint8)
    threading.Event().wait(60)
stream = EDViTRuntime.from_pretrained(sys.argv[1], num_threads=1).stream(camera())
next(stream)
print("waiting", flush=True)
next(stream)
"""


def test_control_c_ends_a_stream_that_waits_for_its_source(root):
    command = [sys.executable, "-c", _WAITING, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == -signal.SIGINT
    assert "\nKeyboardInterrupt" in said


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_a_runtime_says_why_it_cannot_be_copied_or_sent(root, how):
    with pytest.raises(EDViTError, match="each process load its own"):
        how(load(root))
