# SPDX-License-Identifier: Apache-2.0
"""Graphs that were exported from other weights than lie beside them answer no longer; shares without weights do."""

import dataclasses
import os
import shutil
import time

import pytest

from edvit_hf.errors import ManifestError
from edvit_hf.manifest import Manifest, content_files, hash_of_content, hashes
from edvit_hf.runtime import EDViTRuntime
from support.tiny_ensemble import write_tiny_ensemble

GROUPS = [[0, 2], [1]]
WEIGHTS = ["config.json", "model.safetensors", "fusion.safetensors", "sub_models/01/model.safetensors"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of weights and the graphs that were exported from them, the manifest written last."""
    folder = tmp_path_factory.mktemp("exported")
    manifest = write_tiny_ensemble(folder, GROUPS)
    for name in WEIGHTS:
        (folder / name).write_bytes(name.encode() * 9)
    content = content_files(folder)
    entry = dataclasses.replace(manifest.ensemble, content_hash=hash_of_content(content))
    time.sleep(0.01)  # a clock that ticks slowly
    dataclasses.replace(manifest, content=content, ensemble=entry).save(folder)
    return folder


@pytest.fixture
def exported(made, tmp_path):
    folder = tmp_path / "ensemble"
    shutil.copytree(made, folder)
    time.sleep(0.01)
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_bytes(manifest)
    return folder


def other_size(path):
    path.write_bytes(b"others")


def same_size(path):
    path.write_bytes(path.read_bytes()[::-1])


def same_size_and_time(path):
    found = path.stat()
    same_size(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def put_there(path):
    older = path.with_name("older")
    older.write_bytes(path.read_bytes()[::-1])
    os.utime(older, (1, 1))
    older.replace(path)


@pytest.mark.parametrize("change", [other_size, same_size, same_size_and_time, put_there])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_were_changed_by_any_means_silence_the_graphs_of_the_old_ones(exported, name, change):
    Manifest.load(exported)
    change(exported / name)
    with pytest.raises(ManifestError, match=f"expected the {name} that the graphs were exported from.*edvit export"):
        Manifest.load(exported)
    assert Manifest.load(exported, fresh=False).label_names == Manifest.load(exported / "manifest.json").label_names


def test_the_runtime_refuses_them_and_answers_where_nothing_changed_or_no_weights_are(exported):
    with EDViTRuntime.from_pretrained(exported) as runtime:
        assert runtime.loaded == (0, 1)
    same_size(exported / "model.safetensors")
    with pytest.raises(ManifestError, match=r"expected the model\.safetensors that the graphs were exported from"):
        EDViTRuntime.from_pretrained(exported)
    for name in WEIGHTS:
        (exported / name).unlink()
    with EDViTRuntime.from_pretrained(exported) as runtime:
        assert runtime.loaded == (0, 1)


def test_bytes_are_read_only_of_what_is_newer_than_the_manifest_and_once(exported, monkeypatch):
    read = []
    real = hashes.file_sha256
    monkeypatch.setattr(hashes, "file_sha256", lambda path: read.append(path.name) or real(path))
    Manifest.load(exported)
    assert read == []
    os.utime(exported / "model.safetensors")
    for _ in range(3):
        Manifest.load(exported)
    assert read == ["model.safetensors"]


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose bytes were read."""
    names, real = [], hashes.file_sha256
    monkeypatch.setattr(hashes, "file_sha256", lambda path: names.append(path.name) or real(path))
    return names


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def copied(folder):
    """As `cp -r`, `git clone` and a build do it: everything is new, the manifest among the first."""
    for number, path in enumerate(sorted(files(folder), key=lambda path: path.relative_to(folder).as_posix())):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(0, time.time_ns() + 10**9 * number))


def downloaded_at_once(folder):
    for path in files(folder):
        os.utime(path, ns=(0, 10**18))


def given_to_another(folder):
    time.sleep(0.01)
    for path in files(folder):
        path.chmod(0o640)


@pytest.mark.parametrize("moved", [copied, downloaded_at_once, given_to_another])
def test_a_copy_is_run_without_reading_its_weights_and_a_change_after_it_is_noticed(exported, moved, read):
    moved(exported)
    for _ in range(2):
        Manifest.load(exported, only_to_run=True)
    assert read == []
    Manifest.load(exported)  # whoever publishes reads them
    assert "model.safetensors" in read
    path = exported / "model.safetensors"
    same_size(path)
    os.utime(path, ns=(0, time.time_ns() + 10**12))
    with pytest.raises(ManifestError, match=r"expected the model\.safetensors that the graphs were exported from"):
        Manifest.load(exported, only_to_run=True)


@pytest.mark.parametrize("change", [other_size, same_size])
@pytest.mark.parametrize("name", WEIGHTS)
def test_to_run_graphs_a_later_date_or_another_size_of_any_weights_is_enough(exported, name, change):
    change(exported / name)
    with pytest.raises(ManifestError, match=f"expected the {name} that the graphs were exported from"):
        Manifest.load(exported, only_to_run=True)


def test_to_run_graphs_a_file_of_a_later_date_is_read_once_and_taken_if_it_is_the_same(exported, read):
    os.utime(exported / "fusion.safetensors", ns=(0, time.time_ns() + 10**12))
    for _ in range(3):
        Manifest.load(exported, only_to_run=True)
    assert read == ["fusion.safetensors"]


def test_a_manifest_that_a_save_put_aside_is_named(exported):
    (exported / "manifest.json").replace(exported / "manifest.json.stale")
    with pytest.raises(ManifestError, match=r"exported from other weights than were saved there later.*edvit export"):
        Manifest.load(exported)
