# SPDX-License-Identifier: Apache-2.0
"""A teacher that brings its processor is fed by it in every stage, and the ensemble travels with that processor."""

import json

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from edvit_hf.data import DatasetConfig, load_task
from edvit_hf.errors import DataError, RecipeError
from edvit_hf.recipe import run
from edvit_hf.recipe.running import open_trip, stage_dir
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.storage import read_json
from support.dataset_files import OFF
from support.tiny_recipe import tiny_recipe

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32, "patch_size": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A classifier of the digits with a processor of its own: other mean and std, and bicubic."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    names = {i: str(i) for i in range(10)}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    config = ViTConfig(image_size=12, initializer_range=0.5, **labels, **SIZES)
    ViTForImageClassification(config).save_pretrained(folder)
    values = {"image_mean": [0.1, 0.4, 0.7], "image_std": [0.2, 0.25, 0.3], "resample": 3}
    ViTImageProcessor(size=12, **values).save_pretrained(folder)
    return folder


def recipe_of(folder, checkpoint, **dataset):
    teacher = {"from_scratch": None, "checkpoint": str(checkpoint), "epochs": 0}
    return tiny_recipe(folder, dataset={"image_size": None, **dataset}, teacher=teacher)


def test_the_teacher_of_a_trip_answers_as_the_checkpoint_does_by_its_own_processor(tmp_path, checkpoint):
    recipe = recipe_of(tmp_path, checkpoint)
    run(recipe, tmp_path / "work", stages=["teacher"])
    trip = open_trip(recipe, tmp_path / "work", "")
    images = load_task(DatasetConfig(path="digits", image_size=8, max_train_samples=200, max_test_samples=60), OFF).test
    stock = ViTImageProcessor.from_pretrained(checkpoint)
    pixels = (images.inputs(range(60))["pixel_values"] * 0.5 + 0.5).mul(255).round().to(torch.uint8)
    inputs = stock([image.permute(1, 2, 0).numpy() for image in pixels], return_tensors="pt")
    model = ViTForImageClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        expected = model(**inputs).logits
        found = trip.teacher(**trip.data.test.inputs(range(60))).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for folder in ("processor", "model"):
        values = json.loads((stage_dir(tmp_path / "work", "teacher") / folder / "preprocessor_config.json").read_text())
        assert (values["image_mean"], values["resample"], values["size"]["height"]) == ([0.1, 0.4, 0.7], 3, 12)


def test_a_recipe_that_says_otherwise_is_refused_before_anything_is_trained(tmp_path, checkpoint):
    for written in ({"image_size": 8}, {"mean": [0.5, 0.5, 0.5]}):
        recipe = recipe_of(tmp_path, checkpoint, **written)
        with pytest.raises(DataError, match=f"`dataset.{next(iter(written))}` is .* says"):
            run(recipe, tmp_path / "work", stages=["teacher"])
    assert not (stage_dir(tmp_path / "work", "teacher") / "model").exists()


def test_a_processor_that_makes_another_size_than_its_model_reads_is_refused(tmp_path, checkpoint):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ViTImageProcessor(size=16).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="the processor makes inputs of image_size = 16, the checkpoint reads 12"):
        run(recipe_of(tmp_path / "recipe", tmp_path), tmp_path / "work", stages=["teacher"])


def test_a_plan_takes_the_sizes_that_the_recipe_leaves_to_the_checkpoint(tmp_path, checkpoint):
    plan = plan_recipe(recipe_of(tmp_path, checkpoint))
    assert plan.teacher["macs"] == plan_recipe(recipe_of(tmp_path, checkpoint, image_size=12)).teacher["macs"]


def test_what_a_recipe_leaves_open_is_recorded_as_open_beside_a_checkpoint_alone(tmp_path, checkpoint):
    assert recipe_values(recipe_of(tmp_path, checkpoint))["dataset"]["mean"] is None
    assert recipe_values(tiny_recipe(tmp_path))["dataset"]["mean"] == (0.5, 0.5, 0.5)


def test_a_processor_that_changed_is_another_teacher(tmp_path, checkpoint):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    recipe = recipe_of(tmp_path / "recipe", tmp_path)
    run(recipe, tmp_path / "recipe/work", stages=["teacher"])
    values = read_json(tmp_path / "preprocessor_config.json")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**values, "image_mean": [0.4, 0.4, 0.4]}))
    assert not run(recipe, tmp_path / "recipe/work", stages=["teacher"])[0].skipped
    stored = stage_dir(tmp_path / "recipe/work", "teacher") / "processor/preprocessor_config.json"
    assert read_json(stored)["image_mean"] == [0.4, 0.4, 0.4]
