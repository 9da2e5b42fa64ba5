# SPDX-License-Identifier: Apache-2.0
"""How image files are built, looked at before a decoder is: pieces are counted and sizes added up, nothing is decoded.

A decoder's work before the first pixel grows with what the file says about itself, sometimes with its square: comments
in one-byte pieces, EXIF in a thousand parts, directories whose entries all name the same megabyte. No honest file comes
near the limits here. Damage is not looked for: that is the decoder's to tell.
"""

import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from edvit_hf.errors import DataError

MAX_METADATA = 16 << 20
"""Bytes of a file that are no pixels: comments, profiles, EXIF. Depth maps in photographs have 4 MiB."""
MAX_PIECES = 1024
"""Segments, chunks or extensions that are no pixels."""
MAX_SUB_BLOCKS = 16_384
"""Blocks of at most 255 bytes in the extensions before a GIF's first picture."""
MAX_EXIF = 1 << 20
"""Bytes of EXIF. The standard allows one segment of 64 KiB; a few programs write some more."""
MAX_SCANS = 64
"""Passes over a progressive JPEG. Programs write up to 20; a pass that says nothing takes as long as one that does."""
MAX_ENTRIES = 4096
"""Of one directory of EXIF or TIFF."""
MAX_RLE = 1 << 20
"""Bytes of a run-length encoded BMP, which is decoded in Python."""
MAX_PLAIN = 1 << 23
"""Bytes of a PPM, PGM or PBM that writes its pixels as text, which is decoded in Python too."""

_BYTES_A_PIECE = 512  # of pixels, on the average: programs write 8 KiB
_FEW_SCATTERED = 8  # segments of a kind that honest files have once
_MOST_JUNK = 1 << 16  # bytes between two pieces
_MOST_COMPRESSED = 64  # compressed texts and profiles of a PNG, each up to 1 MiB when it is unpacked
_MOST_STRIPS = 1 << 17
_MOST_DIRECTORIES = 64
_LARGEST_TILE = 1 << 22  # pixels of a TIFF's tile that may be larger than its picture
_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SUB_DIRECTORIES = {34665, 34853, 40965}  # EXIF, GPS, interoperability: the decoder follows these
_STRIPS, _TILES = 273, 324
_LONG8, _ODD = (16, 17, 18), -1
_SIZES = (256, 257, 322, 323)  # width and height of the picture, then of its tiles
_MARKER = re.compile(rb"\xff[\xd9\xda]")

Scan = Callable[[BinaryIO, str, int], None]
"""(file, how messages name it, largest accepted picture in pixels) -> None, or a DataError."""


def scan_png(file: BinaryIO, what: str, max_pixels: int) -> None:
    """Chunks of a PNG."""
    most = MAX_PIECES + _size(file) // _BYTES_A_PIECE
    position, pieces, others, compressed, metadata = 8, 0, 0, 0, 0
    while True:
        length, kind = _unpack(file, position, ">I4s")
        if length is None or kind == b"IEND":
            return
        pieces += 1
        if kind not in (b"IDAT", b"fdAT", b"fcTL"):
            others, metadata = others + 1, metadata + length
            compressed += kind in (b"zTXt", b"iTXt", b"iCCP")
        if kind == b"eXIf":
            check_directories(_at(file, position + 8, min(length, MAX_EXIF + 1)), what)
        if pieces > most or others > MAX_PIECES or compressed > _MOST_COMPRESSED:
            raise _too_much(what, "chunks", pieces)
        _check_metadata(metadata, what)
        position += 12 + length


def scan_jpeg(file: BinaryIO, what: str, max_pixels: int) -> None:
    """Segments of a JPEG before its pixels, and the passes over them."""
    position, pieces, metadata, junk, scattered = 2, 0, 0, 0, 0
    exif, index = b"", b""
    while True:
        start = _at(file, position, 16)
        if len(start) < 4:
            return
        if start[0] != 0xFF or start[1] in (0x00, 0xFF):
            position, junk = position + 1, junk + 1
        elif start[1] in (0x01, *range(0xD0, 0xD9)):
            position, junk = position + 2, junk + 2
        else:
            length = int.from_bytes(start[2:4], "big")
            if start[1] == 0xDA:
                break
            pieces, metadata = pieces + 1, metadata + length
            is_exif, is_index = start[4:10] == b"Exif\0\0", start[4:8] == b"MPF\0"
            if start[1] in (0xE1, 0xE2) and (is_exif or is_index):
                content, scattered = _at(file, position + 4, length - 2), scattered + 1
                exif, index = exif + content[6:] if is_exif else exif, content[4:] if is_index else index
            scattered += start[1] == 0xED
            if pieces > MAX_PIECES or scattered > 2 * _FEW_SCATTERED:
                raise _too_much(what, "segments", pieces)
            position += 2 + max(2, length)
        if junk > _MOST_JUNK:
            raise _too_much(what, "bytes between its segments", junk)
        _check_metadata(metadata, what)
    for directory in (exif, index):
        check_directories(directory, what)
    _check_scans(file, position, what)


def _check_scans(file: BinaryIO, position: int, what: str) -> None:
    file.seek(position)
    scans, last = 0, b""
    while True:
        part = file.read(1 << 20)
        for marker in _MARKER.findall(last + part):
            if marker == b"\xff\xd9":
                return
            scans += 1
            if scans > MAX_SCANS:
                raise _too_much(what, "passes over its pixels", scans)
        if not part:
            return
        last = part[-1:] if part.endswith(b"\xff") else b""


def scan_gif(file: BinaryIO, what: str, max_pixels: int) -> None:
    """Extensions of a GIF before its first picture; what follows is not looked at by anybody."""
    header = _at(file, 0, 13)
    if len(header) < 13:
        return
    position = 13 + (3 << (header[10] & 7) + 1 if header[10] & 128 else 0)
    file.seek(position)
    pieces, blocks, metadata, junk = 0, 0, 0, 0
    while True:
        kind = file.read(1)
        if kind in (b"", b";", b","):
            return
        if kind != b"!":
            junk += 1
            if junk > _MOST_JUNK:
                raise _too_much(what, "bytes between its extensions", junk)
            continue
        pieces += 1
        file.seek(1, 1)
        while size := file.read(1):
            if size == b"\0":
                break
            blocks, metadata = blocks + 1, metadata + size[0]
            if blocks > MAX_SUB_BLOCKS:
                raise _too_much(what, "blocks of comments", blocks)
            file.seek(size[0], 1)
        if pieces > MAX_PIECES:
            raise _too_much(what, "extensions", pieces)


def scan_webp(file: BinaryIO, what: str, max_pixels: int) -> None:
    """Chunks of a WebP, and its size: the decoder reserves the whole picture when it opens the file."""
    size, position, pieces, metadata = _size(file), 12, 0, 0
    while position + 8 <= size:
        kind, length = _unpack(file, position, "<4sI")
        pieces += 1
        content = _at(file, position + 8, min(length, 16))
        width, height = _webp_size(kind, content)
        if width * height > max_pixels:
            raise DataError(
                f"Expected an image of at most {max_pixels / 1e6:.3g} Mpx, got {width} x {height} px in {what}. "
                "Decoding it could exhaust the memory. Scale it down first."
            )
        if kind not in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
            metadata += length
        if kind == b"EXIF":
            content = _at(file, position + 8, min(length, MAX_EXIF + 1))
            check_directories(content.removeprefix(b"Exif\0\0"), what)
        if pieces > MAX_PIECES + size // _BYTES_A_PIECE:
            raise _too_much(what, "chunks", pieces)
        _check_metadata(metadata, what)
        position += 8 + length + length % 2


def _webp_size(kind: bytes, content: bytes) -> tuple[int, int]:
    if kind == b"VP8X" and len(content) >= 10:
        return 1 + int.from_bytes(content[4:7], "little"), 1 + int.from_bytes(content[7:10], "little")
    if kind == b"VP8L" and len(content) >= 5:
        bits = int.from_bytes(content[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(content) >= 10:
        width, height = struct.unpack("<HH", content[6:10])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def scan_bmp(file: BinaryIO, what: str, max_pixels: int) -> None:
    """Run-length encoding, which is decoded in Python: only of small files."""
    length, width, height, _, _, compression = _unpack(file, 14, "<IiiHHI")
    if length is None or length < 40 or compression not in (1, 2):
        return
    if _size(file) > MAX_RLE or max(abs(width), abs(height)) > 1 << 14:
        raise DataError(
            f"Expected a BMP without compression, or a small one, got a run-length encoded one of {_size(file)} bytes "
            f"in {what}. Decoding it would take minutes. Save it as PNG."
        )


def scan_ppm(file: BinaryIO, what: str, max_pixels: int) -> None:
    """The header of a PPM, PGM or PBM, whose comments are read byte by byte."""
    start = _at(file, 0, MAX_PIECES)
    if len(re.sub(rb"#[^\r\n]*", b"", start).split()) < 4 and len(start) == MAX_PIECES:
        raise _too_much(what, "bytes before its size", MAX_PIECES)
    if start[1:2] in b"123":
        content = _at(file, 0, MAX_PLAIN + 1)
        if len(content) > MAX_PLAIN or content.count(b"#") > MAX_PIECES:
            raise _too_much(what, "bytes or comments in pixels that are text", len(content))


def scan_tiff(file: BinaryIO, what: str, max_pixels: int) -> None:
    """Directories of a TIFF, and the size of its tiles: the decoder reserves a whole tile for a picture of any size."""
    found = _directories(lambda position, count: _at(file, position, count), _size(file), what)
    width, height, tile_width, tile_height = (found.get(tag, []) for tag in _SIZES)
    if any(_ODD in values for values in found.values()):  # readers would understand it, and differently
        raise _too_much(what, "sizes that are no single whole number", 1)
    tile = max(tile_width, default=0) * max(tile_height, default=0)
    picture = min(width, default=0) * min(height, default=0)
    if tile > min(max_pixels, max(_LARGEST_TILE, 4 * picture)):
        raise DataError(
            f"Expected tiles no larger than the picture, got some of {tile} px for one of {picture} px in {what}. "
            "Decoding one could exhaust the memory. Save the image again."
        )


def scan_nothing(file: BinaryIO, what: str, max_pixels: int) -> None:
    """For formats whose decoders do no work before the pixels."""


def check_directories(content: bytes, what: str) -> None:
    """Raise DataError for EXIF whose directories hold more than there is room for: their entries overlap."""
    if len(content) > MAX_EXIF:
        raise _too_much(what, "bytes of EXIF", len(content))
    if content:
        _directories(lambda position, count: content[position : position + count], len(content), what)


def _directories(read: Callable[[int, int], bytes], size: int, what: str) -> dict[int, list[int]]:
    """Add up what the directories of a TIFF or of EXIF name; returns what the first says of sizes."""
    header = read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(header[:2])
    if order is None or len(header) < 8:
        return {}
    is_big = 43 in struct.unpack(f"{order}H", header[2:4])
    pointer, count_of, entry, width = ("Q", "Q", "HHQ8s", 20) if is_big else ("I", "H", "HHI4s", 12)
    room = struct.calcsize(f"={pointer}")
    start = header[8:16] if is_big else header[4:8]
    waiting = list(struct.unpack(f"{order}{pointer}", start)) if len(start) == room else []
    first: dict[int, list[int]] = {}
    seen: set[int] = set()
    total = 0
    while waiting and len(seen) < _MOST_DIRECTORIES:
        place = waiting.pop()
        number = read(place, struct.calcsize(f"={count_of}"))
        if place in seen or len(number) < struct.calcsize(f"={count_of}"):
            continue
        (count,) = struct.unpack(f"{order}{count_of}", number)
        if count > MAX_ENTRIES:
            raise _too_much(what, "entries of a directory", count)
        entries = read(place + len(number), count * width)
        for tag, kind, length, value in struct.iter_unpack(f"{order}{entry}", entries[: len(entries) // width * width]):
            taken = length * _UNITS.get(kind, 0)
            if tag in (_STRIPS, _TILES) and length > _MOST_STRIPS:
                raise _too_much(what, "strips or tiles", length)
            whole = _whole(order, kind, value) if length == 1 and taken <= room else None
            if tag in _SIZES and not seen:
                first.setdefault(tag, []).append(_ODD if whole is None else whole)
            if tag in _SUB_DIRECTORIES and whole is not None:
                waiting.append(whole)
            elif tag in _SUB_DIRECTORIES and kind in _LONG8 and length == 1:
                raise _too_much(what, "directories in places that no program writes", 1)
            if taken <= room:
                continue
            if struct.unpack(f"{order}{pointer}", value)[0] + taken > size:
                break  # the decoder stops there too
            total += taken
        if total > 2 * size:
            raise _too_much(what, "bytes in its directories, more than the file has", total)
        seen.add(place)
    return first


def _whole(order: str, kind: int, value: bytes) -> int | None:
    layout = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 13: "I", 16: "Q", 17: "Q", 18: "Q"}.get(kind)
    return None if layout is None else int(struct.unpack_from(f"{order}{layout}", value)[0])


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(max(0, count))


def _unpack(file: BinaryIO, position: int, layout: str) -> tuple[Any, ...]:
    """The values there, or as many None where the file has ended."""
    content = _at(file, position, struct.calcsize(layout))
    if len(content) < struct.calcsize(layout):
        return (None,) * len(struct.unpack(layout, bytes(struct.calcsize(layout))))
    return struct.unpack(layout, content)


def _check_metadata(count: int, what: str) -> None:
    if count > MAX_METADATA:
        raise _too_much(what, "bytes that are no pixels", count)


def _too_much(what: str, of_what: str, count: int) -> DataError:
    return DataError(
        f"Expected an image file as programs write it, got one with {count} {of_what} in {what}. Reading them could "
        "take minutes, or the memory. Save the image again, without what is not the picture."
    )
