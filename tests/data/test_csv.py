# SPDX-License-Identifier: Apache-2.0
"""Csv files are text: labels keep their zeros, words their spelling, and what cannot be read names file and line."""

import csv
import io

import numpy as np
import pytest

from edvit_hf.data import load_task
from edvit_hf.data.sources import open_splits
from edvit_hf.errors import DataError
from support.dataset_files import OFF, own_cache, parquet  # noqa: F401

TEXTS = "text-classification"
HEADER = ("text", "label")


def write(folder, rows, header=HEADER, split="train", encoding="utf-8", name=None, **options):
    folder.mkdir(exist_ok=True)
    buffer = io.StringIO()
    csv.writer(buffer, **options).writerows([header, *rows])
    (folder / (name or f"{split}.csv")).write_bytes(buffer.getvalue().encode(encoding))


def opened(folder, **options):
    split = open_splits(parquet(folder, path="csv", **{"test_split": None, **options}), TEXTS)["train"]
    return split.items.read(np.arange(len(split.labels))), split.labels


@pytest.mark.parametrize(
    "cells",
    [
        ["01", "02"], ["007", "7"], ["1", "x"], ["1e5", "2e5"], ["NA", "null"], ["None", "nan"], ["NaN", "N/A"],
        ["inf", "-inf"], ["true", "false"], ["TRUE", "no"], ["2024-01-01", "01/02/2024"], ["0x10", "1_000"],
        ["1,5", "2,5"], ["+1", "+2"], ["-01", "-02"], ["#N/A", "-"], ["١", "٢"], ["1st", "2nd"], ["00", "0"],
        ["9" * 20, "1" * 5000],
    ],
)  # fmt: skip
def test_a_label_is_the_text_that_stands_there(tmp_path, cells):
    write(tmp_path, [[f"words {row}", cells[row % 2]] for row in range(20)])
    assert opened(tmp_path)[1] == cells * 10
    assert load_task(parquet(tmp_path, path="csv", test_split=None), OFF, task=TEXTS).label_names == sorted(cells)


@pytest.mark.parametrize(
    "cells",
    [
        ["1", "2"], ["007", "NA"], ["None", "words"], ["1.50", "1.5"], ["nan", "NULL"], ["", "words"], ["true", "1"],
        [" padded ", "\ttab"], ['say "so"', "it's"], ["a, b", "c; d"], ["line\nbreak", "two\r\nbreaks"], ["#", "//"],
        ["naïve", "日本"], ["\ufeffmark", "zero\u200bwidth"], ["word " * 60_000, "x" * 200_000], ["\\", '"'],
    ],
)  # fmt: skip
def test_a_text_is_every_character_that_stands_there(tmp_path, cells):
    write(tmp_path, [[cells[row % 2], "ab"[row % 2]] for row in range(4)])
    assert opened(tmp_path)[0] == cells * 2


def test_texts_that_are_numbers_are_found_and_a_numbered_column_is_not_taken_for_them(tmp_path):
    write(tmp_path / "a", [[str(row), "ab"[row % 2]] for row in range(4)], header=("words", "label"))
    assert opened(tmp_path / "a")[0] == list("0123")
    write(tmp_path / "b", [[row, f"text {row}", "ab"[row % 2]] for row in range(4)], header=("id", "words", "label"))
    assert opened(tmp_path / "b")[0] == [f"text {row}" for row in range(4)]
    write(tmp_path / "c", [["x", "y", "a"]], header=("title", "words", "label"))
    with pytest.raises(DataError, match="one column of texts, got title, words"):
        opened(tmp_path / "c")
    assert opened(tmp_path / "c", input_column="words")[0] == ["y"]


@pytest.mark.parametrize(
    ("cells", "labels", "names"),
    [
        (["10", "9"], [10, 9], ["9", "10"]),
        (["1.0", "0.0"], [1, 0], ["0", "1"]),  # what pandas writes beside a missing one
        (["10", "09"], ["10", "09"], ["09", "10"]),
    ],
)
def test_labels_that_are_all_whole_numbers_are_numbers(tmp_path, cells, labels, names):
    write(tmp_path, [[f"words {row}", cells[row % 2]] for row in range(20)])
    assert opened(tmp_path)[1] == labels * 10
    assert load_task(parquet(tmp_path, path="csv", test_split=None), OFF, task=TEXTS).label_names == names


@pytest.mark.parametrize(
    ("cells", "names", "labels"),
    [
        (["0", "1"], ("no", "yes"), [0, 1]),
        (["no", "yes"], ("yes", "no"), [1, 0]),
        (["1", "2"], ("2", "1"), [1, 0]),  # the names themselves
        (["01", "02"], ("01", "02"), [0, 1]),
        (["0.5", "1.5"], ("0.5", "1.5"), [0, 1]),
    ],
)
def test_label_names_are_of_ids_or_of_the_labels_themselves(tmp_path, cells, names, labels):
    for split in ("train", "test"):
        write(tmp_path, [[f"words {row}", cells[row % 2]] for row in range(20)], split=split)
    loaded = load_task(parquet(tmp_path, path="csv", label_names=names), OFF, task=TEXTS)
    assert loaded.test.labels.tolist() == labels * 10
    assert loaded.label_names == list(names)


def test_a_label_without_its_zero_is_not_the_one_with_it(tmp_path):
    write(tmp_path, [[f"words {row}", f"0{row % 2}"] for row in range(20)])
    write(tmp_path, [["words", "0"], ["words", "1"]], split="test")
    with pytest.raises(DataError, match=r"split 'test', got 2 row\(s\) with another label: row 0: 0"):
        load_task(parquet(tmp_path, path="csv"), OFF, task=TEXTS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(("delimiter", "lineterminator"), [(",", "\n"), (";", "\r\n"), ("\t", "\r")])
def test_byte_order_marks_line_ends_and_delimiters_are_known_by_the_header(
    tmp_path, encoding, delimiter, lineterminator
):
    rows = [["née, a; b", "a"], ["two\nlines", "b"]]
    write(tmp_path, rows, encoding=encoding, lineterminator=lineterminator, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    if "16" in encoding:
        file = tmp_path / "train.csv"
        file.write_bytes("\ufeff".encode(encoding) + file.read_bytes())
    assert opened(tmp_path) == (["née, a; b", "two\nlines"], ["a", "b"])


def test_a_column_without_a_name_and_blank_lines_are_passed_over(tmp_path):
    (tmp_path / "train.csv").write_text(",text,label\n0,one,a\n\n1,two,b\n\n")
    assert opened(tmp_path) == (["one", "two"], ["a", "b"])
    (tmp_path / "train.csv").rename(tmp_path / "train.TSV")
    (tmp_path / "train.TSV").write_text("text\tlabel\none, two\ta\n")
    assert opened(tmp_path) == (["one, two"], ["a"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text,label\nfine,a\nn\xe9e,b\n", r"train\.csv in UTF-8, got the byte 0xe9 in line 3, as Latin-1"),
        (b"text,label\na,b,c\n", r"Expected 2 cells in every row of .*train\.csv, .*got 3 in line 2"),
        (b"text,label\nfine,a\nalone\n", r"got 1 in line 3"),
        (b'text,label\nfine,a\n"open,a\nmore,b\n', r"train\.csv, got: unexpected end of data \(line 4\)"),
        (b'text,label\n"a "b" c",a\n', r"csv file at .*line 2.*write each of them twice"),
        (b"text,text,label\na,b,c\n", "each once, got text, text, label"),
        (b"", "first line of .*got nothing"),
        (b"\n\n", "first line of .*got nothing"),
        (b"text,kind\na,b\n", r"labels in a column named 'label' of split 'train', got columns: text, kind"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_line(tmp_path, content, said):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        opened(tmp_path)


def test_files_of_one_split_are_joined_by_the_names_of_their_columns(tmp_path):
    write(tmp_path, [["one", "01"]], name="train-0-of-2.csv")
    write(tmp_path, [["02", "two"]], HEADER[::-1], name="train-1-of-2.csv", delimiter=";")
    assert opened(tmp_path) == (["one", "two"], ["01", "02"])
    write(tmp_path, [["two", "02"]], ("text", "kind"), name="train-1-of-2.csv")
    with pytest.raises(DataError, match=r"same columns in every file of a split, got text, kind in .*train-1-of-2"):
        opened(tmp_path)


def test_labels_of_one_split_are_numbers_in_all_its_files_or_in_none(tmp_path):
    for number, label in enumerate(("1", "02")):
        write(tmp_path, [["words", label]] * 3, name=f"train-{number}-of-2.csv")
    assert opened(tmp_path)[1] == ["1"] * 3 + ["02"] * 3


def test_groups_are_texts_too(tmp_path):
    write(tmp_path, [["a", "x", "01"], ["b", "y", "1"], ["c", "x", ""]], ("text", "label", "speaker"))
    split = open_splits(parquet(tmp_path, path="csv", test_split=None, group_column="speaker"), TEXTS)["train"]
    assert split.groups == ["01", "1", None]


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_row_without_a_label_is_refused_or_left_out(tmp_path, hidden):
    write(tmp_path, [[f"words {row}", hidden if row == 5 else row % 2] for row in range(20)])
    config = {"path": "csv", "test_split": None}
    with pytest.raises(DataError, match="row 5: "):
        load_task(parquet(tmp_path, **config), OFF, task=TEXTS)
    assert sum(load_task(parquet(tmp_path, on_error="skip", **config), OFF, task=TEXTS).skipped.values()) == 1


def test_classes_that_are_numbered_below_nought_are_hidden_labels_and_the_message_says_what_to_do(tmp_path):
    two, three = tmp_path / "two", tmp_path / "three"
    write(two, [(f"text {i}", (-1, 1)[i % 2]) for i in range(8)])
    write(three, [(f"text {i}", i % 3 - 1) for i in range(12)])
    for folder in (two, three):
        with pytest.raises(DataError, match=r"A negative number marks a row without a label.*`label_names`"):
            load_task(parquet(folder, path="csv", test_split=None), OFF, task=TEXTS)
    config = parquet(three, path="csv", test_split=None, label_names=("-1", "0", "1"))
    data = load_task(config, OFF, task=TEXTS)
    assert data.label_names == ["-1", "0", "1"]
    for text, label in zip(data.train.texts(np.arange(len(data.train))), data.train.labels, strict=True):
        assert int(text.split()[1]) % 3 == label
