# SPDX-License-Identifier: Apache-2.0
"""Rows, splits and files are known by their content: not by names, order or places."""

import os
import time

import numpy as np
import pytest

from edvit_hf.data.contents import UNREADABLE, FileHashes, fingerprint, input_digests, shared_rows
from edvit_hf.errors import DataError

IMAGES, TEXTS = "image-classification", "text-classification"


class Items:
    def __init__(self, *items):
        self._items = items

    def read(self, rows):
        return [self._items[row] for row in rows]


def digests(*items, task=IMAGES):
    return input_digests(Items(*items), np.arange(len(items)), task)


def test_a_file_on_disk_equals_its_bytes_in_a_table_whatever_its_name(tmp_path):
    content = os.urandom(3 << 20)  # more than one piece
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "b.jpg").write_bytes(content)
    a, b, inside, other = digests(str(tmp_path / "a.png"), tmp_path / "b.jpg", content, content[:-1])
    assert a == b == inside != other


@pytest.mark.parametrize(
    ("one", "other", "task"),
    [
        ("yes", "yes ", TEXTS),
        ("é", "e\u0301", TEXTS),
        (b"ab", b"ba", IMAGES),
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), IMAGES),
        (np.zeros(4, np.uint8), np.zeros(1, np.float32), IMAGES),
        (np.zeros(4, np.uint8), bytes(4), IMAGES),
    ],
)
def test_inputs_that_differ_have_different_digests(one, other, task):
    first, again, second = digests(one, one, other, task=task)
    assert first == again != second


def test_what_cannot_be_read_is_equal_to_nothing(tmp_path):
    nothing = digests(None, str(tmp_path / "missing.png"), str(tmp_path))
    assert nothing == [UNREADABLE] * 3
    assert shared_rows(nothing, nothing) == []
    with pytest.raises(DataError, match="got dict"):
        digests({"bytes": b""})


def test_shared_rows_are_named_by_their_places():
    train, test = digests("a", "b", "c", task=TEXTS), digests("x", "c", "a", "c", task=TEXTS)
    assert shared_rows(train, test) == [1, 2, 3]


def test_a_fingerprint_is_of_the_rows_and_not_of_their_order_and_counts_how_often_each_is_there():
    a, b = digests("a", "b", task=TEXTS)
    whole = fingerprint([a, b], ["yes", "no"])
    assert whole == fingerprint([b, a], ["no", "yes"])
    others = [
        fingerprint([a, b], ["no", "yes"]),
        fingerprint([a, a, b], ["yes", "yes", "no"]),
        fingerprint([a], ["yes"]),
        fingerprint([], []),
        fingerprint([a, UNREADABLE], ["yes", "no"]),
    ]
    assert len({whole, *others}) == 6


@pytest.fixture
def later(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 10_000_000_000)


def test_a_changed_file_of_the_same_size_and_time_is_hashed_again(tmp_path, later):
    path, hashes = tmp_path / "train.csv", FileHashes()
    path.write_text("text,label\na,0\n")
    before, state = hashes.of(path), path.stat()
    path.write_text("text,label\na,1\n")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert hashes.of(path) != before


def test_an_unchanged_file_is_read_once_also_by_the_next_run(tmp_path, later, monkeypatch):
    path, kept = tmp_path / "train.csv", tmp_path / "hashes.json"
    path.write_text("text,label\n")
    first = FileHashes(kept)
    digest = first.of(path)
    first.save()
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert FileHashes(kept).of(path) == first.of(path) == digest


def test_a_file_written_just_now_is_not_remembered(tmp_path):
    path, kept = tmp_path / "train.csv", tmp_path / "hashes.json"
    path.write_text("text,label\n")
    hashes = FileHashes(kept)
    hashes.of(path)
    hashes.save()
    assert not kept.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', '{"x": [1, 2, 3, 4, "z"]}'])
def test_damaged_kept_hashes_are_begun_anew(tmp_path, content):
    path, kept = tmp_path / "train.csv", tmp_path / "hashes.json"
    path.write_text("text,label\n")
    kept.write_text(content)
    assert FileHashes(kept).of(path) == FileHashes().of(path)
