# SPDX-License-Identifier: Apache-2.0
"""The Space: the lines that a visitor copies from the page run elsewhere, whatever the ensemble is called."""

import contextlib
import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from answers import ensembles, snippets
from edvit_hf.cli import app
from edvit_hf.manifest import Manifest
from support.hub_ensemble import files_of, write_publishable
from support.space_ensembles import write_digits
from support.tiny_ensemble import write_tiny_ensemble
from support.tiny_export import exported_images

pytestmark = pytest.mark.slow

pytest_plugins = ["support.hub_fixtures"]
NAMES = ("digits", "spoken_digits", "question_type")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
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


def shell_lines(code):
    return [shlex.split(line) for line in code.splitlines() if not line.startswith("#")]


def run_command(words):
    """A line of the shell, in this process: our own command, or the Hub's."""
    if words[0] == "hf":
        from huggingface_hub.cli.hf import app as hf

        return hf.main(args=words[1:], prog_name="hf", standalone_mode=False)
    assert words[0] == "edvit"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, (words, done.output)
    return done.output


def ask_server(source, curl):
    """What the server of that line answers to the request of the other."""
    from support.serving_setup import make_client, make_service

    option, value, address = curl[1:]
    file = value.partition("@")[2]
    body = {"json": json.loads(value)} if option == "--json" else {"files": {"file": (file, Path(file).read_bytes())}}
    with make_client(make_service(source)) as client:
        reply = client.post(address.removeprefix("http://127.0.0.1:8000"), **body)
    assert reply.status_code == 200, reply.text
    return reply.json()["label"]


def run_all(code, opened):
    """Run every line of every block as a visitor would, in the folder that the test is in."""
    assert list(code) == [snippets.RUNTIME, snippets.COMMANDS, snippets.SERVER], "a bundle holds graphs, no weights"
    *fetch, predict, pull = shell_lines(code[snippets.COMMANDS])
    *again, serve, curl = shell_lines(code[snippets.SERVER])
    assert fetch == again
    for words in fetch:
        assert words[:2] == ["hf", "download"]
        run_command(words)
    label = right_label(opened)
    assert predict[:2] == ["edvit", "predict"]
    assert label in run_command(predict)
    assert pull[:2] == ["edvit", "pull"]
    assert "model.onnx" in run_command(pull)
    assert Manifest.load("device_0").label_names == list(opened.runtime.label_names)
    assert serve[:2] == ["edvit", "serve"]
    assert curl[0] == "curl"
    assert ask_server(serve[2], curl) == label
    said = run(code[snippets.RUNTIME]).splitlines()
    assert said[0].split()[0] == label
    assert str(opened.devices[0].classes[0]) in said[1]


def right_label(opened):
    """Of the first example: its file says it; that of the question is a description."""
    return "DESC" if opened.task == "text-classification" else opened.examples[0].label


@pytest.mark.parametrize("name", NAMES)
def test_every_line_that_a_bundle_offers_runs_in_any_folder_and_answers_right(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    opened = ensembles.open_bundle(name)
    assert str(ensembles.HERE / "model" / name) in opened.code[snippets.RUNTIME], "whatever the folder"
    run_all(opened.code, opened)


@pytest.mark.parametrize("name", ["spoken_digits", "question_type"])  # whose example is a file, and a text
def test_every_line_that_a_bundle_of_a_space_offers_runs_on_the_visitors_machine(hub, monkeypatch, tmp_path, name):
    kept = ("model", "examples")
    files = {f"{k}/{name}/{path}": data for k in kept for path, data in files_of(ensembles.HERE / k / name).items()}
    hub.create("ada/page", {**files, "app.py": b"", "model/other/manifest.json": b"{}"}, sdk="gradio")
    monkeypatch.setenv(ensembles.SPACE_VARIABLE, "ada/page")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.chdir(tmp_path)
    ensembles.openings.clear()
    opened = ensembles.open_bundle(name)
    ensembles.openings.clear()
    assert str(ensembles.HERE) not in "".join(opened.code.values()), "no visitor has the Space's own folders"
    run_all(opened.code, opened)
    assert not Path("page/app.py").exists(), "only what is needed is fetched"
    assert not Path("page/model/other").exists()


def test_copied_commands_run_and_pull_is_offered_only_where_it_works(monkeypatch, toy, tmp_path):
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.new("RGB", (8, 8)).save("photo.png")
    opened = ensembles.open_other(str(toy))
    assert run(opened.code[snippets.RUNTIME])
    (predict,) = shell_lines(opened.code[snippets.COMMANDS])  # the toy has no configs of its sub-models
    run_command(predict)
    write_publishable(tmp_path / "whole")
    predict, pull = shell_lines(ensembles.open_other(str(tmp_path / "whole")).code[snippets.COMMANDS])
    run_command(predict)
    run_command(pull)
    shutil.copytree(tmp_path / "whole", tmp_path / "bare")
    (tmp_path / "bare/sub_models/00/config.json").unlink()
    assert "edvit pull" not in ensembles.open_other(str(tmp_path / "bare")).code[snippets.COMMANDS]


def test_lines_for_transformers_are_there_with_the_weights_and_run(tmp_path_factory):
    root, _, _, _ = exported_images(tmp_path_factory)
    code = ensembles.open_other(str(root)).code
    run(code[snippets.TRANSFORMERS] + "\nassert model.config.num_labels == 4")


@pytest.mark.parametrize("name", ["it's", 'quo"te', "spa ce", "$(x)", "back\\slash"])
def test_odd_names_are_quoted_in_copied_lines(tmp_path, name):
    root = tmp_path / name
    write_tiny_ensemble(root, [[0, 1], [2]])
    code = ensembles.open_other(str(root)).code
    assert f"from_pretrained({json.dumps(str(root.resolve()))})" in code[snippets.RUNTIME]
    compile(code[snippets.RUNTIME], "copied", "exec")
    assert shlex.split(code[snippets.COMMANDS].splitlines()[1])[2] == str(root.resolve())
