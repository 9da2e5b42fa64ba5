# SPDX-License-Identifier: Apache-2.0
"""What costs a reader more than it weighs is refused before it is read; what only looks unusual is not."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, features

from edvit_hf.errors import DataError
from edvit_hf.transforms import FORMATS_OF_STRANGERS, ImageTransform, open_image
from support.bombs import IMAGES, OWN_IMAGES, PIXELS, chunk, jpeg, png, progressive, saved, segment, tiff

EVERY = {**IMAGES, **OWN_IMAGES}


@pytest.mark.parametrize("name", EVERY)
def test_a_bomb_is_refused_at_once_and_nothing_is_decoded(name, monkeypatch):
    if name.startswith("avif") and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    bomb = EVERY[name]()

    def load(self):
        raise AssertionError("pixels were decoded")

    if not name.startswith("jpeg2000"):  # whose decoder compares the sizes itself
        monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    begin = time.process_time()
    with pytest.raises(DataError, match=r"^Expected ") as raised:
        open_image(bomb)
    assert "pixels were decoded" not in str(raised.value)
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize("name", ["gif: many comments", "jpeg: overlapping exif"])
def test_a_file_on_disk_is_looked_at_too(name, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(IMAGES[name]())
    with pytest.raises(DataError, match="as programs write it"):
        ImageTransform(size=(8, 8))(path)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_strangers_may_send_the_usual_formats(file_format):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, file_format)
    assert ImageTransform(size=None, formats=FORMATS_OF_STRANGERS)(file.getvalue()).shape == (1, 3, 30, 40)


@pytest.mark.parametrize("file_format", ["TIFF", "PPM", "JPEG2000", "ICO", "AVIF"])
def test_strangers_may_send_no_other_formats(file_format):
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    with pytest.raises(DataError, match=r"got something else .*Give an image file \(PNG, JPEG, WEBP, GIF, BMP\)"):
        open_image(saved(file_format, (32, 32)), formats=FORMATS_OF_STRANGERS)


@pytest.mark.parametrize("file_format", ["TIFF", "PPM", "JPEG2000"])
def test_ones_own_files_may_have_more_formats(file_format):
    assert open_image(saved(file_format, (32, 20))).size == (32, 20)


def _exif(orientation, *, thumbnail=0):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F], exif[0x0110] = "A maker of cameras", "Model"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x927C] = b"m" * 20_000  # what makers write for themselves
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 0.0)
    return exif.tobytes()


def _unusual():
    """Files that are larger or odder than most, and honest."""
    text = PngImagePlugin.PngInfo()
    for number in range(200):
        text.add_text(f"key{number}", "prompt " * 200, zip=number % 5 == 0)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + b"<rdf/> " * 8000
    frames = [Image.fromarray(np.roll(PIXELS, n, 1)) for n in range(20)]
    picture = Image.fromarray(PIXELS)
    depth = [segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_400)) for _ in range(60)]

    def save(file_format, **options):
        file = io.BytesIO()
        picture.save(file, file_format, **options)
        return file.getvalue()

    yield "png with texts", save("PNG", pnginfo=text)
    yield "png in small pieces", _png_in_pieces(64)
    yield "animated png", save("PNG", save_all=True, append_images=frames)
    yield "animated gif", save("GIF", save_all=True, append_images=frames, loop=0)
    yield "gif with a comment", save("GIF", comment=b"c" * 60_000)
    before, descriptor, after = save("GIF").partition(b",\0\0\0\0")
    packet = b"!\xff\x0bXMP DataXMP" + xmp + b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    yield "gif with xmp", before + packet + descriptor + after
    yield "animated webp", save("WEBP", save_all=True, append_images=frames)
    yield "webp with exif", save("WEBP", exif=_exif(3), xmp=xmp[:20_000], icc_profile=bytes(3000))
    yield "photograph", save("JPEG", exif=_exif(6), icc_profile=bytes(500_000), comment=b"c" * 60_000)
    yield "photograph with a depth map", jpeg(*depth)
    yield "photograph with a film behind it", save("JPEG") + b"\xff\xda" * 100_000
    yield "two photographs in one", save("MPO", save_all=True, append_images=frames[:1])
    yield "progressive", save("JPEG", progressive=True)
    yield "progressive in many passes", progressive(20)
    yield "jpeg with fill bytes", jpeg(b"\xff" * 50)
    yield "tiff in strips", save("TIFF", compression="tiff_lzw", strip_size=120)
    yield "tiff with exif", save("TIFF", exif=_exif(8))
    yield "pgm with a comment", b"P5\n# made by a program\n3 2\n255\n" + bytes(6)
    yield "pgm as text", b"P2\n# made by a program\n3 2\n255\n" + b"1 2 3 4 5 6\n"


def _png_in_pieces(size):
    """As some programs on small machines write it."""
    whole = png()
    start = whole.index(b"IDAT") - 4
    length = int.from_bytes(whole[start : start + 4], "big")
    content = whole[start + 8 : start + 8 + length]
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    return whole[:start] + b"".join(chunk(b"IDAT", piece) for piece in pieces) + whole[start + 12 + length :]


@pytest.mark.parametrize(("name", "content"), _unusual(), ids=[name for name, _ in _unusual()])
def test_unusual_files_of_honest_programs_are_read_as_ever(name, content):
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(open_image(content)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_is_applied_whatever_the_format(file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert open_image(saved(file_format, (40, 30), exif=exif.tobytes())).size == (
        (30, 40) if orientation > 4 else (40, 30)
    )


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_exif_that_is_damaged_is_the_decoders_to_judge():
    for content in (
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*" + struct.pack(">IH", 8, 3) + b"\xff" * 30,
        b"nonsense",
    ):
        assert open_image(jpeg(segment(0xE1, b"Exif\0\0" + content))).size == (8, 8)


def test_a_tile_may_be_larger_than_a_small_picture():
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tile = zlib.compress(bytes(range(256)) * 256)
    tags += [(322, 3, 1, 256), (323, 3, 1, 256), (324, 4, 1, 134), (325, 4, 1, len(tile))]
    np.testing.assert_array_equal(np.asarray(open_image(tiff(*tags, content=tile)))[0, :, 0], np.arange(8))


def test_a_picture_that_turns_out_larger_than_its_header_is_refused(monkeypatch):
    def load(self):
        self._size = (80, 80)
        self.im = Image.new("RGB", (80, 80)).im

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(DataError, match="Expected the 8 x 8 px of the header, got 80 x 80 px"):
        open_image(saved("PNG"))
