# SPDX-License-Identifier: Apache-2.0
import re
import subprocess
import sys

import pytest
import yaml

from edvit_hf.errors import RecipeError
from edvit_hf.recipe.data_recipe import load_data_recipe
from edvit_hf.recipe.overrides import read_override
from edvit_hf.recipe.schema import load_recipe
from edvit_hf.strict import load_yaml, yaml_lines

BAD = """\
task: image-classification
dataset:
  path: digits
  image_sise: 8
  validation_fraction: 2
teacher:
  from_scratch: {model_type: vit}
  epochs: ten
  learning_rate: -1
distill: {views: 2, focus_weight: 3}
fuse:
  views: 9
  kind: sum
  dropout: 7
prune: {keep_heads: 0, rounds: 0}
fleeet: x.yaml
"""
LINES = {
    4: "dataset.image_sise",
    5: "validation_fraction",
    8: "teacher.epochs",
    9: "learning_rate",
    10: "distill.focus_weight",
    12: "fuse.views",
    13: "fuse.kind",
    14: "dropout",
    16: "fleeet",
}


def told(tmp_path, text, overrides=()):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_every_fault_of_a_recipe_is_told_at_once_with_its_line(tmp_path):
    message = told(tmp_path, BAD)
    by_line = re.findall(r"^  line (\d+): (.*)$", message, re.MULTILINE)
    assert message.startswith("recipe mine.yaml has 11 faults:")
    assert [int(line) for line, _ in by_line] == sorted([*LINES, 15, 15])
    for line, name in LINES.items():
        assert any(int(number) == line and name in fault for number, fault in by_line), (line, name)
    assert {"keep_heads" in fault or "rounds" in fault for number, fault in by_line if number == "15"} == {True}


def test_a_section_that_is_no_section_and_one_that_is_missing_are_told_together(tmp_path):
    message = told(tmp_path, "task: image-classification\ndataset: pictures\nfuse: [1]\n")
    assert "`teacher` is missing" in message
    assert "line 2: recipe key `dataset` must be a mapping" in message
    assert "line 3: recipe key `fuse` must be a mapping" in message


def test_what_only_follows_from_another_fault_is_not_told(tmp_path):
    text = (
        BAD.split("distill")[0]
        .replace("  image_sise: 8\n  validation_fraction: 2\n", "")
        .replace("  epochs: ten\n", "")
    )
    text = text.replace("learning_rate: -1", "epochs: 2")
    message = told(tmp_path, text + "split: {strategy: givn, class_groups: [[0, 1], [2, 3]]}\n")
    assert "faults" not in message
    assert "strategy" in message


def test_a_value_of_the_command_line_is_named_as_such(tmp_path):
    good = "dataset: {path: digits, image_size: 8}\nteacher: {from_scratch: {model_type: vit}}\n"
    (tmp_path / "good.yaml").write_text(good)
    recipe = load_recipe(tmp_path / "good.yaml", ["distill.epochs=3", "fuse.learning_rate=1e-3", "split={seed: 4}"])
    assert (recipe.distill.epochs, recipe.fuse.learning_rate, recipe.split.seed) == (3, 1e-3, 4)
    message = told(tmp_path, good, ["distill.epochs=none"])
    assert "`distill.epochs=` on the command line: recipe key `distill.epochs` must be of type int" in message
    for wrong in ("distill.epochs", "=3", "a b=3", "distill.epochs=[1"):
        with pytest.raises(RecipeError):
            read_override(wrong)
    with pytest.raises(RecipeError, match="holds 'digits' and no keys"):
        load_recipe(tmp_path / "good.yaml", ["dataset.path.x=1"])


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("-2E5", -2e5), (".5e1", 5.0), ("1.e2", 100.0), ("1e", "1e"), ("e3", "e3")]
)
def test_a_number_may_be_written_with_an_exponent_and_no_point(text, value):
    assert load_yaml(f"a: {text}") == {"a": value}
    assert type(load_yaml(f"a: {text}")["a"]) is type(value)


def test_lines_are_those_of_the_keys():
    text = "\ufeffa:\n  b: 1\n  c: {d: 2,\n      e: 3}\n"
    assert yaml_lines(text) == {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", "d"): 3, ("a", "c", "e"): 4}


def test_a_recipe_of_data_alone_tells_its_faults_at_once(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("dataset:\n  path: csv\n  labels: x\n  test_fraction: 3\n")
    with pytest.raises(RecipeError, match=r"line 3.*\n.*line 4"):
        load_data_recipe(path)


def test_faults_are_told_before_anything_heavy_is_loaded(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    code = (
        "import sys\nfrom edvit_hf.cli import app\n"
        "try:\n    app(['run', sys.argv[1]])\nexcept SystemExit as ended:\n    print('ended', ended.code)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'onnxruntime', 'sklearn'} & set(sys.modules)\n"
        "print('loaded', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "11 faults" in done.stderr
    assert done.stdout.split("\n")[:2] == ["ended 1", "loaded []"]


def test_the_values_of_a_recipe_are_not_changed_by_reading_it(tmp_path):
    values = {"dataset": {"path": "digits"}, "teacher": {"from_scratch": {"model_type": "vit"}}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load_recipe(path) == load_recipe(path)
