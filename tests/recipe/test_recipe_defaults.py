# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import logging
from pathlib import Path

import jsonschema
import pytest
import yaml

from edvit_hf.errors import RecipeError
from edvit_hf.recipe import keys
from edvit_hf.recipe.json_schema import recipe_json_schema
from edvit_hf.recipe.running import stages_of
from edvit_hf.recipe.schema import load_recipe, packaged_recipes
from edvit_hf.recipe.stages.plan import plan_recipe
from support.tiny_recipe import FLEET

VIT = {"model_type": "vit", "hidden_size": 48, "num_attention_heads": 12, "num_hidden_layers": 1, "patch_size": 4}
GOLDEN = Path(__file__).parent / "golden" / "stage_values.json"


def read(folder, **values):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_recipe(path)


def test_data_and_a_teacher_are_all_that_a_recipe_needs(tmp_path):
    dataset = {"path": "digits", "image_size": 8, "num_labels": 10}
    recipe = read(tmp_path, dataset=dataset, teacher={"from_scratch": VIT})
    assert (recipe.task, recipe.split.num_sub_models, recipe.teacher.epochs) == ("image-classification", 2, 60)
    assert (recipe.distill.epochs, recipe.fuse.epochs) == (20, 30)
    found = plan_recipe(recipe)
    assert [part.keep_heads for part in found.sub_models] == [3, 3]  # a quarter of twelve heads
    assert read(tmp_path, dataset={"path": "digits"}, teacher={"checkpoint": "owner/model"}).teacher.epochs == 0


def test_there_are_as_many_sub_models_as_the_fleet_has_devices_and_they_fill_it(tmp_path):
    tmp_path.joinpath("three.yaml").write_text(
        yaml.safe_dump({"devices": [{**FLEET["devices"][0], "name": n} for n in "abc"]})
    )
    recipe = read(tmp_path, dataset={"path": "digits"}, teacher={"from_scratch": VIT}, fleet="three.yaml")
    assert recipe.split.num_sub_models == 3
    assert recipe.prune.keep_heads == "auto"
    with pytest.raises(RecipeError, match=r"line \d: `fleet` cannot be read.*none\.yaml does not exist"):
        read(tmp_path, dataset={"path": "digits"}, teacher={"from_scratch": VIT}, fleet="none.yaml")


def test_the_fusion_looks_at_no_more_views_than_are_stored(tmp_path):
    assert read(tmp_path, dataset={"path": "digits"}, teacher={"checkpoint": "x"}, distill={"views": 2}).fuse.views == 2


@pytest.mark.parametrize(
    ("dataset", "teacher", "task"),
    [
        ({"path": "audiofolder", "data_dir": "x"}, {"checkpoint": "o/m"}, "audio-classification"),
        ({"path": "o/set", "text": {"max_length": 8}}, {"checkpoint": "o/m"}, "text-classification"),
        ({"path": "o/set"}, {"checkpoint": "o/m", "config": {"model_type": "bert"}}, "text-classification"),
        ({"path": "o/set"}, {"from_scratch": {"model_type": "audio-spectrogram-transformer"}}, "audio-classification"),
        ({"path": "./pictures"}, {"checkpoint": "o/m"}, "image-classification"),
        ({"path": "csv", "data_dir": "table"}, {"checkpoint": "o/m"}, "text-classification"),
        ({"path": "o/set"}, {"checkpoint": "local"}, "image-classification"),
    ],
)
def test_the_task_is_told_by_the_data_or_the_teacher(tmp_path, dataset, teacher, task):
    for name, text in {
        "pictures/a/1.PNG": "",
        "table/train.csv": "text,label\n",
        "local/config.json": '{"model_type": "vit"}',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read(tmp_path, dataset=dataset, teacher=teacher).task == task


def test_a_task_that_nothing_tells_is_asked_for(tmp_path):
    with pytest.raises(RecipeError, match="Expected a `task`"):
        read(tmp_path, dataset={"path": "o/set"}, teacher={"checkpoint": "o/m"})


def test_paths_are_relative_to_the_recipe_and_stages_know_them_as_written(tmp_path, monkeypatch):
    for name in ("home/pictures", "home/more", "home/model"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home/model/config.json").write_text('{"model_type": "vit"}')
    values = {
        "dataset": {"path": "imagefolder", "data_dir": ["pictures", "more"], "test_data_dir": "pictures"},
        "teacher": {"checkpoint": "model"},
    }
    recipe = read(tmp_path / "home", **values)
    root = (tmp_path / "home").resolve()
    assert recipe.dataset.data_dir == (str(root / "pictures"), str(root / "more"))
    assert (recipe.dataset.test_data_dir, recipe.teacher.checkpoint) == (str(root / "pictures"), str(root / "model"))
    known = keys.key_values(recipe)
    assert (known["dataset"]["data_dir"], known["teacher"]["checkpoint"]) == (("pictures", "more"), "model")
    (tmp_path / "home").rename(tmp_path / "moved")
    assert keys.key_values(load_recipe(tmp_path / "moved" / "mine.yaml")) == known
    monkeypatch.chdir(tmp_path / "moved")
    assert keys.key_values(load_recipe("mine.yaml")) == known


def test_a_folder_beside_the_command_alone_is_still_read_and_warned_of(tmp_path, monkeypatch, caplog):
    (tmp_path / "here" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with caplog.at_level(logging.WARNING):
        recipe = read(
            tmp_path / "other",
            dataset={"path": "./pictures"},
            teacher={"checkpoint": "x", "epochs": 1},
            task="image-classification",
        )
    assert recipe.dataset.path == "./pictures"
    assert "Paths are relative to the recipe" in caplog.text


def test_own_data_train_no_rivals_unless_asked_and_published_recipes_do(tmp_path):
    own = {"dataset": {"path": "digits"}, "teacher": {"checkpoint": "x"}}
    assert not read(tmp_path, **own).evaluate.baselines
    assert read(tmp_path, **own, evaluate={"rivals": ["replicas"]}).evaluate.baselines
    assert all(load_recipe(path).evaluate.baselines for path in packaged_recipes().glob("*.yaml"))


def test_stages_of_published_recipes_depend_on_the_same_values_as_ever():
    """A change makes trained work of earlier versions run anew: it must be meant, and then said in the changelog."""
    for name, stages in json.loads(GOLDEN.read_text()).items():
        recipe = load_recipe(name)
        for stage in stages_of(recipe):
            values = json.dumps(keys.chosen_values(recipe, stage.values), sort_keys=True, default=str)
            assert hashlib.sha256(values.encode()).hexdigest()[:16] == stages[stage.name], f"{name}: {stage.name}"


def test_the_schema_accepts_what_is_read_and_refuses_unknown_keys_and_wrong_types():
    schema = recipe_json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for path in packaged_recipes().glob("*.yaml"):
        validator.validate(yaml.safe_load(path.read_text()))
    assert schema["required"] == ["dataset", "teacher"]
    for wrong in ({"datasett": {}}, {"distill": {"epochs": "ten"}}, {"split": {"strategy": "clever"}}):
        assert not validator.is_valid({"dataset": {"path": "digits"}, "teacher": {"checkpoint": "x"}, **wrong})
