# SPDX-License-Identifier: Apache-2.0
"""Which units a plan keeps, how it is stored, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit_hf.architectures.axes import widths_of_heads, widths_of_ratios
from edvit_hf.architectures.tables import BERT, VIT
from edvit_hf.errors import PruningError
from edvit_hf.pruning import PruningPlan, UnitScores, make_plan
from edvit_hf.pruning.plan import head_groups, highest
from support.tiny_architectures import random_scores, tiny_model, tiny_vit

FULL = {"residual": 32, "heads": 4, "head_dim": 8, "ffn": 64, "labels": 4}


def plan_of(model, attention="whole", **widths):
    after = replace(VIT.widths(model.config), **({"residual": 16, "heads": 2, "ffn": 32} | widths))
    return make_plan(random_scores(model), model.config, after, attention=attention)


def small_plan(*scores, kind="whole", **widths):
    """Of a ViT with 4 residual channels, 2 heads of 2, 3 FFN units, 2 layers; `scores` in the order of `SCORES`."""
    model = tiny_vit(hidden_size=4, num_heads=2, intermediate_size=3)
    names = ("residual", "heads", "attention", "ffn")
    arrays = {name: np.array(values, float) for name, values in zip(names, scores, strict=True)}
    unit_scores = UnitScores(**arrays, pooled=None, method="kl", num_samples=1)
    return make_plan(unit_scores, model.config, replace(VIT.widths(model.config), **widths), attention=kind)


SCORES = ([0, 3, 1, 2], [[0, 1], [1, 0]], [[4, 3, 1, 2], [1, 2, 3, 4]], [[5, 1, 9], [1, 2, 3]])
EQUAL = ([1] * 4, [[0, 0]] * 2, [[0] * 4] * 2, [[1, 2, 1], [0, 0, 0]])


def test_the_plan_keeps_the_highest_scores_of_every_layer_in_index_order():
    plan = small_plan(*SCORES, residual=2, heads=1, ffn=2)
    assert plan.kept_residual == [1, 3]
    assert plan.kept_attention == [[2, 3], [0, 1]]
    assert plan.kept_ffn == [[0, 2], [1, 2]]


def test_thin_heads_keep_the_best_dimensions_of_every_head():
    plan = small_plan(*SCORES, kind="thin", head_dim=1)
    assert plan.kept_attention == [[0, 3], [1, 3]]
    assert plan.num_heads_after == 2


def test_merged_heads_keep_the_best_dimensions_of_their_group():
    plan = small_plan(*SCORES, kind="merged", heads=1)
    assert plan.kept_attention == [[0, 1], [2, 3]]
    assert (plan.num_heads_after, plan.widths_after.head_dim) == (1, 2)


def test_the_pooler_has_units_of_its_own():
    model = tiny_model("bert")
    scores = random_scores(model)
    widths = widths_of_heads(BERT.widths(model.config), 2, labels=3)
    plan = make_plan(scores, model.config, widths)
    assert plan.kept_pooled == highest(scores.pooled, 16)
    assert plan.kept_pooled != plan.kept_residual
    assert "pooler outputs" in str(plan)


def test_ties_go_to_the_lower_index():
    plan = small_plan(*EQUAL, residual=3, heads=1, ffn=2)
    assert (plan.kept_residual, plan.kept_attention) == ([0, 1, 2], [[0, 1], [0, 1]])
    assert plan.kept_ffn == [[0, 1], [0, 1]]


@given(scores=st.lists(st.integers(0, 5), min_size=1, max_size=20), data=st.data())
def test_nothing_that_goes_has_a_higher_score_than_what_stays(scores, data):
    keep = data.draw(st.integers(1, len(scores)))
    kept = highest(np.array(scores, float), keep)
    gone = set(range(len(scores))) - set(kept)
    assert kept == sorted(set(kept))
    assert len(kept) == keep
    assert min(scores[i] for i in kept) >= max((scores[i] for i in gone), default=0)


@given(before=st.integers(1, 16), data=st.data())
def test_merged_groups_are_neighbours_of_nearly_equal_number(before, data):
    groups = head_groups(before, data.draw(st.integers(1, before)))
    assert [head for group in groups for head in group] == list(range(before))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


@pytest.mark.parametrize("axis", list(FULL))
@pytest.mark.parametrize("keep", [0, -1, 1000, 2.0])
def test_a_width_outside_the_teacher_is_refused_with_the_range(teacher, axis, keep):
    widths = replace(VIT.widths(teacher.config), **{axis: keep})
    with pytest.raises(PruningError, match=rf"`{axis}` .* must lie in 1\.\.{FULL[axis]}.*choose"):
        make_plan(random_scores(teacher), teacher.config, widths)


@pytest.mark.parametrize(("kind", "name", "changes"), [("whole", "head_dim", {"head_dim": 4}), ("thin", "heads", {})])
def test_a_width_that_the_kind_of_attention_keeps_may_not_change(teacher, kind, name, changes):
    with pytest.raises(PruningError, match=f"{kind} heads keeps `{name}`"):
        plan_of(teacher, kind, **changes)


def test_a_merged_head_may_be_as_large_as_its_smallest_group(teacher):
    assert plan_of(teacher, "merged", heads=2, head_dim=16).kept_attention == [list(range(32))] * 2
    with pytest.raises(PruningError, match=r"`head_dim` .* 1\.\.8"):
        plan_of(teacher, "merged", heads=3, head_dim=9)


def test_an_unknown_kind_of_attention_is_refused(teacher):
    with pytest.raises(PruningError, match="whole, thin, merged"):
        plan_of(teacher, "narrow")


def test_a_keep_that_rounds_to_zero_heads_is_refused(teacher):
    with pytest.raises(PruningError, match=r"A ratio of 0\.126 is enough"):
        widths_of_ratios(VIT.widths(teacher.config), 0.5, 0.1, 0.5, labels=4)
    with pytest.raises(PruningError, match="between 1 and the teacher's 4 heads"):
        widths_of_heads(VIT.widths(teacher.config), 0, labels=4)


def test_scores_of_another_model_are_refused(teacher):
    widths = VIT.widths(teacher.config)
    with pytest.raises(PruningError, match=r"attention scores should have shape \(2, 32\).*score this teacher"):
        make_plan(random_scores(tiny_vit(num_layers=3)), teacher.config, widths)
    pooled = replace(random_scores(teacher), pooled=np.zeros(32))
    with pytest.raises(PruningError, match="pooled scores should have shape None"):
        make_plan(pooled, teacher.config, widths)


def test_scores_that_are_no_numbers_are_refused(teacher):
    scores = random_scores(teacher)
    with pytest.raises(PruningError, match="not finite"):
        replace(scores, attention=np.full_like(scores.attention, np.nan))


@pytest.mark.parametrize(
    ("kind", "widths", "parts"),
    [
        ("whole", {}, ("2 / 4", "50.0%", "8 dimensions each")),
        ("thin", {"heads": 4, "head_dim": 3}, ("4 / 4", "12 / 32", "thin: 3 dimensions each, was 8")),
        ("merged", {}, ("2 / 4", "merged: 8 dimensions each, from up to 2 old heads")),
    ],
)
def test_the_plan_prints_what_stays(teacher, kind, widths, parts):
    text = str(plan_of(teacher, kind, labels=3, **widths))
    for part in ("vit, 2 layers", "16 / 32", "32 / 64", "3 / 4", "MiB", *parts):
        assert part in text, text
    assert f"{sum(p.numel() for p in teacher.parameters()):,} -> " in text


@pytest.mark.parametrize(("kind", "head_dim"), [("whole", 8), ("merged", 8), ("merged", 5)])
def test_a_plan_survives_json(teacher, kind, head_dim):
    plan = plan_of(teacher, kind, head_dim=head_dim)
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


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
        ({"kept_attention": [[*range(16)], [*range(8)]]}, "equally many"),
        ({"kept_attention": [[*range(8), *range(25, 33)], [*range(16)]]}, r"kept_attention\[0\].*0\.\.31"),
        ({"kept_attention": [[*range(16)], [*range(1, 17)]]}, r"kept_attention\[1\].*2 whole heads out of 4"),
        ({"kept_attention": [[*range(15)]] * 2}, "one size"),
        ({"kept_attention": [[*range(16)]]}, "one entry"),
        ({"attention": "thin"}, "2 thin heads"),
        ({"attention": "merged", "kept_attention": [[*range(16)]] * 2}, "2 merged heads"),
        ({"attention": "narrow"}, "attention"),
        ({"num_heads_after": 3}, "one size"),
        ({"kept_ffn": None}, "kept_ffn"),
        ({"kept_pooled": [0, 1]}, "as many outputs"),
        ({"num_heads": 0}, "num_heads"),
        ({"schema_version": 1}, "schema_version 2, got schema_version 1"),
        ({"extra": 1}, "unknown .*extra"),
    ],
)
def test_a_damaged_plan_is_refused(teacher, change, message):
    values = {**plan_of(teacher).to_dict(), **change}
    with pytest.raises(PruningError, match=message):
        PruningPlan.from_dict(values)


def test_values_that_are_no_plan_are_refused():
    for values in (None, [], {}):
        with pytest.raises(PruningError, match="plan"):
            PruningPlan.from_dict(values)
