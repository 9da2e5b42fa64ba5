"""Threads follow the user, then the machine; the launch files are what accelerate reads."""

from pathlib import Path

import pytest
import torch

from edvit_hf.errors import RecipeError
from edvit_hf.training import use_all_cores

REPOSITORY = Path(__file__).parents[1]


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
    monkeypatch.setattr("edvit_hf.training.threads.usable_cores", lambda: 4)
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


@pytest.mark.parametrize("name", ["cpu", "single_gpu", "multi_gpu"])
def test_accelerate_reads_the_launch_files(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(REPOSITORY / f"recipes/accelerate/{name}.yaml"))
    assert config.use_cpu == (name == "cpu")
    assert config.num_processes == (2 if name == "multi_gpu" else 1)
    assert config.mixed_precision == "no"
