# SPDX-License-Identifier: Apache-2.0
"""The wheel, built and read: what a user installs holds everything the package looks for."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_every_module_of_the_source_and_every_data_file_is_in_it_once(names):
    assert len(names) == len(set(names))
    page = ROOT / "space_app"
    shown = {f"edvit_hf/space_app/{path.relative_to(page).as_posix()}" for path in page.rglob("*") if path.is_file()}
    shown = {name for name in shown if "__pycache__" not in name}
    assert {"edvit_hf/space_app/app.py", "edvit_hf/space_app/model/digits/manifest.json"} <= shown
    assert {name for name in names if name.startswith("edvit_hf/space_app/")} == shown
    assert not [name for name in names if name.endswith(".whl")]
    names = [name for name in names if name not in shown]
    source = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == source
    data = {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    recipes = {f"edvit_hf/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    fleets = {f"edvit_hf/recipes/fleets/{path.name}" for path in (ROOT / "recipes/fleets").glob("*.yaml")}
    fixed = {"edvit_hf/hardware/devices.yaml", "edvit_hf/py.typed", "edvit_hf/templates/ensemble.md.j2"}
    assert "edvit_hf/recipes/digits.yaml" in recipes
    assert "edvit_hf/recipes/fleets/five_x86.yaml" in fleets
    schemas = {f"edvit_hf/manifest/{name}" for name in ("manifest.schema.json", "placement.schema.json")}
    assert data == recipes | fleets | fixed | schemas


def test_the_optimum_command_lies_in_optimums_namespace_and_nowhere_else(names):
    assert [name for name in names if "optimum" in name.split("/")[0]] == [
        "optimum/commands/register/register_edvit.py"
    ]
    assert [name for name in names if name.endswith("register_edvit.py")] == [
        "optimum/commands/register/register_edvit.py"
    ]


def test_its_metadata_names_the_license_the_command_and_the_extras(wheel, names):
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    with zipfile.ZipFile(wheel) as archive:
        read = {name: archive.read(f"{info}/{name}").decode() for name in ("METADATA", "entry_points.txt")}
        license_text = archive.read(f"{info}/licenses/LICENSE").decode()
    metadata = Parser().parsestr(read["METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert license_text == (ROOT / "LICENSE").read_text()
    assert "edvit = edvit_hf.cli:main" in read["entry_points.txt"]
    extras = {"device", "hub", "plan", "profile", "torch", "train", "export", "serve", "space", "browser", "track"}
    extras |= {"oip", "ray"}
    assert extras | {"all", "dev"} == set(metadata.get_all("Provides-Extra"))
    base = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in base if line.startswith(("torch", "transformers"))]


def test_it_is_small_though_the_page_and_its_ensembles_are_in_it(wheel):
    assert wheel.stat().st_size <= 4 * 2**20


def test_an_unpacked_wheel_finds_its_own_files(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import edvit_hf
from edvit_hf.card.render import template_path
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.recipe import find_recipe, load_recipe
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.space.page import bundled_ensembles, checkout, page_folder
assert checkout() is None
assert set(bundled_ensembles()) == {{"digits", "question_type", "spoken_digits"}}
assert "x86-avx2" in load_profiles()
recipe = load_recipe("digits")
assert load_fleet(recipe.fleet_path).devices
print(edvit_hf.__file__, template_path(), find_recipe("digits"), recipe.fleet_path, page_folder(), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(tmp_path / name)
        for name in (
            "edvit_hf/__init__.py",
            "edvit_hf/templates/ensemble.md.j2",
            "edvit_hf/recipes/digits.yaml",
            "edvit_hf/recipes/fleets/five_x86.yaml",
            "edvit_hf/space_app",
        )
    ]
