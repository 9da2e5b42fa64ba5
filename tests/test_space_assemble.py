"""The Space is filled from a finished ensemble: whole or not at all, with nothing it does not need."""

import importlib.util
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edvit_hf.errors import EDViTError, ManifestError
from edvit_hf.runtime import EDViTRuntime
from tiny_ensemble import write_tiny_ensemble

SPACE = Path(__file__).resolve().parents[1] / "space_app"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("space_assemble", SPACE / "assemble.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ensemble(tmp_path):
    """A finished ensemble: the exports the page needs, and the rest of a published folder."""
    root = tmp_path / "ensemble"
    write_tiny_ensemble(root, [[0, 1], [2, 3]])
    (root / "README.md").write_text("the card")
    (root / "results.json").write_text(json.dumps({"rows": []}))
    (root / "assets").mkdir()
    (root / "assets/figure.png").write_bytes(b"png")
    for name in ("model.safetensors", "config.json", "modeling_edvit.py", "sub_models/00/model.safetensors"):
        (root / name).write_text("not needed")
    return root


@pytest.fixture
def space(tmp_path):
    folder = tmp_path / "space"
    folder.mkdir()
    shutil.copy(SPACE / "requirements.txt", folder)
    return folder


def files_under(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_page_gets_what_it_needs_and_nothing_else(script, ensemble, space, capsys):
    assert script.main([str(ensemble), "--space", str(space)]) == 0
    assert files_under(space / "model") == {
        "manifest.json", "preprocessor_config.json", "results.json", "MODEL_CARD.md", "assets/figure.png",
        "onnx/fusion.onnx", "sub_models/00/onnx/model.onnx", "sub_models/00/onnx/model_quint8_avx2.onnx",
        "sub_models/01/onnx/model.onnx",
    }  # fmt: skip
    assert (space / "model/MODEL_CARD.md").read_text() == "the card"
    assert str(space / "model") in capsys.readouterr().out
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    original, copied = (EDViTRuntime.from_pretrained(folder) for folder in (ensemble, space / "model"))
    assert np.array_equal(original.predict(pixels).probabilities, copied.predict(pixels).probabilities)
    assert (space / "requirements.txt").read_text() == (SPACE / "requirements.txt").read_text()


def test_a_bare_export_without_a_card_is_enough(script, tmp_path, space):
    write_tiny_ensemble(tmp_path / "bare", [[0], [1]])
    assert "MODEL_CARD.md" not in files_under(script.assemble(tmp_path / "bare", space))


def test_filling_again_leaves_nothing_of_the_last_ensemble(script, ensemble, tmp_path, space):
    script.assemble(ensemble, space)
    write_tiny_ensemble(tmp_path / "other", [[0], [1], [2]])
    script.assemble(tmp_path / "other", space)
    assert "sub_models/02/onnx/model.onnx" in files_under(space / "model")
    assert "MODEL_CARD.md" not in files_under(space / "model")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda root: (root / "manifest.json").unlink(), ManifestError, "manifest.json"),
        (lambda root: (root / "onnx/fusion.onnx").unlink(), ManifestError, "fusion.onnx"),
        (lambda root: (root / "sub_models/01/onnx/model.onnx").write_bytes(b""), ManifestError, "sub_models/01"),
        (lambda root: (root / "preprocessor_config.json").unlink(), EDViTError, "preprocessor_config.json"),
    ],
)
def test_an_unfinished_ensemble_is_refused_and_the_last_one_stays(
    script, ensemble, tmp_path, space, damage, error, message, capsys
):
    write_tiny_ensemble(tmp_path / "last", [[0], [1]])
    script.assemble(tmp_path / "last", space)
    before = files_under(space)
    damage(ensemble)
    with pytest.raises(error, match=message):
        script.assemble(ensemble, space)
    assert script.main([str(ensemble), "--space", str(space)]) == 1
    assert message in capsys.readouterr().err
    assert files_under(space) == before


def test_with_the_wheel_the_requirements_name_it(script, ensemble, space, monkeypatch):
    def build(command, **_options):
        folder = Path(command[command.index("--wheel-dir") + 1])
        assert command[-1] == str(SPACE.parent)
        with zipfile.ZipFile(folder / "edvit_hf-9.9-py3-none-any.whl", "w") as archive:
            archive.writestr("edvit_hf/__init__.py", "")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(script.subprocess, "run", build)
    (space / "edvit_hf-0.0-py3-none-any.whl").write_text("older")
    for _ in range(2):  # again: the line with the wheel is recognised too
        assert script.main([str(ensemble), "--space", str(space), "--wheel"]) == 0
        assert [path.name for path in space.glob("*.whl")] == ["edvit_hf-9.9-py3-none-any.whl"]
    expected = (SPACE / "requirements.txt").read_text().splitlines()
    ours = next(i for i, line in enumerate(expected) if line.startswith("edvit_hf"))
    expected[ours] = "./edvit_hf-9.9-py3-none-any.whl[device]"
    assert (space / "requirements.txt").read_text().splitlines() == expected
    assert not list(space.rglob("*.partial"))


def test_a_build_that_fails_and_foreign_requirements_are_refused(script, space, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no build backend")
    monkeypatch.setattr(script.subprocess, "run", lambda *_args, **_options: failed)
    with pytest.raises(EDViTError, match="no build backend"):
        script.add_wheel(space)
    (space / "requirements.txt").write_text("gradio\n")
    with pytest.raises(EDViTError, match="exactly one line, got 0"):
        script.add_wheel(space)


def test_wheels_are_ignored_by_git_and_make_space_uses_the_script():
    ignored = (SPACE.parent / ".gitignore").read_text().splitlines()
    assert "space_app/*.whl" in ignored
    assert "space_app/model/" not in ignored  # a fresh clone carries the digits ensemble
    recipe = (SPACE.parent / "Makefile").read_text().split("\nspace:")[1].split("\n\n")[0]
    assert "space_app/assemble.py work/digits/09_card/ensemble" in recipe
    assert "space_app/app.py" in recipe
