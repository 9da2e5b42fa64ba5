# SPDX-License-Identifier: Apache-2.0
"""What a cut model is beside its weights: class, labels, config, memory. Every architecture: test_architectures.py."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTForImageClassification

from edvit_hf.architectures.tables import VIT
from edvit_hf.configuration_edvit import OTHER_LABEL
from edvit_hf.errors import PruningError
from edvit_hf.pruning import make_plan, prune
from support.masked_teacher import masked_forward
from support.tiny_architectures import random_scores, tiny_model, tiny_vit

FULL = {"residual": 32, "heads": 4, "ffn": 64}
HALF = {"residual": 16, "heads": 2, "ffn": 32}


def random_plan(model, **widths):
    return make_plan(random_scores(model), model.config, replace(VIT.widths(model.config), **{**HALF, **widths}))


def images(num=3):
    return torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_the_pruned_model_shares_no_memory_with_the_teacher(teacher):
    pruned, expected = prune(teacher, random_plan(teacher, **FULL), None), teacher(images()).logits
    for parameter in pruned.parameters():
        parameter.data.zero_()
    assert torch.equal(teacher(images()).logits, expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_class_device_mode_and_attention_follow_the_teacher(teacher, implementation):
    teacher.set_attn_implementation(implementation)
    pruned = prune(teacher.train().double(), random_plan(teacher), [0])
    assert type(pruned) is ViTForImageClassification
    assert pruned.training
    assert pruned.dtype == torch.float64
    assert pruned.config._attn_implementation == implementation


def test_pruning_draws_nothing_from_the_callers_generator(teacher):
    plan, state = random_plan(teacher), torch.get_rng_state()
    prune(teacher, plan, [1])
    assert torch.equal(torch.get_rng_state(), state)


def test_whole_heads_leave_a_plain_config(teacher):
    config = prune(teacher, random_plan(teacher), None).config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (16, 2, 32)
    assert config.pooler_output_size == 16
    assert "head_dim" not in config.to_dict()


def test_parted_widths_are_written_as_head_dim_and_survive_saving(teacher, tmp_path):
    plan = random_plan(teacher, residual=20, heads=3, ffn=10)
    pruned = prune(teacher, plan, None)
    assert pruned.config.head_dim == 8
    pruned.save_pretrained(tmp_path)
    assert torch.equal(ViTForImageClassification.from_pretrained(tmp_path)(images()).logits, pruned(images()).logits)


@pytest.mark.parametrize(("group", "names"), [([1, 3], ["class_1", "class_3", "other"]), ([2], ["class_2", "other"])])
def test_a_sub_model_names_its_classes_then_other_and_reloads_as_stock(teacher, tmp_path, group, names):
    pruned = prune(teacher, random_plan(teacher, labels=len(group) + 1), group)
    pruned.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is ViTForImageClassification
    assert loaded.config.id2label == dict(enumerate(names))
    assert loaded.config.label2id == {name: i for i, name in enumerate(names)}
    assert loaded.config.num_labels == len(names)
    assert torch.equal(loaded(images()).logits, pruned(images()).logits)


def test_predicted_parameters_equal_built_parameters(teacher):
    plan = random_plan(teacher, labels=3)
    assert num_parameters(teacher) == plan.parameters_before
    assert num_parameters(prune(teacher, plan, [0, 2])) == plan.parameters_after


def test_group_logits_are_the_teachers_and_other_starts_at_the_pooled_mean(teacher):
    pruned = prune(teacher, random_plan(teacher, **FULL), [3, 1])
    ours, theirs = pruned(images()).logits, teacher(images()).logits
    torch.testing.assert_close(ours[:, :2], theirs[:, [3, 1]])
    torch.testing.assert_close(ours[:, 2], theirs[:, [0, 2]].mean(dim=1) + math.log(2))
    assert (ours[:, 2] <= theirs[:, [0, 2]].logsumexp(dim=1) + 1e-5).all()


def test_other_equals_the_pooled_logit_when_the_pooled_logits_agree(teacher):
    teacher.classifier.weight.data[2] = teacher.classifier.weight.data[0]
    teacher.classifier.bias.data[[0, 2]] = 0.3
    pruned = prune(teacher, random_plan(teacher, **FULL), [1, 3])
    expected = teacher(images()).logits[:, [0, 2]].logsumexp(dim=1)
    torch.testing.assert_close(pruned(images()).logits[:, 2], expected)


def test_a_group_of_all_classes_has_no_other(teacher):
    pruned = prune(teacher, random_plan(teacher), [0, 1, 2, 3])
    assert pruned.config.id2label == teacher.config.id2label
    assert OTHER_LABEL not in pruned.config.label2id


def test_a_class_named_other_is_refused(teacher):
    teacher.config.id2label = {0: "a", 1: OTHER_LABEL, 2: "c", 3: "d"}
    with pytest.raises(PruningError, match="Rename it"):
        prune(teacher, random_plan(teacher), [1, 2])


@pytest.mark.parametrize("group", [[], [1, 1], [4]])
def test_a_bad_class_group_is_refused(teacher, group):
    with pytest.raises(PruningError, match="distinct labels"):
        prune(teacher, random_plan(teacher), group)


def test_a_plan_for_another_teacher_is_refused(teacher):
    plan = random_plan(tiny_vit(num_layers=3))
    with pytest.raises(PruningError, match="made for vit"):
        prune(teacher, plan, None)
    with pytest.raises(PruningError, match="made for vit"):
        masked_forward(teacher, plan, images())


def test_a_width_that_the_model_ignores_is_refused(teacher, monkeypatch):
    plan = random_plan(teacher)
    monkeypatch.setattr(type(VIT), "set_widths", lambda _self, config, widths: setattr(config, "hidden_size", 16))
    with pytest.raises(PruningError, match=r"fc1.*should have shape \(32, 16\).*built \(64, 16\)"):
        prune(teacher, plan, None)


def test_the_masked_teacher_answers_without_dropout_in_any_mode():
    model = tiny_model("vit", hidden_dropout_prob=0.5)
    plan = make_plan(random_scores(model), model.config, replace(VIT.widths(model.config), heads=2))
    expected = masked_forward(model, plan, images())
    assert torch.equal(masked_forward(model.train(), plan, images()), expected)
    assert model.training


class WithTable(ViTForImageClassification):
    """Holds a table of the residual width that is not saved."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("table", torch.arange(config.hidden_size), persistent=False)


def test_an_unsaved_buffer_that_would_need_a_cut_is_refused(teacher):
    model = WithTable(teacher.config)
    assert torch.equal(prune(model, random_plan(model, **FULL), None).table, model.table)
    with pytest.raises(PruningError, match=r"'table' has shape \(16,\) .* and \(32,\) in the teacher"):
        prune(model, random_plan(model), None)
