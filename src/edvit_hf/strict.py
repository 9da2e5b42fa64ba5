"""Files are read strictly: a dataclass is the schema, and what does not fit it is named precisely.

`load_yaml` and `parse_json` read; `json_schema` writes the schema down for other languages.
"""

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from edvit_hf.errors import EDViTError, RecipeError, did_you_mean


class _Loader(yaml.SafeLoader):
    """`SafeLoader` without doubled keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"the key {key.value!r} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_yaml(text: str) -> Any:
    """Parse YAML into plain values.

    Raises:
        yaml.YAMLError: The text is no YAML, or a mapping names a key twice.
    """
    return yaml.load(text, Loader=_Loader)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def parse_json(expected: Any, value: Any, where: str = "") -> Any:
    """Turn parsed JSON into `expected`: a dataclass, builtin, Literal, list, dict or an optional of these.

    Args:
        expected (`type`): What to build.
        value (`Any`): Parsed JSON.
        where (`str`): Dotted path of `value`, named in errors.

    Raises:
        ValueError: For a missing or unknown key, a wrong type, or a number that is not finite.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return value
    if origin in (Union, types.UnionType):
        inner = next(a for a in arguments if a is not type(None))
        return None if value is None else parse_json(inner, value, where)
    if origin is Literal:
        _require(value in arguments, f"`{where}` must be one of {list(arguments)}, got {value!r}.")
        return value
    if dataclasses.is_dataclass(expected):
        return _parse_object(expected, value, where)
    if origin is list:
        _require(isinstance(value, list), f"`{where}` must be a list, got {type(value).__name__}.")
        return [parse_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        _require(isinstance(value, dict), f"`{where}` must be an object, got {type(value).__name__}.")
        return {key: parse_json(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    kind = origin or expected
    accepted = (int, float) if kind is float else kind
    matches = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    _require(matches, f"`{where}` must be of type {kind.__name__}, got {value!r:.60}.")
    if kind is float:
        _require(math.isfinite(value), f"`{where}` must be finite, got {value}.")
    return kind(value)


def _parse_object(expected: Any, value: Any, where: str) -> Any:
    """Turn a JSON object into a dataclass; every field without a default must be there, and nothing else."""
    prefix = f"{where}." if where else ""
    _require(isinstance(value, dict), f"`{where}` must be an object, got {type(value).__name__}.")
    hints = get_type_hints(expected)
    fields = dataclasses.fields(expected)
    missing = [f.name for f in fields if f.name not in value and f.default is f.default_factory is dataclasses.MISSING]
    _require(not missing, f"the key `{prefix}{missing[0] if missing else ''}` is missing.")
    unknown = sorted(set(value) - {f.name for f in fields})
    _require(not unknown, f"unknown key `{prefix}{unknown[0] if unknown else ''}`.")
    return expected(**{name: parse_json(hints[name], item, f"{prefix}{name}") for name, item in value.items()})


_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema(expected: type, *, title: str, description: str) -> dict[str, Any]:
    """What `parse_json` accepts for a dataclass, as JSON Schema (draft 2020-12).

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


def build_strictly(kind: Any, data: dict[str, Any], *, where: str) -> Any:
    """A config dataclass from a mapping of a recipe or another YAML file; an unknown key names the nearest valid one.

    Args:
        kind: The dataclass.
        data: Plain values.
        where: Dotted path of `data` with its dot, for messages.

    Raises:
        RecipeError: Unknown or missing keys, wrong types, values that the dataclass refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    for key in data:
        if key not in fields:
            raise RecipeError(
                f"unknown recipe key `{where}{key}`.{did_you_mean(str(key), fields, where)} "
                f"Valid keys here: {', '.join(sorted(fields))}. An ignored key would silently run another recipe."
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecipeError(f"recipe key `{where}{missing[0]}` is missing and has no default. Add it.")
    values = {key: _convert(hints[key], value, where=f"{where}{key}") for key, value in data.items()}
    try:
        return kind(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"recipe section `{where.rstrip('.') or 'top level'}`: {error}") from error


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    """Check one value against its annotation; lists become tuples, ints pass for floats."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise RecipeError(f"recipe key `{where}` must be a mapping of values, got {value!r}.")
        return build_strictly(hint, value, where=f"{where}.")
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, where=where)
    if origin is Literal:
        if value not in get_args(hint):
            raise RecipeError(f"recipe key `{where}` must be one of {list(get_args(hint))}, got {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"recipe key `{where}` must be a list, got {value!r}.")
        inner = get_args(hint)[0]
        return tuple(_convert(inner, item, where=f"{where}[{i}]") for i, item in enumerate(value))
    expected = origin or hint
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise RecipeError(f"recipe key `{where}` must be of type {expected.__name__}, got {value!r}.")
    return value


def _convert_union(hint: Any, value: Any, *, where: str) -> Any:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, where=where)
        except RecipeError as error:
            errors.append(error)
    raise (errors[0] if len(errors) == 1 else RecipeError(f"recipe key `{where}`: {value!r} fits none of {hint}."))


def number(name: str, value: Any, interval: str, why: str, error: type[EDViTError] = RecipeError) -> None:
    """Raise `error` unless `value` is a number inside `interval`, written like `(0, 1]`; `why` tells what it breaks."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = " YAML reads 1e-3 as text: write 1.0e-3." if isinstance(value, str) else ""
        raise error(f"`{name}` must be a number in {interval}, got {value!r}: {why}.{hint}")
    low, high = (float(edge) for edge in interval[1:-1].split(","))
    is_above = value > low or (interval[0] == "[" and value == low)
    is_below = value < high or (interval[-1] == "]" and value == high)
    if math.isnan(value) or not (is_above and is_below):
        raise error(f"`{name}` must lie in {interval}, got {value}: {why}.")


def whole_number(name: str, value: Any, low: int, why: str, error: type[EDViTError] = RecipeError) -> None:
    """Raise `error` unless `value` is an integer of at least `low`; `why` tells what it breaks."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise error(f"`{name}` must be a whole number of at least {low}, got {value!r}: {why}.")
