# SPDX-License-Identifier: Apache-2.0
"""The Space: an ensemble of the Hub by its name, without a token, bounded, and every refusal one sentence."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from answers import ensembles, opening, snippets
from answers.opening import VisitorError
from support.hub_ensemble import files_of, write_publishable
from support.hub_server import Fault

pytest_plugins = ["support.hub_fixtures"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """Nothing open yet, as in a Space, and all temporary folders where the test sees them."""
    ensembles.openings.clear()
    monkeypatch.setenv(ensembles.SPACE_VARIABLE, "ada/space")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield
    ensembles.openings.clear()


@pytest.fixture
def files(tmp_path):
    root = tmp_path / "origin"
    write_publishable(root)
    return files_of(root)


def refusal(source):
    with pytest.raises(VisitorError) as caught:
        ensembles.open_other(source)
    sentence = str(caught.value)
    assert "Expected" not in sentence
    assert "http" not in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("address", ["lab/tiny", " https://huggingface.co/lab/tiny/ ", "hf.co/lab/tiny"])
def test_a_repository_opens_by_its_name_or_the_address_of_its_page(hub, files, tmp_path, address):
    hub.create("lab/tiny", files)
    opened = ensembles.open_other(address)
    assert (opened.title, len(opened.devices)) == ("lab/tiny", 3)
    assert opened.runtime.predict({"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}).labels
    assert 'from_pretrained("lab/tiny")' in opened.code[snippets.RUNTIME]
    assert "edvit predict lab/tiny photo.png" in opened.code[snippets.COMMANDS]
    assert snippets.TRANSFORMERS in opened.code, "the repository holds the weights too"
    assert opened.card.startswith("# A tiny ensemble")
    assert "assets/accuracy.png" not in opened.card
    assert opened.license == "apache-2.0"
    assert [model.name for model in opened.models][-1] == "teacher"
    asked = len(hub.requests)
    assert ensembles.open_other(address) is ensembles.open_named(opened.name) is opened
    assert len(hub.requests) == asked, "what is open is not fetched again"
    assert list((tmp_path / "temporary").iterdir()) == [], "nothing stays on the disk"
    graphs = hub.seen(r"GET .*\.onnx")
    assert not [line for line in graphs if "int8" in line], "only what is run is fetched"
    assert not hub.seen(r"GET .*\.(safetensors|py)"), "never weights or code"


def test_the_token_of_the_pages_owner_opens_nothing_for_visitors(hub, files):
    hub.create("lab/secret", files, private=True)
    assert "no public repository named lab/secret" in refusal("lab/secret")


def test_a_repository_that_there_is_not(hub):
    assert "no public repository named lab/absent" in refusal("lab/absent")


def test_a_repository_that_is_no_ensemble(hub):
    hub.create("lab/other", {"config.json": b"{}", "model.safetensors": b"x"})
    assert "no ensemble of edvit_hf" in refusal("lab/other")


def test_what_is_too_large_is_refused_before_any_graph_is_fetched(hub, files, monkeypatch):
    hub.create("lab/tiny", files)
    monkeypatch.setattr(opening, "MAX_BYTES", 3000)
    sentence = refusal("lab/tiny")
    assert "more than the 0 MiB" in sentence
    assert "edvit space run" in sentence
    assert not hub.seen(r"GET .*\.onnx")


def test_a_manifest_that_makes_itself_small_is_not_believed(hub, files, monkeypatch):
    """The graph on the Hub is larger than its manifest says; only its listing tells."""
    large = next(name for name in files if name.endswith("onnx/model.onnx"))
    files[large] = files[large] + bytes(200_000)
    hub.create("lab/liar", files)
    monkeypatch.setattr(opening, "MAX_BYTES", 100_000)
    assert "MiB" in refusal("lab/liar")
    assert not hub.seen(r"GET .*\.onnx")


def test_a_giant_manifest_is_not_fetched(hub, files, monkeypatch):
    hub.create("lab/tiny", files)
    monkeypatch.setattr(opening, "MAX_SMALL_BYTES", 100)
    assert "cannot be opened" in refusal("lab/tiny")
    assert not hub.seen(r"GET .*manifest\.json")


@pytest.mark.parametrize(
    "broken", ["manifest.json", "sub_models/00/onnx/model.onnx", "onnx/fusion.onnx", "preprocessor_config.json"]
)
def test_a_damaged_or_missing_file(hub, files, tmp_path, broken):
    hub.create("lab/damaged", {**files, broken: files[broken][:-20]})
    assert "file is missing or damaged" in refusal("lab/damaged")
    del files[broken]
    hub.create("lab/missing", files)
    part = "no ensemble of edvit_hf" if broken == "manifest.json" else "file is missing or damaged"
    assert part in refusal("lab/missing")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_manifest_that_leads_out_of_the_folder(hub, files, tmp_path):
    data = json.loads(files["manifest.json"])
    data["sub_models"][0]["variants"][0]["file"] = "../../evil.onnx"
    hub.create("lab/evil", {**files, "manifest.json": json.dumps(data).encode()})
    assert "cannot be opened" in refusal("lab/evil")
    assert not list(tmp_path.rglob("evil*"))


def test_results_and_card_may_be_missing(hub, files):
    for name in ("results.json", "README.md", "config.json"):
        files.pop(name, None)
    hub.create("lab/bare", files)
    opened = ensembles.open_other("lab/bare")
    assert (opened.card, opened.absent) == ("", ())
    assert [model.name for model in opened.models] == ["ensemble"]
    assert snippets.TRANSFORMERS not in opened.code


def test_a_hub_in_trouble_is_said_and_the_next_try_works(hub, files, waits):
    hub.create("lab/tiny", files)
    hub.faults.append(Fault("/api/models/lab/tiny", times=99, status=503))
    assert "busy or in trouble" in refusal("lab/tiny")
    assert sum(waits) <= 2, "somebody waits for the page"
    hub.faults.clear()
    assert ensembles.open_other("lab/tiny").title == "lab/tiny"


def test_without_a_connection(hub, monkeypatch, waits):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached from here" in refusal("lab/tiny")
    assert sum(waits) <= 2, "somebody waits for the page"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached from here" in refusal("lab/tiny")


def test_in_a_space_a_name_never_opens_a_folder_beside_the_page(hub, files, monkeypatch, tmp_path):
    for name, data in files.items():
        path = tmp_path / "lab" / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    assert "no public repository" in refusal("lab/here")
    assert Path("lab/here/manifest.json").is_file()
