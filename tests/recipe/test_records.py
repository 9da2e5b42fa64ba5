# SPDX-License-Identifier: Apache-2.0
"""What a stage left of itself: a damaged record means that the stage runs again, a damaged result is named."""

import json
import os

import pytest

from edvit_hf.errors import CheckpointError, WorkDirError
from edvit_hf.recipe.running import _owned
from edvit_hf.recipe.stages.evaluate import RECORDED, record
from edvit_hf.recipe.staging import open_stage, stored_record
from edvit_hf.recipe.trip import Trip
from edvit_hf.storage import write_json

WHOLE = {"key": "k", **dict.fromkeys(RECORDED, 1.0)}
DAMAGED = {
    "empty": b"",
    "cut off": json.dumps(WHOLE).encode()[:-5],
    "a list": b"[1]",
    "a text": b'"k"',
    "null": b"null",
    "bytes": b"\xff\xfe\x00",
    "only a key": b'{"key": "k"}',
    "a key twice": b'{"key": "k", "key": "k"}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_stage_with_a_damaged_record_is_not_done(tmp_path, content):
    done = tmp_path / "done.json"
    write_json(done, WHOLE)
    assert stored_record(done, "k") == WHOLE
    assert stored_record(done, "other") is None
    done.write_bytes(content)
    assert stored_record(done, "k") is None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_record_that_is_no_file_is_none_and_makes_way(tmp_path, make):
    folder = tmp_path / "stage"
    assert not open_stage(folder, "k")
    make(folder / "done.json")
    assert stored_record(folder / "done.json", "k") is None
    assert open_stage(folder, "k")
    assert not (folder / "done.json").exists()


@pytest.mark.parametrize("content", [*DAMAGED.values()][:3], ids=[*DAMAGED][:3])
def test_damaged_inputs_empty_the_stage(tmp_path, content):
    folder = tmp_path / "stage"
    open_stage(folder, "k")
    (folder / "half").write_text("x")
    (folder / "inputs.json").write_bytes(content)
    assert not open_stage(folder, "k")
    assert not (folder / "half").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}", b'{"class_groups": [[0, "x"]], "sub_models": [1]}'])
@pytest.mark.parametrize(("name", "file"), [("class_groups", "class_groups.json"), ("plan", "plan.json")])
def test_a_damaged_result_of_an_earlier_stage_is_named(tmp_path, name, file, content):
    trip = Trip(recipe=None, folders={"split": tmp_path, "plan": tmp_path}, environment={})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{file}.*run the recipe again"):
        getattr(trip, name)


def groups_of(folder, content):
    write_json(folder / "class_groups.json", content)
    trip = Trip(recipe=None, folders={"split": folder}, environment={})
    return trip.class_groups, trip.focus_groups


def test_what_sub_models_are_cut_for_and_vote_over_are_read_apart(tmp_path):
    votes, focus = [[0, 1, 2]] * 2, [[0, 2], [1]]
    assert groups_of(tmp_path, {"class_groups": votes, "focus_groups": focus}) == (votes, focus)


def test_groups_of_an_earlier_version_are_what_sub_models_were_cut_for(tmp_path):
    assert groups_of(tmp_path, {"class_groups": [[0, 2], [1]]}) == ([[0, 2], [1]],) * 2


@pytest.mark.parametrize("focus", [[[0, 1], [2]], [[0, 2]], "x"])
def test_focus_groups_that_do_not_belong_to_the_class_groups_are_named(tmp_path, focus):
    with pytest.raises(CheckpointError, match=r"class_groups|focus groups inside the class groups"):
        groups_of(tmp_path, {"class_groups": [[0, 2], [1]], "focus_groups": focus})


def test_a_damaged_record_of_an_earlier_stage_is_named(tmp_path):
    (tmp_path / "done.json").write_bytes(b"[]")
    with pytest.raises(CheckpointError, match=r"done\.json, got a list"):
        record(tmp_path)


def test_a_full_disk_says_that_the_run_can_go_on(tmp_path, monkeypatch):
    def full(path, text, encoding):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(WorkDirError, match=r"results\.json.*No space left.*it resumes"), _owned(tmp_path / "work"):
        write_json(tmp_path / "work" / "results.json", {})
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [".lock"]
