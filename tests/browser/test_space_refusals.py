# SPDX-License-Identifier: Apache-2.0
"""The Space as a visitor sees it: what is wrong with an input or a name is a sentence, and the page lives on."""

import os
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from support.hub_ensemble import files_of, write_publishable
from support.visitor import SPACE, example_file


def test_files_that_are_no_picture_are_refused_in_a_sentence(visitor, tmp_path):
    (tmp_path / "video.png").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(2000))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "notes.png").write_text("no picture")
    for name in ("video.png", "notes.png", "empty.png"):
        visitor.page.locator("#file input[type=file]").set_input_files(str(tmp_path / name))
        visitor.wait("refused")
        assert len(visitor.text(".ed-sentence")) > 20
        stem = visitor.page.locator("#file .stem")  # the name of the file can be read
        assert stem.inner_text() == name.partition(".")[0]
        assert stem.bounding_box()["width"] > 20
        visitor.page.locator("#file [aria-label=Clear]").click()
        visitor.wait("empty")
    visitor.example(1)
    visitor.wait("answered")


def test_sounds_that_hold_nothing_are_refused_in_a_sentence(visitor, tmp_path):
    visitor.choose("spoken_digits")
    said = set()
    for name, seconds in (("empty.wav", 0), ("long.wav", 40)):
        with wave.open(str(tmp_path / name), "wb") as out:
            out.setparams((1, 2, 8000, 0, "NONE", ""))
            out.writeframes((np.sin(np.arange(seconds * 8000) / 5) * 9000).astype("<i2").tobytes())
        visitor.page.locator("#file input[type=file]").set_input_files(str(tmp_path / name))
        visitor.wait("refused")
        said.add(visitor.text(".ed-sentence"))
        visitor.choose("digits")
        visitor.wait("empty")
        visitor.choose("spoken_digits")
    assert len(said) == 2, "each is refused for a reason of its own"


@pytest.mark.parametrize("name", ["digits", "spoken_digits"])
def test_a_huge_file_is_refused_and_the_page_lives_on(visitor, tmp_path, name):
    visitor.allowed = r"status of 404|^Response$"  # gradio asks how far an upload is that was refused
    visitor.choose(name)
    (tmp_path / "huge.png").write_bytes(os.urandom(1 << 20) * 12)
    visitor.page.locator("#file input[type=file]").set_input_files(str(tmp_path / "huge.png"))
    expect(visitor.page.locator(".toast-body").first).to_contain_text("maximum allowed size")
    visitor.page.locator("#file [aria-label=Clear]").click()
    expect(visitor.page.locator("#file .error")).to_have_count(0)
    visitor.example(1)
    visitor.wait("answered")
    assert visitor.label() in set("0123456789")


@pytest.mark.parametrize("source", ["nobody/nothing", "not a name", "../../etc", "http://example.com/x"])
def test_a_name_that_is_no_ensemble_is_refused_and_the_page_keeps_what_it_had(visitor, hub, source):
    visitor.choose("")
    field = visitor.page.locator("#source").locator("input, textarea").first
    field.fill(source)
    field.press("Enter")
    expect(visitor.page.locator("#notice [role=alert]")).not_to_be_empty()
    if source == "nobody/nothing":
        assert hub.seen("nobody/nothing")
    visitor.example(1)
    visitor.wait("answered")


def test_a_folder_without_graphs_is_refused(visitor, tmp_path):
    shutil.copytree(SPACE / "model/digits", tmp_path / "bare", ignore=shutil.ignore_patterns("*.onnx"))
    visitor.choose("")
    visitor.page.locator("#source").locator("input, textarea").first.fill(str(tmp_path / "bare"))
    visitor.page.locator("#source .submit-button").click()
    expect(visitor.page.locator("#notice [role=alert]")).not_to_be_empty()
    assert str(tmp_path) not in visitor.text("#notice [role=alert]"), "a sentence, not where the files lie"


def test_an_ensemble_of_the_hub_is_opened_and_answers(visitor, hub, tmp_path):
    manifest = write_publishable(tmp_path / "origin", profiles=())
    hub.create("lab/tiny", files_of(tmp_path / "origin"))
    visitor.choose("")
    visitor.page.locator("#source").locator("input, textarea").first.fill("lab/tiny")
    visitor.page.locator("#source .submit-button").click()
    expect(visitor.page.locator("#notice [role=status]")).to_contain_text("Opened")
    assert visitor.page.locator(".ed-device").count() == len(manifest.sub_models)
    assert "lab/tiny" in visitor.text(".ed-codes")
    assert not visitor.page.locator("#pad").is_visible()  # nobody says that it reads drawings
    visitor.page.locator("#file input[type=file]").set_input_files(example_file("digits", ".png"))
    visitor.wait("answered")
    visitor.plug(0).click()
    visitor.wait("degraded")


def test_only_the_pages_own_files_are_served(visitor, space):
    for path in (SPACE / "app.py", SPACE / "model/digits/manifest.json", Path("/etc/passwd")):
        answer = visitor.page.request.get(f"{space}/gradio_api/file={path}")
        assert answer.status in (403, 404)
    assert "default-src 'self'" in visitor.page.request.get(space).headers["content-security-policy"]
