# SPDX-License-Identifier: Apache-2.0
"""Reads a visitor's sound within limits, cuts off the silence around a word, and draws what sub-models see of it."""

import io
import logging
from dataclasses import dataclass
from functools import cache

import numpy as np

from edvit_hf.errors import DataError, EDViTError, MissingExtraError
from edvit_hf.transforms import AudioTransform
from edvit_hf.transforms.audio_files import decode

logger = logging.getLogger(__name__)

MAX_SECONDS = 30
"""Longest sound. No model here listens for longer; read from the header where it tells, before decoding."""
SILENT_PEAK = 0.002
"""A sound that never passes this share of full scale (-54 dB) holds nothing to listen to."""

# What is said begins with the first and ends with the last piece of 10 ms that is loud: less than 45 dB below the
# loudest piece, and 6 dB above the room, which is the quietest tenth. In a clip that is cut already that tenth is
# speech, so what is less than 20 dB below the loudest piece always counts. Chosen on training clips of spoken digits.
PIECE_SECONDS, MARGIN_SECONDS = 0.010, 0.030
RANGE_DB, ABOVE_ROOM_DB, SURELY_LOUD_DB, ROOM_PERCENTILE = 45.0, 6.0, 20.0, 10
QUIET_PEAK, USUAL_PEAK = 0.05, 0.34
"""A spoken word below the first is raised to the second, the median peak of the clips of the Free Spoken Digit Dataset.
Its quietest tenth lies below 0.03 and is left as it is in training; a quiet microphone with noise is not like these."""
_QUIETEST_DB = -120.0

NOT_READABLE = "This file is not a readable sound. Choose a complete WAV, FLAC, MP3 or OGG file, or record one."
CONTAINER = "This is a WebM or MP4 recording, which cannot be read here. Save it as WAV, FLAC, MP3 or OGG."
EMPTY = "This recording is empty: it holds no samples. Record again, or choose another file."
SILENT = "Nothing can be heard in this recording. Speak closer to the microphone, or choose another file."
TOO_LONG = f"This recording is longer than {MAX_SECONDS} seconds. Cut out the part that matters, or record less."


@dataclass(frozen=True, kw_only=True)
class Sound:
    """What of a recording goes to the ensemble.

    Attributes:
        waveform: (n,) float32, mono, in [-1, 1].
        rate: Of it, in Hz.
        remark: What was done to it, in sentences; empty if nothing.
    """

    waveform: np.ndarray
    rate: int
    remark: str


def read_sound(data: bytes, transform: AudioTransform, *, is_word: bool) -> Sound:
    """Read a file's bytes, and bring a longer recording into the form of the data.

    The ensemble listens to the start of a sound. A recording no longer than that is taken to have the form of the data
    already. Of a longer one the silence before and after is cut off, or a word after a second of silence would be
    missed; and where single words are meant (`is_word`), a quiet one is made as loud as theirs.

    Raises:
        DataError: No sound that can be read here, damaged, empty, silent or too long.
    """
    waveform, rate = _decoded(data)
    if not np.isfinite(waveform).all():
        raise DataError(NOT_READABLE)
    if np.abs(waveform).max() < SILENT_PEAK:
        raise DataError(SILENT)
    total = len(waveform) / rate
    window = transform.max_samples / transform.sampling_rate
    if total <= window:
        return Sound(waveform=waveform, rate=rate, remark="")
    waveform = waveform[word_in(waveform, rate)]
    remark = _remark(len(waveform) / rate, total, window)
    peak = float(np.abs(waveform).max())
    if is_word and peak < QUIET_PEAK:
        waveform, remark = waveform * np.float32(USUAL_PEAK / peak), f"{remark} It was quiet and was made louder."
    return Sound(waveform=waveform, rate=rate, remark=remark.strip())


def word_in(waveform: np.ndarray, rate: int) -> slice:
    """Where something is said in (n,) samples: from the first to the last loud piece, 30 ms more on each side."""
    size = max(1, round(PIECE_SECONDS * rate))
    count = -(-len(waveform) // size)
    padded = np.pad(waveform.astype(np.float64), (0, count * size - len(waveform)))
    power = np.square(padded.reshape(count, size)).mean(axis=1)
    level = 10 * np.log10(np.maximum(power, 10 ** (_QUIETEST_DB / 10)))
    loudest, room = level.max(), np.percentile(level, ROOM_PERCENTILE)
    threshold = min(max(loudest - RANGE_DB, room + ABOVE_ROOM_DB), loudest - SURELY_LOUD_DB)
    loud = np.flatnonzero(level >= threshold)
    margin = round(MARGIN_SECONDS * rate)
    return slice(max(0, int(loud[0]) * size - margin), min(len(waveform), (int(loud[-1]) + 1) * size + margin))


def spectrogram_picture(values: np.ndarray) -> np.ndarray:
    """A spectrogram (frames, mel bins) as sub-models see it, normalised: (mel bins, frames, 3) uint8.

    Time runs to the right, low frequencies are at the bottom, louder is lighter. What lies behind the sound is the
    padding that the sub-models see too.
    """
    low, high = np.percentile(values, (1, 99.5))
    scaled = np.clip((values - low) / max(float(high - low), 1e-9), 0.0, 1.0)
    return colours()[np.rint(255 * scaled.T[::-1]).astype(np.uint8)]


@cache
def colours() -> np.ndarray:
    """(256, 3) uint8: from dark blue over grey to yellow, lightness rising evenly.

    Points on a straight line of CIE L*a*b*, so that equal steps look equally large; blue and yellow are told apart
    with every common kind of colour blindness, and lightness alone tells the order. Computed here: D65 white, the
    constants of CIE 15 and of sRGB (IEC 61966-2-1).
    """
    share = np.linspace(0.0, 1.0, 256)[:, None]
    lab = (1 - share) * np.array([12.0, 12.0, -38.0]) + share * np.array([94.0, -6.0, 62.0])
    y = (lab[:, 0] + 16) / 116
    curved = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=1)
    linear = np.where(curved > 6 / 29, curved**3, 3 * (6 / 29) ** 2 * (curved - 4 / 29))
    xyz = linear * np.array([0.95047, 1.0, 1.08883])
    to_rgb = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    rgb = np.clip(xyz @ to_rgb.T, 0.0, 1.0)
    display = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * np.power(rgb, 1 / 2.4) - 0.055)
    table = np.rint(255 * display).astype(np.uint8)
    table.setflags(write=False)
    return table


def _decoded(data: bytes) -> tuple[np.ndarray, int]:
    """(n,) float32 and the rate, at most `MAX_SECONDS` long."""
    if data[:4] == b"\x1a\x45\xdf\xa3" or data[4:8] == b"ftyp":
        raise DataError(CONTAINER)
    frames, rate = _promised(data)
    if frames == 0:
        raise DataError(EMPTY)
    if frames is not None and frames > MAX_SECONDS * rate:
        raise DataError(TOO_LONG)
    try:
        # A little more than allowed, to see whether there is more; never the whole of a long file.
        waveform, rate = decode(io.BytesIO(data), "the recording", MAX_SECONDS + 0.1)
    except MissingExtraError:
        raise
    except (EDViTError, MemoryError) as error:
        logger.info("refused a sound: %s", error)
        raise DataError(NOT_READABLE) from error
    if len(waveform) > MAX_SECONDS * rate:
        raise DataError(TOO_LONG)
    return waveform, rate


def _promised(data: bytes) -> tuple[int | None, int]:
    """Samples and rate by the header; None where it does not tell, or tells what nobody can rely on."""
    try:
        import soundfile
    except (ImportError, OSError):  # what decodes says what to install
        return None, 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            is_guess = sound.format == "MP3" or sound.frames >= 1 << 62
            return (None if is_guess else int(sound.frames)), int(sound.samplerate)
    except Exception:  # soundfile raises several types on damaged input; what decodes says what is wrong
        return None, 0


def _remark(kept: float, total: float, window: float) -> str:
    """How much of a recording goes to the ensemble; lengths in seconds."""
    parts = []
    if kept < total - PIECE_SECONDS:
        parts.append(f"{kept:.2f} of {total:.2f} s are listened to: the silence around them was cut off.")
    if kept > window + PIECE_SECONDS:
        parts.append(f"The ensemble hears the first {window:.2f} s only.")
    return " ".join(parts)
