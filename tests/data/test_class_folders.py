# SPDX-License-Identifier: Apache-2.0
"""Folders of classes: depth says what a folder is, names are literal, and what is not read is counted and named."""

import os
import unicodedata

import pytest

from edvit_hf.data import DatasetConfig, class_folders, load_task
from edvit_hf.data.sources import open_splits
from edvit_hf.errors import DataError
from support.dataset_files import OFF, own_cache, png, tone  # noqa: F401

IMAGES, SOUNDS = "image-classification", "audio-classification"
BUILDER = {IMAGES: "imagefolder", SOUNDS: "audiofolder"}
SPLIT_WORDS = ["test", "train", "validation", "test_tube", "train-1", "dev", "eval", "training", "val"]


def write(folder, names, content=b"x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def rows(folder, task=IMAGES, **options):
    """{split: [(class, path below the folder)]}, undecoded."""
    config = DatasetConfig(path=BUILDER[task], data_dir=str(folder), **options)
    found = {}
    for name, split in open_splits(config, task).items():
        paths = [os.path.relpath(path, folder) for path in split.items.read(list_of(split))]
        labels = [split.class_names[label] for label in split.labels]
        found[name] = sorted(zip(labels, paths, strict=True))
    return found


def list_of(split):
    import numpy as np

    return np.arange(len(split.labels))


@pytest.mark.parametrize("task", [IMAGES, SOUNDS])
@pytest.mark.parametrize("word", SPLIT_WORDS)
def test_a_class_or_a_file_that_is_called_like_a_split_stays_where_it_lies(tmp_path, task, word):
    suffix = ".png" if task == IMAGES else ".wav"
    names = [f"{split}/{kind}/{file}{suffix}" for split in ("train", "test") for kind in (word, "cat")
             for file in ("photo-1", "train-1", "test", "val_2")]  # fmt: skip
    found = rows(write(tmp_path, names), task)
    for split in ("train", "test"):
        expected = sorted((name.split("/")[1], name) for name in names if name.startswith(f"{split}/"))
        assert found[split] == expected


@pytest.mark.parametrize("word", SPLIT_WORDS)
def test_classes_without_folders_of_splits_are_one_split_whatever_they_are_called(tmp_path, word):
    names = [f"{kind}/{file}.png" for kind in (word, "cat") for file in ("1", "test-1")]
    found = rows(write(tmp_path, names), test_split=None)
    assert found == {"train": sorted((name.split("/")[0], name) for name in names)}
    with pytest.raises(DataError, match=r"split named 'test' in .*got only: train\. .*test_split: null"):
        rows(tmp_path)


@pytest.mark.parametrize("name", ["run[1]", "run*", "r?n1", "a::b", "file:", "~run", "{run1,x}", " run1", "run1.png"])
def test_a_folder_is_read_by_its_literal_name(tmp_path, name):
    for other in ("run1", "a", "x"):
        write(tmp_path / other, ["train/wrong/1.png", "test/wrong/1.png", "train/bad/1.png"])
    names = [f"{split}/{kind}/{name}.png" for split in ("train", "test") for kind in (name, "cat")]
    found = rows(write(tmp_path / name, names))
    assert {path for split in found.values() for _, path in split} == set(names)


def test_hidden_and_foreign_files_are_no_rows_and_no_classes(tmp_path, caplog):
    names = [f"{split}/{kind}/1.png" for split in ("train", "test") for kind in ("cat", "dog")]
    foreign = [
        ".ipynb_checkpoints/cat/1.png", "train/.ipynb_checkpoints/1.png", "train/cat/.ipynb_checkpoints/1.png",
        "train/cat/._1.png", "__MACOSX/train/cat/._1.png", "train/__MACOSX/1.png", "train/cat/Thumbs.db",
        "train/.git/1.png", "train/cat/1.png~", "train/dog/@eaDir/1.png", ".DS_Store", "train/.DS_Store", "desktop.ini",
    ]  # fmt: skip
    with caplog.at_level("INFO", "edvit_hf"):
        found = rows(write(write(tmp_path, names), foreign))
    assert {path for split in found.values() for _, path in split} == set(names)
    assert "13 hidden or foreign" in caplog.text
    assert "left out" not in caplog.text


@pytest.mark.parametrize(
    ("task", "suffixes"),
    [
        (IMAGES, ".png .PNG .jpg .JPG .jpeg .JPEG .jfif .jpe .webp .tif .TIFF .gif .bmp .ppm .pgm .jp2"),
        (SOUNDS, ".wav .WAV .flac .ogg .oga .opus .mp3 .aiff .aif .au"),
    ],
)
def test_every_suffix_of_a_format_that_is_read_is_a_row(tmp_path, task, suffixes):
    names = [f"train/{kind}/file{suffix}" for kind in ("cat", "dog") for suffix in suffixes.split()]
    assert len(rows(write(tmp_path, names), task, test_split=None)["train"]) == len(names)


def test_opus_is_heard_and_files_without_a_suffix_are_known_by_their_first_bytes(tmp_path):
    import io

    import soundfile

    wave, rate = soundfile.read(io.BytesIO(tone(440)))
    opus = io.BytesIO()
    soundfile.write(opus, wave, rate, format="OGG", subtype="OPUS")
    for index, content in enumerate((opus.getvalue(), tone(440, form="WAV"), tone(440), tone(440, form="AIFF"))):
        for kind in ("low", "high"):
            write(tmp_path, [f"{kind}/{index}{'.opus' if index == 0 else ''}"], content)
    config = DatasetConfig(path="audiofolder", data_dir=str(tmp_path), test_split=None, test_fraction=0.3)
    loaded = load_task(config, OFF, task=SOUNDS)
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 8
    pictures = write(tmp_path / "pictures", ["cat/1", "dog/2.data", "cat/3.img"], png(0))
    assert len(rows(pictures, test_split=None)["train"]) == 3


def test_what_is_no_file_of_the_task_is_counted_and_named(tmp_path, caplog):
    write(tmp_path, ["train/cat/1.png", "train/dog/1.png"])
    write(tmp_path, ["train/cat/a.heic", "train/cat/b.heic", "train/dog/c.wav", "notes.txt", "train/LICENSE", "x.zip"])
    assert len(rows(tmp_path, test_split=None)["train"]) == 2
    said = next(line for line in caplog.messages if "left out" in line)
    assert "6 files that are no images" in said
    for kind in (".heic: 2", ".wav: 1", ".txt: 1", "no suffix: 1", ".zip: 1"):
        assert kind in said


@pytest.mark.parametrize("place", ["train/emu", "test/emu", "test/cat"])
def test_a_class_of_files_that_cannot_be_read_is_refused(tmp_path, place):
    write(tmp_path, [f"{split}/{kind}/1.png" for split in ("train", "test") for kind in ("dog", "fox")])
    write(tmp_path, [f"{place}/a.heic", f"{place}/b.heic"])
    with pytest.raises(DataError, match=rf"class folder {place} of .*2 other file\(s\), the first 'a\.heic'"):
        rows(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path, caplog):
    write(tmp_path, ["cat/1.png", "dog/1.png", "fox/.DS_Store"])
    (tmp_path / "emu").mkdir()
    assert len(rows(tmp_path, test_split=None)["train"]) == 2
    assert "2 class folders are empty and no rows come from them: emu, fox" in caplog.text


def test_linked_class_folders_and_files_are_read_and_circles_end(tmp_path):
    write(tmp_path / "store", ["a/1.png", "b/2.png", "3.png"])
    data = write(tmp_path / "set", ["train/own/4.png"])
    (data / "train" / "cat").symlink_to(tmp_path / "store" / "a")
    (data / "train" / "own" / "3.png").symlink_to(tmp_path / "store" / "3.png")
    (data / "test").mkdir()
    (data / "test" / "cat").symlink_to(tmp_path / "store" / "b")
    (data / "test" / "own").symlink_to(data / "train" / "own")
    (data / "train" / "round").symlink_to(data)
    (data / "train" / "cat" / "again").symlink_to(tmp_path / "store" / "a")
    found = rows(data)
    assert found["train"] == [("cat", "train/cat/1.png"), ("own", "train/own/3.png"), ("own", "train/own/4.png")]
    assert [label for label, _ in found["test"]] == ["cat", "own", "own"]


def test_one_name_in_two_normal_forms_is_one_class(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    assert names[0] != names[1]
    write(tmp_path, [f"train/{names[0]}/1.png", f"test/{names[1]}/2.png", "train/dog/1.png", "test/dog/1.png"])
    found = rows(tmp_path)
    assert {label for label, _ in found["train"]} == {label for label, _ in found["test"]} == {names[0], "dog"}


@pytest.mark.parametrize("twin", ["cat ", " cat", "c\u200bat", "cat\u00a0"])
def test_class_names_that_look_alike_are_refused(tmp_path, twin):
    write(tmp_path, [f"{kind}/{index}.png" for kind in ("cat", twin, "dog") for index in range(4)])
    config = DatasetConfig(path="imagefolder", data_dir=str(tmp_path), test_split=None)
    with pytest.raises(DataError, match=r"cat.*look alike"):
        load_task(config, OFF)


def test_a_folder_of_the_other_task_is_refused(tmp_path):
    write(tmp_path, ["train/cat/1.png", "test/cat/1.png"])
    with pytest.raises(DataError, match="Expected path 'audiofolder' for the task audio-classification"):
        open_splits(DatasetConfig(path="imagefolder", data_dir=str(tmp_path)), SOUNDS)


def test_a_hub_id_that_is_a_folder_here_is_not_guessed_at(tmp_path, monkeypatch):
    write(tmp_path, ["someone/pets/train/cat/1.png"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"'someone/pets', which is also a file or folder here.*`data_dir`"):
        open_splits(DatasetConfig(path="someone/pets"))


@pytest.mark.parametrize("name", ["metadata.csv", "train/metadata.jsonl", "train/cat/metadata.parquet"])
def test_a_file_of_metadata_that_may_say_other_labels_is_refused(tmp_path, name):
    write(tmp_path, ["train/cat/1.png", "train/dog/1.png", name])
    with pytest.raises(DataError, match=rf"labels by folders .*got {name}.*`path: csv`"):
        rows(tmp_path, test_split=None)


def test_suffixes_are_known_for_every_format_that_is_read_and_for_no_other():
    from edvit_hf.transforms import audio_files, images

    assert set(class_folders.FORMATS[IMAGES]) == set(images.FORMATS)
    assert set(class_folders.FORMATS[SOUNDS]) == audio_files._DECODED - {"WAVEX"}


@pytest.mark.parametrize("written", ["{}/pe[t]s", "./pe[t]s", "../here/pe[t]s"])
def test_a_path_that_can_be_no_hub_id_is_a_folder(tmp_path, monkeypatch, written):
    here = tmp_path / "here"
    write(here, [f"pe[t]s/{split}/{kind}/1.png" for split in ("train", "test") for kind in ("cat", "test")])
    write(here, ["pets/train/wrong/1.png", "pets/test/wrong/1.png"])
    monkeypatch.chdir(here)
    splits = open_splits(DatasetConfig(path=written.format(here)))
    assert splits["test"].class_names == ["cat", "test"]
    with pytest.raises(DataError, match="Expected `path` to be an existing folder"):
        open_splits(DatasetConfig(path="./absent"))
