# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole, whoever else writes them, and leave nothing behind."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edvit_hf import storage
from edvit_hf.errors import EDViTError, WorkDirError
from edvit_hf.storage import changed_json, read_json, take_place, whole_file, whole_folder, write_json


def at_once(work, count=4):
    """Run `work(number)` in threads; the first error is raised."""
    faults = []

    def run(number):
        try:
            work(number)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if faults:
        raise faults[0]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_concurrent_writers_of_one_file_leave_whole_json(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, [0] * 1000)

    def work(number):
        for _ in range(15):
            if number < 2:
                write_json(path, [number] * (1000 + 4000 * number))
            else:
                found = read_json(path)
                assert len(set(found)) == 1
                assert len(found) in (1000, 5000)

    at_once(work)
    assert names(tmp_path) == ["x.json"]


def test_two_writers_at_the_same_moment_do_not_share_a_temporary_name(tmp_path):
    with whole_file(tmp_path / "x") as one, whole_file(tmp_path / "x") as other:
        assert one != other
        assert one.parent == other.parent == tmp_path
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "x").read_text() == "one"  # the last to end
    assert names(tmp_path) == ["x"]


def test_a_folder_is_replaced_without_a_moment_in_which_a_reader_finds_nothing(tmp_path):
    target, done = tmp_path / "folder", threading.Event()

    def work(number):
        if number == 0:
            try:
                for value in range(40):
                    with whole_folder(target) as partial:
                        (partial / "a").write_text(str(value))
            finally:
                done.set()
        else:
            while not done.is_set():
                assert target.is_dir()

    with whole_folder(target) as partial:
        (partial / "a").write_text("first")
    if not storage._exchange(target, target):  # pragma: no cover - a system without it
        pytest.skip("this system cannot exchange two folders")
    at_once(work, 2)
    assert (target / "a").read_text() == "39"
    assert names(tmp_path) == ["folder"]


def test_concurrent_writers_of_one_folder_leave_one_whole(tmp_path):
    target = tmp_path / "folder"

    def work(number):
        for _ in range(10):
            with whole_folder(target) as partial:
                for name in ("a", "b"):
                    (partial / name).write_text(str(number))

    at_once(work)
    assert (target / "a").read_text() == (target / "b").read_text()
    assert names(tmp_path) == ["folder"]


def test_where_the_system_cannot_exchange_folders_the_older_one_comes_back_after_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    target = tmp_path / "folder"
    for value in ("older", "newer"):
        with whole_folder(target) as partial:
            (partial / "a").write_text(value)
    assert (target / "a").read_text() == "newer"
    with pytest.raises(FileNotFoundError):
        take_place(tmp_path / "not there", target)
    assert (target / "a").read_text() == "newer"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("writer", [whole_file, whole_folder])
@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt()])
def test_nothing_is_left_after_an_error_and_what_was_there_stays(tmp_path, writer, fault):
    target = tmp_path / "x"
    with writer(target) as partial:
        (partial / "a" if partial.is_dir() else partial).write_text("older")

    def write_half():
        with writer(target) as partial:
            (partial / "a" if partial.is_dir() else partial).write_text("newer")
            raise fault

    with pytest.raises(type(fault)):
        write_half()
    assert names(tmp_path) == ["x"]
    assert (target / "a" if target.is_dir() else target).read_text() == "older"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("writer", [whole_file, whole_folder])
def test_a_full_or_broken_disk_is_named_with_the_file(tmp_path, writer, code):
    with pytest.raises(WorkDirError) as found, writer(tmp_path / "results.json"):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path / "results.json") in str(found.value)
    assert os.strerror(code) in str(found.value)
    assert not names(tmp_path)


def test_a_full_disk_that_a_library_tells_in_words_is_named_too(tmp_path):
    with pytest.raises(WorkDirError, match=r"model\.safetensors"), whole_file(tmp_path / "model.safetensors"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert not names(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_only_when_the_bytes_leave_memory_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding: full(text))

    def full(text):
        with Path("/dev/full").open("w") as file:
            file.write(text)

    with pytest.raises(WorkDirError, match=r"results\.json.*No space left"):
        write_json(tmp_path / "results.json", {})
    assert not names(tmp_path)


def test_an_error_of_ours_and_others_pass_unchanged(tmp_path):
    for error in (EDViTError("said already"), BrokenPipeError(errno.EPIPE, "x")):
        with pytest.raises(type(error)) as found, whole_file(tmp_path / "x"):
            raise error
        assert found.value is error


def test_a_folder_that_is_missing_or_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "x.json", tmp_path / "file" / "x.json"):
        with pytest.raises(WorkDirError, match=r"x\.json.*beside it"):
            write_json(path, {})


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    killed = (
        "import os, sys; from pathlib import Path; from edvit_hf.storage import *\n"
        "with whole_file(Path(sys.argv[1]) / 'x.json') as a, whole_folder(Path(sys.argv[1]) / 'y') as b:\n"
        "    os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False).returncode == 9
    assert len(names(tmp_path)) == 2
    (tmp_path / "x.json.other-1-ab.partial").write_text("of another machine")
    (tmp_path / "mine.partial").write_text("of somebody else")
    with whole_folder(tmp_path / "y") as partial:
        with whole_folder(tmp_path / "y"):
            assert partial.exists()  # what is under way is not left over
        write_json(tmp_path / "x.json", {})
    assert names(tmp_path) == ["mine.partial", "x.json", "x.json.other-1-ab.partial", "y"]


def test_the_longest_name_a_system_takes_can_be_written(tmp_path):
    write_json(tmp_path / ("ä" * 120 + ".json"), {"a": 1})
    assert read_json(tmp_path / ("ä" * 120 + ".json")) == {"a": 1}


def test_changes_of_one_file_do_not_lose_each_other(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {})

    def work(number):
        for turn in range(5):
            with changed_json(path, "results") as values:
                values[f"{number} {turn}"] = True

    at_once(work)
    assert len(read_json(path)) == 20


def test_a_change_that_fails_changes_nothing(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})

    def change_half():
        with changed_json(tmp_path / "x.json", "results") as values:
            values["a"] = 2
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        change_half()
    assert read_json(tmp_path / "x.json") == {"a": 1}
    with pytest.raises(EDViTError, match="found no file"), changed_json(tmp_path / "none" / "x.json", "results"):
        pass
    assert names(tmp_path) == ["x.json"]


MISSING = [errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK]


@pytest.mark.parametrize("writer", [whole_file, whole_folder])
@pytest.mark.parametrize("code", [None, *MISSING])
def test_what_is_flushed_can_be_written_and_what_cannot_be_flushed_is_written_all_the_same(
    tmp_path, monkeypatch, writer, code
):
    """Windows flushes only through a handle that may write: EBADF."""
    flushed = []

    def fsync(handle):
        if code is not None:
            raise OSError(code, os.strerror(code))
        assert os.write(handle, b"") == 0  # EBADF for a handle that only reads
        flushed.append(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with writer(tmp_path / "x") as partial:
        (partial / "a" if partial.is_dir() else partial).write_text("new")
    assert (tmp_path / "x/a" if writer is whole_folder else tmp_path / "x").read_text() == "new"
    assert len(flushed) == (code is None)


@pytest.mark.parametrize("writer", [whole_file, whole_folder])
def test_a_read_only_file_is_written_whole_and_a_disk_that_breaks_is_still_named(tmp_path, monkeypatch, writer):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # whoever runs this may be allowed everything
    with writer(tmp_path / "x") as partial:
        (partial / "a" if partial.is_dir() else partial).write_text("new")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(WorkDirError, match="broken"), writer(tmp_path / "x") as partial:
        (partial / "a" if partial.is_dir() else partial).write_text("newer")
    assert (tmp_path / "x/a" if writer is whole_folder else tmp_path / "x").read_text() == "new"


@pytest.mark.skipif(storage.fcntl is None, reason="a system without locks")
@pytest.mark.parametrize("code", MISSING)
def test_where_a_disk_has_no_locks_nobody_waits_and_other_errors_pass(tmp_path, monkeypatch, code):
    def flock(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.fcntl, "flock", flock)
    write_json(tmp_path / "x.json", {"a": 1})
    with changed_json(tmp_path / "x.json", "a test") as values:
        values["a"] = 2
    assert read_json(tmp_path / "x.json") == {"a": 2}
    fault = OSError(code, "of the block")
    with pytest.raises(OSError, match="of the block") as found, storage.held_folder(tmp_path):
        raise fault
    assert found.value is fault
    code = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), storage.held_folder(tmp_path):
        pass
