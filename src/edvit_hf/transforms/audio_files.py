# SPDX-License-Identifier: Apache-2.0
"""Decode audio files with soundfile: the header first, then only as much as is needed, mixed down to mono."""

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from edvit_hf.errors import DataError, MissingExtraError

MAX_SECONDS = 1800
"""Longest accepted clip: 30 minutes."""
MAX_FRAMES = 1 << 27
"""Most samples a channel of a clip may hold: 46 minutes at 48 kHz, 11 at 192 kHz; 512 MiB of float32."""
MAX_CHANNELS = 32
"""Most channels that are mixed to mono."""
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Accepted sampling rates, in Hz."""

FORMATS = "WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, AU"
WHAT_TO_DO = f"Give an audio file ({FORMATS}), its bytes, or an array with its sampling rate."

# Other readers of libsndfile are never reached: formats nobody sends are where parsers have their errors.
_DECODED = {"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF", "AU"}
_BLOCK = 1 << 16
# Whoever writes a stream does not know its length: 0, -1, -2, the largest number, that less a header or a block. A file
# that really has so many bytes is too long for anybody here.
_UNKNOWN_FROM = 0x7FFF0000
_UNKNOWN = 0xFFFFFFFF
_SLOPPY = 64  # bytes that a program adds to a length by mistake, such as its header's
_LARGEST_OGG_PAGE = 65_307
_MOST_CHUNKS = 1000


def decode(
    file: BinaryIO, what: str, seconds: float | None = None, max_seconds: float = MAX_SECONDS
) -> tuple[np.ndarray, int]:
    """Decode the start of an audio file.

    Args:
        file: Opened for reading bytes, seekable.
        what: How messages name it.
        seconds: How much to decode, in seconds; None decodes all.
        max_seconds: Longest accepted clip.

    Returns:
        `(waveform, sampling_rate)`: (n,) float32 in [-1, 1], the mean of the channels, and the file's own rate in Hz.

    Raises:
        DataError: Not audio, of another format, truncated, without samples, longer than `max_seconds` (both read from
            the header where it tells, before anything is decoded), or with values that are not finite. Whether what
            follows the wanted part can be decoded is not looked at. An MP3 file without a length in its first frame and
            a stream whose writer did not know its length cannot be told from a truncated one.
        MissingExtraError: soundfile is not installed.
    """
    soundfile = _soundfile()
    kind = _kind(file, what)
    known = _refuse_truncated(file, kind, what)
    knows_length = kind != "MP3" or _mp3_has_length(file)
    file.seek(0)
    try:
        with soundfile.SoundFile(_Nameless(file, known)) as sound:
            if sound.format not in _DECODED:
                raise _not_audio(what, f"the format {sound.format}")
            promised = sound.frames if knows_length and sound.frames < 1 << 62 else None
            rate = check_header(sound.samplerate, sound.channels, promised, what, max_seconds)
            most = int(min(MAX_FRAMES, max_seconds * rate)) + 1 if promised is None else promised
            wanted = most if seconds is None else min(most, max(1, round(seconds * rate)))
            waveform = _mono(sound, wanted)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # soundfile raises several types on damaged input
        raise DataError(
            f"Expected an audio file, got one in {what} that cannot be decoded: {error}. "
            f"The file is truncated, damaged or something else. {WHAT_TO_DO}"
        ) from error
    if promised is not None and len(waveform) < wanted:
        raise truncated(what, f"{promised} samples promised, {len(waveform)} found")
    check_header(rate, 1, len(waveform), what, max_seconds)  # where the header does not tell the length
    return waveform, rate


def check_header(rate: int, channels: int, frames: int | None, what: str, max_seconds: float = MAX_SECONDS) -> int:
    """Return the sampling rate of a clip that is worth decoding. Raises DataError for others."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise DataError(
            f"Expected a sampling rate of {LOWEST_RATE}..{HIGHEST_RATE} Hz, got {rate} in {what}. "
            "Pitch and length of the sound depend on it. Correct it or encode the clip again."
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise DataError(
            f"Expected audio of 1..{MAX_CHANNELS} channels, got {channels} in {what}. "
            "Such files are usually no recordings. Mix the clip to mono first."
        )
    if frames is None:
        return rate
    if frames == 0:
        raise DataError(
            f"Expected audio with samples, got none in {what}. There is nothing to hear. Remove or replace the clip."
        )
    if frames > max_seconds * rate or frames > MAX_FRAMES:
        raise DataError(
            f"Expected a clip of at most {max_seconds / 60:.3g} minutes, got {frames / rate / 60:.1f} minutes "
            f"({frames} samples) in {what}. Decoding it could exhaust the memory, and a model looks at its first "
            "seconds only. Cut it first."
        )
    return rate


def truncated(what: str, how: str) -> DataError:
    """The error for a file whose end is missing."""
    return DataError(
        f"Expected a complete audio file, got a truncated one in {what}: {how}. "
        "Its label may belong to the part that is missing. Fetch it again or remove it."
    )


class _Nameless:
    """A file without its name: soundfile takes everything called `*.raw` for headerless samples.

    `known`: bytes that are read at some places instead of the file's own: lengths that it does not know.
    """

    def __init__(self, file: BinaryIO, known: Mapping[int, bytes]) -> None:
        self._file, self._known = file, known
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        start = self._file.tell()
        content = self._file.read(count)
        for place, true in self._known.items():
            first, last = max(place, start), min(place + len(true), start + len(content))
            if first < last:
                content = content[: first - start] + true[first - place : last - place] + content[last - start :]
        return content

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError("Reading an audio file", "device", "soundfile") from error
    except OSError as error:  # its wheel for this platform comes without libsndfile
        raise MissingExtraError("Reading an audio file", "device", "soundfile (with libsndfile)") from error
    return soundfile


def _not_audio(what: str, got: str) -> DataError:
    return DataError(f"Expected an audio file, got {got} in {what}. It cannot be decoded here. {WHAT_TO_DO}")


def _kind(file: BinaryIO, what: str) -> str:
    """The format by the file's first bytes; its name is not looked at."""
    start = _bytes_at(file, 0, 12)
    if not start:
        raise DataError(f"Expected the bytes of an audio file, got 0 bytes in {what}. Nothing is there. {WHAT_TO_DO}")
    if start[:4] in (b"RIFF", b"RF64") and start[8:12] == b"WAVE":
        return "WAV"
    if start[:4] == b"FORM" and start[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    for magic, kind in ((b"fLaC", "FLAC"), (b"OggS", "OGG"), (b".snd", "AU"), (b"ID3", "MP3")):
        if start.startswith(magic):
            return kind
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0:
        return "MP3"
    if start[4:8] == b"ftyp" or start[:4] == b"\x1a\x45\xdf\xa3":
        raise _not_audio(what, "an MP4 or WebM container, whose decoders are not free of external programs,")
    raise _not_audio(what, "something else")


def _refuse_truncated(file: BinaryIO, kind: str, what: str) -> dict[int, bytes]:
    """Look at what libsndfile silently puts up with: it plays what is there.

    Returns where the file's header says a length that its writer did not know, and the true one.
    """
    size = file.seek(0, 2)
    if kind in ("WAV", "AIFF"):
        return _in_chunks(file, kind, size, what)
    if kind == "AU":
        header = _bytes_at(file, 0, 12)
        offset, length = struct.unpack(">II", header[4:]) if len(header) == 12 else (24, 1)
        if length >= _UNKNOWN_FROM or (length == 0 and offset < size):
            return {8: struct.pack(">I", _UNKNOWN)}
        if offset + length > size + _SLOPPY:
            raise truncated(what, f"{length} bytes of samples promised, {max(0, size - offset)} found")
    if kind == "OGG":
        # The standard (RFC 3533) has the last page marked: without the mark, pages are missing.
        end = _bytes_at(file, max(0, size - _LARGEST_OGG_PAGE), _LARGEST_OGG_PAGE)
        page = end[end.rfind(b"OggS") :] if b"OggS" in end else b""
        whole = len(page) >= 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        if not whole or not page[5] & 4:
            raise truncated(what, "its last page is missing or incomplete")
    return {}


def _in_chunks(file: BinaryIO, kind: str, size: int, what: str) -> dict[int, bytes]:
    """The chunk with the samples of a WAV or AIFF file: whole, of a length that is unknown or wrong, or cut off."""
    order, name = ("<", b"data") if kind == "WAV" else (">", b"SSND")
    start, promised = _bytes_at(file, 0, 8), size
    if start[:4] != b"RF64":
        (promised,) = struct.unpack(f"{order}I", start[4:])
    position, long_length = 12, 0
    for _ in range(_MOST_CHUNKS):
        if position + 8 > size:
            raise truncated(what, "its header ends before the samples")
        chunk, length = struct.unpack(f"{order}4sI", _bytes_at(file, position, 8))
        begin = position + 8
        if chunk == b"ds64" and start[:4] == b"RF64" and length >= 16:
            (long_length,) = struct.unpack("<Q", _bytes_at(file, begin + 8, 8).ljust(8, b"\0"))
        if chunk == name:
            if start[:4] == b"RF64" and length == _UNKNOWN and 0 < long_length < 1 << 62:
                if begin + long_length > size + _SLOPPY:
                    raise truncated(what, f"{long_length} bytes of samples promised, {size - begin} found")
                return {}
            is_stream = length >= _UNKNOWN_FROM or (length == 0 and not _is_chunks(file, begin, size, order))
            if not is_stream and begin + length <= size:
                return {}
            if not is_stream and begin + length > size + _SLOPPY and abs(promised + 8 - size) > 1:
                raise truncated(what, f"{length} bytes of samples promised, {size - begin} found")
            return {position + 4: struct.pack(f"{order}I", size - begin)}
        position = begin + length + length % 2
    return {}


def _is_chunks(file: BinaryIO, position: int, size: int, order: str) -> bool:
    """Whether nothing but chunks follows, or nothing at all: the samples before it are none."""
    for _ in range(_MOST_CHUNKS):
        if position >= size:
            return position <= size + 1
        header = _bytes_at(file, position, 8)
        if len(header) < 8 or not header[:4].isascii() or not header[:4].decode("ascii").isprintable():
            return False
        (length,) = struct.unpack(f"{order}I", header[4:])
        position += 8 + length + length % 2
    return False


def _mp3_has_length(file: BinaryIO) -> bool:
    """Whether the first frame tells the number of frames; libsndfile guesses where it does not, up to 5 times off."""
    tag = _bytes_at(file, 0, 10)
    start = 0
    if tag[:3] == b"ID3" and len(tag) == 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    frame = _bytes_at(file, start, 256)
    return b"Xing" in frame or b"Info" in frame


def _bytes_at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _mono(sound: Any, wanted: int) -> np.ndarray:
    """Decode up to `wanted` samples a channel, block by block, so that channels never lie in memory together."""
    blocks: list[np.ndarray] = []
    have = 0
    while have < wanted:
        block = sound.read(frames=min(_BLOCK, wanted - have), dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(mix(block))
        have += len(block)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def mix(samples: np.ndarray) -> np.ndarray:
    """(n, channels) -> (n,) float32: the mean of the channels."""
    if samples.shape[1] == 1:
        return samples[:, 0].astype(np.float32, copy=False)
    return samples.mean(axis=1, dtype=np.float64).astype(np.float32)
