# SPDX-License-Identifier: Apache-2.0
"""The documentation says what is so: its examples run, what it names exists, what is generated is current."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edvit_hf.recipe.running import ensemble_dir

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "edvit_hf"
README = (ROOT / "README.md").read_text()
ELSEWHERE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "model_cards/README.md")
NAMING = (
    "benchmarks/**/*.py",
    "benchmarks/*.md",
    "recipes/**/*.yaml",
    "space_app/**/*.py",
    "src/**/*.py",
    "src/**/*.yaml",
)
PAGES = [*(ROOT / name for name in ELSEWHERE), *sorted(DOCS.rglob("*.md"))]


def links(page: Path) -> set[str]:
    """Every address that a page links to or shows, code blocks left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {address for pair in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text) for address in pair if address}


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def defined_in(module: str, name: str) -> Path:
    """The file in which a name is defined that is imported from a module, seen through packages that hand it on."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    if (base / f"{name}.py").is_file():
        return base / f"{name}.py"
    if not base.is_dir():
        return base.with_suffix(".py")
    for node in ast.walk(ast.parse((base / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return defined_in(node.module, name)
    return base / "__init__.py"


@functools.cache
def imported(file: str) -> set[str]:
    """The files of the package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = f"edvit_hf.{node.module}" if node.level else node.module
            if module.startswith("edvit_hf"):
                found |= {defined_in(module, alias.name).relative_to(PACKAGE).as_posix() for alias in node.names}
    return found


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_and_picture_leads_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:|mailto:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links {link}, which is not there"
        assert target.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(target), f"{page.name} links {link}, but there is no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_python_name_of_ours_on_a_page_exists(page):
    for name in set(re.findall(r"\bedvit_hf(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8"))):
        module, _, last = name.rpartition(".")
        file = defined_in(module, last)
        is_module = file.stem == last or (file.parent / last).is_dir()
        assert is_module or re.search(rf"\b{last}\b", file.read_text(encoding="utf-8")), name


def test_every_command_on_a_page_is_one_and_has_the_options_it_is_given():
    reference = re.split(r"^#+ edvit ", (DOCS / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    commands = {text.splitlines()[0]: text for text in reference}
    wrong = []
    for page in [*PAGES, ROOT / "space_app/README.md"]:
        text = page.read_text(encoding="utf-8")
        lines = re.findall(r"`([^`\n]+)`", text) + [
            line for block in text.split("```")[1::2] for line in block.splitlines()
        ]
        for line in lines:
            command = r"(?:(?:space|fleet|device|recipe) )?[a-z]+"
            said = re.match(rf"(?:[A-Z_]+=\S+ )*edvit ({command})\b([^#]*)", line.strip())
            if said is None:
                continue
            options = re.findall(r"(?<=\s)--[a-z][a-z-]*", said[2])
            missing = [option for option in options if f"`{option}" not in commands.get(said[1], "")]
            wrong += [f"{page.name}: {line}"] if said[1] not in commands or missing else []
    assert wrong == []


def test_the_index_links_every_page():
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "index.md")}
    assert set(DOCS.rglob("*.md")) - {DOCS / "index.md"} <= linked


def test_the_readme_is_short_and_leads_to_the_index():
    assert README.count("\n") <= 200
    assert "docs/index.md" in README


def test_the_tree_in_contributing_names_what_is_there_and_every_room():
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things are")[1].split("```")[1]
    named = {name.rstrip("/") for line in tree.splitlines() for name in re.findall(r"[\w./]+", line.split("   ")[0])}
    for name in named - {""}:
        assert any((base / name).exists() for base in (ROOT, PACKAGE)), name
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= named


def test_every_file_that_architecture_names_exists_and_every_room_is_named():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w/]+(?:\.py|\.yaml|/))`", page)) - {"src/edvit_hf/"}
    assert {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")} <= names, "every room has its sentence"
    assert [name for name in sorted(names) if not (PACKAGE / name).exists()] == []
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    words = set(re.findall(r"`(\w+)`", page))
    assert [word for word in sorted(words) if not re.search(rf"\b{word}\b", source)] == []


def test_a_walk_goes_from_file_to_file_by_imports():
    walks = (DOCS / "architecture.md").read_text(encoding="utf-8").split("## Four walks")[1].split("\n## ")[0]
    for walk in walks.split("\n### ")[1:]:
        files = re.findall(r"^\d+\. `([\w/]+\.py)`", walk, re.MULTILINE)
        assert 4 <= len(files) <= 9, walk.splitlines()[0]
        for place, name in enumerate(files[1:], start=1):
            near = [other for other in files[:place] if name in imported(other) or other in imported(name)]
            assert near, f"{walk.splitlines()[0]}: nothing before {name} imports it, nor does it import any of them"


def test_the_pages_that_are_read_from_the_code_are_current():
    done = subprocess.run([sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_measured_pages_are_what_the_results_files_say():
    command = [sys.executable, ROOT / "benchmarks/report/write.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_of_the_repository_that_is_named_in_a_page_a_recipe_or_the_source_exists():
    pages = [*PAGES, *(path for pattern in NAMING for path in ROOT.glob(pattern))]
    missing = []
    for page in pages:
        named = re.findall(
            r"(?<![\w./])(?:benchmarks|docs|model_cards|recipes|space_app|src|tests)/[\w/.*-]+\.\w+",
            page.read_text(encoding="utf-8"),
        )
        missing += [f"{page.name}: {name}" for name in set(named) if "NAME" not in name and not list(ROOT.glob(name))]
    assert missing == []


@pytest.mark.parametrize("target", ["install", "run", "test", "test-browser", "test-fleet", "test-js", "space", "lint"])
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


FRONT_DOORS = [path for path in (ROOT / "src/edvit_hf").rglob("__init__.py") if "```python" in path.read_text()]


def test_the_examples_in_front_doors_run_as_written(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(FRONT_DOORS) > 5
    for path in FRONT_DOORS:
        exec(path.read_text().split("```python\n")[1].split("```")[0], {})
        assert capsys.readouterr().out, path
