# SPDX-License-Identifier: Apache-2.0
"""Images reach the model as the stock processor gives them, from the cache or decoded on access."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from edvit_hf.data import decoding, iterate_batches, load_task
from edvit_hf.errors import DataError
from edvit_hf.transforms import ImageTransform
from support.dataset_files import (  # noqa: F401
    MOVING,
    OFF,
    TEST,
    TRAIN,
    image_split,
    own_cache,
    parquet,
    png,
    write_animals,
    write_split,
)


@pytest.fixture
def animals(tmp_path):
    return write_animals(tmp_path)


def test_the_preprocessor_is_what_the_stock_one_saves_and_gives_our_pixels(animals, tmp_path):
    from transformers import AutoImageProcessor, ViTImageProcessor

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    loaded = load_task(parquet(animals, mean=mean, std=std), OFF)
    (tmp_path / "preprocessor_config.json").write_text(loaded.processor["preprocessor_config.json"])
    preprocessor = json.loads(loaded.processor["preprocessor_config.json"])
    ours = loaded.test.inputs([0, 1, 2])["pixel_values"].numpy()
    images = [Image.open(io.BytesIO(png(index))) for index in range(3)]
    for processor in (ViTImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        np.testing.assert_allclose(ours, processor(images, return_tensors="np")["pixel_values"], rtol=0, atol=1e-6)
        processor.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again/preprocessor_config.json").read_text() == loaded.processor["preprocessor_config.json"]
    device = ImageTransform.from_preprocessor(preprocessor)
    np.testing.assert_allclose(ours, np.concatenate([device(png(index)) for index in range(3)]), rtol=0, atol=1e-6)


def test_the_stock_pipeline_sees_the_pixels_that_training_saw(animals):
    from transformers import ViTImageProcessor
    from transformers.image_utils import load_image

    loaded = load_task(parquet(animals), OFF)
    preprocessor = json.loads(loaded.processor["preprocessor_config.json"])
    processor = ViTImageProcessor(**preprocessor)
    grey = Image.open(io.BytesIO(png(0))).convert("L")
    stock = processor(load_image(grey), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ImageTransform.from_preprocessor(preprocessor)(grey), stock, rtol=0, atol=1e-6)
    assert stock.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_images_decoded_on_access_equal_the_cached_ones(animals, monkeypatch, on_error):
    cached = load_task(parquet(animals), MOVING).train
    monkeypatch.setattr(decoding, "CACHE_LIMIT_BYTES", 0)
    lazy = load_task(parquet(animals, on_error=on_error), MOVING).train
    assert type(lazy._store) is not type(cached._store)
    assert lazy.labels.tolist() == cached.labels.tolist()
    chosen = [5, 0, 5, 20]
    for view in (None, 2):
        assert torch.equal(lazy.inputs(chosen, view)["pixel_values"], cached.inputs(chosen, view)["pixel_values"])


def test_a_damaged_row_decoded_on_access_is_refused_when_it_is_read(tmp_path, monkeypatch):
    images = [png(index) for index in range(30)]
    images[7] = b"no image"
    write_split(tmp_path / "set", "train", TRAIN, datasets.Value("int64"), images=images)
    write_split(tmp_path / "set", "test", TEST, datasets.Value("int64"))
    write_split(tmp_path / "set", "validation", TEST, datasets.Value("int64"))
    monkeypatch.setattr(decoding, "CACHE_LIMIT_BYTES", 0)
    loaded = load_task(parquet(tmp_path / "set", validation_split="validation"), OFF)
    assert len(loaded.train.inputs(range(7))["pixel_values"]) == 7
    with pytest.raises(DataError, match="Row 7 of split 'train'"):
        loaded.train.inputs([3, 7])["pixel_values"]


@pytest.mark.parametrize("indices", [[20], [-1], [[0, 1]], [0.5], [True, False]])
def test_indices_outside_the_split_are_refused(indices):
    with pytest.raises(IndexError):
        image_split().inputs(indices)["pixel_values"]


def test_no_indices_give_an_empty_batch():
    assert image_split().inputs([], view=1)["pixel_values"].shape == (0, 3, 9, 9)


def test_a_selection_shares_pixels_and_keeps_each_items_augmentation():
    split = image_split()
    chosen = split.select([7, 2, 2, 11]).select(np.array([3, 0]))
    assert chosen.labels.tolist() == [split.labels[11], split.labels[7]]
    for view in (None, 5):
        assert torch.equal(chosen.inputs([0, 1], view)["pixel_values"], split.inputs([11, 7], view)["pixel_values"])


def test_batches_come_in_order_without_augmentation():
    split = image_split(10)
    batches = list(iterate_batches(split, 4))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert torch.equal(
        torch.cat([batch["inputs"]["pixel_values"] for batch in batches]), split.inputs(range(10))["pixel_values"]
    )
    (batch,) = iterate_batches(split, 4, indices=[9, 1])
    assert batch["indices"].tolist() == [9, 1]
    assert batch["labels"].tolist() == [split.labels[9], split.labels[1]]
