# SPDX-License-Identifier: Apache-2.0
"""The Space for everybody: keyboard alone, screen readers, phones, light and dark, less motion."""

import pytest
from playwright.sync_api import expect

from support.visitor import PHONE

NAMES = ("digits", "spoken_digits", "question_type")


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


def test_the_pages_language_is_told_whatever_the_browsers_is(visit):
    visitor = visit(locale="de-DE")
    page = visitor.page.locator("html")
    expect(page).to_have_attribute("lang", "en")
    visitor.page.evaluate("document.documentElement.lang = 'de'")  # as gradio's settings do
    expect(page).to_have_attribute("lang", "en")
    assert page.get_attribute("lang") == "en", "and it stays so"


def test_a_screen_reader_on_a_phone_finds_the_answer_and_hears_what_is_plugged_in(visit):
    visitor = visit(**PHONE)
    visitor.example(1)
    visitor.wait("answered")
    visitor.plug(1).click()
    visitor.wait("degraded")
    spoken = visitor.page.locator("main").aria_snapshot()
    assert '- heading "Answer" [level=2]' in spoken
    assert "4 of 5 plugged in" in spoken
    assert "✓" not in spoken, "the mark of what is chosen is for the eye"
    for place in ("status", "alert"):
        assert visitor.page.locator(f"#notice [role={place}]").count() == 1, "there before anything is said in it"


def test_a_drawing_can_be_seen_whatever_colours_the_system_forces(visit):
    visitor = visit(forced_colors="active", color_scheme="dark")
    paper = visitor.page.evaluate("getComputedStyle(document.querySelector('.ed-paper')).backgroundColor")
    assert min(int(value) for value in paper[4:-1].split(",")) > 200, "the ink is dark"
