# SPDX-License-Identifier: Apache-2.0
"""A save is whole or leaves everything as it was, whoever holds the model: a Trainer, a wrapper, an adapter."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from edvit_hf import files_edvit
from edvit_hf.auto import EDViTForImageClassification, EDViTModel
from edvit_hf.storage import is_temporary
from support.torch_ensemble import tiny_torch_ensemble


@pytest.fixture
def ensemble():
    return tiny_torch_ensemble()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, pixels):
    return model(pixels).logits


def tree(folder):
    """Every file of a folder with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def trained(folder, pixels, **options):
    arguments = {"per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 3}
    rows = [{"pixel_values": image, "labels": i} for i, image in enumerate(pixels)]
    arguments = TrainingArguments(folder, **{**arguments, "logging_strategy": "no", "save_steps": 1, **options})
    return Trainer(model=tiny_torch_ensemble(sub_model_dropout=0.0), args=arguments, train_dataset=rows)


# A Trainer sets `config.use_cache`; a field that nobody knew was refused after half of the files had been written.
def test_a_trainer_saves_an_ensemble_that_loads_and_goes_on_from_its_checkpoint(tmp_path, pixels):
    trainer = trained(tmp_path, pixels, max_steps=2)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    expected = logits(trainer.model.eval(), pixels)
    assert trainer.model.config.use_cache is False
    for folder in (tmp_path / "final", tmp_path / "checkpoint-2"):
        loaded = EDViTForImageClassification.from_pretrained(folder)
        assert torch.equal(logits(loaded, pixels), expected)
        assert loaded.config.use_cache is False
    # It loads a checkpoint by the names in its files, which are not those of the model, and goes on where some are.
    resumed = trained(tmp_path, pixels, max_steps=2)
    resumed._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert torch.equal(logits(resumed.model.eval(), pixels), expected)


def test_the_state_dict_of_a_file_loads_by_its_names_and_others_are_still_refused(ensemble, tmp_path, pixels):
    ensemble.save_pretrained(tmp_path)
    other = tiny_torch_ensemble()
    nn.init.zeros_(other.fusion.layers[0].weight)
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) != set(other.state_dict())
    assert other.load_state_dict(weights).missing_keys == []
    assert torch.equal(logits(other, pixels), logits(ensemble, pixels))
    with pytest.raises(RuntimeError, match=r"Missing key.*fusion\.feature_mean"):
        other.load_state_dict({key: w for key, w in weights.items() if key != "fusion.feature_mean"})


def test_what_accelerate_and_torch_wrap_is_saved_under_plain_names(ensemble, tmp_path, pixels):
    expected = logits(ensemble, pixels)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(ensemble)
    accelerator.unwrap_model(prepared).save_pretrained(
        tmp_path / "accelerate",
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(prepared),
    )
    compiled = torch.compile(ensemble, backend="eager")
    compiled.save_pretrained(tmp_path / "compiled")
    ensemble.save_pretrained(tmp_path / "of_compiled", state_dict=compiled.state_dict())
    ensemble.save_pretrained(tmp_path / "parallel", state_dict=nn.DataParallel(ensemble).state_dict())
    ensemble.sub_models[1] = torch.compile(ensemble.sub_models[1], backend="eager")
    ensemble.save_pretrained(tmp_path / "compiled_part")
    assert torch.equal(logits(ensemble, pixels), expected)
    reference = tree(tmp_path / "accelerate")
    for name in ("compiled", "of_compiled", "parallel", "compiled_part"):
        assert tree(tmp_path / name) == reference, name
    assert torch.equal(logits(EDViTForImageClassification.from_pretrained(tmp_path / "compiled"), pixels), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_survives_a_save_whole_and_in_part(ensemble, tmp_path, dtype):
    ensemble.to(dtype).save_pretrained(tmp_path)
    for sub_models in (None, [1]):
        loaded = EDViTForImageClassification.from_pretrained(tmp_path, sub_models=sub_models)
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}


def test_checkpointed_gradients_copies_and_pickles_do_what_they_do_for_stock_models(ensemble, tmp_path, pixels):
    expected = logits(ensemble, pixels)
    for same in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert torch.equal(logits(same, pixels), expected)
        assert same.config.to_json_string() == ensemble.config.to_json_string()
    ensemble.train().activation_checkpointing_enable()
    ensemble(pixels, labels=torch.arange(4)).loss.backward()
    assert ensemble.sub_models[0].vit.layers[0].mlp.fc1.weight.grad.abs().sum() > 0
    ensemble.save_pretrained(tmp_path)
    assert torch.equal(logits(EDViTForImageClassification.from_pretrained(tmp_path), pixels), expected)


class Adapted(nn.Module):
    """One linear layer of a stock model with a low-rank addition, as PEFT puts it there."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Parameter(torch.randn(rank, layer.in_features))
        self.lora_B = nn.Parameter(torch.randn(layer.out_features, rank))

    def forward(self, inputs):
        return self.base_layer(inputs) + inputs @ self.lora_A.T @ self.lora_B.T


class AdaptedModel(nn.Module):
    """A stock model as PEFT wraps it: `base_model` is no stock model's, and parameters have other names."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model
        for layer in model.vit.layers:
            layer.attention.q_proj = Adapted(layer.attention.q_proj)

    @property
    def config(self):
        return self.base_model.model.config

    def get_base_model(self):
        return self.base_model.model

    def merge_and_unload(self):
        model = self.base_model.model
        for layer in model.vit.layers:
            adapted = layer.attention.q_proj
            adapted.base_layer.weight.data += adapted.lora_B.data @ adapted.lora_A.data
            layer.attention.q_proj = adapted.base_layer
        return model


# PEFT's `base_model` is a wrapper too: it answered with logits where features were asked for.
def test_an_adapted_sub_model_answers_learns_and_is_saved_with_its_adapter_merged(ensemble, tmp_path, pixels):
    plain = logits(ensemble, pixels)
    ensemble.sub_models[1] = AdaptedModel(ensemble.sub_models[1])
    expected = logits(ensemble, pixels)
    assert not torch.allclose(expected, plain)
    ensemble(pixels, labels=torch.arange(4)).loss.backward()
    assert ensemble.sub_models[1].get_base_model().vit.layers[0].attention.q_proj.lora_A.grad.abs().sum() > 0
    ensemble.save_pretrained(tmp_path)
    assert torch.equal(logits(ensemble, pixels), expected)  # training can go on
    assert torch.allclose(logits(EDViTForImageClassification.from_pretrained(tmp_path), pixels), expected, atol=1e-5)
    alone = AutoModelForImageClassification.from_pretrained(tmp_path, subfolder="sub_models/01")
    with torch.no_grad():
        assert torch.allclose(alone(pixels).logits, ensemble.votes(pixel_values=pixels)[1], atol=1e-5)


def put_adapter(ensemble):
    attention = ensemble.sub_models[0].vit.layers[0].attention
    attention.q_proj = Adapted(attention.q_proj)


def widen(ensemble):
    ensemble.sub_models[2].classifier = nn.Linear(48, 7)


def on_disk(ensemble):
    ensemble.sub_models[0].to("meta")


def spoil(ensemble):
    ensemble.fusion.feature_mean[3] = torch.nan


def quantize(ensemble):
    ensemble.sub_models[0].vit.layernorm.weight = nn.Parameter(torch.ones(16, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put_adapter, r"left over: .*base_layer.*nothing was written. Merge its adapters first"),
        (widen, r"of another shape: sub_models\.2\.classifier\.weight \(7, 48\), not \(2, 48\)"),
        (on_disk, "not in memory: sub_models.0"),
        (spoil, r"not finite: fusion\.feature_mean"),
        (quantize, r"no floats: sub_models\.0\.vit\.layernorm\.weight \(torch\.int8\)"),
        (lambda e: setattr(e.config, "sub_model_droput", 0.5), "Did you mean `sub_model_dropout`"),
        (lambda e: setattr(e.config, "id2label", dict.fromkeys(range(5), "same")), "a name of its own"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_before_a_file_is_touched(ensemble, change, message, tmp_path):
    ensemble.save_pretrained(tmp_path / "there")
    before = tree(tmp_path / "there")
    change(ensemble)
    for name in ("there", "new"):
        with pytest.raises(ValueError, match=message):
            ensemble.save_pretrained(tmp_path / name)
    assert tree(tmp_path / "there") == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("fusion.feature_std"), r"missing: fusion\.feature_std"),
        (lambda w: w.update(extra=torch.zeros(1)), "left over: extra"),
        (lambda w: w.clear(), r"missing: .*\(\d+\)"),
        (lambda w: w.update({"fusion.feature_std": torch.ones(3)}), r"of another shape: fusion\.feature_std"),
    ],
)
def test_a_state_dict_of_something_else_is_refused(ensemble, edit, message, tmp_path):
    weights = dict(ensemble.state_dict())
    edit(weights)
    with pytest.raises(ValueError, match=message):
        ensemble.save_pretrained(tmp_path / "out", state_dict=weights)
    assert not (tmp_path / "out").exists()


def test_a_save_that_breaks_off_leaves_what_was_there(ensemble, tmp_path, monkeypatch):
    ensemble.save_pretrained(tmp_path / "there")
    (tmp_path / "there/manifest.json").write_text("{}")
    before = tree(tmp_path / "there")
    for weight in ensemble.parameters():
        weight.data += 1

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    for name in ("there", "new"):
        with pytest.raises(OSError, match="No space left"):
            ensemble.save_pretrained(tmp_path / name)
    assert tree(tmp_path / "there") == before
    assert not (tmp_path / "new").exists()


def test_what_a_killed_save_left_is_no_part_of_the_folder_and_goes_with_the_next(ensemble, tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = []
    for process in (killed.pid, os.getpid(), os.getppid()):
        with files_edvit.whole_save(tmp_path) as staging:
            left.append(staging.with_name(staging.name.replace(f"-{os.getpid()}-", f"-{process}-", 1)))
            assert is_temporary(staging.name)
    other = tmp_path / ".saving.ffffff-1-0123abcd.partial"  # of another machine
    for folder in (*left, other):
        folder.mkdir()
        (folder / "config.json").write_text("{")
    with files_edvit.whole_save(tmp_path) as first, files_edvit.whole_save(tmp_path) as second:
        assert first.is_dir()  # what is under way is not left over
        assert second.is_dir()
        assert [folder.is_dir() for folder in (*left, other)] == [False, False, True, True]
    ensemble.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".saving*")) == sorted([left[2].name, other.name])


def test_a_file_in_the_way_is_an_error_and_not_a_save_that_never_was(ensemble, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="Expected a folder to save an ensemble to, got the file"):
        ensemble.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ValueError, match="got an empty name"):
        ensemble.save_pretrained("")


def test_only_the_main_process_writes(ensemble, tmp_path):
    ensemble.save_pretrained(tmp_path / "out", is_main_process=False)
    assert tree(tmp_path / "out") == {}


# The stock loader prefers a whole file to shards, and a folder of eleven sub-models to nothing.
def test_what_an_earlier_save_left_is_not_read_with_the_new_one(ensemble, tmp_path, pixels):
    ensemble.save_pretrained(tmp_path)
    for name in ("sub_models/07", "sub_models/07/onnx"):
        (tmp_path / name).mkdir()
    (tmp_path / "sub_models/07/model.safetensors").write_bytes(b"older")
    (tmp_path / "sub_models/07/onnx/model.onnx").write_bytes(b"mine")
    (tmp_path / "notes.safetensors").write_bytes(b"mine")
    for weight in ensemble.parameters():
        weight.data += 0.01
    ensemble.save_pretrained(tmp_path, max_shard_size="30KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "sub_models/07/model.safetensors").exists()
    assert (tmp_path / "sub_models/07/onnx/model.onnx").read_bytes() == b"mine"
    assert (tmp_path / "notes.safetensors").read_bytes() == b"mine"
    loaded = EDViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, pixels), logits(ensemble, pixels))
    ensemble.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model-*")) + list(tmp_path.glob("*.index.json"))
    features = tiny_torch_ensemble(cls=EDViTModel)
    features.save_pretrained(tmp_path)
    assert not (tmp_path / "fusion.safetensors").exists()


def exported(folder):
    """Write a manifest that vouches for the weights in `folder`, as an export does."""
    files = [*folder.rglob("config.json"), *folder.rglob("*.safetensors")]
    content = {f.relative_to(folder).as_posix(): {"sha256": files_edvit._sha256(f), "bytes": 1} for f in files}
    (folder / "manifest.json").write_text(json.dumps({"content": content}))


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Graphs that were exported from other weights went on answering for those that were saved over them.
@pytest.mark.parametrize(
    ("change", "stays"),
    [
        (lambda e: None, True),
        (lambda e: e.fusion.layers[0].weight.data.add_(1e-6), False),
        (lambda e: e.sub_models[2].classifier.bias.data.add_(1), False),
        (lambda e: e.to(torch.bfloat16), False),
        (lambda e: setattr(e.config, "fusion_dropout", 0.5), False),
        (lambda e: setattr(e.config, "of_my_own", 1), False),
    ],
)
def test_exported_files_answer_on_only_for_the_weights_they_were_made_of(change, stays, tmp_path, caplog):
    tiny_torch_ensemble().save_pretrained(tmp_path)
    edit_config(tmp_path, transformers_version="4.0.0")  # exported by another release: no answer hangs on it
    exported(tmp_path)
    before = tree(tmp_path)
    ensemble = EDViTForImageClassification.from_pretrained(tmp_path)
    change(ensemble)
    ensemble.save_pretrained(tmp_path)
    after = tree(tmp_path)
    assert (after == before) == stays
    assert (Path("manifest.json") in after) == stays
    if not stays:
        assert after[Path("manifest.json.stale")] == before[Path("manifest.json")]


def test_exported_files_answer_on_for_a_config_of_before_there_were_kinds_of_fusion(tmp_path):
    tiny_torch_ensemble().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("fusion_kind", "fusion_other", "focus_groups"):
        del values[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    exported(tmp_path)
    before = tree(tmp_path)
    ensemble = EDViTForImageClassification.from_pretrained(tmp_path)
    ensemble.save_pretrained(tmp_path)
    assert tree(tmp_path) == before
    ensemble.config.fusion_other = "spread"
    ensemble.save_pretrained(tmp_path)
    assert Path("manifest.json") not in tree(tmp_path)


def test_the_manifest_goes_before_the_first_new_file_appears(ensemble, tmp_path, monkeypatch):
    ensemble.save_pretrained(tmp_path)
    exported(tmp_path)
    before = tree(tmp_path)
    ensemble.fusion.feature_mean += 1

    def cut_off(self, target):
        if Path(target).name not in ("manifest.json.stale",):
            raise KeyboardInterrupt
        return real(self, target)

    real = Path.replace
    monkeypatch.setattr(Path, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        ensemble.save_pretrained(tmp_path)
    after = tree(tmp_path)
    assert Path("manifest.json") not in after
    assert {name: data for name, data in after.items() if name.name != "manifest.json.stale"} == {
        name: data for name, data in before.items() if name.name != "manifest.json"
    }


@pytest.mark.parametrize("manifest", ["{", "[]", '{"content": 3}', '{"content": {}}', "{}"])
def test_a_manifest_that_vouches_for_nothing_is_put_aside_too(ensemble, tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    ensemble.save_pretrained(tmp_path)
    assert (tmp_path / "manifest.json.stale").read_text() == manifest


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that says what it was sent, and holds a manifest in `tmp_path / "hub"`."""
    sent = {}
    (tmp_path / "hub").mkdir()

    class Made:
        repo_id = "org/tiny"

    def find(_repo, name, **_options):
        path = tmp_path / "hub" / name
        return str(path) if path.exists() else None

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *_a, **_o: Made)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: sent.update(options))
    monkeypatch.setattr(files_edvit, "cached_file", find)
    return sent


def test_pushing_other_weights_takes_the_manifest_of_stale_graphs_off_the_hub(ensemble, hub, tmp_path):
    folder = tmp_path / "out"
    ensemble.save_pretrained(folder)
    (folder / "README.md").write_text("my card")
    exported(folder)
    (folder / "manifest.json").replace(tmp_path / "hub/manifest.json")
    ensemble.save_pretrained(folder, push_to_hub=True, repo_id="org/tiny", commit_message="Same weights")
    assert (hub["commit_message"], hub["repo_id"], hub["folder_path"]) == ("Same weights", "org/tiny", folder)
    assert "delete_patterns" not in hub
    assert (folder / "README.md").read_text() == "my card"
    ensemble.fusion.feature_mean += 1
    ensemble.save_pretrained(folder, push_to_hub=True, repo_id="org/tiny")
    assert hub["delete_patterns"] == ["manifest.json"]
