# SPDX-License-Identifier: Apache-2.0
"""Inputs that child processes prepare are those that this process would, and what harms a child is refused in words."""

import numpy as np
import pytest

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.isolation import IsolationError
from edvit_hf.isolation.decoding import Decoders, DecodersInProcess, describe, transform_of
from edvit_hf.transforms import FORMATS_OF_STRANGERS, AudioTransform, ImageTransform, load_transform, source_inputs
from support.bombs import IMAGES
from support.serving_setup import AUDIO, IMAGE, TASKS, TEXT, TEXT_TASK, encoded, make_folders, png

SOURCES = {
    IMAGE: [encoded(IMAGE), png(300, 7)],
    AUDIO: [encoded(AUDIO)],
    TEXT_TASK: [TEXT, "word3 ä \ud83d", "word1 " * 9000],
}


class Misbehaving(Decoders):
    entry = "support.isolated_jobs:Decoder"


@pytest.fixture(scope="module")
def transforms(tmp_path_factory):
    return {task: load_transform(folder, task) for task, folder in make_folders(tmp_path_factory).items()}


@pytest.fixture(scope="module")
def decoders(transforms):
    made = {task: Misbehaving(transforms[task], workers=1, spares=task == IMAGE, seconds=2.0) for task in TASKS}
    yield made
    for each in made.values():
        each.close()


@pytest.mark.parametrize("task", TASKS)
def test_a_child_prepares_what_this_process_would(transforms, decoders, task):
    for source in SOURCES[task]:
        expected, found = source_inputs(transforms[task], source), decoders[task].inputs(source)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("task", TASKS)
def test_a_refusal_is_the_same_in_words_and_in_whether_they_are_ours(transforms, decoders, task):
    for source in ["   ", "unheard-of"] if task == TEXT_TASK else [b"", b"nonsense", png()[:60], encoded(AUDIO)[:50]]:
        with pytest.raises(DataError) as expected:
            source_inputs(transforms[task], source)
        with pytest.raises(DataError) as found:
            decoders[task].inputs(source)
        assert str(found.value) == str(expected.value)
        assert (found.value.__cause__ is None) == (expected.value.__cause__ is None)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"do:sleep", "within 2 s .* takes longer"),
        (b"do:crash", "the process that read it ended"),
        (b"do:be_killed", "the process that read it ended"),
        (b"do:panic", "the process that read it ended"),
        (b"do:say_much_too_much", "the process that read it failed"),
        (b"lie", "Expected one input with pixel_values"),
        (b"lie about the number", "Expected one input with pixel_values"),
    ],
)
def test_an_input_that_harms_its_child_is_refused_like_a_bad_one(decoders, source, words):
    with pytest.raises(DataError, match=words) as raised:
        decoders[IMAGE].inputs(source)
    assert raised.value.__cause__ is None, "all words are ours"
    assert decoders[IMAGE].inputs(png())["pixel_values"].shape == (1, 3, 8, 8)
    assert decoders[IMAGE].why_not_ready() is None


def test_a_bomb_is_refused_in_the_child_too(decoders):
    with pytest.raises(DataError, match="as programs write it"):
        decoders[IMAGE].inputs(IMAGES["gif: a comment of one-byte blocks"]())


def test_a_transform_is_described_whole():
    image = ImageTransform(size=(8, 9), mean=(0.1, 0.2, 0.3), std=(1, 2, 3), resample=3, formats=FORMATS_OF_STRANGERS)
    for transform in (
        image,
        ImageTransform(size=None, mean=None, std=None, rescale_factor=None),
        AudioTransform(mean=1),
    ):
        assert transform_of(describe(transform)) == transform

    class Other:
        task = IMAGE

    with pytest.raises(EDViTError, match="could not build it"):
        describe(Other())


def test_one_of_ones_own_is_read_in_this_process(transforms):
    decoders = DecodersInProcess(transforms[IMAGE], workers=1)
    assert decoders.inputs(png())["pixel_values"].shape == (1, 3, 8, 8)
    assert decoders.why_not_ready() is None


def test_closed_decoders_say_so(transforms):
    decoders = Decoders(transforms[IMAGE], workers=1, spares=0)
    decoders.close()
    with pytest.raises(IsolationError, match="closed"):
        decoders.inputs(png())
    assert "closed" in decoders.why_not_ready()
