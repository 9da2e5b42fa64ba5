# SPDX-License-Identifier: Apache-2.0
"""Standard output that takes nothing: a full disk, a reader that has gone, none at all."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edvit_hf import cli
from edvit_hf.cli.output import console
from support.serving_setup import GROUPS, TEXT_TASK
from support.tiny_ensemble import write_tiny_ensemble

COMMANDS = {
    "version": ["--version"],
    "help": ["--help"],
    "help of a command": ["serve", "--help"],
    "table": ["predict", "DIR", "word1"],
    "json": ["predict", "DIR", "word1", "--format", "json"],
    "wrong option": ["export", "DIR", "--no-such-option"],  # what is wrong is told on standard error alone
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    write_tiny_ensemble(root, GROUPS, task=TEXT_TASK)
    return root


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk():
    return os.open("/dev/full", os.O_WRONLY)


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")


@pytest.fixture
def run(monkeypatch, capsys, texts):
    """Runs a command as the console script does, with a file descriptor as standard output."""

    def run(name, descriptor, *, buffered=True):
        arguments = [str(texts) if each == "DIR" else each for each in COMMANDS[name]]
        binary = io.FileIO(descriptor, "w") if not buffered else io.BufferedWriter(io.FileIO(descriptor, "w"))
        output = io.TextIOWrapper(binary, encoding="utf-8", write_through=not buffered)
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "argv", ["edvit", *arguments])
        monkeypatch.setattr(console, "quiet", False)  # rich says no more once a reader has gone
        with pytest.raises(SystemExit) as ended:
            cli.main()
        sys.stdout.flush()  # as the interpreter does at the end: nothing may be left to fail
        return ended.value.code, " ".join(capsys.readouterr().err.split())

    return run


@needs_full
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "wrong option"])
def test_a_full_disk_is_one_message_and_exit_code_1(run, name, buffered):
    code, told = run(name, full_disk(), buffered=buffered)
    assert code == 1
    assert told.startswith(
        "error: Expected a standard output that takes what is printed, got one that failed (No space"
    )
    assert told.count("error") == 1
    assert "Traceback" not in told


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "wrong option"])
def test_a_reader_that_has_gone_ends_it_quietly(run, name, buffered):
    assert run(name, closed_pipe(), buffered=buffered) == (1, "")


@needs_full
def test_what_prints_nothing_does_not_mind(run):
    code, told = run("wrong option", full_disk())
    assert code == 2
    assert "No such option" in told


@needs_full
@pytest.mark.parametrize("descriptor", [full_disk, closed_pipe])
def test_a_command_that_failed_keeps_its_exit_code(run, monkeypatch, descriptor):
    def fail():
        sys.stdout.write("half of it")
        raise SystemExit(3)

    monkeypatch.setattr(cli, "app", fail)
    assert run("version", descriptor())[0] == 3


@needs_full
@pytest.mark.parametrize("descriptor", [full_disk, closed_pipe])
@pytest.mark.parametrize("error", [KeyError("a fault"), KeyboardInterrupt(), FileNotFoundError(2, "none", "weights")])
def test_a_fault_of_another_kind_is_raised_as_it_is(run, monkeypatch, descriptor, error):
    def fail():
        sys.stdout.write("half of it")
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(type(error)) as raised:
        run("version", descriptor())
    assert raised.value is error
    sys.stdout = None  # what is still held is lost with it


def test_output_that_is_read_is_what_it_was(run, tmp_path):
    target = tmp_path / "out"
    assert run("json", os.open(target, os.O_WRONLY | os.O_CREAT)) == (0, "")
    assert target.read_text(encoding="utf-8").endswith("}\n")


def test_a_stream_that_is_no_file_is_left_alone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["edvit", "--version"])
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert stream.getvalue().strip()
    assert sys.stdout is stream


@needs_full
@pytest.mark.parametrize(
    ("redirection", "expected", "told"),
    [("> /dev/full", 1, "error: Expected a standard output"), (">&-", 1, "error: Expected a standard output")],
)
def test_a_real_process(redirection, expected, told):
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m edvit_hf.cli --version {redirection}', sys.executable], capture_output=True, text=True
    )
    assert done.returncode == expected
    assert done.stderr.startswith(told)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
