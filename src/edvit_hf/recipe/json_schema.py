# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of a recipe, for editors that complete and check YAML while it is written.

Comes in: the config classes, with what their docstrings say of each key. Goes out: plain values, draft 2020-12. It says
which keys there are and what type each has; ranges and contradictions are checked when a recipe is read. Light.
"""

import dataclasses
import inspect
import re
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edvit_hf.recipe.schema import Recipe
from edvit_hf.strict import is_finite

_FROM_THE_FILE = ("name", "folder")
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def recipe_json_schema() -> dict[str, Any]:
    """The schema of a recipe's file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Recipe of edvit_hf", **_object(Recipe)}


def key_meanings(kind: type) -> dict[str, str]:
    """Key -> what its line under `Attributes:` says, of a config class and the ones that it extends."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        text = inspect.getdoc(cls) or ""
        if dataclasses.is_dataclass(cls) and "Attributes:\n" in text:
            block = re.split(r"\n(?=\S)", text.split("Attributes:\n")[1])[0]
            for entry in re.split(r"\n(?=    \w)", "\n" + block)[1:]:
                name, meaning = entry.strip().split(":", 1)
                found[name] = re.sub(r"\bNone\b", "null", " ".join(meaning.split()))
    return found


def _object(kind: Any) -> dict[str, Any]:
    hints, said, properties, required = get_type_hints(kind), key_meanings(kind), {}, []
    for field in dataclasses.fields(kind):
        if not field.metadata.get("is_read", True) or (kind is Recipe and field.name in _FROM_THE_FILE):
            continue
        entry = _schema(hints[field.name])
        if field.name in said:
            entry["description"] = said[field.name]
        if field.default is not dataclasses.MISSING:
            entry |= _default(field.default)
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = entry
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": required} if required else found


def _default(value: Any) -> dict[str, Any]:
    if isinstance(value, float) and not is_finite(value):
        return {}
    return {"default": list(value) if isinstance(value, tuple) else value}


def _schema(hint: Any) -> dict[str, Any]:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(each) for each in inside]}
    if origin is Literal:
        return {"enum": list(inside)}
    if origin in (tuple, list):
        return {"type": "array", "items": _schema(inside[0])}
    if dataclasses.is_dataclass(hint):
        return _object(hint)
    if hint is type(None):
        return {"type": "null"}
    if origin is dict or hint is dict:
        return {"type": "object"}
    return {"type": _TYPES[hint]} if hint in _TYPES else {}
