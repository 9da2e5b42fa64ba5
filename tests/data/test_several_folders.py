# SPDX-License-Identifier: Apache-2.0
"""Several folders are one data set, and a folder of its own may hold the test split: classes agree by name."""

import dataclasses
import json
import os

import datasets
import numpy as np
import pytest
import torch

from edvit_hf.data import DatasetConfig, load_task
from edvit_hf.data.config import dataset_from_values
from edvit_hf.data.sources import open_splits
from edvit_hf.errors import DataError
from support.dataset_files import NAMES, OFF, own_cache, parquet, png, write_split, write_texts  # noqa: F401

TEXTS = "text-classification"


def declared(folder, split, labels, names, **options):
    write_split(folder, split, labels, datasets.ClassLabel(names=names), **options)


def animals(folder, names, splits=("train", "test"), first=0):
    for split in splits:
        for number, name in enumerate(names):
            for row in range(4):
                path = folder / split / name / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(first + 10 * number + row))
    return str(folder)


def test_rows_of_several_folders_are_one_split_each(tmp_path):
    folders = (animals(tmp_path / "a", NAMES), animals(tmp_path / "b", NAMES, first=100))
    config = DatasetConfig(path="imagefolder", data_dir=folders, image_size=8)
    splits = open_splits(config)
    assert len(splits["train"].labels) == len(splits["test"].labels) == 24
    assert splits["train"].class_names == NAMES
    assert [os.path.relpath(p, tmp_path) for p in splits["train"].items.read(np.array([0, 12]))] == [
        "a/train/cat/0.png",
        "b/train/cat/0.png",
    ]
    assert len(load_task(config, OFF).test) == 24


def test_splits_may_lie_in_different_folders(tmp_path):
    folders = (animals(tmp_path / "a", NAMES, ("train",)), animals(tmp_path / "b", NAMES[:2], ("test",)))
    splits = open_splits(DatasetConfig(path="imagefolder", data_dir=folders))
    assert [splits["test"].class_names[label] for label in splits["test"].labels] == ["cat"] * 4 + ["dog"] * 4


def test_folders_of_other_classes_are_refused(tmp_path):
    folders = (animals(tmp_path / "a", ["cat", "dog"]), animals(tmp_path / "b", ["cat", "Dog"]))
    with pytest.raises(DataError, match=r"got only dog in one, and only Dog in another"):
        open_splits(DatasetConfig(path="imagefolder", data_dir=folders))


def test_declared_names_of_several_folders_agree_by_name(tmp_path):
    for name, names in (("a", ["neg", "pos"]), ("b", ["pos", "neg"])):
        declared(tmp_path / name, "train", [0, 1], names)
    config = DatasetConfig(path="parquet", data_dir=(str(tmp_path / "a"), str(tmp_path / "b")), test_split=None)
    assert open_splits(config)["train"].labels == [0, 1, 1, 0]


@pytest.mark.parametrize("splits", [("train", "test"), ("",)])
@pytest.mark.parametrize("names", [NAMES, NAMES[1:]])
def test_the_test_split_may_come_from_a_folder_of_its_own(tmp_path, splits, names):
    train = animals(tmp_path / "a", NAMES, ("train", "test"))
    test = animals(tmp_path / "new [1]", names, splits, first=100)
    config = DatasetConfig(path="imagefolder", data_dir=train, test_data_dir=test, image_size=8)
    found = open_splits(config)
    assert [NAMES[label] for label in found["test"].labels] == [name for name in names for _ in range(4)]
    assert all(str(path).startswith(test) for path in found["test"].items.read(np.arange(len(names) * 4)))
    assert found["test"].name == "test"
    assert len(load_task(config, OFF).test) == 4 * len(names)
    alone = open_splits(config, only=["test"])["test"]
    assert (alone.class_names, alone.labels) == (None, [name for name in names for _ in range(4)])


def test_a_test_folder_of_other_classes_or_without_the_split_is_refused(tmp_path):
    train = animals(tmp_path / "a", NAMES)
    strange = animals(tmp_path / "b", ["cat", "gnu"])
    with pytest.raises(DataError, match=r"classes of split 'test' among those of 'train'.*got gnu"):
        open_splits(DatasetConfig(path="imagefolder", data_dir=train, test_data_dir=strange))
    only_train = animals(tmp_path / "c", NAMES, ("train",))
    with pytest.raises(DataError, match=r"split named 'test' in .*c, got only: train"):
        open_splits(DatasetConfig(path="imagefolder", data_dir=train, test_data_dir=only_train))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_dir": ()}, "`data_dir` must name a folder"),
        ({"data_dir": ("a", "")}, "`data_dir` must name a folder"),
        ({"data_dir": ""}, "`data_dir` must name a folder"),
        ({"test_data_dir": ""}, "`test_data_dir` is ''"),
        ({"test_data_dir": "x", "test_split": None}, "Test rows come from one place"),
        ({"test_data_dir": "x", "test_groups": ("1",), "group_column": "g"}, "Test rows come from one place"),
        ({"path": "digits", "data_dir": None, "test_data_dir": "x"}, "digits have test rows of their own"),
    ],
)
def test_folders_that_say_nothing_are_refused(change, said):
    with pytest.raises(DataError, match=said):
        DatasetConfig(**{"path": "parquet", "data_dir": "x", **change})


def test_a_data_set_of_the_hubs_shape_loads_alike_from_its_folder_and_as_a_list(tmp_path):
    declared(tmp_path / "set", "train", [0, 1, 2] * 5, NAMES)
    declared(tmp_path / "set", "test", [2, 1, 0], NAMES)
    one = load_task(parquet(tmp_path / "set"), OFF)
    listed = load_task(DatasetConfig(path="parquet", data_dir=(str(tmp_path / "set"),), image_size=8), OFF)
    assert torch.equal(one.test.inputs(range(3))["pixel_values"], listed.test.inputs(range(3))["pixel_values"])


@pytest.mark.parametrize("other", ["a", "./a", "b/../a", "link"])
def test_a_folder_that_is_named_twice_is_refused(tmp_path, monkeypatch, other):
    animals(tmp_path / "a", NAMES)
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="of which two are one folder"):
        open_splits(DatasetConfig(path="imagefolder", data_dir=("a", other)))


def test_recorded_folders_of_one_name_are_read_again(tmp_path):
    values = dataclasses.asdict(DatasetConfig(path="imagefolder", data_dir=("data", "data")))
    assert dataset_from_values(json.loads(json.dumps(values))).data_dir == ("data", "data")


def test_new_names_reach_a_test_folder_that_is_read_alone(tmp_path):
    train, test = animals(tmp_path / "a", NAMES), animals(tmp_path / "b", NAMES[1:], ("",))
    config = DatasetConfig(path="imagefolder", data_dir=train, test_data_dir=test, label_names=("c", "d", "e"))
    for only in (["test"], ["train", "test"]):
        assert open_splits(config, only=only)["test"].labels == [1] * 4 + [2] * 4
