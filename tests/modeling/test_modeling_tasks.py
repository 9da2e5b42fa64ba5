# SPDX-License-Identifier: Apache-2.0
"""Ensembles for images, audio and text share one behaviour: stock answers, unlike sub-models, exact saving."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModel, BertModel, Trainer, TrainingArguments

import edvit_hf
from edvit_hf import files_edvit, modeling_edvit, tasks
from edvit_hf.auto import EDViTModel, ensemble_class, stock_auto_class
from edvit_hf.modeling_edvit import forward_sub_model
from edvit_hf.tasks import MAIN_INPUT, TASKS
from support.tiny_architectures import ARCHITECTURE_NAMES, TEXT, tiny_inputs, tiny_model
from support.torch_ensemble import GROUPS, NAMES, NUM_SUB_MODELS, mixed_ensemble, mixed_inputs, mixed_sub_models

TEXT_TASK = "text-classification"
every_task = pytest.mark.parametrize("task", TASKS)
every_class = pytest.mark.parametrize(("task", "cls"), [(t, c) for t in TASKS for c in (ensemble_class(t), EDViTModel)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One saved ensemble per task, with a file of every name that a processor may have beside it."""
    root = tmp_path_factory.mktemp("saved")
    for task in TASKS:
        (root / task).mkdir()
        for name in tasks.PROCESSOR_FILES:
            (root / task / name).write_text(f'"{name} of {task}"')
        mixed_ensemble(task).save_pretrained(root / task)
    return root


def stock_encoder(model):
    return getattr(model, model.base_model_prefix)


def equal_state(a, b):
    """Parameters and every buffer, saved or not, are the same bit for bit."""
    tensors = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in (a, b)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0])


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(ARCHITECTURE_NAMES),
    seed=st.integers(0, 99),
    rows=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    training=st.booleans(),
)
@torch.no_grad()
def test_one_pass_gives_the_stock_logits_and_the_mean_of_the_leading_tokens(kind, seed, rows, dtype, training):
    model = tiny_model(kind, seed=seed).to(dtype).train(training)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny_inputs(kind, rows, seed).items()}
    passes = []
    stock_encoder(model).register_forward_hook(lambda *_: passes.append(1))
    torch.manual_seed(seed)  # dropout draws the same
    feature, vote = forward_sub_model(model, inputs)
    assert len(passes) == 1
    torch.manual_seed(seed)
    assert torch.equal(vote, model(**inputs).logits)
    torch.manual_seed(seed)
    tokens = 2 if kind == "audio-spectrogram-transformer" else 1
    hidden = stock_encoder(model)(**inputs).last_hidden_state
    assert torch.equal(feature, hidden[:, :tokens].float().mean(dim=1).to(dtype))


@torch.no_grad()
def test_token_types_reach_only_the_sub_models_that_know_them():
    inputs = tiny_inputs("bert")
    typed = {**inputs, "token_type_ids": torch.ones_like(inputs["input_ids"])}
    bert, distilbert = (tiny_model(kind) for kind in TEXT)
    assert torch.equal(forward_sub_model(bert, typed)[1], bert(**typed).logits)
    assert not torch.equal(forward_sub_model(bert, typed)[1], forward_sub_model(bert, inputs)[1])
    assert torch.equal(forward_sub_model(distilbert, typed)[1], distilbert(**inputs).logits)
    ensemble = mixed_ensemble(TEXT_TASK)
    assert not torch.equal(ensemble(**typed).logits, ensemble(**inputs).logits)


@every_task
@torch.no_grad()
def test_unlike_sub_models_answer_side_by_side_as_the_stock_models_do(task):
    subs, inputs = mixed_sub_models(task), mixed_inputs(task)
    ensemble = mixed_ensemble(task)
    assert ensemble.feature_sizes == [sub.config.hidden_size for sub in subs]
    assert len(set(ensemble.feature_sizes)) == NUM_SUB_MODELS
    features, votes = ensemble.features_and_votes(**inputs)
    for sub, vote, feature in zip(subs, votes, features.split(ensemble.feature_sizes, dim=1), strict=True):
        assert torch.equal(vote, sub(**inputs).logits)
        assert torch.equal(feature, forward_sub_model(sub, inputs)[0])
    assert torch.equal(ensemble.features(**inputs), features)
    assert all(torch.equal(a, b) for a, b in zip(ensemble.votes(**inputs), votes, strict=True))


# P-8: exported graphs know stock output classes only.
# P-9: no tensor but loss and logits is gathered by evaluation loops.
@every_task
@torch.no_grad()
def test_every_classifier_returns_stock_outputs_with_cross_entropy(task):
    ensemble, inputs, labels = mixed_ensemble(task), mixed_inputs(task), torch.tensor([0, 4, 2, 1])
    output = ensemble(**inputs, labels=labels)
    assert output.logits.shape == (4, len(NAMES))
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, labels))
    assert type(output).__module__ == "transformers.modeling_outputs"
    assert list(output) == ["loss", "logits"]
    hidden = ensemble(**inputs, sub_model_mask=torch.tensor([0, 1, 1])).logits
    assert not torch.allclose(hidden, output.logits)
    assert torch.equal(ensemble(*inputs.values()).logits, output.logits)  # main input first, as in stock models


# P-9: the same through a Trainer, which also drops columns that `forward` does not name.
@every_task
def test_a_trainer_predicts_with_every_classifier(task, tmp_path):
    ensemble, inputs = mixed_ensemble(task), mixed_inputs(task)
    rows = [{**{name: tensor[i] for name, tensor in inputs.items()}, "labels": i} for i in range(4)]
    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=3, report_to=[], use_cpu=True, disable_tqdm=True)
    predicted = Trainer(model=ensemble, args=arguments).predict(rows).predictions
    with torch.no_grad():
        assert np.allclose(predicted, ensemble(**inputs).logits, atol=1e-5)


@torch.no_grad()
def test_padding_does_not_change_the_answer_to_a_text():
    ensemble, inputs = mixed_ensemble(TEXT_TASK), mixed_inputs(TEXT_TASK)
    expected = ensemble(**inputs).logits
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()}
        assert torch.allclose(ensemble(**alone).logits[0], expected[row], atol=1e-4)
        assert torch.allclose(ensemble(input_ids=alone["input_ids"]).logits[0], expected[row], atol=1e-4)


def test_a_text_longer_than_the_shortest_sub_model_reads_is_refused():
    ensemble = mixed_ensemble(TEXT_TASK)
    assert ensemble.config.max_position_embeddings == 16
    assert ensemble(input_ids=torch.ones(1, 16, dtype=torch.long)).logits.isfinite().all()
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        ensemble(input_ids=torch.ones(1, 17, dtype=torch.long))


@every_task
def test_the_main_input_is_known_to_class_and_instance(task):
    for model in (mixed_ensemble(task), mixed_ensemble(task, EDViTModel)):
        assert model.main_input_name == MAIN_INPUT[task]
        assert model.task == model.config.task == task
        assert model.input_modalities == (task.split("-")[0],)
    assert ensemble_class(task).main_input_name == MAIN_INPUT[task]
    assert stock_auto_class(task).from_config(mixed_sub_models(task)[0].config).main_input_name == MAIN_INPUT[task]
    assert getattr(edvit_hf, ensemble_class(task).__name__) is ensemble_class(task)


@every_task
def test_inputs_of_another_task_are_refused_by_name(task):
    model, own = mixed_ensemble(task, EDViTModel), MAIN_INPUT[task]
    for other in set(TASKS) - {task}:
        for inputs in (mixed_inputs(other), {**mixed_inputs(task), **mixed_inputs(other)}):
            with pytest.raises(ValueError, match=f"Expected `{own}` .*got .*{MAIN_INPUT[other]}.*does {task}"):
                model(**inputs)
    with pytest.raises(ValueError, match=f"Expected `{own}` .*got nothing"):
        model()


@every_task
def test_a_class_for_another_task_is_refused(task, folders):
    for other in set(TASKS) - {task}:
        message = f"sub-models for {other} in `{ensemble_class(other).__name__}`, got sub-models for {task}.*Use `Auto"
        with pytest.raises(ValueError, match=message):
            mixed_ensemble(task, ensemble_class(other))
        for sub_models in (None, [0]):
            with pytest.raises(ValueError, match=message):
                stock_auto_class(other).from_pretrained(folders / task, sub_models=sub_models)


def test_a_text_model_without_a_vote_is_refused():
    subs = mixed_sub_models(TEXT_TASK)
    subs[0] = BertModel(subs[0].config)
    with pytest.raises(ValueError, match=r"`BertForSequenceClassification`, which can vote.*ForSequenceClassification"):
        ensemble_class(TEXT_TASK).from_sub_models(subs, GROUPS, id2label=dict(enumerate(NAMES)))


# P-3: without `post_init()` at the end of __init__ a class saves and then does not load.
# P-4: loaded weights must not be initialised again.
# P-5: buffers that are not saved (BERT's position ids) must come back filled, not with what memory held.
@every_class
@torch.no_grad()
def test_every_public_class_comes_back_bit_for_bit(task, cls, tmp_path):
    model, inputs = mixed_ensemble(task, cls), mixed_inputs(task)
    model.save_pretrained(tmp_path)
    auto = AutoModel if cls is EDViTModel else stock_auto_class(task)
    for loaded in (cls.from_pretrained(tmp_path), auto.from_pretrained(tmp_path)):
        assert type(loaded) is cls
        assert equal_state(loaded, model)
        assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])


@every_class
@pytest.mark.parametrize("sub_models", [[0], [2, 1]])
@torch.no_grad()
def test_every_public_class_loads_in_part(task, cls, sub_models, folders, tmp_path):
    folder = Path(shutil.copytree(folders / task, tmp_path / "copy"))
    kept = {folder / "config.json", folder / "fusion.safetensors"}
    kept |= {folder / f"sub_models/{i:02d}/model.safetensors" for i in sub_models}
    for path in folder.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    part, inputs = cls.from_pretrained(folder, sub_models=sub_models), mixed_inputs(task)
    whole = cls.from_pretrained(folders / task)
    mask = torch.tensor([i in sub_models for i in range(NUM_SUB_MODELS)])
    assert torch.equal(part(**inputs)[0], whole(**inputs, sub_model_mask=mask)[0])
    assert [vote is not None for vote in part.votes(**inputs)] == mask.tolist()


@every_task
@torch.no_grad()
def test_a_sub_model_folder_is_a_stock_model_with_its_processor(task, folders):
    inputs, votes = mixed_inputs(task), mixed_ensemble(task).votes(**mixed_inputs(task))
    for i, expected in enumerate(mixed_sub_models(task)):
        folder = folders / task / f"sub_models/{i:02d}"
        model = stock_auto_class(task).from_pretrained(folder)
        assert type(model) is type(expected)
        assert torch.equal(model(**inputs).logits, votes[i])
        assert list(model.config.id2label.values()) == [*(NAMES[c] for c in GROUPS[i]), "other"]
        for name in tasks.PROCESSOR_FILES:
            assert (folder / name).read_text() == f'"{name} of {task}"'


def test_the_file_that_travels_names_the_same_processor_files():
    assert files_edvit.PROCESSOR_FILES == tasks.PROCESSOR_FILES
    assert set(modeling_edvit.STOCK_AUTO_CLASSES) == set(TASKS)
    assert {task: names[0] for task, names in modeling_edvit.INPUT_NAMES.items()} == MAIN_INPUT
    assert set(tasks.PREPROCESSING_FILE.values()) <= set(tasks.PROCESSOR_FILES)


@every_task
def test_pushing_uploads_every_file_that_was_saved(task, folders, monkeypatch):
    sent = {}
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **options: sent.update(options))
    mixed_ensemble(task)._upload_modified_files(folders / task, "org/tiny", files_timestamps={})
    files = [p.relative_to(folders / task).as_posix() for p in (folders / task).rglob("*") if p.is_file()]
    assert {"tokenizer.json", "preprocessor_config.json", "parts_edvit.py"} < set(files)
    others = ["checkpoint-1/tokenizer.json", "train.jsonl", "vocab.txt.bak"]
    assert sorted(filter_repo_objects(files + others, allow_patterns=sent["allow_patterns"])) == sorted(files)


# P-2: precision and attention reach a list of sub-models only if they are handed on.
@every_task
def test_precision_and_attention_reach_sub_models_of_every_kind(task, folders):
    model = ensemble_class(task).from_pretrained(folders / task, dtype=torch.bfloat16, attn_implementation="eager")
    assert {m.config._attn_implementation for m in (model, *model.sub_models)} == {"eager"}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in mixed_inputs(task).items()}
    assert model(**inputs).logits.dtype == torch.bfloat16


# P-6: tensors that sub-models share would make `save_pretrained` refuse the ensemble.
def test_word_embeddings_that_sub_models_share_are_shared_no_more(tmp_path):
    subs = mixed_sub_models(TEXT_TASK)
    subs[2] = mixed_sub_models(TEXT_TASK)[0]
    subs[2].bert.embeddings = subs[0].bert.embeddings
    subs[2].classifier = torch.nn.Linear(32, 2)
    subs[2].config.id2label, subs[2].config.label2id = {0: "dog", 1: "other"}, {"dog": 0, "other": 1}
    ensemble = ensemble_class(TEXT_TASK).from_sub_models(subs, GROUPS, id2label=dict(enumerate(NAMES)))
    ensemble.save_pretrained(tmp_path)
    assert equal_state(ensemble_class(TEXT_TASK).from_pretrained(tmp_path), ensemble)


# P-7: settings of sub-models inside a ModuleList are not gathered by `post_init`.
@every_task
def test_blocks_that_may_not_be_split_are_those_of_every_sub_model(task):
    ensemble = mixed_ensemble(task)
    expected = set().union(*(sub._no_split_modules for sub in mixed_sub_models(task)))
    assert expected
    assert set(ensemble._no_split_modules) == expected


# P-10: a size that an architecture ignores is found out when the sub-model is built.
@pytest.mark.parametrize("kind", ARCHITECTURE_NAMES)
def test_attention_of_every_kind_is_compared_with_its_config(kind, monkeypatch):
    task = next(task for task in TASKS if MAIN_INPUT[task] in tiny_inputs(kind))
    config = tiny_model(kind, num_labels=2).config
    edvit = edvit_hf.EDViTConfig(sub_model_configs=[config.to_dict()], class_groups=[[0]])
    assert ensemble_class(task)(edvit).feature_sizes == [32]
    wide = {"dim": 64} if kind == "distilbert" else {"hidden_size": 64}
    other = tiny_model(kind, num_labels=2, **wide)
    monkeypatch.setattr(stock_auto_class(task), "from_config", lambda _config: other)
    with pytest.raises(ValueError, match=r"attention width 32, got \[64\]"):
        ensemble_class(task)(edvit)


@every_task
def test_checkpointing_activations_changes_no_gradient(task):
    inputs, labels, gradients, runs = mixed_inputs(task), torch.tensor([0, 4, 2, 1]), [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)  # the fusion head's weights, and every dropout after them
        ensemble = mixed_ensemble(task, sub_model_dropout=0.0).train()
        assert ensemble.supports_gradient_checkpointing
        if checkpointing:
            ensemble.activation_checkpointing_enable()
        passes: list[str] = []
        for sub in ensemble.sub_models:
            query = next(m for name, m in sub.named_modules() if name.endswith(("q_proj", "q_lin", "query")))
            query.register_forward_hook(lambda *_, seen=passes: seen.append("query"))
        ensemble(**inputs, labels=labels).loss.backward()
        runs.append(len(passes))
        gradients.append({name: p.grad for name, p in ensemble.named_parameters() if p.grad is not None})
    assert runs == [NUM_SUB_MODELS, 2 * NUM_SUB_MODELS]  # computed once more in the backward pass
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][k], gradients[1][k], atol=1e-6) for k in gradients[0])
    assert any(g.abs().max() > 0 for k, g in gradients[0].items() if k.startswith("sub_models.1."))


# P-8: the exported forward of the other classes, too, takes batches, and texts, of other sizes.
@pytest.mark.parametrize("task", ["audio-classification", TEXT_TASK])
@torch.no_grad()
def test_exported_classifiers_answer_other_sizes(task):
    ensemble = mixed_ensemble(task)
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=16)
    example = {**mixed_inputs(task, 3), "sub_model_mask": torch.ones(3, NUM_SUB_MODELS)}
    dynamic = {0: batch, 1: length} if task == TEXT_TASK else {0: batch}
    shapes = {name: dynamic if name in mixed_inputs(task) else {0: batch} for name in example}
    program = torch.export.export(ensemble, (), kwargs=example, dynamic_shapes=shapes).module()
    for size, cut in ((1, 5), (5, 9)):
        inputs = {name: t[:, :cut] if task == TEXT_TASK else t for name, t in mixed_inputs(task, size).items()}
        mask = torch.randint(0, 2, (size, NUM_SUB_MODELS)).float()
        answer = program(**inputs, sub_model_mask=mask)
        assert torch.allclose(answer.logits, ensemble(**inputs, sub_model_mask=mask).logits, atol=1e-4)
