"""The Space: the lines that a visitor copies from the page run elsewhere, whatever the ensemble is called."""

import contextlib
import io
import json
import shlex
from pathlib import Path

import demo
import ensembles
import pytest
import snippets
from typer.testing import CliRunner

from edvit_hf.cli import app
from space_ensembles import write_digits
from tiny_ensemble import write_tiny_ensemble
from tiny_export import exported_images

NAMES = ("digits", "spoken_digits", "question_type")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("toy") / "digits_toy")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    monkeypatch.delenv(ensembles.OWN_VARIABLE, raising=False)
    monkeypatch.delenv(ensembles.SPACE_VARIABLE, raising=False)


def run(lines):
    """Run copied Python; what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(lines, "copied", "exec"), {})
    return out.getvalue()


def test_copied_lines_run_from_a_checkout(monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    for name in NAMES:
        opened = demo.open_bundle(name)
        assert snippets.TRANSFORMERS not in opened.code, "a bundle holds graphs, no weights"
        said = run(opened.code[snippets.RUNTIME]).splitlines()
        assert said[0].split()[0] in opened.runtime.label_names
        assert str(opened.devices[0].classes[0]) in said[1]


def test_copied_commands_run(monkeypatch, folder, tmp_path):
    opened = demo.open_other(str(folder))
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.new("RGB", (8, 8)).save("photo.png")
    assert run(opened.code[snippets.RUNTIME])
    lines = [line for line in opened.code[snippets.COMMANDS].splitlines() if not line.startswith("#")]
    predict = shlex.split(lines[0])
    assert predict[0] == "edvit"
    done = CliRunner().invoke(app, predict[1:])
    assert done.exit_code == 0, done.output
    pull = shlex.split(lines[1])
    assert pull[:2] == ["edvit", "pull"]


@pytest.mark.parametrize("name", NAMES)
def test_the_server_of_the_copied_lines_takes_the_request_of_the_copied_lines(monkeypatch, name):
    from serving_setup import make_client, make_service

    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    serve, curl = (line for line in demo.open_bundle(name).code[snippets.SERVER].splitlines() if line[0] != "#")
    command, where = shlex.split(serve)[:2], shlex.split(serve)[2]
    assert command == ["edvit", "serve"]
    option, value, address = shlex.split(curl)[1:]
    file = value.partition("@")[2]
    body = {"json": json.loads(value)} if option == "--json" else {"files": {"file": (file, Path(file).read_bytes())}}
    with make_client(make_service(where)) as client:
        reply = client.post(address.removeprefix("http://127.0.0.1:8000"), **body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["label"] in demo.open_bundle(name).runtime.label_names


def test_lines_for_transformers_are_there_with_the_weights_and_run(tmp_path_factory):
    root, _, _, _ = exported_images(tmp_path_factory)
    code = demo.open_other(str(root)).code
    run(code[snippets.TRANSFORMERS] + "\nassert model.config.num_labels == 4")


@pytest.mark.parametrize("name", ["it's", 'quo"te', "spa ce", "$(x)", "back\\slash"])
def test_odd_names_are_quoted_in_copied_lines(tmp_path, name):
    root = tmp_path / name
    write_tiny_ensemble(root, [[0, 1], [2]])
    code = demo.open_other(str(root)).code
    assert f"from_pretrained({json.dumps(str(root.resolve()))})" in code[snippets.RUNTIME]
    compile(code[snippets.RUNTIME], "copied", "exec")
    assert shlex.split(code[snippets.COMMANDS].splitlines()[1])[2] == str(root.resolve())
