# SPDX-License-Identifier: Apache-2.0
"""Strategies are presets of recipe values; `auto` trains what is worth trying and keeps what wins on validation."""

import dataclasses
import json

import pytest
import yaml

from edvit_hf.errors import RecipeError
from edvit_hf.recipe import load_recipe, run
from edvit_hf.recipe.choosing import is_worth_trying
from edvit_hf.recipe.running import ensemble_dir, stage_dir, stages_of
from edvit_hf.recipe.strategies import BASE, AutoConfig, as_strategy
from edvit_hf.storage import read_json
from support.tiny_recipe import tiny_recipe, write_tiny_recipe

PRESETS = ("replicas", "copies", "overlap", "generalists")


@pytest.mark.parametrize("name", PRESETS)
def test_a_strategy_is_nothing_but_recipe_values(tmp_path, name):
    joint = {"joint": True, "joint_epochs": 3}
    recipe = tiny_recipe(tmp_path, fuse=joint)
    changed = as_strategy(recipe, name)
    assert (changed.strategy, changed.asked) == ("split", name)
    assert as_strategy(changed, changed.strategy) == changed  # applied again it changes nothing
    kinds = {"replicas": "average", "copies": "average", "overlap": "mlp", "generalists": "residual"}
    assert changed.fuse.kind == kinds[name]
    assert changed.split.num_sub_models == (1 if name == "replicas" else 2)
    assert changed.split.coverage == {"replicas": 1, "copies": 2, "overlap": 2, "generalists": 1}[name]
    assert changed.distill.votes == ("all" if name == "generalists" else "group")
    assert changed.evaluate.devices == (2 if name == "replicas" else None)
    for section in ("dataset", "teacher", "augmentation", "export", "card"):
        assert getattr(changed, section) == getattr(recipe, section)


@pytest.mark.parametrize("name", PRESETS)
def test_every_strategy_trains_as_long_per_device(tmp_path, name):
    recipe = as_strategy(tiny_recipe(tmp_path, fuse={"joint": True, "joint_epochs": 3}), name)
    assert recipe.split.coverage / recipe.split.num_sub_models in (0.5, 1.0)  # or all items in every epoch
    assert recipe.distill.epochs + (recipe.fuse.joint_epochs if recipe.fuse.joint else 0) == 2 + 3


def test_a_recipe_of_a_named_strategy_is_read_with_its_values(tmp_path):
    path = write_tiny_recipe(tmp_path)
    path.write_text(path.read_text() + "strategy: replicas\n")
    assert load_recipe(path) == dataclasses.replace(as_strategy(tiny_recipe(tmp_path / "other"), BASE), folder=tmp_path)


@pytest.mark.parametrize(
    ("strategy", "fuse", "refused"),
    [
        ("generalists", {"feedback_weight": 0.1, "diversity_weight": 0.1}, None),
        ("auto", {"feedback_weight": 0.1, "diversity_weight": 0.1}, None),  # generalists read both
        ("auto\nauto: {tries: [split, generalists]}", {"feedback_weight": 0.1}, "feedback_weight"),
        ("auto\nauto: {tries: [generalists, split]}", {"diversity_weight": 0.1}, "diversity_weight"),
    ],
)
def test_terms_of_the_joint_tuning_are_judged_by_what_a_strategy_trains(tmp_path, strategy, fuse, refused):
    path = write_tiny_recipe(tmp_path, fuse={"joint": True, **fuse})
    path.write_text(path.read_text() + f"strategy: {strategy}\n")
    if refused is None:
        load_recipe(path)
        return
    with pytest.raises(RecipeError, match=f"`fuse.{refused}` is read only with"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("changes", "name", "says"),
    [
        (
            {"split": {"strategy": "given", "class_groups": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}},
            "overlap",
            "class_groups",
        ),
        ({"split": {"num_sub_models": 1}}, "generalists", "at least 2, got 1"),
        ({}, "replica", "replicas"),
    ],
)
def test_a_strategy_that_contradicts_the_recipe_is_refused(tmp_path, changes, name, says):
    with pytest.raises(RecipeError, match=says):
        as_strategy(tiny_recipe(tmp_path, **changes), name)


@pytest.mark.parametrize(
    "values", [{"tries": ()}, {"tries": ("overlap", "overlap")}, {"min_gap": 2.0}, {"tries": ("x",)}]
)
def test_what_auto_cannot_try_is_refused(values):
    with pytest.raises(RecipeError, match=r"auto\."):
        AutoConfig(**values)


def test_values_of_auto_are_refused_where_nothing_reads_them(tmp_path):
    path = write_tiny_recipe(tmp_path, auto={"min_gap": 0.1})
    with pytest.raises(RecipeError, match=r"`auto.min_gap` is read only with `strategy: auto`"):
        load_recipe(path)


def auto_recipe(folder, **auto):
    recipe = tiny_recipe(folder, fuse={"joint": True, "joint_epochs": 1})
    return dataclasses.replace(recipe, strategy="auto", auto=AutoConfig(**auto))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A finished trip of `strategy: auto`, and its recipe."""
    work = tmp_path_factory.mktemp("auto")
    recipe = auto_recipe(work, tries=("generalists",), min_gap=-1.0)
    run(recipe, work / "work", stages=[s.name for s in stages_of(recipe) if s.name not in ("export", "card")])
    return recipe, work / "work"


def test_auto_keeps_what_wins_and_says_why(chosen):
    recipe, work = chosen
    choice = read_json(stage_dir(work, "choose") / "choice.json")
    assert choice["tried"] == ["replicas", "generalists"]
    assert choice["name"] in choice["tried"]
    assert choice["verdict"].startswith("deploy: ")
    assert "validation items" in choice["verdict"]
    groups = read_json(stage_dir(work, "split") / "class_groups.json")["class_groups"]
    assert len(groups) == (1 if choice["name"] == "replicas" else recipe.split.num_sub_models)
    tried = stage_dir(work, "choose").with_name("01_tried") / choice["name"]
    for name in ("split", "plan", "prune", "distill", "fuse"):
        own, of_trip = ((folder / stage_dir(work, name).name / "done.json") for folder in (tried, work))
        assert read_json(own) == read_json(of_trip)


def test_results_of_auto_say_what_was_chosen_and_by_which_figures(chosen):
    _, work = chosen
    results = read_json(stage_dir(work, "evaluate") / "results.json")
    assert results["strategy"] == read_json(stage_dir(work, "choose") / "choice.json")
    assert results["recipe_values"]["strategy"] == results["strategy"]["name"]  # the values are those of the chosen one
    json.dumps(results)


def test_a_finished_choice_is_not_made_again(chosen):
    recipe, work = chosen
    records = run(recipe, work, stages=["teacher", "choose", "split", "plan", "prune", "distill", "fuse"])
    assert all(record.skipped for record in records)
    assert not ensemble_dir(work).exists()


def test_where_a_larger_model_is_no_better_nothing_is_tried(chosen, tmp_path):
    recipe, _ = chosen
    own = dataclasses.replace(recipe, auto=AutoConfig(min_gap=1.0))
    run(own, tmp_path, stages=["teacher", "choose", "split"])
    choice = read_json(stage_dir(tmp_path, "choose") / "choice.json")
    assert choice["tried"] == ["replicas"]
    assert choice["name"] == BASE
    assert "one of all devices' size together differs by only" in choice["verdict"]
    assert len(read_json(stage_dir(tmp_path, "split") / "class_groups.json")["class_groups"]) == 1


@pytest.mark.parametrize(("low", "points", "high", "is_tried"), [(-1.0, 1.0, 2.5, True), (-1.0, 0.5, 1.5, False)])
def test_strategies_are_tried_unless_the_larger_model_is_certainly_hardly_better(low, points, high, is_tried):
    gap = {"points": points, "low": low, "high": high}
    assert is_worth_trying(gap, AutoConfig(min_gap=0.02)) == is_tried
    assert is_worth_trying(gap, AutoConfig(min_gap=-1.0))


def test_what_was_tried_stays_when_something_else_is_tried_too(chosen):
    recipe, work = chosen
    tried = stage_dir(work, "choose").with_name("01_tried")
    before = {path: path.stat().st_mtime_ns for path in tried.glob("*/*/done.json")}
    more = dataclasses.replace(recipe, auto=AutoConfig(tries=("generalists", "copies"), min_gap=-1.0))
    records = run(more, work, stages=["teacher", "choose", "split", "plan", "prune", "distill", "fuse"])
    assert [record.name for record in records if not record.skipped] == ["choose"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_json(stage_dir(work, "choose") / "choice.json")["tried"] == ["replicas", "generalists", "copies"]
    with pytest.raises(RecipeError, match="'evaluate' has no up-to-date result"):  # it shows the choice
        run(more, work, stages=["export"])


def test_a_strategy_whose_devices_would_carry_more_is_not_compared(tmp_path):
    recipe = auto_recipe(tmp_path, tries=("generalists",), min_gap=-1.0)
    one = {"devices": [{"name": "big", "profile": "x86-avx2", "memory_mib": 64}]}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(one))
    run(recipe, tmp_path / "work", stages=["teacher", "choose"])
    choice = read_json(stage_dir(tmp_path / "work", "choose") / "choice.json")
    assert choice["tried"] == ["replicas"]
    assert "parameters on its fullest device" in choice["left_out"]["generalists"]


@pytest.mark.parametrize(
    ("strategy", "changes", "says"),
    [
        ("copies", {"split": {"coverage": 1}}, r"`split.coverage` is 1, but `strategy: copies` makes it 2"),
        ("overlap", {"distill": {"votes": "all"}}, r"`distill.votes` is 'all', but `strategy: overlap`"),
        ("auto", {"split": {"num_sub_models": 1}}, "at least 2, got 1"),
        ("auto", {"split": {"strategy": "given", "class_groups": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}}, "class_groups"),
    ],
)
def test_contradictions_are_told_before_anything_is_trained(tmp_path, strategy, changes, says):
    path = write_tiny_recipe(tmp_path, **changes)
    path.write_text(path.read_text() + f"strategy: {strategy}\n")
    with pytest.raises(RecipeError, match=says):
        load_recipe(path)


def test_values_that_only_the_strategy_reads_may_be_written(tmp_path):
    path = write_tiny_recipe(tmp_path, fuse={"joint": True, "feedback_weight": 0.5}, distill={"focus_weight": 2.0})
    path.write_text(path.read_text() + "strategy: generalists\n")
    assert load_recipe(path).distill.focus_weight == 2.0
