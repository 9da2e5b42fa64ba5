# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix: pure functions whose soft labels say what is in the input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.data import mix_batch
from edvit_hf.errors import DataError

_quick = settings(max_examples=40, deadline=None)
_SHAPES = {"pixel_values": (6, 3, 8, 10), "input_values": (6, 12, 5)}
_places = st.fixed_dictionaries({"seed": st.integers(0, 9), "epoch": st.integers(0, 5), "position": st.integers(0, 9)})


def marked_batch(name):
    """Item i holds the value i everywhere and has the label i."""
    shape = _SHAPES[name]
    values = torch.arange(shape[0], dtype=torch.float32).view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    return {name: values}, torch.arange(shape[0])


@_quick
@given(name=st.sampled_from(sorted(_SHAPES)), alpha=st.floats(0.1, 4), place=_places)
def test_mixup_takes_the_share_of_the_input_that_the_targets_say(name, alpha, place):
    inputs, labels = marked_batch(name)
    mixed, targets = mix_batch(inputs, labels, 7, mixup_alpha=alpha, cutmix_alpha=0.0, **place)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    expected = (targets * torch.arange(7)).sum(1).view(-1, *[1] * (mixed[name].ndim - 1))
    torch.testing.assert_close(mixed[name], expected.expand_as(mixed[name]), rtol=0, atol=1e-4)


@_quick
@given(name=st.sampled_from(sorted(_SHAPES)), alpha=st.floats(0.1, 4), place=_places)
def test_cutmix_covers_the_area_that_the_targets_say(name, alpha, place):
    inputs, labels = marked_batch(name)
    mixed, targets = mix_batch(inputs, labels, 6, mixup_alpha=0.0, cutmix_alpha=alpha, **place)
    for item in range(6):
        found = mixed[name][item]
        for label in range(6):
            assert (found == label).float().mean().item() == pytest.approx(targets[item, label].item(), abs=1e-5)


@_quick
@given(place=_places, mixup=st.sampled_from([0.0, 0.4]), cutmix=st.sampled_from([0.0, 1.0]))
def test_equal_arguments_give_equal_batches_and_the_inputs_stay(place, mixup, cutmix):
    inputs, labels = marked_batch("pixel_values")
    before = inputs["pixel_values"].clone()
    options = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, **place}
    (first, one), (second, two) = (mix_batch(inputs, labels, 6, **options) for _ in range(2))
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert torch.equal(one, two)
    assert torch.equal(inputs["pixel_values"], before)


def test_seed_epoch_and_position_each_change_the_draw():
    inputs, labels = marked_batch("pixel_values")
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    draws = [
        mix_batch(inputs, labels, 6, mixup_alpha=0.5, cutmix_alpha=0.0, seed=s, epoch=e, position=p)[1]
        for s, e, p in places
    ]
    for index, draw in enumerate(draws[1:], 1):
        assert not torch.equal(draw, draws[0]), places[index]


def test_both_on_takes_each_for_about_half_of_the_batches():
    inputs, labels = marked_batch("pixel_values")
    is_cut = [
        bool(
            (
                mix_batch(inputs, labels, 6, mixup_alpha=1.0, cutmix_alpha=1.0, seed=0, epoch=0, position=p)[0][
                    "pixel_values"
                ]
                % 1
                == 0
            ).all()
        )
        for p in range(100)
    ]
    assert 30 < np.sum(is_cut) < 70


def test_off_gives_the_inputs_and_one_hot_targets():
    inputs, labels = marked_batch("input_values")
    mixed, targets = mix_batch(inputs, labels, 6, mixup_alpha=0.0, cutmix_alpha=0.0, seed=0, epoch=0, position=0)
    assert mixed["input_values"] is inputs["input_values"]
    assert torch.equal(targets, torch.eye(6))


def test_token_ids_are_refused():
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
    with pytest.raises(DataError, match=r"`input_ids`.*another word"):
        mix_batch(inputs, torch.tensor([0, 1]), 2, mixup_alpha=0.2, cutmix_alpha=0.0, seed=0, epoch=0, position=0)
