# SPDX-License-Identifier: Apache-2.0
"""The committed bundles, examples and settings: whole, small, made by committed recipes, and what the README says."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from edvit_hf.manifest import Manifest, file_sha256
from edvit_hf.recipe import load_recipe
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.space.bundle import slim_manifest
from edvit_hf.space.checks import MAX_DESCRIPTION, read_settings
from edvit_hf.space.page import page_files

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "space_app"
NAMES = ("digits", "question_type", "spoken_digits")
MOST_BYTES = 6 * 2**20
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|Users|opt|mnt)/|[A-Z]:\\\\")


def test_the_three_bundles_are_there_and_small():
    assert sorted(p.name for p in (SPACE / "model").iterdir()) == list(NAMES)
    files = [p for p in (SPACE / "model").rglob("*") if p.is_file()]
    assert not [p for p in files if p.is_symlink()]
    assert sum(p.stat().st_size for p in files) <= MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_what_its_manifest_says_and_a_committed_recipe_made_it(name):
    folder = SPACE / "model" / name
    manifest = Manifest.load(folder)
    manifest.verify_files(folder)
    assert slim_manifest(manifest) == manifest
    graphs = {p.relative_to(folder).as_posix() for p in folder.rglob("*.onnx")}
    assert graphs == {v.file for v in manifest.variants}
    kinds = {profile for v in manifest.sub_models[0].variants for profile in v.profiles}
    assert kinds == {"x86-avx512-vnni", "x86-avx2", "raspberry-pi-5"}, "int8 for more than one kind of hardware"
    for entry in manifest.sub_models:
        config = f"{entry.path}/config.json"
        assert file_sha256(folder / config) == manifest.content[config].sha256
    results = json.loads((folder / "results.json").read_text())
    recipe = ROOT / "recipes" / f"{results['recipe']}.yaml"
    assert load_recipe(recipe).task == manifest.ensemble.task
    assert f"recipes/{recipe.name}" in results["command"]
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", results["environment"]["commit"])
    assert results["dataset"]["label_names"] == manifest.label_names
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"# ED-ViT ensemble, {results['recipe']}" in card
    for figure in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card):
        assert (folder / figure).is_file(), figure
    for path in folder.rglob("*"):
        if path.suffix in {".md", ".json"}:
            assert not MACHINE_PATH.search(path.read_text()), path


EXAMPLES = {
    "digits": ("3_0023.png", "3"),
    "spoken_digits": ("7_nicolas_2.wav", "7"),
    "question_type": ("How many legs does a spider have ?", "NUM"),
}


def test_each_bundle_answers_an_example_without_torch():
    code = f"""
import json, sys
from edvit_hf.runtime import EDViTRuntime
answers = {{}}
for name, (source, _) in {EXAMPLES!r}.items():
    path = f"examples/{{name}}/{{source}}" if "." in source else source
    with EDViTRuntime.from_pretrained(f"model/{{name}}", schedule="in_turn") as ensemble:
        answers[name] = ensemble(path).labels[0]
print(json.dumps([answers, sorted({{"torch", "transformers"}} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=SPACE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{name: label for name, (_, label) in EXAMPLES.items()}, []]


@pytest.mark.parametrize("name", NAMES)
def test_every_example_can_be_answered_and_carries_its_license(name):
    folder = SPACE / "examples" / name
    questions = folder / "questions.txt"
    found = sorted(p for p in folder.iterdir() if p.suffix in {".png", ".wav"})
    sources = questions.read_text().splitlines() if questions.exists() else [str(p) for p in found]
    assert 2 <= len(sources) <= 6
    assert all(source.strip() for source in sources)
    named = {*(p.name for p in found), *([questions.name] if questions.exists() else [])}
    assert {p.name for p in folder.iterdir()} == {*named, "LICENSES.md"}
    license = (folder / "LICENSES.md").read_text()
    assert "CC BY" in license or "Apache-2.0" in license
    with EDViTRuntime.from_pretrained(SPACE / "model" / name, schedule="in_turn") as ensemble:
        answers = [outcome.answer.labels[0] for outcome in ensemble.batch(sources)]
    if found:  # their licence page owns to one wrong answer
        (wrong,) = [p.name for answer, p in zip(answers, found, strict=True) if answer != p.name[0]]
        assert f"`{wrong}` it gets wrong" in license
    else:
        assert answers == ["DESC", "ENTY", "HUM", "LOC", "NUM", "DESC"]
        assert "abbreviation" in sources[-1], "the last is one, which is answered wrong"
        assert "it gets the abbreviation wrong" in license


def test_the_readme_says_what_the_bundles_results_say():
    readme = (SPACE / "README.md").read_text()
    for name in NAMES:
        results = json.loads((SPACE / "model" / name / "results.json").read_text())
        whole, one = (next(a for a in results["absent"] if a["num_absent"] == k) for k in (0, 1))
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{name}`"))
        assert f"{whole['accuracy_mean']:.1%}, {one['accuracy_mean']:.1%} on average".replace("%", " %") in row
        assert f"{results['dataset']['num_test_items']} test items" in row


def test_the_settings_are_what_the_hub_takes_and_agree_with_the_requirements():
    _, settings = read_settings((SPACE / "README.md").read_text())
    assert settings["sdk"] == "gradio"
    assert settings["app_file"] == "app.py"
    assert 0 < len(settings["short_description"]) <= MAX_DESCRIPTION
    assert f"gradio=={settings['sdk_version']}\n" in (SPACE / "requirements.txt").read_text()
    assert tuple(map(int, settings["sdk_version"].split(".")[:2])) >= (6, 20)
    assert settings["license"] == "apache-2.0"


def test_every_package_that_the_page_imports_is_pinned_as_the_checkout_is_tested():
    lines = [x for x in (SPACE / "requirements.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\w.]+", line) for line in lines)
    pinned = {re.split(r"[\[=]", line)[0].lower(): line.split("==")[1] for line in lines}
    tested = dict(x.lower().split("==") for x in (ROOT / "constraints.txt").read_text().splitlines() if "==" in x)
    assert {name: version for name, version in pinned.items() if name in tested} == {
        name: tested[name] for name in pinned if name in tested
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "edvit_hf[device,hub]" in extras["space"]  # the same that the Space installs
    packages = {"PIL": "pillow", "yaml": "pyyaml"}
    own = {"page", "answers"}
    for path in page_files(SPACE):
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in {n.split(".")[0] for n in names} - own - sys.stdlib_module_names:
                assert packages.get(name, name).lower() in pinned, f"{path.name} imports {name}"
            if path.parent.name == "answers":
                assert not [name for name in names if name.split(".")[0] in ("page", "gradio")], path


def test_the_tags_and_the_tasks_of_the_readme_are_those_of_the_bundles():
    block = (SPACE / "README.md").read_text().split("---\n")[1]
    tasks = {Manifest.load(SPACE / "model" / name).ensemble.task for name in NAMES}
    assert tasks | {"edvit"} <= set(yaml.safe_load(block)["tags"])


def test_make_space_and_the_readme_open_the_bundled_page_without_training():
    recipe = (ROOT / "Makefile").read_text().split("\nspace:")[1].split("\n\n")[0]
    assert recipe.splitlines()[0].split("##")[0].strip() == "$(STAMP)"
    assert "edvit space run" in recipe
    assert "edvit space run" in (SPACE / "README.md").read_text()
    assert not (SPACE / "assemble.py").exists()
