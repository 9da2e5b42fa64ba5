# SPDX-License-Identifier: Apache-2.0
"""A child process: what it answers, what it may not do, and what becomes of a question that harms it."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.isolation import Child, ChildLimits, IsolationError, Message, Pool, as_bytes

ENTRY = "support.isolated_jobs:Misbehaving"
LIMITS = ChildLimits(memory_bytes=300 << 20, cpu_seconds=1.0)
HARM = {
    "fail": "died",
    "panic": "died",
    "exit": "died",
    "die": "died",
    "crash": "died",
    "be_killed": "died",
    "swell": "memory",
    "compute": "time",
    "sleep": "time",
    "say_too_much": "nonsense",
}
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limits of Linux")


def start(**options):
    return Child(ENTRY, Message("setup", {"factor": 2}), limits=LIMITS, max_bytes=1 << 22, **options)


@pytest.fixture(scope="module")
def pool():
    with Pool(start, workers=1, spares=1) as pool:
        yield pool


def double(asked, **options):
    return asked.ask(Message("double", arrays={"x": np.ones(3, np.float32)}), seconds=20, **options).arrays["x"]


def test_a_child_answers_with_arrays_of_every_type_and_shape(pool):
    arrays = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float64(3),
        "bytes": as_bytes(b"\x01\x02"),
        "ä": np.ones((1, 3, 224, 224), np.float32),
    }
    answer = pool.ask(Message("double", {"n": 1}, arrays), seconds=20)
    assert (answer.kind, answer.values) == ("doubled", {"text": "ä"})
    for name, array in arrays.items():
        assert answer.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(answer.arrays[name], 2 * array)
    assert pool.ask(Message("double", {"odd": True}), seconds=20).values == {"text": "ä\ud800"}


@pytest.mark.parametrize(
    ("kind", "error", "quotes"),
    [
        ("refuse", DataError, True),
        ("refuse_with_ours", DataError, False),
        ("refuse_with_more_than_a_text", EDViTError, False),
        ("refuse_with_a_class_of_its_own", EDViTError, False),
        ("say_nonsense", EDViTError, False),
    ],
)
def test_an_error_of_ours_is_raised_again_and_the_child_goes_on(pool, kind, error, quotes):
    before = pool.pids()
    with pytest.raises(error) as raised:
        pool.ask(Message(kind), seconds=20)
    assert type(raised.value) is error
    assert not isinstance(raised.value, IsolationError)
    assert (raised.value.__cause__ is not None) is quotes, "who shows the text must know whether it is all ours"
    assert double(pool).tolist() == [2, 2, 2]
    assert set(before) <= set(pool.pids())


@pytest.mark.parametrize(("kind", "why"), HARM.items())
def test_a_question_that_harms_its_child_costs_only_itself(pool, kind, why):
    with pytest.raises(IsolationError) as raised:
        pool.ask(Message(kind), seconds=0.2 if kind == "sleep" else 20)
    assert raised.value.why == why
    assert double(pool).tolist() == [2, 2, 2]
    assert pool.why_not_ready() is None


def test_what_is_printed_is_no_answer(pool):
    assert pool.ask(Message("print"), seconds=20).kind == "printed"
    assert double(pool).tolist() == [2, 2, 2]


@ON_LINUX
def test_a_child_writes_no_files_and_sees_no_secrets(pool, tmp_path, monkeypatch):
    assert pool.ask(Message("write", {"path": str(tmp_path / "x")}), seconds=20).kind == "refused"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("EDVIT_SERVE_TOKEN", "secret")
    with (tmp_path / "open").open("w"), start() as child:
        seen = child.ask(Message("look_around"), seconds=20).values
    assert "secret" not in str(seen["environment"])
    assert (seen["folder"], seen["modules"], seen["parent"]) == ("/", [], os.getpid())
    assert (seen["RLIMIT_CORE"], seen["RLIMIT_NPROC"]) == (0, 0)
    assert seen["open"] <= 7, "nothing of the parent's open files: three standard ones, two pipes, and the listing"


@ON_LINUX
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
def test_a_child_ends_with_its_parent_whatever_it_does(is_busy):
    code = (
        "import os, sys, threading, time\n"
        "from edvit_hf.isolation import Child, Message\n"
        f"child = Child({ENTRY!r})\n"
        "if sys.argv[1] == 'True':\n"
        "    busy = lambda: child.ask(Message('compute'), seconds=50)\n"
        "    threading.Thread(target=busy, daemon=True).start()\n"
        "time.sleep(0.2)\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(is_busy)], env=_with_tests(), stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 10
    while _is_running(int(told.stdout)):
        assert time.monotonic() < end, "the child outlives its parent"
        time.sleep(0.02)


def _with_tests():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_job_that_cannot_be_made_is_told_and_one_that_hangs_is_given_up():
    with pytest.raises(DataError, match="this job is not made"):
        Child(ENTRY, Message("setup", {"refuses": True}), limits=LIMITS)
    with pytest.raises(IsolationError, match=r"within 0\.4 s") as raised:
        Child(ENTRY, Message("setup", {"hangs": True}), limits=LIMITS, start_seconds=0.4)
    assert raised.value.why == "start"
    with pytest.raises(IsolationError) as raised:
        Child("support.isolated_jobs:Missing", limits=LIMITS)
    assert raised.value.why == "start"


def test_a_spare_answers_while_a_slow_question_is_ended_and_the_pool_says_when_it_cannot(monkeypatch):
    monkeypatch.setattr("edvit_hf.isolation.pool.STUCK_SECONDS", 0.2)
    with Pool(start, workers=2, spares=1) as two:
        _wait_for(lambda: len(two.pids()) == 3)
        slow = [threading.Thread(target=_ask_and_forget, args=(two, 0.8)) for _ in range(2)]
        slow[0].start()
        time.sleep(0.05)
        begin = time.monotonic()
        assert double(two).tolist() == [2, 2, 2]
        assert time.monotonic() - begin < 0.75
        assert two.why_not_ready() is None
        slow[1].start()
        time.sleep(0.05)
        with pytest.raises(IsolationError) as raised:
            double(two, wait_seconds=0.05)
        assert raised.value.why == "busy"
        _wait_for(lambda: "at work" in (two.why_not_ready() or ""))
        for thread in slow:
            thread.join()
        assert double(two).tolist() == [2, 2, 2]
        assert two.why_not_ready() is None
        _wait_for(lambda: two.replaced == 2 and len(two.pids()) == 3)
    assert "closed" in two.why_not_ready()


def _ask_and_forget(pool, seconds):
    with pytest.raises(IsolationError):
        pool.ask(Message("sleep"), seconds=seconds)


def _wait_for(is_so, seconds=20):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_pool_under_load_does_not_try_to_start_children_more_often():
    attempts = []

    def start_once():
        attempts.append(None)
        if len(attempts) > 1:
            raise IsolationError("no memory", "start")
        return start()

    with Pool(start_once, workers=1, spares=1) as pool:
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            double(pool)
        assert 2 <= len(attempts) <= 6  # the first one, then after 0, 0.25, 0.75 and 1.75 s; else dozens


def test_a_pool_whose_children_do_not_start_says_so_and_comes_back():
    can_start = [True]

    def start_if_possible():
        if not can_start[0]:
            raise IsolationError("no memory", "start")
        return start()

    with Pool(start_if_possible, workers=1, spares=0) as pool:
        can_start[0] = False
        with pytest.raises(IsolationError):
            pool.ask(Message("die"), seconds=20)
        _wait_for(lambda: "no memory" in (pool.why_not_ready() or ""))
        can_start[0] = True
        assert double(pool).tolist() == [2, 2, 2]
        assert pool.why_not_ready() is None
