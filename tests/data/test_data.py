# SPDX-License-Identifier: Apache-2.0
"""Datasets load from every source and divide into training, validation and test rows."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.data import DatasetConfig, load_task
from edvit_hf.data.subsets import stratified_split, stratified_subset
from edvit_hf.errors import DataError
from support.dataset_files import (  # noqa: F401
    NAMES,
    OFF,
    TEST,
    TRAIN,
    own_cache,
    parquet,
    png,
    write_animals,
    write_dataset,
    write_split,
)

_quick = settings(max_examples=25, deadline=None)


@pytest.fixture
def animals(tmp_path):
    return write_animals(tmp_path)


def test_the_embedded_digits_need_no_files():
    loaded = load_task(DatasetConfig(path="digits", image_size=8), OFF)
    sizes = [len(split) for split in (loaded.train, loaded.validation, loaded.test)]
    assert sum(sizes) == 1797
    assert sizes[2] == round(1797 * 0.25)
    assert sizes[1] == round((1797 - sizes[2]) * 0.1)
    assert loaded.label_names == list("0123456789")
    pixels = loaded.train.inputs(range(sizes[0]))["pixel_values"]
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    for split in (loaded.train, loaded.validation, loaded.test):
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert np.abs(shares - 0.1).max() < 0.02


def test_equal_configs_give_equal_splits_and_another_seed_gives_others():
    first, second, other = (load_task(DatasetConfig(path="digits", image_size=8, seed=s), OFF) for s in (0, 0, 1))
    everything = range(len(first.test))
    assert torch.equal(first.test.inputs(everything)["pixel_values"], second.test.inputs(everything)["pixel_values"])
    assert not torch.equal(first.test.inputs(everything)["pixel_values"], other.test.inputs(everything)["pixel_values"])


def test_the_three_digit_splits_share_no_row_and_lose_none():
    from sklearn.datasets import load_digits

    loaded = load_task(DatasetConfig(path="digits", image_size=8), OFF)
    splits = (loaded.train, loaded.validation, loaded.test)
    rows = np.concatenate([s.inputs(range(len(s)))["pixel_values"][:, 0].flatten(1).numpy() for s in splits])
    original = np.rint(load_digits().data * (255 / 16)) / 127.5 - 1
    assert sorted(map(tuple, rows.round(3))) == sorted(map(tuple, original.round(3).astype(np.float32)))


def test_parquet_class_names_become_the_label_names(animals):
    loaded = load_task(parquet(animals), OFF)
    assert loaded.label_names == NAMES
    assert loaded.test.labels.tolist() == TEST
    assert np.bincount(loaded.train.labels).tolist() == [9, 9, 9]
    assert np.bincount(loaded.validation.labels).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("values", "dtype", "names"),
    [
        ((0, 1, 2), "int64", ["0", "1", "2"]),
        ((10, 2, 7), "int32", ["2", "7", "10"]),
        (("b", "a", "c"), "string", ["a", "b", "c"]),
    ],
)
def test_labels_without_declared_names_are_mapped_in_sorted_order(tmp_path, values, dtype, names):
    train, test = [values[i] for i in TRAIN], [values[i] for i in TEST]
    write_dataset(tmp_path / "set", train, test, datasets.Value(dtype))
    loaded = load_task(parquet(tmp_path / "set"), OFF)
    assert loaded.label_names == names
    assert [loaded.label_names[label] for label in loaded.test.labels] == [str(label) for label in test]


def test_folders_of_image_files_load_and_need_not_be_named_as_such(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.png").write_bytes(png(index))
    named = load_task(parquet(tmp_path / "set", path="imagefolder"), OFF)
    hub_id = load_task(parquet(tmp_path / "set", path="someone/pets"), OFF)
    assert named.label_names == ["cat", "dog"]
    assert len(named.train) + len(named.validation) == 12
    assert torch.equal(named.test.inputs(range(4))["pixel_values"], hub_id.test.inputs(range(4))["pixel_values"])


def test_plain_bytes_and_a_file_struct_load_like_an_image_feature(animals, tmp_path):
    expected = load_task(parquet(animals), OFF).test.inputs(range(3))["pixel_values"]
    for feature, wrap in (
        (datasets.Value("binary"), lambda b: b),
        ({"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, lambda b: {"bytes": b, "path": "a"}),
    ):
        folder = tmp_path / str(type(feature).__name__)
        folder.mkdir()
        for split, labels in (("train", TRAIN), ("test", TEST)):
            features = datasets.Features({"image": feature, "label": datasets.Value("int64")})
            rows = {"image": [wrap(png(index)) for index in range(len(labels))], "label": labels}
            datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
        assert torch.equal(load_task(parquet(folder), OFF).test.inputs(range(3))["pixel_values"], expected)


def test_a_folder_under_the_environment_variable_replaces_the_hub(animals, monkeypatch):
    monkeypatch.setenv("EDVIT_DATA_DIR", str(animals.parent))
    config = DatasetConfig(path="someone/animals", local_name="animals", image_size=8)
    assert load_task(config, OFF).label_names == NAMES


def test_a_hub_dataset_that_cannot_be_reached_says_how_to_use_local_files(tmp_path, monkeypatch):
    monkeypatch.setenv("EDVIT_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"someone/animals.*set `data_dir`.*animals2.*EDVIT_DATA_DIR"):
        load_task(DatasetConfig(path="someone/animals", local_name="animals2"), OFF)


def test_a_validation_split_is_used_when_named(animals):
    write_split(animals, "validation", [1, 1, 0], datasets.ClassLabel(names=NAMES))
    loaded = load_task(parquet(animals, validation_split="validation"), OFF)
    assert loaded.validation.labels.tolist() == [1, 1, 0]
    assert len(loaded.train) == 30


def test_sample_limits_keep_the_classes_in_balance(animals):
    loaded = load_task(parquet(animals, max_train_samples=12, max_test_samples=2), OFF)
    assert len(loaded.train) + len(loaded.validation) == 12
    assert (np.bincount(loaded.train.labels) + np.bincount(loaded.validation.labels, minlength=3)).tolist() == [4] * 3
    assert len(loaded.test) == 2


@_quick
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    fraction=st.floats(0.05, 0.95),
    size=st.integers(1, 100),
    seed=st.integers(0, 9),
)
def test_stratified_choices_keep_rare_classes_and_shares(counts, fraction, size, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    stays, carved = stratified_split(labels, fraction, seed=(seed,))
    assert sorted([*stays, *carved]) == list(range(len(labels)))
    assert set(labels[stays]) == set(labels)
    subset = stratified_subset(labels, size, seed=(seed,))
    assert len(set(subset)) == len(subset) == min(size, len(labels))
    assert len(set(labels[subset])) == len(counts) or size < len(counts)
    shares = np.bincount(labels[subset], minlength=len(counts)) - len(subset) * np.array(counts) / len(labels)
    assert np.abs(shares).max() <= len(counts)
