# SPDX-License-Identifier: Apache-2.0
"""A teacher and the models between stages are read from safetensors of floats; nothing that can run code is opened."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edvit_hf.errors import CheckpointError, RecipeError
from edvit_hf.recipe.stages.teacher import load_teacher
from edvit_hf.recipe.trip import load_model
from support.tiny_architectures import tiny_vit

NAMES = ["a", "b", "c"]


class Opened:
    """An object whose unpickling is seen."""

    def __reduce__(self):
        return (Path.touch, (Path("opened"),))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = tiny_vit(len(NAMES))
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def teacher(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(saved, tmp_path / "teacher"))


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Opened()}, folder / "pytorch_model.bin")


def pickle_by_another_name(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Opened()}, folder / "model.safetensors")


def adapter(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "."}))
    torch.save({"classifier.weight": Opened()}, folder / "adapter_model.bin")


def cast(dtype):
    def change(folder):
        weights = {key: tensor.clone() for key, tensor in load_file(folder / "model.safetensors").items()}
        weights["classifier.weight"] = weights["classifier.weight"].to(dtype)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def foreign_code(folder):
    code = "from pathlib import Path\nPath('opened').touch()\n"
    (folder / "own.py").write_text(code)
    values = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageClassification": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (only_pickle, r"only pytorch_model\.bin"),
        (pickle_by_another_name, "readable safetensors"),
        (adapter, r"got adapter_config\.json, of an adapter"),
        (cast(torch.int8), r"weights of floats .*classifier\.weight \(I8\)"),
        (cast(torch.bool), r"weights of floats .*classifier\.weight \(BOOL\)"),
        (foreign_code, "trust_remote_code"),
    ],
)
def test_nothing_but_safetensors_of_floats_is_read_and_no_code_is_run(teacher, change, message):
    change(teacher)
    for is_final in (True, False):
        with pytest.raises(RecipeError, match=message):
            load_teacher(str(teacher), None, NAMES, task="image-classification", is_final=is_final)
    with pytest.raises(CheckpointError, match=message):
        load_model(teacher)
    assert not Path("opened").exists()


def test_position_numbers_that_older_files_hold_are_no_weights(teacher):
    weights = {key: tensor.clone() for key, tensor in load_file(teacher / "model.safetensors").items()}
    weights["vit.embeddings.position_ids"] = torch.arange(5)
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    assert load_model(teacher).config.num_labels == 3


# A sub-model takes over its teacher's config: a multi-label one was found out after everything had been trained.
@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_model_for_another_kind_of_problem_is_no_teacher_until_it_is_fine_tuned(teacher, kind):
    config = json.loads((teacher / "config.json").read_text()) | {"problem_type": kind}
    (teacher / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=f"is a model for {kind}.*Fine-tune it"):
        load_teacher(str(teacher), None, NAMES, task="image-classification", is_final=True)
    model = load_teacher(str(teacher), None, NAMES, task="image-classification", is_final=False)
    assert model.config.problem_type is None
