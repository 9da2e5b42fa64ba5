# SPDX-License-Identifier: Apache-2.0
"""The Space: a drawn or photographed digit comes into the form of the data, whatever its size, place and colour."""

import numpy as np
import pytest
from PIL import Image

from answers import answering, ensembles, inputs
from answers.digit_form import digit_from_drawing, digit_from_picture
from edvit_hf.errors import DataError
from support.space_ensembles import STROKES, digit_data, drawn, write_digits


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return ensembles.open_other(str(write_digits(tmp_path_factory.mktemp("digits"))))


def seen(opened, path):
    return inputs.prepare_image(opened, path).seen


@pytest.mark.parametrize("digit", STROKES)
def test_a_drawn_digit_is_nearest_to_the_same_digit_of_the_data(digit):
    images, labels = digit_data()
    picture = digit_from_drawing(drawn(digit), 8)
    assert picture.shape == (8, 8, 3)
    distances = np.square(images - picture[:, :, 0] / 255).sum(axis=(1, 2))
    nearest = labels[np.argsort(distances)[:5]]
    assert np.bincount(nearest, minlength=10).argmax() == digit, nearest


@pytest.mark.parametrize("digit", STROKES)
@pytest.mark.parametrize("pen", [8, 24, 30])
def test_a_drawing_gets_the_height_the_centre_and_the_ink_of_the_data(digit, pen):
    images, _ = digit_data()
    grey = digit_from_drawing(drawn(digit, pen=pen), 8)[:, :, 0] / 255
    assert (grey.max(axis=1) > 0).all(), "the digit fills all eight rows, as every digit of the data does"
    centres = (images.sum(axis=1) * np.arange(8)).sum(axis=1) / images.sum(axis=(1, 2))
    centre = (grey.sum(axis=0) * np.arange(8)).sum() / grey.sum()
    assert abs(centre - centres.mean()) < 1.0
    assert abs(grey.mean() - images.mean()) < 0.1
    assert grey[:, 0].mean() < 0.1, "the outer columns are nearly empty in the data"


def test_size_place_and_colour_of_a_drawing_do_not_matter():
    reference = digit_from_drawing(drawn(2, pen=20), 8).astype(int)
    moved = digit_from_drawing(drawn(2, pen=20, shift=(30, -8)), 8).astype(int)
    red = digit_from_drawing(drawn(2, pen=20, colour=(255, 0, 0, 255)), 8).astype(int)
    smaller = digit_from_drawing(drawn(2, pen=10, scale=0.5, shift=(90, 20)), 8).astype(int)
    np.testing.assert_array_equal(reference, moved)
    np.testing.assert_array_equal(reference, red)
    assert np.abs(reference - smaller).mean() < 20


def test_a_composite_without_layers_and_an_upload_on_any_paper_read_the_same(opened, tmp_path):
    drawing = drawn(7)
    expected = inputs.prepare_drawing(opened, drawing).seen
    np.testing.assert_array_equal(expected, digit_from_drawing(drawing, 8))
    np.testing.assert_array_equal(inputs.prepare_drawing(opened, {"composite": drawing["composite"]}).seen, expected)
    dark_on_light = Image.fromarray(drawing["composite"]).convert("L")
    for name, picture in (("a.png", dark_on_light), ("b.png", Image.eval(dark_on_light, lambda v: 255 - v))):
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(seen(opened, tmp_path / name), expected)


def test_what_a_drawing_is_read_as_and_that_its_accuracy_is_not_measured(opened):
    prepared = inputs.prepare_drawing(opened, drawn(0))
    view = answering.view(opened, prepared, [])
    assert view.label == "0"
    assert "drawings was not measured" in view.card_note
    assert view.card_note.startswith("The card reports 95.8 %")


@pytest.mark.parametrize(
    "drawing",
    [
        None,
        {},
        {"background": None, "layers": [], "composite": None},
        {"layers": [np.zeros((9, 9, 4), np.uint8)]},
        {"layers": [np.zeros((0, 9, 4), np.uint8)]},
        {"layers": [np.zeros((9, 9, 4), np.uint8), np.full((5, 5, 4), 255, np.uint8)]},
        {"composite": "not an array"},
        {"layers": 3},
    ],
)
def test_an_empty_or_odd_drawing_is_answered_with_a_sentence(opened, drawing):
    with pytest.raises(DataError, match=r"^The drawing is empty\. Draw one digit"):
        inputs.prepare_drawing(opened, drawing)


@pytest.mark.parametrize("side", [8, 28, 32])
def test_a_small_picture_on_light_paper_reads_as_the_same_one_on_dark_paper(side):
    light = np.full((side, side, 3), 250, np.uint8)
    light[side // 4 : -side // 4, side // 2 - 1 : side // 2 + 1] = 10
    dark = 255 - light
    np.testing.assert_array_equal(digit_from_picture(Image.fromarray(dark), 8), dark)
    np.testing.assert_array_equal(digit_from_picture(Image.fromarray(light), 8), dark)


def test_a_picture_without_contrast_is_refused_where_ink_is_needed(opened, tmp_path):
    Image.new("RGB", (200, 200), "white").save(tmp_path / "blank.png")
    with pytest.raises(DataError, match="hardly any contrast"):
        seen(opened, tmp_path / "blank.png")


def test_bundled_examples_are_items_of_the_data_and_taken_as_they_are():
    images, labels = digit_data()
    bundled = ensembles.open_bundle("digits")
    assert len(bundled.examples) >= 3
    for example in bundled.examples:
        digit, index = map(int, example.value.rpartition("/")[2].removesuffix(".png").split("_"))
        prepared = inputs.prepare_image(bundled, example.value)
        np.testing.assert_array_equal(prepared.seen[:, :, 0], np.rint(images[index] * 255).astype(np.uint8))
        assert labels[index] == digit == int(example.label)
        assert not prepared.caution, "the card's figures are about such pictures"
