# SPDX-License-Identifier: Apache-2.0
"""The Space: what a visitor gives is read within limits, and whatever cannot be is refused with one sentence."""

import dataclasses
import io
import zlib

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from answers import answering, ensembles, inputs, sounds
from answers.reading import MAX_PIXELS
from edvit_hf.errors import DataError, EDViTError
from edvit_hf.transforms import FORMATS_OF_STRANGERS
from support.bombs import IMAGES, OWN_IMAGES
from support.space_ensembles import write_each
from support.tiny_ensemble import MAX_TOKENS

IMAGE, SOUND, TEXT = "image-classification", "audio-classification", "text-classification"
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
RATE = 16_000


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return {task: ensembles.open_other(str(folder)) for task, folder in write_each(tmp_path_factory).items()}


def refusal(prepare, ensemble, given):
    with pytest.raises(DataError) as caught:
        prepare(ensemble, given)
    sentence = str(caught.value)
    assert "Expected" not in sentence, "that is how developers are spoken to"
    assert "/" not in sentence.replace("dark digit", ""), "a page must not show the server's paths"
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    return sentence


def header_only_png(width, height):
    """A PNG whose header promises so many pixels; nothing of them is there."""
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def tone(seconds, *, rate=RATE, gain=0.5):
    return (gain * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav(samples, rate=RATE, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture
def file(tmp_path):
    def write(data, name="given"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def test_pictures_that_cannot_be_read_are_refused_with_sentences(opened, file, tmp_path):
    photo = io.BytesIO()
    Image.new("RGB", (60, 60)).save(photo, "PNG")
    movie = b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(5000)
    with (tmp_path / "big.png").open("wb") as big:
        big.truncate(inputs.MAX_FILE_BYTES + 1)
    expected = {
        None: "Choose a picture first",
        "": "Choose a picture first",
        tmp_path / "absent.png": "cannot be opened",
        tmp_path: "cannot be opened",
        "a\0b": "cannot be opened",
        "x" * 5000: "cannot be opened",
        file(b"", "empty.png"): "This file is empty",
        file(b"no picture", "text.png"): "not a readable picture",
        file(photo.getvalue()[:60], "cut.png"): "not a readable picture",
        file(movie, "video.png"): "not a readable picture",
        tmp_path / "big.png": "larger than 10 MiB",
        file(header_only_png(20_000, 20_000), "huge.png"): "pixels, more than the 24 million",
        file(header_only_png(6_000, 6_000), "large.png"): "6000 x 6000 pixels",
        file(header_only_png(1, 50), "line.png"): "only one pixel wide",
    }
    for given_file, part in expected.items():
        assert part in refusal(inputs.prepare_image, opened[IMAGE], given_file), part


def test_too_many_pixels_are_refused_before_anything_is_decoded(opened, file, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    side = int(MAX_PIXELS**0.5) + 1
    assert "million" in refusal(inputs.prepare_image, opened[IMAGE], file(header_only_png(side, side)))


BOMBS = ["gif: a comment of one-byte blocks", "gif: many comments", "jpeg: many comments", "png: many texts"]
BOMBS += ["webp: many chunks", "tiff: many strips", "ppm: many comments between numbers", "ico: a large picture"]


@pytest.mark.parametrize("name", BOMBS)
def test_pictures_that_a_decoder_would_not_end_with_are_refused_by_a_look_at_them(opened, file, name, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("a decoder was given it"))
    given = file({**IMAGES, **OWN_IMAGES}[name]())
    assert "not a readable picture" in refusal(inputs.prepare_image, opened[IMAGE], given)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "ICO"])
def test_of_strangers_the_formats_for_strangers_alone_are_read(opened, file, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(buffer, kind)
    given = file(buffer.getvalue())
    if kind in (*FORMATS_OF_STRANGERS, "MPO"):  # how telephones write a JPEG
        assert inputs.prepare_image(opened[IMAGE], given).seen.shape == (8, 8, 3)
    else:
        assert "not a readable picture" in refusal(inputs.prepare_image, opened[IMAGE], given)


def test_pictures_that_are_taken_in_their_own_size_have_fewer_pixels(opened, file):
    transform = opened[IMAGE].runtime.transform
    large = file(header_only_png(1001, 1000))
    assert "not a readable picture" in refusal(inputs.prepare_image, opened[IMAGE], large)
    taker = dataclasses.replace(opened[IMAGE].taker, transform=dataclasses.replace(transform, size=None))
    unscaled = dataclasses.replace(opened[IMAGE], taker=taker)
    assert "1001 x 1000 pixels, more than the 1 million" in refusal(inputs.prepare_image, unscaled, large)


def test_a_picture_is_shown_as_sub_models_see_it(opened, file):
    picture = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG")
    prepared = inputs.prepare_image(opened[IMAGE], file(buffer.getvalue()))
    assert prepared.seen.shape == (8, 8, 3)
    assert prepared.seen.dtype == np.uint8
    np.testing.assert_allclose(
        prepared.inputs["pixel_values"][0], prepared.seen.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6
    )


def test_each_ensemble_says_what_it_takes(opened, file):
    some = file(wav(tone(0.2)))
    assert "takes texts" in refusal(inputs.prepare_image, opened[TEXT], some)
    assert "takes pictures" in refusal(inputs.prepare_sound, opened[IMAGE], some)
    assert "takes sounds" in refusal(inputs.prepare_text, opened[SOUND], "word1")
    assert "reads no drawings" in refusal(inputs.prepare_drawing, opened[IMAGE], {})


def test_sounds_that_cannot_be_read_are_refused_with_sentences(opened, file, tmp_path):
    good = wav(tone(0.5))
    expected = {
        None: "Choose a sound file first",
        file(b"", "empty.wav"): "This file is empty",
        file(wav(np.zeros(0, np.float32)), "nothing.wav"): "holds no samples",
        file(wav(np.zeros(RATE, np.float32)), "silence.wav"): "Nothing can be heard",
        file(good[: len(good) // 2], "cut.wav"): "not a readable sound",
        file(good[:20], "header.wav"): "not a readable sound",
        file(b"RIFF\x00\x00\x00\x00WAVEnonsense", "damaged.wav"): "not a readable sound",
        file(b"\x1a\x45\xdf\xa3" + bytes(500), "recording.webm"): "WebM or MP4 recording",
        file(b"\x00\x00\x00\x20ftypM4A " + bytes(500), "phone.m4a"): "WebM or MP4 recording",
        file(wav(tone(0.5), kind="OGG")[:2000], "cut.ogg"): "not a readable sound",
        file(b"ID3\x04" + bytes(300), "no.mp3"): "not a readable sound",
        file(wav(np.full(800, np.nan, np.float32), subtype="FLOAT"), "nan.wav"): "not a readable sound",
        file(wav(np.full(800, 1e9, np.float32), subtype="FLOAT"), "loud.wav"): "damaged",
        file(wav(tone(31)), "long.wav"): "longer than 30 seconds",
        file(wav(tone(31), kind="MP3"), "long.mp3"): "longer than 30 seconds",  # its header is not relied on
    }
    for given_file, part in expected.items():
        assert part in refusal(inputs.prepare_sound, opened[SOUND], given_file), part


def test_ten_minutes_are_refused_by_the_header_before_anything_is_decoded(opened, file, monkeypatch):
    data = wav(np.zeros(600 * 8000, np.int16) + 99, 8000)
    assert len(data) < inputs.MAX_FILE_BYTES
    monkeypatch.setattr(sounds, "decode", lambda *_: pytest.fail("it was decoded"))
    assert "longer than 30 seconds" in refusal(inputs.prepare_sound, opened[SOUND], file(data))


@pytest.mark.parametrize("rate", [44_100, 48_000])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_stereo_at_another_rate_is_heard_as_mono_at_the_ensembles_own(opened, file, rate, kind):
    """Of 440 Hz the same mel band is loudest, whatever the file."""
    window = 0.2  # s: the toy listens to 3,440 samples
    reference = inputs.prepare_sound(opened[SOUND], file(wav(tone(window)), "a")).inputs["input_values"][0]
    stereo = np.stack([tone(1.0, rate=rate), tone(1.0, rate=rate, gain=0.1)], axis=1)
    prepared = inputs.prepare_sound(opened[SOUND], file(wav(stereo, rate, kind), "b"))
    middle = slice(5, 15)
    assert (prepared.inputs["input_values"][0][middle].argmax(1) == reference[middle].argmax(1)).all()


def test_silence_around_a_word_is_cut_off_and_the_page_says_how_long_it_is(opened, file):
    rng = np.random.default_rng(0)
    word = tone(0.15)
    quiet = rng.normal(0, 1e-4, RATE * 2).astype(np.float32)
    around = quiet.copy()
    around[RATE : RATE + len(word)] += word
    found = sounds.word_in(around, RATE)
    assert abs(found.start - RATE) <= 0.05 * RATE
    assert abs(found.stop - (RATE + len(word))) <= 0.05 * RATE
    prepared = inputs.prepare_sound(opened[SOUND], file(wav(around), "around"))
    alone = inputs.prepare_sound(opened[SOUND], file(wav(around[found]), "alone"))
    np.testing.assert_allclose(prepared.inputs["input_values"], alone.inputs["input_values"], atol=0.05)
    kept = (found.stop - found.start) / RATE
    assert f"{kept:.2f} of 2.00 s are listened to" in prepared.remark
    assert "other speakers and microphones was not measured" in prepared.caution


def test_a_recording_that_fits_is_taken_as_it_is(opened, file):
    padded = np.concatenate([np.zeros(800, np.float32), tone(0.1)])
    prepared = inputs.prepare_sound(opened[SOUND], file(wav(padded, subtype="FLOAT")))
    assert prepared.remark == ""
    np.testing.assert_array_equal(
        prepared.inputs["input_values"], opened[SOUND].runtime.transform.inputs((padded, RATE))["input_values"]
    )


def test_what_lasts_longer_than_the_ensemble_listens_is_said(opened, file):
    assert "hears the first 0.21 s only" in inputs.prepare_sound(opened[SOUND], file(wav(tone(2.0)))).remark


def test_a_quiet_word_is_made_as_loud_as_the_data():
    transform = ensembles.open_bundle("spoken_digits").runtime.transform
    quiet = np.concatenate([np.zeros(8000), tone(0.3, rate=8000, gain=0.01), np.zeros(8000)]).astype(np.float32)
    data = wav(quiet, 8000, subtype="FLOAT")
    raised = sounds.read_sound(data, transform, is_word=True)
    assert np.abs(raised.waveform).max() == pytest.approx(sounds.USUAL_PEAK)
    assert "made louder" in raised.remark
    left = sounds.read_sound(data, transform, is_word=False)
    assert np.abs(left.waveform).max() == pytest.approx(0.01, rel=0.01)


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.sampled_from([1, 100, 8000, 48_000]))
@FUZZ
def test_what_is_said_is_never_empty_and_holds_the_loudest_sample(count, seed, rate):
    waveform = np.random.default_rng(seed).normal(size=count).astype(np.float32)
    found = sounds.word_in(waveform, rate)
    assert 0 <= found.start < found.stop <= count
    piece = max(1, round(rate * sounds.PIECE_SECONDS))
    blocks = np.square(np.pad(waveform, (0, -count % piece))).reshape(-1, piece).mean(1)
    loudest = int(blocks.argmax()) * piece
    assert found.start <= loudest < found.stop


def test_a_spectrogram_is_shown_with_time_to_the_right_and_low_frequencies_at_the_bottom(opened, file):
    low = 0.5 * np.sin(2 * np.pi * 150 * np.arange(3400) / RATE).astype(np.float32)
    picture = inputs.prepare_sound(opened[SOUND], file(wav(low))).seen
    assert picture.shape == (16, 20, 3)
    brightness = picture.astype(float).sum(axis=2)
    assert brightness[-4:, :10].mean() > brightness[:4, :10].mean()


def test_the_colours_rise_in_lightness_and_differ_in_blue_and_yellow():
    table = sounds.colours().astype(float) / 255
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) > -1e-3).all()
    assert luminance[-1] - luminance[0] > 0.7, "order is told without any colour"
    assert table[0, 2] > table[0, 0]
    assert table[-1, 0] > table[-1, 2] + 0.3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "Type a text first"),
        ("", "Type a text first"),
        (" \n\t ", "Type a text first"),
        ("🙂🙃", "knows none of these"),
        ("\ud800", "knows none of these"),
        ("\ud83d \udc00 zzz", "knows none of these"),
        ("quite unknown words", "knows none of these"),
    ],
)
def test_texts_without_anything_known_are_refused(opened, text, part):
    assert part in refusal(inputs.prepare_text, opened[TEXT], text)


def test_a_text_is_shown_as_its_tokens_and_unknown_ones_among_known_are_taken(opened):
    prepared = inputs.prepare_text(opened[TEXT], "  word3 🙂 word5\udfff ")
    assert prepared.tokens == ("[CLS]", "word3", "[UNK]", "[UNK]", "[SEP]")
    assert prepared.seen is None
    assert prepared.remark == ""


@pytest.mark.parametrize("count", [MAX_TOKENS - 3, MAX_TOKENS - 2, MAX_TOKENS - 1, 5_000, 100_000])
def test_a_long_text_is_cut_and_the_page_says_so(opened, count):
    prepared = inputs.prepare_text(opened[TEXT], "word1 " * count)
    assert len(prepared.tokens) == min(count + 2, MAX_TOKENS)
    assert bool(prepared.remark) == (count > MAX_TOKENS - 2)
    if prepared.remark:
        assert f"first {MAX_TOKENS} tokens" in prepared.remark


def test_one_endless_word_is_refused_or_read_but_never_hangs(opened):
    assert "knows none of these" in refusal(inputs.prepare_text, opened[TEXT], "a" * 1_000_000)


def is_a_sentence(ensemble, prepare, given):
    """Whether the page says something to it, an answer or a refusal, without raising anything else."""
    try:
        prepared = prepare(ensemble, given)
    except EDViTError as error:
        return bool(str(error))
    view = answering.view(ensemble, prepared, [1])
    return view.state in {"answered", "degraded", "refused"} and bool(view.sentence)


@given(
    st.binary(max_size=400),
    st.sampled_from(
        [b"", b"RIFF\x24\x00\x00\x00WAVE", b"fLaC", b"OggS", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF89a", b"BM"]
    ),
)
@FUZZ
def test_no_bytes_bring_anything_but_our_own_errors(opened, tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(start + data)
    assert is_a_sentence(opened[IMAGE], inputs.prepare_image, path)
    assert is_a_sentence(opened[SOUND], inputs.prepare_sound, path)


@given(
    st.text(st.characters(codec=None), max_size=60)
    | st.lists(st.sampled_from(["word1", "🙂", "\ud800", "[SEP]", "\0"])).map(" ".join)
)
@FUZZ
def test_no_text_brings_anything_but_our_own_errors(opened, text):
    assert is_a_sentence(opened[TEXT], inputs.prepare_text, text)
