"""The Space as a visitor sees it: every assertion is about what the page shows."""

import os
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from conftest import PHONE, SPACE, Visitor, browsing
from hub_ensemble import files_of, write_publishable

SEVEN = [(0.26, 0.12), (0.74, 0.12), (0.45, 0.9)]
NAMES = ("digits", "spoken_digits", "question_type")
QUESTION = "Who was the first person on the moon ?"


def expected(name, prepare, value):
    """What the Space computes for that input, without the page."""
    import demo

    opened = demo.open_bundle(name)
    view = demo.view(opened, getattr(demo, prepare)(opened, value), ())
    assert view.state == "answered"
    return view


def example_file(name, suffix):
    return str(sorted((SPACE / "examples" / name).glob(f"*{suffix}"))[1])


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
    expect(visitor.page.get_by_role("alert")).to_contain_text("Plug at least one in again")
    visitor.page.get_by_role("button", name="Plug all in").click()
    visitor.wait("answered")
    assert visitor.label() == label


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


def test_a_huge_file_is_refused_and_the_page_lives_on(visitor, tmp_path):
    (tmp_path / "huge.png").write_bytes(os.urandom(1 << 20) * 12)
    visitor.page.locator("#file input[type=file]").set_input_files(str(tmp_path / "huge.png"))
    expect(visitor.page.locator(".toast-body").first).to_contain_text("maximum allowed size")
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


def test_the_keyboard_alone_chooses_answers_and_unplugs(visitor):
    keyboard, page = visitor.page.keyboard, visitor.page

    def tab_to(selector):
        for _ in range(60):
            keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no way to {selector}")

    tab_to("input[name=ed-ensemble]")
    keyboard.press("ArrowRight")
    page.locator("#input .ed-section", has_text="Spoken digits").wait_for()
    tab_to("[data-example='1']")
    keyboard.press("Enter")
    visitor.wait("answered")
    tab_to(".ed-plug[data-device='2']")
    name = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert name == "Unplug device 2 (knows 3, 5)"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keyboard.press("Space")
    visitor.wait("degraded")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Plug in device 2 (knows 3, 5)"
    keyboard.press("Space")
    visitor.wait("answered")


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


def test_on_a_phone_nothing_is_wider_than_the_screen(visit):
    visitor = visit(**PHONE)
    for name in NAMES:
        visitor.choose(name)
        visitor.example(1)
        visitor.wait("answered")
        visitor.plug(1).click()
        visitor.wait("degraded")
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert visitor.page.locator("#input .ed-section p").is_visible(), "what to give it"
        button = visitor.plug(0).bounding_box()
        assert button["height"] >= 28
        assert 0 <= button["x"] <= 390 - button["width"]


CONTRASTS = """() => {
  const parts = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll('.gradio-container *')) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join(' ').trim();
    const box = element.getBoundingClientRect();
    if (!text || !box.width || !box.height || element.closest('style, .ed-copied, [hidden], footer')) continue;
    if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = getComputedStyle(element);
    let behind = element, ground = [255, 255, 255];
    while (behind) {
      const colour = parts(getComputedStyle(behind).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) { ground = colour; break; }
      behind = behind.parentElement;
    }
    const ink = parts(element instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const who = `${element.tagName}.${element.getAttribute('class')}: ${text.slice(0, 40)}`;
    if (ratio < least) found.push(`${ratio.toFixed(2)} ${who}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_in_dark(visit, scheme):
    visitor = visit(color_scheme=scheme)
    assert visitor.page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    assert visitor.page.evaluate(CONTRASTS) == []
    for name in NAMES:
        visitor.choose(name)
        visitor.example(1)
        visitor.wait("answered")
        assert visitor.page.evaluate(CONTRASTS) == []
        visitor.plug(0).click()
        visitor.wait("degraded")
        assert visitor.page.evaluate(CONTRASTS) == []
    for index in range(1, visitor.page.locator(".ed-plug").count()):
        visitor.plug(index).click()
    visitor.wait("refused")
    visitor.choose("")
    assert visitor.page.evaluate(CONTRASTS) == []


def test_who_wants_no_motion_or_own_colours_gets_that(visit):
    visitor = visit(reduced_motion="reduce", forced_colors="active")
    visitor.example(1)
    visitor.wait("answered")
    for bar in (".ed-bars li:first-child .ed-track i", ".ed-device .ed-track i", ".ed-mini i"):
        style = f"getComputedStyle(document.querySelector('{bar}'))"
        assert visitor.page.evaluate(f"parseFloat({style}.transitionDuration)") == 0
        ground = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert visitor.page.evaluate(f"{style}.backgroundColor") != ground, bar


def test_the_theme_of_the_address_wins_over_the_systems(visit):
    visitor = visit("?__theme=dark", color_scheme="light")
    assert visitor.page.evaluate("document.body.classList.contains('dark')")
    ground = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(value) for value in ground[4:-1].split(",")) < 50


def test_a_click_on_a_device_moves_nothing_under_the_pointer(visitor):
    visitor.example(1)
    visitor.wait("answered")
    visitor.plug(3).scroll_into_view_if_needed()
    before = visitor.plug(3).bounding_box()
    visitor.plug(3).click()
    visitor.wait("degraded")
    after = visitor.plug(3).bounding_box()
    assert abs(before["y"] - after["y"]) <= 2
    assert abs(before["x"] - after["x"]) <= 30  # the other word on the button has another width


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


def test_only_the_pages_own_files_are_served(visitor, space):
    for path in (SPACE / "app.py", SPACE / "model/digits/manifest.json", Path("/etc/passwd")):
        answer = visitor.page.request.get(f"{space}/gradio_api/file={path}")
        assert answer.status in (403, 404)
    assert "default-src 'self'" in visitor.page.request.get(space).headers["content-security-policy"]


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
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={said}",
    ]  # fmt: skip
    with browsing(playwright, *flags) as browser:
        visitor = Visitor(browser, space, permissions=["microphone"])
        visitor.choose("spoken_digits")
        visitor.page.get_by_role("button", name="Record", exact=True).click()
        visitor.page.wait_for_timeout(2000)
        visitor.page.get_by_role("button", name="Stop", exact=True).click()
        visitor.wait("answered")
        assert visitor.complaints == []
