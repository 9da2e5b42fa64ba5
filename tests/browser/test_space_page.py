# SPDX-License-Identifier: Apache-2.0
"""The Space as a visitor sees it: answers, devices, timelines. Every assertion is about what the page shows."""

import shutil
import wave

import numpy as np
from playwright.sync_api import expect

from support.visitor import SEVEN, SPACE, Visitor, browsing, example_file

QUESTION = "Who was the first person on the moon ?"


def expected(name, prepare, value):
    """What the Space computes for that input, without the page."""
    from answers import answering, ensembles, inputs

    opened = ensembles.open_bundle(name)
    view = answering.view(opened, getattr(inputs, prepare)(opened, value), ())
    assert view.state == "answered"
    return view


def test_a_drawn_digit_is_answered_with_every_devices_part_in_it(visitor):
    visitor.wait("empty")
    visitor.draw(SEVEN)
    visitor.wait("answered")
    assert visitor.label() == "7"
    assert next(iter(visitor.shares())) == "7"
    assert "8 by 8 pixels" in visitor.page.locator(".ed-pixels").get_attribute("alt")
    cards = visitor.page.locator(".ed-device").all()
    assert len(cards) == 5
    for card in cards:
        assert "ms" in card.inner_text()
        assert "bytes" in card.inner_text()
        assert "Without it" in card.inner_text()
    voters = visitor.page.locator(".ed-device", has=visitor.page.locator(".ed-vote b", has_text="7"))
    assert "7" in voters.locator(".ed-classes").inner_text()
    visitor.page.get_by_role("button", name="Clear the field").click()
    visitor.wait("empty")


def test_an_uploaded_picture_gets_the_answer_that_the_ensemble_gives(visitor):
    path = example_file("digits", ".png")
    visitor.page.locator("#file input[type=file]").set_input_files(path)
    visitor.wait("answered")
    assert visitor.label() == expected("digits", "prepare_image", path).label


def test_an_uploaded_sound_gets_the_answer_that_the_ensemble_gives(visitor):
    visitor.choose("spoken_digits")
    path = example_file("spoken_digits", ".wav")
    visitor.page.locator("#file input[type=file]").set_input_files(path)
    visitor.wait("answered")
    assert visitor.label() == expected("spoken_digits", "prepare_sound", path).label
    assert "spectrogram" in visitor.page.locator(".ed-pixels").get_attribute("alt")
    assert visitor.page.locator("#pad").count() == 0 or not visitor.page.locator("#pad").is_visible()


def test_a_typed_text_is_answered_on_enter_and_its_tokens_are_shown(visitor):
    visitor.choose("question_type")
    field = visitor.page.locator("#text textarea")
    field.fill(QUESTION)
    field.press("Enter")
    visitor.wait("answered")
    view = expected("question_type", "prepare_text", QUESTION)
    assert visitor.label() == view.label
    assert [item.inner_text() for item in visitor.page.locator(".ed-tokens li").all()] == list(view.tokens)


def test_markup_in_a_text_stays_text(visitor):
    visitor.choose("question_type")
    field = visitor.page.locator("#text textarea")
    field.fill("<img src=x onerror=\"document.title='taken'\"> ${document.title='taken'} {{value}}")
    visitor.page.locator("#text .submit-button").click()
    visitor.page.locator(".ed-answer:not(.ed-empty)").wait_for()
    assert visitor.page.locator(".ed-seen img, .ed-answer img").count() == 0
    assert visitor.page.title() != "taken"


def test_unplugging_degrades_the_answer_and_plugging_in_again_restores_it(visitor):
    visitor.example(2)
    visitor.wait("answered")
    label, before = visitor.label(), visitor.text(".ed-said")
    knows = visitor.page.locator(".ed-device", has=visitor.page.locator(".ed-classes li", has_text=label)).first
    button = knows.locator(".ed-plug")
    button.click()
    visitor.wait("degraded")
    assert "4 of 5" in visitor.text(".ed-said")
    assert "with all of them it was" in visitor.text(".ed-said")
    assert "1 of 5 devices absent" in visitor.text(".ed-answer .ed-note")
    assert "Missing" in knows.inner_text()
    assert "4 of 5 plugged in" in visitor.text(".ed-devices > .ed-section")
    button.click()
    visitor.wait("answered")
    assert visitor.label() == label
    assert visitor.text(".ed-said").splitlines()[:3] == before.splitlines()[:3]


def test_with_all_devices_unplugged_the_page_says_what_to_do_and_lives_on(visitor):
    visitor.example(0)
    visitor.wait("answered")
    label = visitor.label()
    for index in range(5):
        visitor.plug(index).click()
    visitor.wait("refused")
    expect(visitor.page.locator("#answer").get_by_role("alert")).to_contain_text("Plug at least one in again")
    visitor.page.get_by_role("button", name="Plug all in").click()
    visitor.wait("answered")
    assert visitor.label() == label


def test_with_all_devices_unplugged_before_an_input_nobody_is_ready(visitor):
    for index in range(5):
        visitor.plug(index).click()
    visitor.wait("refused")
    assert "Ready" not in visitor.text("#answer")
    assert "nobody is left" in visitor.text("#answer")
    visitor.plug(3).click()
    visitor.wait("empty")


def test_a_click_does_not_depend_on_the_answers_to_those_before_it(visitor):
    visitor.plug(0).click()
    visitor.plug(1).click()
    expect(visitor.page.locator(".ed-devices > .ed-section")).to_contain_text("3 of 5")
    # What the page shows may still be the answer to an older click.
    visitor.page.evaluate("document.querySelectorAll('.ed-plug').forEach(plug => { plug.dataset.unplugged = '0'; })")
    visitor.plug(2).click()
    expect(visitor.page.locator(".ed-devices > .ed-section")).to_contain_text("2 of 5")
    assert visitor.page.get_by_role("button", name="Unplug device").count() == 2


def test_a_drawing_that_comes_after_another_ensemble_was_chosen_is_dropped(visitor):
    visitor.draw(SEVEN)
    visitor.page.locator("input[name=ed-ensemble][value=spoken_digits]").evaluate("choice => choice.click()")
    visitor.page.locator("#input .ed-section", has_text="Spoken digits").wait_for()
    visitor.page.wait_for_timeout(400)  # longer than a drawing waits for more strokes
    visitor.wait("empty")
    assert visitor.page.locator(".ed-bars li").count() == 0, "no answer to a drawing where sounds are asked for"
    visitor.example(1)
    visitor.wait("answered")


INK = """() => {
  const field = document.querySelector('#pad canvas');
  return field.getContext('2d').getImageData(0, 0, field.width, field.height).data.some(value => value > 0);
}"""


def test_a_drawing_does_not_stay_for_the_next_ensemble_that_reads_drawings(visitor, tmp_path):
    shutil.copytree(SPACE / "model/digits", tmp_path / "mine")
    visitor.draw(SEVEN)
    visitor.wait("answered")
    assert visitor.page.evaluate(INK)
    visitor.choose("")
    visitor.page.locator("#source").locator("input, textarea").first.fill(str(tmp_path / "mine"))
    visitor.page.locator("#source .submit-button").click()
    expect(visitor.page.locator("#notice [role=status]")).to_contain_text("Opened")
    visitor.wait("empty")
    assert not visitor.page.evaluate(INK)
    assert visitor.page.locator(".ed-pad-hint").is_visible()
    visitor.draw(SEVEN)
    visitor.wait("answered")
    assert visitor.label() == "7"
    visitor.choose("")
    visitor.choose("digits")
    visitor.wait("empty")
    assert not visitor.page.evaluate(INK)


def test_two_visitors_do_not_see_each_others_state(visit):
    one, two = visit(), visit()
    one.example(1)
    one.wait("answered")
    two.wait("empty")
    two.example(4)
    two.wait("answered")
    said = two.text(".ed-said")
    one.plug(0).click()
    one.wait("degraded")
    two.choose("question_type")
    one.plug(1).click()
    expect(one.page.locator(".ed-devices > .ed-section")).to_contain_text("3 of 5")
    two.choose("digits")
    two.wait("empty")
    expect(two.page.locator(".ed-devices > .ed-section")).to_contain_text("5 of 5")
    two.example(4)
    two.wait("answered")
    assert two.text(".ed-said").splitlines()[:3] == said.splitlines()[:3]


def test_timelines_are_labelled_and_told_in_words(visitor):
    visitor.example(1)
    visitor.wait("answered")
    figures = visitor.page.locator(".ed-line")
    assert [badge.inner_text().lower() for badge in figures.locator(".ed-badge").all()] == ["measured", "predicted"]
    assert "device 0: compute" in figures.first.locator("desc").text_content()
    assert "device 4: transfer" in figures.nth(1).locator("desc").text_content()
    before = figures.nth(1).inner_text()
    visitor.page.locator("#fleet input").click()
    visitor.page.get_by_role("option").nth(2).click()
    expect(figures.nth(1)).not_to_contain_text(before.splitlines()[1])


def test_the_code_is_copied(visit):
    visitor = visit()
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown = visitor.page.locator(".ed-code code").first.text_content()
    visitor.page.locator("[data-copy]").first.click()
    expect(visitor.page.locator(".ed-copied")).to_have_text("Copied.")
    assert visitor.page.evaluate("navigator.clipboard.readText()") == shown


def test_the_model_card_opens(visitor):
    visitor.page.locator("#card button").first.click()
    expect(visitor.page.locator("#card [data-testid=markdown]")).to_contain_text("ensemble")
    assert visitor.page.locator("#card img").count() == 0, "a card's pictures are dropped"
    assert "as its card states it: apache-2.0." in visitor.text("#license")


def test_a_word_said_into_the_microphone_is_answered(playwright, space, tmp_path):
    with wave.open(example_file("spoken_digits", ".wav")) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    said = tmp_path / "said.wav"
    with wave.open(str(said), "wb") as out:
        out.setparams((1, 2, 48_000, 0, "NONE", ""))
        times = np.arange(len(samples) * 48_000 // rate) * rate / 48_000
        word = np.interp(times, np.arange(len(samples)), samples)
        silence = np.zeros(24_000)
        out.writeframes(np.concatenate([silence, word, silence]).astype("<i2").tobytes())
    flags = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={said}",
    ]
    with browsing(playwright, *flags) as browser:
        visitor = Visitor(browser, space, permissions=["microphone"])
        visitor.choose("spoken_digits")
        visitor.page.get_by_role("button", name="Record", exact=True).click()
        visitor.page.wait_for_timeout(2000)
        visitor.page.get_by_role("button", name="Stop", exact=True).click()
        visitor.wait("answered")
        assert visitor.complaints == []
