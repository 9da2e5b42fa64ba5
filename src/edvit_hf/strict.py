# SPDX-License-Identifier: Apache-2.0
"""Files are read strictly: a dataclass is the schema, and what does not fit it is named precisely.

Comes in: the plain values of a YAML or JSON file and a dataclass, or one value and the range it may have. Goes out: the
dataclass, or an error that names the key. Whoever reads recipes, manifests, fleets and results calls it.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import types
from collections.abc import Collection, Hashable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from edvit_hf.errors import EDViTError, RecipeError, did_you_mean

_MAX_DEPTH = 64  # of lists and objects inside each other
_MAX_DIGITS = 100  # of a whole number
MAX_YAML_BYTES = 2**18  # a fleet of thousands of devices; parsed in pure Python, which takes seconds
_MAX_YAML_VALUES = 200_000  # with every alias written out


# `Path.is_file` and `Path.is_dir` raise on a name that is too long or has a zero byte; here it is that of no file.
is_file, is_folder = os.path.isfile, os.path.isdir


class _Loader(yaml.SafeLoader):
    """`SafeLoader` without doubled keys and without depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"lists or mappings more than {_MAX_DEPTH} deep inside each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

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


_Loader.add_implicit_resolver(  # YAML 1.2 reads 1e-3 as a number, PyYAML's 1.1 wants 1.0e-3
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def load_yaml(text: str | bytes) -> Any:
    """Parse YAML into plain values; a byte order mark is passed over. A number may be written as `1e-3`.

    Raises:
        yaml.YAMLError: It is no YAML, no UTF-8, or a mapping names a key twice; or it is made to harm: too long, nested
            too deeply, an alias within what it names, or aliases that multiply into more values than anybody writes.
    """
    if len(text) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"more than {MAX_YAML_BYTES} characters")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise yaml.YAMLError(f"bytes that are not UTF-8 at position {error.start}") from error
    except (ValueError, OverflowError) as error:  # a date that no calendar has, a number of thousands of digits
        raise yaml.YAMLError(f"a value that cannot be: {error}") from error


def yaml_lines(text: str | bytes) -> dict[tuple[str, ...], int]:
    """The line, from 1, of every key of a YAML text that `load_yaml` reads, by the path of keys that leads to it."""
    loader = _Loader(text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff"))
    lines: dict[tuple[str, ...], int] = {}
    found: list[tuple[tuple[str, ...], Any]] = [((), loader.get_single_node())]
    for path, node in found:  # grows below
        if isinstance(node, yaml.MappingNode) and len(lines) < _MAX_YAML_VALUES:
            for key, value in node.value:
                inside = (*path, str(key.value))
                lines[inside] = key.start_mark.line + 1
                found.append((inside, value))
    return lines


def _count_values(node: yaml.Node, known: dict[yaml.Node, int | None]) -> int:
    """How many values a node stands for when every alias in it is written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node in known:
        count = known[node]
        if count is None:
            raise yaml.YAMLError(f"an alias inside of what it names, at line {node.start_mark.line + 1}")
        return count
    known[node] = None
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    count = 1 + sum(_count_values(part, known) for part in parts)
    if count > _MAX_YAML_VALUES:
        raise yaml.YAMLError(f"aliases or lists that stand for more than {_MAX_YAML_VALUES} values")
    known[node] = count
    return count


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, read as strictly as RFC 8259 allows; a byte order mark is passed over.

    Raises:
        ValueError: It is damaged, or made to harm: no UTF-8, a key twice in one object, NaN, a number that no
            computer holds, half a character, or nested too deeply. The message is what came instead of JSON.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"bytes that are not UTF-8 at position {error.start}") from error
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_real, parse_int=_whole
        )
    except RecursionError as error:
        raise ValueError(f"lists or objects more than {_MAX_DEPTH} deep inside each other") from error
    except json.JSONDecodeError as error:
        found = f"text that breaks at line {error.lineno} ({error.msg})" if text.strip() else "nothing, it is empty"
        raise ValueError(found) from error
    _check_depth(value)
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("half a character (a surrogate without its other half)") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {double!r:.60} twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name}, which is no number of JSON")


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits:.40}, which is beyond every float")
    return value


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError(f"lists or objects more than {_MAX_DEPTH} deep inside each other")
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for part in inside for each in part if isinstance(each, dict | list)]
        depth += 1


@dataclasses.dataclass(frozen=True)
class Form:
    """How a kind of file is read, and how messages speak of it.

    Attributes:
        label: Stands before the name of a key in messages.
        mapping: What the format calls a mapping of keys to values.
        error: Raised for everything that does not fit.
        takes_infinity: Whether a number may be infinite or NaN.
    """

    label: str = ""
    mapping: str = "an object"
    error: type[ValueError] = ValueError
    takes_infinity: bool = False


JSON = Form()
YAML = Form(mapping="a mapping of keys to values", takes_infinity=True)
RECIPE = Form("recipe key ", mapping="a mapping of keys to values", error=RecipeError, takes_infinity=True)
NOT_READ: dict[str, Any] = {"is_read": False}
"""`metadata` of a dataclass field that no file holds."""


def read_strictly(expected: Any, value: Any, where: str = "", form: Form = JSON) -> Any:
    """Turn parsed JSON or YAML into `expected`.

    Args:
        expected (`type`): A dataclass, builtin, Literal, list, tuple or dict of these, or a union. Whole numbers pass
            for floats, lists for tuples.
        value (`Any`): What was parsed.
        where (`str`): Dotted path of `value`, named in errors.
        form (`Form`): How errors speak of it, and their class.

    Raises:
        ValueError: The form's: an unknown or missing key, a wrong type, or a value that the dataclass refuses.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    key = _called(where, form)
    if expected is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, where, form)
    if origin is Literal:
        if value not in arguments:
            raise form.error(f"{key} must be one of {list(arguments)}, got {value!r:.60}.")
        return value
    if dataclasses.is_dataclass(expected):
        return _read_dataclass(expected, value, where, form)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise form.error(f"{key} must be a list, got {value!r:.60}.")
        if arguments[0] in (int, str) and all(type(item) is arguments[0] for item in value):
            return origin(value)  # a label or class each: there may be very many
        if arguments[0] is float and all(type(item) is float and math.isfinite(item) for item in value):
            return origin(value)
        return origin(read_strictly(arguments[0], item, f"{where}[{i}]", form) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise form.error(f"{key} must be {form.mapping}, got {value!r:.60}.")
        return {name: read_strictly(arguments[1], item, f"{where}.{name}", form) for name, item in value.items()}
    accepted = (int, float) if expected is float else expected
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise form.error(f"{key} must be of type {expected.__name__}, got {value!r:.60}.")
    if expected is float and not is_finite(value) and not (form.takes_infinity and isinstance(value, float)):
        raise form.error(f"{key} must be finite, got {value!r:.60}.")
    return expected(value)


def read_fields(kind: Any, value: Any, where: str = "", form: Form = JSON) -> dict[str, Any]:
    """The fields of a dataclass that a mapping holds, each read strictly; for the rest see `read_strictly`."""
    if not isinstance(value, dict):
        raise form.error(f"{_called(where, form)} must be {form.mapping}, got {value!r:.60}.")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.metadata.get("is_read", True)}
    hints, prefix = get_type_hints(kind), f"{where}." if where else ""
    for name in value:
        if name not in fields:
            raise form.error(
                f"unknown {form.label or 'key '}`{prefix}{name}`.{did_you_mean(str(name), fields, prefix)} Valid keys "
                f"here: {', '.join(sorted(fields))}. An ignored key would silently leave another value in its place."
            )
    for name, f in fields.items():
        if name not in value and f.default is f.default_factory is dataclasses.MISSING:
            raise form.error(f"{form.label or 'the key '}`{prefix}{name}` is missing and has no default.")
    return {name: read_strictly(hints[name], item, f"{prefix}{name}", form) for name, item in value.items()}


def _called(where: str, form: Form) -> str:
    return f"{form.label}`{where}`" if where else "it"


def _read_dataclass(kind: Any, value: Any, where: str, form: Form) -> Any:
    values = read_fields(kind, value, where, form)
    try:
        return kind(**values)
    except ValueError as error:
        if isinstance(error, form.error):
            raise
        raise form.error(f"{form.label.replace('key', 'section')}`{where or 'top level'}`: {error}") from error


def _read_union(options: Sequence[Any], value: Any, where: str, form: Form) -> Any:
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    for option in options[:-1]:
        with contextlib.suppress(form.error):
            return read_strictly(option, value, where, form)
    try:
        return read_strictly(options[-1], value, where, form)
    except form.error as error:
        if len(options) == 1:
            raise
        names = " or ".join(option.__name__ if isinstance(option, type) else str(option) for option in options)
        raise form.error(f"{_called(where, form)} must be of type {names}, got {value!r:.60}.") from error


def is_finite(value: float) -> bool:
    """Whether arithmetic can use a number: a whole number may exceed every float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def number(name: str, value: Any, interval: str, why: str, error: type[EDViTError] = RecipeError) -> None:
    """Raise `error` unless `value` is a number inside `interval`, written like `(0, 1]`; `why` tells what it breaks."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise error(f"`{name}` must be a number in {interval}, got {value!r:.60}: {why}.")
    low, high = (float(edge) for edge in interval[1:-1].split(","))
    is_above = value > low or (interval[0] == "[" and value == low)
    is_below = value < high or (interval[-1] == "]" and value == high)
    is_beyond_floats = isinstance(value, int) and not is_finite(value)
    if value != value or is_beyond_floats or not (is_above and is_below):  # only NaN differs from itself
        raise error(f"`{name}` must lie in {interval}, got {value!s:.60}: {why}.")


def whole_number(name: str, value: Any, low: int, why: str, error: type[EDViTError] = RecipeError) -> None:
    """Raise `error` unless `value` is an integer of at least `low`; `why` tells what it breaks."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise error(f"`{name}` must be a whole number of at least {low}, got {value!r:.60}: {why}.")


def one_of(name: str, value: Any, options: Collection[str], why: str, error: type[EDViTError] = RecipeError) -> None:
    """Raise `error` unless `value` is one of `options`; `why` tells what it decides."""
    # A list or a mapping can be no key, so it is not looked for.
    if not isinstance(value, Hashable) or value not in options:
        raise error(f"`{name}` must be one of {', '.join(options)}, got {value!r:.60}: {why}.")
