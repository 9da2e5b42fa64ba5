# SPDX-License-Identifier: Apache-2.0
"""JSON Schema files of the formats that leave this package, for readers in other languages.

They are written from the classes that read the formats: `python -m edvit_hf.manifest.schemas` rewrites them.
"""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import PlacementFile

FOLDER = Path(__file__).parent


def schemas() -> dict[str, str]:
    """File name -> JSON text of every schema."""
    manifest = json_schema(
        Manifest, title="edvit_hf manifest", description="An exported ensemble: identity, sub-models, files, figures."
    )
    placement = json_schema(
        PlacementFile, title="edvit_hf placement", description="Which device of a fleet loads which file."
    )
    found = {"manifest.schema.json": manifest, "placement.schema.json": placement}
    return {name: json.dumps(schema, indent=2) + "\n" for name, schema in found.items()}


_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema(expected: type, *, title: str, description: str) -> dict[str, Any]:
    """What `read_strictly` accepts for a dataclass, as JSON Schema (draft 2020-12).

    Rules that tie fields together are checked by the classes themselves and are not in it.
    """
    definitions: dict[str, Any] = {}
    reference = _schema(expected, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "description": description,
        **reference,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema(expected: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return {}
    if origin in (Union, types.UnionType):
        inner = next(a for a in arguments if a is not type(None))
        return {"anyOf": [_schema(inner, definitions), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if dataclasses.is_dataclass(expected):
        name = expected.__name__  # type: ignore[union-attr]
        if name not in definitions:
            definitions[name] = {}  # so that a class that holds itself ends
            definitions[name] = _object_schema(expected, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    return {"type": _JSON_TYPES[expected]}


def _object_schema(expected: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, fields = get_type_hints(expected), dataclasses.fields(expected)
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    return {
        "type": "object",
        "description": (expected.__doc__ or "").splitlines()[0],
        "properties": {f.name: _schema(hints[f.name], definitions) for f in fields},
        "required": required,
        "additionalProperties": False,
    }


if __name__ == "__main__":
    for file, text in schemas().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
