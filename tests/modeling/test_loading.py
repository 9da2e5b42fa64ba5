# SPDX-License-Identifier: Apache-2.0
"""Saving and loading: bit for bit, whole or in part, with and without the package."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

import edvit_hf.saved_edvit as saving
from edvit_hf.auto import EDViTConfig, EDViTForImageClassification, EDViTModel
from edvit_hf.tasks import CODE_FILES
from support.ready import run_ready
from support.torch_ensemble import GROUPS, NAMES, NUM_SUB_MODELS, tiny_sub_model, tiny_torch_ensemble


@pytest.fixture(scope="module")
def ensemble():
    return tiny_torch_ensemble(parent={"id": "tiny-teacher"})


@pytest.fixture(scope="module")
def saved(ensemble, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(folder)
    ensemble.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def pixels():
    return torch.randn(4, 3, 8, 8)


@torch.no_grad()
def logits(model, pixels, **kwargs):
    return model(pixels, **kwargs).logits


def keep_only(folder, sub_models):
    """Delete everything but the config, the fusion head and the named sub-models' weights."""
    kept = {folder / "config.json", folder / "fusion.safetensors"}
    kept |= {folder / f"sub_models/{i:02d}/model.safetensors" for i in sub_models}
    for path in folder.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()


def test_a_saved_folder_holds_the_documented_files(saved):
    found = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    parts = {"config.json", "model.safetensors", "preprocessor_config.json"}
    expected = parts | {"fusion.safetensors", *CODE_FILES}
    assert found == expected | {f"sub_models/{i:02d}/{name}" for i in range(NUM_SUB_MODELS) for name in parts}


# P-3: a class whose __init__ does not end with `post_init()` saves, and then fails to load.
# P-4: an `_init_weights` that writes to `.data` re-initialises weights that were loaded.
def test_the_whole_ensemble_comes_back_bit_for_bit(ensemble, saved, pixels):
    loaded = AutoModelForImageClassification.from_pretrained(saved)
    assert type(loaded) is EDViTForImageClassification
    assert not loaded.training
    weights, expected = loaded.state_dict(), ensemble.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert torch.equal(logits(loaded, pixels), logits(ensemble, pixels))
    assert loaded.config.id2label == dict(enumerate(NAMES))
    assert loaded.config.parent == {"id": "tiny-teacher"}
    assert loaded.config.class_groups == GROUPS


def test_every_auto_class_knows_the_ensemble(ensemble, saved, pixels):
    assert type(AutoConfig.from_pretrained(saved)) is EDViTConfig
    model, info = AutoModel.from_pretrained(saved, output_loading_info=True)
    assert type(model) is EDViTModel
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(model(pixels).pooler_output, ensemble.features(pixel_values=pixels))


# P-3: `post_init()` again, for the other public class.
def test_the_features_only_model_saves_and_loads_too(tmp_path, pixels):
    model = tiny_torch_ensemble(cls=EDViTModel)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "fusion.safetensors").exists()
    for sub_models in (None, [1]):
        loaded = AutoModel.from_pretrained(tmp_path, sub_models=sub_models)
        with torch.no_grad():
            mask = torch.tensor([i in loaded.present for i in range(NUM_SUB_MODELS)])
            assert torch.equal(loaded(pixels)[0], model(pixels, sub_model_mask=mask)[0])


def test_root_keys_are_those_of_the_parts_after_the_prefix(saved):
    root = load_file(saved / "model.safetensors")
    parts = {f"sub_models.{i}.": f"sub_models/{i:02d}/model.safetensors" for i in range(NUM_SUB_MODELS)}
    joined = {
        prefix + key: tensor
        for prefix, name in (parts | {"fusion.": "fusion.safetensors"}).items()
        for key, tensor in load_file(saved / name).items()
    }
    assert root.keys() == joined.keys()
    assert all(torch.equal(root[key], joined[key]) for key in root)


def test_more_than_ten_sub_models_keep_their_numbers(tmp_path, pixels):
    groups = [[i] for i in range(12)]
    names = [f"n{i}" for i in groups]
    sizes = {"num_layers": 1, "intermediate_size": 8}
    subs = [tiny_sub_model(group, names=names, seed=group[0], **sizes) for group in groups]
    ensemble = EDViTForImageClassification.from_sub_models(subs, groups, id2label=dict(enumerate(names)))
    ensemble.save_pretrained(tmp_path)
    loaded = EDViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, pixels), logits(ensemble, pixels))
    alone = EDViTForImageClassification.from_pretrained(tmp_path, sub_models=[11])
    with torch.no_grad():
        assert torch.equal(alone.votes(pixel_values=pixels)[11], subs[11](pixels).logits)


def test_saving_what_was_loaded_over_itself_changes_nothing(copy, pixels):
    before = {path: path.read_bytes() for path in copy.rglob("*.safetensors")}
    loaded = EDViTForImageClassification.from_pretrained(copy)
    expected = logits(loaded, pixels)
    loaded.save_pretrained(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*.safetensors")} == before
    assert torch.equal(logits(EDViTForImageClassification.from_pretrained(copy), pixels), expected)


@pytest.mark.parametrize("sub_models", [[0], [2, 0], (1, 1, 2), range(3)])
def test_a_partial_load_equals_the_whole_with_the_others_masked(ensemble, copy, pixels, sub_models):
    keep_only(copy, set(sub_models))
    loaded = AutoModelForImageClassification.from_pretrained(copy, sub_models=sub_models)
    mask = torch.tensor([i in sub_models for i in range(NUM_SUB_MODELS)])
    expected = logits(ensemble, pixels, sub_model_mask=mask)
    assert torch.equal(logits(loaded, pixels), expected)
    assert torch.equal(logits(loaded, pixels, sub_model_mask=torch.ones(3)), expected)
    assert [vote is not None for vote in loaded.votes(pixel_values=pixels)] == mask.tolist()
    assert not any(key.startswith("sub_models.1.") for key in loaded.state_dict()) or 1 in sub_models
    assert logits(loaded.train(), pixels).isfinite().all()


def test_a_partial_load_opens_only_what_it_needs(saved, monkeypatch):
    asked, opened = [], []
    real_find, real_load = saving.cached_file, saving.load_file
    monkeypatch.setattr(
        saving, "cached_file", lambda *args, **kwargs: asked.append(args[1]) or real_find(*args, **kwargs)
    )
    monkeypatch.setattr(saving, "load_file", lambda path: opened.append(Path(path)) or real_load(path))
    EDViTForImageClassification.from_pretrained(saved, sub_models=[2])
    assert asked == ["sub_models/02/model.safetensors", "fusion.safetensors"]
    assert opened == [saved / name for name in asked]


def test_a_partial_load_from_the_hub_cache_needs_only_those_files(ensemble, saved, tmp_path, pixels):
    commit = "0" * 40
    repo = tmp_path / "models--org--tiny"
    snapshot = repo / "snapshots" / commit
    shutil.copytree(saved, snapshot)
    keep_only(snapshot, [0, 2])
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    loaded = EDViTForImageClassification.from_pretrained("org/tiny", sub_models=[0, 2], cache_dir=tmp_path)
    expected = logits(ensemble, pixels, sub_model_mask=torch.tensor([1, 0, 1]))
    assert torch.equal(logits(loaded, pixels), expected)
    assert loaded.name_or_path == "org/tiny"


def test_an_ensemble_inside_a_folder_of_a_repository_loads(ensemble, saved, pixels):
    for sub_models in (None, [1]):
        loaded = EDViTForImageClassification.from_pretrained(saved.parent, subfolder=saved.name, sub_models=sub_models)
        mask = torch.tensor([i in loaded.present for i in range(NUM_SUB_MODELS)])
        assert torch.equal(logits(loaded, pixels), logits(ensemble, pixels, sub_model_mask=mask))


@pytest.mark.parametrize("sub_models", [[], [3], [-1], [0, 7]])
def test_asking_for_sub_models_that_are_not_there_is_refused(saved, sub_models):
    with pytest.raises(ValueError, match=r"at least one of 0\.\.2"):
        EDViTForImageClassification.from_pretrained(saved, sub_models=sub_models)


def test_saving_a_partly_loaded_ensemble_is_refused(saved, tmp_path):
    partial = EDViTForImageClassification.from_pretrained(saved, sub_models=[0, 2])
    with pytest.raises(ValueError, match=r"all 3 sub-models to save an ensemble, got only \[0, 2\]"):
        partial.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# P-12: `safe_serialization=False` is swallowed without a word and safetensors are written all the same.
@pytest.mark.parametrize("option", [{"safe_serialization": False}, {"variant": "fp16"}])
def test_options_that_would_change_file_names_are_refused(ensemble, tmp_path, option):
    with pytest.raises(ValueError, match="weights are safetensors"):
        ensemble.save_pretrained(tmp_path, **option)


def test_a_given_state_dict_is_written_to_whole_and_parts(ensemble, tmp_path, pixels):
    weights = {key: torch.zeros_like(tensor) + 0.5 for key, tensor in ensemble.state_dict().items()}
    ensemble.save_pretrained(tmp_path, state_dict=weights)
    for name in ("model.safetensors", "fusion.safetensors", "sub_models/01/model.safetensors"):
        assert all((tensor == 0.5).all() for tensor in load_file(tmp_path / name).values()), name


# P-2: `from_pretrained(dtype, attn_implementation)` reaches the top config alone, not configs in a list.
@pytest.mark.parametrize("sub_models", [None, [0, 1]])
def test_precision_and_attention_reach_every_sub_model(saved, pixels, sub_models):
    model = AutoModelForImageClassification.from_pretrained(
        saved, sub_models=sub_models, dtype=torch.bfloat16, attn_implementation="eager"
    )
    configs = [model.config, *(model.sub_models[i].config for i in model.present)]
    assert {config._attn_implementation for config in configs} == {"eager"}
    assert {config.dtype for config in configs} == {torch.bfloat16}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert logits(model, pixels).dtype == torch.bfloat16


# P-11: the same through the model classes.
def test_labels_are_honoured_on_load_and_a_wrong_number_refused(saved):
    names = {i: name.upper() for i, name in enumerate(NAMES)}
    for sub_models in (None, [0]):
        model = AutoModelForImageClassification.from_pretrained(saved, id2label=names, sub_models=sub_models)
        assert model.config.id2label == names
    with pytest.raises(ValueError, match="got num_labels=7"):
        AutoModelForImageClassification.from_pretrained(saved, num_labels=7, ignore_mismatched_sizes=True)


def test_a_sub_model_folder_is_a_stock_model_that_votes(saved, pixels, ensemble):
    model = AutoModelForImageClassification.from_pretrained(saved, subfolder="sub_models/01")
    assert type(model) is ViTForImageClassification
    assert model.config.id2label == {0: "cat", 1: "eel", 2: "other"}
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, ensemble.votes(pixel_values=pixels)[1])
    assert "auto_map" not in json.loads((saved / "sub_models/01/config.json").read_text())


# P-13: `pipeline` cannot load a class that has no model type of its own registered for the task.
def test_the_stock_pipeline_runs_the_ensemble_and_a_sub_model(saved, ensemble):
    image = Image.effect_noise((20, 12), 90).convert("L")
    classify = pipeline("image-classification", model=str(saved))
    answer = classify(image, top_k=5)
    pixels = classify.image_processor(image.convert("RGB"), return_tensors="pt").pixel_values
    expected = logits(ensemble, pixels)[0].softmax(-1)
    assert {row["label"] for row in answer} == set(NAMES)
    for row in answer:
        assert row["score"] == pytest.approx(expected[NAMES.index(row["label"])].item(), abs=1e-5)
    alone = pipeline("image-classification", model=str(saved / "sub_models/02"))
    assert {row["label"] for row in alone(image)} == {"dog", "other"}


def test_pushing_uploads_the_nested_folders_and_nothing_else(ensemble, saved, monkeypatch):
    sent = {}
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: sent.update(options))
    ensemble._upload_modified_files(saved, "org/tiny", files_timestamps={}, commit_message="Upload")
    assert sent["repo_id"] == "org/tiny"
    assert sent["commit_message"] == "Upload"
    from huggingface_hub.utils import filter_repo_objects

    files = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
    others = ["checkpoint-1/model.safetensors", "teacher/config.json", "notes.txt", "secrets.json"]
    assert sorted(filter_repo_objects(files + others, allow_patterns=sent["allow_patterns"])) == sorted(files)


CLEAN_PROCESS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "edvit_hf":
            raise ImportError("edvit_hf is not installed here")
sys.meta_path.insert(0, Blocked())
assert "edvit_hf" not in sys.modules
import os
import transformers.dynamic_module_utils as remote
remote.HF_MODULES_CACHE = os.environ["HF_MODULES_CACHE"]  # else that of the process from which this one was forked
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
folder, pixels = sys.argv[1], load_file(sys.argv[2])["pixels"]
refused = ""
try:
    AutoConfig.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    refused = str(error)
assert "trust_remote_code" in refused, refused
with torch.no_grad():
    whole = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    part = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, sub_models=[0, 2])
    features = AutoModel.from_pretrained(folder, trust_remote_code=True)
    answers = {"whole": whole(pixels).logits, "part": part(pixels).logits, "features": features(pixels)[0]}
    whole.save_pretrained(sys.argv[4])
    again = AutoModelForImageClassification.from_pretrained(sys.argv[4], trust_remote_code=True)
    assert type(again).__module__.startswith("transformers_modules.again"), type(again).__module__
    answers["again"] = again(pixels).logits
assert "edvit_hf" not in sys.modules
save_file({key: value.contiguous() for key, value in answers.items()}, sys.argv[3])
"""


@pytest.fixture(scope="module")
def without_the_package(saved, tmp_path_factory):
    """Answers of a process that has only remote code, and the folder it saved again."""
    folder = tmp_path_factory.mktemp("clean")
    pixels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"pixels": pixels}, folder / "pixels.safetensors")
    names = ("pixels.safetensors", "answers.safetensors", "again")
    env = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
    done = run_ready(CLEAN_PROCESS, saved, *(folder / name for name in names), kind="stock", env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return pixels, load_file(folder / "answers.safetensors"), folder / "again"


# P-14: remote code fails on nested helper files and sub-packages, so the two files are flat and need no package.
def test_remote_code_gives_equal_answers_where_the_package_is_not_installed(ensemble, without_the_package):
    pixels, answers, _ = without_the_package
    mask = torch.tensor([1, 0, 1])
    with torch.no_grad():
        assert torch.allclose(answers["whole"], logits(ensemble, pixels), atol=1e-6)
        assert torch.allclose(answers["part"], logits(ensemble, pixels, sub_model_mask=mask), atol=1e-6)
        assert torch.allclose(answers["features"], ensemble.features(pixel_values=pixels), atol=1e-6)


# P-14: a folder saved again by a model that came through remote code may lack the .py files and load nowhere.
def test_a_folder_saved_again_by_remote_code_still_carries_the_code_and_loads(saved, without_the_package):
    _, answers, again = without_the_package
    for name in CODE_FILES:
        assert (again / name).read_bytes() == (saved / name).read_bytes()
    assert torch.equal(answers["again"], answers["whole"])


def test_no_question_about_remote_code_is_asked_where_the_package_is_installed(saved, monkeypatch):
    def ask(_prompt=""):
        raise AssertionError("transformers asked whether to trust remote code")

    monkeypatch.setattr("builtins.input", ask)
    model = AutoModelForImageClassification.from_pretrained(saved)
    assert type(model).__module__ == "edvit_hf.modeling_edvit"
    assert type(AutoModel.from_pretrained(saved)).__module__ == "edvit_hf.modeling_edvit"
