# SPDX-License-Identifier: Apache-2.0
"""Moved images: replayable, label-preserving, exact where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.data import ArrayStore, Augmentation, ImageSplit
from edvit_hf.data.augmentation.pixels import move, movements
from edvit_hf.errors import DataError
from support.dataset_files import MOVING, OFF, image_split

_quick = settings(max_examples=25, deadline=None)


def moved(image, parameters, augmentation=MOVING):
    return torch.from_numpy(move(image.numpy(), np.array([parameters], np.float32), augmentation))


@_quick
@given(view=st.integers(0, 50), chosen=st.lists(st.integers(0, 19), min_size=1, max_size=12))
def test_an_item_has_the_same_pixels_in_a_view_whatever_batch_it_is_in(view, chosen):
    split = image_split()
    together = split.inputs(chosen, view)["pixel_values"]
    alone = torch.cat([split.inputs([index], view)["pixel_values"] for index in chosen])
    assert torch.equal(together, alone)


@_quick
@given(seed=st.integers(0, 9), view=st.integers(0, 9), few=st.integers(0, 30), more=st.integers(0, 30))
def test_parameters_depend_on_seed_view_and_item_alone(seed, view, few, more):
    few, more = sorted((few, more))
    short, long = (movements(MOVING, count, view, seed) for count in (few, more))
    assert long.dtype == np.float32
    np.testing.assert_array_equal(short, long[:few])
    if few:
        assert (short != movements(MOVING, few, view + 1, seed)).any()
        assert (short != movements(MOVING, few, view, seed + 1)).any()


@_quick
@given(view=st.integers(0, 100))
def test_an_augmentation_that_is_off_is_the_identity(view):
    assert OFF.is_off
    split = image_split(augmentation=OFF)
    assert torch.equal(split.inputs(range(20), view)["pixel_values"], split.inputs(range(20))["pixel_values"])
    assert (movements(OFF, 4, view, 0) == [0, 1, 0, 0, 1]).all()


@_quick
@given(
    shift=st.floats(0, 1),
    degrees=st.floats(0, 180),
    scale=st.floats(0, 0.95),
    flip=st.booleans(),
    view=st.integers(0, 9),
)
def test_parameters_stay_in_their_range(shift, degrees, scale, flip, view):
    augmentation = Augmentation(shift=shift, rotate_degrees=degrees, scale=scale, flip=flip)
    angle, zoom, right, down, mirror = movements(augmentation, 200, view, 0).T
    tolerance = 1e-6
    assert np.abs(angle).max() <= np.deg2rad(degrees) + tolerance
    assert np.abs(zoom - 1).max() <= scale + tolerance
    assert max(np.abs(right).max(), np.abs(down).max()) <= shift + tolerance
    assert set(mirror) == ({-1, 1} if flip else {1})


_EXACT = [
    (
        "shift right by two pixels",
        [0, 1, 2 / 8, 0, 1],
        lambda x: torch.roll(x, 2, 3).index_fill(3, torch.tensor([0, 1]), 0),
    ),
    ("shift up by one pixel", [0, 1, 0, -1 / 6, 1], lambda x: torch.roll(x, -1, 2).index_fill(2, torch.tensor([5]), 0)),
    ("mirror", [0, 1, 0, 0, -1], lambda x: x.flip(3)),
    ("half a turn", [np.pi, 1, 0, 0, 1], lambda x: x.flip(2, 3)),
    ("nothing", [0, 1, 0, 0, 1], lambda x: x),
]


@pytest.mark.parametrize(("parameters", "expected"), [case[1:] for case in _EXACT], ids=[case[0] for case in _EXACT])
def test_a_known_movement_gives_the_known_image_with_black_entering(parameters, expected):
    image = torch.rand(1, 3, 6, 8) + 0.5
    torch.testing.assert_close(moved(image, parameters), expected(image), rtol=0, atol=2e-6)


def test_a_quarter_turn_of_a_square_image_keeps_its_pixels():
    image = torch.rand(1, 3, 7, 7)
    turned = moved(image, [np.pi / 2, 1, 0, 0, 1])
    candidates = [torch.rot90(image, turns, (2, 3)) for turns in (1, 3)]
    assert min((turned - candidate).abs().max() for candidate in candidates) < 2e-5


def test_a_zoom_above_one_enlarges():
    image = torch.zeros(1, 1, 9, 9)
    image[..., 3:6, 3:6] = 1
    larger = moved(image, [0, 1.5, 0, 0, 1], Augmentation(scale=0.5))
    assert larger.sum() > 1.5 * image.sum()


def test_what_enters_is_black_after_normalisation():
    pixels = np.full((1, 3, 8, 8), 200, np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    split = ImageSplit(ArrayStore(pixels), np.zeros(1), mean=mean, std=std, augmentation=Augmentation(shift=1.0))
    view = next(v for v in range(50) if np.abs(movements(split.augmentation, 1, v, 0)[0, 2]) > 0.5)
    black = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
    entered = split.inputs([0], view)["pixel_values"][0].amin(dim=(1, 2))
    torch.testing.assert_close(entered, black)


@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_other_paddings_bring_no_black_in(padding):
    image = torch.full((1, 3, 8, 8), 200.0)
    assert moved(image, [0, 1, 0.4, 0.3, 1.0], Augmentation(shift=0.5, padding=padding)).min() > 199


@pytest.mark.parametrize(
    "change",
    [
        {"shift": -0.1},
        {"shift": 2.0},
        {"rotate_degrees": 200},
        {"scale": 1.0},
        {"scale": float("nan")},
        {"padding": "x"},
        {"rand_augment_ops": -1},
        {"rand_augment_ops": 2},
        {"rand_augment_magnitude": 1.1, "rand_augment_ops": 2},
        {"time_masks": 1},
        {"frequency_masks": 2},
        {"time_masks": 1.5, "time_mask_frames": 3},
        {"time_shift": 1.2},
        {"gain_db": -3},
        {"token_dropout": 1.0},
        {"token_dropout_by": "mask"},
        {"whole_pixels": True, "scale": 0.1},
    ],
)
def test_an_augmentation_out_of_range_is_refused_by_name(change):
    with pytest.raises(DataError, match=f"`{next(iter(change))}`"):
        Augmentation(**change)


@pytest.mark.parametrize(
    ("change", "owner"),
    [
        ({"flip": True}, "image-classification"),
        ({"rand_augment_ops": 1, "rand_augment_magnitude": 0.5}, "image-classification"),
        ({"time_masks": 1, "time_mask_frames": 4}, "audio-classification"),
        ({"gain_db": 3.0}, "audio-classification"),
        ({"token_dropout": 0.1}, "text-classification"),
        ({"token_dropout_by": "removal"}, "text-classification"),
    ],
)
def test_a_key_of_another_task_is_refused_by_the_name_of_its_task(change, owner):
    augmentation = Augmentation(**change)
    for task in ("image-classification", "audio-classification", "text-classification"):
        if task == owner:
            augmentation.check_task(task)
        else:
            with pytest.raises(
                DataError, match=rf"`augmentation\.{next(iter(change))}` .*{owner} only, got it with {task}"
            ):
                augmentation.check_task(task)
            OFF.check_task(task)


# --- whole pixels ---


@_quick
@given(
    down=st.integers(-4, 4),
    right=st.integers(-5, 5),
    mirror=st.sampled_from([1, -1]),
    padding=st.sampled_from(["black", "border", "reflection"]),
    channels=st.sampled_from([1, 3]),
)
def test_whole_pixel_movements_equal_interpolated_ones_by_whole_pixels(down, right, mirror, padding, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 6, 8), dtype=np.uint8)
    parameters = np.array([[0, 1, right / 8, down / 6, mirror]] * 2, np.float32)
    exact = move(pixels, parameters, Augmentation(shift=1.0, flip=True, padding=padding, whole_pixels=True))
    blurred = move(pixels, parameters, Augmentation(shift=1.0, flip=True, padding=padding))
    assert exact.dtype == np.uint8
    np.testing.assert_allclose(exact, blurred, atol=0.01)


@_quick
@given(view=st.integers(0, 50), chosen=st.lists(st.integers(0, 19), min_size=1, max_size=12))
def test_whole_pixel_views_do_not_depend_on_the_batch(view, chosen):
    split = image_split(augmentation=Augmentation(shift=0.4, flip=True, padding="reflection", whole_pixels=True))
    together = split.inputs(chosen, view)["pixel_values"]
    assert torch.equal(together, torch.cat([split.inputs([index], view)["pixel_values"] for index in chosen]))
    assert not torch.equal(together, split.inputs(chosen, view + 1)["pixel_values"]) or len(chosen) < 3


def test_a_store_of_one_channel_gives_what_three_equal_ones_give():
    grey = np.random.default_rng(1).integers(0, 256, (6, 1, 9, 9), dtype=np.uint8)
    augmentation = Augmentation(shift=0.2, rotate_degrees=9, flip=True, rand_augment_ops=2, rand_augment_magnitude=0.6)
    options = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "augmentation": augmentation}
    one, three = (
        ImageSplit(ArrayStore(pixels), np.zeros(6, int), **options) for pixels in (grey, np.repeat(grey, 3, 1))
    )
    for view in (None, 0, 1):
        values = one.inputs(range(6), view)["pixel_values"]
        assert values.shape == (6, 3, 9, 9)
        torch.testing.assert_close(values, three.inputs(range(6), view)["pixel_values"], rtol=0, atol=0.03)
