# SPDX-License-Identifier: Apache-2.0
"""Every kind of bad input is refused with an error that says what is wrong and what to do."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from edvit_hf.errors import DataError
from edvit_hf.transforms import MAX_PIXELS, ImageTransform, open_image


def _encoded(file_format="PNG", size=(40, 30), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=file_format, **options)
    return buffer.getvalue()


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_header(width, height):
    """A PNG that promises this size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is text",
        b"\x00" * 500,
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\x89PNG",
    ],
    ids=["text", "zeros", "pdf", "eps", "only a signature"],
)
def test_something_else_than_an_image_is_refused(content):
    with pytest.raises(
        DataError, match=r"Expected an image, got something else in the given \d+ bytes.*Give an image file"
    ):
        open_image(content)


def test_empty_bytes_are_refused():
    with pytest.raises(DataError, match="got 0 bytes"):
        open_image(b"")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.95, 0.5])
def test_a_truncated_file_is_refused(file_format, kept):
    file = _encoded(file_format)
    with pytest.raises(DataError, match=r"cannot be decoded|got something else"):
        open_image(file[: int(len(file) * kept)])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_damaged_file_is_read_or_refused_but_never_fails_otherwise(file_format):
    file = _encoded(file_format)
    random = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(file)
        for position in random.integers(0, len(file), 8):
            damaged[position] = random.integers(0, 256)
        with contextlib.suppress(DataError):
            assert open_image(bytes(damaged)).mode == "RGB"


def test_a_file_that_lies_about_its_type_is_read_if_it_can_be_decoded(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(_encoded("PNG"))
    np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(open_image(_encoded("PNG"))))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_a_side_of_one_pixel_is_refused(size):
    with pytest.raises(DataError, match=f"at least 2 px, got {size[0]} x {size[1]} px"):
        open_image(_encoded(size=size))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_100, 12_000, 20_000])
def test_a_huge_image_is_refused_from_its_header_alone(side, monkeypatch):
    def load(self):
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(DataError, match="at most 64 Mpx"):
        open_image(_png_header(side, side))


def test_the_size_limit_is_inclusive(monkeypatch):
    reached = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: reached.append(self.size))
    assert MAX_PIXELS == 8_000 * 8_000
    with pytest.raises(DataError, match="cannot be decoded"):  # the header passed, there are no pixels to convert
        open_image(_png_header(8_000, 8_000))
    assert reached


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    array = np.full((5, 5, 3), 0.5, np.float32)
    array[2, 2, 1] = value
    with pytest.raises(DataError, match="got 1 NaN or infinite"):
        open_image(array)


def test_a_float_image_file_with_nan_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(buffer, format="TIFF")
    with pytest.raises(DataError, match="16 NaN"):
        open_image(buffer.getvalue())


@pytest.mark.parametrize("array", [np.full((4, 4), 1.5), np.full((4, 4), -0.1), np.full((4, 4, 3), 255.0)])
def test_floats_outside_zero_to_one_are_refused(array):
    with pytest.raises(DataError, match=r"Expected float pixels in \[0, 1\]"):
        open_image(array)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int8, np.bool_, np.complex64, object])
def test_arrays_of_another_type_are_refused(dtype):
    with pytest.raises(DataError, match="uint8"):
        open_image(np.zeros((4, 4, 3), dtype))


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 2), (4, 4, 1), (4, 4, 5), (1, 4, 4, 3), (0, 4, 3), (0, 0)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match=r"shaped \(H, W\)"):
        open_image(np.zeros(shape, np.uint8))


def test_an_array_with_channels_first_is_told_to_move_them():
    with pytest.raises(DataError, match=r"transpose\(1, 2, 0\)"):
        open_image(np.zeros((3, 20, 20), np.uint8))


@pytest.mark.parametrize("source", [None, 7, ["a.png"], {"bytes": b""}])
def test_other_python_objects_are_refused(source):
    with pytest.raises(DataError, match="Expected an image, got"):
        open_image(source)


def test_a_missing_file_a_folder_and_a_url_are_refused_by_name(tmp_path):
    for source in (tmp_path / "absent.png", tmp_path, "https://example.org/cat.png", "x" * 5000):
        with pytest.raises(DataError, match="Expected the path of a readable image file, got"):
            open_image(source)


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(DataError, match=r"0\.\.65535"):
        open_image(Image.fromarray(np.full((4, 4), 70_000, np.int32)))


def test_the_transform_refuses_what_open_image_refuses():
    with pytest.raises(DataError, match="got something else"):
        ImageTransform(size=(8, 8))(b"no image")
