# SPDX-License-Identifier: Apache-2.0
"""Datasets that are not as described are refused by name; damaged rows are skipped and counted where asked."""

import io
import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from edvit_hf.data import DatasetConfig, load_task
from edvit_hf.errors import DataError
from edvit_hf.transforms import ImageTransform
from support.dataset_files import (  # noqa: F401
    NAMES,
    OFF,
    TEST,
    TRAIN,
    own_cache,
    parquet,
    png,
    tone,
    write_animals,
    write_dataset,
    write_split,
)


@pytest.fixture
def animals(tmp_path):
    return write_animals(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"input_column": "img"}, r"column named 'img'.*got columns: image, label"),
        ({"label_column": "y"}, r"column named 'y'.*got columns: image, label"),
        ({"test_split": "dev"}, r"split named 'dev'.*got only: test, train"),
        ({"validation_split": "dev"}, r"split named 'dev'"),
        ({"label_column": "image"}, "one class per row"),
        ({"data_dir": "absent_folder"}, "existing folder, got 'absent_folder'"),
        ({"data_dir": None}, "needs|Expected `data_dir` beside path 'parquet'"),
        ({"max_train_samples": 1}, "Expected rows for validation|two classes"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_by_name(animals, change, named):
    with pytest.raises(DataError, match=named):
        load_task(parquet(animals, **change), OFF)


def test_the_only_column_of_images_need_not_be_named(tmp_path):
    feature = datasets.ClassLabel(names=NAMES)
    write_dataset(tmp_path / "other_name", TRAIN, TEST, feature, columns=("img", "label"))
    write_dataset(tmp_path / "usual_name", TRAIN, TEST, feature)
    other, usual = (load_task(parquet(tmp_path / name), OFF) for name in ("other_name", "usual_name"))
    assert torch.equal(other.test.inputs([0, 1])["pixel_values"], usual.test.inputs([0, 1])["pixel_values"])


def test_an_input_column_without_images_is_refused(animals):
    with pytest.raises(DataError, match=r"Expected images in column 'label'"):
        load_task(parquet(animals, input_column="label"), OFF)


def test_a_folder_without_parquet_files_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(DataError, match="Expected parquet files"):
        load_task(parquet(tmp_path), OFF)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but nothing else")
    with pytest.raises(DataError, match="Expected a readable dataset in"):
        load_task(parquet(tmp_path), OFF)


def test_a_single_class_is_refused(tmp_path):
    write_dataset(tmp_path / "set", [1] * 9, [1], datasets.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(DataError, match="at least two classes"):
        load_task(parquet(tmp_path / "set"), OFF)


@pytest.mark.parametrize("hidden", [-1, None, 3, 17])
def test_a_label_outside_the_declared_classes_is_refused_with_its_row(tmp_path, hidden):
    write_split(tmp_path / "set", "train", TRAIN, datasets.Value("int64"), declared=NAMES)
    write_split(tmp_path / "set", "test", [0, 1, hidden, 2, hidden], datasets.Value("int64"), declared=NAMES)
    with pytest.raises(DataError, match=rf"class ids in 0\.\.2 in split 'test', got 2 row.*row 2: {hidden}, row 4"):
        load_task(parquet(tmp_path / "set"), OFF)


@pytest.mark.parametrize(
    ("train", "test"), [([0, 1] * 5, [5]), ([0, 1] * 5, [-1]), ([0, 1, -1] * 5, [0]), ([0, 1, None] * 5, [0])]
)
def test_an_undeclared_label_that_is_hidden_or_unknown_is_refused(tmp_path, train, test):
    write_dataset(tmp_path / "set", train, test, datasets.Value("int64"))
    with pytest.raises(DataError, match=r"row \d+: "):
        load_task(parquet(tmp_path / "set"), OFF)


def test_a_class_without_training_rows_is_warned_of(tmp_path, caplog):
    write_dataset(tmp_path / "set", [0, 1] * 10, [0, 1], datasets.ClassLabel(names=NAMES))
    load_task(parquet(tmp_path / "set"), OFF)
    assert "1 of 3 classes have no training row" in caplog.text
    assert "emu" in caplog.text


@pytest.mark.parametrize("damaged", [b"no image", png(0)[:150], b""])
def test_a_damaged_row_is_refused_with_its_number_or_skipped_and_counted(tmp_path, damaged, caplog):
    images = [png(index) for index in range(30)]
    images[4] = images[11] = damaged
    write_split(tmp_path / "set", "train", TRAIN, datasets.Value("int64"), images=images)
    write_split(tmp_path / "set", "test", TEST, datasets.Value("int64"))
    write_split(tmp_path / "set", "validation", TEST, datasets.Value("int64"))
    config = {"validation_split": "validation"}
    with pytest.raises(DataError, match="Row 4 of split 'train'"):
        load_task(parquet(tmp_path / "set", **config), OFF)
    with caplog.at_level(logging.WARNING):
        loaded = load_task(parquet(tmp_path / "set", on_error="skip", **config), OFF)
    assert "skipped 2 of 30 rows" in caplog.text
    assert loaded.train.labels.tolist() == [label for row, label in enumerate(TRAIN) if row not in (4, 11)]
    transform = ImageTransform(size=(8, 8))
    np.testing.assert_allclose(loaded.train.inputs([10])["pixel_values"], transform(images[12]), atol=1e-6)


def test_a_split_of_damaged_rows_only_is_refused_even_when_skipping(tmp_path):
    write_split(tmp_path / "set", "train", TRAIN, datasets.Value("int64"))
    write_split(tmp_path / "set", "test", TEST, datasets.Value("int64"), images=[b"x"] * 3)
    with pytest.raises(DataError, match="all 3 rows are damaged"):
        load_task(parquet(tmp_path / "set", on_error="skip"), OFF)


@pytest.mark.parametrize(
    "change",
    [
        {"path": ""},
        {"validation_fraction": 0.0},
        {"test_fraction": 1.0},
        {"image_size": 1},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.0)},
        {"max_train_samples": 0},
        {"seed": -1},
        {"on_error": "ignore"},
        {"local_name": "../secrets"},
    ],
)
def test_a_config_value_out_of_range_is_refused_by_name(change):
    with pytest.raises(DataError, match=f"`{next(iter(change))}`"):
        DatasetConfig(**{"path": "digits", **change})


# --- missing labels, lying files ---


@pytest.mark.parametrize("missing", [None, -1])
def test_rows_without_a_label_are_refused_or_skipped_and_counted(tmp_path, missing):
    train, test = list(TRAIN), [2, missing, 0]
    train[4] = train[5] = missing
    write_dataset(tmp_path / "set", train, test, datasets.Value("int64"), declared=NAMES)
    with pytest.raises(DataError, match=r"row 4: .*left out with `on_error: skip`"):
        load_task(parquet(tmp_path / "set"), OFF)
    loaded = load_task(parquet(tmp_path / "set", on_error="skip"), OFF)
    assert loaded.skipped == {"train": 2, "validation": 0, "test": 1}
    assert len(loaded.train) + len(loaded.validation) == 28
    assert loaded.test.labels.tolist() == [2, 0]
    pixels = ImageTransform(size=(8, 8))(png(2))
    np.testing.assert_allclose(loaded.test.inputs([1])["pixel_values"], pixels, atol=1e-6)


def test_a_split_whose_labels_are_all_hidden_is_refused_even_when_skipping(tmp_path):
    write_dataset(tmp_path / "set", TRAIN, [-1, -1], datasets.Value("int64"), declared=NAMES)
    with pytest.raises(DataError, match=r"rows for test, got none \(2 without a label\)"):
        load_task(parquet(tmp_path / "set", on_error="skip"), OFF)


def test_a_label_that_training_does_not_know_is_refused_even_when_skipping(tmp_path):
    write_dataset(tmp_path / "set", ["a", "b"] * 9, ["a", "c"], datasets.Value("string"))
    with pytest.raises(DataError, match=r"the 2 labels of the training split in split 'test', got 1 .*row 1: 'c'"):
        load_task(parquet(tmp_path / "set", on_error="skip"), OFF)


def test_a_fifth_of_damaged_rows_is_counted_for_each_role(tmp_path, caplog):
    images = [b"no image" if row % 5 == 0 else png(row) for row in range(60)]
    write_split(tmp_path / "set", "train", [row % 3 for row in range(60)], datasets.Value("int64"), images=images)
    write_split(tmp_path / "set", "test", [0, 1, 2, 0, 1], datasets.Value("int64"), images=images[:5])
    with caplog.at_level(logging.WARNING):
        loaded = load_task(parquet(tmp_path / "set", on_error="skip", validation_fraction=0.3), OFF)
    assert loaded.skipped["train"] + loaded.skipped["validation"] == 12
    assert loaded.skipped["test"] == 1
    assert len(loaded.train) + len(loaded.validation) == 48
    counts = ", ".join(f"{role} {count}" for role, count in loaded.skipped.items())
    assert f"skipped rows of parquet: {counts}" in caplog.text


def test_files_that_lie_about_their_type_are_read_by_their_content_or_skipped(tmp_path):
    jpeg = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(jpeg, format="JPEG")
    for split, count in (("train", 8), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.png").write_bytes(png(index))
    (tmp_path / "set/train/cat/9.png").write_bytes(jpeg.getvalue())
    (tmp_path / "set/test/cat/9.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "set/test/cat/8.gif").write_bytes(tone(440, form="WAV"))
    with pytest.raises(DataError, match=r"Row \d of split 'test': Expected an image, got something else"):
        load_task(parquet(tmp_path / "set", path="imagefolder"), OFF)
    loaded = load_task(parquet(tmp_path / "set", path="imagefolder", on_error="skip"), OFF)
    assert loaded.skipped == {"train": 0, "validation": 0, "test": 2}
    assert len(loaded.train) + len(loaded.validation) == 17


def test_whole_numbers_with_gaps_in_a_csv_are_labels_and_fractions_are_none(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [f"words {row},{'' if row == 7 else row % 2 + 9}" for row in range(20)]
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    loaded = load_task(parquet(folder, path="csv", on_error="skip"), OFF, task="text-classification")
    assert loaded.label_names == ["9", "10"]
    assert loaded.skipped == {"train": 1, "validation": 0, "test": 1}
    (folder / "train.csv").write_text("text,label\n" + "a,0.5\nb,1\n" * 6)
    with pytest.raises(DataError, match=r"one class per row in column 'label', got numbers like 0\.5"):
        load_task(parquet(folder, path="csv"), OFF, task="text-classification")


def test_folders_without_files_of_the_task_say_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"parquet or csv files named like"):
        load_task(parquet(tmp_path, path="someone/texts"), OFF, task="text-classification")
    with pytest.raises(DataError, match=r"sound files \(\.wav"):
        load_task(parquet(tmp_path, path="audiofolder"), OFF, task="audio-classification")


def write_with_damage(folder, *damaged_labels):
    images = [b"no image" if label in damaged_labels else png(row) for row, label in enumerate(TRAIN)]
    feature = datasets.ClassLabel(names=NAMES)
    write_split(folder, "train", TRAIN, feature, images=images)
    write_split(folder, "test", TEST, feature)
    write_split(folder, "validation", TEST, feature)
    return parquet(folder, on_error="skip", validation_split="validation")


def test_a_class_whose_training_rows_are_all_damaged_is_warned_of_once(tmp_path, caplog):
    loaded = load_task(write_with_damage(tmp_path / "set", 1), OFF)
    assert set(loaded.train.labels.tolist()) == {0, 2}
    (said,) = [line for line in caplog.messages if "have no training row" in line]
    assert "1 of 3 classes" in said
    assert said.endswith("dog")


def test_a_single_class_that_is_left_without_its_damaged_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"at least two classes, got 10 row\(s\) of 1 \(20 skipped\)"):
        load_task(write_with_damage(tmp_path / "set", 0, 1), OFF)
