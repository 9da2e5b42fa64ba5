# SPDX-License-Identifier: Apache-2.0
"""Damaged or foreign checkpoints are refused with what is wrong, never filled up with random weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edvit_hf.auto import EDViTForImageClassification, EDViTModel, ensemble_class
from support.torch_ensemble import mixed_ensemble, tiny_torch_ensemble


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_torch_ensemble().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_weights(path, edit):
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def edit_config(folder, edit):
    values = json.loads((folder / "config.json").read_text())
    edit(values)
    (folder / "config.json").write_text(json.dumps(values))


def truncate(folder, name="model.safetensors"):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])


def spoil(folder, name="model.safetensors", key="fusion.layers.0.weight", value=torch.nan):
    edit_weights(folder / name, lambda weights: weights[key].view(-1)[0].fill_(value))


def remove(folder, key):
    edit_weights(folder / "model.safetensors", lambda weights: weights.pop(key))


def resize(folder, **fields):
    edit_config(folder, lambda values: values.update(fields))


def resize_sub(folder, **fields):
    edit_config(folder, lambda values: values["sub_model_configs"][1].update(fields))


# P-4: what loading leaves to `_init_weights` becomes random weights, with a warning at most.
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "readable safetensors.*damaged or cut short"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "readable safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 999), "readable safetensors"),
        (spoil, "not finite: fusion.layers.0.weight"),
        (lambda folder: spoil(folder, value=torch.inf), "not finite"),
        (lambda folder: remove(folder, "fusion.feature_std"), "missing: fusion.feature_std"),
        (lambda folder: remove(folder, "sub_models.1.classifier.bias"), "missing: sub_models.1.classifier.bias"),
        (lambda folder: resize(folder, fusion_hidden_size=9), r"of another shape: fusion.*\(8.*not \(9"),
        (lambda folder: resize_sub(folder, intermediate_size=65), "of another shape: sub_models.1"),
        (lambda folder: resize_sub(folder, num_hidden_layers=1), "left over: sub_models.1.vit"),
        (lambda folder: resize_sub(folder, num_hidden_layers=3), "missing: sub_models.1.vit"),
        (lambda folder: resize(folder, class_groups=[[0, 1], [2], [3]]), "nowhere"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}])
def test_damaged_checkpoints_are_refused_not_filled_with_noise(copy, damage, message, options):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        EDViTForImageClassification.from_pretrained(copy, **options)


def test_a_damaged_part_is_named_and_undamaged_parts_still_load(copy):
    truncate(copy, "sub_models/01/model.safetensors")
    spoil(copy, "sub_models/02/model.safetensors", "classifier.weight")
    assert EDViTForImageClassification.from_pretrained(copy, sub_models=[0]).present == (0,)
    with pytest.raises(ValueError, match=r"readable safetensors.*sub_models/01/model\.safetensors"):
        EDViTForImageClassification.from_pretrained(copy, sub_models=[0, 1])
    with pytest.raises(ValueError, match=r"not finite: sub_models\.2\.classifier\.weight"):
        EDViTForImageClassification.from_pretrained(copy, sub_models=[2])


@pytest.mark.parametrize(
    ("gone", "sub_models"),
    [("model.safetensors", None), ("sub_models/01/model.safetensors", [1]), ("fusion.safetensors", [1])],
)
def test_a_missing_file_is_named(copy, gone, sub_models):
    (copy / gone).unlink()
    with pytest.raises(OSError, match=gone):
        EDViTForImageClassification.from_pretrained(copy, sub_models=sub_models)


@pytest.mark.parametrize("sub_models", [None, [1]])
def test_a_missing_or_foreign_config_is_refused(copy, sub_models):
    for damage in (lambda path: path.write_text('{"model_type": "edvit"}'), Path.unlink):
        damage(copy / "config.json")
        with pytest.raises(ValueError, match="missing or describes another model"):
            EDViTForImageClassification.from_pretrained(copy, sub_models=sub_models)
    (copy / "config.json").write_text("{")
    with pytest.raises(OSError, match="not a valid JSON file"):
        EDViTForImageClassification.from_pretrained(copy, sub_models=sub_models)


def test_a_features_only_checkpoint_is_not_given_a_random_head(tmp_path):
    tiny_torch_ensemble(cls=EDViTModel).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="missing: fusion"):
        EDViTForImageClassification.from_pretrained(tmp_path)


# P-4: heads of other architectures are as little filled with random weights as those of images.
@pytest.mark.parametrize(
    ("task", "damage", "message"),
    [
        ("audio-classification", lambda f: remove(f, "sub_models.0.classifier.layernorm.bias"), "classifier.layernorm"),
        ("audio-classification", lambda f: resize_sub(f, num_hidden_layers=2), "missing: sub_models.1.audio_spectr"),
        ("text-classification", lambda f: remove(f, "sub_models.0.bert.pooler.dense.weight"), "bert.pooler.dense"),
        ("text-classification", lambda f: remove(f, "sub_models.1.pre_classifier.weight"), "1.pre_classifier.weight"),
        ("text-classification", lambda f: spoil(f, key="sub_models.1.pre_classifier.bias"), "not finite: sub_models.1"),
        ("text-classification", lambda f: resize_sub(f, max_position_embeddings=23), "of another shape: sub_models.1"),
    ],
)
def test_damage_to_ensembles_of_other_tasks_is_refused_too(task, damage, message, tmp_path):
    mixed_ensemble(task).save_pretrained(tmp_path)
    ensemble_class(task).from_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        ensemble_class(task).from_pretrained(tmp_path)
