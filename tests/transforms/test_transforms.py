# SPDX-License-Identifier: Apache-2.0
"""Images become the same model input as with the stock processor, whatever the file's mode."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edvit_hf.errors import DataError, MissingExtraError
from edvit_hf.transforms import ImageTransform, open_image

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _picture(channels=3, height=19, width=31):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def _palette_with_alpha():
    return Image.fromarray(_picture(4)).quantize(16, method=Image.Quantize.FASTOCTREE)


def _orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


_SIXTEEN_BIT = (_picture(1).astype(np.uint16) << 8) + 17
_FILES = {
    "1": lambda: _encoded(Image.fromarray(_picture(1)).convert("1")),
    "L": lambda: _encoded(Image.fromarray(_picture(1))),
    "L with a transparent grey": lambda: _encoded(Image.fromarray(_picture(1) // 32), transparency=3),
    "LA": lambda: _encoded(Image.fromarray(_picture(4)).convert("LA")),
    "RGB": lambda: _encoded(Image.fromarray(_picture(3))),
    "RGB JPEG": lambda: _encoded(Image.fromarray(_picture(3)), "JPEG"),
    "RGBA": lambda: _encoded(Image.fromarray(_picture(4))),
    "P": lambda: _encoded(Image.fromarray(_picture(3)).quantize(32)),
    "P with a transparent colour": lambda: _encoded(Image.fromarray(_picture(3)).quantize(32), transparency=1),
    "P GIF": lambda: _encoded(Image.fromarray(_picture(3)).quantize(32), "GIF"),
    "PA": lambda: _encoded(_palette_with_alpha()),
    "CMYK JPEG": lambda: _encoded(Image.fromarray(_picture(4), mode="CMYK"), "JPEG"),
    "RGBA WebP": lambda: _encoded(Image.fromarray(_picture(4)), "WEBP"),
}


def _stock_processor(size=(12, 16), **options):
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": size[0], "width": size[1]}, image_mean=list(_MEAN), image_std=list(_STD), **options
    )


def _stock_pixels(processor, image):
    return processor(image, return_tensors="np")["pixel_values"]


@pytest.mark.parametrize("kind", sorted(_FILES))
def test_a_file_of_any_mode_gives_the_pixels_of_the_stock_processor(kind):
    file = _FILES[kind]()
    processor = _stock_processor(do_convert_rgb=True)
    ours = ImageTransform.from_preprocessor(processor.to_dict())(file)
    stock = _stock_pixels(processor, Image.open(io.BytesIO(file)))
    assert ours.shape == (1, 3, 12, 16)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, stock, rtol=0, atol=1e-6)


def test_an_image_of_mode_pa_in_memory_gives_the_pixels_of_the_stock_processor():
    image = Image.fromarray(_picture(3)).quantize(16).convert("PA")
    image.putalpha(Image.fromarray(_picture(1)))
    assert image.mode == "PA"
    processor = _stock_processor(do_convert_rgb=True)
    ours = ImageTransform.from_preprocessor(processor.to_dict())(image)
    np.testing.assert_allclose(ours, _stock_pixels(processor, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_high_byte_instead_of_clipping(file_format):
    file = _encoded(Image.fromarray(_SIXTEEN_BIT), file_format)
    assert Image.open(io.BytesIO(file)).mode.startswith("I;16")
    expected = np.repeat(_picture(1)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(np.asarray(open_image(file)), expected)
    processor = _stock_processor()
    ours = ImageTransform.from_preprocessor(processor.to_dict())(file)
    np.testing.assert_allclose(ours, _stock_pixels(processor, Image.fromarray(expected)), rtol=0, atol=1e-6)


def test_a_portable_graymap_of_sixteen_bits_keeps_its_high_byte():
    values = _SIXTEEN_BIT.astype(">u2")
    file = f"P5 {values.shape[1]} {values.shape[0]} 65535\n".encode() + values.tobytes()
    assert Image.open(io.BytesIO(file)).mode == "I"
    np.testing.assert_array_equal(np.asarray(open_image(file))[:, :, 0], _picture(1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_stands_upright_as_in_the_stock_pipeline(orientation):
    from transformers.image_utils import load_image

    file = _encoded(Image.fromarray(_picture(3)), "JPEG", exif=_orientation(orientation))
    expected = load_image(Image.open(io.BytesIO(file)))
    np.testing.assert_array_equal(np.asarray(open_image(file)), np.asarray(expected))
    assert open_image(file).size == ((31, 19) if orientation < 5 else (19, 31))


def test_transparent_pixels_become_white_whatever_colour_hides_under_them():
    pixels = _picture(4)
    pixels[:, :, 3] = 0
    assert np.asarray(open_image(_encoded(Image.fromarray(pixels)))).min() == 255


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bytes_floats_and_files_of_the_same_picture_agree(channels, tmp_path):
    pixels = _picture(channels)
    path = tmp_path / "picture.png"
    path.write_bytes(_encoded(Image.fromarray(pixels)))
    transform = ImageTransform(size=(8, 8))
    expected = transform(path)
    for source in (pixels, pixels / 255, (pixels / 255).astype(np.float32), str(path), path.read_bytes()):
        np.testing.assert_array_equal(transform(source), expected)


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(file))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "options", [{"do_rescale": False}, {"do_normalize": False}, {"do_resize": False}, {"resample": 3}]
)
def test_switched_off_steps_are_left_out_as_in_the_stock_processor(options):
    processor = _stock_processor(**options)
    image = Image.fromarray(_picture(3))
    ours = ImageTransform.from_preprocessor(processor.to_dict())(image)
    np.testing.assert_allclose(ours, _stock_pixels(processor, image), rtol=1e-6, atol=1e-6)


def test_a_saved_processor_is_read_from_its_file_and_from_its_folder(tmp_path):
    processor = _stock_processor()
    processor.save_pretrained(tmp_path)
    transform = ImageTransform.from_file(tmp_path)
    assert transform == ImageTransform.from_file(tmp_path / "preprocessor_config.json")
    assert (transform.size, transform.mean, transform.std) == ((12, 16), _MEAN, _STD)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_center_crop": True}, "do_center_crop"),
        ({"size": {"shortest_edge": 8}}, "shortest_edge"),
        ({"image_mean": [0.5]}, "mean"),
        ({"image_mean": "half"}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0.0]}, "std"),
        ({"size": {"height": 1, "width": 8}}, "size"),
        ({"size": {"height": 100_000, "width": 100_000}}, "size"),
        ({"size": {"height": 8.5, "width": 8}}, "size"),
        ({"size": {"height": "8", "width": 8}}, "size"),
        ({"size": True}, "size"),
        ({"resample": 9}, "resample"),
        ({"resample": 2.5}, "resample"),
        ({"resample": "bilinear"}, "resample"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": math.inf}, "rescale_factor"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"do_resize": "false"}, "do_resize"),
        ({"do_normalize": 3}, "do_normalize"),
    ],
)
def test_a_preprocessor_that_cannot_be_followed_is_refused(change, named):
    with pytest.raises(DataError, match=named):
        ImageTransform.from_preprocessor({**_stock_processor().to_dict(), **change})


@pytest.mark.parametrize("content", [None, "not json", json.dumps([1])])
def test_a_missing_or_damaged_preprocessor_file_is_named(tmp_path, content):
    path = tmp_path / "preprocessor_config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        ImageTransform.from_file(path)


def test_without_pillow_the_error_carries_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edvit_hf\[device\]'"):
        ImageTransform(size=(8, 8))(b"any")


def test_reading_an_image_loads_neither_torch_nor_transformers():
    program = (
        "import sys, numpy as np; from edvit_hf.transforms import ImageTransform\n"
        "assert 'PIL' not in sys.modules, 'pillow is loaded before it is needed'\n"
        "ImageTransform(size=(8, 8))(np.zeros((9, 9), np.uint8))\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=_environment())
    assert result.returncode == 0, result.stderr


def _environment():
    import os
    from pathlib import Path

    import edvit_hf

    return {**os.environ, "PYTHONPATH": str(Path(edvit_hf.__file__).parents[1])}
