# SPDX-License-Identifier: Apache-2.0
"""The text baseline: it learns, it is the same every time, its size and cost are what it says, bad texts are named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer

from edvit_hf.errors import CheckpointError, DataError
from edvit_hf.evaluation import TfidfBaseline
from edvit_hf.evaluation.tfidf import COSTS, MAX_NGRAMS, _count, _weigh
from edvit_hf.probabilities import expected_calibration_error

WORDS = [["goal", "match", "team"], ["star", "planet", "orbit"], ["vote", "party", "law"]]
NOISE = ["the", "a", "of", "some", "very", "old", "new"]


def sentences(count, *, seed=0, classes=(0, 1, 2), noise=6):
    """Texts of classes that share all but one or two of their words."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, size=count)
    texts = []
    for label in labels:
        own = random.choice(WORDS[label], size=random.integers(1, 3))
        texts.append(" ".join(random.permutation([*own, *random.choice(NOISE, size=noise)])))
    return texts, labels


@pytest.fixture(scope="module")
def fitted():
    return TfidfBaseline.fit(*sentences(300), *sentences(90, seed=1))


def test_it_learns_what_chance_does_not(fitted):
    texts, labels = sentences(200, seed=2)
    logits = fitted.predict_logits(texts)
    assert logits.dtype == np.float32
    assert logits.shape == (200, 3)
    assert (logits.argmax(axis=1) == labels).mean() > 0.95
    assert fitted.cost in COSTS
    assert fitted.max_ngram in MAX_NGRAMS
    assert f"{len(fitted.terms):,} words" in fitted.describe()
    assert f"C = {fitted.cost:g}, the best of 8" in fitted.describe()


def test_word_order_counts_only_with_word_pairs():
    texts, labels = ["dog bites man", "man bites dog"] * 50, [0, 1] * 50
    model = TfidfBaseline.fit(texts, labels, texts, labels)
    assert model.max_ngram == 2
    assert model.validation_accuracy == 1.0


def test_validation_texts_choose_but_are_never_learnt_from(fitted):
    texts, labels = sentences(300)
    other = TfidfBaseline.fit(texts, labels, ["zebra goal"], [0])
    assert "zebra" not in other.terms
    if (other.max_ngram, other.cost) == (fitted.max_ngram, fitted.cost):
        ratio = other.weights / np.where(fitted.weights == 0, 1, fitted.weights)
        np.testing.assert_allclose(ratio[fitted.weights != 0], ratio[fitted.weights != 0][0], rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_any_text_gets_finite_logits_and_unknown_words_the_bias(fitted, texts):
    logits = fitted.predict_logits(texts)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(fitted.predict_logits([""])[0], fitted.bias)
    np.testing.assert_allclose(logits, np.concatenate([fitted.predict_logits([text]) for text in texts]), atol=1e-5)


def test_its_inputs_are_those_of_scikit_learn(fitted):
    texts, _ = sentences(300)
    theirs = TfidfVectorizer(
        ngram_range=(1, fitted.max_ngram), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32
    )
    expected = theirs.fit_transform(texts)
    assert tuple(theirs.get_feature_names_out()) == fitted.terms
    ours = _weigh(_count(texts, fitted.terms, fitted.max_ngram), fitted.idf)
    assert abs(ours - expected).max() < 1e-5


def test_fitting_twice_gives_the_same_and_saving_keeps_every_bit(fitted, tmp_path):
    again = TfidfBaseline.fit(*sentences(300), *sentences(90, seed=1))
    texts, _ = sentences(50, seed=3)
    np.testing.assert_array_equal(again.predict_logits(texts), fitted.predict_logits(texts))
    fitted.save(tmp_path / "tfidf")
    assert sorted(path.name for path in (tmp_path / "tfidf").iterdir()) == ["model.safetensors", "tfidf.json"]
    loaded = TfidfBaseline.load(tmp_path / "tfidf")
    np.testing.assert_array_equal(loaded.predict_logits(texts), fitted.predict_logits(texts))
    for name in ("terms", "max_ngram", "cost", "validation_accuracy", "num_parameters", "num_bytes"):
        assert getattr(loaded, name) == getattr(fitted, name)


def test_size_and_cost_are_counted(fitted, tmp_path):
    terms = len(fitted.terms)
    assert fitted.num_parameters == terms + 3 * terms + 3
    assert fitted.num_bytes == 4 * fitted.num_parameters
    fitted.save(tmp_path / "tfidf")
    stored = (tmp_path / "tfidf/model.safetensors").stat().st_size
    assert fitted.num_bytes <= stored <= fitted.num_bytes + 512
    # Two known different words in the first text, none in the second; three classes.
    known = fitted.macs_per_item(["the goal the unheard", "unheard"]) / 3
    assert known == (2 + sum(pair in fitted.terms for pair in ("the goal", "goal the"))) / 2


@pytest.mark.parametrize("limit", [7, 40, 60])
def test_a_limit_keeps_the_terms_that_tell_the_classes_apart(limit):
    texts, labels = sentences(300)
    model = TfidfBaseline.fit(texts, labels, texts, labels, max_parameters=limit)
    assert limit - 4 < model.num_parameters <= limit
    if limit == 40:  # nine terms
        single = {word for term in model.terms for word in term.split()}
        assert single & {word for own in WORDS for word in own}
        assert model.validation_accuracy > 0.9, "nine words tell the classes apart"


def test_the_softmax_of_its_logits_can_be_read_as_probabilities():
    random = np.random.default_rng(0)
    texts, labels = sentences(2400, noise=3)
    labels = np.where(random.random(2400) < 0.3, random.integers(0, 3, 2400), labels)  # three in ten are arbitrary
    model = TfidfBaseline.fit(texts[:800], labels[:800], texts[800:1400], labels[800:1400])
    logits = model.predict_logits(texts[1400:]).astype(np.float64)
    assert np.ptp(logits) > 1, "no flat guess"
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert expected_calibration_error(shares / shares.sum(axis=1, keepdims=True), labels[1400:], 5) < 0.08


@pytest.mark.parametrize("classes", [(0, 1), (1, 2)])
def test_classes_without_a_training_text_are_never_answered_and_two_are_enough(classes):
    texts, labels = sentences(200, classes=classes)
    model = TfidfBaseline.fit(texts, labels, *sentences(60, seed=1), num_labels=3)
    logits = model.predict_logits(sentences(90, seed=2)[0])
    assert np.isfinite(logits).all()
    assert set(logits.argmax(axis=1)) == set(classes)
    assert (model.predict_logits(texts).argmax(axis=1) == labels).mean() > 0.95


@pytest.mark.parametrize("text", ["", " ", "goal " * 200_000, "Ünïcödé 日本語 العربية", "a\x00b", "\ud800"])
def test_odd_texts_are_read(fitted, text):
    assert np.isfinite(fitted.predict_logits([text])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "at least one"),
        ({"texts": "one string"}, "got str"),
        ({"texts": [[1, 2], [3]], "labels": [0, 1]}, "not token ids"),
        ({"texts": ["goal", "star"], "labels": [0, 0]}, "at least two classes"),
        ({"texts": ["goal"], "labels": [0, 1]}, "one whole number per training text"),
        ({"texts": ["goal", "star"], "labels": [0.0, 1.0]}, "one whole number per training text"),
        ({"texts": ["", "..."], "labels": [0, 1]}, "texts with words in them"),
        ({"validation_labels": [7, 0, 1]}, r"validation labels in 0\.\.2"),
        ({"validation_texts": [], "validation_labels": []}, "validation texts"),
        ({"max_parameters": 6}, "need 7 for a single term"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(change, message):
    good = {"texts": ["goal", "star", "vote"], "labels": [0, 1, 2]}
    good |= {"validation_texts": good["texts"], "validation_labels": good["labels"], "num_labels": 3}
    with pytest.raises(DataError, match=message):
        TfidfBaseline.fit(**{**good, **change})


def test_a_damaged_folder_is_refused(fitted, tmp_path):
    with pytest.raises(CheckpointError, match="Fit and save it again"):
        TfidfBaseline.load(tmp_path / "nowhere")
    fitted.save(tmp_path / "tfidf")
    arrays = load_file(tmp_path / "tfidf/model.safetensors")
    save_file({**arrays, "idf": arrays["idf"][1:]}, tmp_path / "tfidf/model.safetensors")
    with pytest.raises(CheckpointError, match="terms, but idf"):
        TfidfBaseline.load(tmp_path / "tfidf")
    for name, value in (("idf", np.nan), ("weights", np.inf), ("bias", -np.inf)):
        spoilt = arrays[name].copy()
        spoilt.flat[0] = value
        save_file({**arrays, name: spoilt}, tmp_path / "tfidf/model.safetensors")
        with pytest.raises(CheckpointError, match=f"`{name}` .* not finite"):
            TfidfBaseline.load(tmp_path / "tfidf")
    save_file(arrays, tmp_path / "tfidf/model.safetensors")
    path = tmp_path / "tfidf/tfidf.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 9}))
    with pytest.raises(CheckpointError, match="schema_version 9, expected 1"):
        TfidfBaseline.load(tmp_path / "tfidf")
