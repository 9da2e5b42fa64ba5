# SPDX-License-Identifier: Apache-2.0
"""Streamed datasets: the first rows of a shuffled stream, undecoded, with the same columns and labels."""

import datasets
import numpy as np
import pytest

from edvit_hf.data import AudioConfig, load_task
from edvit_hf.errors import DataError
from support.dataset_files import OFF, own_cache, parquet, png, tone, write_split, write_texts  # noqa: F401

_LIMITS = {"streaming": True, "max_train_samples": 24, "max_test_samples": 6}


def test_a_stream_of_images_gives_so_many_rows_of_all_classes(tmp_path):
    names = datasets.ClassLabel(names=["cat", "dog"])
    write_split(tmp_path / "set", "train", [0] * 30 + [1] * 30, names)
    write_split(tmp_path / "set", "test", [0] * 10 + [1] * 10, names)
    loaded = load_task(parquet(tmp_path / "set", **_LIMITS), OFF)
    assert len(loaded.train) + len(loaded.validation) == 24
    assert len(loaded.test) == 6
    assert loaded.label_names == ["cat", "dog"]
    counts = np.bincount(loaded.train.labels) + np.bincount(loaded.validation.labels)
    assert counts.min() >= 6, "rows sorted by class are shuffled before the first are taken"
    again, other = (load_task(parquet(tmp_path / "set", seed=seed, **_LIMITS), OFF) for seed in (0, 1))
    values = [data.train.inputs(range(5))["pixel_values"].numpy() for data in (loaded, again, other)]
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).any()


def test_a_stream_of_folders_reads_their_files(tmp_path):
    for split, count in (("train", 14), ("test", 5)):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.png").write_bytes(png(index))
    loaded = load_task(parquet(tmp_path / "set", path="imagefolder", **_LIMITS), OFF)
    assert len(loaded.train) + len(loaded.validation) == 24
    assert loaded.test.inputs(range(6))["pixel_values"].shape == (6, 3, 8, 8)


def test_a_stream_of_sounds_needs_no_decoder(tmp_path):
    for split, count in (("train", 30), ("test", 8)):
        write_split(
            tmp_path / "set",
            split,
            [index % 2 for index in range(count)],
            datasets.ClassLabel(names=["a", "b"]),
            images=[tone(300 + index) for index in range(count)],
            sounds=True,
            columns=("audio", "label"),
        )
    config = parquet(tmp_path / "set", audio=AudioConfig(num_mel_bins=8, max_length=20), **_LIMITS)
    loaded = load_task(config, OFF, task="audio-classification")
    assert len(loaded.train) + len(loaded.validation) == 24
    assert loaded.train.inputs([0])["input_values"].shape == (1, 20, 8)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_stream_of_texts_knows_its_columns(tmp_path, form):
    folder = tmp_path / "set"
    for split, count in (("train", 30), ("test", 8)):
        texts, labels = [f"text number {row}" for row in range(count)], [f"c{row % 2}" for row in range(count)]
        if form == "parquet":
            write_texts(folder, split, texts, labels)
        else:
            folder.mkdir(exist_ok=True)
            lines = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
            (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    loaded = load_task(parquet(folder, path=form, **_LIMITS), OFF, task="text-classification")
    assert (len(loaded.train) + len(loaded.validation), len(loaded.test)) == (24, 6)
    assert loaded.label_names == ["c0", "c1"]


def test_a_stream_without_limits_or_with_a_wrong_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="`streaming` needs `max_train_samples` and `max_test_samples`"):
        parquet(tmp_path, streaming=True, max_train_samples=5)
    write_texts(tmp_path / "set", "train", ["a", "b"] * 5, ["x", "y"] * 5)
    with pytest.raises(DataError, match=r"split named 'test' in .*got only: train"):
        load_task(parquet(tmp_path / "set", **_LIMITS), OFF, task="text-classification")
