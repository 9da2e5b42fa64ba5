# SPDX-License-Identifier: Apache-2.0
"""Options with values that cannot be: an error of ours that says so, before anything is loaded."""

import io
import json
import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.cli.measure import _read_input
from edvit_hf.errors import DataError, EDViTError
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import EDViTRuntime
from support.serving_setup import AUDIO, GROUPS, IMAGE, TEXT_TASK, png
from support.tiny_ensemble import write_tiny_ensemble

WRONG = "raspbery-pi"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An ensemble without its graphs: whatever opens one of them fails."""
    root = tmp_path_factory.mktemp("bare")
    write_tiny_ensemble(root, GROUPS, task=IMAGE)
    for graph in root.rglob("*.onnx"):
        graph.unlink()
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    write_tiny_ensemble(root, GROUPS, task=IMAGE)
    return root


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    write_tiny_ensemble(root, GROUPS, task=TEXT_TASK)
    return root


def told(*arguments, stdin=None):
    """What a refused command says."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    return " ".join(done.output.split())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_kind_of_hardware_that_nobody_knows_is_refused_before_a_graph_is_opened(bare, precision):
    with pytest.raises(EDViTError, match="Did you mean `raspberry-pi-") as refused:
        EDViTRuntime.from_pretrained(bare, profile=WRONG, precision=precision)
    assert all(name in str(refused.value) for name in (WRONG, *load_profiles()))
    with pytest.raises(EDViTError, match=r"Expected a kind of hardware .*, got ''"):
        EDViTRuntime.from_pretrained(bare, profile="")


def test_an_engine_of_ones_own_does_not_make_a_wrong_name_right(bare):
    with pytest.raises(EDViTError, match="Did you mean `raspberry-pi-"):
        EDViTRuntime.from_pretrained(bare, engine=object(), profile=WRONG)


def test_a_kind_that_only_the_ensemble_knows_is_taken(texts, tmp_path):
    """A later version of the library may have exported for it."""
    write_tiny_ensemble(tmp_path, GROUPS, task=TEXT_TASK)
    data = json.loads((tmp_path / "manifest.json").read_text())
    data["sub_models"][0]["variants"][1]["profiles"] = ["board-of-tomorrow"]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    assert Manifest.load(tmp_path).sub_models[0].variants[1].profiles == ["board-of-tomorrow"]
    options = {"precision": "int8", "sub_models": [0], "num_threads": 1}
    with EDViTRuntime.from_pretrained(tmp_path, profile="board-of-tomorrow", **options) as runtime:
        assert runtime.loaded == (0,)
    with pytest.raises(EDViTError, match="board-of-tomorrow"):
        EDViTRuntime.from_pretrained(tmp_path, profile=WRONG, **options)


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "DIR", "--port", 0),
        ("export", "DIR"),
        ("pull", "DIR", "--sub-model", 0),
        ("push", "DIR", "lab/tiny", "--dry-run"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_that_takes_a_profile_names_the_known_ones_and_the_nearest(bare, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    text = told(*(bare if each == "DIR" else each for each in command), "--profile", WRONG)
    assert WRONG in text
    assert re.search("Did you mean [`']raspberry-pi-", text)
    assert "x86-avx512-vnni" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [0, -1, 1025, 10**30])
def test_a_number_of_threads_that_no_machine_has_is_refused(texts, number):
    assert f"got {number}" in told("serve", texts, "--port", 0, "--num-threads", number)


@pytest.mark.parametrize("source", [".", "/dev/null"])
def test_what_lies_here_under_that_name_is_no_text(texts, source):
    text = told("predict", texts, source)
    assert f"Expected a text, got '{source}', which is a file or folder here" in text
    assert "edvit predict DIR - <" in text


def test_no_standard_input_is_told(monkeypatch):
    monkeypatch.setattr("edvit_hf.cli.measure.sys.stdin", None)
    with pytest.raises(DataError, match="Expected an input on standard input, got none"):
        _read_input("-", is_text=False)
    with pytest.raises(DataError, match="Expected an input on standard input, got none"):
        _read_input("-", is_text=True)


def test_an_endless_standard_input_is_not_read_to_its_end(texts, monkeypatch):
    monkeypatch.setattr("edvit_hf.cli.measure._MOST_INPUT_BYTES", 1000)
    text = ("word1 " * 200)[:1000]
    read = json.loads(
        CliRunner().invoke(app, ["predict", str(texts), "-", "--format", "json"], input=text.encode()).stdout
    )
    assert read["input"] == text
    assert "at most 1000 bytes on standard input, got more" in told("predict", texts, "-", stdin=b"x" * 1001)


def test_standard_input_is_held_once(monkeypatch):
    given = b"x" * 2**23
    monkeypatch.setattr("edvit_hf.cli.measure.sys.stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    tracemalloc.start()
    try:
        assert _read_input("-", is_text=False) == given
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(given)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--deadline", value) for value in ("-1", "0", "nan")] + [("--drop", value) for value in ("-1", "3", "9" * 30)],
)
def test_deadlines_and_sub_models_that_cannot_be_are_refused(texts, option, value):
    text = told("predict", texts, "word1", option, value)
    assert "Expected a positive `deadline_ms`" in text or "`absent`" in text


@pytest.mark.parametrize("source", ["DIR", "EMPTY", "TEXT", "/none/such", "", "x" * 5000, "-"])
def test_what_is_no_picture_is_told(pictures, tmp_path, source):
    (tmp_path / "EMPTY").write_bytes(b"")
    (tmp_path / "TEXT").write_text("hello")
    named = {"DIR": tmp_path, "EMPTY": tmp_path / "EMPTY", "TEXT": tmp_path / "TEXT"}
    assert "error: Expected" in told("predict", pictures, named.get(source, source), stdin=b"")


@pytest.mark.parametrize("task", [IMAGE, AUDIO])
def test_a_name_that_no_file_can_have_is_told(tmp_path, task):
    """Not from a command line, which cannot hold it."""
    write_tiny_ensemble(tmp_path, GROUPS, task=task)
    with (
        EDViTRuntime.from_pretrained(tmp_path, num_threads=1) as runtime,
        pytest.raises(DataError, match=r"Expected the path of a readable \w+ file, got .*null byte"),
    ):
        runtime("a\0b")


def test_a_file_that_may_not_be_read_is_told(pictures, tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(png())
    opened = Path.open

    def refuse(file, *arguments, **options):  # permissions do not stop the user that tests often run as
        if file == path:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert "(Permission denied)" in told("predict", pictures, path)


@pytest.mark.parametrize("ensemble", ["", ".", "/dev/null", "a/b/c", "a\nb", "x" * 5000, "FILE"])
def test_what_is_no_ensemble_is_told(tmp_path, monkeypatch, ensemble):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("hello")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for command in (("predict", ensemble, "word1"), ("serve", ensemble, "--port", 0)):
        assert told(*command).startswith("error: ")
