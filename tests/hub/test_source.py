# SPDX-License-Identifier: Apache-2.0
"""What was fetched before serves while the Hub is out of reach, and only then."""

import logging

import pytest

from edvit_hf.errors import HubError
from edvit_hf.hub.client import fetch_matching
from edvit_hf.hub.pulling import CACHE_VARIABLE, ensemble_folder
from edvit_hf.hub.source import is_hub_id
from support.hub_ensemble import REPO, files_of, write_publishable
from support.hub_server import Fault

pytest_plugins = ["support.hub_fixtures"]
OPTIONS = {"precision": "int8", "profile": "raspberry-pi-5", "sub_models": [1]}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def test_a_hub_that_cannot_be_reached_is_done_without(published, hub, waits, caplog):
    folder = ensemble_folder(REPO, **OPTIONS)
    before = files_of(folder)
    hub.faults.append(Fault(".", times=999, cut=True))
    with caplog.at_level(logging.WARNING, logger="edvit_hf"):
        assert ensemble_folder(REPO, **OPTIONS) == folder
    assert files_of(folder) == before
    assert f"using what was fetched of {REPO} before" in caplog.text
    with pytest.raises(HubError, match="the connection failed"):
        ensemble_folder(REPO, **{**OPTIONS, "sub_models": [0]})


def test_a_version_that_lacks_what_is_wanted_is_not_replaced_by_an_older_one(published, tmp_path):
    """Nor is a file for one kind of hardware given to another that asks for its own."""
    repository, _ = published
    ensemble_folder(REPO, **OPTIONS)
    with pytest.raises(HubError, match="Did you mean `raspberry-pi-5`"):
        ensemble_folder(REPO, **{**OPTIONS, "profile": "raspberry-pi-7"})
    newer = tmp_path / "newer"
    write_publishable(newer, profiles=("x86-avx2",), seed=1)
    for path, data in files_of(newer).items():
        repository.put(path, data)
    with pytest.raises(HubError, match="Expected a file of sub-model 1 for raspberry-pi-5"):
        ensemble_folder(REPO, **OPTIONS)


def test_a_kind_of_hardware_that_nobody_knows_costs_no_graph(published, hub):
    hub.requests.clear()
    with pytest.raises(HubError, match="Did you mean `raspberry-pi-5`"):
        ensemble_folder(REPO, profile="raspbery-pi-5")
    assert hub.requests
    assert not [line for line in hub.requests if ".onnx" in line]


@pytest.mark.parametrize("status", [403, 503])
def test_a_hub_that_refuses_is_heard(published, hub, waits, status):
    ensemble_folder(REPO, **OPTIONS)
    hub.faults.append(Fault("GET /api/models/lab/tiny", times=999, status=status))
    with pytest.raises(HubError) as refused:
        ensemble_folder(REPO, **OPTIONS)
    assert refused.value.status == status


def test_files_by_name_come_through_faults_into_the_cache_and_serve_without_a_connection(
    published, hub, waits, monkeypatch
):
    hub.faults.append(Fault("GET /api/models/lab/tiny", status=503))
    folder = fetch_matching(REPO, ["config.json", "*/config.json", "absent.json"])
    assert waits
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"config.json"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_matching(REPO, ["config.json"]) == folder
    with pytest.raises(HubError, match="fetching config"):
        fetch_matching("lab/other", ["config.json"])


@pytest.mark.parametrize(
    "text", ["a/../b", "a--b/c", "../a", "/a", "a/b/c", "-x", "https://hf.co/a/b", "", "ü/a", "a b"]
)
def test_what_leads_elsewhere_is_no_hub_id(text):
    assert not is_hub_id(text)
    assert is_hub_id("gpt2") > is_hub_id("gpt2", with_owner=True)
    assert is_hub_id("lab/tiny-1.0_x", with_owner=True)
