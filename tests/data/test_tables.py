# SPDX-License-Identifier: Apache-2.0
"""Parquet and csv files of a folder: exact names say the split, shards are complete, paths lie below the folder."""

import os
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch

from edvit_hf.data import DatasetConfig, load_task
from edvit_hf.data.sources import open_splits
from edvit_hf.data.tables import table_files
from edvit_hf.errors import DataError
from support.dataset_files import NAMES, OFF, own_cache, parquet, png, tone, write_split, write_texts  # noqa: F401

IMAGES, SOUNDS, TEXTS = "image-classification", "audio-classification", "text-classification"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def found(folder, builder="parquet"):
    return {
        split: [path.relative_to(folder).as_posix() for path in paths]
        for split, paths in table_files(folder, builder).items()
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.parquet", "test.parquet"], {"train": 1, "test": 1}),
        (["train.parquet", "train-extra.parquet", "test_tube.parquet"], {"train": 1, "train-extra": 1, "test_tube": 1}),
        (["fold-1.parquet", "fold-2.parquet", "fold-10.parquet"], {"fold-1": 1, "fold-2": 1, "fold-10": 1}),
        (["train.v2.parquet", "train.parquet"], {"train.v2": 1, "train": 1}),
        (["train.PARQUET", "latest.parquet", "contest.parquet"], {"train": 1, "latest": 1, "contest": 1}),
        ([f"train-{i:05}-of-00012.parquet" for i in range(12)], {"train": 12}),
        (["train-00000-of-00001-0123456789abcdef.parquet", "test.parquet"], {"train": 1, "test": 1}),
        (["data/train.parquet", "README.md", ".git/test.parquet"], {"train": 1}),
        (["default/train/0000.parquet", "default/train/0001.parquet", "default/a/0000.parquet"], {"train": 2, "a": 1}),
        (["train/0000.parquet"], {"train": 1}),
        (["train.csv"], {}),
    ],
)
def test_the_exact_name_of_a_file_says_its_split(tmp_path, names, expected):
    splits = found(touch(tmp_path, *names))
    assert {split: len(paths) for split, paths in splits.items()} == expected
    assert all(paths == sorted(paths) for paths in splits.values())


def test_numbered_files_come_in_the_order_of_their_numbers(tmp_path):
    touch(tmp_path, *(f"train-{number}-of-11.csv" for number in range(11)), "test.TSV")
    assert found(tmp_path, "csv")["train"] == [f"train-{number}-of-11.csv" for number in range(11)]
    touch(tmp_path / "hub", "train/2.parquet", "train/10.parquet", "train/9.parquet")
    assert found(tmp_path / "hub") == {"train": ["train/2.parquet", "train/9.parquet", "train/10.parquet"]}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "3 files of split 'train'.*got 2.*is 1"),
        (["train-00001-of-00001.parquet"], "first number missing is 0"),
        (["train.parquet", "train-00000-of-00001.parquet"], "once, got files that say different things"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "once, got files that say different"),
        (["train.parquet", "train.PARQUET"], "once, got files that say different"),
        (["plus/train.parquet", "raw/train.parquet"], r"got them in 2: plus, raw\. .*Name one of these"),
    ],
)
def test_files_that_are_missing_or_there_twice_are_refused(tmp_path, names, said):
    with pytest.raises(DataError, match=said):
        table_files(touch(tmp_path, *names), "parquet")


def test_a_table_that_lies_deeper_than_the_others_is_named(tmp_path, caplog):
    assert found(touch(tmp_path, "train.parquet", "old/train.parquet")) == {"train": ["train.parquet"]}
    assert "1 parquet files that lie deeper are left out: old/train.parquet" in caplog.text


@pytest.mark.parametrize("name", ["run[1]", "run*", "r?n1", "a::b", "hf:", "~run", "{run1,x}", "run1 "])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_tables_is_read_by_its_literal_name(tmp_path, name, streaming):
    for other, word in (("run1", "wrong"), ("this", "right")):
        for split in ("train", "test"):
            write_texts(tmp_path / other, split, [f"{word} {row}" for row in range(6)], ["a", "b"] * 3)
    (tmp_path / "this").rename(tmp_path / name)
    limits = {"streaming": True, "max_train_samples": 6, "max_test_samples": 6} if streaming else {}
    splits = open_splits(parquet(tmp_path / name, **limits), TEXTS)
    assert {text.split()[0] for text in splits["train"].items.read(np.arange(6))} == {"right"}


def test_a_file_that_changed_is_read_anew_whatever_its_size_and_time_say(tmp_path):
    file = tmp_path / "set" / "train-00000-of-00001.parquet"
    for word in ("one", "two"):
        write_texts(tmp_path / "set", "train", [word] * 4, ["a", "b"] * 2)
        os.utime(file, ns=(10**18, 10**18))
        split = open_splits(parquet(tmp_path / "set", test_split=None), TEXTS)["train"]
        assert split.items.read(np.arange(4)) == [word] * 4


def test_categories_of_pandas_are_texts(tmp_path):
    table = pandas.DataFrame({"text": [f"t{row}" for row in range(20)], "label": pandas.Categorical(["b", "a"] * 10)})
    table.to_parquet(tmp_path / "train.parquet")
    split = open_splits(parquet(tmp_path, test_split=None), TEXTS)["train"]
    assert split.labels == ["b", "a"] * 10


def test_shards_with_other_columns_beside_those_that_are_read_are_one_split(tmp_path):
    for number, columns in enumerate(({"text": ["a"], "label": [0], "by": ["x"]}, {"label": [1], "text": ["b"]})):
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"train-{number}-of-2.parquet")
    split = open_splits(parquet(tmp_path, test_split=None), TEXTS)["train"]
    assert (split.labels, split.items.read(np.arange(2))) == ([0, 1], ["a", "b"])


# --- paths in tables ---


def write_paths(folder, form, paths, labels):
    """train.csv or train.parquet that names files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pandas.DataFrame({"image": paths, "label": labels})
    if form == "csv":
        rows.to_csv(folder / "train.csv", index=False)
    elif form == "strings":
        rows.to_parquet(folder / "train.parquet")
    else:
        struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        features = datasets.Features({"image": struct, "label": datasets.Value("string")})
        files = [{"bytes": None, "path": path} for path in paths]
        written = datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)
        written.to_parquet(folder / "train.parquet")


@pytest.mark.parametrize("form", ["csv", "strings", "struct"])
@pytest.mark.parametrize("place", ["", "labels"])
def test_relative_paths_start_at_the_folder_of_their_table(tmp_path, monkeypatch, form, place):
    up = "../" if place else ""
    names = [f"pictures/{row}.png" for row in range(12)]
    for root, shift in ((tmp_path / "set", 0), (tmp_path / "elsewhere", 50)):
        (root / "pictures").mkdir(parents=True)
        for row, name in enumerate(names):
            (root / name).write_bytes(png(row + shift))
    paths = [up + name for name in names]
    paths[3] = str(tmp_path / "set" / names[3])  # a whole path is taken as it is
    write_paths(tmp_path / "set" / place, form, paths, ["a", "b", "c"] * 4)
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = "csv" if form == "csv" else "parquet"
    config = parquet(tmp_path / "set", path=path, test_split=None, test_fraction=0.3)
    split = open_splits(config)["train"]
    for row, source in enumerate(split.items.read(np.arange(12))):
        assert Path(source).read_bytes() == png(row)
    loaded = load_task(config, OFF)
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 12


@pytest.mark.parametrize("form", ["csv", "strings", "struct"])
@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "./.././secret.png"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, form, name):
    (tmp_path / "secret.png").write_bytes(png(0))
    write_paths(tmp_path / "set", form, ["a.png", name], ["a", "b"])
    config = parquet(tmp_path / "set", path="csv" if form == "csv" else "parquet", test_split=None)
    with pytest.raises(DataError, match=r"below the data set's folder .* in row 1 of split 'train'"):
        open_splits(config)


def test_a_path_beside_bytes_is_a_name_only(tmp_path):
    write_split(tmp_path / "set", "train", [0, 1], datasets.Value("int64"), paths=["../a.png", "/x/b.png"])
    split = open_splits(parquet(tmp_path / "set", test_split=None))["train"]
    assert split.items.read(np.arange(2)) == [png(0), png(1)]


def test_relative_paths_of_sounds_start_at_their_table_too(tmp_path):
    for row in range(12):
        (tmp_path / f"{row}.wav").write_bytes(tone(300 + 300 * (row % 2), form="WAV"))
    lines = [f"{row}.wav,{'low' if row % 2 == 0 else 'high'}" for row in range(12)]
    (tmp_path / "train.csv").write_text("\n".join(["file,label", *lines]))
    config = DatasetConfig(path="csv", data_dir=str(tmp_path), test_split=None, input_column="file")
    loaded = load_task(config, OFF, task=SOUNDS)
    assert loaded.label_names == ["high", "low"]


@pytest.mark.parametrize("cell", ["absent.png", "http://example.org/a.png", "hf://a/b.png", "*.png", "a::b.png"])
def test_a_file_that_is_not_there_is_refused_with_its_row(tmp_path, cell):
    (tmp_path / "1.png").write_bytes(png(1))
    write_paths(tmp_path, "csv", ["1.png", "1.png", "1.png", cell] * 3, ["a", "b", "a", "b"] * 3)
    with pytest.raises(DataError, match=r"Row \d+ of split 'train': Expected the path of a readable image file"):
        load_task(parquet(tmp_path, path="csv", test_split=None), OFF)


# --- class names of other files ---


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


# --- several folders ---


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
        ({"data_dir": ()}, "`data_dir` must be a folder, or a list"),
        ({"data_dir": ("a", "a")}, "`data_dir` must be a folder, or a list"),
        ({"data_dir": ""}, "`data_dir` must be a folder, or a list"),
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
