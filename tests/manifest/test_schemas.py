# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema files say what the readers accept."""

import json

import pytest

from edvit_hf.manifest.schemas import FOLDER, schemas
from edvit_hf.strict import read_strictly
from support.tiny_ensemble import write_tiny_ensemble


@pytest.mark.parametrize("name", sorted(schemas()))
def test_the_files_are_those_that_the_classes_give(name):
    stale = "write them anew: python -m edvit_hf.manifest.schemas"
    assert (FOLDER / name).read_text(encoding="utf-8") == schemas()[name], stale


def accepted(schema, value, definitions):
    """Whether `value` fits, for the few keywords that our schemas use."""
    if "$ref" in schema:
        return accepted(definitions[schema["$ref"].rsplit("/", 1)[1]], value, definitions)
    if "anyOf" in schema:
        return any(accepted(each, value, definitions) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    kind = schema.get("type")
    if kind == "null":
        return value is None
    if kind is not None and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if kind == "array":
        return all(accepted(schema["items"], each, definitions) for each in value)
    if kind == "object":
        known, others = schema.get("properties", {}), schema["additionalProperties"]
        return set(schema.get("required", [])) <= set(value) and all(
            accepted(known[key], each, definitions)
            if key in known
            else bool(others) and accepted(others, each, definitions)
            for key, each in value.items()
        )
    return True


def test_schema_and_reader_agree_on_a_manifest_and_on_every_key_taken_from_it(tmp_path):
    from edvit_hf.manifest import Manifest

    schema = json.loads(schemas()["manifest.schema.json"])
    data = json.loads(write_tiny_ensemble(tmp_path, [[0, 1], [2]]).to_json())
    assert accepted(schema, data, schema["$defs"])
    broken = [(where, key) for where in (data, data["ensemble"], data["sub_models"][0]) for key in list(where)]
    assert broken
    for where, key in broken:
        value = where.pop(key)
        try:
            read_strictly(Manifest, data)
            reads = True
        except ValueError:
            reads = False
        assert accepted(schema, data, schema["$defs"]) == reads, key
        where[key] = value
