# SPDX-License-Identifier: Apache-2.0
"""Everything that does not fit in a recipe at once, each with its line.

Comes in: a recipe's values and the function that builds it, which stops at the first fault. Goes out: what it built, or
one error with all faults. Each fault is put down to a key; the recipe is then read again without that key, until it can
be built. A fault that only follows from a key left out that way is not told. Light: no torch.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from edvit_hf.errors import EDViTError, RecipeError
from edvit_hf.recipe.defaults import with_section_defaults
from edvit_hf.strict import RECIPE, read_strictly

_MOST = 200  # faults; nobody reads more of them
_STAND_INS: dict[str, dict[str, Any]] = {"dataset": {"path": "owner/any"}, "teacher": {"checkpoint": "owner/any"}}
_QUOTED = re.compile(r"`([A-Za-z_][\w.]*(?:\[\d+\])?[\w.]*)")

Build = Callable[[dict[str, Any]], Any]
Path = tuple[str, ...]


@dataclass
class _Reading:
    """What was found so far, and the values that are left."""

    values: dict[str, Any]
    faults: list[tuple[Path, str]] = field(default_factory=list)
    gone: set[Path] = field(default_factory=set)

    def note(self, path: Path, message: str) -> None:
        """Keep a fault, unless it speaks of a key that was left out for another one."""
        said = {tuple(name.split(".")) for name in _names(message)}
        follows = any(path in said or (path[-1],) in said for path in self.gone if path)
        if not follows:
            self.faults.append((path, message))


def read_completely(
    values: Mapping[str, Any], build: Build, kind: type, where: Callable[[Path], str], name: str
) -> Any:
    """What `build` makes of a recipe's values.

    Args:
        values: The sections as they are written.
        build: Takes values, returns the recipe; raises at the first fault.
        kind: The recipe's dataclass, whose sections are read one by one where something is wrong.
        where: Says of a key's path where it is written ("line 4"), and of one that is not written "".
        name: Of the file, for the message.

    Raises:
        RecipeError: Something does not fit; the message has a line for each fault.
    """
    try:
        return build(copy.deepcopy(dict(values)))
    except (EDViTError, TypeError, AttributeError) as error:
        first = error
    reading = _Reading(copy.deepcopy(dict(values)))
    for section, expected in _sections(kind).items():
        if section in reading.values:
            _read_section(reading, section, expected)
        elif section in _STAND_INS:
            reading.faults.append(((section,), f"recipe key `{section}` is missing and has no default."))
            reading.gone.add((section,))
            reading.values[section] = dict(_STAND_INS[section])
    _read_whole(reading, build)
    if not reading.faults:
        raise first
    raise RecipeError(_told(reading.faults, where, name)) from first


def _sections(kind: type) -> dict[str, type]:
    """The keys of a recipe that hold configs."""
    hints = get_type_hints(kind)
    return {key: hint for key, hint in hints.items() if hasattr(hint, "__dataclass_fields__")}


def _read_section(reading: _Reading, section: str, expected: type) -> None:
    def fault_of(values: Any) -> str | None:
        try:
            read_strictly(expected, with_section_defaults(section, values), section, RECIPE)
        except EDViTError as error:
            return str(error)
        return None

    values = reading.values[section]
    while (message := fault_of(values)) is not None and len(reading.faults) < _MOST:
        culprit = _culprit(message, values, fault_of, prefix=section) if isinstance(values, dict) else None
        reading.note((section, *(culprit or ())), _with_section(message, section))
        reading.gone.add((section, *(culprit or ())))
        if culprit is None:
            reading.values.pop(section)
            if section in _STAND_INS:
                reading.values[section] = dict(_STAND_INS[section])
            return
        values = reading.values[section] = _without(values, culprit)


def _read_whole(reading: _Reading, build: Build) -> None:
    def fault_of(values: Any) -> str | None:
        try:
            build(copy.deepcopy(values))
        except EDViTError as error:
            return str(error)
        return None

    while (message := fault_of(reading.values)) is not None and len(reading.faults) < _MOST:
        culprit = _culprit(message, reading.values, fault_of)
        reading.note(culprit or (), message)
        if culprit is None:
            return
        reading.gone.add(culprit)
        reading.values = _without(reading.values, culprit)
        if culprit[0] in _STAND_INS and not reading.values.get(culprit[0]):
            reading.values[culprit[0]] = dict(_STAND_INS[culprit[0]])


def _culprit(
    message: str, values: dict[str, Any], fault_of: Callable[[Any], str | None], prefix: str = ""
) -> Path | None:
    """The key without which the fault is gone: one that the message names, else any."""
    named = [path for name in _names(message) if (path := _written(name, values, prefix))]
    for path in dict.fromkeys([*named, *((key,) for key in values)]):
        if fault_of(_without(values, path)) != message:
            return path
    return None


def _names(message: str) -> list[str]:
    return [re.sub(r"\[\d+\].*", "", name).rstrip(".") for name in _QUOTED.findall(message)]


def _written(name: str, values: dict[str, Any], prefix: str) -> Path | None:
    """The longest written path that a dotted name leads to."""
    parts = name.split(".")
    if prefix and parts[0] == prefix:
        parts = parts[1:]
    found: list[str] = []
    inside: Any = values
    for part in parts:
        if not isinstance(inside, dict) or part not in inside:
            break
        found.append(part)
        inside = inside[part]
    return tuple(found) or None


def _without(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same values without one key."""
    left = copy.deepcopy(values)
    inside = left
    for part in path[:-1]:
        inside = inside[part]
    del inside[path[-1]]
    return left


def _with_section(message: str, section: str) -> str:
    return message if f"`{section}" in message else f"recipe section `{section}`: {message}"


def _told(faults: list[tuple[Path, str]], where: Callable[[Path], str], name: str) -> str:
    lines = sorted(((where(path), message) for path, message in faults), key=lambda each: _line_number(each[0]))
    if len(lines) == 1:
        place, message = lines[0]
        return f"recipe {name}{', ' if place else ''}{place}: {message}"
    told = "".join(f"\n  {place + ': ' if place else ''}{message}" for place, message in lines)
    return f"recipe {name} has {len(lines)} faults:{told}"


def _line_number(place: str) -> int:
    number = place.removeprefix("line ")
    return int(number) if number.isdigit() else 0
