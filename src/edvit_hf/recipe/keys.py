# SPDX-License-Identifier: Apache-2.0
"""Collects what a stage's result depends on for its key: recipe values, and what it reads outside the recipe.

The functions that end in `_sources` return JSON-able content, so that other data under the same recipe is another run,
while moving the same data to another folder is not. Files are known by their contents (`FileHashes`), whatever their
sizes and times say.
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from edvit_hf.card.render import template_path
from edvit_hf.data.config import EMBEDDED_DATASET
from edvit_hf.data.contents import FileHashes
from edvit_hf.data.listing import list_folder
from edvit_hf.data.sources import files_elsewhere, local_folders
from edvit_hf.errors import DataError
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.planning.plan import PLAN_FORMAT
from edvit_hf.recipe.places import as_written
from edvit_hf.recipe.schema import Recipe, recipe_values
from edvit_hf.recipe.unread import READ_ONLY_WITH
from edvit_hf.strict import is_file, is_folder
from edvit_hf.tasks import MAX_SUBSETS

logger = logging.getLogger(__name__)

_LEFT_OUT_AT: dict[tuple[str, str], Any] = {
    ("split", "sizes"): "equal",
    ("split", "coverage"): 1,
    ("prune", "compensate"): False,
    ("prune", "rounds"): 1,
    ("prune", "keep_ratios"): None,
    ("prune", "from_scratch"): None,
    ("prune", "attention"): "whole",
    ("prune", "vocabulary"): None,
    ("teacher", "patience"): None,
    ("distill", "patience"): None,
    ("distill", "votes"): "group",
    ("distill", "feature_weight"): 0.0,
    ("evaluate", "devices"): None,
    ("fuse", "kind"): "mlp",
    ("fuse", "other"): None,
    ("fuse", "patience"): None,
    ("fuse", "joint_patience"): None,
    ("fuse", "feedback_weight"): 0.0,
    ("fuse", "diversity_weight"): 0.0,
}
"""Values at which a stage does what it did before they existed: results of an earlier version then stay good."""


def key_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, without values that change no result.

    Left out are values that only say what must hold, those that this recipe does not read (`READ_ONLY_WITH`), and
    those of `_LEFT_OUT_AT`.
    """
    values = as_written(recipe_values(recipe), recipe.written)
    del values["dataset"]["num_labels"], values["teacher"]["config"]
    for section in ("teacher", "distill", "fuse"):
        del values[section]["track"]
    for section, keys, is_read, _ in READ_ONLY_WITH:
        for key in () if is_read(recipe) else keys:
            values.get(section, {}).pop(key, None)
    for (section, key), plain in _LEFT_OUT_AT.items():
        if values[section].get(key, plain) == plain:
            values[section].pop(key, None)
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


def teacher_sources(recipe: Recipe, hashes: FileHashes) -> dict[str, Any]:
    """Names and contents of the local data files and of a local checkpoint's files, each below its folder.

    Names count: a file's name or folder may be its label or its split. What the Hub has is known by its id alone.

    Raises:
        DataError: A folder or a file cannot be read.
    """
    dataset, checkpoint = recipe.dataset, recipe.teacher.checkpoint
    folders = local_folders(dataset)
    if not folders and dataset.path != EMBEDDED_DATASET and is_folder(dataset.path):
        folders = [Path(dataset.path)]
    is_here = checkpoint is not None and is_folder(checkpoint)
    elsewhere = [(str(path), _hash(path, hashes)) for path in files_elsewhere(dataset, recipe.task)]
    return {
        "data": [_contents(folder, hashes) for folder in folders] or None,
        **({"elsewhere": elsewhere} if elsewhere else {}),
        # Without its own processor a checkpoint was once fed as the recipe says.
        "checkpoint": [_contents(Path(checkpoint), hashes)] if checkpoint is not None and is_here else None,
        **({} if checkpoint is None else {"processor": "of the checkpoint"}),
    }


def fleet_sources(recipe: Recipe, hashes: FileHashes) -> dict[str, Any]:
    """Text of the fleet file, what is known of the hardware that it names, and the form of the plan."""
    path = recipe.fleet_path
    if path is None or not is_file(path):
        return {"plan_format": PLAN_FORMAT, "fleet": None}
    hardware = [dataclasses.asdict(device.hardware) for device in load_fleet(path).devices]
    return {"plan_format": PLAN_FORMAT, "fleet": path.read_text(encoding="utf-8"), "hardware": hardware}


def split_sources(recipe: Recipe, hashes: FileHashes) -> Any:
    """What the fleet says, where group sizes follow its devices."""
    return fleet_sources(recipe, hashes) if recipe.split.sizes == "proportional" else None


def fuse_sources(recipe: Recipe, hashes: FileHashes) -> Any:
    """`evaluate.max_subsets`, where validation with sub-models absent decides something and it is not the default."""
    fuse, most = recipe.fuse, recipe.evaluate.max_subsets
    is_read = fuse.kind != "mlp" or fuse.patience is not None or (fuse.joint and fuse.joint_patience is not None)
    return {"max_subsets": most} if is_read and most != MAX_SUBSETS else None


def export_sources(recipe: Recipe, hashes: FileHashes) -> list[Any]:
    """The hardware that the files are made for, what is written for it, and the integers that suit it."""
    profiles, known = recipe.export.profiles or (detect_profile(),), load_profiles()
    presets = [[known[profile].quantization, known[profile].static_quantization] for profile in profiles]
    return [[p, list(recipe.export.kinds_for(p)), *own] for p, own in zip(profiles, presets, strict=True)]


def card_sources(recipe: Recipe, hashes: FileHashes) -> str:
    """The card's template."""
    return hashes.of(template_path())


def _contents(folder: Path, hashes: FileHashes) -> list[tuple[str, str]]:
    """Name below the folder and SHA-256 of every file in it; hidden and foreign ones are left out."""
    begin = time.perf_counter()
    found = [(name.as_posix(), _hash(folder / name, hashes)) for name in list_folder(folder).files]
    logger.info("data: %d files of %s compared in %.1f s", len(found), folder, time.perf_counter() - begin)
    return found


def _hash(file: Path, hashes: FileHashes) -> str:
    try:
        return hashes.of(file)
    except OSError as error:
        raise DataError(
            f"Expected a file that can be read at {file}, got: {error.strerror}. Whether it changed since "
            "the last run is not known. Grant access to it, or move it out."
        ) from error
