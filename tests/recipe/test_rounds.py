# SPDX-License-Identifier: Apache-2.0
"""Iterative pruning: the sizes of each round, and a trip that goes through several."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.architectures.axes import Widths, widths_of_heads
from edvit_hf.data.contents import FileHashes
from edvit_hf.errors import RecipeError
from edvit_hf.recipe import STAGES, run
from edvit_hf.recipe.running import stage_dir, stages_of
from edvit_hf.recipe.stages.plan import round_widths
from edvit_hf.recipe.staging import key_of
from edvit_hf.recipe.trip import load_model
from support.tiny_recipe import tiny_recipe

FOUR_HEADS = {
    "teacher": {
        "from_scratch": {
            "model_type": "vit",
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "patch_size": 4,
        },
        "epochs": 1,
    },
    "fuse": {"epochs": 1},
}


def teacher_widths(heads=12, head_dim=8):
    return Widths(
        residual=heads * head_dim, heads=heads, head_dim=head_dim, ffn=4 * heads * head_dim, labels=10, layers=2
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 24).flatmap(lambda h: st.tuples(st.just(h), st.integers(1, h - 1))), st.data())
def test_every_round_removes_a_head_and_the_last_one_arrives(sizes, data):
    heads, keep = sizes
    rounds = data.draw(st.integers(1, heads - keep))
    before = teacher_widths(heads)
    after = widths_of_heads(before, keep, labels=3)
    widths = round_widths(before, after, rounds)
    assert len(widths) == rounds
    assert widths[-1] == after
    counts = [heads, *(w.heads for w in widths)]
    assert all(a > b for a, b in pairwise(counts))
    for w in widths:
        assert w.labels == 3
        assert w.head_dim == before.head_dim
        assert w.residual == w.heads * w.head_dim  # the tie that BERT needs survives every round
        assert w.ffn == 4 * w.residual


def test_the_keep_shrinks_geometrically():
    before = teacher_widths(16)
    assert [w.heads for w in round_widths(before, widths_of_heads(before, 2, labels=3), 3)] == [8, 4, 2]


def test_thin_heads_shrink_in_their_dimensions():
    before = teacher_widths(4, 16)
    after = widths_of_heads(before, 1, attention="thin", labels=3)
    widths = round_widths(before, after, 2)
    assert [(w.heads, w.head_dim, w.residual) for w in widths] == [(4, 8, 32), (4, 4, 16)]


def test_rounds_of_ratios_that_leave_attention_whole_still_shrink():
    before = teacher_widths(4, 16)
    widths = round_widths(before, replace(before, ffn=64, labels=3), 2)
    assert [(w.heads, w.residual, w.ffn) for w in widths] == [(4, 64, 128), (4, 64, 64)]


def test_one_round_is_the_plain_cut():
    before = teacher_widths()
    assert round_widths(before, before, 1) == [before]


def test_more_rounds_than_heads_to_remove_names_the_most_possible():
    before = teacher_widths()
    with pytest.raises(RecipeError, match="at most 3 rounds"):
        round_widths(before, widths_of_heads(before, 9, labels=3), 4)


def test_impossible_rounds_are_refused_before_any_training(tmp_path):
    with pytest.raises(RecipeError, match=r"prune.rounds. is 2, but only 1 of 2 heads"):
        run(tiny_recipe(tmp_path, prune={"rounds": 2}), tmp_path / "work")
    assert not (stage_dir(tmp_path / "work", "teacher") / "checkpoints").exists()


def test_rounds_leave_every_key_of_a_single_round_alone(tmp_path):
    plain, one = tiny_recipe(tmp_path / "a"), tiny_recipe(tmp_path / "b", prune={"rounds": 1})
    assert stages_of(plain) == STAGES
    needs = {"plan.keep_heads": "1"} | {stage.name: "x" for stage in STAGES}
    assert [key_of(s, plain, needs, None) for s in STAGES] == [key_of(s, one, needs, None) for s in STAGES]


@pytest.fixture(scope="module")
def iterated(tmp_path_factory):
    """A trip of three rounds up to the distill stage: (its folder, work directory). Read only."""
    folder = tmp_path_factory.mktemp("rounds")
    recipe = tiny_recipe(folder, prune={"keep_heads": 1, "rounds": 3, "round_epochs": 1}, **FOUR_HEADS)
    stages = [s.name for s in stages_of(recipe)]
    run(recipe, folder / "work", stages=stages[: stages.index("evaluate")])
    return folder, folder / "work"


def test_each_round_cuts_what_the_last_retraining_left(iterated):
    _, work = iterated
    folders = ["04_prune_round1", "05_retrain_round1", "04_prune_round2", "05_retrain_round2", "04_prune", "05_distill"]
    heads = [load_model(work / f / "sub_models/00").config.num_attention_heads for f in folders]
    assert heads == [3, 3, 2, 2, 1, 1]
    final = load_model(work / "05_distill/sub_models/01").config
    assert final.id2label[final.num_labels - 1] == "other"
    assert final.num_labels == 6
    assert (work / "06_fuse/ensemble/fusion.safetensors").is_file()
    plans = [json.loads((work / f / "pruning_plan_00.json").read_text()) for f in folders[::2]]
    assert [len(p["kept_residual"]) for p in plans] == [12, 8, 4]


def test_rounds_are_skipped_when_done_and_share_the_teacher_outputs(iterated):
    folder, work = iterated
    recipe = tiny_recipe(folder, prune={"keep_heads": 1, "rounds": 3, "round_epochs": 1}, **FOUR_HEADS)
    stages = [s.name for s in stages_of(recipe)]
    records = run(recipe, work, stages=stages[: stages.index("evaluate")])
    assert all(record.skipped for record in records)
    assert [r.name for r in records][3:8] == [
        "prune_round1",
        "retrain_round1",
        "prune_round2",
        "retrain_round2",
        "prune",
    ]
    assert [path.name for path in work.rglob("outputs_*.safetensors")] == ["outputs_2_views.safetensors"]
    with pytest.raises(RecipeError, match="unknown stages"):
        run(recipe, work, stages=["prune_round3"])


@pytest.mark.parametrize(
    ("section", "value", "untouched"),
    [
        ("distill", {"epochs": 3}, "prune"),
        ("distill", {"learning_rate": 0.002}, "prune_round1"),
        ("prune", {"round_epochs": 2}, "plan"),
    ],
)
def test_a_changed_value_re_runs_from_the_round_that_reads_it(tmp_path, section, value, untouched):
    prune = {"keep_heads": 1, "rounds": 2, "round_epochs": 1}

    def keys(folder, **changes):
        recipe, found = tiny_recipe(folder, **(FOUR_HEADS | changes)), {"plan.keep_heads": "1"}
        for stage in stages_of(recipe):
            found[stage.name] = key_of(stage, recipe, found, stage.sources(recipe, FileHashes()))
        return found

    before = keys(tmp_path / "a", prune=prune)
    after = keys(tmp_path / "b", **({"prune": prune} | {section: (prune if section == "prune" else {}) | value}))
    same = [name for name in before if before[name] == after[name] and name != "plan.keep_heads"]
    assert same[-1] == untouched
