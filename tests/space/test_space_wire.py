# SPDX-License-Identifier: Apache-2.0
"""The Space: what a child process says that was taken over is an answer in every part, or the child is closed."""

from dataclasses import replace

import numpy as np
import pytest

from answers import isolation, wire
from answers.isolation import IsolatedEnsemble
from answers.reading import Reading
from answers.runtimes import VisitorError
from edvit_hf.errors import DataError
from edvit_hf.isolation import Message
from edvit_hf.isolation.protocol import ProtocolError
from edvit_hf.runtime import EDViTRuntime
from support.tiny_ensemble import write_tiny_ensemble

INPUTS = {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}
HUGE, DEEP = 10**400, [[[[]]]]
LIES = [
    *(("missing", value) for value in ([[["x"], "y"]], [[1, ["y"]]], [[1, {}]], [[HUGE, "absent"]], [["1", "absent"]])),
    *(
        ("missing", value)
        for value in ([[1, "absent"], [1, "absent"]], [[True, "absent"]], [[1, "x"]], [], 5, None, DEEP)
    ),
    *(("milliseconds", value) for value in ([HUGE] * 3, [1e308] * 3, ["1"] * 3, [None] * 3, [True] * 3, [[]] * 3, {})),
    *(("milliseconds", value) for value in ([float("nan")] * 3, [-1] * 3, [1.0])),
    *((name, value) for name in ("fusion_milliseconds", "total_milliseconds") for value in (HUGE, "x", None, [], -1.0)),
    *(("bytes_sent", value) for value in ([HUGE] * 3, [-1] * 3, [1.5] * 3, [[]] * 3, {}, None)),
    *(("present", value) for value in ([1, 0, 1], [True], None, [[]] * 3)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wire") / "ensemble"
    write_tiny_ensemble(folder, [[0, 3], [1], [2, 4]])
    return folder


@pytest.fixture(scope="module")
def runtime(folder):
    with EDViTRuntime.from_pretrained(folder) as runtime:
        yield runtime


@pytest.fixture
def message(runtime):
    return wire.answer_message(runtime.predict(INPUTS, absent=[1]))


def test_an_answer_arrives_as_it_was_sent(message, runtime):
    answer, _ = wire.answer_of(message, runtime.manifest)
    assert answer.missing == {1: "absent"}
    np.testing.assert_array_equal(answer.probabilities, message.arrays["probabilities"])


class Told:
    """Stands for a child process that says what it is given to say."""

    def __init__(self, *says):
        self.says, self.is_alive = list(says), True

    def ask(self, question, seconds):
        said = self.says.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    def close(self):
        self.is_alive = False


DESCRIBED = Message("described", {"can_draw": False, "side": 8})


def ensemble(folder, runtime, monkeypatch, *says):
    child = Told(*says)
    monkeypatch.setattr(isolation, "_child", lambda *_: child)
    return child, lambda: IsolatedEnsemble(folder, runtime.manifest, "a title")


@pytest.mark.parametrize(("name", "value"), LIES, ids=lambda value: f"{value!s:.20}")
def test_what_is_no_answer_closes_the_child(folder, runtime, message, monkeypatch, name, value):
    lie = replace(message, values={**message.values, name: value})
    with pytest.raises(ProtocolError):
        wire.answer_of(lie, runtime.manifest)
    child, opening = ensemble(folder, runtime, monkeypatch, DESCRIBED, lie)
    opened = opening()
    with pytest.raises(VisitorError) as refused:
        opened.predict(INPUTS)
    assert str(refused.value) == isolation.GONE
    assert not child.is_alive


@pytest.mark.parametrize(
    "said",
    [
        DataError("Expected a question, got none."),
        *(
            Message("described", {"can_draw": False, "side": side})
            for side in ("8", "x", [8], {}, 1e300, 8.5, None, True, -1, HUGE, 8193)
        ),
        *(Message("described", {"can_draw": can_draw, "side": 8}) for can_draw in ("yes", None, 1)),
        Message("described", {"can_draw": True, "side": 4096}),
        Message("described"),
    ],
    ids=lambda said: f"{getattr(said, 'values', said)!s:.50}",
)
def test_a_child_that_does_not_describe_itself_is_closed(folder, runtime, monkeypatch, said):
    child, opening = ensemble(folder, runtime, monkeypatch, said)
    with pytest.raises(VisitorError):
        opening()
    assert not child.is_alive


def test_one_that_does_is_not(folder, runtime, monkeypatch):
    child, opening = ensemble(folder, runtime, monkeypatch, DESCRIBED)
    opened = opening()
    assert (opened.can_draw, opened.side, child.is_alive) == (False, 8, True)


def test_halves_of_letters_are_replaced():
    reading = Reading(inputs=INPUTS, tokens=("a\ud800",), remark="\udfff")
    found = wire.reading_of(wire.reading_message(reading))
    assert (found.tokens, found.remark) == (("a?",), "?")
