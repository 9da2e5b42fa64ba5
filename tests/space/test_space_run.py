# SPDX-License-Identifier: Apache-2.0
"""`edvit space run`: the page as a visitor's browser finds it, and clear words where it cannot start."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import EDViTError, MissingExtraError
from edvit_hf.manifest import Manifest
from edvit_hf.space import page as space_page
from edvit_hf.space.page import ENSEMBLE_VARIABLE, run_page
from support.tiny_ensemble import write_tiny_ensemble

runner = CliRunner()


@pytest.fixture
def ensemble(tmp_path):
    write_tiny_ensemble(tmp_path / "tiny", [[0], [1]])
    return tmp_path / "tiny"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page that notes what it is given instead of serving."""
    folder = tmp_path / "page"
    (folder / "model/digits").mkdir(parents=True)
    (folder / "model/digits/manifest.json").write_text("{}")
    (folder / "beside.py").write_text("VALUE = 7\n")
    (folder / "app.py").write_text(
        "import json, os, sys\nfrom pathlib import Path\nimport beside\n"
        "seen = {k: v for k, v in os.environ.items() if k.startswith(('EDVIT_SPACE', 'GRADIO_'))}\n"
        "Path(__file__).with_name('seen.json').write_text(json.dumps([seen, __name__, beside.VALUE]))\n"
    )
    monkeypatch.setattr(space_page, "page_folder", lambda: folder)
    for name in [name for name in os.environ if name.startswith(("GRADIO_", "EDVIT_SPACE"))]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    yield folder
    os.environ.clear()
    os.environ.update(before)
    sys.modules.pop("beside", None)


def seen(page):
    return json.loads((page / "seen.json").read_text())


def test_the_page_runs_as_a_program_on_this_machine_alone(page, ensemble, monkeypatch):
    monkeypatch.setenv(ENSEMBLE_VARIABLE, "left/over")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    path = list(sys.path)
    run_page()
    environment, name, value = seen(page)
    assert (name, value) == ("__main__", 7)
    assert environment == {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_ANALYTICS_ENABLED": "False"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.chdir(ensemble.parent)
    run_page("tiny", port=port)
    environment, _, _ = seen(page)
    assert environment[ENSEMBLE_VARIABLE] == str(ensemble.resolve())
    assert environment["GRADIO_SERVER_PORT"] == str(port)
    assert sys.path == path


def test_a_hub_id_is_passed_on_for_the_page_to_fetch(page, caplog):
    run_page("lab/tiny")
    assert seen(page)[0][ENSEMBLE_VARIABLE] == "lab/tiny"
    assert "taken for a Hub repository" in caplog.text


def test_a_folder_without_graphs_of_the_whole_ensemble_will_do(page, ensemble):
    manifest = Manifest.load(ensemble)
    whole = replace(manifest.sub_models[0].variants[0], file="onnx/model.onnx")
    replace(manifest, whole=[whole]).save(ensemble)
    run_page(ensemble)
    assert seen(page)[0][ENSEMBLE_VARIABLE] == str(ensemble.resolve())


def test_what_cannot_be_shown_is_said_before_the_page_starts(page, ensemble, tmp_path):
    (ensemble / "onnx/fusion.onnx").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "space").mkdir()
    (tmp_path / "space/app.py").write_text("")
    for source, message in [
        ("no/such/folder", "is neither"),
        ("../x", "is neither"),
        ("nan", "OWNER/NAME of a Hub repository, got 'nan'"),  # no page of nothing, which would wait for ever
        ("https://example.test/x", "is neither"),
        (tmp_path / "empty", "No manifest"),
        (ensemble, "onnx/fusion.onnx: expected"),
        (tmp_path / "space", "a whole Space with a page of its own.*python .*app.py"),
    ]:
        with pytest.raises(EDViTError, match=message):
            run_page(source)
        done = runner.invoke(app, ["space", "run", str(source)])
        assert done.exit_code == 1
        assert "Traceback" not in done.output
    (page / "model/digits/manifest.json").unlink()
    with pytest.raises(EDViTError, match="Expected bundled ensembles"):
        run_page()
    assert not (page / "seen.json").exists()


def test_a_taken_port_and_a_missing_package_are_named(page, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EDViTError, match=f"Expected port {port} to be free.*--port"):
            run_page(port=port)
    monkeypatch.setattr(space_page.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"gradio.*edvit_hf\[space\]"):
        run_page()
    assert not (page / "seen.json").exists()


def test_an_interruption_is_no_error(page):
    (page / "app.py").write_text("raise KeyboardInterrupt\n")
    done = runner.invoke(app, ["space", "run"])
    assert (done.exit_code, done.output) == (0, "")


@pytest.mark.slow
def test_the_real_page_answers_and_ends_cleanly(ensemble, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "home").mkdir()
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "EDVIT_NUM_THREADS": "1", "HOME": str(tmp_path / "home")}
    for name in ("EDVIT_CACHE_DIR", "HF_HOME", "HF_HUB_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        env.pop(name, None)
    command = [sys.executable, "-m", "edvit_hf.cli", "space", "run", str(ensemble), "--port", str(port)]
    process = subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        page, end = "", time.monotonic() + 60
        while not page and process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "<gradio-app" in page or "gradio" in page, said
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert re.search(rf"127\.0\.0\.1:{port}", said)
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]  # no cache, no identity for telemetry
