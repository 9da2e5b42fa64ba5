# SPDX-License-Identifier: Apache-2.0
"""How a Space gets the library: as a wheel beside the page where there is a checkout, else by its released version."""

import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edvit_hf import __version__
from edvit_hf.cli import app
from edvit_hf.errors import EDViTError
from edvit_hf.hub.checks import list_files
from edvit_hf.space import assemble, assembling
from edvit_hf.space.checks import check_space
from edvit_hf.space.page import page_folder
from edvit_hf.space.wheel import build_wheel, check_wheel, name_library
from support.tiny_ensemble import write_tiny_ensemble

PAGE = page_folder()
runner = CliRunner()


@pytest.fixture
def ensemble(tmp_path):
    root = tmp_path / "ensemble"
    write_tiny_ensemble(root, [[0, 1], [2, 3]])
    return root


def write_wheel(folder, version=__version__, name="edvit_hf"):
    """A wheel with nothing but its metadata."""
    path = folder / f"edvit_hf-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
        )
    return path


def test_a_wheel_is_named_in_the_requirements_by_its_path_or_by_its_address(ensemble, tmp_path):
    wheel = write_wheel(tmp_path)
    space = assemble(tmp_path / "space", {"tiny": ensemble}, library=wheel)
    check_space(space, list_files(space))
    assert f"\n./{wheel.name}[device,hub]\n" in (space / "requirements.txt").read_text()
    assemble(space, {"tiny": ensemble}, library=wheel, address="https://hub.test/spaces/lab/page/resolve/main")
    check_space(space, list_files(space))
    (line,) = [x for x in (space / "requirements.txt").read_text().splitlines() if x.startswith("edvit_hf")]
    address = f"https://hub.test/spaces/lab/page/resolve/main/{wheel.name}"
    assert re.fullmatch(rf"edvit_hf\[device,hub\] @ {re.escape(address)}#sha256=[0-9a-f]{{64}}", line)
    others = [x for x in (PAGE / "requirements.txt").read_text().splitlines() if not x.startswith("edvit_hf")]
    assert [x for x in (space / "requirements.txt").read_text().splitlines() if x != line] == others


def test_a_wheel_of_another_version_or_of_something_else_is_refused(ensemble, tmp_path):
    for path, message in [
        (write_wheel(tmp_path, "9.9"), "of edvit_hf 9.9"),
        (write_wheel(tmp_path, name="other"), "of other"),
        (tmp_path / "none.whl", "cannot be read"),
        (Path("/dev/full"), "cannot be read"),  # would be read without end
    ]:
        with pytest.raises(EDViTError, match=message):
            assemble(tmp_path / "space", {"tiny": ensemble}, library=path)
    (tmp_path / "text.whl").write_text("no archive")
    with pytest.raises(EDViTError, match="cannot be read"):
        check_wheel(tmp_path / "text.whl")
    assert not (tmp_path / "space").exists()
    done = runner.invoke(app, ["space", "assemble", "x", "--wheel", "y.whl", "--released"])
    assert done.exit_code == 2


def test_in_a_checkout_the_wheel_is_built_and_elsewhere_the_version_named(ensemble, tmp_path, monkeypatch):
    def build(command, **_options):
        assert command[-1] == str(PAGE.parent)
        write_wheel(Path(command[command.index("--wheel-dir") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", build)
    space = assemble(tmp_path / "space", {"tiny": ensemble})
    assert [p.name for p in space.glob("*.whl")] == [f"edvit_hf-{__version__}-py3-none-any.whl"]
    monkeypatch.setattr(assembling, "checkout", lambda: None)
    assert not list(assemble(space, {"tiny": ensemble}).glob("*.whl"))


def test_a_build_that_fails_and_foreign_requirements_are_refused(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no build backend")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: failed)
    with pytest.raises(EDViTError, match="no build backend"):
        build_wheel(tmp_path)

    def hang(*_args, **options):
        raise subprocess.TimeoutExpired("pip", options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(EDViTError, match="no end after 300 s"):
        build_wheel(tmp_path)
    monkeypatch.setattr("edvit_hf.space.wheel.checkout", lambda: None)
    with pytest.raises(EDViTError, match="got an installed package"):
        build_wheel(tmp_path)
    (tmp_path / "requirements.txt").write_text("gradio\nedvit_hf_other==1\n")
    with pytest.raises(EDViTError, match="exactly one line, got 0"):
        name_library(tmp_path / "requirements.txt", None)
