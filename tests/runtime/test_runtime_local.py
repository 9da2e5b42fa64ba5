# SPDX-License-Identifier: Apache-2.0
"""The local runtime: what an answer is, how it degrades, and what it refuses."""

import json
import logging
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import DataError, EDViTError, ManifestError, QuorumError
from edvit_hf.hardware.timing import quiet_options
from edvit_hf.runtime import EDViTRuntime
from support.tiny_ensemble import FEATURES, SIZE, write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    write_tiny_ensemble(folder, GROUPS)
    return folder


@pytest.fixture(scope="module")
def ensemble(root):
    return EDViTRuntime.from_pretrained(root, num_threads=1)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    write_tiny_ensemble(folder, GROUPS, broken=1)
    return folder


def pixels(batch_size=3, seed=0):
    return np.random.default_rng(seed).normal(size=(batch_size, 3, SIZE, SIZE)).astype(np.float32)


def by_hand(root, batch, present):
    """The same answer from the graphs alone, without the runtime."""
    features = []
    for index, there in enumerate(present):
        session = onnxruntime.InferenceSession(root / f"sub_models/{index:02d}/onnx/model.onnx")
        values = session.run(["features"], {"pixel_values": batch})[0]
        features.append(values if there else np.zeros_like(values))
    mask = np.tile(np.asarray(present, np.float32), (len(batch), 1))
    fusion = onnxruntime.InferenceSession(root / "onnx/fusion.onnx")
    logits = fusion.run(["logits"], {"features": np.concatenate(features, axis=1), "mask": mask})[0]
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


@given(present=st.lists(st.booleans(), min_size=3, max_size=3).filter(any), batch_size=st.integers(1, 4))
@settings(max_examples=12, deadline=None)
def test_an_answer_is_the_fusion_head_on_the_features_that_are_present(root, ensemble, present, batch_size):
    batch = pixels(batch_size)
    answer = ensemble.predict(batch, absent=[i for i, there in enumerate(present) if not there])
    np.testing.assert_allclose(answer.probabilities, by_hand(root, batch, present), atol=1e-6)
    assert answer.present == tuple(present)
    assert answer.degraded == (not all(present))
    assert [vote is not None for vote in answer.votes] == present
    assert [taken is not None for taken in answer.milliseconds] == present


def test_votes_are_probabilities_over_the_group_and_other(ensemble):
    answer = ensemble.predict(pixels(2))
    for group, vote in zip(GROUPS, answer.votes, strict=True):
        assert vote.shape == (2, len(group) + 1)
        np.testing.assert_allclose(vote.sum(axis=1), 1, atol=1e-6)
    assert answer.labels == [f"class_{i}" for i in answer.probabilities.argmax(axis=1)]
    assert sum(answer.milliseconds) <= answer.total_milliseconds


def test_a_sub_model_with_nan_features_counts_as_absent_and_is_logged(broken, caplog):
    ensemble = EDViTRuntime.from_pretrained(broken, num_threads=1)
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        answer = ensemble.predict(pixels())
    expected = ensemble.predict(pixels(), absent=[1])
    np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
    assert answer.failed == (1,)
    assert expected.failed == ()
    assert answer.degraded
    assert answer.present == (True, False, True)
    assert "sub-model 1" in caplog.text


def test_no_sub_model_left_is_an_error_that_says_so(ensemble, broken):
    with pytest.raises(EDViTError, match="No sub-model is present"):
        ensemble.predict(pixels(), absent=[0, 1, 2])
    with pytest.raises(EDViTError, match="No sub-model is present"):
        EDViTRuntime.from_pretrained(broken).predict(pixels(), absent=[0, 2])


@pytest.mark.parametrize("index", [-1, 3, 7])
def test_an_unknown_sub_model_is_named(ensemble, root, index):
    with pytest.raises(EDViTError, match=f"`absent` names sub-model {index}; this ensemble has 0 to 2"):
        ensemble.predict(pixels(), absent=[index])
    with pytest.raises(EDViTError, match=f"`sub_models` names sub-model {index}"):
        EDViTRuntime.from_pretrained(root, sub_models=[index])


def test_a_partial_load_answers_as_if_the_others_were_absent(root, ensemble):
    partial = EDViTRuntime.from_pretrained(root, sub_models=[2, 0], num_threads=1)
    assert partial.loaded == (0, 2)
    np.testing.assert_array_equal(
        partial.predict(pixels()).probabilities, ensemble.predict(pixels(), absent=[1]).probabilities
    )


def test_a_partial_load_needs_no_other_files(tmp_path):
    write_tiny_ensemble(tmp_path, GROUPS)
    (tmp_path / "sub_models/01/onnx/model.onnx").unlink()
    assert EDViTRuntime.from_pretrained(tmp_path, sub_models=[0, 2]).predict(pixels()).degraded
    with pytest.raises(ManifestError, match=r"01/onnx/model\.onnx"):
        EDViTRuntime.from_pretrained(tmp_path)


def test_a_precision_that_was_not_exported_names_those_there(root):
    assert EDViTRuntime.from_pretrained(root, precision="int8", sub_models=[0]).loaded == (0,)
    with pytest.raises(ManifestError, match=r"sub-model 1 has no int8 file.*fp32"):
        EDViTRuntime.from_pretrained(root, precision="int8")


def test_an_int8_file_of_another_profile_is_used_with_a_warning(root, caplog, monkeypatch):
    monkeypatch.setattr("edvit_hf.runtime.sessions.detect_profile", lambda: "raspberry-pi-5")
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        EDViTRuntime.from_pretrained(root, precision="int8", sub_models=[0])
    assert "raspberry-pi-5" in caplog.text
    assert "x86-avx2" in caplog.text


@pytest.mark.parametrize("file", ["sub_models/02/onnx/model.onnx", "onnx/fusion.onnx"])
def test_an_altered_file_is_refused(tmp_path, file):
    write_tiny_ensemble(tmp_path, GROUPS)
    content = bytearray((tmp_path / file).read_bytes())
    content[-20] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ManifestError, match=file):
        EDViTRuntime.from_pretrained(tmp_path)


def test_a_graph_that_breaks_the_promised_feature_size_is_refused(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, GROUPS)
    data = json.loads(manifest.to_json())
    for key in ("feature_mean", "feature_std"):
        data["sub_models"][0][key] = [1.0] * (FEATURES + 1)
    data["sub_models"][0]["feature_size"] = FEATURES + 1
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=f"features of size {FEATURES + 1}, the graph gives {FEATURES}"):
        EDViTRuntime.from_pretrained(tmp_path)


def test_a_graph_with_other_inputs_is_refused(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, GROUPS)
    data = json.loads(manifest.to_json())
    data["fusion"]["variants"][0] |= {
        key: data["sub_models"][0]["variants"][0][key] for key in ("file", "sha256", "bytes")
    }
    del data["sub_models"][0]["variants"][0]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ManifestError, match="the fusion head: expected a graph from features, mask"):
        EDViTRuntime.from_pretrained(tmp_path, sub_models=[1])


@pytest.mark.parametrize("shape", [(1, 3, SIZE, SIZE + 1), (3, SIZE, SIZE), (0, 3, SIZE, SIZE), (1, 1, SIZE, SIZE)])
def test_an_input_of_another_shape_is_refused(ensemble, shape):
    with pytest.raises(DataError, match="Expected pixel values of shape"):
        ensemble.predict(np.zeros(shape, np.float32))


def test_nan_pixels_are_the_inputs_fault_not_the_sub_models(ensemble):
    with pytest.raises(DataError, match="got 192 NaN or infinite"):
        ensemble.predict(np.full((1, 3, SIZE, SIZE), np.nan, np.float32))


def test_a_missing_folder_says_how_to_fetch_one(tmp_path):
    with pytest.raises(EDViTError, match=r"or the id of a Hub repository.*edvit pull"):
        EDViTRuntime.from_pretrained(tmp_path / "nobody" / "there")
    with pytest.raises(ManifestError, match="No manifest"):
        EDViTRuntime.from_pretrained(tmp_path)


def test_an_image_of_any_size_goes_through_the_transform(ensemble):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        ensemble(image, absent=[1]).probabilities, ensemble.predict(ensemble.transform(image), absent=[1]).probabilities
    )


def test_explain_equals_asking_without_each_sub_model(ensemble):
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    whole = ensemble(image)
    changes = ensemble.explain(image)[1]
    assert [change.index for change in changes] == [0, 1, 2]
    for change in changes:
        without = ensemble(image, absent=[change.index])
        np.testing.assert_allclose(change.probabilities, without.probabilities, atol=1e-7)
        assert change.labels == without.labels
        assert change.changed == [without.labels != whole.labels]


def test_explain_starts_from_the_sub_models_that_are_left_and_runs_each_of_them_once(ensemble, monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    expected = {i: ensemble(image, absent=[1, i]) for i in (0, 2)}
    runs, submit = [], ensemble.coordinator.engine.submit
    monkeypatch.setattr(
        ensemble.coordinator.engine, "submit", lambda index, request: runs.append(index) or submit(index, request)
    )
    answer, changes = ensemble.explain(image, absent=[1])
    assert runs == [0, 2]
    assert answer.present == (True, False, True)
    assert [change.index for change in changes] == [0, 2]
    for change in changes:
        np.testing.assert_allclose(change.probabilities, expected[change.index].probabilities, atol=1e-7)
    again = ensemble.explain(image, absent=[1])[1]
    assert [change.labels for change in again] == [change.labels for change in changes]
    assert ensemble.explain(image, absent=[0, 1])[1] == []
    with pytest.raises(EDViTError, match="`absent` names sub-model 5"):
        ensemble.explain(image, absent=[5])


def test_explain_names_no_change_when_a_single_sub_model_is_loaded(root):
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert EDViTRuntime.from_pretrained(root, sub_models=[1]).explain(image)[1] == []


def test_predict_without_equals_asking_anew_and_runs_each_sub_model_once(ensemble, monkeypatch):
    batch, ran = pixels(), []
    submit = ensemble.coordinator.engine.submit
    monkeypatch.setattr(
        ensemble.coordinator.engine, "submit", lambda index, request: ran.append(index) or submit(index, request)
    )
    subsets = [(), (0,), (1, 2), (2,)]
    answer, found = ensemble.predict_without(batch, subsets)
    assert sorted(ran) == [0, 1, 2]
    assert np.array_equal(answer.probabilities, found[0])
    for subset, probabilities in zip(subsets, found, strict=True):
        assert np.array_equal(probabilities, ensemble.predict(batch, absent=subset).probabilities)
    answer, (other,) = ensemble.predict_without(batch, [(0,)], absent=[1])
    assert answer.present == (True, False, True)
    assert np.array_equal(other, ensemble.predict(batch, absent=[0, 1]).probabilities)


def test_predict_without_refuses_sets_that_leave_nobody_and_unknown_sub_models(ensemble):
    with pytest.raises(QuorumError, match=r"\[0, 2\]"):
        ensemble.predict_without(pixels(), [(0, 2)], absent=[1])
    with pytest.raises(EDViTError, match="subsets"):
        ensemble.predict_without(pixels(), [(7,)])


def test_bytes_sent_are_shape_times_float32(ensemble):
    assert [ensemble.sent_bytes(i) for i in range(3)] == [FEATURES * 4] * 3


def test_threads_are_fixed_and_never_spin():
    options = quiet_options(3)
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_device_answers_without_torch_transformers_or_hub(root):
    code = (
        "import sys, numpy as np\n"
        "from edvit_hf import EDViTRuntime\n"
        f"answer = EDViTRuntime.from_pretrained({str(root)!r})(np.zeros((9, 9, 3), np.uint8))\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'onnx', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not answer.degraded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_file_that_fits_this_machine_is_named_where_another_is_asked_for(root, caplog, monkeypatch):
    from edvit_hf.runtime import sessions

    entry = EDViTRuntime.from_pretrained(root).manifest.sub_models[0]
    monkeypatch.setattr(sessions, "detect_profile", lambda: "raspberry-pi-5")
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        chosen = sessions.chosen_variants([entry], "int8", "x86-avx2")[
            0
        ]  # there is one, but not for these instructions
    assert chosen.name == "quint8_avx2"
    assert "this machine is of kind raspberry-pi-5, and quint8_avx2 is made for x86-avx2" in caplog.text
    assert "what fits: fp32, an int8 file that `edvit export DIR --profile raspberry-pi-5` would write" in caplog.text
    caplog.clear()
    monkeypatch.setattr(sessions, "detect_profile", lambda: "intel-n100")  # another kind with the same instructions
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        assert sessions.chosen_variants([entry], "int8", None)[0] == chosen
        assert sessions.chosen_variants([entry], "int8", "x86-avx2")[0] == chosen
        assert sessions.chosen_variants([entry], "fp32", "raspberry-pi-5")[0].name == "fp32"
    assert not caplog.text
