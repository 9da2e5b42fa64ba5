# SPDX-License-Identifier: Apache-2.0
"""Log-mel spectrograms in numpy, equal to the stock `ASTFeatureExtractor` where torchaudio is not installed.

The steps are Kaldi's (`compute-fbank-feats`), with the numbers of AST (Gong, Chung and Glass, 2021): frames of 400
samples every 160 samples, mean removed, pre-emphasis 0.97, symmetric Hann window, 512-point FFT, power, triangular
filters on Kaldi's mel scale from 20 Hz to half the sampling rate, natural logarithm with a floor.
"""

from functools import lru_cache

import numpy as np

FRAME = 400
"""Samples in a frame: 25 ms at 16 kHz. The stock extractor counts samples, whatever the sampling rate."""
HOP = 160
"""Samples from one frame to the next: 10 ms at 16 kHz."""
FFT_LENGTH = 512
"""Points of the Fourier transform: a frame is padded with zeros behind it."""
PREEMPHASIS = 0.97
"""Share of the sample before that is taken off a sample."""
FLOOR = float(np.finfo(np.float32).eps)
"""What mel energies are raised to before the logarithm."""
_LOWEST_HZ = 20.0
_BLOCK = 64  # frames computed together: what they need stays in a core's cache


def number_of_frames(samples: int) -> int:
    """How many whole frames fit into so many samples; 0 for fewer than 400."""
    return max(0, 1 + (samples - FRAME) // HOP)


def samples_of(frames: int) -> int:
    """How many samples so many frames need: with fewer the last one is missing, further ones are not seen."""
    return FRAME + (frames - 1) * HOP


def log_mel(waveform: np.ndarray, sampling_rate: int, num_mel_bins: int) -> np.ndarray:
    """Log-mel spectrogram of a mono waveform.

    Args:
        waveform (`np.ndarray` of shape `(n,)`): Samples in [-1, 1], at least 400.
        sampling_rate: In Hz. It places the mel filters; frames stay 400 samples long.
        num_mel_bins: Number of mel filters.

    Returns:
        `np.ndarray` of shape `(frames, num_mel_bins)`, float32: natural logarithms; silence is -15.94.
    """
    frames = np.lib.stride_tricks.sliding_window_view(waveform, FRAME)[::HOP]
    filters = mel_filters(num_mel_bins, sampling_rate)
    mel = np.empty((len(frames), num_mel_bins))
    for start in range(0, len(frames), _BLOCK):
        block = frames[start : start + _BLOCK]
        np.matmul(_power(block), filters, out=mel[start : start + _BLOCK])
    np.maximum(mel, FLOOR, out=mel)
    return np.log(mel, out=mel).astype(np.float32)


def _power(frames: np.ndarray) -> np.ndarray:
    """(frames, 400) -> (frames, 257) float64: the power spectrum of each frame."""
    centred = frames - frames.mean(axis=1, keepdims=True, dtype=np.float64)
    emphasised = np.empty_like(centred)
    np.multiply(centred[:, :-1], -PREEMPHASIS, out=emphasised[:, 1:])
    emphasised[:, 1:] += centred[:, 1:]
    emphasised[:, 0] = 0.0  # the window's first weight is 0: what Kaldi does here changes nothing
    emphasised *= window()
    spectrum = np.fft.rfft(emphasised, n=FFT_LENGTH)
    return np.square(spectrum.real) + np.square(spectrum.imag)


@lru_cache(maxsize=1)
def window() -> np.ndarray:
    """(400,) float64: the symmetric Hann window, 0 at both ends."""
    weights = np.hanning(FRAME)
    weights.setflags(write=False)
    return weights


@lru_cache(maxsize=16)
def mel_filters(num_mel_bins: int, sampling_rate: int) -> np.ndarray:
    """(257, bins): triangles of height 1, equally wide and half overlapping on the mel scale."""
    lowest, highest = _mel(np.array([_LOWEST_HZ, sampling_rate // 2]))
    edges = np.linspace(lowest, highest, num_mel_bins + 2)
    points = _mel(np.arange(FFT_LENGTH // 2 + 1) * (sampling_rate / FFT_LENGTH))[:, None]
    rising = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - points) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters.setflags(write=False)
    return filters


def _mel(hertz: np.ndarray) -> np.ndarray:
    """Kaldi's mel scale."""
    return 1127.0 * np.log1p(hertz / 700.0)
