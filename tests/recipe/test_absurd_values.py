# SPDX-License-Identifier: Apache-2.0
"""Values that no model, machine or file can have end in an error of ours before anything is built or allocated."""

import pytest

from edvit_hf.data import DatasetConfig
from edvit_hf.data.sources import local_folders
from edvit_hf.errors import DataError, EDViTError, PruningError, RecipeError
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.planning.splitting import MAX_CLASSES, SplitConfig, split_classes
from edvit_hf.recipe import load_recipe
from edvit_hf.recipe.schema import find_fleet, find_recipe
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.recipe.trip import checkpoint_files, stock_model
from edvit_hf.strict import one_of
from support.tiny_recipe import tiny_recipe

COUNTS = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
VALID = {
    **{"model_type": "vit", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    **{"intermediate_size": 32, "patch_size": 4},
}


def build(recipe, **change):
    values = {**recipe.input_sizes, **recipe.teacher.from_scratch, **change}
    return stock_model(recipe, values, ["a", "b"], "teacher.from_scratch")


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**30, 1.5, True, "x", None, [], {}, [[1]], float("nan")])
@pytest.mark.parametrize("key", [*COUNTS, "patch_size", "image_size", "num_channels"])
def test_no_size_makes_another_error_than_ours(tmp_path, key, value):
    recipe = tiny_recipe(tmp_path, teacher={"from_scratch": {**VALID, key: value}})
    for ask in (plan_recipe, build):
        try:
            ask(recipe)
        except EDViTError:
            continue
        assert value in (None, {}, []) or key not in COUNTS, "a size that is no size was taken"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": 0}, "`hidden_size` must be a whole number of at least 1"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be a whole number of at least 1"),
        ({"num_attention_heads": 3}, "no multiple"),
        ({"patch_size": 16}, "no multiple of `patch_size` 16"),
        ({"patch_size": 0}, "`patch_size` must be a whole number of at least 1"),
        ({"num_hidden_layers": 1_000_003}, "`num_hidden_layers` must be at most 1000"),
        ({"hidden_size": 2**20, "intermediate_size": 2**20}, "would take .* GiB, this machine has"),
        ({"initializer_range": "wide"}, "is no stock model for image-classification: "),
        ({"initializer_range": -1.0}, "is no stock model for image-classification: RuntimeError"),
        ({"hidden_act": "nonsense"}, "is no stock model for image-classification: "),
        ({"layer_norm_eps": []}, "is no stock model for image-classification: "),
        ({"hidden_dropout_prob": 5.0}, "is no stock model for image-classification: "),
    ],
)
def test_a_model_that_cannot_be_is_refused_with_the_reason(tmp_path, change, named):
    with pytest.raises((RecipeError, PruningError), match=named):
        build(tiny_recipe(tmp_path), **change)


def test_what_this_machine_cannot_hold_is_not_asked_for(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    assert build(recipe).num_labels == 2
    monkeypatch.setattr("edvit_hf.recipe.trip.machine_memory_bytes", lambda: 1000.0)
    monkeypatch.setattr("transformers.AutoModelForImageClassification.from_config", pytest.fail)
    with pytest.raises(RecipeError, match=r"`teacher.from_scratch` would take .* GiB, this machine has"):
        build(recipe)


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("dataset", {"num_labels": 10**30}, f"at most {MAX_CLASSES} classes"),
        ("dataset", {"num_labels": 2**31}, f"at most {MAX_CLASSES} classes"),
        ("dataset", {"image_size": 10**6}, r"`image_size` must lie in \[2, 8192\]"),
        ("split", {"num_sub_models": 10**30}, "only 10 classes"),
    ],
)
def test_numbers_that_would_fill_the_memory_are_refused_by_the_plan(tmp_path, section, change, named):
    with pytest.raises(EDViTError, match=named):
        plan_recipe(tiny_recipe(tmp_path, **{section: change}))


@pytest.mark.parametrize("num_classes", [1.5, True, 0, -1, "3", None])
def test_classes_are_counted_in_whole_numbers(num_classes):
    with pytest.raises(RecipeError, match="`num_classes` must be a whole number"):
        split_classes(num_classes, SplitConfig(num_sub_models=1))


@pytest.mark.parametrize("name", ["strategy", "similarity", "sizes"])
@pytest.mark.parametrize("value", ["nonsense", [], {}, None, 1])
def test_a_way_to_split_is_one_of_those_there_are(name, value):
    with pytest.raises(RecipeError, match=f"`split.{name}` must be one of"):
        SplitConfig(num_sub_models=1, **{name: value})


@pytest.mark.parametrize("options", [("a", "b"), {"a", "b"}, {"a": 1, "b": 2}, {"a": 1}.keys()])
@pytest.mark.parametrize("value", [[], {}, [["a"]], {"a": 1}, set(), None, 1])
def test_a_value_that_can_be_no_key_is_refused_like_any_other(options, value):
    with pytest.raises(RecipeError, match="`key` must be one of"):
        one_of("key", value, options, "it decides")


LONG = "x" * 5000


@pytest.mark.parametrize("name", [LONG, f"{LONG}.yaml", "a\0b", f"a/{LONG}/b.yaml"])
def test_a_name_that_no_file_can_have_is_that_of_no_file(tmp_path, name):
    for find in (find_recipe, find_fleet):
        with pytest.raises(RecipeError, match="does not exist"):
            find(name)
    with pytest.raises(RecipeError, match="does not exist"):
        load_fleet(tmp_path / name)
    with pytest.raises(RecipeError, match="cannot be loaded"):
        checkpoint_files(name, None)
    for key in ("data_dir", "test_data_dir"):
        config = DatasetConfig(path="parquet", **{"data_dir": str(tmp_path), key: name})
        with pytest.raises(DataError, match=f"`{key}` to be an existing folder"):
            local_folders(config)


@pytest.mark.parametrize("content", ["[" * 20_000, "{a: " * 20_000])
def test_a_recipe_that_is_nested_without_end_is_no_readable_yaml(tmp_path, content):
    (tmp_path / "deep.yaml").write_text(content)
    with pytest.raises(RecipeError, match=r"no readable YAML"):
        load_recipe(tmp_path / "deep.yaml")
