# SPDX-License-Identifier: Apache-2.0
"""Nothing is fetched that is longer than it may be: the Hub's word comes first, and what it sends is counted."""

import json

import pytest

from edvit_hf.errors import HubError, ManifestError
from edvit_hf.hub import client, pull
from edvit_hf.manifest import document
from edvit_hf.published.files import read_published
from support.hub_ensemble import REPO, pull_small, write_publishable
from support.hub_server import Fault

pytest_plugins = ["support.hub_fixtures"]

GRAPH = "sub_models/02/onnx/model.onnx"
MIB = 2**20


@pytest.mark.parametrize("file", [GRAPH, "sub_models/02/config.json", "preprocessor_config.json"])
def test_a_file_that_is_longer_on_the_hub_than_its_manifest_says_is_not_fetched(published, hub, tmp_path, file):
    published[0].put(file, bytes(3 * MIB))
    hub.requests.clear()
    with pytest.raises(HubError, match=rf"at most \d+ bytes of {file} from {REPO}, got {3 * MIB}"):
        pull_small(tmp_path / "pi", precision="fp32")
    assert not (tmp_path / "pi").exists()
    assert len([line for line in hub.seen("GET") if "cdn" in line or file in line]) <= 3  # asked, never again
    assert all(
        path.stat().st_size < MIB for path in tmp_path.rglob("*") if path.is_file() and "origin" not in str(path)
    )


def test_a_server_that_sends_more_than_it_said_is_left(published, hub, tmp_path):
    hub.faults.append(Fault("GET /cdn/", times=9, endless=400 * MIB))
    with pytest.raises(HubError, match="more than the Hub said"):
        pull_small(tmp_path / "pi", precision="fp32")
    assert hub.sent_beyond < 60 * MIB
    assert not (tmp_path / "pi").exists()


def test_a_manifest_longer_than_any_is_not_fetched(published, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("edvit_hf.hub.source.MAX_BYTES", MIB)
    published[0].put("manifest.json", b" " * (MIB + 1))
    with pytest.raises(HubError, match=rf"at most {MIB} bytes of manifest\.json"):
        pull_small(tmp_path / "pi")
    hub.faults.append(Fault("GET .*/manifest.json", times=9, endless=400 * MIB))
    published[0].put("manifest.json", b"{}")
    with pytest.raises(HubError, match="more than the Hub said"):
        pull_small(tmp_path / "pi")


@pytest.mark.parametrize("name", ["manifest.json", GRAPH])
def test_a_folder_is_held_to_the_same_sizes(tmp_path, monkeypatch, name):
    write_publishable(tmp_path / "origin")
    monkeypatch.setattr("edvit_hf.hub.source.MAX_BYTES", MIB)
    with (tmp_path / "origin" / name).open("ab") as file:
        file.truncate(2 * MIB)
    with pytest.raises(ManifestError, match=f"bytes, got {2 * MIB}|more than {MIB} bytes"):
        pull(str(tmp_path / "origin"), sub_models=[2], precision="fp32", output=tmp_path / "device")


def test_a_config_longer_than_any_is_not_fetched_for_a_plan(published, hub, monkeypatch):
    monkeypatch.setattr(client, "MAX_SMALL_BYTES", MIB)  # more than the manifest, whichever is looked at first
    published[0].put("config.json", b" " * (MIB + 1))
    hub.requests.clear()
    with pytest.raises(Exception, match=rf"at most {MIB} bytes of config\.json"):
        read_published(REPO)
    assert not hub.seen("GET .*config.json")


MANY = {
    "label_names": lambda data: data.update(label_names=["x"] * 100_001),
    "class_groups": lambda data: data.update(class_groups=[[0]] * 1001),
    "sub_models": lambda data: data.update(sub_models=data["sub_models"][:1] * 1001),
    "latency_protocols": lambda data: data.update(latency_protocols=[{}] * 1001),
    "content": lambda data: data.update(content={f"c{i}": {"sha256": "0" * 64, "bytes": 1} for i in range(20_001)}),
}


@pytest.mark.parametrize("what", MANY)
def test_more_of_anything_than_an_ensemble_has_is_refused_before_work_that_grows_faster(tmp_path, what):
    write_publishable(tmp_path)
    data = json.loads((tmp_path / "manifest.json").read_text())
    MANY[what](data)
    with pytest.raises(ManifestError, match=rf"`{what}`: expected at most"):
        document.Manifest.from_json(json.dumps(data))
