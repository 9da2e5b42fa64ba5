# SPDX-License-Identifier: Apache-2.0
"""Weights are floats in safetensors: pickles are never opened, and nothing is cast to what it is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from edvit_hf import files_edvit
from edvit_hf.auto import EDViTForImageClassification
from support.torch_ensemble import GROUPS, NAMES, tiny_sub_models, tiny_torch_ensemble

LEAF = "sub_models.1.classifier.weight"


class Opened:
    """An object whose unpickling is seen."""

    def __reduce__(self):
        return (Path.touch, (Path("opened"),))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_torch_ensemble().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_a, **_o: pytest.fail("a pickle was opened"))
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def without_safetensors(folder, name):
    torch.save({"weights": Opened()}, folder / name)
    (folder / "model.safetensors").unlink()


def index_of(folder, name, target):
    weights = load_file(folder / "model.safetensors")
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, target)}))
    without_safetensors(folder, "weights.bin")


def disguised(folder, name="model.safetensors"):
    torch.save({"weights": Opened()}, folder / "x")
    (folder / "x").replace(folder / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: without_safetensors(f, "pytorch_model.bin"), r"only pytorch_model\.bin\. Pickles .*never read"),
        (lambda f: index_of(f, "pytorch_model.bin.index.json", "weights.bin"), r"only pytorch_model\.bin\.index\.json"),
        (lambda f: without_safetensors(f, "tf_model.h5"), r"only tf_model\.h5"),
        (lambda f: without_safetensors(f, "flax_model.msgpack"), r"only flax_model\.msgpack"),
        (lambda f: without_safetensors(f, "anything.pt"), "got none"),
        (lambda f: index_of(f, "model.safetensors.index.json", "weights.bin"), "safetensors files beside it"),
        (lambda f: index_of(f, "model.safetensors.index.json", "../x.safetensors"), "safetensors files beside it"),
        (lambda f: index_of(f, "model.safetensors.index.json", "x.safetensors"), r"\['x\.safetensors'\] are not there"),
        (lambda f: index_of(f, "model.safetensors.index.json", 3), "safetensors files beside it|list the weights"),
        (disguised, r"readable safetensors .*model\.safetensors"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), r"got adapter_config\.json, of an adapter"),
        (
            lambda f: disguised(f, "shard-00001-model-00001-of-00001.safetensors"),
            "shard-00001-model-00001-of-00001.safetensors, of an adapter or of a distributed checkpoint",
        ),
    ],
)
@pytest.mark.parametrize("loader", [EDViTForImageClassification, AutoModelForImageClassification])
def test_pickles_are_named_and_never_opened(copy, change, message, loader):
    change(copy)
    with pytest.raises((ValueError, OSError), match=message):
        loader.from_pretrained(copy)
    assert not Path("opened").exists()


@pytest.mark.parametrize("name", ["sub_models/01/model.safetensors", "fusion.safetensors"])
def test_a_part_that_is_a_pickle_is_named_too(copy, name):
    disguised(copy, name)
    with pytest.raises(ValueError, match=f"readable safetensors .*{name}"):
        EDViTForImageClassification.from_pretrained(copy, sub_models=[1])
    assert not Path("opened").exists()


@pytest.mark.parametrize(
    "option",
    [
        {"use_safetensors": False},
        {"from_tf": True},
        {"from_flax": True},
        {"gguf_file": "x.gguf"},
        {"variant": "fp16"},
        {"dtype": torch.int8},
        {"dtype": "int8"},
        {"torch_dtype": "bool"},
        {"dtype": torch.float8_e4m3fn},
        {"dtype": "no_type"},
        {"adapter_kwargs": {"_adapter_model_path": "adapters"}},
    ],
)
@pytest.mark.parametrize("sub_models", [None, [1]])
def test_options_that_ask_for_other_weights_are_refused(saved, option, sub_models):
    with pytest.raises(ValueError, match=r"^Remove .*: an ensemble is read from safetensors of floats"):
        EDViTForImageClassification.from_pretrained(saved, sub_models=sub_models, **option)


def cast(path, key, dtype):
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    weights[key] = weights[key].to(dtype)
    save_file(weights, path, metadata={"format": "pt"})


# The stock loader casts integers and truth values to floats without a word.
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.float8_e4m3fn])
def test_weights_of_integers_and_truth_values_are_refused_whole_and_in_part(copy, dtype):
    cast(copy / "model.safetensors", LEAF, dtype)
    with pytest.raises(ValueError, match=rf"weights of floats .*, got {LEAF} \("):
        EDViTForImageClassification.from_pretrained(copy)
    EDViTForImageClassification.from_pretrained(copy, sub_models=[1])
    cast(copy / "sub_models/01/model.safetensors", "classifier.weight", dtype)
    with pytest.raises(ValueError, match=r"weights of floats .*sub_models/01.*, got classifier\.weight \("):
        EDViTForImageClassification.from_pretrained(copy, sub_models=[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_become_those_of_the_config(copy, dtype):
    cast(copy / "model.safetensors", LEAF, dtype)
    model = EDViTForImageClassification.from_pretrained(copy)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_an_adapter_that_is_a_pickle_is_refused_before_anybody_looks_at_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({"weights": Opened()}, tmp_path / "adapter_model.bin")
    with pytest.raises(OSError, match=r"adapter's weights as safetensors .*got none"):
        tiny_torch_ensemble().load_adapter(str(tmp_path))
    assert not Path("opened").exists()


def test_a_state_dict_of_integers_is_refused_too():
    ensemble = tiny_torch_ensemble()
    weights = ensemble.state_dict() | {LEAF: torch.ones(3, 32, dtype=torch.int8)}
    with pytest.raises(ValueError, match=rf"`state_dict` of floats, got {LEAF} \(torch\.int8\)"):
        EDViTForImageClassification.from_pretrained(None, config=ensemble.config, state_dict=weights)
    given = EDViTForImageClassification.from_pretrained(
        None, config=ensemble.config, state_dict=dict(ensemble.state_dict())
    )
    assert torch.equal(given.state_dict()[LEAF], ensemble.state_dict()[LEAF])


@pytest.mark.parametrize("fields", [{"hidden_act": "no_such_function"}, {"hidden_dropout_prob": 7.0}])
def test_a_sub_model_that_the_stock_class_cannot_build_is_named(fields, saved):
    config = EDViTForImageClassification.config_class.from_pretrained(saved)
    config.sub_model_configs[1] |= fields
    with pytest.raises(ValueError, match="Expected sub-model 1 to be a stock `vit`"):
        EDViTForImageClassification(config)


def test_a_config_of_a_far_larger_model_is_refused_before_its_memory_is_taken(copy, monkeypatch):
    config = json.loads((copy / "config.json").read_text()) | {"fusion_hidden_size": 2**22}  # 1.7 GB of missing weights
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_a, **_o: pytest.fail("it was built"))
    with pytest.raises(ValueError, match=r"got \d+ numbers for \d+ parameters: most are missing"):
        EDViTForImageClassification.from_pretrained(copy)


@pytest.mark.parametrize("sub_models", ["01", 1, [0.0], [True], ["0"], [float("nan")], [None], {0: 1.5}.values()])
def test_sub_models_are_named_by_whole_numbers(saved, sub_models):
    with pytest.raises(ValueError, match="Expected `sub_models` to be a list of whole numbers"):
        EDViTForImageClassification.from_pretrained(saved, sub_models=sub_models)


@pytest.mark.parametrize("sub_models", [torch.tensor([1]), iter([1, 1]), {1}, range(1, 2)])
def test_any_list_of_whole_numbers_names_sub_models(saved, sub_models):
    assert EDViTForImageClassification.from_pretrained(saved, sub_models=sub_models).present == (1,)


def test_the_parts_of_an_ensemble_are_stock_models_in_any_iterable(tmp_path):
    names = dict(enumerate(NAMES))
    made = EDViTForImageClassification.from_sub_models(iter(tiny_sub_models()), GROUPS, id2label=names)
    assert made.config.feature_sizes == [16, 32, 48]
    with pytest.raises(ValueError, match="Expected sub-model 1 to be a stock Transformers model, got Identity"):
        EDViTForImageClassification.from_sub_models([*tiny_sub_models()[:1], torch.nn.Identity()], GROUPS)
    with pytest.raises(ValueError, match="one class group per sub-model"):
        EDViTForImageClassification.from_sub_models([], [])


def test_shards_are_read_by_their_list(copy, saved):
    model = EDViTForImageClassification.from_pretrained(copy)
    model.save_pretrained(copy, max_shard_size="30KB")
    assert len(files_edvit.weight_files(copy)) > 1
    loaded, expected = EDViTForImageClassification.from_pretrained(copy).state_dict(), model.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    cast(Path(files_edvit.weight_files(copy)[0]), next(iter(load_file(files_edvit.weight_files(copy)[0]))), torch.int8)
    with pytest.raises(ValueError, match=r"\(I8\)"):
        EDViTForImageClassification.from_pretrained(copy)
