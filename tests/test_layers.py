"""The import order of the package, read from the source: nouns <- stages <- runtime <- recipe <- cli."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "edvit_hf"

BASE = {"errors", "_version", "cores", "storage", "provenance", "typed_json", "strict_yaml"}
MODEL = {"configuration_edvit", "modeling_edvit", "parts_edvit"}
NOUNS = (
    BASE
    | MODEL
    | {
        "auto",
        "tasks",
        "transforms",
        "profiles",
        "manifest",
        "data",
        "architectures",
        "architecture_tables",
        "costs",
        "latency",
        "fleet",
        "fleet_costs",
        "placement_search",
        "placement_file",
        "placed_plan",
        "plan_data",
        "nearest_budgets",
        "baselines",
        "calibration",
        "metrics",
    }
)
STAGES = {"bench", "splitting", "planning", "pruning", "profiling", "training", "evaluation", "export", "model_card"}

# unit (module or sub-package) -> what of ours it may import
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "cores": set(),
    "tasks": set(),
    "storage": {"errors"},
    "provenance": {"cores", "errors"},
    "typed_json": {"errors"},
    "configuration_edvit": set(),
    "parts_edvit": {"configuration_edvit"},
    "modeling_edvit": {"configuration_edvit", "parts_edvit"},
    "auto": MODEL | {"errors", "tasks"},
    "transforms": {"errors", "tasks"},
    "strict_yaml": set(),
    "profiles": {"errors", "strict_yaml"},
    "architectures": {"errors"},
    "architecture_tables": {"architectures", "errors"},
    "costs": {"architectures", "architecture_tables", "errors"},
    "latency": {"errors", "costs", "profiles", "typed_json"},
    "fleet": {"errors", "profiles", "storage", "strict_yaml"},
    "placement_search": {"errors"},
    "plan_data": {"architectures", "costs", "storage"},
    "fleet_costs": {"costs", "errors", "fleet", "latency", "placement_search"},
    "nearest_budgets": {"fleet", "fleet_costs", "placement_search"},
    "placed_plan": {"errors", "fleet", "fleet_costs", "nearest_budgets", "placement_search", "plan_data"},
    "placement_file": {"errors", "storage", "typed_json"},
    "plan_figure": {"costs", "errors", "plan_data", "storage"},
    "manifest": {"errors", "typed_json", "profiles", "tasks"},
    "schemas": {"manifest", "placement_file", "typed_json"},
    "data": {"errors", "tasks", "transforms"},
    "calibration": {"errors"},
    "baselines": {"errors", "storage"},
    "metrics": {"errors", "calibration"},
    "card_tables": {"errors"},
    "card_words": {"card_tables", "tasks"},
    "card_exports": {"card_tables", "manifest"},
    "card_runtime": {"card_tables", "manifest"},
    "card_sources": {"card_exports", "card_runtime", "card_tables", "manifest"},
    "card_javascript": {"manifest", "tasks"},
    "card_figures": {"card_exports", "card_runtime", "card_sources", "card_tables", "errors", "manifest"},
    "card_data": {"card_tables", "card_words", "errors", "manifest", "storage", "tasks"},
    **dict.fromkeys(STAGES, NOUNS),
    "model_card": NOUNS
    | {"card_data", "card_exports", "card_figures", "card_javascript"}
    | {"card_runtime", "card_sources", "card_tables", "card_words"},
    "ensemble_source": {"errors", "hub", "manifest"},
    "runtime": {"calibration", "cores", "ensemble_source", "errors", "manifest", "profiles", "tasks", "transforms"},
    "serving": {"errors", "runtime", "tasks", "transforms"},
    "hub": {"errors", "manifest", "placement_file", "profiles", "storage", "tasks"},
    "space": {"_version", "ensemble_source", "errors", "hub", "manifest", "storage", "strict_yaml", "tasks"},
    "zoo": {"card_exports", "card_tables", "card_words", "errors", "hub", "manifest", "storage"},
    "doctor": NOUNS | {"training"},
    "tables": {"costs", "planning", "runtime", "storage"},
    "recipe": NOUNS | STAGES | {"ensemble_source", "plan_figure", "runtime"},
    "cli": {
        "bench",
        "errors",
        "_version",
        "recipe",
        "runtime",
        "serving",
        "tables",
        "doctor",
        "hub",
        "model_card",
        "plan_figure",
        "placement_file",
        "profiles",
        "profiling",
        "space",
        "storage",
        "zoo",
    },
    "__init__": {"_version", "auto", "manifest", "recipe", "runtime", *MODEL},
}
TRAVELS_TO_THE_HUB = {"torch", "transformers", "safetensors", "huggingface_hub"}


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path):
    """Every module the file imports, lazily or not, with relative imports resolved."""
    package = ["edvit_hf", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            if module == "edvit_hf":
                yield from (f"edvit_hf.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_order(path):
    unit = unit_of(path)
    assert unit in ALLOWED, f"{unit} has no row in the import table: add one"
    ours = {m.split(".")[1] for m in imported(path) if m.startswith("edvit_hf.")} - {unit}
    assert ours <= ALLOWED[unit], f"{path.name} may not import {sorted(ours - ALLOWED[unit])}"


def test_no_row_of_the_table_is_stale():
    assert set(ALLOWED) == {unit_of(path) for path in FILES}


def test_the_table_allows_no_circle():
    done: list[str] = []
    waiting = dict(ALLOWED)
    while waiting:
        free = [u for u, needs in waiting.items() if needs & set(waiting) - {u} <= set()]
        assert free, f"a circle among {sorted(waiting)}"
        done += free
        for unit in free:
            del waiting[unit]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    assert path.name not in {"utils.py", "helpers.py", "misc.py"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 70, f"{path.name}:{node.lineno} {node.name} is {length} lines long"


def test_the_light_modules_import_neither_torch_nor_transformers():
    for path in FILES:
        if unit_of(path) in {
            "errors",
            "tasks",
            "calibration",
            "cores",
            "manifest",
            "profiles",
            "transforms",
            "runtime",
            "serving",
            "splitting",
            "planning",
            "fleet",
            "fleet_costs",
            "latency",
            "architectures",
            "architecture_tables",
            "costs",
            "nearest_budgets",
            "placed_plan",
            "placement_file",
            "placement_search",
            "plan_data",
            "plan_figure",
            "storage",
            "strict_yaml",
        }:
            heavy = {m.split(".")[0] for m in imported(path)} & {"torch", "transformers", "datasets", "huggingface_hub"}
            assert not heavy, f"{path.name} imports {heavy}"


def test_the_files_that_travel_to_the_hub_import_nothing_of_ours_but_each_other():
    for name in MODEL:
        siblings = {f"edvit_hf.{sibling}" for sibling in MODEL}
        roots = {m.split(".")[0] for m in imported(PACKAGE / f"{name}.py") if m not in siblings}
        assert roots - sys.stdlib_module_names <= TRAVELS_TO_THE_HUB
