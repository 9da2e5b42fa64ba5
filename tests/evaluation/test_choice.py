# SPDX-License-Identifier: Apache-2.0
"""What to deploy: something else than one plain model on every device only where it is better beyond noise."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import DataError
from edvit_hf.evaluation.choice import Candidate, choose, each_level
from edvit_hf.evaluation.evaluator import paired_interval

PLAIN = "replicas"
WORDS = "one plain model on every device"


def right(share, num_items=1000, seed=0):
    return np.random.default_rng(seed).random(num_items) < share


def flipped(correct, num_better, num_worse):
    """The same answers, with so many wrong ones put right and so many right ones put wrong."""
    changed = correct.astype(float)
    changed[np.flatnonzero(~correct)[:num_better]] = 1
    changed[np.flatnonzero(correct)[:num_worse]] = 0
    return changed


PLAIN_RIGHT = right(0.7)


def test_what_is_better_beyond_noise_is_chosen_with_the_figures_that_say_so():
    better = [flipped(PLAIN_RIGHT, n, 10) for n in (80, 70, 60)]
    found = choose({PLAIN: Candidate([PLAIN_RIGHT], WORDS), "ensemble": Candidate(better, "the ensemble")}, PLAIN)
    assert found.name == "ensemble"
    assert found.accuracies["ensemble"] == pytest.approx([each.mean() for each in better])
    assert len(set(found.accuracies[PLAIN])) == 1, "the same model on every device answers the same at any absence"
    mean = 100 * np.mean(better)
    assert found.verdict.startswith(
        f"deploy: the ensemble because averaged over 0, 1 and 2 absent it answers {mean:.1f}"
    )
    assert f"{100 * PLAIN_RIGHT.mean():.1f} % ({WORDS}): +6.0 points [+" in found.verdict
    assert "1,000 test items" in found.verdict
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == found.verdict


@pytest.mark.parametrize(("num_better", "num_worse", "name"), [(20, 15, "copies"), (15, 20, PLAIN), (0, 0, PLAIN)])
def test_on_average_the_best_is_taken_and_said_not_to_be_more_than_likely(num_better, num_worse, name):
    level = flipped(PLAIN_RIGHT, num_better, num_worse)
    found = choose({PLAIN: Candidate([PLAIN_RIGHT], WORDS), "copies": Candidate([level] * 3)}, PLAIN, by="on average")
    assert found.name == name
    assert ("likelier better than not" in found.verdict) == (name != PLAIN)
    assert name != PLAIN or found.verdict.startswith(f"deploy: {WORDS} because nothing that was measured is better: ")


@pytest.mark.parametrize(("num_better", "num_worse"), [(20, 15), (15, 20), (0, 0)])
def test_within_noise_the_plain_model_on_every_device_stays(num_better, num_worse):
    level = flipped(PLAIN_RIGHT, num_better, num_worse)
    found = choose(
        {PLAIN: Candidate([PLAIN_RIGHT], WORDS), "copies": Candidate([level] * 3)}, PLAIN, items="validation"
    )
    assert found.name == PLAIN
    assert found.verdict.startswith(f"deploy: {WORDS} because nothing that was measured is better beyond noise")
    assert "validation items" in found.verdict
    assert "(copies) differs by" in found.verdict


def test_of_several_that_are_better_the_best_on_average_is_chosen_and_order_does_not_matter():
    names = {"high": (90, 90, 90), "higher_at_first": (120, 60, 60), "low": (50, 50, 50)}
    known = {n: Candidate([flipped(PLAIN_RIGHT, each, 0) for each in counts]) for n, counts in names.items()}
    known[PLAIN] = Candidate([PLAIN_RIGHT])
    assert choose(known, PLAIN).name == choose(dict(reversed(known.items())), PLAIN).name == "high"


def test_more_than_two_absent_do_not_decide_and_two_devices_have_one_absence():
    falling = [flipped(PLAIN_RIGHT, 80, 0)] * 3 + [np.zeros(1000)]
    assert choose({PLAIN: Candidate([PLAIN_RIGHT]), "ensemble": Candidate(falling)}, PLAIN).name == "ensemble"
    found = choose({PLAIN: Candidate([PLAIN_RIGHT]), "ensemble": Candidate(falling[:2])}, PLAIN)
    assert "averaged over 0 and 1 absent" in found.verdict
    alone = choose({PLAIN: Candidate([PLAIN_RIGHT]), "ensemble": Candidate(falling[:1])}, PLAIN)
    assert "because with all present it answers" in alone.verdict


def test_a_chosen_one_that_falls_below_with_some_absent_is_said_to():
    falling = [flipped(PLAIN_RIGHT, 150, 0), flipped(PLAIN_RIGHT, 100, 0), flipped(PLAIN_RIGHT, 0, 60)]
    found = choose({PLAIN: Candidate([PLAIN_RIGHT], WORDS), "ensemble": Candidate(falling)}, PLAIN)
    assert found.name == "ensemble"
    assert "; but it is below it with 2 absent -6.0 points [" in found.verdict


@pytest.mark.parametrize("num_better", [0, 90])
def test_what_cannot_be_exported_is_never_chosen_but_said_to_be_better_where_it_is(num_better):
    known = {PLAIN: Candidate([PLAIN_RIGHT], WORDS), "ensemble": Candidate([flipped(PLAIN_RIGHT, 40, 0)] * 2)}
    beside = {"tfidf": Candidate([flipped(PLAIN_RIGHT, num_better, 0)], "TF-IDF on every device")}
    found = choose(known, PLAIN, beside=beside)
    assert found.name == "ensemble"
    assert ("; better, but nothing that can be exported: TF-IDF on every device (+5.0" in found.verdict) == (
        num_better > 40
    )
    assert "tfidf" not in {*found.accuracies, *found.intervals}
    assert found.to_dict()["beside"]["tfidf"]["difference"] == pytest.approx(num_better / 1000 - 0.04)
    stays = choose({PLAIN: known[PLAIN], "copies": known[PLAIN]}, PLAIN, beside=beside).verdict
    assert stays.startswith(f"deploy: {WORDS} because nothing that can be exported is better beyond noise")
    assert choose({PLAIN: known[PLAIN]}, PLAIN, beside=beside).why.startswith("nothing else can be exported: ")


def test_alone_the_baseline_is_chosen_because_nothing_else_was_measured():
    assert choose({PLAIN: Candidate([PLAIN_RIGHT])}, PLAIN).why.startswith(
        "nothing else was measured: with all present"
    )


def test_noise_is_rarely_taken_for_a_gain():
    taken = 0
    for trial in range(200):
        random = np.random.default_rng(trial)
        both = {name: Candidate([random.random(400) < 0.8 for _ in range(3)]) for name in (PLAIN, "ensemble")}
        taken += choose(both, PLAIN).name == "ensemble"
    assert taken / 200 <= 0.06


def test_noise_is_rarely_taken_for_a_gain_however_many_were_compared():
    taken = 0
    for trial in range(60):
        random = np.random.default_rng(trial)
        names = (PLAIN, *(f"strategy_{number}" for number in range(6)))
        taken += choose({name: Candidate([random.random(200) < 0.8]) for name in names}, PLAIN).name != PLAIN
    assert taken / 60 <= 0.05


def test_of_several_each_interval_is_wider_and_the_sentence_says_so():
    better = Candidate([flipped(PLAIN_RIGHT, 80, 10)] * 3)
    one, three = (
        choose({PLAIN: Candidate([PLAIN_RIGHT]), **{f"better_{i}": better for i in range(count)}}, PLAIN)
        for count in (1, 3)
    )
    (alone,), beside = one.intervals.values(), three.intervals["better_0"]
    assert (alone.difference, alone.low > beside.low, alone.high < beside.high) == (beside.difference, True, True)
    assert [one.to_dict()["level"], three.to_dict()["level"]] == [0.95, pytest.approx(1 - 0.05 / 3)]
    assert "(of 3 compared with it: intervals of 98.3 % each, 95 % together)" in three.verdict
    assert "compared with it" not in one.verdict
    level = choose(
        {PLAIN: Candidate([PLAIN_RIGHT]), "a": Candidate([PLAIN_RIGHT]), "b": Candidate([PLAIN_RIGHT])}, PLAIN
    )
    assert level.verdict.endswith("(of 2 compared with it: intervals of 97.5 % each, 95 % together)")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_intervals_of_several_hold_together(count):
    assert count * (1 - each_level(count, 0.9)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"replica": Candidate([PLAIN_RIGHT])}, "Did you mean `replica`"),
        ({PLAIN: Candidate([PLAIN_RIGHT]), "a": Candidate([PLAIN_RIGHT[:9]])}, "same items"),
        ({PLAIN: Candidate([PLAIN_RIGHT] * 3), "a": Candidate([PLAIN_RIGHT] * 2)}, "each of 3 absences"),
        ({PLAIN: Candidate([PLAIN_RIGHT]), "a": Candidate([])}, "each of 1 absences"),
        ({PLAIN: Candidate([np.zeros((2, 2))])}, "a vector over the items"),
    ],
)
def test_candidates_that_cannot_be_compared_are_refused(known, message):
    with pytest.raises(DataError, match=message):
        choose(known, PLAIN)


def test_shares_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"lie in 0\.\.1"):
        paired_interval(np.array([0.0, 2.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"lie in 0\.\.1"):
        paired_interval(np.array([0.0, np.nan]), np.array([0.0, 1.0]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_an_interval_over_shares_is_that_of_resampled_items(pairs):
    shares_a, shares_b = (np.array(column) / 5 for column in zip(*pairs, strict=True))
    interval = paired_interval(shares_a, shares_b, num_resamples=4000)
    drawn = np.random.default_rng(1).integers(0, len(pairs), (4000, len(pairs)))
    differences = (shares_a - shares_b)[drawn].mean(axis=1)
    assert interval.difference == pytest.approx((shares_a - shares_b).mean(), abs=1e-9)
    spread = 4 * differences.std() / len(pairs) ** 0.5 + 0.05
    assert [interval.low, interval.high] == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=spread)
