# SPDX-License-Identifier: Apache-2.0
"""Turn an image into a model's input with numpy and pillow alone, equal to the stock ViT processor.

Devices and training read images through this one module, so both see the same pixels.
"""

import io
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edvit_hf.errors import DataError, named_extra
from edvit_hf.strict import number
from edvit_hf.tasks import Task
from edvit_hf.transforms.containers import (
    Scan,
    check_directories,
    scan_bmp,
    scan_gif,
    scan_jpeg,
    scan_nothing,
    scan_png,
    scan_ppm,
    scan_tiff,
    scan_webp,
)
from edvit_hf.transforms.reading import not_finite, open_input, read_preprocessor

if TYPE_CHECKING:
    from PIL import Image

ImageSource: TypeAlias = "bytes | str | Path | Image.Image | np.ndarray"
"""An encoded file, its path, a PIL image or an array."""

MAX_PIXELS = 64_000_000
"""Largest accepted image, in pixels: 64 Mpx decode to 192 MB of RGB."""
MIN_SIDE, MAX_SIDE = 2, 8192
"""Smallest accepted side, in pixels, and the largest side of what a model reads."""


@dataclass(frozen=True)
class _Format:
    """How a format is told by its first bytes, how its file is looked at before it is decoded, and from whom."""

    start: re.Pattern[bytes]
    scan: Scan
    of_strangers: bool


def _format(start: bytes, scan: Scan, *, of_strangers: bool) -> _Format:
    return _Format(re.compile(start, re.DOTALL), scan, of_strangers)


# Few formats: every reader is a parser of untrusted bytes. Those that no stranger needs are for one's own files. What
# is not here is nobody's: EPS starts programs, and ICO and AVIF hold another picture than the one whose size they tell.
_FORMATS = {
    "PNG": _format(rb"\x89PNG\r\n\x1a\n", scan_png, of_strangers=True),
    "JPEG": _format(rb"\xff\xd8\xff", scan_jpeg, of_strangers=True),
    "WEBP": _format(rb"RIFF....WEBPVP8[ LX]", scan_webp, of_strangers=True),
    "GIF": _format(rb"GIF8[79]a", scan_gif, of_strangers=True),
    "BMP": _format(rb"BM", scan_bmp, of_strangers=True),
    "TIFF": _format(rb"II[*+]\0|MM\0[*+]|II\0\*|MM\*\0", scan_tiff, of_strangers=False),
    "PPM": _format(rb"P[1-6f]\s", scan_ppm, of_strangers=False),
    "JPEG2000": _format(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n", scan_nothing, of_strangers=False),
}
FORMATS = tuple(_FORMATS)
"""What is read of one's own files."""
FORMATS_OF_STRANGERS = tuple(name for name, each in _FORMATS.items() if each.of_strangers)
"""What is read of files that anybody may send."""


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS, formats: Collection[str] = FORMATS) -> "Image.Image":
    """Read any supported image as an upright 8-bit RGB PIL image.

    What happens to each mode:

    * 1, L, RGB, P, CMYK and the like: `convert("RGB")`, as the stock processor does (`do_convert_rgb`).
    * Alpha (LA, RGBA, PA, or a transparent colour in P, L, RGB): composited on white, as the stock processor
      does. The stock `pipeline` differs: it drops alpha before its processor runs, so what is hidden under
      transparent pixels shows there.
    * 16-bit grey (I;16 and I): the high byte, `value >> 8`. The stock conversion clips at 255 instead, which
      turns most such images white.
    * 32-bit float (F) and float arrays: values in [0, 1] are scaled to 0..255 and rounded.
    * An EXIF orientation is applied (as the stock `pipeline` does); of an animation the first frame is used.

    Args:
        source: Encoded file, path of a file, PIL image, or an array: uint8 (0..255) or float (0..1), shaped (H, W), (H,
            W, 3) or (H, W, 4).
        max_pixels: Largest accepted image.
        formats: Of files. Of strangers' files better `FORMATS_OF_STRANGERS` alone.

    Returns:
        `PIL.Image.Image`: Mode RGB.

    Raises:
        DataError: Not an image, truncated, empty, a side under 2 px, more than `max_pixels` (read from the header,
            before anything is decoded), another size than the header says, more beside the pixels than any honest file
            has (see `containers`), a value that is not finite, or an array of another shape or type.
        MissingExtraError: Pillow is not installed.
    """
    pil = _pillow()
    if isinstance(source, np.ndarray):
        return _upright_rgb(_from_array(source), "the array", max_pixels)
    if isinstance(source, pil.Image):
        return _upright_rgb(source, "the PIL image", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) == 0:
            raise DataError(f"Expected the bytes of an image file, got 0 bytes. {_what_to_do(formats)}")
        opened = _open(io.BytesIO(source), f"the given {len(source)} bytes", max_pixels, formats)
        return _upright_rgb(opened, "the given bytes", max_pixels)
    if not isinstance(source, (str, Path)):
        raise DataError(f"Expected an image, got {type(source).__name__}, which cannot be read. {_what_to_do(formats)}")
    with open_input(source, "image", _what_to_do(formats)) as file:
        return _upright_rgb(_open(file, f"the file {source}", max_pixels, formats), f"the file {source}", max_pixels)


@dataclass(frozen=True)
class ImageTransform:
    """What a stock `ViTImageProcessor` (PIL backend) does, without torch or transformers.

    Attributes:
        size: Height and width of the result, in pixels; None leaves the image's own size (`do_resize` off).
        mean: Per channel, subtracted after rescaling; None when normalisation is off.
        std: Per channel, divided by afterwards; None when normalisation is off.
        rescale_factor: Multiplies the 0..255 pixels; None when rescaling is off.
        resample: Pillow's filter number (2: bilinear).
        max_pixels: Largest accepted image, before it is resized.
        formats: Of files that are read.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    std: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    rescale_factor: float | None = 1 / 255
    resample: int = 2
    max_pixels: int = MAX_PIXELS
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        sides = () if self.size is None else self.size
        if self.size is not None and (len(sides) != 2 or not all(_is_side(side) for side in sides)):
            raise DataError(
                f"`size` must be (height, width) of {MIN_SIDE} to {MAX_SIDE} px each, got {self.size!s:.60}: no model "
                "reads other images, and all of it is held in memory."
            )
        if (self.mean is None) != (self.std is None):
            raise DataError("`mean` and `std` belong together, got one without the other. Give both or neither.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or not all(math.isfinite(v) for v in values)):
                raise DataError(f"`{name}` must be three finite numbers (images are read as RGB), got {values}.")
        if self.std is not None and min(self.std) <= 0:
            raise DataError(f"`std` must be positive, got {self.std}: pixels are divided by it.")
        if isinstance(self.resample, bool) or not isinstance(self.resample, int) or self.resample not in range(6):
            raise DataError(f"`resample` must be a Pillow filter number in 0..5, got {self.resample!r:.60}.")
        if self.rescale_factor is not None:
            number("rescale_factor", self.rescale_factor, "(0, inf)", "pixels are multiplied by it", DataError)

    @property
    def task(self) -> Task:
        """The task whose models this feeds."""
        return "image-classification"

    @classmethod
    def from_preprocessor(cls, preprocessor: Mapping[str, Any]) -> "ImageTransform":
        """Build it from the content of a `preprocessor_config.json`.

        Raises:
            DataError: The config asks for a step that is not done here (a centre crop, padding, a shortest edge):
                ignoring it would feed the model pixels that it was not trained on.
        """
        known = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"}
        extra = sorted(k for k, v in preprocessor.items() if k.startswith("do_") and v and k not in known)
        if extra:
            raise DataError(
                f"Expected a preprocessor that resizes, rescales and normalises, got one with {', '.join(extra)}. "
                "Leaving that step out would change what the model sees. Use a plain `ViTImageProcessor` config."
            )
        does = {name: preprocessor.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize")}
        unclear = next((name for name, value in does.items() if value not in (True, False, None)), None)
        if unclear is not None:
            raise DataError(
                f"Expected the preprocessor's `{unclear}` to be true or false, got {does[unclear]!r:.60}. Whether the "
                "step is done changes what the model sees. Correct the file, or export the folder again."
            )
        normalises, rescales = does["do_normalize"], does["do_rescale"]
        return cls(
            size=_size(preprocessor.get("size", 224)) if does["do_resize"] else None,
            mean=_per_channel("image_mean", preprocessor) if normalises else None,
            std=_per_channel("image_std", preprocessor) if normalises else None,
            rescale_factor=preprocessor.get("rescale_factor", 1 / 255) if rescales else None,
            resample=preprocessor.get("resample", 2),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "ImageTransform":
        """Build it from a `preprocessor_config.json`, or from the folder that holds one."""
        return cls.from_preprocessor(
            read_preprocessor(path, "an image preprocessor", "Without it the model's pixel scale is unknown.")
        )

    def pixels(self, image: ImageSource) -> np.ndarray:
        """Read and resize: (H, W, 3) uint8, RGB. Raises what `open_image` raises."""
        opened = open_image(image, self.max_pixels, self.formats)
        if self.size is not None and opened.size != (self.size[1], self.size[0]):
            opened = opened.resize((self.size[1], self.size[0]), resample=self.resample)
        return np.asarray(opened)

    def __call__(self, image: ImageSource) -> np.ndarray:
        """Return the model's input: (1, 3, H, W) float32. Raises what `open_image` raises."""
        return np.ascontiguousarray(self.normalised(self.pixels(image)).transpose(2, 0, 1)[None])

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 pixels rescaled and normalised: (H, W, 3) float32."""
        # The stock order of types: rescale in float64, round to float32, normalise in float32.
        scaled: np.ndarray = (pixels.astype(np.float64) * (self.rescale_factor or 1.0)).astype(np.float32)
        if self.mean is not None and self.std is not None:
            scaled = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return scaled

    def inputs(self, image: ImageSource) -> dict[str, np.ndarray]:
        """Return the model's input by name: {"pixel_values": (1, 3, H, W) float32}. Raises what `open_image` raises."""
        return {"pixel_values": self(image)}


def _pillow() -> Any:
    with named_extra("Reading an image", "device"):
        from PIL import Image
    return Image


@lru_cache(maxsize=1)
def load_readers() -> None:
    """Import what reads the formats here and nothing else, so that no image waits for it."""
    with named_extra("Reading an image", "device"):
        from PIL import (  # noqa: F401
            BmpImagePlugin,
            GifImagePlugin,
            Jpeg2KImagePlugin,
            JpegImagePlugin,
            MpoImagePlugin,
            PngImagePlugin,
            PpmImagePlugin,
            TiffImagePlugin,
            WebPImagePlugin,
        )


def _what_to_do(formats: Collection[str]) -> str:
    return f"Give an image file ({', '.join(formats)}), its bytes, a PIL image or a numpy array."


def _open(file: Any, what: str, max_pixels: int, formats: Collection[str]) -> "Image.Image":
    """Look at how the file is built and read the header; decode nothing yet."""
    pil = _pillow()
    load_readers()
    start = file.read(16)
    kind = next((name for name in formats if _FORMATS[name].start.match(start)), None)
    if kind is None:
        raise DataError(f"Expected an image, got something else in {what}{_told(start)}. {_what_to_do(formats)}")
    _FORMATS[kind].scan(file, what, max_pixels)
    file.seek(0)
    try:
        opened: Image.Image = pil.open(file, formats=(kind,))
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise DataError(
            f"Expected an image of at most {max_pixels / 1e6:.3g} Mpx, got more in {what} ({error}). "
            "Decoding it could exhaust the memory. Scale it down first."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly every type on damaged input
        raise DataError(f"Expected an image, got something else in {what}: {error}. {_what_to_do(formats)}") from error
    raw = opened.info.get("Raw profile type exif")  # text of a PNG that Pillow takes for EXIF
    if isinstance(raw, str):
        try:
            exif = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:  # none that Pillow could read
            exif = b""
        check_directories(exif.removeprefix(b"Exif\0\0"), what)
    return opened


def _told(start: bytes) -> str:
    """Which format it is instead, where that is known."""
    found = next((name for name, each in _FORMATS.items() if each.start.match(start)), None)
    if found is None and start[4:12] in (b"ftypavif", b"ftypavis"):
        found = "AVIF"
    return f": {found}, which is not read here" if found else ""


def _upright_rgb(image: "Image.Image", what: str, max_pixels: int) -> "Image.Image":
    from PIL import ImageOps

    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise DataError(
            f"Expected an image with sides of at least {MIN_SIDE} px, got {width} x {height} px in {what}. "
            "A one-pixel side holds no picture; such files are usually placeholders. Remove or replace it."
        )
    if width * height > max_pixels:
        raise DataError(
            f"Expected an image of at most {max_pixels / 1e6:.3g} Mpx, got {width} x {height} px in "
            f"{what}. Decoding it could exhaust the memory. Scale it down first."
        )
    try:
        upright = ImageOps.exif_transpose(image)
        if sorted(upright.size) != sorted((width, height)):
            raise DataError(
                f"Expected the {width} x {height} px of the header, got {upright.width} x {upright.height} px in "
                f"{what}. Whatever was checked was another picture. Save the image again."
            )
        return _rgb(upright)
    except (MemoryError, DataError):
        raise
    except Exception as error:  # as in _open
        raise DataError(
            f"Expected a complete image, got one in {what} that cannot be decoded: {error}. "
            "The file is truncated or damaged. Fetch it again or remove it."
        ) from error


def _rgb(image: "Image.Image") -> "Image.Image":
    pil = _pillow()
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"Expected integer pixels in 0..65535 (16 bit), got {values.min()}..{values.max()}. "
                "Their scale is unknown. Convert the image to 8 or 16 bits."
            )
        return pil.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return pil.fromarray(_bytes_from_floats(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        opaque = pil.new("RGBA", image.size, (255, 255, 255, 255))
        return pil.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> "Image.Image":
    has_image_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not has_image_shape or array.size == 0:
        is_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "Move the channels last: array.transpose(1, 2, 0). " if is_first else ""
        raise DataError(
            f"Expected an image array shaped (H, W), (H, W, 3) or (H, W, 4), got {array.shape}. {hint}"
            "Pass one image at a time."
        )
    if np.issubdtype(array.dtype, np.floating):
        array = _bytes_from_floats(array)
    elif array.dtype != np.uint8:
        raise DataError(
            f"Expected an image array of uint8 (0..255) or floats (0..1), got {array.dtype}, whose scale is "
            "unknown. Scale it to 0..255 and convert it: array.astype(np.uint8)."
        )
    return _pillow().fromarray(np.ascontiguousarray(array))


def _bytes_from_floats(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise not_finite(values, "pixel values", "", "image")
    if values.min() < 0 or values.max() > 1:
        raise DataError(
            f"Expected float pixels in [0, 1], got {values.min():g}..{values.max():g}. "
            "Divide by the largest possible value, or pass uint8."
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and MIN_SIDE <= value <= MAX_SIDE


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and {"height", "width"} == {k for k, v in value.items() if v is not None}:
        return value["height"], value["width"]
    raise DataError(
        f"Expected a preprocessor `size` of {{'height', 'width'}}, got {value!r}. "
        "Other resizing rules are not done on devices. Use a plain `ViTImageProcessor` config."
    )


def _per_channel(name: str, preprocessor: Mapping[str, Any]) -> tuple[float, ...]:
    value = preprocessor.get(name)
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
        return tuple(float(v) for v in value)
    raise DataError(f"Expected three numbers in the preprocessor's `{name}`, got {value!r}. Export the folder again.")
