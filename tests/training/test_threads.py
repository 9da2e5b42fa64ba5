# SPDX-License-Identifier: Apache-2.0
"""Threads follow the user, then the machine; the launch files are what accelerate reads."""

import sys
from pathlib import Path

import pytest
import torch

from edvit_hf.cli.machine import examine
from edvit_hf.errors import RecipeError
from edvit_hf.training import use_all_cores
from edvit_hf.training.threads import usable_physical_cores

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"EDVIT_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 4),
        ({"OMP_NUM_THREADS": "2", "ACCELERATE_MIXED_PRECISION": "no"}, 2),
        ({}, 4),
        ({"LOCAL_WORLD_SIZE": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "9"}, 1),
    ],
)
def test_threads_follow_the_user_then_the_cores(monkeypatch, environment, expected):
    names = ("EDVIT_NUM_THREADS", "OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
    for name in (*names, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("edvit_hf.training.threads.usable_physical_cores", lambda: 4)
    before = torch.get_num_threads()
    try:
        assert use_all_cores() == torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_wrong_number_of_threads_is_refused(monkeypatch, value):
    monkeypatch.setenv("EDVIT_NUM_THREADS", value)
    with pytest.raises(RecipeError, match="EDVIT_NUM_THREADS"):
        use_all_cores()


@pytest.mark.parametrize("name", ["cpu", "single_gpu"])
def test_accelerate_reads_the_launch_files(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(REPOSITORY / f"recipes/accelerate/{name}.yaml"))
    assert config.use_cpu == (name == "cpu")
    assert config.num_processes == 1
    assert config.mixed_precision == "no"


@pytest.mark.parametrize(("cores", "level"), [(1, "ok"), (4, "note")])
def test_the_doctor_compares_threads_with_the_cores_this_process_may_use(monkeypatch, cores, level):
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")
    monkeypatch.setattr("edvit_hf.training.threads.usable_physical_cores", lambda: cores)
    monkeypatch.setattr("edvit_hf.hardware.provenance.machine", lambda: {"cores": 64})
    before = torch.get_num_threads()
    try:
        (finding,) = (f for f in examine(check_hub=False)["findings"] if f["subject"] == "threads")
    finally:
        torch.set_num_threads(before)
    assert finding["level"] == level
    assert "64" not in finding["text"]


def test_without_psutil_the_logical_cpus_stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert usable_physical_cores() == 1
