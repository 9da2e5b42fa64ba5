# SPDX-License-Identifier: Apache-2.0
"""The floor plan of the package, read from its source: a room imports only rooms above it, and no file circles."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "edvit_hf"

# A line imports only lines above it; rooms that share a line do not know each other.
ROOMS = """
checks_edvit files_edvit
configuration_edvit
parts_edvit
saved_edvit
modeling_edvit
errors
tasks
strict
storage probabilities terminal tokens
architectures
auto hardware
manifest transforms
data hub
planning pruning training evaluation export bench card
runtime
isolation simulation
published
recipe
serving space
fleet
cli
__init__
"""
LINES = [line.split() for line in ROOMS.splitlines()]
ABOVE = {room: {name for above in LINES[:place] for name in above} for place, line in enumerate(LINES) for room in line}
DEVICE_ROOMS = {"manifest", "transforms", "hardware", "hub", "runtime", "isolation", "serving", "fleet"}
LIGHT_ROOMS = DEVICE_ROOMS | {"errors", "tasks", "strict", "storage", "probabilities"}
LIGHT_ROOMS |= {"architectures", "planning", "card", "space", "simulation"}
OF_THE_FRONT_DOOR = {"__version__"}  # all that a room may take from the package's own `__init__`
TRAVELS_TO_THE_HUB = tuple(sorted(path.stem for path in PACKAGE.glob("*_edvit.py")))
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, tree: ast.AST | None = None):
    """Every module that the file imports, lazily or not, with relative imports resolved."""
    package = ["edvit_hf", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names if module.startswith("edvit_hf"))


def rooms_imported(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imported(path) if name.startswith("edvit_hf.")}
    return names - OF_THE_FRONT_DOOR - {room_of(path)}


class WithoutTypeChecking(ast.NodeTransformer):
    """Drops what only type checkers import: it closes no circle when the code runs."""

    def visit_If(self, node):
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def files_imported(path: Path) -> set[Path]:
    tree = WithoutTypeChecking().visit(ast.parse(path.read_text(encoding="utf-8")))
    names = {name.split(".", 1)[1] for name in imported(path, tree) if name.startswith("edvit_hf.")}
    return {PACKAGE / f"{name.replace('.', '/')}.py" for name in names} & set(FILES) - {path}


def test_a_room_imports_only_rooms_above_it_and_no_file_circles():
    assert set(ABOVE) == {room_of(path) for path in FILES}, "every room has a place in the order, and no other"
    below = {str(path.relative_to(PACKAGE)): rooms_imported(path) - ABOVE[room_of(path)] for path in FILES}
    assert {path: rooms for path, rooms in below.items() if rooms} == {}
    TopologicalSorter({path: files_imported(path) for path in FILES}).prepare()  # raises `CycleError` with the circle


def test_light_rooms_and_the_files_that_travel_import_nothing_heavy_or_of_ours():
    heavy = {"torch", "transformers", "datasets"}
    for path in FILES:
        roots = {name.split(".")[0] for name in imported(path)}
        assert room_of(path) not in LIGHT_ROOMS or not roots & heavy, f"{path} imports {roots & heavy}"
    for name in TRAVELS_TO_THE_HUB:
        ours = tuple(f"edvit_hf.{each}" for each in TRAVELS_TO_THE_HUB)
        others = {module for module in imported(PACKAGE / f"{name}.py") if not module.startswith(ours)}
        roots = {module.split(".")[0] for module in others} - sys.stdlib_module_names
        assert roots <= {"torch", "transformers", "safetensors", "huggingface_hub"}


def test_files_and_functions_are_short_and_every_file_names_its_license():
    for folder in ("src", "tests", "benchmarks", "space_app", "recipes", "model_cards", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "SPDX-License-Identifier: Apache-2.0" in path.read_text(encoding="utf-8")[:200], path
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path} is too long"
        assert path.name not in {"utils.py", "helpers.py", "misc.py"}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 70, f"{path.name}:{node.lineno} {node.name} is {length} lines long"
