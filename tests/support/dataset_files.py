# SPDX-License-Identifier: Apache-2.0
"""Small datasets on disk for tests: real parquet, csv, image and sound files."""

import io
import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from edvit_hf.data import ArrayStore, Augmentation, DatasetConfig, ImageSplit

OFF = Augmentation()
MOVING = Augmentation(shift=0.2, rotate_degrees=20, scale=0.2, flip=True)
NAMES = ["cat", "dog", "emu"]
TRAIN, TEST = [0, 1, 2] * 10, [2, 1, 0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # five seconds after every stream
    monkeypatch.delenv("EDVIT_DATA_DIR", raising=False)
    datasets.disable_progress_bars()


def write_animals(folder):
    write_dataset(folder / "animals", TRAIN, TEST, datasets.ClassLabel(names=NAMES))
    return folder / "animals"


def png(index, size=10):
    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def tone(hertz, seconds=0.3, rate=16_000, channels=1, form="FLAC"):
    """A tone with a little noise, as an encoded file."""
    import soundfile

    time = np.arange(max(1, round(seconds * rate))) / rate
    noise = np.random.default_rng(int(hertz)).normal(0, 0.01, len(time))
    wave = (0.3 * np.sin(2 * np.pi * hertz * time) + noise).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(wave[:, None], channels, 1), rate, format=form)
    return buffer.getvalue()


def write_split(
    folder,
    split,
    labels,
    label_feature,
    *,
    images=None,
    columns=("image", "label"),
    declared=None,
    paths=None,
    sounds=False,
    extra=None,
):
    """Write one parquet split; `declared` replaces the label feature in the file's metadata, unchecked.

    So is `sounds` written: the Audio feature encodes with a package of its own, although the bytes are there.
    """
    folder.mkdir(exist_ok=True)
    images = images or [png(index) for index in range(len(labels))]
    paths = paths or [None] * len(images)
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = {columns[0]: struct if sounds else datasets.Image(), columns[1]: label_feature}
    files = [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)]
    rows = {columns[0]: files, columns[1]: labels}
    for name, values in (extra or {}).items():
        features[name] = datasets.Value("string" if isinstance(values[0], str) else "int64")
        rows[name] = values
    written = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    path = folder / f"{split}-00000-of-00001.parquet"
    written.to_parquet(path)
    if declared is not None or sounds:
        table = pq.read_table(path)
        info = json.loads(table.schema.metadata[b"huggingface"])
        if declared is not None:
            info["info"]["features"][columns[1]] = {"names": declared, "_type": "ClassLabel"}
        if sounds:
            info["info"]["features"][columns[0]] = {"_type": "Audio"}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)


def write_dataset(folder, train, test, label_feature, **options):
    write_split(folder, "train", train, label_feature, **options)
    write_split(folder, "test", test, label_feature, **options)


def write_texts(folder, split, texts, labels, columns=("text", "label")):
    folder.mkdir(exist_ok=True)
    kind = "string" if isinstance(labels[0], str) else "int64"
    features = {columns[0]: datasets.Value("string"), columns[1]: datasets.Value(kind)}
    rows = {columns[0]: texts, columns[1]: labels}
    written = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    written.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def parquet(folder, **options):
    return DatasetConfig(**{"path": "parquet", "data_dir": str(folder), "image_size": 8, **options})


def image_split(num_items=20, size=9, augmentation=MOVING, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (num_items, channels, size, size), dtype=np.uint8)
    return ImageSplit(ArrayStore(pixels), np.arange(num_items) % 4, augmentation=augmentation, seed=3)
