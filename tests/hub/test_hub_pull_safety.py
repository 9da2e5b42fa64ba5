# SPDX-License-Identifier: Apache-2.0
"""`edvit pull` of what means harm or is cut off: verified, whole or not at all, nobody's files replaced."""

import contextlib
import errno
import json
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edvit_hf.errors import ManifestError, WorkDirError
from edvit_hf.hub import pull
from edvit_hf.hub import source as source_module
from edvit_hf.runtime import EDViTRuntime
from support.hub_ensemble import files_of, pull_small, write_publishable
from support.hub_server import Fault

pytest_plugins = ["support.hub_fixtures"]


@pytest.mark.parametrize("link", ["sub_models/01/onnx/model.onnx", "sub_models/01", "manifest.json"])
def test_links_in_a_folder_are_refused(tmp_path, link):
    root = tmp_path / "origin"
    write_publishable(root)
    (root / link).rename(tmp_path / "elsewhere")
    (root / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="got a link at"):
        pull(str(root), sub_models=[1], precision="fp32", output=tmp_path / "device")
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../../etc/passwd", "inside the ensemble folder"),
        ("/etc/passwd", "inside the ensemble folder"),
        ("C:\\x.onnx", "inside the ensemble folder"),
        ("sub_models/02/pytorch_model.bin", "Expected ONNX graphs"),
        ("modeling_edvit.py", "Expected ONNX graphs"),
    ],
)
def test_paths_that_leave_the_folder_and_files_that_could_run_code_are_never_fetched(
    published, hub, file, message, tmp_path
):
    repository, _ = published
    data = json.loads(repository.files()["manifest.json"])
    data["sub_models"][2]["variants"][0]["file"] = file
    repository.put("manifest.json", json.dumps(data).encode())
    repository.put("sub_models/02/pytorch_model.bin", b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    hub.requests.clear()
    with pytest.raises(ManifestError, match=message):
        pull_small(tmp_path / "pi", precision="fp32")
    assert all("manifest.json" in line for line in hub.seen("(GET|HEAD) .*/resolve/"))
    assert not hub.seen("/cdn/")


def test_a_repository_with_code_and_pickles_is_pulled_without_them(published, hub, tmp_path):
    repository, _ = published
    repository.put("sub_models/02/pytorch_model.bin", b"pickle")
    repository.put("sub_models/02/modeling_other.py", b"raise SystemExit('ran')")
    pull_small(tmp_path / "pi")
    assert not hub.seen("pytorch_model|modeling_other")
    assert not [p for p in (tmp_path / "pi").rglob("*") if p.suffix in (".bin", ".py")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"schema_version": 99}', "schema version 99 is newer"),
        (b'{"schema_version": 3', "breaks at line"),
        (b"\xff\xfe\x00", "bytes that are not UTF-8"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_stops_everything(published, hub, tmp_path, text, message):
    published[0].put("manifest.json", text)
    with pytest.raises(ManifestError, match=message):
        pull_small(tmp_path / "pi")
    assert not hub.seen("/cdn/")
    assert not (tmp_path / "pi").exists()


@pytest.mark.parametrize("foreign", ["notes.txt", "model.safetensors", "sub_models/02/onnx/mine.onnx"])
def test_a_folder_that_holds_anything_else_is_never_replaced(published, tmp_path, foreign):
    pull_small(tmp_path / "pi")
    (tmp_path / "pi" / foreign).write_text("mine")
    with pytest.raises(WorkDirError, match=foreign):
        pull_small(tmp_path / "pi", sub_models=[0])
    assert (tmp_path / "pi" / foreign).read_text() == "mine"


def test_only_an_empty_place_or_an_earlier_pull_is_taken(published, tmp_path):
    with pytest.raises(WorkDirError, match="no manifest"):
        pull_small(tmp_path / "hub_cache" / "..")  # a folder with other things
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkDirError):
        pull_small(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert pull_small(tmp_path / "empty").bytes_fetched > 0


class Stop(BaseException):
    """An interruption, as Ctrl-C or the end of the process makes it."""


def loads(folder):
    try:
        return EDViTRuntime.from_pretrained(folder, sub_models=[2]).manifest.ensemble.id
    except Exception:
        return None


def stopped_at(step, monkeypatch):
    """Stop at the `step`-th change of the file system that a pull makes."""
    count = iter(range(1000))

    def counted(call):
        def wrapped(*arguments, **options):
            if next(count) == step:
                raise Stop
            return call(*arguments, **options)

        return wrapped

    for owner, name in [
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "write_bytes"),
        (Path, "unlink"),
        (shutil, "copyfile"),
        (shutil, "rmtree"),
    ]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return count


def test_a_pull_stopped_anywhere_leaves_the_old_state_or_the_new_and_the_next_one_finishes(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    ids = {write_publishable(root, seed=seed).ensemble.id for root, seed in ((old, 0), (new, 1))}
    options = {"sub_models": [2], "precision": "fp32", "fusion": True}
    steps, seen = 0, set()
    while True:
        device = tmp_path / f"device{steps}"
        pull(str(old), output=device, **options)
        with monkeypatch.context() as patch:
            count = stopped_at(steps, patch)
            with contextlib.suppress(Stop):
                pull(str(new), output=device, **options)
            finished = next(count) <= steps
        state = loads(device)
        seen.add(state)
        assert state in {*ids, None}
        assert device.exists() == (state is not None)  # if it is there, it is whole
        pull(str(new), output=device, **options)
        assert loads(device) == "tiny-1"
        assert sorted(p.name for p in tmp_path.iterdir() if device.name in re.split(r"\W", p.name)) == [device.name]
        if finished:
            break
        steps += 1
    assert steps > 8
    assert seen >= ids


def test_a_full_disk_leaves_the_old_state_and_frees_what_was_staged(published, tmp_path, monkeypatch):
    pull_small(tmp_path / "pi")
    before = files_of(tmp_path / "pi")

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = published[1]
    monkeypatch.setattr(source_module.shutil, "copyfile", full)
    with pytest.raises(WorkDirError, match=r"No space left on device.*Free space"):
        pull(str(root), sub_models=[0, 1], precision="fp32", output=tmp_path / "pi")
    assert files_of(tmp_path / "pi") == before
    assert not (tmp_path / ".pi.edvit-partial").exists()


def test_what_was_verified_before_a_stop_is_not_fetched_again(published, hub, tmp_path, monkeypatch):
    from edvit_hf.hub.source import HubSource

    fetch, count = HubSource.fetch, iter(range(100))

    def once(self, *arguments, **options):
        if next(count) == 1:
            raise Stop
        return fetch(self, *arguments, **options)

    monkeypatch.setattr(HubSource, "fetch", once)
    with pytest.raises(Stop):
        pull_small(tmp_path / "pi", sub_models=[0, 1, 2])
    assert not (tmp_path / "pi").exists()
    assert not (tmp_path / ".pi.edvit-partial/manifest.json").exists()
    hub.requests.clear()
    pull_small(tmp_path / "pi", sub_models=[0, 1, 2])
    assert len(hub.seen("GET /cdn/")) == 2


def test_two_pulls_into_one_folder_at_once_both_end_with_the_whole_of_it(published, hub, tmp_path):
    """As when several processes of one machine load the same repository: the second waits for the first."""
    hub.faults.append(Fault("GET /cdn/", times=99, before=lambda: threading.Event().wait(0.1)))
    options = {"sub_models": [0, 1, 2], "fusion": True}
    with ThreadPoolExecutor(4) as pool:
        pulls = [pool.submit(pull_small, tmp_path / "pi", **options) for _ in range(4)]
        done = [each.result() for each in pulls]
    assert sorted(each.unchanged for each in done) == [False, True, True, True]
    assert set(files_of(tmp_path / "pi")) == {"manifest.json", *(needed.file for needed in done[0].selection.files)}
    assert len(hub.seen("GET /cdn/")) == 4
    assert sorted(p.name for p in tmp_path.iterdir() if "pi" in p.name) == ["pi"]
