# SPDX-License-Identifier: Apache-2.0
"""Turn a sound into a model's input with numpy and soundfile alone, equal to the stock AST feature extractor.

Devices and training read sounds through this one module, so both see the same spectrograms.
"""

import io
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edvit_hf.errors import DataError, MissingExtraError
from edvit_hf.strict import number
from edvit_hf.tasks import Task
from edvit_hf.transforms.audio_files import (
    HIGHEST_RATE,
    LOWEST_RATE,
    MAX_SECONDS,
    WHAT_TO_DO,
    check_header,
    decode,
    mix,
)
from edvit_hf.transforms.log_mel import FRAME, log_mel, number_of_frames, samples_of
from edvit_hf.transforms.reading import not_finite, open_input, read_preprocessor

AudioSource: TypeAlias = "bytes | str | Path | np.ndarray | tuple[np.ndarray, int] | Mapping[str, Any]"
"""An encoded file, its path, an array at the model's rate, (array, rate), or {"array" or "raw", "sampling_rate"}."""

logger = logging.getLogger(__name__)

MAX_VALUES = 1 << 24
"""Most values of a spectrogram, frames times mel bins: 64 MiB. AST reads 2**17."""
MAX_PEAK = 16.0
"""Largest accepted sample: 24 dB above full scale. What lies above is not scaled to [-1, 1]."""

_INTEGERS = {"int16": (0.0, 2.0**15), "int32": (0.0, 2.0**31), "uint8": (128.0, 2.0**7)}
_FEW_CHANNELS = 8
_EDGE_SECONDS = 1024 / LOWEST_RATE  # further behind it, a resampled sample does not depend on where the clip is cut


def open_audio(
    source: AudioSource, sampling_rate: int = 16_000, max_samples: int | None = None, max_seconds: float = MAX_SECONDS
) -> np.ndarray:
    """Read any supported sound as a mono waveform at one sampling rate.

    * Several channels: their mean.
    * Another rate: resampled with soxr (its quality "HQ"); where it is not installed with scipy's polyphase filter,
      which differs from it near half the lower rate.
    * int16, int32 and uint8 arrays are divided by their full scale; float arrays are taken as they are.
    * Two-dimensional arrays: the side of at most 8 is the channels.

    Args:
        source: Encoded file (WAV, FLAC, OGG, MP3, AIFF, AU), path of a file, (array, rate) or (rate, array) tuple,
            {"array" or "raw": array, "sampling_rate": rate} as datasets and pipelines hand it over, or an array alone,
            which must be at `sampling_rate` already.
        sampling_rate: Of the result, in Hz.
        max_samples: How many samples of the result are wanted; None for all. Of long files no more is decoded.
        max_seconds: Longest accepted clip.

    Returns:
        `np.ndarray` of shape `(n,)`, float32, n at least 1 and at most `max_samples`.

    Raises:
        DataError: Not a sound, truncated, empty, longer than `max_seconds` (from the header, before anything is
            decoded), a sample that is NaN, infinite or above 16 times full scale, or an array of another type.
        MissingExtraError: soundfile is not installed, or the rate differs and neither soxr nor scipy is.
    """
    check_header(sampling_rate, 1, None, "`sampling_rate`")
    seconds = None if max_samples is None else max_samples / sampling_rate + _EDGE_SECONDS
    if isinstance(source, (str, Path)):
        what = f"the file {str(source)[:200]}"
        with open_input(source, "audio", WHAT_TO_DO) as file:
            waveform, rate = decode(file, what, seconds, max_seconds)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        what = f"the given {len(source)} bytes"
        waveform, rate = decode(io.BytesIO(source), what, seconds, max_seconds)
    else:
        what = "the array"
        waveform, rate = _from_array(*_array_and_rate(source, sampling_rate), seconds, max_seconds)
    _check_values(waveform, what)
    waveform = resample(waveform, rate, sampling_rate)
    return np.ascontiguousarray(waveform[:max_samples])


def resample(waveform: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    """Change the sampling rate of (n,) float32; at least one sample remains. Raises MissingExtraError."""
    if rate == to_rate:
        return waveform
    try:
        import soxr
    except ImportError as missing:
        try:
            from scipy.signal import resample_poly
        except ImportError:
            raise MissingExtraError(f"Resampling audio from {rate} to {to_rate} Hz", "device", "soxr") from missing
        _say_that_scipy_resamples()
        divisor = math.gcd(rate, to_rate)
        resampled = resample_poly(waveform, to_rate // divisor, rate // divisor)
    else:
        resampled = soxr.resample(waveform, rate, to_rate)
    if not len(resampled):
        resampled = waveform[:1]
    return resampled.astype(np.float32, copy=False)


@lru_cache(maxsize=1)
def _say_that_scipy_resamples() -> None:
    logger.warning(
        "soxr is not installed: audio is resampled with scipy, whose filter differs near half the lower rate. "
        "A model trained with soxr hears slightly other sounds. pip install 'edvit_hf[device]' installs soxr."
    )


@dataclass(frozen=True)
class AudioTransform:
    """What a stock `ASTFeatureExtractor` does where torchaudio is not installed, without torch or transformers.

    With torchaudio the stock extractor gives the same at 16 kHz; at other rates it measures frames in milliseconds,
    without it in samples. Here they are always 400 samples every 160.

    Attributes:
        sampling_rate: At which the model hears, in Hz. Sounds of other rates are resampled.
        num_mel_bins: Height of the spectrogram.
        max_length: Length of the spectrogram, in frames: shorter ones are padded with zeros before they are normalised,
            of longer ones the start is kept.
        do_normalize: Whether `(x - mean) / (2 * std)` is taken.
        mean: Of the log-mel values.
        std: Of the log-mel values.
        max_seconds: Longest accepted clip, whatever part of it is looked at.
    """

    sampling_rate: int = 16_000
    num_mel_bins: int = 128
    max_length: int = 1024
    do_normalize: bool = True
    mean: float = -4.2677393
    std: float = 4.5689974
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        limits = {"sampling_rate": (LOWEST_RATE, HIGHEST_RATE), "num_mel_bins": (1, 1024), "max_length": (1, 1 << 20)}
        for name, (lowest, highest) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not lowest <= value <= highest:
                raise DataError(f"`{name}` must be a whole number in {lowest}..{highest}, got {value!r}.")
        if self.max_length * self.num_mel_bins > MAX_VALUES:
            raise DataError(
                f"Expected `max_length` x `num_mel_bins` of at most {MAX_VALUES} values, got {self.max_length} x "
                f"{self.num_mel_bins}. Every sound would take that much memory, however short. Correct the "
                "preprocessor's config."
            )
        number("mean", self.mean, "(-inf, inf)", "spectrograms are shifted by it", DataError)
        number("std", self.std, "(0, inf)", "spectrograms are divided by it", DataError)

    @property
    def task(self) -> Task:
        """The task whose models this feeds."""
        return "audio-classification"

    @property
    def max_samples(self) -> int:
        """How many samples the model can see; what follows them changes nothing."""
        return samples_of(self.max_length)

    @classmethod
    def from_preprocessor(cls, preprocessor: Mapping[str, Any]) -> "AudioTransform":
        """Build it from the content of a `preprocessor_config.json`.

        Raises:
            DataError: The config belongs to another feature extractor or asks for a step that is not done here: the
                model would hear something that it was not trained on.
        """
        kind = preprocessor.get("feature_extractor_type")
        if kind != "ASTFeatureExtractor":
            raise DataError(
                f"Expected a preprocessor with `feature_extractor_type` ASTFeatureExtractor, got {kind!r}. "
                "Others compute other features. Use the config of an Audio Spectrogram Transformer."
            )
        extra = sorted(k for k, v in preprocessor.items() if k.startswith("do_") and v and k != "do_normalize")
        if preprocessor.get("feature_size", 1) != 1:
            extra.append(f"feature_size {preprocessor['feature_size']}")
        if extra:
            raise DataError(
                f"Expected a preprocessor that takes mono log-mel spectrograms and normalises, got one with "
                f"{', '.join(extra)}. Leaving that out would change what the model hears. Use a plain "
                "`ASTFeatureExtractor` config."
            )
        fields = ("sampling_rate", "num_mel_bins", "max_length", "mean", "std")
        return cls(
            do_normalize=bool(preprocessor.get("do_normalize", True)),
            **{name: preprocessor[name] for name in fields if name in preprocessor},
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "AudioTransform":
        """Build it from a `preprocessor_config.json`, or from the folder that holds one."""
        return cls.from_preprocessor(
            read_preprocessor(path, "an audio preprocessor", "Without it the model's sampling rate is unknown.")
        )

    def waveform(self, source: AudioSource) -> np.ndarray:
        """Read the part of a sound that the model can see: (n,) float32, 1 <= n <= `max_samples`, mono.

        Raises what `open_audio` raises.
        """
        return open_audio(source, self.sampling_rate, self.max_samples, self.max_seconds)

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Spectrogram of a waveform at `sampling_rate`.

        A clip shorter than one frame (400 samples) is padded with zeros to one. The stock extractor returns a
        spectrogram of padding only for 240 to 399 samples and fails for fewer.

        Args:
            waveform (`np.ndarray` of shape `(n,)`): Float samples in [-1, 1], at least one.

        Returns:
            `np.ndarray` of shape `(max_length, num_mel_bins)`, float32.

        Raises:
            DataError: Another shape or type, or a sample that is not finite.
        """
        is_sound = isinstance(waveform, np.ndarray) and np.issubdtype(waveform.dtype, np.floating)
        if not is_sound or waveform.ndim != 1 or not len(waveform):
            raise DataError(
                f"Expected a waveform of floats shaped (n,), got {type(waveform).__name__} of "
                f"{getattr(waveform, 'dtype', 'no')} type shaped {getattr(waveform, 'shape', None)}. "
                "One mono sound at a time is looked at. Pass it through `waveform` first."
            )
        waveform = waveform[: self.max_samples].astype(np.float32, copy=False)
        if not np.isfinite(waveform).all():
            raise not_finite(waveform, "samples", " in the waveform", "clip")
        if len(waveform) < FRAME:
            waveform = np.pad(waveform, (0, FRAME - len(waveform)))
        values = np.zeros((self.max_length, self.num_mel_bins), np.float32)
        values[: number_of_frames(len(waveform))] = log_mel(waveform, self.sampling_rate, self.num_mel_bins)
        if self.do_normalize:
            values = (values - self.mean) / (self.std * 2)
        return values

    def inputs(self, source: AudioSource) -> dict[str, np.ndarray]:
        """Return the model's input: {"input_values": (1, max_length, num_mel_bins) float32}.

        Raises what `open_audio` raises.
        """
        return {"input_values": self.features(self.waveform(source))[None]}


def _array_and_rate(source: Any, sampling_rate: int) -> tuple[np.ndarray, int]:
    array: Any = source
    rate: Any = sampling_rate
    if isinstance(source, Mapping):
        array, rate = source.get("array", source.get("raw")), source.get("sampling_rate")
    elif isinstance(source, tuple) and len(source) == 2:
        array, rate = source if isinstance(source[0], np.ndarray) else source[::-1]
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"Expected a sound, got {type(source).__name__}{_inside(source)}, which cannot be read. {WHAT_TO_DO}"
        )
    if isinstance(rate, (bool, np.bool_)) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise DataError(
            f"Expected the array's sampling rate in Hz, got {rate!r}. Pitch and length of the sound depend on it. "
            'Pass (array, rate) or {"array": array, "sampling_rate": rate}.'
        )
    if not math.isfinite(rate) or rate != int(rate):
        raise DataError(f"Expected a whole sampling rate in Hz, got {rate!r}. Resample the array first.")
    return array, int(rate)


def _inside(source: Any) -> str:
    return f" with {', '.join(map(str, list(source)[:5])) or 'nothing'}" if isinstance(source, Mapping) else ""


def _from_array(array: np.ndarray, rate: int, seconds: float | None, max_seconds: float) -> tuple[np.ndarray, int]:
    if array.ndim == 2 and 1 <= min(array.shape) <= _FEW_CHANNELS < max(array.shape):
        array = array if array.shape[1] < array.shape[0] else array.T
    elif array.ndim == 1:
        array = array[:, None]
    else:
        raise DataError(
            f"Expected a sound array shaped (n,), or (n, channels) with at most {_FEW_CHANNELS} channels, got "
            f"{array.shape}. Which side is time is unknown. Pass one mono sound at a time."
        )
    check_header(rate, 1, len(array), "the array", max_seconds)
    if seconds is not None:
        array = array[: round(seconds * rate)]
    if str(array.dtype) in _INTEGERS:
        middle, scale = _INTEGERS[str(array.dtype)]
        array = (array.astype(np.float64) - middle) / scale
    elif not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"Expected a sound array of floats (-1..1), int16, int32 or uint8, got {array.dtype}, whose scale is "
            "unknown. Divide it by its largest possible value."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        return mix(array), rate


def _check_values(waveform: np.ndarray, what: str) -> None:
    peak = float(np.abs(waveform).max())
    if not math.isfinite(peak):
        raise not_finite(waveform, "samples", f" in {what}", "clip")
    if peak > MAX_PEAK:
        raise DataError(
            f"Expected samples in [-1, 1], got up to {peak:g} in {what}. Spectrograms would be shifted. "
            "Divide by the largest possible value (32768 for 16 bits), or pass integers."
        )
