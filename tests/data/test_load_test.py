# SPDX-License-Identifier: Apache-2.0
"""A finished model's test rows: its processor prepares them, its names number them, no other split is needed."""

import dataclasses
import json

import datasets
import numpy as np
import pytest

from edvit_hf.data import AudioConfig, DatasetConfig, TextConfig, load_task, load_test
from edvit_hf.data.config import as_json
from edvit_hf.errors import DataError
from edvit_hf.transforms import load_transform
from support.dataset_files import (  # noqa: F401
    NAMES,
    OFF,
    TEST,
    own_cache,
    parquet,
    png,
    tone,
    write_animals,
    write_split,
    write_texts,
)

IMAGES, SOUNDS, TEXTS = "image-classification", "audio-classification", "text-classification"


@pytest.fixture
def processor(tmp_path):
    """The folder of a model whose preprocessor differs from a recipe's defaults in everything."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = DatasetConfig(path="x", image_size=6, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    (folder / "preprocessor_config.json").write_text(as_json({**config.preprocessor(), "resample": 3}))
    return folder


def test_images_are_prepared_by_the_models_processor_whatever_the_dataset_section_says(tmp_path, processor):
    config = parquet(write_animals(tmp_path))
    data = load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor)
    device = load_transform(processor, IMAGES)
    expected = np.concatenate([device(png(index)) for index in range(3)])
    np.testing.assert_allclose(data.test.inputs(range(3))["pixel_values"], expected, rtol=0, atol=1e-6)
    assert expected.shape == (3, 3, 6, 6)
    whole = load_task(config.as_the_model(), OFF, processor_dir=processor)
    assert (whole.test.inputs(range(3))["pixel_values"] == data.test.inputs(range(3))["pixel_values"]).all()
    assert json.loads(whole.processor["preprocessor_config.json"])["resample"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 70.0, 80.0]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    ],
)
def test_every_scale_that_a_device_reads_is_read_here(tmp_path, processor, change):
    path = processor / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    data = load_test(parquet(write_animals(tmp_path)), task=IMAGES, label_names=NAMES, processor_dir=processor)
    expected = np.concatenate([load_transform(processor, IMAGES)(png(index)) for index in range(3)])
    np.testing.assert_allclose(data.test.inputs(range(3))["pixel_values"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"do_resize": False}, {"rescale_factor": 0}])
def test_a_processor_that_makes_no_batch_is_refused(tmp_path, processor, change):
    path = processor / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=r"do_resize|rescale_factor"):
        load_test(parquet(write_animals(tmp_path)), task=IMAGES, label_names=NAMES, processor_dir=processor)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_sounds_are_prepared_by_the_models_feature_extractor(tmp_path, do_normalize):
    (tmp_path / "model").mkdir()
    own = AudioConfig(num_mel_bins=12, max_length=20, mean=-6.0, std=3.0).preprocessor()
    (tmp_path / "model/preprocessor_config.json").write_text(as_json({**own, "do_normalize": do_normalize}))
    sounds = [tone(300), tone(900)]
    feature = datasets.ClassLabel(names=["low", "high"])
    write_split(tmp_path / "set", "test", [0, 1], feature, images=sounds, sounds=True, columns=("audio", "label"))
    config = parquet(tmp_path / "set", audio=AudioConfig(num_mel_bins=16, max_length=30))
    data = load_test(config, task=SOUNDS, label_names=["low", "high"], processor_dir=tmp_path / "model")
    device = load_transform(tmp_path / "model", SOUNDS)
    expected = np.concatenate([device.inputs(sound)["input_values"] for sound in sounds])
    np.testing.assert_array_equal(data.test.inputs([0, 1])["input_values"], expected)


def test_texts_are_cut_where_the_models_tokenizer_cuts_them(tmp_path):
    from support.tiny_ensemble import MAX_TOKENS, write_processor

    (tmp_path / "model").mkdir()
    write_processor(tmp_path / "model", TEXTS)
    texts = ["word1 " * 50, "word2"]
    write_texts(tmp_path / "set", "test", texts, ["a", "b"])
    config = parquet(tmp_path / "set", text=TextConfig(max_length=5))
    data = load_test(config, task=TEXTS, label_names=["a", "b"], processor_dir=tmp_path / "model")
    assert data.test.lengths.tolist() == [MAX_TOKENS, 3]


def test_no_training_split_need_be_there(tmp_path, processor):
    write_split(tmp_path / "set", "test", TEST, datasets.ClassLabel(names=NAMES))
    data = load_test(parquet(tmp_path / "set"), task=IMAGES, label_names=NAMES, processor_dir=processor)
    assert data.test.labels.tolist() == TEST
    write_split(tmp_path / "set", "speakers", TEST * 2, datasets.ClassLabel(names=NAMES))
    config = parquet(tmp_path / "set", test_split="speakers", train_split="none")
    assert len(load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor).test) == 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"test_split": None, "test_fraction": 0.3},
        {"max_test_samples": 2},
        {"test_split": None, "max_test_samples": 4, "max_train_samples": 6, "seed": 3},
        {"group_column": "fold", "test_groups": ("1",)},
    ],
)
def test_the_rows_are_those_that_training_held_back_and_so_is_their_fingerprint(tmp_path, processor, options):
    extra = {"fold": [str(i % 3) for i in range(30)]}
    write_split(tmp_path / "set", "train", [0, 1, 2] * 10, datasets.ClassLabel(names=NAMES), extra=extra)
    extra = {"fold": ["0", "1", "2"]}
    write_split(tmp_path / "set", "test", TEST, datasets.ClassLabel(names=NAMES), extra=extra)
    config = parquet(tmp_path / "set", **options)
    whole = load_task(config.as_the_model(), OFF, processor_dir=processor)
    alone = load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor)
    assert alone.test.labels.tolist() == whole.test.labels.tolist()
    everything = np.arange(len(alone.test))
    assert (alone.test.inputs(everything)["pixel_values"] == whole.test.inputs(everything)["pixel_values"]).all()
    assert alone.fingerprint == whole.fingerprint("test")
    assert len({whole.fingerprint(role) for role in ("train", "validation", "test")}) == 3


@pytest.mark.parametrize("options", [{}, {"test_split": None}, {"max_test_samples": 2}])
def test_classes_in_another_order_are_told_by_their_names(tmp_path, processor, options):
    config = parquet(write_animals(tmp_path), **options)
    usual = load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor)
    turned = load_test(config, task=IMAGES, label_names=NAMES[::-1], processor_dir=processor)
    names = [usual.label_names[label] for label in usual.test.labels]
    assert [turned.label_names[label] for label in turned.test.labels] == names
    assert turned.test.labels.tolist() == [2 - label for label in usual.test.labels]
    assert turned.fingerprint == usual.fingerprint


def write_labels(tmp_path, labels):
    write_texts(tmp_path / "set", "test", [f"word{i}" for i in range(len(labels))], labels)
    (tmp_path / "model").mkdir()
    from support.tiny_ensemble import write_processor

    write_processor(tmp_path / "model", TEXTS)
    return parquet(tmp_path / "set")


def test_labels_without_declared_names_are_found_among_the_models_even_where_some_are_missing(tmp_path, caplog):
    config = write_labels(tmp_path, ["no", "yes", "no"])
    names = ["yes", "maybe", "no"]
    data = load_test(config, task=TEXTS, label_names=names, processor_dir=tmp_path / "model")
    assert data.test.labels.tolist() == [2, 0, 2]
    assert "no row of 1 of 3 classes" in caplog.text


def test_integers_without_names_are_the_names_that_training_gave_them_and_no_places(tmp_path):
    config = write_labels(tmp_path, [3, 1, 3])
    data = load_test(config, task=TEXTS, label_names=["1", "2", "3"], processor_dir=tmp_path / "model")
    assert data.test.labels.tolist() == [2, 0, 2]
    named = dataclasses.replace(config, label_names=("a", "b", "c", "d"))
    data = load_test(named, task=TEXTS, label_names=["d", "c", "b", "a"], processor_dir=tmp_path / "model")
    assert data.test.labels.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (["cat", "dog"], "only there: 'emu'"),
        (["cat", "dog", "eel"], "only there: 'emu'; missing there: 'eel'"),
        (["dog", "emu", "fox", "gnu"], "only there: 'cat'; missing there: 'fox', 'gnu'"),
        (["Cat", "dog", "emu"], "only there: 'cat'; missing there: 'Cat'"),
    ],
)
def test_other_classes_are_refused_with_the_first_differences(tmp_path, processor, names, difference):
    with pytest.raises(DataError, match="Every answer would be compared with another class") as error:
        load_test(parquet(write_animals(tmp_path)), task=IMAGES, label_names=names, processor_dir=processor)
    assert difference in str(error.value)


@pytest.mark.parametrize(
    ("declared", "rows", "of_model"),
    [
        (["a", "c"], [0, 1, 0], ["a", "b", "c"]),
        (["a", "b", "c"], [2, 0, 0], ["a", "b", "c"]),
        (["c", "a"], [1, 0], ["a", "b", "c"]),
    ],
)
def test_what_training_takes_as_test_rows_is_measured_too_where_a_class_is_missing(
    tmp_path, processor, declared, rows, of_model, caplog
):
    ids = list(range(len(of_model))) * 6
    write_split(tmp_path / "set", "train", ids, datasets.ClassLabel(names=of_model))
    write_split(tmp_path / "set", "test", rows, datasets.ClassLabel(names=declared))
    config = parquet(tmp_path / "set")
    trained = load_task(config.as_the_model(), OFF, processor_dir=processor)
    measured = load_test(config, task=IMAGES, label_names=of_model, processor_dir=processor)
    assert measured.test.labels.tolist() == trained.test.labels.tolist()
    assert [of_model[label] for label in measured.test.labels] == [declared[row] for row in rows]
    assert measured.fingerprint == trained.fingerprint("test")
    assert "no row of 1 of 3 classes" in caplog.text


@pytest.mark.parametrize("labels", [["yes", "perhaps"], [0, 1], ["Yes", "no"]])
def test_labels_that_are_no_class_of_the_model_are_refused(tmp_path, labels):
    config = write_labels(tmp_path, labels)
    with pytest.raises(DataError, match="only there"):
        load_test(config, task=TEXTS, label_names=["no", "yes"], processor_dir=tmp_path / "model")


def test_a_folder_of_classes_alone_says_how_all_of_it_is_measured(tmp_path, processor):
    for name in NAMES:
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.png").write_bytes(png(NAMES.index(name)))
    config = parquet(tmp_path / "set", path="imagefolder")
    with pytest.raises(DataError, match=r"finished ensemble.*`test_split: train`"):
        load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor)
    whole = dataclasses.replace(config, test_split="train")
    assert len(load_test(whole, task=IMAGES, label_names=NAMES, processor_dir=processor).test) == len(NAMES)


@pytest.mark.parametrize("change", [{"image_mean": [0, 0, 0]}, {"resample": 0}, {}])
def test_a_second_processor_that_devices_do_not_read_is_refused_where_it_says_otherwise(tmp_path, processor, change):
    config = parquet(write_animals(tmp_path))
    own = json.loads((processor / "preprocessor_config.json").read_text())
    alone = load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor)
    (processor / "processor_config.json").write_text(json.dumps({"image_processor": {**own, **change}}))
    if change:
        with pytest.raises(DataError, match=r"Devices read preprocessor_config.json.*Remove processor_config.json"):
            load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor)
    else:
        both = load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor)
        pixels = [data.test.inputs([0, 1])["pixel_values"] for data in (alone, both)]
        np.testing.assert_array_equal(*pixels)


@pytest.mark.parametrize("others", [None, "gone"])
def test_test_rows_in_a_folder_of_their_own_need_no_other_folder(tmp_path, processor, others):
    write_split(tmp_path / "apart", "test", TEST, datasets.ClassLabel(names=NAMES))
    config = dataclasses.replace(parquet(tmp_path, test_data_dir=str(tmp_path / "apart")), data_dir=others)
    data = load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor)
    assert data.test.labels.tolist() == TEST
    with pytest.raises(DataError, match="`data_dir`"):
        load_task(config, OFF)


def test_a_class_without_rows_is_taken_and_one_with_a_row_refused_by_training_and_measuring_alike(
    tmp_path, processor, caplog
):
    write_split(tmp_path / "set", "train", [0, 1, 2] * 4, datasets.ClassLabel(names=NAMES))
    config, others = parquet(tmp_path / "set"), datasets.ClassLabel(names=["gnu", *NAMES])
    loads = [
        lambda: load_task(config, OFF),
        lambda: load_test(config, task=IMAGES, label_names=NAMES, processor_dir=processor),
    ]
    write_split(tmp_path / "set", "test", [label + 1 for label in TEST], others)
    assert [load().test.labels.tolist() for load in loads] == [TEST] * 2
    assert "no row of and the model none: 'gnu'" in caplog.text
    write_split(tmp_path / "set", "test", [0, *TEST], others)
    for load in loads:
        with pytest.raises(DataError, match="gnu"):
            load()
