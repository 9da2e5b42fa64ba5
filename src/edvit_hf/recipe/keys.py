# SPDX-License-Identifier: Apache-2.0
"""Collects what a stage's result depends on for its key: recipe values, and what it reads outside the recipe.

The functions that end in `_sources` return JSON-able content, so that other data under the same recipe is another run,
while moving the same data to another folder is not.
"""

import hashlib
from pathlib import Path
from typing import Any

from edvit_hf.card.render import template_path
from edvit_hf.data.listing import list_folder
from edvit_hf.data.sources import local_folders
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.planning.fleet import profile_files
from edvit_hf.planning.plan import PLAN_FORMAT
from edvit_hf.recipe.schema import READ_ONLY_WITH, Recipe, recipe_values

_LEFT_OUT_AT: dict[tuple[str, str], Any] = {
    ("split", "sizes"): "equal",
    ("prune", "compensate"): False,
    ("prune", "rounds"): 1,
    ("prune", "keep_ratios"): None,
    ("prune", "from_scratch"): None,
    ("prune", "attention"): "whole",
}
"""Values at which a stage does what it did before they existed: results of an earlier version then stay good."""


def key_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, without values that change no result.

    Left out are values that only say what must hold, those that this recipe does not read (`READ_ONLY_WITH`), and
    those of `_LEFT_OUT_AT`.
    """
    values = recipe_values(recipe)
    del values["dataset"]["num_labels"], values["teacher"]["config"]
    for section in ("teacher", "distill", "fuse"):
        del values[section]["track"]
    for section, keys, is_read, _ in READ_ONLY_WITH:
        for key in () if is_read(recipe) else keys:
            del values[section][key]
    for (section, key), plain in _LEFT_OUT_AT.items():
        if values[section][key] == plain:
            del values[section][key]
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


def teacher_sources(recipe: Recipe) -> dict[str, Any]:
    """Local data files by path below their folder (which may be their label) and size; a checkpoint's files by hash."""
    checkpoint, folders = recipe.teacher.checkpoint, local_folders(recipe.dataset)
    found = [[(n.as_posix(), (folder / n).stat().st_size) for n in list_folder(folder).files] for folder in folders]
    return {
        "data": None if not found else found[0] if len(found) == 1 else found,
        "checkpoint": None if checkpoint is None else [(p.name, _sha256(p)) for p in _files(Path(checkpoint))],
    }


def fleet_sources(recipe: Recipe) -> dict[str, Any]:
    """Text of the fleet file, the profile files that it names by content, and the form of the plan."""
    path = recipe.fleet_path
    if not path.is_file():
        return {"plan_format": PLAN_FORMAT, "fleet": None}
    profiles = [_sha256(profile) for profile in profile_files(path)]
    return {"plan_format": PLAN_FORMAT, "fleet": path.read_text(encoding="utf-8"), "profiles": profiles}


def split_sources(recipe: Recipe) -> Any:
    """What the fleet says, where group sizes follow its devices."""
    return fleet_sources(recipe) if recipe.split.sizes == "proportional" else None


def export_sources(recipe: Recipe) -> list[Any]:
    """The hardware that the files are made for, and what is written for it."""
    profiles = recipe.export.profiles or (detect_profile(),)
    return [[profile, list(recipe.export.kinds_for(profile))] for profile in profiles]


def card_sources(recipe: Recipe) -> str:
    """The card's template."""
    return _sha256(template_path())


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
