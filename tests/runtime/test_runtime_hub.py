# SPDX-License-Identifier: Apache-2.0
"""Loading by a Hub id: what is needed is fetched once, checked, and used again without a connection."""

import logging

import numpy as np
import pytest

from edvit_hf.errors import HubError, ManifestError
from edvit_hf.hub.pulling import CACHE_VARIABLE, ensemble_folder
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import EDViTRuntime
from support.hub_ensemble import REPO, files_of, write_publishable
from support.hub_server import Fault
from support.hub_store import LARGE_SUFFIXES, Blob

pytest_plugins = ["support.hub_fixtures"]
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 9, 3), dtype=np.uint8)


@pytest.fixture
def published(hub, tmp_path, monkeypatch):
    """The repository and the local folder it was made from; what is fetched goes to a folder of the test's."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    root = tmp_path / "origin"
    write_publishable(root, profiles=("x86-avx2", "raspberry-pi-5"))
    return hub.create(REPO, files_of(root)), root


def load(repo=REPO, **options):
    return EDViTRuntime.from_pretrained(repo, num_threads=1, **options)


def test_the_files_of_this_precision_and_hardware_are_fetched_and_no_others(published):
    folder = ensemble_folder(REPO, precision="int8", profile="raspberry-pi-5", sub_models=[0, 2])
    graphs = {name for name in files_of(folder) if name.endswith(".onnx")}
    assert graphs == {*(f"sub_models/{index:02d}/onnx/model_qint8_arm64.onnx" for index in (0, 2)), "onnx/fusion.onnx"}


@pytest.mark.parametrize("options", [{}, {"sub_models": [0, 2]}])
def test_a_repository_answers_as_the_folder_it_was_made_from(published, options):
    answer, expected = load(**options)(PICTURE), load(published[1], **options)(PICTURE)
    np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
    assert answer.missing == expected.missing


def test_what_is_there_is_not_fetched_again_and_serves_without_a_connection(published, hub, monkeypatch, caplog):
    expected = load()(PICTURE).probabilities
    hub.requests.clear()
    load()
    assert not [line for line in hub.requests if ".onnx" in line]
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        np.testing.assert_array_equal(load()(PICTURE).probabilities, expected)
    assert f"using what was fetched of {REPO} before" in caplog.text
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        load(revision="v2")


def test_a_commit_can_be_pinned(published, tmp_path):
    repository, root = published
    old, expected = repository.branches["main"], Manifest.load(root)
    newer = write_publishable(tmp_path / "newer", profiles=("x86-avx2", "raspberry-pi-5"), seed=1)
    repository.commit(
        {path: Blob(data, path.endswith(LARGE_SUFFIXES)) for path, data in files_of(tmp_path / "newer").items()}
    )
    assert newer.ensemble != expected.ensemble
    assert load().manifest.ensemble == newer.ensemble
    assert load(revision=old).manifest.ensemble == expected.ensemble


def test_a_repository_that_is_not_there_or_sends_damage_is_our_error(published, hub, tmp_path):
    with pytest.raises(HubError, match="lab/nothing"):
        load("lab/nothing")
    hub.faults.append(Fault("GET /cdn/", times=50, damage=True))
    with pytest.raises(ManifestError):
        load()
    assert not list((tmp_path / "cache").glob("**/manifest.json"))
