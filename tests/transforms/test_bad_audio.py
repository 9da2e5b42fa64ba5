# SPDX-License-Identifier: Apache-2.0
"""Every kind of bad sound is refused with an error that says what is wrong and what to do."""

import contextlib
import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from edvit_hf.errors import DataError
from edvit_hf.transforms import MAX_SECONDS, AudioTransform, open_audio

TRANSFORM = AudioTransform(sampling_rate=8_000, num_mel_bins=8, max_length=200)
FORMATS = [
    ("WAV", None),
    ("FLAC", None),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
    ("AIFF", None),
    ("AU", None),
]


def encoded(file_format="WAV", subtype=None, samples=9_000, channels=1, rate=8_000, values=None):
    if values is None:
        values = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


ENCODED = {f"{name} {subtype}": encoded(name, subtype) for name, subtype in FORMATS}


def wav_header(rate=8_000, channels=1, bits=16, data_bytes=0):
    """A WAV header that promises so many bytes of samples and is followed by none."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * block, block, bits)
    content = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", data_bytes)
    return b"RIFF" + struct.pack("<I", len(content) + data_bytes) + content


def flac_header(rate, total, channels=1):
    """A FLAC header that promises so many samples and is followed by none."""
    packed = (rate << 44) | ((channels - 1) << 41) | (15 << 36) | total
    return b"fLaC\x80\x00\x00\x22" + struct.pack(">HH", 4096, 4096) + b"\0" * 6 + struct.pack(">Q", packed) + b"\0" * 16


def check_read_or_refused(source):
    """The features, finite and of the promised shape, or None where the sound was refused by an error of ours."""
    with contextlib.suppress(DataError):
        values = TRANSFORM.inputs(source)["input_values"]
        assert values.shape == (1, 200, 8)
        assert np.isfinite(values).all()
        return values
    return None


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=400))
@example(content=b"")
@example(content=b"RIFF")
@example(content=b"ID3\xff\xff\xff\xff\xff\xff\xff")
def test_any_bytes_are_read_or_refused_but_never_fail_otherwise(content):
    for magic in (b"", b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"ID3", b"\xff\xfb\x90", b"FORM\0\0\0\0AIFF", b".snd"):
        check_read_or_refused(magic + content)


@pytest.mark.parametrize("kind", sorted(ENCODED))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_but_never_fails_otherwise(kind, data):
    damaged = bytearray(ENCODED[kind])
    near_the_start = st.integers(0, 300) | st.integers(0, len(damaged) - 1)
    for position, value in data.draw(st.lists(st.tuples(near_the_start, st.integers(0, 255)), max_size=8)):
        damaged[position] = value
    check_read_or_refused(bytes(damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))]))


@settings(max_examples=100, deadline=None)
@given(
    array=st_numpy.arrays(
        dtype=st.sampled_from(
            ["int8", "int16", "int32", "int64", "uint8", "uint16", "bool", "f2", "f4", "f8", "c8", "O"]
        ),
        shape=st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=30),
    ),
    rate=st.sampled_from([8_000, 16_000, 44_100, 0, -1, 10**9, 8_000.5, float("nan"), None, "8000", True]),
)
def test_any_array_is_read_or_refused_but_never_fails_otherwise(array, rate):
    for source in (array, (array, rate), {"array": array, "sampling_rate": rate}):
        check_read_or_refused(source)


@pytest.mark.parametrize("kind", sorted(ENCODED))
def test_whole_files_are_not_refused(kind):
    """Else the tests of damaged files would hold for a reader that refuses everything."""
    assert check_read_or_refused(ENCODED[kind]) is not None


@pytest.mark.parametrize("kind", sorted(ENCODED))
@pytest.mark.parametrize("kept", [0.95, 0.6, 0.3])
def test_a_truncated_file_is_refused(kind, kept):
    file = ENCODED[kind][: int(len(ENCODED[kind]) * kept)]
    with pytest.raises(DataError, match=r"truncated"):
        open_audio(file)


def test_an_ogg_file_that_ends_between_two_pages_is_refused():
    file = encoded("OGG", "VORBIS", samples=60_000)
    boundaries = [i for i in range(len(file)) if file.startswith(b"OggS", i)]
    assert len(boundaries) > 3
    for boundary in boundaries[-1], boundaries[-2]:
        with pytest.raises(DataError, match=r"truncated.*last page"):
            open_audio(file[:boundary])


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_file_without_its_length_is_read_to_its_end(mode):
    """libsndfile then guesses the length from the first frame: here silence, so many times too long."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 40_000)
    with soundfile.SoundFile(buffer, "w", 16_000, 1, format="MP3", bitrate_mode=mode, compression_level=0.5) as file:
        file.write(np.concatenate([np.zeros(30_000), noise]))
    content = buffer.getvalue()
    second_frame = content.index(content[:2], 2)
    assert b"Xing" in content[:second_frame] or b"Info" in content[:second_frame]
    samples = open_audio(content[second_frame:])
    assert 70_000 <= len(samples) < 75_000
    assert len(open_audio(content)) == 70_000


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is text",
        b"\0" * 500,
        b"%PDF-1.7\n",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0AVI LIST",
        b"\0\0\0\x18ftypM4A ",
    ],
    ids=["text", "zeros", "pdf", "png", "avi", "mp4"],
)
def test_something_else_than_a_sound_is_refused(content):
    with pytest.raises(DataError, match=r"Expected an audio file, got .* in the given \d+ bytes\..*Give an audio file"):
        open_audio(content)


@pytest.mark.parametrize("file_format", ["W64", "CAF", "VOC", "NIST"])
def test_formats_nobody_sends_are_refused(file_format):
    with pytest.raises(DataError, match="got something else"):
        open_audio(encoded(file_format))


def test_empty_bytes_and_files_without_samples_are_refused(tmp_path):
    path = tmp_path / "empty.wav"
    path.write_bytes(b"")
    for source in (b"", path):
        with pytest.raises(DataError, match="got 0 bytes"):
            open_audio(source)
    for source in (encoded(samples=0), encoded("AIFF", samples=0), np.zeros(0, np.float32), np.zeros((0, 1), np.int16)):
        with pytest.raises(DataError, match=r"Expected audio with samples|Expected a sound array shaped"):
            open_audio(source)


@pytest.mark.parametrize("rate", [8_000, 44_100, 655_350])
def test_more_than_thirty_minutes_are_refused_from_the_header_alone(rate, monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("the sound was decoded"))
    with pytest.raises(DataError, match="at most 30 minutes"):
        open_audio(flac_header(rate, MAX_SECONDS * rate + 1))
    with pytest.raises(DataError, match="at most 30 minutes"):
        TRANSFORM.inputs(flac_header(rate, 2**36 - 1))


def test_the_length_limit_is_inclusive():
    with pytest.raises(DataError, match=r"truncated|cannot be decoded"):  # the header passed, nothing follows it
        open_audio(flac_header(8_000, MAX_SECONDS * 8_000))
    assert len(open_audio((np.zeros(MAX_SECONDS * 1_000, np.int16), 1_000), 1_000)) == MAX_SECONDS * 1_000
    with pytest.raises(DataError, match="at most 30 minutes"):
        open_audio((np.zeros(MAX_SECONDS * 1_000 + 1, np.int16), 1_000), 1_000)


def test_a_header_that_promises_gigabytes_does_not_take_them(monkeypatch):
    blocks = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames, **options: (blocks.append(frames), read(self, frames, **options))[1],
    )
    with pytest.raises(DataError, match=r"truncated|cannot be decoded"):
        open_audio(flac_header(48_000, MAX_SECONDS * 48_000, channels=8))
    assert max(blocks) <= 1 << 16


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff"])
def test_a_stream_of_unknown_length_is_read(size):
    file = bytearray(encoded())
    file[4:8] = file[40:44] = size
    np.testing.assert_array_equal(open_audio(bytes(file), 8_000), open_audio(encoded(), 8_000))


@pytest.mark.parametrize(("rate", "named"), [(1, "got 1 "), (999, "got 999 "), (900_000, "got 900000 ")])
def test_impossible_rates_are_refused(rate, named):
    for source in (wav_header(rate) + b"\0" * 10, (np.zeros(9, np.int16), rate)):
        with pytest.raises(DataError, match=rf"sampling rate of 1000\.\.768000 Hz, {named}"):
            open_audio(source)
    with pytest.raises(DataError, match="sampling rate"):
        open_audio(np.zeros(9, np.int16), rate)


def test_too_many_channels_are_refused():
    assert len(open_audio(encoded(channels=32, samples=10), 8_000)) == 10
    with pytest.raises(DataError, match=r"1\.\.32 channels, got 33"):
        open_audio(encoded(channels=33, samples=10))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(value):
    samples = np.zeros(1000, np.float32)
    samples[500] = value
    for source in (samples, (samples, 16_000), encoded(subtype="FLOAT", values=samples)):
        with pytest.raises(DataError, match="got 1 NaN or infinite"):
            TRANSFORM.inputs(source)
    with pytest.raises(DataError, match="got 1 NaN or infinite"):
        TRANSFORM.features(samples)


@pytest.mark.parametrize(
    "samples", [np.full(9, 17.0), np.full(9, -32768.0), encoded(subtype="FLOAT", values=np.full(9, 99.0))]
)
def test_floats_far_above_full_scale_are_refused(samples):
    with pytest.raises(DataError, match=r"Expected samples in \[-1, 1\], got up to .*32768"):
        open_audio(samples)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "uint32", "bool", "complex64", "object"])
def test_arrays_of_another_type_are_refused(dtype):
    with pytest.raises(DataError, match="int16, int32 or uint8, got"):
        open_audio(np.zeros(9, dtype))


@pytest.mark.parametrize("shape", [(), (9, 9), (9, 0), (2, 2), (2, 9, 9), (1, 1, 9)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match=r"shaped \(n,\)"):
        open_audio(np.zeros(shape, np.int16))


@pytest.mark.parametrize(
    "source", [None, 7, ["a.wav"], [0.1, 0.2], {}, {"bytes": b""}, (1, 2, 3), ([0.1], 8_000), (8_000, None)]
)
def test_other_python_objects_are_refused(source):
    with pytest.raises(DataError, match=r"Expected a sound, got \w+.*Give an audio file"):
        open_audio(source)


@pytest.mark.parametrize("rate", [None, "8000", True, 8_000.5, float("nan"), float("inf")])
def test_an_array_without_a_usable_rate_is_refused(rate):
    with pytest.raises(DataError, match="sampling rate in Hz"):
        open_audio({"array": np.zeros(9, np.int16), "sampling_rate": rate})


def test_a_missing_file_a_folder_and_a_url_are_refused_by_name(tmp_path):
    for source in (tmp_path / "absent.wav", tmp_path, "https://example.org/cat.wav", "x" * 5000, "a\0b"):
        with pytest.raises(DataError, match="Expected the path of a readable audio file, got"):
            open_audio(source)


def test_a_path_in_a_raw_format_by_name_is_read_by_its_content(tmp_path):
    path = tmp_path / "sound.raw"
    path.write_bytes(encoded())
    np.testing.assert_array_equal(open_audio(path), open_audio(encoded()))


@pytest.mark.parametrize(
    "waveform", [np.zeros((2, 500), np.float32), np.zeros(0, np.float32), np.zeros(500, np.int16), [0.0] * 500, None]
)
def test_features_refuse_what_is_no_waveform(waveform):
    with pytest.raises(DataError, match="Expected a waveform of floats"):
        TRANSFORM.features(waveform)
