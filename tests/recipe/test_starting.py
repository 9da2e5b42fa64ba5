# SPDX-License-Identifier: Apache-2.0
import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from edvit_hf.data.looking import look_at, task_of_folder
from edvit_hf.errors import DataError, RecipeError
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.recipe.schema import load_recipe
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.recipe.starting import start

VIT = {"model_type": "vit", "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 8}


def pictures(folder, classes=("ant", "bee", "cat"), count=12, name="{index}.png"):
    for place, label in enumerate(classes):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.full((6, 6, 3), 40 * place + index, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / name.format(index=index, group=index % 6))


def table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def texts(count=40, **more):
    return [
        [f"words number {i} of {i % 2}", ("no", "yes")[i % 2], *(f(i) for f in more.values())] for i in range(count)
    ]


def test_class_folders_without_splits_become_a_recipe_that_loads_and_a_fleet_that_splits(tmp_path):
    pictures(tmp_path / "pictures")
    done = start(str(tmp_path / "pictures"), "none", recipe=tmp_path / "mine.yaml")
    recipe, fleet = load_recipe(done.recipe), load_fleet(done.fleet)
    assert recipe.dataset.data_dir == str((tmp_path / "pictures").resolve())
    assert yaml.safe_load(done.recipe.read_text())["dataset"]["data_dir"] == "pictures"
    assert (recipe.dataset.test_split, recipe.dataset.num_labels, recipe.dataset.group_pattern) == (None, 3, None)
    assert any("there is no test split: 9 rows are held out, evenly over the classes" in line for line in done.said)
    assert all(device.link_mbit_per_s and device.link_ms for device in fleet.devices)
    assert not recipe.evaluate.baselines
    placed = plan_recipe(recipe)
    assert {part.device for part in placed.sub_models} == {"device_0", "device_1"}
    assert {part.keep_heads for part in placed.sub_models} == {2}


def test_files_that_begin_alike_are_held_out_together(tmp_path):
    pictures(tmp_path / "p", name="person{group}_{index}.png")
    looked = look_at(str(tmp_path / "p"))
    assert looked.has_groups
    assert any("by group" in note for note in looked.notes)
    pictures(tmp_path / "q", name="img_{index}.png")  # one beginning is no group
    assert not look_at(str(tmp_path / "q")).has_groups
    pictures(tmp_path / "r", classes=("a", "b", "c", "d"), name="{index}_x.png")
    assert look_at(str(tmp_path / "r")).has_groups  # the same number in several classes


def test_splits_that_are_there_are_used(tmp_path):
    for split in ("train", "val", "test"):
        pictures(tmp_path / "p" / split, count=4)
    config = look_at(str(tmp_path / "p")).config
    assert (config.train_split, config.validation_split, config.test_split) == ("train", "val", "test")


def test_a_table_tells_its_columns_groups_and_uneven_classes(tmp_path):
    rows = [[f"words {i}", "yes" if i % 8 == 0 else "no", f"s{i % 6}"] for i in range(80)]
    table(tmp_path / "t" / "mail.csv", ["sentence", "category", "speaker"], rows)
    for data in (tmp_path / "t", tmp_path / "t" / "mail.csv"):
        looked = look_at(str(data))
        config = looked.config
        assert looked.task == "text-classification"
        assert (config.path, config.input_column, config.label_column) == ("csv", "sentence", "category")
        assert (config.train_split, config.test_split, config.group_column) == ("mail", None, "speaker")
        assert looked.counts == {"no": 70, "yes": 10}
        assert any("classes are uneven: 70 rows of no, 10 of yes" in note for note in looked.notes)


def test_what_cannot_be_told_is_asked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Expected class folders"):
        look_at(str(tmp_path / "empty"))
    table(tmp_path / "t" / "a.csv", ["words", "label"], [["x", "y"]])
    with pytest.raises(DataError, match="Expected a column of image, audio or text"):
        look_at(str(tmp_path / "t"))
    table(tmp_path / "u" / "a.csv", ["text", "colour"], [["x", "y"]])
    with pytest.raises(DataError, match="Expected a column of label"):
        look_at(str(tmp_path / "u"))
    assert task_of_folder(tmp_path / "nowhere") is None


def test_a_checkpoint_that_knows_the_classes_is_taken_as_it_is_and_another_is_fine_tuned(tmp_path):
    pictures(tmp_path / "pictures")
    config = VIT | {"id2label": {"0": "ant", "1": "bee", "2": "cat"}}
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    (model / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    done = start(str(tmp_path / "pictures"), str(model), recipe=tmp_path / "mine.yaml")
    recipe = load_recipe(done.recipe)
    assert (recipe.teacher.checkpoint, recipe.teacher.epochs) == (str(model.resolve()), 0)
    assert "its own processor prepares the inputs" in done.recipe.read_text()
    (model / "config.json").write_text(json.dumps(VIT))
    done = start(str(tmp_path / "pictures"), str(model), recipe=tmp_path / "mine.yaml", replace=True)
    assert load_recipe(done.recipe).teacher.epochs == 10
    (model / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RecipeError, match=r"checkpoint for image-classification \(vit, deit\)"):
        start(str(tmp_path / "pictures"), str(model), recipe=tmp_path / "other.yaml")


def test_files_that_are_there_are_kept_and_devices_must_be_known(tmp_path):
    pictures(tmp_path / "pictures")
    data, recipe = str(tmp_path / "pictures"), tmp_path / "mine.yaml"
    start(data, "none", recipe=recipe, devices="raspberry-pi-4b,x86-avx2")
    assert [d.profile for d in load_fleet(tmp_path / "mine_fleet.yaml").devices] == ["raspberry-pi-4b", "x86-avx2"]
    with pytest.raises(RecipeError, match="Expected no file at"):
        start(data, "none", recipe=recipe)
    with pytest.raises(RecipeError, match="Expected kinds of hardware"):
        start(data, "none", recipe=recipe, devices="toaster", replace=True)
    with pytest.raises(DataError, match="Name fewer devices: --devices 3"):
        start(data, "none", recipe=recipe, devices="4", replace=True)
    done = start(data, "none", recipe=tmp_path / "with.yaml", fleet=str(tmp_path / "mine_fleet.yaml"))
    assert done.fleet is None
    assert load_recipe(done.recipe).fleet == "mine_fleet.yaml"


def test_sounds_and_texts_get_a_recipe_of_their_own(tmp_path):
    import soundfile

    for label in ("on", "off"):
        (tmp_path / "sounds" / label).mkdir(parents=True)
        for index in range(8):
            soundfile.write(tmp_path / "sounds" / label / f"{index}.wav", np.zeros(400), 16_000)
    table(tmp_path / "t" / "train.csv", ["text", "label"], texts())
    for data, task in (("sounds", "audio-classification"), ("t", "text-classification")):
        done = start(str(tmp_path / data), "none", recipe=tmp_path / f"{data}.yaml")
        recipe = load_recipe(done.recipe)
        assert recipe.task == task
        assert plan_recipe(recipe).sub_models
