# SPDX-License-Identifier: Apache-2.0
"""Names from files become paths only if every system reads them as one name below the folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edvit_hf.errors import HubError, ManifestError, RecipeError
from edvit_hf.hub import pull
from edvit_hf.manifest import ContentFile, Manifest, check_relative_path
from edvit_hf.manifest.hashes import check_name, hash_of_content
from edvit_hf.manifest.placement import load_placement
from edvit_hf.planning.fleet import Device, Fleet

SPACE = Path(__file__).parents[2] / "space_app/model/digits"

BAD = {
    "up": "x/../../y",
    "one up": "..",
    "here": ".",
    "absolute": "/tmp/y",
    "below": "a/b",
    "backslash": "..\\y",
    "drive": "C:",
    "stream": "pi:stream",
    "zero": "pi\0",
    "line": "pi\n",
    "escape": "pi\x1b[2J",
    "right to left": "pi\u202egpj",
    "half a character": "pi\ud800",
    "reserved": "con",
    "reserved with an ending": "NUL.onnx",
    "reserved, numbered": "Lpt1",
    "dot at the end": "pi.",
    "space at the end": "pi ",
    "very long": "p" * 201,
    "very long in bytes": "ä" * 101,
    "wildcard": "pi*",
    "empty": "",
}
GOOD = ["pi", "kitchen pi (2)", "Küche", "pi-4.local", "pi..4", ".pi", "console", "com10", "p" * 200]


@pytest.mark.parametrize("name", BAD.values(), ids=BAD.keys())
def test_what_is_no_name_of_one_folder_is_refused(name):
    with pytest.raises(RecipeError, match="must be a name that a folder can have"):
        check_name(name, "the name", RecipeError)
    if name and name != "." and "/" not in name:  # as a part of a path
        for path in (f"sub_models/{name}", f"{name}/model.onnx"):
            with pytest.raises(ManifestError, match="inside the ensemble folder"):
                check_relative_path(path, "`file`")


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_names_pass(name):
    assert check_name(name, "the name") == name
    assert check_relative_path(f"{name}/{name}", "`file`") == f"{name}/{name}"


@pytest.fixture
def placement(tmp_path):
    """Writes a placement of the digits ensemble in which one device has a given name."""
    manifest = Manifest.load(SPACE)

    def write(name):
        identity = {"id": manifest.ensemble.id, "content_hash": manifest.ensemble.content_hash}
        placed = [{"index": part.index, "file": part.variants[0].file} for part in manifest.sub_models]
        devices = {name: {"profile": "x86-avx2", "sub_models": placed}}
        data = {"schema_version": 2, "ensemble": identity, "fleet": "f", "num_sub_models": len(placed)}
        (tmp_path / "placement.json").write_text(json.dumps({**data, "devices": devices}))
        return tmp_path / "placement.json"

    return write


@pytest.mark.parametrize("name", ["x/../../y", "../y", "/tmp/edvit-escaped", "..\\y", "a\0b"])
def test_a_device_whose_name_leads_elsewhere_is_never_written(tmp_path, monkeypatch, placement, name):
    here = tmp_path / "deep" / "below"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    path = placement(name)
    before = sorted(each for each in tmp_path.rglob("*"))
    with pytest.raises(ManifestError, match=r"name in `devices` must be a name that a folder can have"):
        pull(str(SPACE), placement=path, device=name)
    with pytest.raises(ManifestError, match="must be a name"):
        load_placement(path)
    assert sorted(each for each in tmp_path.rglob("*")) == before
    assert not Path("/tmp/edvit-escaped").exists()


def test_an_ordinary_device_gets_a_folder_of_its_name(tmp_path, monkeypatch, placement):
    monkeypatch.chdir(tmp_path)
    assert pull(str(SPACE), placement=placement("Küche 2"), device="Küche 2").folder == Path("digits_Küche 2")
    assert (tmp_path / "digits_Küche 2" / "manifest.json").is_file()


def test_a_default_name_that_no_folder_can_have_asks_for_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SPACE, tmp_path / "c:d")
    with pytest.raises(HubError, match="the name of the folder must be a name"):
        pull(str(tmp_path / "c:d"), sub_models=[0], precision="fp32")


@pytest.mark.parametrize("name", ["x/../../y", "a/b", "con"])
def test_a_fleet_names_no_device_so(name):
    with pytest.raises(RecipeError, match="the name of a device must be a name that a folder can have"):
        Fleet(devices=(Device(name=name, profile="x86-avx2"),))


@pytest.mark.parametrize("twin", ["SUB_MODELS/00/onnx/model.onnx", "sub_models//00/onnx/model.onnx"])
def test_files_that_some_system_takes_for_one_are_refused(twin):
    manifest = Manifest.load(SPACE)
    first, second = manifest.sub_models[:2]
    changed = replace(second, variants=[replace(second.variants[0], file=twin)])
    with pytest.raises(ManifestError, match="two variants name the same file"):
        replace(manifest, sub_models=[first, changed, *manifest.sub_models[2:]])
    content = {**manifest.content, "Config.json": ContentFile(sha256="0" * 64, bytes=1)}
    with pytest.raises(ManifestError, match="two keys of `content` name the same file"):
        replace(manifest, content=content, ensemble=replace(manifest.ensemble, content_hash=hash_of_content(content)))
