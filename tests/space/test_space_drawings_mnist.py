# SPDX-License-Identifier: Apache-2.0
"""The Space: a drawing for an ensemble of 28-pixel digits comes into MNIST's form, as its makers described it."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from answers import answering, ensembles, inputs
from answers.digit_form import FORM_SIDES, STROKE, WIDEST_STROKE, _thickness, digit_from_drawing, digit_from_picture
from edvit_hf.errors import DataError
from support import tiny_ensemble
from support.space_ensembles import DIGIT_GROUPS, STROKES, digit_data, drawn

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
MEASURED = json.loads((RESULTS / "space_drawings.json").read_text(encoding="utf-8"))["form"]
TEN = [str(digit) for digit in range(10)]


def in_box(picture):
    """A digit of the UCI data, (8, 8) in 0..1, in MNIST's box of 20 by 20 pixels, centred by mass."""
    rows, columns = picture.any(axis=1), picture.any(axis=0)
    cut = Image.fromarray(np.uint8(255 * picture[rows][:, columns]))
    scale = 20 / max(cut.size)
    size = (round(cut.width * scale), round(cut.height * scale))
    box = np.asarray(cut.resize(size, Image.Resampling.BICUBIC)) / 255
    field, (y, x) = np.zeros((28, 28)), (np.indices(box.shape) * box).sum(axis=(1, 2)) / box.sum()
    top, left = (min(max(0, round(14 - c)), 28 - s) for c, s in zip((y, x), box.shape, strict=True))
    field[top : top + box.shape[0], left : left + box.shape[1]] = box
    return field


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes an ensemble of matched filters for pictures of that size: linear, yet right on well drawn digits."""

    def written(side, names=TEN):
        images, labels = digit_data()
        means = [np.mean([in_box(image) for image in images[labels == digit][:40]], axis=0) for digit in range(10)]
        means = [np.asarray(Image.fromarray(mean).resize((side, side))) for mean in means]
        folder = tmp_path_factory.mktemp("digits")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny_ensemble, "SIZE", side)
            patch.setitem(tiny_ensemble.PREPROCESSOR, "size", {"height": side, "width": side})
            tiny_ensemble.write_tiny_ensemble(folder, DIGIT_GROUPS, label_names=names, templates=np.stack(means))
        return ensembles.open_other(str(folder))

    return written


@pytest.fixture(scope="module")
def opened(write):
    return write(28)


def test_an_ensemble_of_28_pixel_digits_says_that_it_reads_drawings(opened):
    assert opened.can_draw
    assert opened.hint.startswith("Draw a digit")
    assert answering.view(opened, None, ()).sentence == answering.DRAW_FIRST


@pytest.mark.parametrize(("side", "names"), [(16, TEN), (28, [f"item {i}" for i in range(10)])])
def test_other_sizes_and_other_labels_are_not_drawn(write, side, names):
    other = write(side, names)
    assert not other.can_draw
    with pytest.raises(DataError, match="reads no drawings"):
        inputs.prepare_drawing(other, drawn(7))


@pytest.mark.parametrize("digit", STROKES)
@pytest.mark.parametrize(("pen", "scale"), [(22, 1.0), (22, 0.4), (6, 1.0)])
def test_drawn_digits_are_answered_whatever_their_size_and_pen(opened, digit, pen, scale):
    prepared = inputs.prepare_drawing(opened, drawn(digit, pen=pen, scale=scale, shift=(20, 10)))
    assert prepared.seen.shape == (28, 28, 3)
    view = answering.view(opened, prepared, ())
    assert view.label == str(digit)
    assert "drawings was not measured" in view.card_note


@pytest.mark.parametrize("digit", STROKES)
@pytest.mark.parametrize(("pen", "scale"), [(22, 1.0), (22, 0.4), (6, 1.0)])
def test_a_drawing_gets_the_box_the_centre_and_the_grey_of_mnist(digit, pen, scale):
    grey = digit_from_drawing(drawn(digit, pen=pen, scale=scale), 28)[:, :, 0] / 255
    height, width = (np.ptp(np.flatnonzero(grey.any(axis=axis))) + 1 for axis in (1, 0))
    assert max(height, width) == 20
    ink = drawn(digit, pen=22)["layers"][0][:, :, 3]
    drawn_height, drawn_width = (np.ptp(np.flatnonzero(ink.any(axis=axis))) + 1 for axis in (1, 0))
    assert abs(width / height - drawn_width / drawn_height) < 0.1
    centre = (np.indices(grey.shape) * grey).sum(axis=(1, 2)) / grey.sum()
    assert (np.abs(centre - 14) <= MEASURED["largest_offset_of_the_centre_px"]).all()
    assert ((grey > 0) & (grey < 1)).sum() > 10, "anti-aliased"
    assert MEASURED["ink_share"]["percentile_1"] < grey.mean() < MEASURED["ink_share"]["percentile_99"]


def test_the_thickness_that_strokes_get_is_that_of_the_data():
    found = MEASURED["stroke_px"]
    assert (round(found["median"], 1), round(found["percentile_95"], 1)) == (STROKE, WIDEST_STROKE)


@pytest.mark.parametrize(("pen", "low", "high"), [(6, 1.7, 2.2), (40, 2.4, 3.1), (60, 1.9, 2.5)])
def test_thin_and_too_thick_strokes_get_the_median_thickness_and_others_keep_theirs(pen, low, high):
    found = []
    for digit in STROKES:
        large = Image.fromarray(digit_from_drawing(drawn(digit, pen=pen), 28)[:, :, 0]).resize((112, 112))
        found.append(_thickness(large.point(lambda value: 255 * (value > 127))) / 4)
    assert low < np.median(found) < high


def test_place_and_colour_do_not_matter_and_the_pen_little():
    reference = digit_from_drawing(drawn(2, pen=20), 28).astype(int)
    for other in (drawn(2, pen=20, shift=(30, -8)), drawn(2, pen=20, colour=(255, 0, 0, 255))):
        np.testing.assert_array_equal(reference, digit_from_drawing(other, 28))
    for pen in (4, 10, 40):
        assert np.abs(reference - digit_from_drawing(drawn(2, pen=pen), 28)).mean() < 20


def test_a_photograph_of_a_thin_pen_is_read_and_a_picture_of_the_data_is_taken_as_it_is(opened, tmp_path):
    paper = Image.fromarray(drawn(4, pen=10, side=1000)["composite"]).convert("L")
    paper.point(lambda value: 60 + value // 2).save(tmp_path / "photo.jpg")
    assert answering.view(opened, inputs.prepare_image(opened, tmp_path / "photo.jpg"), ()).label == "4"
    ready = np.uint8(255 * in_box(digit_data()[0][0]))
    Image.fromarray(ready).save(tmp_path / "ready.png")
    np.testing.assert_array_equal(inputs.prepare_image(opened, tmp_path / "ready.png").seen[:, :, 0], ready)


@given(
    st.lists(st.tuples(st.integers(0, 399), st.integers(0, 399)), max_size=6),
    st.sampled_from([(400, 400), (2, 400), (400, 2)]),
    st.integers(1, 40),
)
def test_whatever_is_drawn_has_the_form_or_is_refused(specks, shape, size):
    grey = np.zeros(shape, np.uint8)
    for row, column in specks:
        grey[row : row + size, column : column + size] = 255
    layer = np.repeat(grey[:, :, None], 4, axis=2)
    for side in FORM_SIDES:
        for make, given_ink in ((digit_from_drawing, {"layers": [layer]}), (digit_from_picture, Image.fromarray(grey))):
            with contextlib.suppress(DataError):
                picture = make(given_ink, side)
                assert picture.shape == (side, side, 3)
                assert picture.any()


def test_a_few_specks_on_a_large_picture_are_refused(opened):
    grey = np.zeros((4000, 4000), np.uint8)
    grey[[5, 3990], [7, 3000]] = 255
    with pytest.raises(DataError, match="No strokes"):  # and is not told that the field is empty
        inputs.prepare_drawing(opened, {"layers": [np.repeat(grey[:, :, None], 4, axis=2)]})
    for side in FORM_SIDES:
        with pytest.raises(DataError, match="No strokes"):
            digit_from_picture(Image.fromarray(grey), side)
