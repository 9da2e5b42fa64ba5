# SPDX-License-Identifier: Apache-2.0
"""Random bytes and random damage, from the manifest to the answer: only errors of our own ever come out."""

import io
import json

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edvit_hf.errors import EDViTError
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.tasks import TASKS

pytest_plugins = ["support.task_fixtures"]
FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def whole_file(kind):
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    if kind in ("PNG", "JPEG", "GIF", "WEBP"):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(buffer, kind)
    else:
        soundfile.write(buffer, rng.normal(size=600) / 5, 8000, format=kind)
    return buffer.getvalue()


@st.composite
def damaged(draw, content):
    """The content with bytes changed, cut out or put in."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["change", "cut", "insert"]))
        if how == "change" and content:
            content[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del content[place : place + draw(st.integers(1, 40))]
        else:
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(content)


def assert_answer_or_refusal(ask):
    """Nothing else may happen."""
    refusal = ""
    try:
        answer = ask()
    except EDViTError as error:
        refusal = str(error)
    if refusal:
        assert len(refusal) > 20
    else:
        assert np.isfinite(answer.probabilities).all()
        np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
@FUZZ
@given(data=st.data())
def test_damaged_images(runtimes, kind, data):
    content = data.draw(st.one_of(damaged(whole_file(kind)), st.binary(max_size=60)))
    assert_answer_or_refusal(lambda: runtimes["image-classification"](content))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "AU"])
@FUZZ
@given(data=st.data())
def test_damaged_sounds(runtimes, kind, data):
    content = data.draw(st.one_of(damaged(whole_file(kind)), st.binary(max_size=60)))
    assert_answer_or_refusal(lambda: runtimes["audio-classification"](content))


@FUZZ
@given(text=st.text(alphabet=st.characters(exclude_categories=[]), max_size=300))
def test_any_text(runtimes, text):
    assert_answer_or_refusal(lambda: runtimes["text-classification"](text))


plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.builds(list),
    st.builds(dict),
    st.just("../x"),
)


def paths_of(value, path=()):
    """Every place of a JSON document."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from paths_of(inner, (*path, key))


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_changed_and_damaged_manifests(folders, task, data):
    folder = folders[task]
    text = (folder / "manifest.json").read_bytes()
    document = json.loads(text)
    places = list(paths_of(document))
    for place in data.draw(st.lists(st.sampled_from(places), max_size=2, unique=True)):
        if not place:
            continue
        try:
            owner = document
            for key in place[:-1]:
                owner = owner[key]
            if data.draw(st.booleans()):
                owner[place[-1]] = data.draw(plain_values)
            else:
                del owner[place[-1]]
        except (KeyError, IndexError, TypeError):  # an earlier change took it away
            continue
    changed = json.dumps(document).encode()
    if data.draw(st.booleans()):
        changed = data.draw(damaged(changed))
    source = {
        "image-classification": np.zeros((9, 9, 3), np.uint8),
        "audio-classification": np.zeros(500, np.float32),
        "text-classification": "word1 word2",
    }[task]
    try:
        (folder / "manifest.json").write_bytes(changed)
        assert_answer_or_refusal(lambda: EDViTRuntime.from_pretrained(folder, num_threads=1)(source))
    finally:
        (folder / "manifest.json").write_bytes(text)
