# SPDX-License-Identifier: Apache-2.0
"""Lengths in the headers of sounds: those of streams are read past, wrong ones too, and truncated files are refused."""

import io
import struct

import numpy as np
import pytest
import soundfile

from edvit_hf.errors import DataError
from edvit_hf.transforms import AudioTransform, open_audio

RATE = 8000
SAMPLES = (np.random.default_rng(0).normal(size=4000) / 10).astype(np.float32)
STREAMS = [0x7FFFF000, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 0, 0xFFFFFFFF - 44, 0x7FFFFFFF - 36, 0xFFFFF000]
KINDS = {
    "WAV": ("WAV", "PCM_16"),
    "WAV of 24 bits": ("WAV", "PCM_24"),
    "WAV of floats": ("WAV", "FLOAT"),
    "WAV of logarithms": ("WAV", "ULAW"),
    "WAVEX": ("WAVEX", "PCM_16"),
    "AIFF": ("AIFF", "PCM_16"),
    "AU": ("AU", "PCM_16"),
}


def encoded(kind):
    file_format, subtype = KINDS[kind]
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, RATE, format=file_format, subtype=subtype)
    return file.getvalue()


def with_length(kind, length, container=None):
    """The file with another length of its samples, and of its container."""
    content, order = bytearray(encoded(kind)), "<I" if kind.startswith("WAV") else ">I"
    if kind == "AU":
        content[8:12] = struct.pack(order, length)
        return bytes(content)
    place = content.index(b"SSND" if kind == "AIFF" else b"data") + 4
    content[place : place + 4] = struct.pack(order, length)
    if container is not None:
        content[4:8] = struct.pack(order, container)
    return bytes(content)


def true_length(kind):
    content = encoded(kind)
    return len(content) - {"AU": 24, "AIFF": content.find(b"SSND") + 8}.get(kind, content.find(b"data") + 8)


def assert_whole(content, kind):
    np.testing.assert_array_equal(open_audio(content, RATE), open_audio(encoded(kind), RATE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", STREAMS, ids=hex)
def test_a_stream_whose_writer_did_not_know_its_length_is_read_whole(kind, length):
    for container in (None, length, (length + 36) % (1 << 32)):
        assert_whole(with_length(kind, length, container), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [1, 2, 8, 24, 44])
def test_a_length_that_is_a_little_too_long_is_read_past(kind, more):
    length = true_length(kind) + more
    assert_whole(with_length(kind, length), kind)
    assert_whole(with_length(kind, length, length + 36), kind)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "AU"])
def test_where_the_container_ends_with_the_file_nothing_is_missing(kind):
    assert_whole(with_length(kind, true_length(kind) + 5000), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0.97, 0.9, 0.5, 0.1])
def test_a_file_that_was_cut_off_is_refused(kind, kept):
    content = encoded(kind)
    with pytest.raises(DataError, match="truncated"):
        open_audio(content[: int(len(content) * kept)], RATE)


def rf64(long_length, samples=None, length=0xFFFFFFFF):
    """What recorders write that do not know whether 4 GiB are enough."""
    samples = (SAMPLES * 32767).astype("<i2").tobytes() if samples is None else samples
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 72 + len(samples), long_length, len(samples) // 2, 0)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return b"RF64\xff\xff\xff\xffWAVE" + sizes + form + b"data" + struct.pack("<I", length) + samples


def test_an_rf64_file_is_read_and_refused_when_it_was_cut_off():
    expected = (SAMPLES * 32767).astype("<i2").astype(np.float32) / 32768
    np.testing.assert_array_equal(open_audio(rf64(8000), RATE), expected)
    with pytest.raises(DataError, match="8000 bytes of samples promised, 7000 found"):
        open_audio(rf64(8000)[:-1000], RATE)


@pytest.mark.parametrize("after", [b"", b"LIST\4\0\0\0INFO", b"LIST\4\0\0\0INFO" + b"id3 \3\0\0\0abc\0"])
def test_a_file_of_length_zero_without_samples_is_empty_and_no_stream(after):
    content = encoded("WAV")
    with pytest.raises(DataError, match="got none"):
        open_audio(content[:40] + bytes(4) + after, RATE)


def test_a_stream_on_disk_that_is_longer_than_the_model_hears_is_read_as_far_as_that(tmp_path):
    path = tmp_path / "stream.wav"
    path.write_bytes(with_length("WAV", 0x7FFFF000))
    transform = AudioTransform(max_length=8, num_mel_bins=16)
    np.testing.assert_array_equal(
        transform.inputs(path)["input_values"], transform.inputs(encoded("WAV"))["input_values"]
    )
