# SPDX-License-Identifier: Apache-2.0
"""The light parts of the package stay light: fresh interpreters are asked what they loaded."""

import ast
import importlib
import json
import sys

import pytest

import edvit_hf
from edvit_hf.errors import named_extra
from support.fresh import SOURCE, run_fresh, run_without

HEAVY = {
    *("torch", "transformers", "safetensors", "datasets", "PIL", "onnx", "gradio", "matplotlib", "sklearn"),
    *("scipy", "soundfile", "soxr", "tokenizers"),
}
IMPORT_SECONDS = 0.3


def heavy_after(statement):
    """Which heavy packages a fresh interpreter holds after `statement`."""
    return set(run_fresh(f"{statement}; import sys; print(*(set({sorted(HEAVY)!r}) & sys.modules.keys()))").split())


LIGHT = [
    ".errors",
    ".hardware",
    ".manifest",
    ".transforms",
    ".runtime",
    ".recipe",
    ".recipe.schema",
    ".recipe.stages.plan",
]


@pytest.mark.parametrize("module", ["", *LIGHT, ".planning.keep_search", ".splitting", ".data", ".cli", ".cli.machine"])
def test_light_modules_load_no_heavy_package(module):
    assert heavy_after(f"import edvit_hf{module}") == set()


def test_importing_the_package_is_quick():
    code = "import time; t = time.process_time(); import edvit_hf; print(time.process_time() - t)"
    best = min(float(run_fresh(code)) for _ in range(4))  # of the processor: others may have it meanwhile
    assert best < IMPORT_SECONDS, f"import edvit_hf took {best:.3f} s at best"


def test_onnxruntime_leaves_an_id_of_the_device_only_where_the_user_lets_it_report(tmp_path, monkeypatch):
    left = {}
    for chosen in ("0", None):
        home = tmp_path / f"telemetry_{chosen}"
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        if chosen is not None:
            monkeypatch.setenv("ORT_DISABLE_TELEMETRY", chosen)
        found = run_fresh("import os, edvit_hf.runtime; import onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])")
        assert found == (chosen or "1")
        left[chosen] = [path.name for path in home.rglob("*") if path.is_file()]
    assert left[None] == []
    if not left["0"]:
        pytest.skip(
            "onnxruntime leaves no file where it may report either: built without telemetry, a mark of a build that "
            "conftest.py does not know, or files in another place. Only the variable was checked."
        )


@pytest.mark.parametrize(("chosen", "kept"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_whether_onnxruntime_may_report_stays_as_the_user_set_it(monkeypatch, chosen, kept):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if chosen is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", chosen)
    assert run_fresh("import os, edvit_hf; print(os.environ['ORT_DISABLE_TELEMETRY'])") == kept


@pytest.mark.parametrize("package", ["PIL", "soundfile", "soxr", "tokenizers", "scipy"])
def test_a_heavy_package_would_be_noticed(package):
    assert package in heavy_after(f"import {package}")


def test_touching_a_model_class_registers_the_auto_classes(monkeypatch):
    from transformers import CONFIG_MAPPING

    assert edvit_hf.EDViTConfig  # loaded once, so that what is taken away below comes back afterwards
    monkeypatch.delitem(sys.modules, "edvit_hf.auto")
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "edvit")
    assert "edvit" not in CONFIG_MAPPING
    assert edvit_hf.EDViTConfig is CONFIG_MAPPING["edvit"]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'EDVitModel'; public names: .*EDViTModel"):
        edvit_hf.EDVitModel  # noqa: B018


def test_every_public_name_resolves_or_is_lazy():
    assert set(edvit_hf.__all__) <= set(dir(edvit_hf))
    assert edvit_hf.EDViTModel.__name__ == "EDViTModel"


TORCH_STACK = ("torch", "transformers", "safetensors", "huggingface_hub", "accelerate", "datasets", "psutil")


def cli_without(hidden, *arguments):
    """Exit code and whatever `edvit` prints where the packages are not installed."""
    code = f"""
from typer.testing import CliRunner
from edvit_hf.cli import app
result = CliRunner().invoke(app, {[str(a) for a in arguments]!r}, catch_exceptions=False)
print(result.exit_code, " ".join(result.output.split()))
"""
    exit_code, _, text = run_without(hidden, code).partition(" ")
    return int(exit_code), text


def test_a_hidden_package_is_missing_as_if_it_were_not_installed():
    code = "try:\n    import torch\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    assert run_without({"torch"}, code) == "torch"


def test_planning_needs_neither_torch_nor_transformers():
    exit_code, text = cli_without(TORCH_STACK, "plan", "digits", "--format", "json")
    assert exit_code == 0
    assert len(json.loads(text)["sub_models"]) == 5
    assert cli_without(TORCH_STACK, "--help")[0] == 0


@pytest.mark.parametrize("hidden", [{"torch"}, {"transformers"}, TORCH_STACK], ids=" ".join)
def test_touching_a_model_class_without_its_packages_names_the_extra(hidden):
    code = """
import edvit_hf
from edvit_hf.errors import MissingExtraError
for touch in (lambda: edvit_hf.EDViTModel, lambda: __import__("edvit_hf.auto")):
    try:
        touch()
    except MissingExtraError as error:
        print(error)
"""
    lines = run_without(hidden, code).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("Using a model class needs the package `")
        assert line.endswith("Install it with: pip install 'edvit_hf[torch]'")


@pytest.mark.parametrize("hidden", [{"torch"}, {"transformers"}, {"accelerate"}, TORCH_STACK], ids=" ".join)
def test_running_without_the_training_stack_names_the_extra(hidden, tmp_path):
    exit_code, text = cli_without(hidden, "run", "digits", "--work-dir", tmp_path)
    assert exit_code == 1
    assert f"needs the package `{'torch' if len(hidden) > 1 else next(iter(hidden))}`" in text
    assert "pip install 'edvit_hf[train,export]'" in text
    assert not list(tmp_path.iterdir())


def test_evaluating_without_the_training_stack_names_the_extra(tmp_path):
    exit_code, text = cli_without(TORCH_STACK, "evaluate", tmp_path)
    assert exit_code == 1
    assert "pip install 'edvit_hf[train]'" in text


def test_a_missing_package_that_no_extra_installs_is_not_renamed():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), named_extra("This", "torch"):
        import no_such_package  # noqa: F401


@pytest.mark.parametrize("hidden", [{"psutil"}, TORCH_STACK], ids=["psutil", "torch stack"])
def test_the_doctor_works_without_what_it_reports_on(hidden):
    exit_code, text = cli_without(hidden, "doctor", "--offline", "--format", "json")
    assert exit_code == 0
    found = {finding["subject"]: finding for finding in json.loads(text)["findings"]}
    assert ("torch is not installed" in found["threads"]["text"]) == ("torch" in hidden)


def test_a_lazy_package_offers_the_names_that_type_checkers_see():
    lazy_packages = [path for path in SOURCE.rglob("edvit_hf/**/__init__.py") if "= lazy(" in path.read_text()]
    assert len(lazy_packages) > 7
    for path in lazy_packages:
        blocks = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
        seen = {alias.name for block in blocks for node in block.body for alias in node.names}
        package = importlib.import_module(".".join(path.parent.relative_to(SOURCE).parts))
        assert seen == set(package.__all__) - {"__version__"}, path
