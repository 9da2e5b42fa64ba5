# SPDX-License-Identifier: Apache-2.0
"""What travels to a device: fewer bytes, and on arrival the same input bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import DataError
from edvit_hf.transforms import ImageTransform, load_transform
from edvit_hf.transforms.travelling import arrived, travelling, travelling_types
from support.tiny_ensemble import write_processor

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TRANSFORMS = [
    ImageTransform(size=(9, 7)),
    ImageTransform(size=(9, 7), **IMAGENET),
    ImageTransform(size=None, mean=None, std=None),
    ImageTransform(size=(9, 7), rescale_factor=None),
    ImageTransform(size=(9, 7), mean=None, std=None, rescale_factor=None),
    ImageTransform(size=(9, 7), mean=(-3.0, 0.0, 200.0), std=(0.001, 1.0, 5000.0), rescale_factor=1 / 127.5),
]


def every_level():
    """An image that holds every level in every channel."""
    return np.stack([np.roll(np.arange(256, dtype=np.uint8), shift) for shift in (0, 85, 170)], axis=1)[None]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_an_image_travels_as_a_quarter_of_its_bytes_and_arrives_bit_for_bit(transform):
    image = every_level().reshape(16, 16, 3)
    inputs = transform.inputs(image)
    sent = travelling(transform, inputs)
    assert sent["pixel_values"].dtype == np.uint8 == np.dtype(travelling_types(transform)["pixel_values"])
    assert 4 * sent["pixel_values"].nbytes == inputs["pixel_values"].nbytes
    back = arrived(transform, sent)["pixel_values"]
    np.testing.assert_array_equal(back.view(np.uint32), inputs["pixel_values"].view(np.uint32))


def test_what_no_transform_made_travels_as_it_is():
    transform = TRANSFORMS[1]
    noise = np.random.default_rng(0).normal(size=(2, 3, 9, 7)).astype(np.float32)
    made = transform.inputs(every_level().reshape(16, 16, 3))["pixel_values"]
    nearly, nan, other = made.copy(), made.copy(), TRANSFORMS[0].inputs(every_level().reshape(16, 16, 3))
    nearly[0, 1, 2, 3] = np.nextafter(nearly[0, 1, 2, 3], np.float32(9))
    nan[0, 0, 0, 0] = np.nan
    for values in (noise, nearly, nan, other["pixel_values"], made[0], made.astype(np.float64)):
        assert travelling(transform, {"pixel_values": values})["pixel_values"] is values
        assert arrived(transform, {"pixel_values": values})["pixel_values"] is values


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(TRANSFORMS))
def test_whatever_is_sent_arrives_as_it_was(seed, transform):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    values = np.stack([transform.normalised(each) for each in pixels]).transpose(0, 3, 1, 2)
    if rng.random() < 0.5:
        values = values + rng.normal(scale=1e-3, size=values.shape).astype(np.float32) * (rng.random() < 0.5)
    inputs = {"pixel_values": np.ascontiguousarray(values)}
    back = arrived(transform, travelling(transform, inputs))["pixel_values"]
    np.testing.assert_array_equal(back.view(np.uint32), inputs["pixel_values"].view(np.uint32))


def test_texts_travel_as_int32_where_every_number_fits(tmp_path):
    write_processor(tmp_path, "text-classification")
    transform = load_transform(tmp_path, "text-classification")
    inputs = transform.inputs("word1 word2")
    sent = travelling(transform, inputs)
    assert {name: values.dtype.name for name, values in sent.items()} == travelling_types(transform)
    for name, values in arrived(transform, sent).items():
        assert values.dtype == np.int64
        np.testing.assert_array_equal(values, inputs[name])
    large = {"input_ids": np.array([[2**31]]), "attention_mask": np.array([[1]])}
    assert travelling(transform, large)["input_ids"] is large["input_ids"]


def test_a_spectrogram_travels_as_it_is(tmp_path):
    write_processor(tmp_path, "audio-classification")
    transform = load_transform(tmp_path, "audio-classification")
    inputs = transform.inputs(np.sin(np.arange(4000, dtype=np.float32)))
    assert travelling(transform, inputs)["input_values"] is inputs["input_values"]
    assert travelling_types(transform) == {"input_values": "float32"}


def test_pixels_of_another_shape_are_refused_on_arrival():
    with pytest.raises(DataError, match=r"shape \(B, 3, H, W\), got \(1, 9, 7, 3\)"):
        arrived(TRANSFORMS[0], {"pixel_values": np.zeros((1, 9, 7, 3), np.uint8)})
