# SPDX-License-Identifier: Apache-2.0
"""Spectrograms in replayable views: what each key does, alone and on real batches."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.data import ArrayStore, AudioSplit, Augmentation
from edvit_hf.data.augmentation.spectrograms import change, draws

_quick = settings(max_examples=25, deadline=None)
_MEAN, _STD = -5.0, 4.0
_PADDING = np.float32((0 - _MEAN) / (2 * _STD))
_ALL = Augmentation(
    time_shift=0.3, time_masks=2, time_mask_frames=4, frequency_masks=1, frequency_mask_bins=3, gain_db=6.0
)


def audio_split(augmentation=_ALL, num_items=12, frames=20, bins=8, sounding=None):
    features = np.random.default_rng(0).normal(size=(num_items, frames, bins)).astype(np.float32)
    if sounding is not None:
        features[:, sounding:] = _PADDING
    labels = np.arange(num_items) % 3
    return AudioSplit(ArrayStore(features), labels, mean=_MEAN, std=_STD, augmentation=augmentation, seed=5)


def values(split, indices=None, view=None):
    return split.inputs(range(len(split)) if indices is None else indices, view)["input_values"]


@_quick
@given(view=st.integers(0, 50), chosen=st.lists(st.integers(0, 11), min_size=1, max_size=12))
def test_an_item_has_the_same_values_in_a_view_whatever_batch_it_is_in(view, chosen):
    split = audio_split(sounding=15)
    together = values(split, chosen, view)
    assert torch.equal(together, torch.cat([values(split, [index], view) for index in chosen]))
    assert torch.equal(values(split.select(chosen), None, view), together)


@_quick
@given(seed=st.integers(0, 9), view=st.integers(0, 9), few=st.integers(1, 30), more=st.integers(1, 30))
def test_draws_depend_on_seed_view_and_item_alone(seed, view, few, more):
    few, more = sorted((few, more))
    short, long = (draws(_ALL, count, view, seed) for count in (few, more))
    np.testing.assert_array_equal(short, long[:few])
    assert (short != draws(_ALL, few, view + 1, seed)).any()
    assert (short != draws(_ALL, few, view, seed + 1)).any()


def test_reading_a_view_leaves_the_cache_as_it_was():
    split = audio_split()
    before = values(split).clone()
    assert not torch.equal(values(split, None, 1), before)
    assert torch.equal(values(split), before)


@_quick
@given(view=st.integers(0, 30), share=st.floats(0.05, 1))
def test_a_time_shift_turns_the_frames_and_loses_none(view, share):
    split = audio_split(Augmentation(time_shift=share))
    plain, shifted = values(split).numpy(), values(split, None, view).numpy()
    for before, after in zip(plain, shifted, strict=True):
        turns = [turn for turn in range(20) if (np.roll(before, turn, axis=0) == after).all()]
        assert turns
        assert min(min(turn, 20 - turn) for turn in turns) <= np.ceil(20 * share)


@_quick
@given(
    view=st.integers(0, 30),
    count=st.integers(1, 3),
    width=st.integers(1, 30),
    along=st.sampled_from(["time", "frequency"]),
)
def test_masks_put_the_mean_into_whole_stripes_of_at_most_their_width(view, count, width, along):
    keys = {"time": ("time_masks", "time_mask_frames"), "frequency": ("frequency_masks", "frequency_mask_bins")}[along]
    split = audio_split(Augmentation(**dict(zip(keys, (count, width), strict=True))))
    plain, masked = values(split).numpy(), values(split, None, view).numpy()
    axis = 2 if along == "time" else 1
    is_masked = (masked == 0).all(axis=axis)
    kept = np.broadcast_to(np.expand_dims(~is_masked, axis), plain.shape)
    np.testing.assert_array_equal(masked[kept], plain[kept])
    assert (masked[~kept] == 0).all()
    assert (is_masked.sum(axis=1) <= count * width).all()


def test_masks_differ_in_width_and_place_and_reach_every_frame():
    split = audio_split(Augmentation(time_masks=1, time_mask_frames=4), num_items=400)
    is_masked = (values(split, None, 0) == 0).all(dim=2).numpy()
    assert set(is_masked.sum(axis=1)) == {0, 1, 2, 3, 4}
    assert is_masked.any(axis=0).all()


def test_a_gain_adds_its_decibels_to_the_sounding_frames_alone():
    split = audio_split(Augmentation(gain_db=6.0), sounding=15, num_items=200)
    difference = (values(split, None, 0) - values(split)).numpy()
    assert (difference[:, 15:] == 0).all()
    gains = difference[:, :15].mean(axis=(1, 2))
    np.testing.assert_allclose(difference[:, :15], np.broadcast_to(gains[:, None, None], (200, 15, 8)), atol=1e-5)
    decibels = gains * 2 * _STD * 10 / np.log(10)
    assert np.abs(decibels).max() <= 6.001
    assert decibels.max() > 5
    assert decibels.min() < -5


def test_a_gain_is_what_a_louder_waveform_gives():
    from edvit_hf.transforms import AudioTransform

    wave = np.random.default_rng(0).normal(0, 0.05, 4000).astype(np.float32)
    transform = AudioTransform(num_mel_bins=8, max_length=30, mean=_MEAN, std=_STD)
    quiet, loud = transform.features(wave), transform.features(wave * np.float32(10 ** (6 / 20)))
    ours = change(
        quiet[None].copy(),
        np.array([[0.5, 1.0]], np.float32),
        Augmentation(gain_db=6.0),
        std=_STD,
        sounding=audio_split()._sounding(quiet[None]),
    )
    np.testing.assert_allclose(ours[0], loud, atol=2e-3)


def test_sound_that_fills_all_frames_has_no_padding_and_silence_is_all_padding():
    split = audio_split()
    features = np.stack([np.zeros((20, 8), np.float32), np.full((20, 8), _PADDING)])
    features[1, 3, 0] = 1
    assert split._sounding(features).tolist() == [20, 4]
