# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import yaml

from edvit_hf.errors import RecipeError
from edvit_hf.recipe.schema import find_recipe, load_recipe, packaged_recipes, recipe_values
from support.tiny_recipe import tiny_recipe, write_tiny_recipe

RECIPES = sorted(packaged_recipes().glob("*.yaml"))


@pytest.fixture
def values():
    return yaml.safe_load((packaged_recipes() / "digits.yaml").read_text())


def written(tmp_path, values) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_opens_with_a_lab_note(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.fleet_path.is_file()
    note = path.read_text().split("task:")[0]
    for word in ("# Source", "# Data", "# Cost", "# Expect", "# Knob"):
        assert word in note, f"{path.name} says nothing under {word}"


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [(None, "distil", "distill"), ("prune", "keep_head", "prune.keep_heads"), ("fuse", "epoch", "fuse.epochs")],
)
def test_a_misspelt_key_names_the_nearest_valid_one(tmp_path, values, section, key, near):
    (values if section is None else values[section])[key] = 1
    with pytest.raises(RecipeError, match=f"unknown recipe key .*Did you mean `{near}`"):
        load_recipe(written(tmp_path, values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("teacher"), "`teacher` is missing"),
        (lambda v: v["distill"].update(epochs="ten"), "distill.epochs"),
        (lambda v: v["distill"].update(learning_rate="much"), "distill.learning_rate"),
        (lambda v: v["split"].update(strategy="clever"), "one of"),
        (lambda v: v["split"].update(num_sub_models=0), "at least 1"),
        (lambda v: v["teacher"].update(checkpoint="x"), "exactly one of"),
        (lambda v: v["teacher"].update(mixup_alpha=-0.1), "`mixup_alpha` must lie in"),
        (lambda v: v["teacher"].update(cutmix_alpha=float("nan")), "`cutmix_alpha` must lie in"),
        (lambda v: v["teacher"].update(from_scratch={"hidden_size": 8}), "model_type"),
        (lambda v: v["fuse"].update(views=99), "cannot exceed `distill.views`"),
        (lambda v: v["prune"].update(keep_heads=0), "keep_heads"),
        (lambda v: v.update(name="other"), "taken from the file"),
        (lambda v: v["dataset"].update(mean=0.5), "must be a list"),
        (lambda v: v["export"].update(int8="yes"), "export.int8"),
        (lambda v: v.update(task="image-segmentation"), "image-classification"),
        (lambda v: v["teacher"].update(config={"model_type": "vit"}), "Remove `config`"),
        (lambda v: v.update(teacher={"checkpoint": "x", "config": {"hidden_size": 8}}), "`teacher.config` needs a"),
        (lambda v: v["dataset"].update(num_labels=1), "at least 2"),
        (lambda v: v["prune"].update(keep_heads=[2, 1]), "lists 2 numbers, but `split.num_sub_models` is 5"),
        (lambda v: v["prune"].update(keep_heads=[2, 1, 1, 1, 0]), "keep_heads"),
        (lambda v: v["prune"].update(keep_heads="most"), "keep_heads"),
        (lambda v: v["prune"].update(keep_ratios={"residual": 0.5, "attention": 0.5, "ffn": 0.5}), "Write one of them"),
        (
            lambda v: v.update(prune={"keep_ratios": {"residual": 1.5, "attention": 0.5, "ffn": 0.5}}),
            "keep_ratios.resid",
        ),
        (lambda v: v.update(prune={"keep_ratios": {"residual": 0.5, "ffn": 0.5}}), "keep_ratios.attention` is missing"),
        (lambda v: v["prune"].update(attention="narrow"), "prune.attention"),
        (lambda v: v["prune"].update(rounds=0), "rounds"),
        (lambda v: v["split"].update(similarity="both"), "split.similarity"),
        (lambda v: v["split"].update(strategy="similarity", samples_per_class=0), "split.samples_per_class"),
        (lambda v: v["dataset"].update(seed=-1), "recipe section `dataset`.*`seed`"),
        (lambda v: v["split"].update(seed=-1), "split.seed"),
        (lambda v: v["prune"].update(seed=-1), "recipe section `prune`.*`seed`"),
        (lambda v: v["teacher"].update(seed=-1), "`seed` must be a whole number"),
        (lambda v: v.update(teacher={"checkpoint": "x", "seed": -1}), "`seed` must be a whole number"),
        (lambda v: v["distill"].update(seed=-1), "`seed` must be a whole number"),
        (lambda v: v["fuse"].update(seed=-1), "`seed` must be a whole number"),
        (lambda v: v["split"].update(similarity="separate"), "`split.similarity` is read only with `strategy: simil"),
        (lambda v: v["split"].update(samples_per_class=3), "`split.samples_per_class` is read only"),
        (lambda v: v["prune"].update(compensate=False, compensation_samples=64), "only with `compensate: true`"),
        (lambda v: v["prune"].update(round_epochs=2), "`prune.round_epochs` is read only with `rounds` above `1`"),
    ],
)
def test_values_that_cannot_be_followed_are_refused_by_name(tmp_path, values, change, message):
    change(values)
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, values))


def test_a_missing_recipe_names_the_packaged_ones():
    with pytest.raises(RecipeError, match="digits"):
        find_recipe("nowhere.yaml")
    assert find_recipe("digits").name == "digits.yaml"


def test_broken_yaml_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("task: [image")
    with pytest.raises(RecipeError, match="no readable YAML"):
        load_recipe(path)
    path.write_text("just text")
    with pytest.raises(RecipeError, match="mapping of sections"):
        load_recipe(path)


def test_the_seed_reaches_every_training_stage_but_not_the_split(values, tmp_path):
    recipe = load_recipe(written(tmp_path, values)).with_seed(7)
    assert {name: recipe.seeds[name] for name in ("teacher", "prune", "distill", "fuse")} == dict.fromkeys(
        ("teacher", "prune", "distill", "fuse"), 7
    )
    assert recipe.seeds["split"] == 0
    assert "folder" not in recipe_values(recipe)


def test_every_way_to_say_what_stays_is_read(values, tmp_path):
    values["prune"] = {"keep_heads": [1, 2, 2, 2, 3], "attention": "thin", "compensate": True, "rounds": 2}
    prune = load_recipe(written(tmp_path, values)).prune
    assert prune.keep_heads == (1, 2, 2, 2, 3)
    assert (prune.attention, prune.compensate, prune.rounds) == ("thin", True, 2)
    values["prune"] = {"keep_ratios": {"residual": 0.5, "attention": 1, "ffn": 0.25}}
    ratios = load_recipe(written(tmp_path, values)).prune.keep_ratios
    assert (ratios.residual, ratios.attention, ratios.ffn) == (0.5, 1.0, 0.25)
    values["prune"] = {"keep_heads": "per-sub-model"}
    assert load_recipe(written(tmp_path, values)).prune.keep_heads == "per-sub-model"


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("task: image-classification\ntask: image-classification\n")
    with pytest.raises(RecipeError, match="'task' is given twice"):
        load_recipe(path)


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), float("nan"), float("-inf"), True, "much"], ids=lambda value: f"{value!s:.9}"
)
@pytest.mark.parametrize(("section", "key"), [("dataset", "validation_fraction"), ("teacher", "learning_rate")])
def test_a_number_that_nothing_can_use_is_refused_whatever_its_size(tmp_path, section, key, value):
    with pytest.raises(RecipeError, match=key):
        tiny_recipe(tmp_path, **{section: {key: value}})


def test_a_recipe_without_a_fleet_plans_a_device_for_each_sub_model_and_says_so(tmp_path):
    from edvit_hf.recipe.stages.plan import plan_recipe

    path = write_tiny_recipe(tmp_path)
    path.write_text(path.read_text().replace("fleet: fleet.yaml\n", ""))
    found = plan_recipe(load_recipe(path))
    assert [(s.device, s.keep_heads) for s in found.sub_models] == [("device_00", 1), ("device_01", 1)]
    assert found.notes[0].startswith("no fleet is named")
    path.write_text(path.read_text().replace("keep_heads: 1", "keep_heads: auto"))
    with pytest.raises(RecipeError, match="names no `fleet`"):
        load_recipe(path)
