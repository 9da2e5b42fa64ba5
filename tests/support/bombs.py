# SPDX-License-Identifier: Apache-2.0
"""Files that cost their reader far more than they weigh: nothing in them is damaged."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(file_format, size=(8, 8), mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, file_format, **options)
    return file.getvalue()


def gif(extensions, kind=b"GIF89a"):
    """An 8 x 8 GIF with these extensions before its picture."""
    picture = b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x02\x02\x4c\x01\x00;"
    return kind + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + extensions + picture


def segment(marker, content=b""):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg(*inserted):
    whole = saved("JPEG")
    return whole[:2] + b"".join(inserted) + whole[2:]


def progressive(passes, side=64):
    whole = saved("JPEG", (side, side), progressive=True)
    last = whole.rfind(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * passes + whole[-2:]


def chunk(kind, content=b""):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(before=b"", after=b""):
    whole = saved("PNG")
    return whole[:33] + before + whole[33:-12] + after + whole[-12:]


def directory(count, named, size, first=700, pointer=8):
    """A TIFF's directory, or EXIF's, of so many entries that all name the same bytes."""
    entries = b"".join(struct.pack("<HHII", first + index, 7, named, pointer) for index in range(count))
    content = b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4)
    return content + bytes(max(0, size - len(content)))


OVERLAPPING = directory(3000, 60_000, 64_000)


def in_sub_directory(tag=34665):
    inner = OVERLAPPING[8:]
    return b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", tag, 4, 1, 26) + bytes(4) + inner


def raw_profile(exif):
    """EXIF as ImageMagick writes it into a PNG: a compressed text."""
    digits = (b"Exif\0\0" + exif).hex()
    text = f"\nexif\n{len(digits) // 2:8d}\n" + "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text.encode())))


def tiff(*tags, content=b""):
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def tiff_with_tile(side, kind=4, place=None, compression=8):
    """An 8 x 8 TIFF whose only tile is far larger; `place`: where the tile's sides are written instead."""
    fixed = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1), (277, 3, 1, 1)]
    sides = [(tag, kind, 1, side if place is None else place) for tag in (322, 323)]
    content = zlib.compress(bytes(100)) + struct.pack("<Q", side)
    return tiff(*fixed, *sides, (324, 4, 1, 134), (325, 4, 1, 12), content=content)


def webp(width, height):
    """A small WebP with a larger canvas."""
    whole = bytearray(saved("WEBP", lossless=True, exif=b"x"))
    place = whole.index(b"VP8X") + 12
    whole[place : place + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(whole)


def webp_without_canvas(width, height):
    header = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14)
    content = b"VP8L" + struct.pack("<I", len(header) + 1) + header + b"\0"
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


def bmp(count, width, height, pixels):
    """A run-length encoded BMP."""
    sizes = struct.pack("<IHHI", 1078 + count, 0, 0, 1078)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, count, 0, 0, 256, 0)
    return b"BM" + sizes + header + bytes(1024) + (pixels * (1 + count // len(pixels)))[:count]


def ico(side):
    """An icon of 8 x 8 px by its directory that holds a large PNG."""
    picture = saved("PNG", (side, side), "RGBA", compress_level=9)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 8, 8, 0, 0, 1, 32, len(picture), 22) + picture


def avif_with_false_size():
    whole = bytearray(saved("AVIF", (300, 300)))
    place = whole.index(b"ispe") + 8
    whole[place : place + 8] = struct.pack(">II", 8, 8)
    return bytes(whole)


def jpeg2000_with_false_size(side=1500):
    whole = bytearray(saved("JPEG2000", (side, side), "L"))
    place = whole.index(b"ihdr") + 4
    whole[place : place + 8] = struct.pack(">II", 8, 8)
    return bytes(whole)


MANY = 300_000
ICC = b"ICC_PROFILE\0\1\xff" + bytes(65_000)
PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)

IMAGES = {
    "gif: a comment of one-byte blocks": lambda: gif(b"!\xfe" + b"\x01a" * MANY + b"\0"),
    "gif: a comment without an end": lambda: gif(b"!\xfe" + b"\x01a" * MANY),
    "gif: an application's block of one-byte blocks": lambda: gif(b"!\xff" + b"\x01a" * MANY + b"\0"),
    "gif: many comments": lambda: gif(b"!\xfe\x01a\0" * MANY),
    "gif: many empty extensions": lambda: gif(b"!\xf9\0" * MANY, b"GIF87a"),
    "gif: bytes between extensions": lambda: gif(bytes(MANY)),
    "jpeg: exif in many segments": lambda: jpeg(*[segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 60),
    "jpeg: exif in many short segments": lambda: jpeg(*[segment(0xE1, b"Exif\0\0")] * 10_000),
    "jpeg: many segments": lambda: jpeg(*[segment(0xE5, b"abcd")] * MANY),
    "jpeg: many comments": lambda: jpeg(*[segment(0xFE, b"abcd")] * MANY),
    "jpeg: many tables": lambda: jpeg(*[segment(0xDB, bytes(65))] * 20_000),
    "jpeg: many frames": lambda: jpeg(*[segment(0xC0, b"\x08\0\x08\0\x08\x01\x01\x11\0")] * 20_000),
    "jpeg: a large profile": lambda: jpeg(*[segment(0xE2, ICC)] * 270),
    "jpeg: many photoshop resources": lambda: jpeg(
        *[segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000)] * 20
    ),
    "jpeg: fill bytes": lambda: jpeg(b"\xff" * MANY),
    "jpeg: bytes between segments": lambda: jpeg(segment(0xFE), bytes(MANY)),
    "jpeg: escaped bytes between segments": lambda: jpeg(b"\xff\0" * MANY),
    "jpeg: many starts": lambda: jpeg(b"\xff\xd8" * MANY),
    "jpeg: overlapping exif": lambda: jpeg(segment(0xE1, b"Exif\0\0" + OVERLAPPING)),
    "jpeg: overlapping exif in two segments": lambda: jpeg(
        segment(0xE1, b"Exif\0\0" + OVERLAPPING[:30_000]), segment(0xE1, b"Exif\0\0" + OVERLAPPING[30_000:])
    ),
    "jpeg: overlapping exif below": lambda: jpeg(segment(0xE1, b"Exif\0\0" + in_sub_directory())),
    "jpeg: overlapping gps": lambda: jpeg(segment(0xE1, b"Exif\0\0" + in_sub_directory(34853))),
    "jpeg: overlapping index of pictures": lambda: jpeg(segment(0xE2, b"MPF\0" + OVERLAPPING)),
    "jpeg: many passes": lambda: progressive(3000),
    "png: many texts": lambda: png(chunk(b"tEXt", b"a\0b") * MANY),
    "png: many texts behind the pixels": lambda: png(after=chunk(b"tEXt", b"a\0b") * MANY),
    "png: many compressed texts": lambda: png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))) * 100),
    "png: many international texts": lambda: png(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(1 << 20))) * 100),
    "png: many profiles": lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20))) * 100),
    "png: many unknown chunks": lambda: png(chunk(b"abCd") * MANY),
    "png: many empty pixels": lambda: png(chunk(b"IDAT") * MANY),
    "png: many frames": lambda: png(chunk(b"acTL", bytes(8)) + chunk(b"fcTL", bytes(26)) * MANY),
    "png: a large text": lambda: png(chunk(b"tEXt", b"a\0" + b"b" * (17 << 20))),
    "png: overlapping exif": lambda: png(chunk(b"eXIf", directory(4000, 200_000, 900_000))),
    "png: large overlapping exif": lambda: png(chunk(b"eXIf", directory(4000, 2_000_000, 3_000_000))),
    "png: overlapping exif as text": lambda: raw_profile(OVERLAPPING),
    "webp: a large canvas": lambda: webp(16_383, 16_383),
    "webp: a canvas beyond webp": lambda: webp(1 << 24, 1 << 7),
    "webp: large pixels": lambda: webp_without_canvas(16_383, 16_383),
    "webp: many chunks": lambda: saved("WEBP") + (b"abcd" + bytes(4)) * MANY,
    "webp: overlapping exif": lambda: saved("WEBP", exif=b"Exif\0\0" + OVERLAPPING),
    "bmp: long runs": lambda: bmp(2 << 20, 3000, 3000, b"\1\7"),
    "bmp: wide runs": lambda: bmp(1000, 12_000_000, 2, b"\0\2\0\xff"),
}
"""Of formats that strangers may send."""
OWN_IMAGES = {
    "tiff: a large tile": lambda: tiff_with_tile(30_000),
    "tiff: a large tile, not compressed": lambda: tiff_with_tile(30_000, compression=1),
    "tiff: a large tile in another type": lambda: tiff_with_tile(30_000, kind=16, place=146),
    "tiff: a large tile as a fraction": lambda: tiff_with_tile(30_000, kind=5, place=146),
    "tiff: overlapping entries": lambda: directory(4000, 1_900_000, 2_000_000, first=40_000),
    "tiff: many strips": lambda: tiff((256, 4, 1, 8), (257, 4, 1, 8), (273, 4, 1 << 20, 8)),
    "ppm: a long comment": lambda: b"P6 #" + b"a" * MANY + b"\n2 2 255\n" + bytes(12),
    "ppm: many comments between numbers": lambda: b"P3 1000 1000 255\n" + b"#\n" * MANY,
    "ppm: many numbers": lambda: b"P2 4000 4000 255\n" + b"1 " * (5 << 20),
    "ico: a large picture": lambda: ico(1500),
    "avif: a false size": avif_with_false_size,
    "jpeg2000: a false size": jpeg2000_with_false_size,
}
"""Of the others."""
