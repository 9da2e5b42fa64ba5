# SPDX-License-Identifier: Apache-2.0
"""The light parts of the package stay light: fresh interpreters are asked what they loaded."""

import ast
import importlib
import json
import shutil
import sys

import pytest

import edvit_hf
from edvit_hf.errors import _OPTIONAL_PACKAGES, named_extra
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
    ".planning.keep_search",
    ".planning.splitting",
]


@pytest.mark.parametrize("module", ["", *LIGHT, ".data", ".cli", ".cli.machine"])
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


@pytest.mark.parametrize(
    "hidden", [{"torch"}, {"transformers"}, TORCH_STACK], ids=lambda names: " ".join(sorted(names))
)
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


@pytest.mark.parametrize(
    "hidden", [{"torch"}, {"transformers"}, {"accelerate"}, TORCH_STACK], ids=lambda names: " ".join(sorted(names))
)
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


@pytest.mark.parametrize(
    "hidden", [{"torch"}, {"optimum", "onnx"}, {"torch", "tqdm", "onnx"}], ids=lambda names: " ".join(sorted(names))
)
def test_exporting_names_all_that_is_missing_at_once(hidden, tmp_path):
    exit_code, text = cli_without(hidden, "export", tmp_path)
    assert exit_code == 1
    named = text.partition("Exporting needs the package")[2].partition("not installed")[0]
    assert {name for name in _OPTIONAL_PACKAGES if f"`{name}`" in named} == hidden
    assert "pip install 'edvit_hf[train,export]'" in text


LIGHT_COMMANDS = """
run digits --work-dir NEW
plan digits --figure NEW.png
plan digits --placement exact
plan DIR --fleet five_x86 --output NEW.json
plan a/b --fleet five_x86 --output NEW.json
simulate cifar10_vit_base --rate 1
export DIR
pull a/b --fusion --output NEW
zoo --org x
evaluate DIR
evaluate DIR --save
evaluate DIR --recipe digits
predict DIR README.md
predict a/b README.md
serve DIR --port 1
bench DIR --compared
bench DIR --repeats 1 --figure NEW.png
card DIR
card DIR --repo-id a/b
profile --output NEW.yaml --quick
space run DIR
space push a/b
""".strip().splitlines()


def test_every_command_of_a_light_install_ends_with_what_to_install(tmp_path):
    """One interpreter for all of them: nothing that is missing can be loaded by an earlier one."""
    shutil.copytree(SOURCE.parent / "space_app/model/digits", tmp_path / "ensemble")
    names = {"DIR": str(tmp_path / "ensemble"), "NEW": str(tmp_path / "new")}
    lines = [
        [part.replace("NEW", names["NEW"]) if "NEW" in part else names.get(part, part) for part in line.split()]
        for line in LIGHT_COMMANDS
    ]
    code = f"""
import json
from typer.testing import CliRunner
from edvit_hf.cli import app
for line in {lines!r}:
    done = CliRunner().invoke(app, line)
    print(json.dumps([done.exit_code, repr(done.exception), done.output]))
"""
    hidden = set(_OPTIONAL_PACKAGES) - {"pydantic"}  # typer needs it
    answers = [json.loads(line) for line in run_without(hidden, code).splitlines()]
    for line, (exit_code, exception, output) in zip(LIGHT_COMMANDS, answers, strict=True):
        assert exception.startswith(("SystemExit", "None")), (line, exception)
        if exit_code:
            assert exit_code == 1, (line, output)
            assert "pip install 'edvit_hf[" in output, (line, output)
    assert sum(exit_code == 0 for exit_code, *_ in answers) == 1, "a plan is made by a light install"
    assert {path.name for path in tmp_path.iterdir()} == {"ensemble", "new.json"}


def test_a_package_that_the_library_does_not_name_is_named_by_the_command(monkeypatch):
    from typer.testing import CliRunner

    from edvit_hf import bench
    from edvit_hf.cli import app

    def lacking(*_, **__):
        raise ModuleNotFoundError("No module named 'sklearn.utils'", name="sklearn.utils")

    monkeypatch.setattr(bench, "bench_ensemble", lacking)
    done = CliRunner().invoke(app, ["bench", "DIR"])
    assert done.exit_code == 1
    assert "`edvit bench` needs the package `scikit-learn`" in done.output
    assert "pip install 'edvit_hf[all]'" in done.output


def test_entry_points_of_the_library_name_what_is_missing():
    code = """
from pathlib import Path
from edvit_hf.errors import MissingExtraError
import edvit_hf.card, edvit_hf.card.zoo, edvit_hf.card.render, edvit_hf.published.compared, edvit_hf.published
from edvit_hf.published.compared import draw_compared
import edvit_hf.published.compared as compared

class Known:
    task = "image-classification"
    ensemble = None

Known.ensemble = Known
compared.Manifest = type("M", (), {"load": staticmethod(lambda _: Known)})
compared.compared_shapes = lambda _: {"teacher": None}
for call in (
    lambda: edvit_hf.card.zoo.zoo_of_hub("x"),
    lambda: edvit_hf.card.render.write_card(".", None),
    lambda: edvit_hf.published.measure_exported,
    lambda: draw_compared(Path("."), Path(".")),
):
    try:
        call()
    except MissingExtraError as error:
        print(error)
"""
    told = run_without(set(_OPTIONAL_PACKAGES), code).splitlines()
    assert len(told) == 4
    assert all("pip install 'edvit_hf[" in line for line in told)


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
