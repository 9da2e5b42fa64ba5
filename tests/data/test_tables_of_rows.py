# SPDX-License-Identifier: Apache-2.0
"""Parquet and csv files of a folder: exact names say the split, shards are complete, paths lie below the folder."""

import os
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edvit_hf.data import DatasetConfig, load_task
from edvit_hf.data.sources import files_elsewhere, open_splits
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
        (["fold-2.parquet", "fold-1.parquet"], {"fold-1": 1, "fold-2": 1, "fold": 2}),
        (["train-0.parquet", "test.parquet", "test-1.parquet"], {"train-0": 1, "train": 1, "test": 1, "test-1": 1}),
        (["train-2019.parquet", "train-2020.parquet"], {"train-2019": 1, "train-2020": 1}),
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
        (["test/rows.parquet", "train/rows.parquet"], r"number its files: test/0000\.parquet"),
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


@pytest.mark.parametrize(
    "cell", ["absent.png", "x" * 300, "nul\0l", "http://example.org/a.png", "hf://a/b.png", "*.png", "a::b.png"]
)
def test_a_file_that_is_not_there_is_refused_with_its_row(tmp_path, cell):
    (tmp_path / "1.png").write_bytes(png(1))
    write_paths(tmp_path, "csv", ["1.png", "1.png", "1.png", cell] * 3, ["a", "b", "a", "b"] * 3)
    with pytest.raises(DataError, match=r"Row \d+ of split 'train': Expected the path of a readable image file"):
        load_task(parquet(tmp_path, path="csv", test_split=None), OFF)


@pytest.mark.parametrize("form", ["csv", "strings", "struct"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["pipe", "folder", "/dev/zero"])
def test_a_path_of_what_is_no_file_is_refused_before_it_is_read(tmp_path, form, whole, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    write_paths(tmp_path, form, ["a.png", str(tmp_path / name) if whole else name], ["a", "b"])
    config = parquet(tmp_path, path="csv" if form == "csv" else "parquet", test_split=None)
    with pytest.raises(DataError, match=r"path of a file in row 1 of split 'train'"):
        open_splits(config)


def test_an_empty_shard_and_views_of_texts_are_read(tmp_path):
    view = pa.table({"text": pa.array(["a", "b"], pa.string_view()), "label": pa.array(["x", "y"], pa.string_view())})
    pq.write_table(view, tmp_path / "train-0-of-3.parquet")
    pq.write_table(view.slice(0, 0), tmp_path / "train-1-of-3.parquet")
    pq.write_table(view, tmp_path / "train-2-of-3.parquet")
    split = open_splits(parquet(tmp_path, test_split=None), TEXTS)["train"]
    assert (split.labels, split.items.read(np.arange(4))) == (["x", "y"] * 2, ["a", "b"] * 2)


@pytest.mark.parametrize("sounds", [False, True])
def test_a_table_without_rows_is_an_empty_split(tmp_path, sounds):
    columns = ("audio", "label") if sounds else ("image", "label")
    write_split(tmp_path, "train", [0], datasets.Value("int64"), sounds=sounds, columns=columns)
    file = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    split = open_splits(parquet(tmp_path, test_split=None), SOUNDS if sounds else IMAGES)["train"]
    assert split.labels == []


@pytest.mark.parametrize("form", ["csv", "strings", "struct"])
def test_files_that_a_table_names_outside_of_its_folder_are_known(tmp_path, form):
    for name in ("a.png", "set/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(0))
    paths = [str(tmp_path / "c.png"), "b.png", str(tmp_path / "set/b.png"), str(tmp_path / "a.png"), "/absent.png"]
    write_paths(tmp_path / "set", form, paths, list("xyxyx"))
    config = parquet(tmp_path / "set", path="csv" if form == "csv" else "parquet")
    assert files_elsewhere(config, IMAGES) == [tmp_path / "a.png", tmp_path / "c.png"]
    assert files_elsewhere(config, TEXTS) == []


@pytest.mark.parametrize("content", [b"PAR1", b""])
def test_a_damaged_table_is_told_of_when_it_is_opened_not_when_it_is_compared(tmp_path, content):
    (tmp_path / "train.parquet").write_bytes(content)
    assert files_elsewhere(parquet(tmp_path, test_split=None), IMAGES) == []
    with pytest.raises(DataError, match=r"got the file train\.parquet, whose columns cannot be read"):
        open_splits(parquet(tmp_path, test_split=None))
