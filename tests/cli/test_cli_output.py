# SPDX-License-Identifier: Apache-2.0
"""Standard output that takes nothing, or no such letters; files that cannot be written; signals that end a command."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edvit_hf import bench, cli
from edvit_hf.bench import BenchReport, BenchRow
from edvit_hf.cli.app import _Group
from edvit_hf.cli.output import console, end_at_once
from edvit_hf.errors import WorkDirError
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
    write_tiny_ensemble(root, GROUPS, task=TEXT_TASK, label_names=["東京", "Zürich", "naïve…", "😀", "long " * 40])
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


@pytest.fixture
def timed(monkeypatch):
    """`edvit bench` without the minutes."""
    row = BenchRow(
        **{"owner": "sub-model 0", "name": "fp32", "file": "f.onnx", "precision": "fp32", "bytes": 1, "inputs": {}},
        **{"median": 1.25, "p90": 1.0, "min": 1.0, "max": 1.0, "repeats_ms": [1.0], "runs": 1, "load_ms": 1.0},
        **{"disturbed_share": 0.0, "peak_memory_mib": None, "idle_memory_mib": None},
    )
    protocol = {"environment": {"machine": {"cpu": "c"}}, "isa": "i", "batch": 1, "threads": 1, "repeats": 1}
    report = BenchReport(ensemble="e", content_hash="", protocol=protocol, rows=[row], left_out=[])
    monkeypatch.setattr(bench, "bench_ensemble", lambda *_, **__: report)
    return report


@needs_full
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("descriptor", [full_disk, closed_pipe])
def test_a_measurement_is_written_although_it_cannot_be_printed(run, timed, tmp_path, descriptor, buffered):
    COMMANDS["bench"] = ["bench", "DIR", "--output", str(tmp_path / "r.json")]
    assert run("bench", descriptor(), buffered=buffered)[0] == 1
    assert json.loads((tmp_path / "r.json").read_text()) == timed.to_json()


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EFBIG", "EIO", "EPIPE"])
def test_a_measurement_is_printed_although_a_file_cannot_be_written(run, timed, tmp_path, monkeypatch, code, output):
    """The same fault as that of a full standard output, with a file's name and without."""
    import errno

    number = getattr(errno, code)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(bench, "save_latencies", refuse)
    COMMANDS["bench"] = ["bench", "DIR", "--save", "--output", str(tmp_path / "r.json"), "--format", output]
    ended, told = run("bench", os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT))
    printed = (tmp_path / "out").read_text()
    assert ended == 1
    assert os.strerror(number) in told
    assert "standard output" not in told
    assert (json.loads(printed) == timed.to_json()) if output == "json" else ("1.250" in printed)
    assert json.loads((tmp_path / "r.json").read_text()) == timed.to_json(), "one file's fault is not the other's"


def test_a_file_that_would_be_too_large_is_named(run, timed, tmp_path, monkeypatch):
    """A limit of the process does what a full disk does."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def measured(*_, **__):
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, limit[1]))
        return timed

    monkeypatch.setattr(bench, "bench_ensemble", measured)
    COMMANDS["bench"] = ["bench", "DIR", "--output", str(folder / "r.json"), "--format", "json"]
    reader, writer = os.pipe()
    try:
        ended, told = run("bench", writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert ended == 1
    assert "File too large" in told
    assert "standard output" not in told
    assert json.loads(os.read(reader, 100_000)) == timed.to_json()


def test_a_reader_that_is_slow_gets_everything(run, timed):
    """A pipe that does not block takes nothing while it is full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    timed.protocol["method"] = "x" * 300_000
    COMMANDS["bench"] = ["bench", "DIR", "--format", "json"]
    got = []

    def read():
        threading.Event().wait(0.2)
        while part := os.read(reader, 4096):
            got.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    assert run("bench", writer) == (0, "")
    sys.stdout.close()
    thread.join(10)
    assert json.loads(b"".join(got)) == timed.to_json()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-16", "utf-8"])
@pytest.mark.parametrize("name", ["help", "help of a command", "table", "json", "wide"])
def test_an_output_of_any_encoding_takes_every_command(monkeypatch, texts, tmp_path, encoding, name):
    label = "東京 Zürich " + "long " * 60
    arguments = [str(texts) if each == "DIR" else each for each in COMMANDS.get(name, ["zoo", str(tmp_path)])]
    if name == "wide":
        for other in range(2):
            write_tiny_ensemble(tmp_path / f"{other}{label}"[:90], GROUPS, task=TEXT_TASK)
    file = io.BytesIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(file, encoding=encoding, write_through=True))
    monkeypatch.setattr(sys, "argv", ["edvit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None), file.getvalue()
    printed = file.getvalue().decode(encoding)
    assert len(printed) > 100
    assert "Traceback" not in printed


@pytest.mark.parametrize("value", ["0", "1", "-3", "x", "99999999999"])
@pytest.mark.parametrize("variable", ["COLUMNS", "TERMINAL_WIDTH"])
def test_a_width_that_no_terminal_has_is_forgotten(monkeypatch, variable, value):
    file = io.BytesIO()
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="utf-8"))
    monkeypatch.setattr(sys, "argv", ["edvit", "plan", "digits"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert "sub-model 0" in file.getvalue().decode()


@pytest.fixture
def default_signals():
    """As a process starts: what this one has loaded may have handlers of its own, which commands leave alone."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_as_ctrl_c_does(run, timed, monkeypatch, tmp_path, name):
    number = getattr(signal, name)
    cleaned = []

    def measured(*_, **__):
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(bench, "bench_ensemble", measured)
    COMMANDS["bench"] = ["bench", "DIR", "--output", str(tmp_path / "r.json")]
    before = signal.getsignal(number)
    code, told = run("bench", os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT))
    assert (code, told) == (128 + number, f"ended by {name}: finished work is kept, the same command resumes")
    assert cleaned
    assert not (tmp_path / "r.json").exists()
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored(run, timed, monkeypatch, tmp_path):
    """As `nohup` has it."""

    def measured(*_, **__):
        signal.raise_signal(signal.SIGHUP)
        return timed

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(bench, "bench_ensemble", measured)
        COMMANDS["bench"] = ["bench", "DIR"]
        assert run("bench", os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)) == (0, "")
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_outside_of_any_command_has_its_code_too(run, monkeypatch, number, code):
    monkeypatch.setattr(_Group, "resolve_command", lambda *_: signal.raise_signal(number))
    assert run("table", closed_pipe())[0] == code


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "Permission denied`: /x/y"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "Expected enough memory"),
        (WorkDirError("our own"), "our own"),
    ],
)
def test_what_the_system_refuses_is_one_message(run, timed, monkeypatch, tmp_path, error, said):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(bench, "bench_ensemble", refuse)
    COMMANDS["bench"] = ["bench", "DIR"]
    code, told = run("bench", os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT))
    assert code == 1
    assert told.startswith("error: ")
    assert said in told


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


@pytest.mark.parametrize(("code", "ended"), [(0, 0), (None, 0), (3, 3), ("told", 1)])
def test_the_end_at_once_keeps_the_code_and_what_was_said(monkeypatch, code, ended):
    said, codes = io.StringIO(), []
    closed = io.StringIO()
    closed.close()
    for stdout, stderr in ((None, said), (closed, said)):  # neither keeps the process from its end
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(os, "_exit", codes.append)
        end_at_once(code)
    assert codes == [ended, ended]
