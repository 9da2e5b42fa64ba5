# SPDX-License-Identifier: Apache-2.0
"""The Space: what a visitor's events do to their page, in whatever order they come, and that the page lives on."""

import gradio as gr
import pytest

import app
from answers import ensembles, inputs
from page import figures, visits
from support.tiny_ensemble import write_tiny_ensemble


def test_a_visit_answers_unplugs_refuses_and_lives_on(tmp_path):
    visit = visits.start("digits")
    assert "ed-empty" in visits.show(visit).answer
    assert "ed-answered" in visits.take_example(visit, 0).answer
    for device in ("1", 0, 99, -1, 1.5, [2]):
        panels = visits.plug(visit, device, True)
    assert visit.unplugged == (0, 99)
    assert "ed-degraded" in panels.answer
    assert "4 of 5 plugged in" in panels.devices
    (tmp_path / "x.png").write_text("no picture")
    refused = visits.take_file(visit, str(tmp_path / "x.png"))
    assert 'role="alert"' in refused.answer
    assert "ed-refused" in refused.answer
    assert "ed-empty" in visits.plug(visit, 99, False).answer, "the input before the refused one is gone"
    assert "ed-degraded" in visits.take_example(visit, 1).answer
    for index in (99, -1, None, "0"):
        assert "ed-refused" in visits.take_example(visit, index).answer
    assert "ed-refused" in visits.draw(visit, "nothing").answer
    assert "ed-empty" in visits.clear(visit).answer


def test_each_click_tells_its_own_device_and_all_are_plugged_in_at_once():
    visit = visits.start("digits")
    for device, is_out in ((3, True), (1, True), (1, True), (0, True), (3, False), (4, False)):
        visits.plug(visit, device, is_out)
    assert visit.unplugged == (0, 1)
    assert "5 of 5 plugged in" in visits.plug(visit, None, None).devices


def test_an_ensemble_that_was_closed_meanwhile_is_a_sentence_and_is_not_fetched_again(tmp_path, monkeypatch):
    write_tiny_ensemble(tmp_path, [[0, 1], [2]])
    visit = visits.start("digits")
    assert visits.choose_other(visit, str(tmp_path)).opened
    ensembles.openings.clear()
    monkeypatch.setattr(ensembles, "_open_source", lambda *_, **__: pytest.fail("it was opened again"))
    for panels in (
        visits.show(visit),
        visits.plug(visit, 0, True),
        visits.take_example(visit, 0),
        visits.clear(visit),
        visits.choose_bundle(visit, figures.OTHER_SOURCE).panels,
        visits.choose_other(visit, "no name").panels,
    ):
        assert "ed-refused" in panels.answer
        assert "Open it again" in panels.answer
    assert visits.choose_bundle(visit, "digits").opened
    assert "ed-answered" in visits.take_example(visit, 0).answer


def test_a_visit_that_was_forgotten_goes_on_at_the_ensemble_that_the_browser_shows():
    page = app.Page.__new__(app.Page)
    page.first = "digits"
    run = page._event(visits.take_example, "index")
    event = gr.EventData(None, {"index": 0})
    visit, answer, *_ = run(None, "question_type", event)
    assert visit.source == "question_type"
    assert "ed-answered" in answer
    assert page._value(visits.type_text)(None, "Who was it ?", "question_type")[0].source == "question_type"
    assert page._value(visits.predict_for)(None, None)[0].source == "digits", "who tells none is at the first"
    assert "Open it again" in run(None, "nobody/closed", event)[1]


def test_an_event_from_before_a_choice_changes_nothing():
    page = app.Page.__new__(app.Page)
    page.first = "digits"
    visit = visits.start("digits")
    visits.choose_bundle(visit, "spoken_digits")
    for run, data in (
        (page._event(visits.take_example, "index"), {"index": 1}),
        (page._event(visits.plug, "device", "out"), {"device": 0, "out": True}),
    ):
        assert "ed-empty" in run(visit, "digits", gr.EventData(None, data))[1]
    assert (visit.prepared, visit.unplugged) == (None, ())


def test_an_error_that_nobody_foresaw_is_a_sentence_and_is_logged(monkeypatch, caplog):
    visit = visits.start("digits")
    monkeypatch.setattr(inputs, "prepare_image", lambda *_: 1 / 0)
    assert visits.BROKEN in visits.take_example(visit, 0).answer
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.setattr(ensembles, "open_other", lambda *_: 1 / 0)
    assert visits.BROKEN in visits.choose_other(visit, "x").notice


def test_choosing_another_ensemble_forgets_the_input_and_a_refused_one_changes_nothing():
    visit = visits.start("digits")
    visits.take_example(visit, 0)
    visits.plug(visit, 1, True)
    choice = visits.choose_other(visit, "not a name")
    assert (choice.opened, choice.asks_source) == (None, True)
    assert '<div role="alert"><p' in choice.notice
    assert "ed-degraded" in choice.panels.answer
    assert visits.choose_bundle(visit, figures.OTHER_SOURCE).asks_source
    choice = visits.choose_bundle(visit, "question_type")
    assert choice.opened.task == "text-classification"
    assert (visit.prepared, visit.unplugged) == (None, ())
    assert "ed-answered" in visits.type_text(visit, "Who was the first person on the moon ?").answer
    assert visits.choose_bundle(visit, "../digits").opened is None


def test_without_an_ensemble_the_page_says_what_to_do():
    visit = visits.start(None)
    assert "Name a folder or a Hub id" in visits.show(visit).answer
    assert "Name a folder or a Hub id" in visits.take_example(visit, 0).answer
