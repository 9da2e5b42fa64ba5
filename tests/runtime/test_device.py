# SPDX-License-Identifier: Apache-2.0
"""What a device's process holds: its share alone, its identity, answers equal to the local engine's, and refusals."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest

import edvit_hf
from edvit_hf.errors import DataError, EDViTError, ManifestError
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import EDViTRuntime, LocalEngine, UnavailableError
from edvit_hf.runtime.device import DeviceHost, preprocessing_hash
from edvit_hf.runtime.engines import LateError, VersionError
from edvit_hf.runtime.exchange import reason_of
from edvit_hf.tasks import TASKS
from edvit_hf.transforms.travelling import travelling
from support.device_shares import copy_share
from support.tiny_ensemble import SIZE, TASK_GROUPS, write_tiny_ensemble

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 9, 3), dtype=np.uint8)
SOURCES = {
    "image-classification": IMAGE,
    "audio-classification": np.sin(np.arange(4000, dtype=np.float32) / 5),
    "text-classification": "word3 word1 unheard-of word9",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    write_tiny_ensemble(folder, TASK_GROUPS)
    return folder


@pytest.fixture(scope="module")
def host(root):
    host = DeviceHost.load(root, num_threads=1)
    yield host
    host.close()


def version(host):
    return host.identity.content_hash


@pytest.mark.parametrize("task", TASKS)
def test_a_device_answers_what_travelled_as_the_local_engine_answers_what_was_prepared(tmp_path, task):
    write_tiny_ensemble(tmp_path, TASK_GROUPS, task=task)
    host = DeviceHost.load(tmp_path, num_threads=1)
    inputs = host.transform.inputs(SOURCES[task])
    local = LocalEngine.load(tmp_path, Manifest.load(tmp_path), num_threads=1)
    for index in range(3):
        own = local.submit(index, local.request(inputs)).result()
        for sent in (travelling(host.transform, inputs), inputs):
            response = host.run(index, version(host), "one", sent, 5000.0)
            assert (response.request_id, response.sub_model) == ("one", index)
            np.testing.assert_array_equal(response.features, own.features)
            np.testing.assert_array_equal(response.logits, own.logits)
        assert host.probe(index).content_hash == version(host)


def test_a_share_without_fusion_head_and_other_sub_models_is_enough_and_says_what_it_is(root, tmp_path):
    copy_share(root, tmp_path / "share", 0, file="model_quint8_avx2.onnx")
    host = DeviceHost.load(tmp_path / "share")
    manifest = Manifest.load(root)
    assert asdict(host.identity) == {
        "ensemble_id": "tiny",
        "content_hash": manifest.ensemble.content_hash,
        "preprocessing": preprocessing_hash(manifest),
        "sub_models": (0,),
        "package": edvit_hf.__version__,
        "python": host.identity.python,
        "inputs": {"pixel_values": "uint8"},
    }
    with EDViTRuntime.from_pretrained(root, precision="int8", sub_models=[0], profile="x86-avx2") as runtime:
        expected = runtime(IMAGE).vote_logits[0]
    sent = travelling(host.transform, host.transform.inputs(IMAGE))
    np.testing.assert_array_equal(host.run(0, version(host), "one", sent).logits, expected)
    with pytest.raises(UnavailableError, match=r"a device with sub-model 1, got one with \[0\]"):
        host.run(1, version(host), "one", sent)


def test_what_a_folder_lacks_is_told_with_what_it_holds(root, tmp_path):
    copy_share(root, tmp_path / "share", 1)
    with pytest.raises(ManifestError, match=r"sub_models/02/onnx/model.onnx .* got sub-model 1 as fp32"):
        DeviceHost.load(tmp_path / "share", sub_models=[1, 2])
    with pytest.raises(ManifestError, match="int8"):
        DeviceHost.load(tmp_path / "share", precision="int8")
    with pytest.raises(EDViTError, match="names sub-model 7"):
        DeviceHost.load(root, sub_models=[7])


def test_an_altered_file_or_processor_is_never_opened(root, tmp_path):
    for file in ("sub_models/01/onnx/model.onnx", "preprocessor_config.json"):
        share = copy_share(root, tmp_path / file.replace("/", "-"), 1)
        content = bytearray((share / file).read_bytes())
        content[len(content) // 2] ^= 1
        (share / file).write_bytes(content)
        with pytest.raises(ManifestError, match=file):
            DeviceHost.load(share)


def test_another_version_is_refused_before_anything_runs(host):
    with pytest.raises(VersionError, match=r"version 000000000000\.\.\. of the ensemble, got one with"):
        host.run(0, "0" * 64, "one", host.transform.inputs(IMAGE))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"pixel_values": np.zeros((1, 3, SIZE, SIZE + 1), np.uint8)},
        {"pixel_values": np.zeros((1, SIZE, SIZE, 3), np.uint8)},
        {"pixel_values": np.zeros((0, 3, SIZE, SIZE), np.float32)},
        {"pixel_values": np.full((1, 3, SIZE, SIZE), np.nan, np.float32)},
        {"input_ids": np.zeros((1, 4), np.int32)},
    ],
)
def test_inputs_that_cannot_be_run_are_the_senders_fault(host, inputs):
    with pytest.raises(DataError):
        host.run(0, version(host), "one", inputs)


def test_a_run_is_given_up_when_the_budget_is_over(host):
    class Endless:
        def run(self, names, feeds, options):
            while not options.terminate:
                threading.Event().wait(0.002)
            raise RuntimeError("terminated")

    own = host._engine.sessions
    host._engine.sessions = {**own, 1: Endless()}
    try:
        with pytest.raises(LateError, match="sub-model 1 to answer within 30 ms"):
            host.run(1, version(host), "one", host.transform.inputs(IMAGE), 30.0)
    finally:
        host._engine.sessions = own
    assert host.run(1, version(host), "two", host.transform.inputs(IMAGE), 5000.0).request_id == "two"


def test_several_threads_get_the_same_answers(host):
    inputs = host.transform.inputs(IMAGE)
    expected = host.run(2, version(host), "one", inputs).logits
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda n: host.run(2, version(host), str(n), inputs), range(40))
        for number, response in enumerate(found):
            assert response.request_id == str(number)
            np.testing.assert_array_equal(response.logits, expected)


def test_a_closed_host_is_unavailable(root):
    host = DeviceHost.load(root, sub_models=[0])
    host.close()
    with pytest.raises(UnavailableError):
        host.run(0, version(host), "one", host.transform.inputs(IMAGE))


def test_what_a_device_says_of_its_failure_becomes_the_reason_in_the_answer():
    told = {VersionError("v2"): "version", LateError("late"): "deadline", UnavailableError("gone"): "unavailable"}
    assert [reason_of(0, error) for error in told] == list(told.values())
    assert reason_of(0, ValueError("odd")) == "failed"
