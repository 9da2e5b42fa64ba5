# SPDX-License-Identifier: Apache-2.0
"""The page says which classes several devices know, how answers are joined, and what unplugging then costs."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from answers.answering import view
from answers.ensembles import open_other
from answers.inputs import prepare_image
from page.figures import devices as devices_html
from support.tiny_ensemble import write_tiny_ensemble

ALL = [0, 1, 2]
PICTURE = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr("answers.isolation.is_on", lambda: False)


def shown(root, groups, unplugged, kind="mlp"):
    """The ensemble and its page with a picture, some devices unplugged."""
    write_tiny_ensemble(root, groups, kind=kind)
    opened, picture = open_other(str(root)), root / "picture.png"
    Image.fromarray(PICTURE).save(picture)
    return opened, view(opened, prepare_image(opened, picture), unplugged)


def test_classes_that_several_devices_know_are_marked(tmp_path):
    _, page = shown(tmp_path, [[0, 1], [1, 2]], [])
    assert [sorted(device.shared) for device in page.devices] == [["class_1"], ["class_1"]]
    html = devices_html(page)
    assert html.count('<li class="shared" title="Another device knows it too">class_1</li>') == 2
    assert "<li>class_0</li>" in html
    assert page.joined == "A fusion head joins the features that they send."


def test_overlap_says_how_many_may_go_missing(tmp_path):
    _, page = shown(tmp_path, [[0, 1], [1, 2], [2, 0]], [1])
    assert "known by at least 2 devices, so that any one of them may go missing" in page.joined
    assert page.state == "degraded"
    assert "Those that are left know every class." in page.sentence
    _, page = shown(tmp_path, [[0, 1], [1, 2], [2, 0]], [1, 2])
    assert "No device that knows class_2 takes part." in page.sentence


def test_copies_are_averaged_and_any_one_answers_alone(tmp_path):
    opened, page = shown(tmp_path, [ALL] * 3, [0, 2], kind="average")
    assert page.joined.startswith("Their votes are averaged")
    assert "any one of them answers alone" in page.joined
    assert "Those that are left know every class." in page.sentence
    assert page.joined in devices_html(page)
    assert view(opened, None, []).joined == page.joined


def test_generalists_are_shown_with_what_each_was_cut_for_and_that_it_votes_over_all(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, [ALL] * 2, kind="average")
    replace(manifest, focus_groups=[[0, 2], [1]]).save(tmp_path)
    page = view(open_other(str(tmp_path)), None, [1])
    assert [device.focus for device in page.devices] == [("class_0", "class_2"), ("class_1",)]
    assert "was cut for those that it names: any one of them answers alone" in page.joined
    html = devices_html(page)
    assert html.count('aria-label="Cut for"') == 2
    assert html.count('<li class="more">votes over 3</li>') == 2
    assert "<li>class_2</li>" in html
    assert html.count("class_1</li>") == 1
    assert "Plug in device 1 (cut for class_1)" in html


def test_one_model_is_shown_as_replicas_that_answer_alone_until_the_last_is_unplugged(tmp_path):
    opened, page = shown(tmp_path, [ALL], [], kind="average")
    assert "Each holds a replica of it and answers by itself" in page.joined
    assert [device.state for device in page.devices] == ["answered"] * 3
    assert [device.vote for device in page.devices] == [page.devices[0].vote] * 3
    assert [device.answer_without for device in page.devices] == [page.label] * 3
    picture = prepare_image(opened, tmp_path / "picture.png")
    last = view(opened, picture, [0, 2])
    assert (last.state, last.label, last.probabilities) == ("answered", page.label, page.probabilities)
    assert [device.state for device in last.devices] == ["unplugged", "answered", "unplugged"]
    assert last.devices[1].answer_without is None
    assert "The only device that is left gives it by itself." in last.sentence
    assert view(opened, picture, [0, 1, 2]).state == "refused"
    assert view(opened, None, [1]).state == "empty"
    assert "Plug in device 1" in devices_html(view(opened, None, [1]))
