# SPDX-License-Identifier: Apache-2.0
"""Sounds become the same model input as with the stock feature extractor, whatever the file's format and rate."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import edvit_hf
from edvit_hf.errors import DataError, MissingExtraError
from edvit_hf.transforms import AudioTransform, ImageTransform, Transform, audio, load_transform, open_audio
from edvit_hf.transforms.log_mel import number_of_frames, samples_of

RATE = 16_000
LOSSLESS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "PCM_U8"),
    ("FLAC", "PCM_16"),
    ("AIFF", "PCM_24"),
    ("AU", None),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)]


def tones(samples=RATE, rate=RATE, seed=0):
    """A few tones and noise, well below a quarter of the rate."""
    random = np.random.default_rng(seed)
    time_axis = np.arange(samples) / rate
    pitches = random.uniform(100, 1500, 4)
    sound = sum(0.1 * np.sin(2 * np.pi * pitch * time_axis) for pitch in pitches)
    return (sound + 0.001 * random.standard_normal(samples)).astype(np.float32)


def encoded(samples, rate=RATE, file_format="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


def stock_extractor(**options):
    from transformers import ASTFeatureExtractor

    return ASTFeatureExtractor(**{"num_mel_bins": 32, "max_length": 60, "mean": -6.0, "std": 3.0, **options})


def stock_features(extractor, waveform):
    # One frame and more: for shorter clips the stock extractor has nothing to be compared with.
    return extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="np")["input_values"][0]


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(400, 12_000),
    rate=st.sampled_from([8_000, 16_000, 22_050]),
    bins=st.sampled_from([16, 40, 64]),
    length=st.integers(1, 90),
    scale=st.sampled_from([0.0, 1e-6, 0.3, 3.0]),
    seed=st.integers(0, 1000),
)
def test_features_are_those_of_the_stock_extractor(samples, rate, bins, length, scale, seed):
    waveform = (np.random.default_rng(seed).uniform(-scale, scale, samples) + scale / 7).astype(np.float32)
    extractor = stock_extractor(sampling_rate=rate, num_mel_bins=bins, max_length=length)
    ours = AudioTransform.from_preprocessor(extractor.to_dict()).features(waveform)
    assert ours.shape == (length, bins)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, stock_features(extractor, waveform), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("file_format", "subtype"), LOSSLESS + LOSSY)
@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_gives_the_features_of_the_stock_extractor(file_format, subtype, rate, channels):
    left, right = tones(rate, rate), tones(rate, rate, seed=1)
    file = encoded(left if channels == 1 else np.stack([left, right], axis=1), rate, file_format, subtype)
    decoded, file_rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    assert file_rate == rate
    extractor = stock_extractor(sampling_rate=rate)
    expected = stock_features(extractor, decoded.mean(axis=1))
    transform = AudioTransform.from_preprocessor(extractor.to_dict())
    inputs = transform.inputs(file)
    assert set(inputs) == {"input_values"}
    assert inputs["input_values"].shape == (1, 60, 32)
    np.testing.assert_allclose(inputs["input_values"][0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("file_format", "subtype"), LOSSLESS)
def test_lossless_files_give_back_the_samples(file_format, subtype):
    step = {"PCM_U8": 2**-7, "FLOAT": 1e-9, "PCM_24": 2**-23}.get(subtype, 2**-15)
    np.testing.assert_allclose(open_audio(encoded(tones(), RATE, file_format, subtype)), tones(), rtol=0, atol=step)


def test_the_file_its_path_and_its_array_agree(tmp_path):
    file = encoded(tones(8_000, 8_000), 8_000, "FLAC")
    path = tmp_path / "sound.mp3"  # the name lies; the content decides
    path.write_bytes(file)
    array = soundfile.read(path, dtype="float32")[0]
    transform = AudioTransform(max_length=100)
    expected = transform.inputs(file)["input_values"]
    for source in (
        *(path, str(path), bytearray(file), memoryview(file)),
        *((array, 8_000), (8_000, array), (array, 8_000.0)),
        *({"array": array, "sampling_rate": 8_000, "path": None}, {"raw": array, "sampling_rate": np.int64(8_000)}),
    ):
        np.testing.assert_array_equal(transform.inputs(source)["input_values"], expected)


def test_an_array_alone_is_taken_to_be_at_the_models_rate():
    np.testing.assert_array_equal(open_audio(tones(), RATE), tones())
    assert len(open_audio((tones(), RATE), 8_000)) == RATE // 2


@pytest.mark.parametrize(
    ("dtype", "integers"),
    [("int16", [-32768, -16384, 0, 16384]), ("int32", [-(2**31), -(2**30), 0, 2**30]), ("uint8", [0, 64, 128, 192])],
)
def test_integers_are_scaled_by_their_full_range(dtype, integers):
    np.testing.assert_array_equal(open_audio(np.array(integers, dtype)), np.float32([-1, -0.5, 0, 0.5]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_taken_as_they_are(dtype):
    values = np.array([-1, -0.25, 0, 1.5], dtype)
    np.testing.assert_array_equal(open_audio(values), values.astype(np.float32))


def test_channels_become_their_mean_on_whichever_side_they_are():
    both = np.stack([tones(), tones(seed=1)])
    expected = both.mean(axis=0)
    for array in (both, both.T):
        np.testing.assert_allclose(open_audio((array, RATE)), expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(open_audio(encoded(both.T, subtype="FLOAT")), expected, rtol=0, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([4_000, 8_000, 11_025, 22_050, 44_100, 48_000]),
    pitch=st.floats(50, 1_200),
    milliseconds=st.integers(300, 900),
)
def test_a_tone_keeps_its_pitch_length_and_loudness_at_another_rate(rate, pitch, milliseconds):
    samples = rate * milliseconds // 1000
    tone = (0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate)).astype(np.float32)
    resampled = open_audio((tone, rate), RATE)
    assert abs(len(resampled) - samples * RATE / rate) <= 1
    expected = 0.5 * np.sin(2 * np.pi * pitch * np.arange(len(resampled)) / RATE)
    inner = slice(RATE // 20, -RATE // 20)
    np.testing.assert_allclose(resampled[inner], expected[inner], rtol=0, atol=2e-3)


def test_without_soxr_scipy_resamples_nearly_the_same(monkeypatch, caplog):
    source = (tones(8_000, 8_000), 8_000)
    expected = open_audio(source, RATE)
    monkeypatch.setitem(sys.modules, "soxr", None)
    audio._say_that_scipy_resamples.cache_clear()
    inner = slice(400, -400)
    np.testing.assert_allclose(open_audio(source, RATE)[inner], expected[inner], rtol=0, atol=2e-3)
    open_audio(source, RATE)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["soxr is not installed"]


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    monkeypatch.setitem(sys.modules, "scipy.signal", None)
    with pytest.raises(MissingExtraError, match=r"from 8000 to 16000 Hz needs the package `soxr`.*\[device\]"):
        open_audio((tones(), 8_000), RATE)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"needs the package `soundfile`.*pip install 'edvit_hf\[device\]'"):
        open_audio(b"any")
    assert len(open_audio(tones())) == RATE, "an array at the model's rate needs neither"


@settings(max_examples=25, deadline=None)
@given(rate=st.sampled_from([8_000, 16_000, 44_100]), length=st.integers(1, 40), extra=st.integers(0, 30_000))
def test_what_lies_behind_the_last_frame_changes_nothing(rate, length, extra):
    transform = AudioTransform(max_length=length, num_mel_bins=16)
    whole = tones(rate * 2 + extra, rate)
    full = open_audio((whole, rate), RATE)
    assert transform.max_samples == samples_of(length) < len(full)
    assert number_of_frames(transform.max_samples) == length == number_of_frames(transform.max_samples - 1) + 1
    seen = transform.waveform((whole, rate))
    np.testing.assert_allclose(seen, full[: transform.max_samples], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(transform.features(seen), transform.features(full[: transform.max_samples + 99]))


@pytest.mark.parametrize(("file_format", "minutes"), [("WAV", 10), ("FLAC", 10), ("OGG", 1), ("MP3", 1)])
def test_of_a_long_file_only_the_start_is_decoded(file_format, minutes, monkeypatch):
    buffer = io.BytesIO()
    second = tones(8_000, 8_000)
    with soundfile.SoundFile(buffer, "w", 8_000, 1, format=file_format) as file:
        for _ in range(60 * minutes):
            file.write(second)
    decoded = []
    read = soundfile.SoundFile.read

    def counted(self, *arguments, **options):
        block = read(self, *arguments, **options)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    transform = AudioTransform(sampling_rate=8_000, max_length=98, num_mel_bins=16)
    seen = transform.waveform(buffer.getvalue())
    assert len(seen) == transform.max_samples
    assert sum(decoded) < 4 * 8_000
    monkeypatch.undo()
    np.testing.assert_array_equal(seen, open_audio(buffer.getvalue(), 8_000)[: len(seen)])


@pytest.mark.parametrize("samples", [1, 2, 239, 240, 399])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_clip_shorter_than_a_frame_is_one_frame_padded_with_zeros(samples, rate):
    transform = AudioTransform(max_length=3, num_mel_bins=16, do_normalize=False)
    values = transform.inputs((tones(samples, rate), rate))["input_values"][0]
    assert np.isfinite(values).all()
    assert values[0].any()
    if rate == RATE:
        padded = np.pad(tones(samples), (0, 400 - samples))
        np.testing.assert_array_equal(values, transform.features(padded))
        assert not values[1:].any(), "the rest is padding"


def test_silence_is_the_floor_of_the_logarithm():
    values = AudioTransform(max_length=5, do_normalize=False).inputs(np.zeros(RATE, np.float32))["input_values"]
    np.testing.assert_allclose(values, np.log(np.finfo(np.float32).eps), rtol=1e-6)


def test_padding_is_normalised_like_the_rest():
    values = AudioTransform(max_length=5, num_mel_bins=8, mean=-4.0, std=2.0).features(tones(400))
    np.testing.assert_array_equal(values[1:], np.full((4, 8), 1.0, np.float32))


def test_a_second_of_sound_takes_a_few_milliseconds_at_most():
    transform, waveform = AudioTransform(), tones()
    transform.features(waveform)
    seconds = []
    for _ in range(20):
        start = time.process_time()  # not that of others on this machine
        transform.features(waveform)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.01  # 0.5 ms measured; the stock extractor takes 4


@pytest.mark.parametrize("do_normalize", [True, False])
def test_a_saved_extractor_is_read_from_its_file_and_from_its_folder(tmp_path, do_normalize):
    extractor = stock_extractor(sampling_rate=8_000, do_normalize=do_normalize)
    extractor.save_pretrained(tmp_path)
    transform = AudioTransform.from_file(tmp_path)
    assert transform == AudioTransform.from_file(tmp_path / "preprocessor_config.json")
    assert transform == AudioTransform(8_000, 32, 60, do_normalize, -6.0, 3.0)
    assert transform == load_transform(tmp_path, "audio-classification")
    np.testing.assert_allclose(transform.features(tones()), stock_features(extractor, tones()), rtol=0, atol=1e-4)


def test_the_defaults_are_those_of_the_stock_extractor():
    from transformers import ASTFeatureExtractor

    assert AudioTransform() == AudioTransform.from_preprocessor(ASTFeatureExtractor().to_dict())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "WhisperFeatureExtractor"),
        ({"feature_extractor_type": None}, "feature_extractor_type"),
        ({"do_ceptral_normalize": True}, "do_ceptral_normalize"),
        ({"feature_size": 80}, "feature_size 80"),
        ({"sampling_rate": 0}, "sampling_rate"),
        ({"sampling_rate": 16000.5}, "sampling_rate"),
        ({"num_mel_bins": "many"}, "num_mel_bins"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": True}, "max_length"),
        ({"mean": None}, "mean"),
        ({"mean": float("nan")}, "mean"),
        ({"std": 0.0}, "std"),
    ],
)
def test_a_preprocessor_that_cannot_be_followed_is_refused(change, named):
    with pytest.raises(DataError, match=named):
        AudioTransform.from_preprocessor({**stock_extractor().to_dict(), **change})


@pytest.mark.parametrize("content", [None, "not json", json.dumps([1]), b"\xff\xfe\x00"])
def test_a_missing_or_damaged_preprocessor_file_is_named(tmp_path, content):
    path = tmp_path / "preprocessor_config.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"preprocessor_config\.json"):
        AudioTransform.from_file(path)


def test_every_transform_says_its_task_and_names_its_inputs(tmp_path):
    for transform, source, shapes in (
        (AudioTransform(max_length=4, num_mel_bins=8), tones(), {"input_values": (1, 4, 8)}),
        (ImageTransform(size=(8, 8)), np.zeros((9, 9), np.uint8), {"pixel_values": (1, 3, 8, 8)}),
    ):
        assert isinstance(transform, Transform)
        assert {name: value.shape for name, value in transform.inputs(source).items()} == shapes
        assert {value.dtype for value in transform.inputs(source).values()} == {np.dtype(np.float32)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        AudioTransform().mean = 0.0
    with pytest.raises(DataError, match="Did you mean `audio-classification`"):
        load_transform(tmp_path, "audio-clasification")


def test_hearing_a_sound_loads_neither_torch_nor_transformers():
    program = (
        "import sys, numpy as np; from edvit_hf.transforms import AudioTransform\n"
        "early = {'soundfile', 'soxr', 'scipy', 'tokenizers', 'PIL', 'cffi'} & set(sys.modules)\n"
        "assert not early, early\n"
        "AudioTransform(max_length=4).inputs((np.zeros(900, np.int16), 8000))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(edvit_hf.__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("frames", "bins"), [(1 << 20, 1024), (1 << 20, 17), ((1 << 14) + 1, 1024)])
def test_spectrograms_that_no_model_reads_are_refused_before_memory_is_taken(frames, bins):
    config = {"feature_extractor_type": "ASTFeatureExtractor", "max_length": frames, "num_mel_bins": bins}
    with pytest.raises(DataError, match=rf"at most 16777216 values, got {frames} x {bins}\."):
        AudioTransform.from_preprocessor(config)
    AudioTransform(max_length=1 << 14, num_mel_bins=1024)
