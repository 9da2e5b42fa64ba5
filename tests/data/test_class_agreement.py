# SPDX-License-Identifier: Apache-2.0
"""Splits and files that say otherwise what their classes are called agree by name, or are refused."""

import datasets
import numpy as np
import pytest

from edvit_hf.data import load_task
from edvit_hf.data.sources import open_splits
from edvit_hf.errors import DataError
from support.dataset_files import NAMES, OFF, own_cache, parquet, png, write_split, write_texts  # noqa: F401

TEXTS = "text-classification"


def declared(folder, split, labels, names, **options):
    write_split(folder, split, labels, datasets.ClassLabel(names=names), **options)


def test_ids_of_a_split_that_declares_another_order_are_those_of_the_training_split(tmp_path):
    declared(tmp_path / "set", "train", [0, 1, 2] * 10, NAMES)
    declared(tmp_path / "set", "test", [0, 1, 2], NAMES[::-1])
    declared(tmp_path / "set", "validation", [0, 1], NAMES[1:])  # a part of the names
    loaded = load_task(parquet(tmp_path / "set", validation_split="validation"), OFF)
    assert [loaded.label_names[label] for label in loaded.test.labels] == NAMES[::-1]
    assert [loaded.label_names[label] for label in loaded.validation.labels] == NAMES[1:]


@pytest.mark.parametrize("names", [("cat", "hound", "emu"), ("a", "b", "c")])
def test_new_names_are_given_to_the_ids_of_the_training_split(tmp_path, names):
    declared(tmp_path / "set", "train", [0, 1, 2] * 10, NAMES)
    declared(tmp_path / "set", "test", [0, 1, 2], NAMES[::-1])
    loaded = load_task(parquet(tmp_path / "set", label_names=names), OFF)
    assert loaded.test.labels.tolist() == [2, 1, 0]
    assert loaded.label_names == list(names)


def test_ids_of_a_shard_that_declares_another_order_are_those_of_the_first(tmp_path):
    for number, names in enumerate((["neg", "pos"], ["pos", "neg"], ["neg", "pos"])):
        write_split(tmp_path / "set", "train", [0, 1] * 6, datasets.ClassLabel(names=names))
        (tmp_path / "set/train-00000-of-00001.parquet").rename(tmp_path / f"train-{number}-of-3.parquet")
    split = open_splits(parquet(tmp_path, test_split=None))["train"]
    assert split.class_names == ["neg", "pos"]
    assert split.labels == [0, 1] * 6 + [1, 0] * 6 + [0, 1] * 6
    assert split.items.read(np.array([12, 35])) == [png(0), png(11)]


@pytest.mark.parametrize("other", [["neg", "positive"], ["neg"], ["neg", "pos", "neutral"]])
def test_a_shard_of_other_classes_is_refused(tmp_path, other):
    for number, names in enumerate((["neg", "pos"], other)):
        write_split(tmp_path / "set", "train", [0, 0], datasets.ClassLabel(names=names))
        (tmp_path / "set/train-00000-of-00001.parquet").rename(tmp_path / f"train-{number}-of-2.parquet")
    with pytest.raises(DataError, match="same class names in every file and folder of split 'train'"):
        open_splits(parquet(tmp_path, test_split=None))


@pytest.mark.parametrize("test_names", [["neg", "positive"], ["negative", "positive"], ["Neg", "Pos"], ["pos ", "neg"]])
def test_a_test_split_of_other_classes_is_refused(tmp_path, test_names):
    declared(tmp_path / "set", "train", [0, 1] * 10, ["neg", "pos"])
    declared(tmp_path / "set", "test", [0, 1], test_names)
    with pytest.raises(DataError, match=r"classes of split 'test' among those of 'train' \(neg, pos\)"):
        load_task(parquet(tmp_path / "set"), OFF)


def test_a_name_that_no_test_row_has_does_no_harm(tmp_path):
    declared(tmp_path / "set", "train", [0, 1] * 10, ["neg", "pos"])
    declared(tmp_path / "set", "test", [2, 1], ["neutral", "neg", "pos"])
    assert load_task(parquet(tmp_path / "set"), OFF).test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("train_names", [["neg", "pos"], ["1", "0"]])
def test_numbers_beside_declared_names_are_refused_unless_the_recipe_names_them(tmp_path, train_names):
    declared(tmp_path / "set", "train", [0, 1] * 10, train_names)
    write_split(tmp_path / "set", "test", [1, 0], datasets.Value("int64"))
    with pytest.raises(DataError, match=r"labels of split 'test' by name.*got the number 1"):
        load_task(parquet(tmp_path / "set"), OFF)
    loaded = load_task(parquet(tmp_path / "set", label_names=tuple(train_names)), OFF)
    assert loaded.test.labels.tolist() == [1, 0]


def test_numbers_beside_names_that_are_these_numbers_are_ids(tmp_path):
    declared(tmp_path / "set", "train", [0, 1] * 10, ["0", "1"])
    write_split(tmp_path / "set", "test", [1, 0], datasets.Value("int64"))
    assert load_task(parquet(tmp_path / "set"), OFF).test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["train declares", "test declares"])
def test_names_as_strings_and_declared_names_are_the_same_classes(tmp_path, kind):
    ids, strings = datasets.ClassLabel(names=["pos", "neg"]), datasets.Value("string")
    features = (ids, strings) if kind == "train declares" else (strings, ids)
    train, test = (0, 1), (1, 0)
    for split, feature, labels in zip(("train", "test"), features, (train, test), strict=True):
        values = labels if feature is ids else [["pos", "neg"][label] for label in labels]
        write_split(tmp_path / "set", split, list(values) * 10, feature)
    loaded = load_task(parquet(tmp_path / "set"), OFF)
    assert [loaded.label_names[label] for label in loaded.test.labels[:2]] == ["neg", "pos"]


@pytest.mark.parametrize("label", ["Pos", "pos ", "possitive"])
def test_a_label_that_is_written_otherwise_is_refused_with_the_name_that_is_near(tmp_path, label):
    write_texts(tmp_path / "set", "train", ["a", "b"] * 10, ["neg", "pos"] * 10)
    write_texts(tmp_path / "set", "test", ["a", "b"], ["neg", label])
    with pytest.raises(DataError, match=rf"row 1: '{label}'\. Did you mean `pos`\?"):
        load_task(parquet(tmp_path / "set"), OFF, task=TEXTS)


def test_classes_that_differ_by_case_alone_are_two_and_are_named(tmp_path, caplog):
    write_texts(tmp_path / "set", "train", ["a", "b"] * 10, ["a", "A"] * 10)
    assert load_task(parquet(tmp_path / "set", test_split=None), OFF, task=TEXTS).label_names == ["A", "a"]
    assert "'A' and 'a' differ by their case alone" in caplog.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[0], [1, 2]], "one class per row"),
        ([{"name": "a"}, {"name": "b"}], "one class per row"),
        ([0.5, 1.0], "got numbers like 0.5"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, values, said):
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": values}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=said):
        open_splits(parquet(tmp_path, test_split=None), TEXTS)


@pytest.mark.parametrize(("values", "names"), [([1.0, 2.0], ["1", "2"]), ([True, False], ["False", "True"])])
def test_whole_floats_and_truth_values_are_classes(tmp_path, values, names):
    rows = {"text": ["a", "b"] * 10, "label": values * 10}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    assert load_task(parquet(tmp_path, test_split=None), OFF, task=TEXTS).label_names == names


def test_a_list_of_pictures_per_row_is_refused(tmp_path):
    rows = {"image": [[png(0)], [png(1), png(2)]], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="Expected images in column 'image'"):
        open_splits(parquet(tmp_path, test_split=None))


@pytest.mark.parametrize("with_train", [True, False])
def test_new_names_are_of_the_training_splits_ids_where_the_test_split_is_read_alone(tmp_path, with_train):
    declared(tmp_path / "set", "test", [0, 1], ["pos", "neg"])
    if with_train:
        declared(tmp_path / "set", "train", [0, 1], ["neg", "pos"])
    config = parquet(tmp_path / "set", label_names=("negative", "positive"))
    assert open_splits(config, only=["test"])["test"].labels == ([1, 0] if with_train else [0, 1])
