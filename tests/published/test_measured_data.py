# SPDX-License-Identifier: Apache-2.0
"""On which data an ensemble is measured: prepared as devices do it, told by name, found again, never mixed up."""

import dataclasses
import json
import shutil

import datasets
import numpy as np
import pytest

from edvit_hf.card.other_data import OTHER_DATA
from edvit_hf.data import AudioConfig, DatasetConfig, TextConfig
from edvit_hf.errors import DataError, RecipeError
from edvit_hf.published import measure_exported, save_measured
from edvit_hf.published.data import PLACES_NAME, Measured, recorded_dataset, save_places
from edvit_hf.recipe.data_recipe import DataRecipe
from edvit_hf.runtime import EDViTRuntime
from support.dataset_files import own_cache, parquet, png, tone, write_split  # noqa: F401
from support.tiny_ensemble import SIZE, WORDS, write_tiny_ensemble

IMAGES, SOUNDS, TEXTS = "image-classification", "audio-classification", "text-classification"
GROUPS = [[0, 2], [1]]
NAMES = ["cat", "dog", "emu"]
# What a recipe says of preparing inputs, each time otherwise than the ensemble's own processor.
OTHERWISE = {
    IMAGES: {"image_size": 12, "mean": (0.1, 0.1, 0.1), "std": (0.9, 0.8, 0.7)},
    SOUNDS: {"audio": AudioConfig(num_mel_bins=20, max_length=9, mean=3.0, std=0.5)},
    TEXTS: {"text": TextConfig(max_length=4)},
}
COLUMNS = {IMAGES: "image", SOUNDS: "audio", TEXTS: "text"}


def raw_inputs(task, count=24):
    if task == IMAGES:
        return [png(index, size=SIZE + index % 5) for index in range(count)]
    if task == SOUNDS:
        return [tone(200 + 90 * index, seconds=0.1 + 0.02 * index, form="WAV") for index in range(count)]
    words = np.random.default_rng(0).choice(WORDS[4:], (count, 14))
    return [" ".join(row[: 3 + index % 11]) for index, row in enumerate(words)]


def write_answers(folder, ensemble, task, *, order=NAMES, split="test", names=None, right=None):
    """A split whose right classes are what a device answers to the raw files, with class ids in `order`."""
    inputs = raw_inputs(task)
    with EDViTRuntime.from_pretrained(ensemble, schedule="in_turn") as runtime:
        answers = [runtime(each).labels[0] for each in inputs]
    assert len(set(answers)) > 1
    right = len(answers) if right is None else right
    answers = [*answers[:right], *(NAMES[NAMES.index(each) - 1] for each in answers[right:])]
    labels, feature = [order.index(each) for each in answers], datasets.ClassLabel(names=list(names or order))
    columns = (COLUMNS[task], "label")
    if task != TEXTS:
        write_split(folder, split, labels, feature, images=inputs, sounds=task == SOUNDS, columns=columns)
        return folder
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    rows = datasets.Dataset.from_dict({"text": inputs, "label": labels}, features=features)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def recipe_of(folder, task=None, **options):
    return DataRecipe(name="mine", task=task, dataset=DatasetConfig(path="parquet", data_dir=str(folder), **options))


@pytest.fixture(scope="module")
def ensembles(tmp_path_factory):
    made = {}
    for task in (IMAGES, SOUNDS, TEXTS):
        made[task] = tmp_path_factory.mktemp("tiny") / "ensemble"
        write_tiny_ensemble(made[task], GROUPS, label_names=NAMES, task=task)
    return made


@pytest.mark.parametrize("task", [IMAGES, SOUNDS, TEXTS])
def test_inputs_are_prepared_by_the_ensembles_own_processor_as_a_device_does(ensembles, tmp_path, task, caplog):
    data = write_answers(tmp_path / "set", ensembles[task], task)
    found = measure_exported(ensembles[task], recipe_of(data, task, **OTHERWISE[task]))
    assert found["rows"][0]["accuracy"] == 1.0
    assert found["dataset"]["num_items"] == 24
    assert "whose own processor prepares the inputs" in caplog.text


@pytest.mark.parametrize("order", [["emu", "cat", "dog"], ["dog", "cat", "emu"]])
@pytest.mark.parametrize("task", [IMAGES, TEXTS])
def test_classes_in_another_order_are_told_by_name(ensembles, tmp_path, task, order):
    data = write_answers(tmp_path / "set", ensembles[task], task, order=order)
    assert measure_exported(ensembles[task], recipe_of(data))["rows"][0]["accuracy"] == 1.0


@pytest.mark.parametrize("names", [["cat", "fox", "emu", "dog"], ["cat", "dog", "eel"]])
def test_other_classes_are_refused_and_named(ensembles, tmp_path, names):
    data = write_answers(tmp_path / "set", ensembles[IMAGES], IMAGES, names=names)
    with pytest.raises(DataError, match=r"fox|eel"):
        measure_exported(ensembles[IMAGES], recipe_of(data))


def test_a_class_that_is_declared_and_has_no_row_does_no_harm_as_in_training(ensembles, tmp_path):
    data = write_answers(tmp_path / "set", ensembles[IMAGES], IMAGES, names=[*NAMES, "fox"])
    assert measure_exported(ensembles[IMAGES], recipe_of(data))["rows"][0]["accuracy"] == 1.0


def test_a_recipe_of_another_task_is_refused(ensembles, tmp_path):
    data = write_answers(tmp_path / "set", ensembles[TEXTS], TEXTS)
    with pytest.raises(RecipeError, match=r"text-classification.*image-classification"):
        measure_exported(ensembles[TEXTS], recipe_of(data, IMAGES))


def test_a_part_says_how_many_items_it_has(ensembles, tmp_path):
    data = write_answers(tmp_path / "set", ensembles[IMAGES], IMAGES)
    found = measure_exported(ensembles[IMAGES], recipe_of(data), max_items=5)
    assert (found["rows"][0]["num_items"], found["dataset"]["num_items"]) == (5, 24)


# Whose figures


@pytest.fixture
def own(ensembles, tmp_path):
    """A copy of an image ensemble with results of its own data, of which it answers 18 of 24 right."""
    folder = tmp_path / "work/ensemble"
    write_tiny_ensemble(folder, GROUPS, label_names=NAMES, task=IMAGES)
    data = write_answers(tmp_path / "pets", folder, IMAGES, right=18)
    write_answers(tmp_path / "pets", folder, IMAGES, right=12, split="train")
    _, record = Measured.of_manifest(folder, recipe_of(data), None).test()
    values = {**dataclasses.asdict(parquet(data)), "data_dir": "pets"}
    for name in ("audio", "text", "label_names"):
        del values[name]
    dataset = {"path": "parquet", "num_test_items": 24, "label_names": NAMES, "test": record}
    results = {"dataset": dataset, "recipe_values": {"dataset": values}, "task": IMAGES, "runtime": "before"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_figures_of_the_ensembles_own_items_replace_its_own_also_under_other_names(own, tmp_path):
    (tmp_path / "pets").rename(tmp_path / "elsewhere")
    found = save_measured(own, recipe_of(tmp_path / "elsewhere"), progress=False)
    saved = results_of(own)
    assert saved["runtime"] == found
    assert OTHER_DATA not in saved
    assert found["is_own_data"]
    assert found["variants"]["fp32"]["absent"][0]["accuracy_mean"] == 0.75
    assert found["command"] == "edvit evaluate DIR --recipe mine --save"
    assert found["dataset"]["name"] == "elsewhere"


@pytest.mark.parametrize("options", [{"test_split": "train"}, {"max_test_samples": 10}])
def test_figures_of_other_items_stand_apart_and_are_replaced_by_those_of_the_same_items_alone(own, tmp_path, options):
    other = recipe_of(tmp_path / "pets", **options)
    for _ in range(2):
        found = save_measured(own, other, progress=False)
    assert not found["is_own_data"]
    saved = results_of(own)
    assert saved["runtime"] == "before"
    assert saved[OTHER_DATA] == [found]
    assert found["dataset"]["num_items"] == found["num_items"] == options.get("max_test_samples", 24)
    save_measured(own, recipe_of(tmp_path / "pets", test_split="train", max_test_samples=3), progress=False)
    assert len(results_of(own)[OTHER_DATA]) == 2


def test_changed_items_under_the_recorded_name_are_other_data(own, tmp_path):
    write_answers(tmp_path / "pets", own, IMAGES, right=17)
    found = save_measured(own, data_dir=tmp_path / "pets", progress=False)
    assert not found["is_own_data"]
    assert found["command"] == "edvit evaluate DIR --data-dir pets --save"
    assert results_of(own)["runtime"] == "before"


@pytest.mark.parametrize(("options", "is_own"), [({}, True), ({"test_split": "train"}, False), ({"seed": 1}, False)])
def test_results_of_an_earlier_version_have_what_they_say_of_the_rows_compared(own, tmp_path, options, is_own):
    results = results_of(own)
    del results["dataset"]["test"]
    (own / "results.json").write_text(json.dumps(results))
    assert measure_exported(own, recipe_of(tmp_path / "pets", image_size=8, **options))["is_own_data"] == is_own
    assert measure_exported(own, data_dir=tmp_path / "pets")["is_own_data"]
    results["dataset"]["num_test_items"] = 23
    (own / "results.json").write_text(json.dumps(results))
    assert not measure_exported(own, data_dir=tmp_path / "pets")["is_own_data"]


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"recipe_values": 3}', '{"recipe_values": {"dataset": []}}', "null"]
)
def test_damaged_results_are_one_error_of_ours(own, tmp_path, content):
    (own / "results.json").write_text(content)
    with pytest.raises((RecipeError, DataError), match=r"results|dataset"):
        measure_exported(own, data_dir=tmp_path / "pets")


@pytest.mark.parametrize("dataset", [None, 3, {"test": 4}, {"test": {"fingerprint": None}, "num_test_items": 24}])
def test_results_that_say_nothing_of_the_rows_hold_nobodys_figures_for_their_own(own, tmp_path, dataset):
    results = results_of(own)
    (own / "results.json").write_text(json.dumps({**results, "dataset": dataset}))
    is_own = isinstance(dataset, dict) and dataset.get("num_test_items") == 24
    assert measure_exported(own, data_dir=tmp_path / "pets")["is_own_data"] == is_own


# Where the data are


def test_data_are_found_where_the_run_noted_them_whatever_the_working_directory(own, tmp_path, monkeypatch):
    monkeypatch.chdir(own)
    with pytest.raises(RecipeError, match=r"--data-dir.*EDVIT_DATA_DIR"):
        measure_exported(own)
    monkeypatch.chdir(tmp_path)
    save_places(own.parent, parquet("pets"))
    monkeypatch.chdir(own)
    assert measure_exported(own)["is_own_data"]
    assert str(tmp_path) not in (own / "results.json").read_text()


def test_the_command_line_comes_before_the_environment_and_that_before_the_note(own, tmp_path, monkeypatch):
    for name, right in (("noted", 10), ("root/pets", 12), ("given", 14)):
        (tmp_path / name).mkdir(parents=True)
        write_answers(tmp_path / name, own, IMAGES, right=right)
    save_places(own.parent, parquet(tmp_path / "noted"))

    def accuracy(**options):
        return round(24 * measure_exported(own, **options)["rows"][0]["accuracy"])

    assert accuracy() == 10
    monkeypatch.setenv("EDVIT_DATA_DIR", str(tmp_path / "root"))
    assert accuracy() == 12
    assert accuracy(data_dir=tmp_path / "given") == 14
    with pytest.raises(RecipeError, match="--data-dir"):
        accuracy(data_dir=tmp_path / "nowhere")


def test_data_that_lay_below_the_environments_folder_are_found_without_it(own, tmp_path, monkeypatch):
    results = results_of(own)
    results["recipe_values"]["dataset"] |= {"data_dir": None, "local_name": "pets"}
    (own / "results.json").write_text(json.dumps(results))
    monkeypatch.setenv("EDVIT_DATA_DIR", str(tmp_path))
    save_places(own.parent, recorded_dataset(own))
    assert measure_exported(own)["is_own_data"]
    monkeypatch.delenv("EDVIT_DATA_DIR")
    assert measure_exported(own)["is_own_data"]


@pytest.mark.parametrize("content", ["[]", "{", '{"data_dir": "x"}', '{"data_dir": [1]}'])
def test_a_damaged_note_is_an_error_of_ours_or_no_note(own, content):
    (own.parent / PLACES_NAME).write_text(content)
    with pytest.raises(RecipeError, match="--data-dir"):
        measure_exported(own)


@pytest.fixture
def apart(own, tmp_path):
    """The same, its test rows in a folder of their own; only that one is here."""
    (tmp_path / "camera").mkdir()
    (tmp_path / "pets/test-00000-of-00001.parquet").rename(tmp_path / "camera/test-00000-of-00001.parquet")
    shutil.rmtree(tmp_path / "pets")
    results = results_of(own)
    results["recipe_values"]["dataset"] |= {"data_dir": "pets", "test_data_dir": "camera"}
    (own / "results.json").write_text(json.dumps(results))
    return own


def test_where_test_rows_lie_apart_their_folder_alone_is_needed_and_named(apart, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="in a folder 'camera'"):
        measure_exported(apart)
    given = measure_exported(apart, data_dir=tmp_path / "camera")
    monkeypatch.setenv("EDVIT_DATA_DIR", str(tmp_path))
    found = measure_exported(apart)
    monkeypatch.delenv("EDVIT_DATA_DIR")
    save_places(apart.parent, parquet(tmp_path / "pets", test_data_dir=str(tmp_path / "camera")))
    for measured in (given, found, measure_exported(apart)):
        assert measured["dataset"]["name"] == "camera", "the other folder was not measured"
        assert measured["is_own_data"]
        assert measured["rows"][0]["accuracy"] == 0.75


def test_an_export_needs_the_rows_of_the_other_folder_too(apart, tmp_path):
    save_places(apart.parent, parquet(tmp_path / "pets", test_data_dir=str(tmp_path / "camera")))
    with pytest.raises(RecipeError, match="in a folder 'pets'"):
        Measured.of_manifest(apart, None, None).whole()


def test_a_copy_is_measured_on_the_data_that_were_noted_beside_its_origin(own, tmp_path):
    save_places(own.parent, parquet(tmp_path / "pets"))
    shutil.copytree(own, tmp_path / "copies/ensemble")
    copy = Measured.of_manifest(tmp_path / "copies/ensemble", None, None)
    with pytest.raises(RecipeError, match="in a folder 'pets'"):
        copy.test()
    assert len(dataclasses.replace(copy, origin=own).test()[0].test) == 24
