# SPDX-License-Identifier: Apache-2.0
"""A run that is killed or interrupted in every stage, and resumed each time, ends as an uninterrupted one."""

import json
import os
import signal

import pytest

from edvit_hf.storage import read_json
from support.ready import run_ready
from support.stopped_runs import REFUSED
from support.tiny_recipe import fingerprint, hashes

pytestmark = pytest.mark.slow

NO_CHANGES: dict = {}


def process(function, *arguments):
    """A process of its own that calls a function of `stopped_runs`: how it ended, and what it said."""
    code = "import json, sys; from support import stopped_runs as s; getattr(s, sys.argv[1])(*json.loads(sys.argv[2]))"
    told = json.dumps([str(each) if isinstance(each, os.PathLike) else each for each in arguments])
    return run_ready(code, function, told, env={**os.environ, "EDVIT_NUM_THREADS": "1"})


def succeed(function, *arguments):
    done = process(function, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_the_teacher_is_that_of(trip, work):
    """Every weight that the stage left is to the bit what an uninterrupted trip left there."""
    left = hashes(work / "01_teacher")
    assert "model/model.safetensors" in left
    assert left.items() <= hashes(trip / "01_teacher").items()


# (stage, rename inside it): the renames of a training are its checkpoints and then its result.
STOPS = [
    ("teacher", 3),
    ("split", 1),
    ("plan", 1),
    ("prune", 2),
    ("distill", 3),
    ("fuse", 2),
    ("evaluate", 4),
    ("export", 2),
    ("card", 3),
]


def test_a_run_stopped_in_every_stage_by_either_signal_ends_as_an_uninterrupted_one(finished_trip, tmp_path):
    work = tmp_path / "work"
    for stage, rename in STOPS:
        for number in (signal.SIGKILL, signal.SIGINT):
            code = process("run_and_stop", tmp_path, work, stage, rename, number, NO_CHANGES).returncode
            assert code == -number, f"not stopped by {number.name} in {stage} at rename {rename}"
    succeed("run_to_the_end", tmp_path, work, NO_CHANGES)
    assert fingerprint(work) == fingerprint(finished_trip[1])


def test_a_command_that_is_told_to_end_says_so_and_the_same_command_resumes(finished_trip, tmp_path):
    work = tmp_path / "work"
    told = process("command", tmp_path, work, "teacher", 3)
    assert told.returncode == 128 + signal.SIGTERM
    last = (told.stdout + told.stderr).strip().splitlines()[-1]
    assert last == "ended by SIGTERM: finished work is kept, the same command resumes"
    assert not (work / "01_teacher/done.json").exists()
    succeed("command", tmp_path, work, "teacher")
    assert read_json(work / "01_teacher/done.json")["resumed"] is True
    assert_the_teacher_is_that_of(finished_trip[1], work)


def test_a_full_disk_is_one_clear_error_and_the_run_resumes(finished_trip, tmp_path):
    work = tmp_path / "work"
    assert process("run_on_a_full_disk", tmp_path, work, 12_000).returncode == REFUSED
    assert not (work / "01_teacher/done.json").exists()
    succeed("run_to_the_end", tmp_path, work, NO_CHANGES, ["teacher"])
    assert_the_teacher_is_that_of(finished_trip[1], work)


SEVERAL_ROUNDS = {
    "teacher": {
        "from_scratch": {
            "model_type": "vit",
            "hidden_size": 12,
            "num_attention_heads": 3,
            "num_hidden_layers": 1,
            "intermediate_size": 24,
            "patch_size": 4,
        },
        "epochs": 1,
    },
    "prune": {"keep_heads": 1, "rounds": 2},
    "evaluate": {"baselines": False},
}


# Export and card read the weights alone, and the test above resumes them: they are not repeated here.
UP_TO_RESULTS = ("teacher", "split", "plan", "prune_round1", "retrain_round1", "prune", "distill", "fuse", "evaluate")


def test_a_run_stopped_in_every_pruning_round_ends_as_an_uninterrupted_one(tmp_path):
    whole, work, how = tmp_path / "whole", tmp_path / "work", (SEVERAL_ROUNDS, UP_TO_RESULTS)
    succeed("run_to_the_end", tmp_path, whole, *how)
    for stage, rename in (("prune_round1", 2), ("retrain_round1", 3), ("prune", 3)):
        code = process("run_and_stop", tmp_path, work, stage, rename, signal.SIGKILL, *how).returncode
        assert code == -signal.SIGKILL, f"not stopped in {stage} at rename {rename}"
    succeed("run_to_the_end", tmp_path, work, *how)
    assert fingerprint(work) == fingerprint(whole)
