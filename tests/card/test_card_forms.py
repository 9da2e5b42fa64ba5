# SPDX-License-Identifier: Apache-2.0
"""A card says who knows which class, how answers are joined and what a device sends, for every form of ensemble."""

import pytest

from edvit_hf.card import forms
from edvit_hf.card.tables import sub_model_table
from edvit_hf.card.words import making_table
from edvit_hf.manifest import Manifest
from support.tiny_ensemble import write_tiny_ensemble

ALL = [0, 1, 2]


def form(groups, kind="mlp", focus=None, sizes=()):
    return forms.Form(
        kind=kind, class_groups=groups, focus_groups=focus, num_labels=3, sizes=dict(enumerate(sizes))
    )  # fmt: skip


def said(one):
    return forms.what_it_is(one, "ViT", "distilled from it")


def test_disjoint_groups_are_described_as_ever():
    one = form([[0, 1], [2]], sizes=[4, 4])
    assert said(one).startswith(
        "A classifier split by its classes into 2 small **sub-models**, one per class group. Each"
    )
    assert said(one).endswith("each sends only its feature vector.")
    assert forms.what_other_means(one).endswith('`other` means "a class of another sub-model".')
    assert (forms.sent_header(one), forms.vote_header(one)) == ("features sent", "vote with `other`")


def test_overlap_says_how_many_know_every_class():
    one = form([[0, 1], [1, 2], [2, 0]], "residual")
    assert "Groups overlap: every class is known by at least 2 of them." in said(one)
    assert "`other` spread evenly over the classes that a sub-model does not know" in said(one)
    assert said(one).endswith("a small **fusion head** on their features corrects it. "
                              "The sub-models can run on different **devices**; each sends both.")  # fmt: skip
    assert "*and* the fusion head" in forms.what_it_is_not(one)


@pytest.mark.parametrize(("focus", "words"), [(None, "differ in their seeds"), ([[0], [1, 2]], "a class group of its")])
def test_copies_and_generalists_know_every_class_and_have_no_other(focus, words):
    one = form([ALL, ALL], "average", focus)
    assert words in said(one)
    assert "any one of them answers by itself" in said(one)
    assert "fusion head" not in said(one) + forms.what_it_is_not(one)
    text = forms.what_other_means(one) + forms.columns_explained(one) + forms.labels_comment(one)
    assert "other`" not in text
    assert forms.columns_explained(one).count("Vote sent") == 1


def test_the_table_of_generalists_names_what_each_was_cut_for_and_that_it_votes_over_all():
    results = {"class_groups": [ALL, ALL], "focus_groups": [[0], [1, 2]], "dataset": {"label_names": ["a", "b", "c"]}}
    one = forms.form_of(results, None, {"fuse": {"kind": "residual"}})
    lines = sub_model_table(results, one).splitlines()
    assert lines[0].startswith("| sub-model | cut for |")
    assert [line.split(" | ")[1] for line in lines[2:]] == ["a", "b, c"]
    assert "it votes over all 3 labels" in forms.columns_explained(one)
    narrow = form([[0, 1], [1, 2]], focus=[[0], [2]])
    assert "it votes over more labels than these" in forms.columns_explained(narrow)
    copies = form([ALL, ALL], "average")
    assert (forms.classes_header(copies), "Cut for" in forms.columns_explained(copies)) == ("classes", False)


def test_one_model_is_replicas():
    one = form([ALL], "average")
    assert "Each **device** holds a replica of it" in said(one)
    assert "one small network" in forms.what_it_is_not(one)


def test_the_manifest_tells_the_kind_and_what_is_sent(tmp_path):
    write_tiny_ensemble(tmp_path, [ALL] * 2, kind="average")
    one = forms.form_of({"class_groups": [ALL] * 2}, Manifest.load(tmp_path), {"fuse": {"kind": "mlp"}})
    assert (one.kind, one.fewest, one.knows_all) == ("average", 2, True)
    assert [forms.sent_bytes(one, i) for i in range(3)] == [12, 12, None]
    asked = forms.form_of({"class_groups": [ALL] * 2}, None, {"fuse": {"kind": "residual"}})
    assert (asked.kind, forms.sent_bytes(asked, 0)) == ("residual", None)
    assert forms.form_of({"class_groups": [[0], [1]]}, None, {}).kind == "mlp"


@pytest.mark.parametrize(
    ("fuse", "words"),
    [
        ({"joint": False}, "frozen: the fusion head"),
        ({"joint": False, "kind": "average"}, "each at a temperature fitted on validation |"),
        ({"joint": True, "kind": "average", "other": "spread"}, "other groups; the sub-models were tuned for it"),
        ({"joint": False, "kind": "residual"}, "corrects the average as far as validation gains"),
    ],
)
def test_how_answers_were_joined_stands_in_the_table(fuse, words):
    assert words in making_table({"fuse": fuse})


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([[0, 1], [2]], "Its classes suffer most."),
        ([[0, 1], [1, 2], [2, 0]], "Every class is known by at least 2 of them."),
        ([ALL, ALL], "All know every class."),
        ([ALL], "as long as one is there, the answer is the same"),
    ],
)
def test_the_limits_say_what_an_absence_does_to_this_form(groups, words):
    assert words in forms.absence(form(groups))


def test_only_averaged_votes_are_said_to_be_calibrated():
    assert "not calibrated after training" in forms.calibration(form([[0, 1], [2]]))
    assert "votes were calibrated" in forms.calibration(form([ALL, ALL], "average"))


def test_without_a_manifest_the_results_tell_what_sub_models_were_cut_for():
    results = {"class_groups": [ALL, ALL], "focus_groups": [[0], [1, 2]]}
    assert forms.form_of(results, None, {}).focus_groups == [[0], [1, 2]]
    assert forms.form_of({"class_groups": [[0], [1, 2]], "focus_groups": [[0], [1, 2]]}, None, {}).focus_groups is None


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [("seen", "all that occur in the training"), (7630, "the 7,630 most frequent"), (None, None)],
)
def test_the_card_says_which_words_sub_models_know(vocabulary, words):
    table = making_table({"prune": {"vocabulary": vocabulary}})
    assert ("| vocabulary |" in table) == (words is not None)
    assert words is None or words in table
