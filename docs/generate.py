# SPDX-License-Identifier: Apache-2.0
"""Write the pages of docs/ that are read from the code: recipes.md, cli.md and api.md.

python docs/generate.py            write them
python docs/generate.py --check    exit 1 if one of them is not what the code says
"""

import argparse
import ast
import dataclasses
import enum
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edvit_hf import cli
from edvit_hf.cli.examples import EXAMPLES
from edvit_hf.recipe.json_schema import key_meanings, recipe_json_schema
from edvit_hf.recipe.schema import Recipe
from edvit_hf.recipe.unread import READ_ONLY_WITH
from edvit_hf.training.config import TrainConfig

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "src" / "edvit_hf"
WRITTEN = (
    "<!-- Written by `make docs` (docs/generate.py) from the code. Edit the docstrings there, not this page. -->\n"
)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; what Markdown would take for a column or a tag is escaped."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(escaped(cell) for cell in line) + " |\n" for line in lines)


def escaped(cell: str) -> str:
    """Bars everywhere, and `<` outside of code."""
    parts = cell.replace("|", "\\|").split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


# docs/recipes.md


def type_words(hint: Any) -> str:
    """An annotation in the words of YAML."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return ", ".join(type_words(option) for option in inside if option is not type(None))
    if origin is Literal:
        return ", ".join(f"`{yaml_value(option)}`" for option in inside)
    if origin is tuple:
        items = type_words(inside[0]).replace(", ", " or ") + (" or null" if type(None) in get_args(inside[0]) else "")
        return "list of " + re.sub(r"\b(integer|number|text|mapping|list|null)\b", r"\1s", items)
    return {int: "integer", float: "number", bool: "`true`, `false`", str: "text"}.get(origin or hint, "mapping")


def yaml_value(value: Any) -> str:
    """A default as one writes it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return "[" + ", ".join(yaml_value(item) for item in value) + "]"
    return f'"{value}"' if value in ("yes", "no", "") else str(value)


def conditions(section: str) -> dict[str, str]:
    """The keys of a section that are read only under another value, and what that value is."""
    return {key: condition for where, keys, _, condition in READ_ONLY_WITH if where == section for key in keys}


def key_table(kind: type, section: str = "", leave_out: tuple[str, ...] = ()) -> str:
    """One row for each key of a config class; a key that the class does not explain is an error."""
    hints, said, rows = get_type_hints(kind), key_meanings(kind), []
    for field in dataclasses.fields(kind):
        if field.name in leave_out:
            continue
        if field.name not in said:
            raise SystemExit(f"{kind.__name__}: `{field.name}` has no line under `Attributes:`. Add one.")
        default = "required" if field.default is dataclasses.MISSING else f"`{yaml_value(field.default)}`"
        meaning = said[field.name]
        if field.name in conditions(section):
            meaning = re.sub(r"^Only with [^:]*: ", "", meaning)
            meaning = f"Read only with `{conditions(section)[field.name]}`: {meaning[0].lower()}{meaning[1:]}"
        rows.append((f"`{field.name}`", type_words(hints[field.name]), default, meaning))
    return table(("key", "values", "default", "meaning"), rows)


def nested_configs(kind: type) -> Iterator[tuple[str, type]]:
    """The keys of a config class whose values are config classes, and these."""
    for name, hint in get_type_hints(kind).items():
        yield from ((name, each) for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each))


def first_line(text: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def recipes_page() -> str:
    """Every key of a recipe, section by section."""
    hints, said = get_type_hints(Recipe), key_meanings(Recipe)
    fields = {f.name: f for f in dataclasses.fields(Recipe) if f.name not in ("name", "folder", "asked", "written")}
    page = f"""{WRITTEN}
# Recipe reference

A recipe is one YAML file that says everything about a trip. `edvit run RECIPE` takes it through the stages, `edvit plan
RECIPE` shows what each device would carry. It is read strictly: an unknown key is an error that names the nearest valid
one, and so is a key that the other values leave unread. Changing a value runs exactly those stages again that read it.
The recipes that ship are in [recipes/](../recipes); [digits.yaml](../recipes/digits.yaml) is the shortest.

Only `dataset` and `teacher` are needed. Everything that does not fit is told at once, each fault with its line, before
anything heavy is loaded: `edvit recipe check RECIPE` does that alone. Paths are relative to the recipe's file. A value
may be said otherwise for one run: `edvit run RECIPE distill.epochs=3`. [recipe.schema.json](recipe.schema.json)
(`edvit recipe schema`) lets an editor complete and check keys; name it in a first line
`# yaml-language-server: $schema=recipe.schema.json`.

"""
    rows = []
    for name in fields:
        is_section = dataclasses.is_dataclass(hints[name])
        needed = fields[name].default is fields[name].default_factory is dataclasses.MISSING
        key = f"[`{name}`](#{name})" if is_section else f"`{name}`"
        rows.append((key, "section" if is_section else type_words(hints[name]), "yes" if needed else "no", said[name]))
    page += table(("key", "values", "required", "meaning"), rows)
    shared = tuple(f.name for f in dataclasses.fields(TrainConfig))
    page += f"""
## Training values

`teacher`, `distill` and `fuse` all take these keys. `epochs` left out: 20 in `distill`, 30 in `fuse`; in `teacher` 60
for one `from_scratch` and 0 for a `checkpoint`, which is then taken as it is.

{key_table(TrainConfig)}"""
    for name in fields:
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            continue
        trains = issubclass(kind, TrainConfig)
        page += f"\n## {name}\n\n{first_line(kind.__doc__)}"
        page += " Besides the [training values](#training-values):" if trains else ""
        page += f"\n\n{key_table(kind, name, shared if trains else ())}"
        for key, inner in nested_configs(kind):
            page += f"\n### {name}.{key}\n\n{first_line(inner.__doc__)}\n\n{key_table(inner)}"
    return page


# docs/cli.md


def option_names(parameter: inspect.Parameter, info: Any) -> str:
    """How an option is written on the command line."""
    written = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
    if not written:
        name = parameter.name.replace("_", "-")
        flag = parameter.default is False or parameter.default is True
        written = [f"--{name}/--no-{name}" if flag else f"--{name}"]
    return ", ".join(f"`{each}`" for each in written)


def parameter_values(hint: Any) -> str:
    """What an option or argument takes."""
    options = [option for option in get_args(hint) if option is not type(None)]
    kind = options[0] if get_origin(hint) in (Union, types.UnionType) else hint
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{option}`" for option in get_args(kind))
    if isinstance(kind, enum.EnumMeta):
        return ", ".join(f"`{member.value}`" for member in kind)
    return {bool: "", int: "integer", float: "number", str: "text", Path: "path"}[kind]


def command_text(name: str, command: Any, level: str) -> str:
    """Usage, help, arguments and options of one command."""
    hints = get_type_hints(command, include_extras=True)
    arguments, options, usage = [], [], f"edvit {name}"
    for parameter in inspect.signature(command).parameters.values():
        kind, info = get_args(hints[parameter.name])
        if type(info).__name__ == "ArgumentInfo":
            word = info.metavar or parameter.name.upper()
            needed = parameter.default is inspect.Parameter.empty
            arguments.append((f"`{word}`", parameter_values(kind), info.help or ""))
            usage += f" {word}" if needed else f" [{word}]"
        elif not info.hidden:
            value = parameter.default.value if isinstance(parameter.default, enum.Enum) else parameter.default
            unset = value in (None, False, inspect.Parameter.empty) or value == []
            default = "" if unset else f"`{yaml_value(value)}`"
            options.append((option_names(parameter, info), parameter_values(kind), default, info.help or ""))
    text = (
        f"\n{level} edvit {name}\n\n```\n{usage}{' [OPTIONS]' if options else ''}\n```\n\n{inspect.getdoc(command)}\n"
    )
    text += "\n```bash\n" + "\n".join(EXAMPLES.get(name, ())) + "\n```\n"
    text += "\n" + table(("argument", "values", "meaning"), arguments) if arguments else ""
    text += "\n" + table(("option", "values", "default", "meaning"), options) if options else ""
    return text


def cli_page() -> str:
    """Every command with its arguments and options."""
    page = f"{WRITTEN}\n# Command line\n\n{cli.app.info.help}\n\n{cli.app.info.epilog}\n\n"
    page += "Every command explains itself with `-h`. `edvit --install-completion` completes them in your shell.\n"
    for command in cli.app.registered_commands:
        page += command_text(command.name or command.callback.__name__, command.callback, "##")
    for group in cli.app.registered_groups:
        name = group.name or group.typer_instance.info.name
        page += f"\n## edvit {name}\n\n{group.typer_instance.info.help}\n"
        for command in group.typer_instance.registered_commands:
            page += command_text(f"{name} {command.name or command.callback.__name__}", command.callback, "###")
    return page


# docs/api.md


def module_path(module: str) -> Path:
    """The source file of a module of the package."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Public name -> module that an `__init__` imports it from, in type-checking blocks too."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: node.module or "" for node in nodes for alias in node.names}


def said_of(module: str, name: str) -> str:
    """The first sentence of what the source says of a name: a docstring, or the string under a constant."""
    tree = ast.parse(module_path(module).read_text(encoding="utf-8"))
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return first_line(ast.get_docstring(node))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            code = ast.unparse(node)
            return first_line(after.value.value) if is_text else f"`{code if len(code) < 90 else code.split(' = ')[0]}`"
    origin = imported_names(tree).get(name, "")
    return said_of(origin, name) if origin.startswith("edvit_hf.") else ""


def public_names(tree: ast.Module) -> list[str]:
    """The names of `__all__` where it is written out, else those that `lazy` is told of."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
        if isinstance(node, ast.Assign) and "lazy(" in ast.unparse(node.value):
            return sorted(name for names in ast.literal_eval(node.value.args[1]).values() for name in names)
    return []


def api_page() -> str:
    """Every public name of every package that has some."""
    page = f"""{WRITTEN}
# Python API

The public names of each package, with the first sentence of their docstrings. Names load when they are first touched:
`import edvit_hf` loads neither torch nor transformers. What is not named here may change without notice.
"""
    for path in sorted(PACKAGE.rglob("__init__.py")):
        module = ".".join(("edvit_hf", *path.relative_to(PACKAGE).parts[:-1]))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = public_names(tree)
        if names and module != "edvit_hf.cli":
            page += f"\n## {module}\n\n{first_line(ast.get_docstring(tree))}\n\n"
            page += table(("name", "what it is"), [(f"`{name}`", said_of(module, name)) for name in names])
    return page


def schema_file() -> str:
    """The JSON Schema of a recipe, as `edvit recipe schema` writes it."""
    return json.dumps(recipe_json_schema(), indent=2) + "\n"


PAGES = {"recipes.md": recipes_page, "cli.md": cli_page, "api.md": api_page, "recipe.schema.json": schema_file}


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether they are what the code says")
    check = parser.parse_args().check
    pages = {DOCS / name: page() for name, page in PAGES.items()}
    stale = [path.name for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text]
    if check and stale:
        sys.exit(f"docs/{', docs/'.join(stale)}: not what the code says. Run `make docs`.")
    for path, text in pages.items():
        if path.name in stale:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
