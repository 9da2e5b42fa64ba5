# SPDX-License-Identifier: Apache-2.0
"""A trip launched as two processes: one result, and the sub-models of a run that trains them in turn."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edvit_hf.recipe import run
from edvit_hf.storage import read_json
from support.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.slow

LAUNCHED = """
import sys
from support.ready import run_ready
done = run_ready(CODE, *sys.argv[1:])
sys.stderr.write(done.stderr)
sys.exit(done.returncode)
"""
CODE = """
import os, sys
from pathlib import Path
from edvit_hf.recipe import load_recipe, run
assert {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} <= set(os.environ), "not what torchrun started"
folder = Path(sys.argv[1])
stages = "teacher split plan prune distill".split()
records = run(load_recipe(folder / "tiny.yaml"), folder / "two", stages=stages)
assert not any(record.skipped for record in records)
again = run(load_recipe(folder / "tiny.yaml"), folder / "two", stages=["teacher", "distill"])
assert all(record.skipped for record in again)
"""


def launch(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "EDVIT_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True, check=False
    )


def test_two_processes_train_the_sub_models_that_one_trains_in_turn(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    script = tmp_path / "launched.py"
    script.write_text(f"CODE = {CODE!r}\n{LAUNCHED}")
    done = launch(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    two = tmp_path / "two"
    assert read_json(two / "05_distill/done.json")["num_processes"] == 2
    # The same teacher and cuts, distilled by one process, one sub-model after the other.
    one = tmp_path / "one"
    shutil.copytree(two, one)
    shutil.rmtree(one / "05_distill")
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")
    run(recipe, one, stages=["distill"])
    for index in range(2):
        file = f"05_distill/sub_models/{index:02d}/model.safetensors"
        ours, theirs = load_file(one / file), load_file(two / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
