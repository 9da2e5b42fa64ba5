# SPDX-License-Identifier: Apache-2.0
"""Rows that two roles share are found by what they hold, counted and named; `on_overlap` says what training does."""

import datasets
import numpy as np
import pytest

from edvit_hf.data import DatasetConfig, load_task
from edvit_hf.data.overlap import find_overlaps, refuse_overlaps
from edvit_hf.errors import DataError
from support.dataset_files import NAMES, OFF, own_cache, parquet, png, tone, write_split, write_texts  # noqa: F401

LABELS = datasets.ClassLabel(names=NAMES)
IMAGE, AUDIO, TEXT = "image-classification", "audio-classification", "text-classification"


def write_pictures(folder, train, test, validation=None, **options):
    """Rows by the numbers of their pictures."""
    for name, numbers in (("train", train), ("test", test), ("validation", validation)):
        if numbers is not None:
            images = [png(number) for number in numbers]
            write_split(folder, name, [n % 3 for n in numbers], LABELS, images=images, **options)
    return parquet(folder, validation_split="validation" if validation else None)


def shared(loaded):
    found = find_overlaps(loaded.roles, loaded.task)
    assert [(o.first, o.second) for o in found] == [("train", "test"), ("train", "validation"), ("validation", "test")]
    return [o.num_shared for o in found]


def test_pictures_are_told_by_their_bytes_under_whatever_name_and_label(tmp_path):
    config = write_pictures(tmp_path / "set", range(12), [40, 3, 41, 3, 7], [50, 51, 52, 7])
    loaded = load_task(config, OFF)
    assert shared(loaded) == [3, 1, 1]
    with pytest.raises(DataError) as caught:
        refuse_overlaps(find_overlaps(loaded.roles, IMAGE))
    said = str(caught.value)
    assert "3 of 5 test rows (60 %) are training rows, too: row 1 of 'test' is row 3 of 'train'" in said
    assert "1 of 4 validation rows (25 %) are training rows, too: row 3 of 'validation' is row 7 of 'train'" in said
    assert "`dataset.on_overlap: drop`" in said


def test_files_are_named_by_their_paths(tmp_path):
    for split, numbers in (("train", range(9)), ("test", [30, 4, 31])):
        for number in numbers:
            file = tmp_path / "set" / split / NAMES[number % 3] / f"{split}-{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number))
    config = DatasetConfig(path="imagefolder", data_dir=str(tmp_path / "set"), image_size=8, validation_fraction=0.3)
    (named,) = [name for overlap in find_overlaps(load_task(config, OFF).roles, IMAGE) for name in overlap.named]
    assert "test/dog/test-4.png is " in named
    assert named.endswith("train/dog/train-4.png")


def test_sounds_and_texts_are_compared_too(tmp_path):
    clips = [tone(200 + 40 * i, seconds=0.1) for i in range(12)]
    for split, rows in (("train", clips[:9]), ("test", clips[8:])):
        labels = [i % 3 for i in range(len(rows))]
        write_split(tmp_path / "a", split, labels, LABELS, images=rows, sounds=True, columns=("audio", "label"))
    audio = load_task(parquet(tmp_path / "a", validation_fraction=0.3), OFF, task=AUDIO)
    assert shared(audio)[0] + shared(audio)[2] == 1
    write_texts(tmp_path / "t", "train", [f"the text {i}" for i in range(20)], ["a", "b"] * 10)
    write_texts(tmp_path / "t", "test", ["new", "the text 3", "THE TEXT 4", "the text 5 "], ["a", "b"] * 2)
    text = load_task(parquet(tmp_path / "t", validation_fraction=0.1), OFF, task=TEXT)
    found = find_overlaps(text.roles, TEXT)
    assert found[0].num_shared + found[2].num_shared == 1
    assert "('the text 3')" in (found[0].named or found[2].named)[0]


def test_missing_inputs_are_not_taken_for_equal(tmp_path):
    write_texts(tmp_path / "t", "train", [None, *(f"the text {i}" for i in range(19))], ["a", "b"] * 10)
    write_texts(tmp_path / "t", "test", [None, "new"], ["a", "b"])
    assert shared(load_task(parquet(tmp_path / "t", on_error="skip"), OFF, task=TEXT)) == [0, 0, 0]


def test_dropping_takes_rows_from_the_role_that_learns_never_from_the_test(tmp_path):
    config = write_pictures(tmp_path / "set", range(12), [40, 3, 41, 3, 7], [50, 51, 52, 7])
    kept = load_task(config, OFF)
    dropped = load_task(parquet(tmp_path / "set", validation_split="validation", on_overlap="drop"), OFF)
    assert shared(dropped) == [0, 0, 0]
    assert (len(kept.train) - len(dropped.train), len(kept.validation) - len(dropped.validation)) == (2, 1)
    assert dropped.dropped == {"train": 2, "validation": 1}
    np.testing.assert_array_equal(dropped.test.labels, kept.test.labels)
    assert dropped.fingerprint("test") == kept.fingerprint("test")


def test_doubles_inside_the_training_split_reach_the_rows_that_are_carved_from_it(tmp_path):
    write_pictures(tmp_path / "set", [*range(6)] * 4, [40, 41, 42])
    assert shared(load_task(parquet(tmp_path / "set", validation_fraction=0.3), OFF))[1] > 0
    carved = load_task(parquet(tmp_path / "set", validation_fraction=0.1, on_overlap="drop"), OFF)
    assert shared(carved) == [0, 0, 0]


def test_nothing_left_after_dropping_is_refused(tmp_path):
    write_pictures(tmp_path / "set", range(6), range(6))
    with pytest.raises(DataError, match=r"Expected train rows that are not among the validation or test rows"):
        load_task(parquet(tmp_path / "set", on_overlap="drop"), OFF)


def test_the_only_split_of_a_set_is_not_offered_for_both_roles(tmp_path):
    write_pictures(tmp_path / "set", range(12), None)
    (tmp_path / "set/train-00000-of-00001.parquet").rename(tmp_path / "set/test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"`train_split: test` and `test_split: null`.*cannot be both"):
        load_task(parquet(tmp_path / "set"), OFF)
    assert len(load_task(parquet(tmp_path / "set", train_split="test", test_split=None), OFF).test) == 3


def test_an_unknown_choice_is_refused():
    with pytest.raises(DataError, match="`on_overlap` must be one of raise, drop, keep, got 'warn'"):
        DatasetConfig(path="digits", on_overlap="warn")
