"""The cut model is the masked teacher, only smaller."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageClassification, ViTForImageClassification

from conftest import tiny_vit
from edvit_hf.configuration_edvit import OTHER_LABEL
from edvit_hf.errors import PruningError
from edvit_hf.pruning import (
    PruningPlan,
    UnitScores,
    make_plan,
    masked_forward,
    prune,
    unit_scores,
)
from edvit_hf.pruning.axes import VIT

FULL = {"keep_residual": 32, "keep_heads": 4, "keep_ffn": 64}
HALF = {"keep_residual": 16, "keep_heads": 2, "keep_ffn": 32}


def random_plan(model, seed=0, num_labels=None, **keep):
    scores = unit_scores(model, torch.zeros(1, 3, 8, 8), [0], method="random", seed=seed)
    return make_plan(scores, model.config, num_labels=num_labels, **(keep or HALF))


def images(num=3):
    return torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_keeping_everything_is_the_identity_bit_for_bit(teacher):
    pruned = prune(teacher, random_plan(teacher, **FULL), None)
    ours, theirs = pruned.state_dict(), teacher.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(pruned(images()).logits, teacher(images()).logits)
    assert pruned.config.to_dict() == teacher.config.to_dict()


def test_the_pruned_model_shares_no_memory_with_the_teacher(teacher):
    pruned, expected = prune(teacher, random_plan(teacher, **FULL), None), teacher(images()).logits
    for parameter in pruned.parameters():
        parameter.data.zero_()
    assert torch.equal(teacher(images()).logits, expected)


@settings(max_examples=12, deadline=None)
@given(heads=st.integers(1, 4), ffn=st.integers(1, 64), residual=st.integers(2, 32), seed=st.integers(0, 99))
def test_sliced_equals_masked(heads, ffn, residual, seed):
    model = tiny_vit(seed=seed)
    plan = random_plan(model, seed, keep_residual=residual, keep_heads=heads, keep_ffn=ffn)
    pruned = prune(model, plan, None)
    torch.testing.assert_close(pruned(images()).logits, masked_forward(model, plan, images()), rtol=1e-5, atol=1e-5)
    assert num_parameters(pruned) == plan.parameters_after


def test_masking_is_not_the_identity_so_that_the_comparison_means_something(teacher):
    difference = masked_forward(teacher, random_plan(teacher), images()) - teacher(images()).logits
    assert difference.abs().max() > 1e-2


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
    plan = random_plan(teacher, keep_residual=20, keep_heads=3, keep_ffn=10)
    pruned = prune(teacher, plan, None)
    assert pruned.config.head_dim == 8
    pruned.save_pretrained(tmp_path)
    assert torch.equal(ViTForImageClassification.from_pretrained(tmp_path)(images()).logits, pruned(images()).logits)


@pytest.mark.parametrize(("group", "names"), [([1, 3], ["class_1", "class_3", "other"]), ([2], ["class_2", "other"])])
def test_a_sub_model_names_its_classes_then_other_and_reloads_as_stock(teacher, tmp_path, group, names):
    pruned = prune(teacher, random_plan(teacher, num_labels=len(group) + 1), group)
    pruned.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is ViTForImageClassification
    assert loaded.config.id2label == dict(enumerate(names))
    assert loaded.config.label2id == {name: i for i, name in enumerate(names)}
    assert loaded.config.num_labels == len(names)
    assert torch.equal(loaded(images()).logits, pruned(images()).logits)


def test_predicted_parameters_equal_built_parameters(teacher):
    plan = random_plan(teacher, num_labels=3)
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


def scores_of(residual, heads, ffn):
    return UnitScores(np.array(residual, float), np.array(heads, float), np.array(ffn, float), "kl", 1)


def test_the_plan_keeps_the_highest_scores_of_every_layer_in_index_order():
    model = tiny_vit(hidden_size=4, num_heads=2, intermediate_size=3)
    scores = scores_of([0, 3, 1, 2], [[0, 1], [1, 0]], [[5, 1, 9], [1, 2, 3]])
    plan = make_plan(scores, model.config, keep_residual=2, keep_heads=1, keep_ffn=2)
    assert plan.kept_residual == [1, 3]
    assert plan.kept_heads == [[1], [0]]
    assert plan.kept_ffn == [[0, 2], [1, 2]]


def test_ties_go_to_the_lower_index():
    model = tiny_vit(hidden_size=4, num_heads=2, intermediate_size=3)
    scores = scores_of([1, 1, 1, 1], [[0, 0], [0, 0]], [[1, 2, 1], [0, 0, 0]])
    plan = make_plan(scores, model.config, keep_residual=3, keep_heads=1, keep_ffn=2)
    assert (plan.kept_residual, plan.kept_heads) == ([0, 1, 2], [[0], [0]])
    assert plan.kept_ffn == [[0, 1], [0, 1]]


@pytest.mark.parametrize("axis", list(FULL))
@pytest.mark.parametrize("keep", [0, -1, 1000, 2.0])
def test_a_number_to_keep_outside_the_teacher_is_refused_with_the_range(teacher, axis, keep):
    with pytest.raises(PruningError, match=rf"`{axis}` must lie in 1\.\.{FULL[axis]}.*choose"):
        random_plan(teacher, **{**FULL, axis: keep})


def test_scores_of_another_model_are_refused(teacher):
    scores = unit_scores(tiny_vit(num_layers=3), images(), [0], method="random")
    with pytest.raises(PruningError, match="score this teacher"):
        make_plan(scores, teacher.config, **HALF)


def test_the_plan_prints_what_stays(teacher):
    text = str(random_plan(teacher, num_labels=3))
    for part in (
        "vit, 2 layers",
        "16 / 32",
        "2 / 4",
        "32 / 64",
        "3 / 4",
        "50.0%",
        "8 dimensions each",
        "MiB",
    ):
        assert part in text, text
    assert f"{num_parameters(teacher):,} -> " in text


def test_a_plan_survives_json(teacher):
    plan = random_plan(teacher)
    assert PruningPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept_residual": [1, 0]}, "rising order"),
        ({"kept_residual": [0, 0]}, "rising order"),
        ({"kept_residual": []}, "kept_residual"),
        ({"kept_residual": [0, 32]}, r"0\.\.31"),
        ({"kept_residual": [-1, 3]}, r"0\.\.31"),
        ({"kept_residual": [0, 1.5]}, "whole numbers"),
        ({"kept_residual": [False, True]}, "whole numbers"),
        ({"kept_heads": [[0, 1], [2]]}, "equally many"),
        ({"kept_heads": [[0, 4], [0, 1]]}, r"kept_heads\[0\].*0\.\.3"),
        ({"kept_heads": [[0, 1]]}, "one entry"),
        ({"kept_ffn": None}, "kept_ffn"),
        ({"num_heads": 0}, "num_heads"),
        ({"schema_version": 2}, "schema_version"),
        ({"extra": 1}, "unknown .*extra"),
    ],
)
def test_a_damaged_plan_is_refused(teacher, change, message):
    values = {**json.loads(random_plan(teacher).to_json()), **change}
    with pytest.raises(PruningError, match=message):
        PruningPlan.from_json(json.dumps(values))


def test_text_that_is_no_plan_is_refused():
    for text in ("", "[]", "{}"):
        with pytest.raises(PruningError, match="plan"):
            PruningPlan.from_json(text)
