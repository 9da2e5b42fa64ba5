# SPDX-License-Identifier: Apache-2.0
"""Sounds load from parquet and from folders, and reach the model as the stock extractor gives them."""

import io
import json

import datasets
import numpy as np
import pytest
import torch

from edvit_hf.data import AudioConfig, Augmentation, DatasetConfig, decoding, iterate_batches, load_task
from edvit_hf.errors import DataError
from edvit_hf.transforms import AudioTransform
from support.dataset_files import OFF, own_cache, parquet, tone, write_split  # noqa: F401

_AUDIO = AudioConfig(num_mel_bins=16, max_length=30, mean=-6.0, std=3.0)
_TRAIN, _TEST = [0, 1] * 10, [0, 1]
_AUGMENTATION = Augmentation(time_shift=0.2, time_masks=1, time_mask_frames=5)


def tones(count):
    return [tone(300 + 500 * (index % 2) + index) for index in range(count)]


def write_sounds(folder, **options):
    for split, labels in (("train", _TRAIN), ("test", _TEST)):
        defaults = {"images": tones(len(labels)), "sounds": True, "columns": ("audio", "label")}
        write_split(folder, split, labels, datasets.ClassLabel(names=["low", "high"]), **{**defaults, **options})


def load(folder, augmentation=OFF, **options):
    config = parquet(folder, **{"audio": _AUDIO, **options})
    return load_task(config, augmentation, task="audio-classification")


@pytest.fixture
def sounds(tmp_path):
    write_sounds(tmp_path / "set")
    return tmp_path / "set"


def test_features_equal_the_stock_extractors_and_its_config_is_what_it_saves(sounds, tmp_path):
    import soundfile
    from transformers import AutoFeatureExtractor

    loaded = load(sounds)
    assert loaded.label_names == ["low", "high"]
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (18, 2, 2)
    assert loaded.task == "audio-classification"
    (tmp_path / "preprocessor_config.json").write_text(loaded.processor["preprocessor_config.json"])
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(extractor).__name__ == "ASTFeatureExtractor"
    extractor.save_pretrained(tmp_path / "again")
    again = (tmp_path / "again" / "preprocessor_config.json").read_text()
    assert json.loads(again) == json.loads(loaded.processor["preprocessor_config.json"])
    waves = [soundfile.read(io.BytesIO(file), dtype="float32")[0] for file in tones(2)]
    stock = extractor(waves, sampling_rate=16_000, return_tensors="np")["input_values"]
    ours = loaded.test.inputs([0, 1])["input_values"]
    assert ours.shape == (2, 30, 16)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours, stock, rtol=0, atol=1e-3)


def test_sounds_of_another_rate_and_stereo_ones_are_brought_to_the_models(tmp_path):
    files = [tone(440, rate=16_000), tone(440, rate=44_100, channels=2)] * 10
    write_split(
        tmp_path / "set",
        "train",
        _TRAIN,
        datasets.Value("int64"),
        images=files,
        sounds=True,
        columns=("audio", "label"),
    )
    write_split(
        tmp_path / "set",
        "test",
        _TEST,
        datasets.Value("int64"),
        images=files[:2],
        sounds=True,
        columns=("audio", "label"),
    )
    one, other = load(tmp_path / "set").test.inputs([0, 1])["input_values"]
    loudest = [values[:25].mean(dim=0).argmax().item() for values in (one, other)]
    assert loudest[0] == loudest[1]
    assert one.shape == other.shape


def test_folders_of_sound_files_load_by_builder_name_and_by_hub_id(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for name, hertz in (("high", 900), ("low", 300)):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.wav").write_bytes(tone(hertz + index, form="WAV"))
    for path in ("audiofolder", "someone/tones"):
        loaded = load(tmp_path / "set", path=path)
        assert loaded.label_names == ["high", "low"]
        assert (len(loaded.train) + len(loaded.validation), len(loaded.test)) == (12, 4)
        expected = AudioTransform.from_preprocessor(_AUDIO.preprocessor()).inputs(tone(900, form="WAV"))
        np.testing.assert_allclose(loaded.test.inputs([0])["input_values"], expected["input_values"], atol=1e-6)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["train/low/anna/1.wav", "train/high/2.wav", "test/low/3.wav"], "train/low/anna/1.wav"),
        (["low/1.wav", "high/anna/2.wav", "high/3.wav"], "high/anna/2.wav"),  # anna is no class, high no split
        (["train/low/1.wav", "train/high/2.wav", "test/3.wav"], "test/3.wav"),
        (["train/low/1.wav", "train/high/2.wav", "4.wav"], "4.wav"),
    ],
)
def test_sound_folders_of_another_depth_are_refused_with_the_file(tmp_path, files, named):
    for name in files:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tone(440, form="WAV"))
    with pytest.raises(DataError, match=rf"SPLIT/CLASS/FILE.*{named}"):
        load(tmp_path / "set", path="audiofolder", test_split=None)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_features_computed_on_access_equal_the_cached_ones(sounds, monkeypatch, on_error):
    cached = load(sounds, _AUGMENTATION).train
    monkeypatch.setattr(decoding, "CACHE_LIMIT_BYTES", 0)
    lazy = load(sounds, _AUGMENTATION, on_error=on_error).train
    assert type(lazy._store) is not type(cached._store)
    for view in (None, 2):
        chosen = [5, 0, 5, 17]
        assert torch.equal(lazy.inputs(chosen, view)["input_values"], cached.inputs(chosen, view)["input_values"])


def test_only_the_training_rows_are_augmented_and_batches_are_plain(sounds):
    loaded = load(sounds, _AUGMENTATION)
    assert not torch.equal(loaded.train.inputs([0], 1)["input_values"], loaded.train.inputs([0])["input_values"])
    assert torch.equal(loaded.test.inputs([0], 1)["input_values"], loaded.test.inputs([0])["input_values"])
    batches = list(iterate_batches(loaded.train, 10))
    assert [list(batch) for batch in batches] == [["inputs", "labels", "indices"]] * 2
    together = torch.cat([batch["inputs"]["input_values"] for batch in batches])
    assert torch.equal(together, loaded.train.inputs(range(18))["input_values"])
    assert loaded.train.lengths is None


@pytest.mark.parametrize("damaged", [b"RIFF but no sound", tone(500)[:60], b"", None])
def test_a_damaged_sound_is_refused_with_its_row_or_skipped_and_counted(tmp_path, damaged, caplog):
    files = tones(20)
    for row in range(0, 20, 5):
        files[row] = damaged
    write_sounds(tmp_path / "set")
    write_split(
        tmp_path / "set",
        "train",
        _TRAIN,
        datasets.ClassLabel(names=["low", "high"]),
        images=files,
        sounds=True,
        columns=("audio", "label"),
    )
    write_sounds(tmp_path / "whole")
    (tmp_path / "set" / "validation.parquet").write_bytes(
        (tmp_path / "whole" / "test-00000-of-00001.parquet").read_bytes()
    )
    with pytest.raises(DataError, match=r"Row 0 of split 'train': Expected .* Or set `on_error: skip`"):
        load(tmp_path / "set", validation_split="validation")
    loaded = load(tmp_path / "set", validation_split="validation", on_error="skip")
    assert loaded.skipped == {"train": 4, "validation": 0, "test": 0}
    assert len(loaded.train) == 16
    assert "train: skipped 4 of 20 rows" in caplog.text


@pytest.mark.parametrize(
    "change", [{"sampling_rate": 10}, {"num_mel_bins": 0}, {"max_length": 1.5}, {"std": 0.0}, {"mean": float("nan")}]
)
def test_an_audio_value_out_of_range_is_refused_by_name(change):
    with pytest.raises(DataError, match=rf"`audio\.{next(iter(change))}`"):
        AudioConfig(**change)


def test_a_section_of_another_task_is_refused(sounds):
    with pytest.raises(DataError, match=r"`dataset\.audio` is read by the task audio-classification only"):
        load_task(parquet(sounds, audio=_AUDIO), OFF, task="image-classification")
    with pytest.raises(DataError, match=r"`augmentation\.flip` is read by the task image-classification only"):
        load(sounds, Augmentation(flip=True))
    with pytest.raises(DataError, match="digits are images"):
        load_task(DatasetConfig(path="digits"), OFF, task="audio-classification")
