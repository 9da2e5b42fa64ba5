# SPDX-License-Identifier: Apache-2.0
"""RandAugment operations on whole batches: Pillow's own results, and replayable."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from edvit_hf.data import Augmentation
from edvit_hf.data.augmentation.appearance import OPERATIONS, change, operations
from support.dataset_files import image_split

_quick = settings(max_examples=25, deadline=None)
_AUGMENTATION = Augmentation(rand_augment_ops=2, rand_augment_magnitude=0.7)


def photo(seed=0, size=12):
    """Smooth colours with some noise."""
    random = np.random.default_rng(seed)
    steps = np.linspace(0, 200, size)
    base = np.stack([steps[:, None] + 0 * steps, 0 * steps[:, None] + steps, 200 - steps[:, None] / 2 - steps / 2], -1)
    return (base + random.integers(0, 50, base.shape)).clip(0, 255).astype(np.uint8)


def by_pillow(name, image, strength):
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhancers:
        return enhancers[name](image).enhance(1 + 0.9 * strength)
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(4 * abs(strength)))
    if name == "solarize":
        return ImageOps.solarize(image, int(np.ceil(256 * (1 - abs(strength)))))
    return image


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, -0.3, -1.0])
def test_each_operation_gives_pillows_image(name, strength):
    image, kind = photo(), OPERATIONS.index(name)
    drawn = np.array([[~kind if strength < 0 else kind]])
    ours = change(image.transpose(2, 0, 1)[None], drawn, abs(strength))[0].transpose(1, 2, 0)
    theirs = np.asarray(by_pillow(name, Image.fromarray(image), strength)).astype(int)
    # Pillow cuts fractions off where these round, and its mean grey is rounded another way: two levels, then scaled.
    assert np.abs(ours - theirs).max() <= (1 if name in ("posterize", "solarize", "nothing") else 3)


@pytest.mark.parametrize("name", OPERATIONS[1:])
def test_each_operation_changes_something_and_spares_its_argument(name):
    pixels = photo().transpose(2, 0, 1)[None]
    before = pixels.copy()
    assert (change(pixels, np.array([[OPERATIONS.index(name)]]), 0.6) != pixels).any()
    np.testing.assert_array_equal(pixels, before)


@_quick
@given(view=st.integers(0, 50), chosen=st.lists(st.integers(0, 19), min_size=1, max_size=14))
def test_a_view_does_not_depend_on_the_batch(view, chosen):
    split = image_split(augmentation=_AUGMENTATION)
    together = split.inputs(chosen, view)["pixel_values"]
    assert torch.equal(together, torch.cat([split.inputs([index], view)["pixel_values"] for index in chosen]))


@_quick
@given(seed=st.integers(0, 9), view=st.integers(0, 9), few=st.integers(0, 30), more=st.integers(0, 30))
def test_operations_depend_on_seed_view_and_item_alone(seed, view, few, more):
    few, more = sorted((few, more))
    short, long = (operations(_AUGMENTATION, count, view, seed) for count in (few, more))
    np.testing.assert_array_equal(short, long[:few])


def test_every_operation_is_drawn_in_both_directions():
    drawn = operations(_AUGMENTATION, 2000, 0, 0)
    assert drawn.shape == (2000, 2)
    count = len(OPERATIONS)
    assert set(np.unique(drawn)) == set(range(-count, count))
    assert np.bincount(np.where(drawn < 0, ~drawn, drawn).ravel()).min() > 4000 / count * 0.8


def test_operations_are_applied_in_turn():
    pixels = photo().transpose(2, 0, 1)[None]
    posterize, solarize = OPERATIONS.index("posterize"), OPERATIONS.index("solarize")
    both = change(pixels, np.array([[posterize, solarize]]), 0.5)
    one = change(change(pixels, np.array([[posterize]]), 0.5), np.array([[solarize]]), 0.5)
    np.testing.assert_array_equal(both, one)
    assert (both != change(pixels, np.array([[solarize, posterize]]), 0.5)).any()
