"""What the README says, done."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edvit_hf.recipe.running import ensemble_dir

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").rglob("*.md"))


def test_the_from_pretrained_example_runs_as_written(finished_trip, capsys, monkeypatch):
    code = re.search(r"<!-- example: from_pretrained -->\n```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) <= 11
    monkeypatch.chdir(ROOT)
    exec(code.replace("work/digits/09_card/ensemble", str(ensemble_dir(finished_trip[1]))), {})
    assert capsys.readouterr().out.strip() in set("0123456789")


def test_the_runtime_example_runs_as_written_and_without_torch():
    code = re.search(r"<!-- example: runtime -->\n```python\n(.*?)```", README, re.DOTALL).group(1)
    check = "\nimport sys\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code + check], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    first, seven, refused = done.stdout.strip().splitlines()
    assert re.fullmatch(r"\d True \('3', '5'\)", first), "sub-model 2 of the digits knows 3 and 5"
    assert seven == "7"
    assert "absent.png" in refused


def test_every_file_the_readme_names_exists():
    tree = README.split("## Where things are")[1].split("```")[1]
    for line in tree.splitlines()[1:]:
        for name in re.findall(r"[\w/]+\.py|\b[\w/]+/", line.split("   ")[0]):
            places = [ROOT / name, ROOT / "src/edvit_hf" / name]
            assert any(place.exists() for place in places), name


def test_the_measured_pages_are_what_the_results_files_say():
    command = [sys.executable, ROOT / "benchmarks/report/write.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "benchmarks/REPORT.md", *(str(p.relative_to(ROOT)) for p in DOCS)])
def test_every_benchmark_a_page_names_exists(page):
    for script in set(re.findall(r"\bbenchmarks/[\w/]+\.py", (ROOT / page).read_text())):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("target", ["install", "run", "test", "test-browser", "test-js", "space", "lint"])
def test_the_makefile_has_the_targets_the_readme_and_ci_use(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_files_the_wheel_must_carry_are_named_and_exist():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    forced = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {"model_cards/ensemble.md.j2", "recipes/digits.yaml", "recipes/fleets"} <= set(forced)
    for path in [*forced, "src/edvit_hf/hardware/devices.yaml", "src/edvit_hf/py.typed", "LICENSE"]:
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_accelerate_launch_does_the_same_as_edvit_run(finished_trip):
    path, work = finished_trip
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu.yaml"]
    done = subprocess.run(
        [*command, "recipes/run.py", path, "--work-dir", work], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("up to date, skipped") == 9
    assert str(ensemble_dir(work)) in done.stdout.replace("\n", "")
