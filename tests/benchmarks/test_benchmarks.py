# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what the trip does: the same start of the fusion head, the same samples and sizes."""

import importlib
import importlib.util
import json
import re
import sys

import pytest
import torch

from edvit_hf.recipe import STAGES, load_recipe
from edvit_hf.recipe.running import stage_dir
from edvit_hf.recipe.trip import Trip, load_array
from support.benchmarks import BENCHMARKS, benchmark
from support.ready import run_ready

SHARED = (
    "reduced_trip",
    "cut_fleet",
    "vit_base_models",
    "vit_base_rewrites",
    "stub_fleet",
    "stub_devices",
)  # read by scripts, not run
SCRIPTS = [p for p in sorted(BENCHMARKS.glob("*/*.py")) if p.parent.name != "report" and p.stem not in SHARED]
HELP = """
import contextlib, io, runpy, sys
path = list(sys.path)
for script in sys.argv[1:]:
    sys.argv, sys.path = [script, "--help"], [script.rpartition("/")[0], *path[1:]]  # as `python SCRIPT --help` has it
    sys.modules.pop("harness", None)
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    words = f"python {script.partition('/benchmarks/')[1][1:]}{script.partition('/benchmarks/')[2]}"
    assert "usage: " in shown.getvalue() and words in shown.getvalue(), script
"""


@pytest.fixture
def trip(finished_trip):
    path, work = finished_trip
    return Trip(load_recipe(path), {stage.name: stage_dir(work, stage.name) for stage in STAGES})


def test_every_script_starts_by_itself_and_its_help_names_the_command_that_runs_it():
    done = run_ready(HELP, *SCRIPTS)
    assert done.returncode == 0, done.stderr


def test_whatever_the_benchmarks_import_of_the_package_is_there():
    """Also what they import within a function, or in the code of a process that they start."""
    text = "\n".join(path.read_text() for path in BENCHMARKS.rglob("*.py"))
    text = re.sub(r"import \(([\w,\s]+)\)", lambda names: f"import {' '.join(names[1].split()).rstrip(',')}", text)
    for module, names in sorted(set(re.findall(r"from (edvit_hf[\w.]*) import ([\w, ]+)", text))):
        found = importlib.import_module(module)
        for name in names.split(", "):
            assert hasattr(found, name.strip()) or importlib.util.find_spec(f"{module}.{name}"), (module, name)


def test_the_dropout_benchmark_trains_the_head_that_the_trip_trains(trip):
    module, config = benchmark("trips.sub_model_dropout"), trip.recipe.fuse
    features = load_array(trip.folders["fuse"] / "features.safetensors")
    head = module.fusion_head(trip, features, config.sub_model_dropout, config.seed)
    expected = trip.ensemble.fusion.state_dict()
    assert head.state_dict().keys() == expected.keys()
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    other = module.fusion_head(trip, features, 0.5, config.seed).state_dict()
    assert any(not torch.equal(other[name], value) for name, value in expected.items())


def test_every_approximation_of_the_importance_is_compared_with_exact_kl(trip, finished_trip, tmp_path, monkeypatch):
    module, (path, work) = benchmark("pruning.importance_agreement"), finished_trip
    arguments = ["x", str(trip.folders["teacher"] / "model"), "--recipe", str(path), "--work-dir", str(work)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--results-dir", str(tmp_path), "--samples-per-class", "2"])
    module.main()
    result = json.loads((tmp_path / "importance_agreement_tiny.json").read_text())
    assert set(result["summary"]) == {"fisher", "linear", "hybrid"}
    assert result["keep"] == {"keep_residual": 8, "keep_heads": 1, "keep_ffn": 16}
    assert [row["class_group"] for row in result["groups"]] == trip.class_groups
    for row in result["groups"]:
        assert row["num_samples"] == 2 * len(row["class_group"])
        assert set(row["seconds"]) == {"kl", "fisher", "linear", "hybrid"}
        assert row["hybrid"]["heads_overlap"] >= 0
