"""The light parts of the package stay light: fresh interpreters are asked what they loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edvit_hf

SOURCE = Path(edvit_hf.__file__).parents[1]
HEAVY = {"torch", "transformers", "safetensors", "datasets", "PIL", "onnx", "gradio", "matplotlib", "sklearn"}
IMPORT_SECONDS = 0.3


def run_fresh(code):
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def heavy_after(statement):
    """Which heavy packages a fresh interpreter holds after `statement`."""
    return set(run_fresh(f"{statement}; import sys; print(*(set({sorted(HEAVY)!r}) & sys.modules.keys()))").split())


@pytest.mark.parametrize("module", ["", ".errors", ".manifest", ".transforms", ".runtime"])
def test_light_modules_load_no_heavy_package(module):
    assert heavy_after(f"import edvit_hf{module}") == set()


def test_importing_the_package_is_quick():
    code = "import time; t = time.perf_counter(); import edvit_hf; print(time.perf_counter() - t)"
    best = min(float(run_fresh(code)) for _ in range(4))
    assert best < IMPORT_SECONDS, f"import edvit_hf took {best:.3f} s at best"


def test_a_heavy_package_would_be_noticed():
    assert heavy_after("import PIL") == {"PIL"}


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
