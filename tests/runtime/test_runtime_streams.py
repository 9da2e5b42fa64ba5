# SPDX-License-Identifier: Apache-2.0
"""Several inputs: batches and streams give the answers of single calls, and one bad input costs only its own."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime, LocalEngine, MonotonicClock, Outcome
from edvit_hf.tasks import TASKS
from support.drills import Faults, FaultyEngine
from support.tiny_ensemble import FEATURES, WORDS

pytest_plugins = ["support.task_fixtures"]
BAD = {
    "image-classification": [b"no picture", np.zeros((1, 1, 3), np.uint8), None],
    "audio-classification": [b"no sound", np.zeros(0, np.float32), None],
    "text-classification": [b"bytes", 3, None],
}


def sources(task, count=5, seed=0):
    rng = np.random.default_rng(seed)
    if task == "image-classification":
        return [rng.integers(0, 256, (9 + i, 20 - i, 3), dtype=np.uint8) for i in range(count)]
    if task == "audio-classification":
        return [rng.normal(size=1000 + 500 * i).astype(np.float32).clip(-4, 4) / 4 for i in range(count)]
    return [" ".join(rng.choice(WORDS[4:], size=1 + i)) for i in range(count)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("way", ["batch", "stream", "stream of batches"])
def test_many_are_answered_as_one_by_one_and_bad_ones_cost_only_themselves(runtimes, task, way):
    runtime, given_ = runtimes[task], sources(task)
    mixed = [given_[0], BAD[task][0], *given_[1:4], BAD[task][1], given_[4], BAD[task][2]]
    if way == "batch":
        outcomes = runtime.batch(mixed, absent=[1])
    else:
        outcomes = list(runtime.stream(iter(mixed), absent=[1], batch_size=1 if way == "stream" else 3))
    assert [outcome.index for outcome in outcomes] == list(range(8))
    assert [isinstance(outcome.error, DataError) for outcome in outcomes] == [
        False,
        True,
        False,
        False,
        False,
        True,
        False,
        True,
    ]
    answered = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    for source, answer in zip(given_, answered, strict=True):
        alone = runtime(source, absent=[1])
        np.testing.assert_allclose(answer.probabilities, alone.probabilities, atol=1e-6)
        np.testing.assert_allclose(answer.votes[2], alone.votes[2], atol=1e-6)
        assert answer.label == alone.label
        assert answer.missing == {1: "absent"}
        assert answer.missing_classes == ("class_1",)
        assert answer.bytes_sent == (4 * FEATURES, 0, 4 * FEATURES)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), max_size=6), batch_size=st.integers(1, 4))
def test_texts_of_any_lengths_pad_each_other_without_effect(runtimes, lengths, batch_size):
    runtime = runtimes["text-classification"]
    texts = [" ".join(WORDS[4 : 4 + length]) for length in lengths]
    for outcomes in (runtime.batch(texts), list(runtime.stream(texts, batch_size=batch_size))):
        assert len(outcomes) == len(texts)
        for text, outcome in zip(texts, outcomes, strict=True):
            np.testing.assert_allclose(outcome.answer.probabilities, runtime(text).probabilities, atol=1e-6)


def test_an_input_that_only_the_graph_refuses_is_found_in_its_batch(runtimes, monkeypatch):
    runtime = runtimes["text-classification"]
    inputs = runtime.transform.inputs

    def with_unknown_token(text):
        made = inputs(text)
        return {**made, "input_ids": made["input_ids"] + len(WORDS)} if text == "bad" else made

    monkeypatch.setattr(runtime.transform, "inputs", with_unknown_token)
    outcomes = runtime.batch(["word1", "bad", "word2"])
    assert [outcome.answer is not None for outcome in outcomes] == [True, False, True]
    assert "beyond the vocabulary" in str(outcomes[1].error)


def test_a_stream_takes_one_ahead_and_no_more(runtimes):
    taken = []

    def camera():
        for number in range(6):
            taken.append(number)
            yield np.full((9, 9, 3), number, np.uint8)

    stream = runtimes["image-classification"].stream(camera())
    for number in range(4):
        assert next(stream).index == number
        assert number + 1 <= len(taken) <= number + 2
    before = {thread for thread in threading.enumerate() if thread.name.startswith("edvit-prepare")}
    stream.close()
    for thread in before:
        thread.join(30)
        assert not thread.is_alive()


def test_an_answer_does_not_wait_for_the_next_source_and_none_is_lost_when_that_breaks(runtimes):
    answered = threading.Event()

    def camera():
        yield np.zeros((9, 9, 3), np.uint8)
        assert answered.wait(30), "the first answer waited for the second picture"
        yield np.ones((9, 9, 3), np.uint8)
        raise OSError("the camera was unplugged")

    stream = runtimes["image-classification"].stream(camera())
    assert next(stream).answer is not None
    answered.set()
    assert next(stream).answer is not None
    with pytest.raises(OSError, match="unplugged"):
        next(stream)


def test_a_closed_runtime_ends_streams_and_batches(folders):
    picture = np.zeros((9, 9, 3), np.uint8)
    runtime = EDViTRuntime.from_pretrained(folders["image-classification"], num_threads=1)
    stream = runtime.stream(itertools.repeat(picture))
    assert next(stream).answer is not None
    runtime.close()
    with pytest.raises(EDViTError, match="was closed"):
        next(stream)
    with pytest.raises(EDViTError, match="was closed"):
        runtime.batch([picture])


def test_a_stream_goes_on_through_lost_devices_and_their_return(folders):
    root = folders["image-classification"]
    clock = MonotonicClock()
    manifest = EDViTRuntime.from_pretrained(root, num_threads=1).manifest
    engine = FaultyEngine(LocalEngine.load(root, manifest, num_threads=1), clock)
    config = CoordinatorConfig(deadline_ms=60_000, probe_pause_s=0.01, longest_probe_pause_s=0.01)
    runtime = EDViTRuntime.from_pretrained(root, engine=engine, config=config)

    def camera():
        for number in range(9):
            if number == 3:
                engine.faults = dict.fromkeys((0, 1), Faults(is_unavailable=True))
            if number == 6:
                engine.faults = {}
                wait_until_closed(runtime)
            yield np.full((9, 9, 3), number, np.uint8)

    outcomes = list(runtime.stream(camera()))
    assert len(outcomes) == 9
    lost = [outcome.index for outcome in outcomes if outcome.error is not None]
    assert lost  # two of three are gone: no quorum
    assert set(lost) <= {2, 3, 4, 5}  # one is taken ahead
    assert "Only 1 of 3 can be present" in str(outcomes[lost[0]].error)
    assert not outcomes[8].answer.degraded


def wait_until_closed(runtime):
    """Wait until probes have closed all breakers."""
    end = time.monotonic() + 10
    while "open" in runtime.status()["breakers"].values():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_several_answers_have_no_single_label(runtimes):
    answer = runtimes["image-classification"].predict(np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match="got one for 2"):
        answer.label  # noqa: B018
    assert [answer.item(row).label for row in range(2)] == answer.labels


def test_wrong_numbers_are_refused_before_anything_is_taken(runtimes):
    runtime = runtimes["text-classification"]
    with pytest.raises(EDViTError, match="`batch_size` of at least 1"):
        runtime.stream([], batch_size=0)
    with pytest.raises(EDViTError, match="`absent` names sub-model 7"):
        runtime.stream([], absent=[7])
    with pytest.raises(EDViTError, match="`absent` names sub-model 7"):
        runtime.batch([], absent=[7])
    assert runtime.batch([]) == []
    assert list(runtime.stream([])) == []
    assert Outcome(index=0).answer is None
