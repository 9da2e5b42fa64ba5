# SPDX-License-Identifier: Apache-2.0
"""Paths in a recipe are relative to the recipe's file, whatever folder the command runs in.

Comes in: a recipe's values and its folder. Goes out: the values with whole paths, and what was written in their place:
stages are known by that, so that a folder that was moved with its recipe is the same run. Fleet files follow the same
rule (`Recipe.fleet_path`), and so do profiles in them, which are relative to the fleet.
"""

import copy
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edvit_hf.strict import is_file, is_folder

logger = logging.getLogger(__name__)

_KEYS = (("dataset", "data_dir"), ("dataset", "test_data_dir"), ("dataset", "path"), ("teacher", "checkpoint"))

Written = dict[str, tuple[Any, Any]]
"""Dotted key -> what it became, and what was written."""


def with_whole_paths(
    values: Mapping[str, Any], folder: Path, typed: Collection[str] = ()
) -> tuple[dict[str, Any], Written]:
    """The values with every path of a folder that is there as a whole path.

    A folder that lies only where the command runs is taken, too, with a warning: so all paths were once read. What is
    nowhere stays as it is written, and whoever opens it says so.

    Args:
        values: The sections of a recipe.
        folder: Of its file.
        typed: Dotted keys that came from the command line: those are relative to where it runs.
    """
    found, written = copy.deepcopy(dict(values)), Written()
    for section, key in _KEYS:
        inside = found.get(section)
        value = inside.get(key) if isinstance(inside, dict) else None
        if value is None or f"{section}.{key}" in typed:
            continue
        whole: Any = (
            [_whole(each, folder, key) for each in value]
            if isinstance(value, list | tuple)
            else _whole(value, folder, key)
        )
        if whole != value:
            found[section][key] = whole
            written[f"{section}.{key}"] = (tuple(whole) if isinstance(whole, list) else whole, value)
    return found, written


def as_written(values: dict[str, Any], written: Written) -> dict[str, Any]:
    """Put back what was written, in place, unless another value has taken its place since."""
    for dotted, (whole, text) in written.items():
        section, key = dotted.split(".")
        if values[section].get(key) == whole:
            values[section][key] = tuple(text) if isinstance(text, list) else text
    return values


def _whole(text: Any, folder: Path, key: str) -> Any:
    if not isinstance(text, str) or not text or Path(text).is_absolute() or text.startswith("~"):
        return text
    beside = folder / text
    if key == "path" and not text.startswith(("./", "../")):
        return text  # a Hub id or a builder
    if key == "checkpoint" and not is_file(beside / "config.json"):
        return text  # a Hub id, or a folder that is elsewhere
    if is_folder(beside):
        return str(beside.resolve())
    if is_folder(text):
        logger.warning(
            "recipe: %r lies in the current folder, not beside the recipe in %s. Paths are relative to the recipe; "
            "write the whole path, or move one of the two.",
            text,
            folder,
        )
    return text
