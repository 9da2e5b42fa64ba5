# SPDX-License-Identifier: Apache-2.0
"""The recipe values that decide a stage's result, as they go into its key."""

from typing import Any

from edvit_hf.recipe.schema import Recipe, recipe_values


def key_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, without values that change no result.

    Left out are values that only say what must hold, values that are read only under another one, and values at which
    a stage does what it did before they existed: results of an earlier version then stay good.
    """
    values = recipe_values(recipe)
    dataset, teacher, split, prune = (values[name] for name in ("dataset", "teacher", "split", "prune"))
    del dataset["num_labels"], teacher["config"]
    for section in ("teacher", "distill", "fuse"):
        del values[section]["track"]
    distill, fuse = values["distill"], values["fuse"]
    if distill["objective"] != "dekd":
        for name in ("hard", "hard_weight", "relation_weights"):
            del distill[name]
    if not fuse["joint"]:
        joint = (
            "joint_epochs",
            "joint_learning_rate",
            "joint_batch_size",
            "joint_views",
            "token_weight",
            "vote_weight",
        )
        for name in joint:
            del fuse[name]
    if split["strategy"] != "similarity":
        del split["similarity"], split["samples_per_class"]
    if split["sizes"] == "equal":
        del split["sizes"]
    if not prune["compensate"]:
        del prune["compensate"], prune["compensation_samples"]
    if prune["rounds"] == 1:
        del prune["rounds"], prune["round_epochs"]
    for name, plain in (("keep_ratios", None), ("from_scratch", None), ("attention", "whole")):
        if prune[name] == plain:
            del prune[name]
    return values


def chosen_values(recipe: Recipe, paths: tuple[str, ...]) -> dict[str, Any]:
    """The values at dotted paths (`prune`, `fuse.hidden_size`); one that `key_values` leaves out is absent."""
    found: dict[str, Any] = {}
    for path in paths:
        value: Any = key_values(recipe)
        for part in path.split("."):
            if part not in value:
                break
            value = value[part]
        else:
            found[path] = value
    return found
