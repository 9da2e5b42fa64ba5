# SPDX-License-Identifier: Apache-2.0
"""What a card says of the rivals: only what the rows state, whatever version wrote them."""

import copy

import pytest

from edvit_hf.card import rivals
from edvit_hf.card.figures import draw_figures
from edvit_hf.card.render import CardData, render_card
from edvit_hf.card.rival_figures import accuracy_of_rivals, gap_recovered
from edvit_hf.card.rows import large_row, no_verdict, plain_row, verdict
from support.card_samples import rival_results, sample_manifest, sample_results

MANIFEST = sample_manifest()
FIGURES = {name: f"assets/accuracy_{name}.png" for name in ("rivals", "gap")}


@pytest.fixture
def results():
    return rival_results()


def test_the_card_shows_every_rival_with_devices_absent_and_ends_in_what_to_deploy(results):
    card = render_card(CardData.from_run(results, MANIFEST), figures=FIGURES)
    assert "**What to deploy, by this run:** one plain model on every device because nothing" in card
    assert "does splitting pay" not in card.lower()
    assert "| what to deploy | one plain model on every device |" in card
    lines = {line.split("|")[1].strip(): line for line in card.splitlines() if line.count("|") == 9}
    assert "96.4 % | 84.2 % | 39.1 % |" in lines["**ensemble**"]
    assert "| 95.8 % | 95.8 % | 95.8 % | reference |" in lines["replicas"]
    assert lines["teacher"].count("no answer") == lines["plain, N times the size"].count("no answer") == 2
    assert "14.3 k (43 k) | 1.2 |" in lines["copies"]
    assert "100 %" in lines["plain, N times the size"]
    assert "- `copies`: plain models of a device's size" in card
    assert "a gap of 2.3 points. With all present the ensemble recovers 71 % of it." in card
    assert "| model | macro F1 | recall of 3 (12) | recall of 1 (20) |" in card
    assert "| ensemble | 96.2 % | 76.4 % | not measured |" in card
    for path in FIGURES.values():
        assert f"]({path})" in card


def test_under_two_points_the_card_says_that_there_is_little_to_recover(results):
    results["gap"] |= {"points": 1.1, "share": {}}
    card = render_card(CardData.from_run(results, MANIFEST))
    assert "a gap of 1.1 points. That is under 2 points: there is little that collaboration could recover here." in card
    assert "gap too small" in card
    assert "recovers" not in card
    assert gap_recovered(results) is None


def test_of_results_of_an_earlier_version_nothing_is_made_up():
    earlier = sample_results()
    assert rivals.rivals_table(earlier) == rivals.rare_table(earlier) == rivals.deployment(earlier) == ""
    assert rivals.meanings(earlier) == rivals.gap_finding(earlier) == verdict(earlier) == ""
    assert accuracy_of_rivals(earlier) is gap_recovered(earlier) is None
    assert plain_row(earlier)["name"] == "plain model, per-device size"
    assert large_row(earlier)["name"] == "plain model, total size"


@pytest.mark.parametrize("missing", ["gap", "choice", "rare_classes"])
def test_a_card_without_a_part_of_the_results_still_renders(results, missing):
    for value in (None, ...):
        changed = copy.deepcopy(results)
        if value is None:
            changed[missing] = None
        else:
            del changed[missing]
        card = render_card(CardData.from_run(changed, MANIFEST))
        assert ("what to deploy" in card.lower()) == (missing != "choice")
        assert ("Rare classes" in card) == (missing != "rare_classes")


def test_names_cannot_break_the_tables(results):
    results["rows"][4]["name"] = "co|pies <b>x</b>"
    results["choice"]["verdict"] = "deploy: <script>alert(1)</script> because | of\n# that"
    card = render_card(CardData.from_run(results, MANIFEST))
    assert "<script>" not in card
    assert "<b>x" not in card
    assert "\n# that" not in card


def test_both_figures_are_drawn_with_every_row_and_go_when_there_is_nothing_to_show(results, tmp_path):
    figure = accuracy_of_rivals(results)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {row["name"] for row in results["rows"]}
    bars = [text.get_text() for text in gap_recovered(results).axes[0].get_yticklabels()]
    assert set(bars) == labels - {"replicas", "plain, N times the size"}
    assert set(draw_figures(results, tmp_path)) >= {"rivals", "gap"}
    assert set(draw_figures(sample_results(), tmp_path)) & {"rivals", "gap"} == set()
    assert not (tmp_path / "accuracy_gap.png").exists()


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ({}, "holds no results"),
        ({"schema_version": 1}, "of an earlier version"),
        ({"schema_version": 2, "choice": None}, "`replicas` was not measured beside the ensemble"),
    ],
)
def test_results_without_a_verdict_are_said_to_be_what_they_are(results, why):
    assert why in no_verdict(results)
    assert no_verdict({"choice": {"verdict": "deploy: one"}}) == ""
