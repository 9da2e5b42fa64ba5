# SPDX-License-Identifier: Apache-2.0
"""No group lies on both sides of a split: not in training and validation, not in training and a chosen fold."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edvit_hf.data import load_task
from edvit_hf.data.subsets import group_codes, group_split, stratified_split
from edvit_hf.errors import DataError
from edvit_hf.transforms import ImageTransform
from support.dataset_files import OFF, own_cache, parquet, png, write_split  # noqa: F401

_quick = settings(max_examples=60, deadline=None)


@_quick
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=80),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 5),
)
def test_no_group_lies_on_both_sides_and_no_class_is_emptied(rows, fraction, seed):
    labels, groups = (np.array(column) for column in zip(*rows, strict=True))
    spare = [g for g in set(groups) if set(labels[groups != g]) == set(labels)]
    if not spare:
        with pytest.raises(DataError, match="Expected"):
            group_split(labels, groups, fraction, seed=(seed,))
        return
    stays, carved = group_split(labels, groups, fraction, seed=(seed,))
    assert sorted([*stays, *carved]) == list(range(len(labels)))
    assert not set(groups[stays]) & set(groups[carved])
    assert len(carved) > 0
    assert set(labels[stays]) == set(labels)
    again = group_split(labels.copy(), groups * 7 + 3, fraction, seed=(seed,))
    np.testing.assert_array_equal(again[1], carved)


@_quick
@given(fraction=st.floats(0.05, 0.5), num_groups=st.integers(20, 80), seed=st.integers(0, 5))
def test_shares_are_near_the_fraction_where_groups_are_small(fraction, num_groups, seed):
    random = np.random.default_rng(seed)
    groups = random.integers(0, num_groups, 1000)
    labels = random.integers(0, 5, 1000)
    _, carved = group_split(labels, groups, fraction, seed=(seed,))
    largest = np.bincount(groups).max() / 1000
    assert abs(len(carved) / 1000 - fraction) <= largest
    shares = np.bincount(labels[carved], minlength=5) / np.bincount(labels, minlength=5)
    assert np.abs(shares - fraction).max() <= 0.08 + largest


@_quick
@given(labels=st.lists(st.integers(0, 2), min_size=12, max_size=60), seed=st.integers(0, 5))
def test_rows_that_are_groups_of_their_own_split_as_well_as_single_rows(labels, seed):
    labels = np.array(labels)
    assume(np.bincount(labels, minlength=3).min() >= 4)
    codes = group_codes([None] * len(labels))
    assert len(set(codes)) == len(labels)
    _, carved = group_split(labels, codes, 0.25, seed=(seed,))
    counts, expected = (np.bincount(part, minlength=3) for part in (labels[carved], labels))
    assert np.abs(counts - 0.25 * expected).max() <= 1


def test_another_seed_carves_other_groups():
    labels, groups = np.arange(400) % 4, np.arange(400) // 10
    carved = [set(groups[group_split(labels, groups, 0.2, seed=(seed,))[1]]) for seed in range(3)]
    assert carved[0] != carved[1] != carved[2]


def test_group_codes_are_equal_for_equal_names_alone():
    codes = group_codes(["b", None, "a", "b", None])
    assert codes[0] == codes[3]
    assert len({codes[0], codes[1], codes[2], codes[4]}) == 4


def speakers(rows):
    """Two words, five speakers: file names as in a real set, word and speaker and take."""
    return [
        f"{'yes' if row % 2 else 'no'}/{'abcde'[row // 2 % 5]}{row // 2 % 5}f_nohash_{row // 10}.png" for row in rows
    ]


def write_speakers(folder, *, paths=True, extra=None):
    for split, count, start in (("train", 40, 0), ("test", 10, 40)):
        rows = range(start, start + count)
        write_split(
            folder,
            split,
            [row % 2 for row in rows],
            datasets.ClassLabel(names=["no", "yes"]),
            images=[png(row) for row in rows],
            paths=speakers(rows) if paths else None,
            extra={"who": ["abcde"[row // 2 % 5] for row in rows]} if extra else None,
        )


def group_ids(split, names):
    """Which rows of the parquet files a split holds, found by their pixels, as group names."""
    transform = ImageTransform(size=(8, 8))
    known = {transform.pixels(png(row)).transpose(2, 0, 1).tobytes(): name for row, name in enumerate(names)}
    pixels = split.inputs(range(len(split)))["pixel_values"].mul(127.5).add(127.5).round().to(torch.uint8).numpy()
    return [known[image.tobytes()] for image in pixels]


_NAMES = [name.split("/")[1][0] for name in speakers(range(50))]


@pytest.mark.parametrize("by", [{"group_pattern": r"/([a-z]\d)f_nohash"}, {"group_column": "who"}])
def test_validation_speakers_are_not_in_training_where_a_random_split_leaks(tmp_path, by):
    write_speakers(tmp_path / "set", extra="group_column" in by)
    loaded = load_task(parquet(tmp_path / "set", validation_fraction=0.2, **by), OFF)
    train, validation = (set(group_ids(split, _NAMES)) for split in (loaded.train, loaded.validation))
    assert len(validation) == 1
    assert not train & validation
    assert np.bincount(loaded.validation.labels).tolist() == [4, 4]
    # The same rows split at random: every validation speaker was heard in training.
    random = load_task(parquet(tmp_path / "set", validation_fraction=0.2), OFF)
    leaked = set(group_ids(random.train, _NAMES)) & set(group_ids(random.validation, _NAMES))
    assert leaked == set(group_ids(random.validation, _NAMES))


def test_a_random_split_flatters_a_model_that_only_knows_the_speakers():
    """Labels depend on the speaker alone: nearest neighbour is perfect on a random split and at chance by groups."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    voices, answers = random.normal(size=(40, 4)), random.integers(0, 2, 40)
    features, labels = voices[groups] + random.normal(0, 0.01, (400, 4)), answers[groups]

    def accuracy(stays, carved):
        distance = ((features[carved][:, None] - features[stays][None]) ** 2).sum(-1)
        return (labels[stays][distance.argmin(1)] == labels[carved]).mean()

    assert accuracy(*stratified_split(labels, 0.3, seed=(0,))) > 0.95
    assert accuracy(*group_split(labels, groups, 0.3, seed=(0,))) < 0.75


def test_a_fold_of_all_rows_can_be_the_test_split(tmp_path):
    write_speakers(tmp_path / "set")
    pattern = {"group_pattern": r"/[a-z](\d)f_nohash", "validation_fraction": 0.25}
    everything = []
    for fold in range(5):
        loaded = load_task(parquet(tmp_path / "set", test_groups=(fold,), **pattern), OFF)
        splits = [group_ids(split, _NAMES) for split in (loaded.train, loaded.validation, loaded.test)]
        assert [len(names) for names in splits] == [30, 10, 10]
        assert set(splits[2]) == {"abcde"[fold]}
        assert not set(splits[0]) & set(splits[1])
        everything += loaded.test.inputs(range(10))["pixel_values"].flatten(1).tolist()
    assert len({tuple(row) for row in everything}) == 50
    with pytest.raises(DataError, match=r"got \['9'\].*Known groups: 0, 1, 2, 3, 4\."):
        load_task(parquet(tmp_path / "set", test_groups=(1, "9"), **pattern), OFF)


def test_without_a_test_split_one_is_held_out_along_the_groups(tmp_path):
    write_speakers(tmp_path / "set")
    (tmp_path / "set" / "test-00000-of-00001.parquet").unlink()
    config = parquet(tmp_path / "set", test_split=None, test_fraction=0.2, group_pattern=r"/([a-z]\d)f")
    loaded = load_task(config, OFF)
    splits = [set(group_ids(split, _NAMES)) for split in (loaded.train, loaded.validation, loaded.test)]
    assert [len(names) for names in splits] == [3, 1, 1]
    assert len(set.union(*splits)) == 5
    plain = load_task(parquet(tmp_path / "set", test_split=None, test_fraction=0.2), OFF)
    assert len(plain.test) == 8


def test_groups_that_the_dataset_itself_put_on_both_sides_are_warned_of(tmp_path, caplog):
    write_speakers(tmp_path / "set")
    load_task(parquet(tmp_path / "set", group_pattern=r"/([a-z])\df"), OFF)
    assert "5 of 5 groups of the test rows are in the training split, too" in caplog.text


def test_rows_without_a_match_are_groups_of_their_own(tmp_path):
    write_speakers(tmp_path / "set")
    loaded = load_task(parquet(tmp_path / "set", group_pattern=r"yes/([a-z]\d)f", validation_fraction=0.3), OFF)
    # Rows of "no" match nothing, so they are divided one by one; those of "yes" by speaker.
    counts = np.bincount(loaded.validation.labels)
    assert counts.tolist() == [6, 4] or counts.tolist() == [6, 8]


def test_a_pattern_sees_the_path_below_the_folder_only(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "9-set" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index % 3}-{index}.png").write_bytes(png(index))
    config = parquet(tmp_path / "9-set", path="imagefolder", group_pattern=r"(?:^|/)(\d)-", test_groups=(2,))
    loaded = load_task(config, OFF)
    assert len(loaded.test) == 4
    with pytest.raises(DataError, match=r"Known groups: 0, 1, 2\."):
        load_task(parquet(tmp_path / "9-set", path="imagefolder", group_pattern=r"(\d)-", test_groups=(9,)), OFF)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"group_column": "who"}, r"groups in a column named 'who'.*Set `group_column`"),
        ({"group_pattern": r"speaker(\d)"}, r"no match among 40; the first: 'no/a0f_nohash_0\.png'"),
        ({"group_pattern": r"(nohash)"}, "at least two groups"),
        ({"group_pattern": r"^(yes|no)/"}, "hold all rows of a class"),
    ],
)
def test_groups_that_cannot_be_are_refused_by_name(tmp_path, change, named):
    write_speakers(tmp_path / "set")
    with pytest.raises(DataError, match=named):
        load_task(parquet(tmp_path / "set", **change), OFF)


def test_rows_without_file_names_have_no_pattern(tmp_path):
    write_speakers(tmp_path / "set", paths=False)
    with pytest.raises(DataError, match="the rows carry no file names"):
        load_task(parquet(tmp_path / "set", group_pattern="(a)"), OFF)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"group_pattern": "("}, "regular expression"),
        ({"group_pattern": "abc"}, "capture group"),
        ({"group_pattern": "(a)", "group_column": "who"}, "Keep one"),
        ({"test_groups": (5,)}, "Set `group_column` or `group_pattern`"),
    ],
)
def test_a_group_key_that_says_nothing_is_refused(change, named):
    with pytest.raises(DataError, match=named):
        parquet("anywhere", **change)
