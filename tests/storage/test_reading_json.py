# SPDX-License-Identifier: Apache-2.0
"""JSON is read from ordinary files of a sensible size, strictly; everything else is one error in words."""

import json
import os
import time
from pathlib import Path

import pytest

from edvit_hf.errors import CheckpointError, DataError, EDViTError, ManifestError
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import load_placement
from edvit_hf.storage import read_json, read_json_object, write_json
from edvit_hf.strict import parse_json


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "ä\\ud83d\\ude00"}'.encode())
    assert read_json(path) == {"a": "ä😀"}
    assert parse_json('\ufeff{"a": 1}') == {"a": 1}


DAMAGED = {
    "empty": (b"", "nothing, it is empty"),
    "blank": (b" \n", "nothing, it is empty"),
    "cut off": (b'{"a": [1,\n', "breaks at line 2"),
    "another encoding": ('{"a": "ä"}'.encode("utf-16"), "not UTF-8"),
    "a key twice": (b'{"a": {"b": 1, "c": 2, "b": 1}}', "the key 'b' twice"),
    "a key twice, escaped": (b'{"b": 1, "\\u0062": 2}', "the key 'b' twice"),
    "NaN": (b'{"a": NaN}', "NaN, which is no number"),
    "infinity": (b"[-Infinity]", "-Infinity, which is no number"),
    "beyond floats": (b"[1e999]", "beyond every float"),
    "endless digits": (b"9" * 5000, "5000 digits"),
    "half a character": (b'["\\uD800x"]', "half a character"),
    "half a character in a key": (b'{"\\udfff": 1}', "half a character"),
    "deep": (b"[" * 70 + b"]" * 70, "deep inside"),
    "deep objects": (b'{"a":' * 70 + b"1" + b"}" * 70, "deep inside"),
    "very deep": (b"[" * 300_000, "deep inside"),
    "two values": (b"{} {}", "breaks at line 1"),
}


@pytest.mark.parametrize(("content", "said"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_no_sound_json_is_told_in_words(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as found:
        read_json(path)
    assert str(path) in str(found.value)
    with pytest.raises(DataError, match=rf"a config.*{said}.*why it matters"):
        read_json_object(path, "a config", "why it matters", error=DataError)


@pytest.mark.parametrize("value", [[], "x", 1, 1.5, True, None])
def test_only_an_object_is_an_object(tmp_path, value):
    write_json(tmp_path / "x.json", value)
    with pytest.raises(CheckpointError, match="instead of an object"):
        read_json_object(tmp_path / "x.json", "a config")


def test_what_is_allowed_is_read(tmp_path):
    value = {"deep": json.loads("[" * 60 + "]" * 60), "big": 10**30, "small": 1e-300, "minus": -5, "key": {"key": 1}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


NOT_FILES = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("make", NOT_FILES.values(), ids=NOT_FILES.keys())
@pytest.mark.parametrize("read", ["json", "object", "manifest", "placement"])
def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path, make, read):
    readers = {
        "json": (read_json, CheckpointError),
        "object": (lambda path: read_json_object(path, "a config"), CheckpointError),
        "manifest": (Manifest.load, ManifestError),
        "placement": (load_placement, ManifestError),
    }
    make(tmp_path / "x.json")
    reader, error = readers[read]
    start = time.monotonic()
    with pytest.raises(error):
        reader(tmp_path / "x.json")
    assert time.monotonic() - start < 1


def test_a_file_longer_than_the_limit_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" + " " * 100 + "]")
    assert read_json(path, limit=102) == []
    with pytest.raises(CheckpointError, match="more than 101 bytes"):
        read_json(path, limit=101)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="files that tell no size are Linux's")
def test_a_file_that_tells_no_size_is_not_read_beyond_the_limit(tmp_path):
    (tmp_path / "x.json").symlink_to("/proc/self/status")
    with pytest.raises(CheckpointError, match="more than 10 bytes"):
        read_json(tmp_path / "x.json", limit=10)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "x.json")
    with pytest.raises(ManifestError, match=r"x\.json, found no file"):
        read_json_object(tmp_path / "x.json", "a placement", error=ManifestError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_no_word_for_is_not_written(tmp_path, value):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(EDViTError, match="finite numbers"):
        write_json(tmp_path / "x.json", {"a": [value]})
    assert read_json(tmp_path / "x.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
