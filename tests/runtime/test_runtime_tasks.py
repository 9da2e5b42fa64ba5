# SPDX-License-Identifier: Apache-2.0
"""The local runtime on sounds and texts: from the raw input to an answer, texts of any length, and what it refuses."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import DataError, ManifestError
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.tasks import GRAPH_INPUTS, MAIN_INPUT, NEEDED_PROCESSOR_FILES, TASKS
from support.tiny_ensemble import (
    MAX_TOKENS,
    NUM_FRAMES,
    NUM_MEL_BINS,
    SIZE,
    WORDS,
    bless_processor,
    write_tiny_ensemble,
)

GROUPS = [[0, 3], [1], [2, 4]]
SHAPES = {
    "image-classification": (3, SIZE, SIZE),
    "audio-classification": (NUM_FRAMES, NUM_MEL_BINS),
    "text-classification": (7,),
}
SOURCES = {
    "image-classification": np.zeros((20, 9, 3), np.uint8),
    "audio-classification": np.sin(np.arange(4000, dtype=np.float32) / 5),
    "text-classification": "word3 word1 unheard-of word9",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with an ensemble for each task."""
    found = {}
    for task in TASKS:
        found[task] = tmp_path_factory.mktemp(task)
        write_tiny_ensemble(found[task], GROUPS, task=task)
    return found


@pytest.fixture(scope="module")
def ensembles(folders):
    return {task: EDViTRuntime.from_pretrained(folder, num_threads=1) for task, folder in folders.items()}


def batch(task, size=3, seed=0):
    rng = np.random.default_rng(seed)
    if task != "text-classification":
        return {MAIN_INPUT[task]: rng.normal(size=(size, *SHAPES[task])).astype(np.float32)}
    lengths = rng.integers(1, 8, size)
    mask = (np.arange(7) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(1, len(WORDS), mask.shape) * mask, "attention_mask": mask}


def features_by_hand(folder, index, inputs):
    session = onnxruntime.InferenceSession(folder / f"sub_models/{index:02d}/onnx/model.onnx")
    return session.run(["features"], inputs)[0]


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_comes_from_what_every_graph_gives_for_these_inputs(folders, ensembles, task):
    inputs, ensemble = batch(task), ensembles[task]
    answer, joined = ensemble._answer(inputs, [1], None)
    for index, columns in enumerate(ensemble._fusion.columns["features"]):
        expected = features_by_hand(folders[task], index, inputs)
        np.testing.assert_allclose(joined["features"][:, columns], 0 if index == 1 else expected, atol=1e-6)
    assert answer.present == (True, False, True)
    assert answer.probabilities.shape == (3, 5)
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_the_raw_input_goes_through_the_transform(ensembles, task):
    ensemble, source = ensembles[task], SOURCES[task]
    assert ensemble.task == ensemble.transform.task == task
    prepared = ensemble.transform.inputs(source)
    assert set(prepared) == set(GRAPH_INPUTS[task])
    answer = ensemble(source)
    np.testing.assert_array_equal(answer.probabilities, ensemble.predict(prepared).probabilities)
    explained, without = ensemble.explain(source)
    np.testing.assert_array_equal(explained.probabilities, answer.probabilities)
    assert [change.index for change in without] == [0, 1, 2]


@pytest.mark.parametrize("task", TASKS)
def test_an_array_alone_is_the_main_input(ensembles, task):
    inputs = batch(task)
    if task == "text-classification":
        inputs["attention_mask"][:] = 1
    answer = ensembles[task].predict(inputs[MAIN_INPUT[task]])
    np.testing.assert_array_equal(answer.probabilities, ensembles[task].predict(inputs).probabilities)


def test_the_shape_of_an_input_is_that_of_the_graphs(ensembles):
    shapes = {task: ensemble.input_shape for task, ensemble in ensembles.items()}
    assert shapes == {**SHAPES, "text-classification": (None,)}


@settings(max_examples=20, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS[4:]), min_size=1, max_size=30), padding=st.integers(0, 5))
def test_a_text_of_any_length_is_answered_and_padding_changes_nothing(ensembles, words, padding):
    ensemble = ensembles["text-classification"]
    answer = ensemble(" ".join(words))
    prepared = ensemble.transform.inputs(" ".join(words))
    assert prepared["input_ids"].shape[1] == min(len(words) + 2, MAX_TOKENS)
    padded = {name: np.pad(values, ((0, 0), (0, padding))) for name, values in prepared.items()}
    np.testing.assert_allclose(ensemble.predict(padded).probabilities, answer.probabilities, atol=1e-6)


@pytest.mark.parametrize("text", ["", "   ", "😀", "unheard-of", "[CLS] [SEP]"])
def test_a_text_of_which_nothing_is_known_is_refused_but_what_is_prepared_is_answered(ensembles, text):
    """A guess looks like any other answer. Whoever measures on a data set hands over prepared rows, all of them."""
    ensemble = ensembles["text-classification"]
    refusals = [outcome.error for outcome in ensemble.batch(["word1", text, "word2"])]
    assert [refusals[0], refusals[2]] == [None, None]
    refusals += [outcome.error for outcome in ensemble.stream([text])]
    for ask in (ensemble, ensemble.explain):
        with pytest.raises(DataError) as refused:
            ask(text)
        refusals.append(refused.value)
    messages = {str(error) for error in refusals if error is not None}
    assert len(messages) == 1
    assert "Expected a text with at least one word or sign that the tokenizer knows" in messages.pop()
    assert not ensemble.predict(ensemble.transform.inputs(text)).degraded


def test_the_mask_decides_which_tokens_count(ensembles):
    ensemble = ensembles["text-classification"]
    ids = np.array([[2, 9, 11, 3]])
    masked = {"input_ids": ids, "attention_mask": np.array([[1, 1, 0, 0]])}
    got = ensemble.predict(masked).probabilities
    np.testing.assert_allclose(got, ensemble.predict(ids[:, :2]).probabilities, atol=1e-6)
    assert np.abs(got - ensemble.predict(ids).probabilities).max() > 1e-4


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_whole_numbers_of_any_type_are_token_numbers(ensembles, dtype):
    ids = np.array([[2, 9, 3]], dtype)
    expected = ensembles["text-classification"].predict(ids.astype(np.int64)).probabilities
    np.testing.assert_array_equal(ensembles["text-classification"].predict(ids).probabilities, expected)


@pytest.mark.parametrize("task", TASKS)
def test_other_names_and_shapes_are_refused(ensembles, task):
    inputs, main = batch(task), MAIN_INPUT[task]
    for wrong in ({}, {"values": inputs[main]}, {**inputs, "labels": inputs[main]}):
        with pytest.raises(DataError, match=f"Expected the inputs {main}"):
            ensembles[task].predict(wrong)
    for values in (inputs[main][:0], inputs[main][0], inputs[main][..., None], inputs[main][..., :0]):
        with pytest.raises(DataError, match=r"of shape \(B, "):
            ensembles[task].predict(values)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_spectrogram_that_is_not_finite_is_refused(ensembles, value):
    values = batch("audio-classification")["input_values"]
    values[1, 2, 3] = value
    with pytest.raises(DataError, match="Expected finite spectrograms, got 1 NaN or infinite"):
        ensembles["audio-classification"].predict(values)


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": np.full((3, 7), -1)},  # a graph would take it for the last row of the table
        {"input_ids": np.ones((3, 7))},
        {"attention_mask": np.ones((3, 6), np.int64)},
        {"attention_mask": np.full((3, 7), 2)},
        {"attention_mask": np.ones((3, 7))},
        {"attention_mask": np.eye(3, 7, k=1, dtype=np.int64)},  # the first token is the one that answers
        {"attention_mask": np.array([[1, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])},
        {"attention_mask": np.array([[True, False, True, True, True, True, True]] * 3)},
    ],
)
def test_token_numbers_and_masks_that_mean_nothing_are_refused(ensembles, change):
    with pytest.raises(DataError, match="Expected token numbers of at least 0 and a mask"):
        ensembles["text-classification"].predict({**batch("text-classification"), **change})


def test_a_token_beyond_the_vocabulary_is_refused_by_our_own_error(ensembles):
    with pytest.raises(DataError, match="A token number beyond the vocabulary"):
        ensembles["text-classification"].predict(np.array([[2, len(WORDS), 3]]))


def test_graphs_of_another_task_are_refused(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, GROUPS, task="audio-classification")
    replace(manifest, ensemble=replace(manifest.ensemble, task="text-classification")).save(tmp_path)
    with pytest.raises(ManifestError, match="expected a graph from input_ids, attention_mask to features, logits"):
        EDViTRuntime.from_pretrained(tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_an_ensemble_without_what_prepares_its_inputs_is_refused(tmp_path, task):
    manifest = write_tiny_ensemble(tmp_path, GROUPS, task=task)
    (tmp_path / manifest.preprocessing).unlink()
    with pytest.raises(ManifestError, match=f"{manifest.preprocessing} is listed in the manifest but missing"):
        EDViTRuntime.from_pretrained(tmp_path)
    bless_processor(tmp_path)
    with pytest.raises(DataError, match=manifest.preprocessing):
        EDViTRuntime.from_pretrained(tmp_path)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NEEDED_PROCESSOR_FILES)
@pytest.mark.parametrize("how", ["file", "link"])
def test_a_file_that_prepares_inputs_and_is_covered_by_no_hash_is_refused(tmp_path, task, name, how):
    write_tiny_ensemble(tmp_path / "e", GROUPS, task=task)
    path, aside = tmp_path / "e" / name, tmp_path / "aside"
    if path.exists():
        path.rename(aside)
    else:
        aside.write_text('{"pad_token": "x", "model_max_length": 2, "do_rescale": false}')
    bless_processor(tmp_path / "e")
    path.symlink_to(aside) if how == "link" else path.write_bytes(aside.read_bytes())
    with pytest.raises(ManifestError, match=rf"Expected no {name} in .*under the same content hash"):
        EDViTRuntime.from_pretrained(tmp_path / "e")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["config.json", "sub_models/preprocessor_config.json", "special_tokens_map.json"])
def test_a_manifest_that_names_another_file_for_preparing_inputs_is_refused(tmp_path, task, name):
    replace(write_tiny_ensemble(tmp_path, GROUPS, task=task), preprocessing=name).save(tmp_path)
    with pytest.raises(ManifestError, match=rf"`preprocessing`.*got '{name}'"):
        EDViTRuntime.from_pretrained(tmp_path)
