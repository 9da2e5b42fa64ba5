# SPDX-License-Identifier: Apache-2.0
"""Every command with arguments that nobody means: each ends with a message of ours, never with a traceback."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edvit_hf import cli
from edvit_hf.cli import app
from support.serving_setup import GROUPS, TEXT_TASK
from support.tiny_ensemble import write_tiny_ensemble

ODD = {
    "empty": "",
    "space": " ",
    "dot": ".",
    "dots": "../" * 50,
    "root": "/",
    "dash": "-",
    "dashes": "---",
    "option": "-x",
    "bytes": "\udcff\udc80.yaml",
    "newline": "a\nb",
    "escape": "\x1b[31m[/x]",
    "bidi": "\u202ea/b",
    "long": "x" * 300,
    "longer": "x/" * 3000,
    "home": "~no such user/x",
    "url": "https://example.org/x",
    "url of a file": "file:///etc/passwd",
    "glob": "*[!a]?",
    "equals": "=",
    "name equals": "a=",
    "nothing equals": "=a",
    "stdin": "/dev/stdin",
    "full": "/dev/full",
    "zero": "/dev/zero",
    "memory": "/proc/self/mem",
    "socket": "SOCKET",
    "pipe": "PIPE",
    "loop": "LOOP",
    "loop.yaml": "LOOP.yaml",
    "folder": "FOLDER",
    "folder.yaml": "FOLDER.yaml",
    "folder.json": "FOLDER.json",
    "file": "FILE",
    "file below": "FILE/x",
    "file.yaml": "FILE.yaml",
    "hub id": "a/b",
    "three": "a/b/c",
    "nan": "nan",
    "inf": "inf",
    "zero number": "0",
    "negative": "-1",
    "huge": "9" * 40,
    "float": "1e400",
    "hex": "0x10",
    "comma": ",",
    "digits": "١٢",
}
COMMANDS = """
run ODD
run digits --work-dir NEW --stages split --seed ODD
plan ODD
plan digits --fleet ODD
plan digits --num-classes ODD
plan digits --figure ODD
plan DIR --fleet ODD
plan DIR --fleet five_x86 --output ODD
simulate ODD --rate 1
simulate digits --rate ODD
simulate digits --rate 1 --mean-up-s ODD
export ODD
export DIR --profile ODD
export DIR --fleet ODD
export DIR --recipe ODD
push ODD a/b --dry-run
push DIR ODD --dry-run
push DIR a/b --dry-run --profile ODD
pull ODD --fusion --output NEW
pull DIR --fusion --output ODD
pull DIR --placement ODD --device a --output NEW
pull DIR --placement FILE --device ODD --output NEW
pull DIR --sub-model ODD --output NEW
pull DIR --fusion --revision ODD --output NEW
zoo ODD
zoo --org ODD
evaluate ODD
evaluate DIR --recipe ODD
evaluate DIR --max-items ODD
predict ODD word1
predict DIR ODD
predict DIR word1 --drop ODD
predict DIR word1 --profile ODD
predict DIR word1 --sub-model ODD
predict DIR word1 --num-threads ODD
predict DIR word1 --deadline-ms ODD
serve ODD --port 0
serve DIR --port ODD --host 256.0.0.1
serve DIR --host ODD
serve DIR --trusted-proxy ODD --host 256.0.0.1
serve DIR --max-bytes ODD --host 256.0.0.1
serve DIR --grace-seconds ODD --host 256.0.0.1
bench ODD
bench DIR --precision ODD
bench DIR --threads ODD
bench DIR --batch ODD
bench DIR --tokens ODD
bench DIR --output ODD
bench DIR --figure ODD
card ODD
card DIR --repo-id ODD
doctor ODD
profile --output ODD --threads 0
bench DIR --repeats ODD --threads 0
space assemble ODD --ensemble =
profile --output NEW.yaml --threads ODD
space bundle ODD NEW
space bundle DIR ODD
space assemble NEW --wheel ODD
ODD
--ODD
""".strip().splitlines()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    write_tiny_ensemble(root, GROUPS, task=TEXT_TASK)
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory, texts):
    """A folder with things that are not what a command expects."""
    root = tmp_path_factory.mktemp("place")
    (root / "FILE").write_text("hello")
    (root / "FILE.yaml").write_text("hello: [")
    for name in ("FOLDER", "FOLDER.yaml", "FOLDER.json"):
        (root / name).mkdir()
    for name in ("LOOP", "LOOP.yaml"):
        (root / name).symlink_to(name)
    os.mkfifo(root / "PIPE")
    (root / "SOCKET").symlink_to("/dev/null")
    shutil.copytree(texts, root / "DIR")
    return root


def stop(*_):
    raise AssertionError("waits for something")


@pytest.mark.parametrize("place_in_list", range(len(COMMANDS)))
def test_no_argument_is_answered_with_a_traceback(place, monkeypatch, place_in_list):
    """Each command with a sixth of them, so that the neighbours of a command in the list have the others."""
    monkeypatch.chdir(place)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for odd in list(ODD.values())[place_in_list % 6 :: 6]:
            arguments = [part.replace("ODD", odd) for part in COMMANDS[place_in_list].split()]
            signal.alarm(60)
            done = CliRunner().invoke(app, arguments, input=b"")
            signal.alarm(0)
            assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
            assert done.exit_code in (0, 1, 2, 3), (arguments, done.exit_code)
            if done.exit_code:
                assert "rror" in done.output or "Usage" in done.output, (arguments, done.output)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "digits", "--figure", "LOOP.png"], "can be written"),
        (["plan", "digits", "--num-classes", "9" * 40], "--num-classes"),
        (["pull", "DIR", "--fusion", "--output", "/"], "can be made or replaced"),
        (["pull", "DIR", "--fusion", "--output", "LOOP"], "can be made or replaced"),
        (["bench", "DIR", "--repeats", "9" * 40], "at most"),
        (["profile", "--output", "NEW.yaml", "--repeats", "9" * 40], "at most"),
        (["predict", "DIR", "-"], "Expected a text"),
        (["export", "DIR", "--no-such"], "No such option"),
        (["evaluate", "DIR", "--max-item", "3"], "--max-items"),
        (["evaluat", "DIR"], "Did you mean 'evaluate'"),
    ],
)
def test_what_is_wrong_is_named(place, monkeypatch, arguments, said):
    monkeypatch.chdir(place)
    if not Path("LOOP.png").is_symlink():
        Path("LOOP.png").symlink_to("LOOP.png/x")
    done = CliRunner().invoke(app, arguments, input=b"", env={"COLUMNS": "200"})
    assert done.exit_code in (1, 2)
    assert said in " ".join(done.output.split())


def test_a_current_folder_that_was_deleted_is_told(monkeypatch, tmp_path, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "argv", ["edvit", "plan", "digits"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "a current folder" in capsys.readouterr().err


@pytest.mark.parametrize("cache", [None, "FILE", "/proc/none"])
def test_a_cache_that_cannot_be_is_told(place, monkeypatch, cache):
    """No HOME and no user of that number; a file; a file system that takes nothing."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.delenv("EDVIT_CACHE_DIR", raising=False)
    if cache is not None:
        monkeypatch.setenv("EDVIT_CACHE_DIR", cache)
    done = CliRunner().invoke(app, ["predict", "owner/none", "word1"])
    assert done.exit_code == 1
    assert "EDVIT_CACHE_DIR" in done.output
