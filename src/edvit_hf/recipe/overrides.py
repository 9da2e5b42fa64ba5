# SPDX-License-Identifier: Apache-2.0
"""Values of a recipe that the command line says otherwise: `edvit run RECIPE distill.epochs=3`."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from edvit_hf.errors import RecipeError
from edvit_hf.storage import read_bytes
from edvit_hf.strict import MAX_YAML_BYTES, load_yaml, yaml_lines


def read_override(text: str) -> tuple[str, Any]:
    """The dotted key and the value of `distill.epochs=3`; the value is read as YAML.

    Raises:
        RecipeError: It is no such thing.
    """
    key, is_there, value = text.partition("=")
    if not is_there or not all(part.isidentifier() for part in key.split(".")):
        raise RecipeError(
            f"Expected SECTION.KEY=VALUE, as in `distill.epochs=3`, got {text!r:.100}. It says which value of the "
            "recipe to take instead. Correct it; a value with spaces or brackets wants quotes around the whole."
        )
    try:
        return key, load_yaml(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"`{key}` cannot be set to {value!r:.100}, which is no YAML: {error}. Correct it.") from error


def overridden(values: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file with those of the command line in their place.

    Raises:
        RecipeError: A key leads through something that is no section.
    """
    found = copy.deepcopy(dict(values))
    for key, value in typed.items():
        *sections, last = key.split(".")
        inside: Any = found
        for section in sections:
            if inside.get(section) is None:
                inside[section] = {}
            inside = inside[section]
            if not isinstance(inside, dict):
                raise RecipeError(
                    f"`{key}={value}` sets a key of `{section}`, which holds {inside!r:.60} and no keys. Correct one."
                )
        inside[last] = value
    return found


def place_of(keys: tuple[str, ...], path: Path, typed: Mapping[str, Any]) -> str:
    """Where a key is written: "line 4" of the file, or the command line; empty where it is not written."""
    dotted = ".".join(keys)
    own = next((key for key in typed if dotted == key or dotted.startswith(f"{key}.")), None)
    if own is not None:
        return f"`{own}=` on the command line"
    line = _lines(path).get(keys)
    return "" if line is None else f"line {line}"


@functools.lru_cache(maxsize=1)
def _lines(path: Path) -> dict[tuple[str, ...], int]:
    return yaml_lines(read_bytes(path, MAX_YAML_BYTES))
