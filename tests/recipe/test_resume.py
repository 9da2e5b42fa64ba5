# SPDX-License-Identifier: Apache-2.0
"""A run that is killed or interrupted in every stage, and resumed each time, ends as an uninterrupted one."""

import itertools
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from edvit_hf.storage import read_json
from support.tiny_recipe import fingerprint, tiny_recipe, write_tiny_recipe

NO_CHANGES: dict = {}
REFUSED = 17  # exit code of a run that ended with the expected error
PRELOAD = [
    "edvit_hf.recipe.running",
    "edvit_hf.recipe.stages.evaluate",
    "edvit_hf.export.ensemble",
    "edvit_hf.card.render",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "accelerate",
    "scipy.optimize",
    "onnxscript",
    "onnxruntime",
    "torch.onnx._internal.exporter._core",
    "transformers.exporters.exporter_onnx",
    "support.warm_export",
]


@pytest.fixture(scope="module")
def processes():
    """Clean processes that have the heavy imports already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def run_and_stop(
    folder: Path, work: Path, stage: str, rename: int, number: int, changes=NO_CHANGES, stages=None
) -> None:
    """Run the trip; send this process a signal just before its `rename`-th rename inside `stage`.

    Every file and folder of the library appears by a rename, so these are the moments when something is half-done.
    """
    from edvit_hf.recipe import run

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    now = {"stage": "", "count": 0}
    replace = os.replace

    def counted(source, target, **keywords):
        if now["stage"] == stage:
            now["count"] += 1
            if now["count"] == rename:
                signal.raise_signal(number)  # to this thread: `os.kill` may choose another, and the moment passes
        return replace(source, target, **keywords)

    os.replace = counted
    Path.replace = lambda self, target: counted(self, target) or Path(target)
    os.environ["EDVIT_NUM_THREADS"] = "1"
    observer = lambda name, what: now.update(stage=name, count=0)  # noqa: E731
    run(tiny_recipe(folder, **changes), work, stages=stages, observer=observer)


def run_whole(folder: Path, work: Path, file_size_limit: int | None = None, changes=NO_CHANGES, stages=None) -> None:
    from edvit_hf.errors import WorkDirError
    from edvit_hf.recipe import run

    os.environ["EDVIT_NUM_THREADS"] = "1"
    if file_size_limit is None:
        run(tiny_recipe(folder, **changes), work, stages=stages)
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    with pytest.raises(WorkDirError, match="Free space"):
        run(tiny_recipe(folder), work)
    os._exit(REFUSED)


def finish(processes, function, *arguments) -> int:
    process = processes.Process(target=function, args=arguments)
    process.start()
    process.join(timeout=200)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert finish(processes, run_whole, folder, folder / "work") == 0
    return fingerprint(folder / "work")


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name)
def test_a_run_stopped_in_every_stage_ends_as_an_uninterrupted_one(processes, uninterrupted, tmp_path, number):
    for stage, rename in STOPS:
        code = finish(processes, run_and_stop, tmp_path, tmp_path / "work", stage, rename, number)
        assert code == (-number if number == signal.SIGKILL else 1), f"not stopped in {stage} at rename {rename}"
    assert finish(processes, run_whole, tmp_path, tmp_path / "work") == 0
    assert fingerprint(tmp_path / "work") == uninterrupted


def command(folder: Path, work: Path, told: Path, checkpoint: int | None) -> None:
    """`edvit run`, which is sent SIGTERM just before the teacher's n-th file appears; what it says goes to a file."""
    from edvit_hf.cli import main

    replace, count = os.replace, itertools.count(1)

    def counted(source, target, **keywords):
        if "01_teacher" in str(target) and next(count) == checkpoint:
            signal.raise_signal(signal.SIGTERM)
        return replace(source, target, **keywords)

    os.replace = counted
    Path.replace = lambda self, target: counted(self, target) or Path(target)
    os.environ["EDVIT_NUM_THREADS"] = "1"
    with told.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["edvit", "run", str(write_tiny_recipe(folder)), "--work-dir", str(work)]
    main()


@pytest.mark.slow
def test_a_command_that_is_told_to_end_says_so_and_the_same_command_resumes(processes, uninterrupted, tmp_path):
    work, told = tmp_path / "work", tmp_path / "told"
    assert finish(processes, command, tmp_path, work, told, 3) == 128 + signal.SIGTERM
    last = told.read_text().strip().splitlines()[-1]
    assert last == "ended by SIGTERM: finished work is kept, the same command resumes"
    assert not (work / "01_teacher/done.json").exists()
    assert finish(processes, command, tmp_path, work, told, None) == 0
    assert read_json(work / "01_teacher/done.json")["resumed"] is True
    assert fingerprint(work) == uninterrupted


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_the_run_resumes(processes, uninterrupted, tmp_path):
    assert finish(processes, run_whole, tmp_path, tmp_path / "work", 12_000) == REFUSED
    assert finish(processes, run_whole, tmp_path, tmp_path / "work") == 0
    assert fingerprint(tmp_path / "work") == uninterrupted


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


@pytest.mark.slow
def test_a_run_stopped_in_every_pruning_round_ends_as_an_uninterrupted_one(processes, tmp_path):
    whole, work, how = tmp_path / "whole", tmp_path / "work", (SEVERAL_ROUNDS, UP_TO_RESULTS)
    assert finish(processes, run_whole, tmp_path, whole, None, *how) == 0
    for stage, rename in (("prune_round1", 2), ("retrain_round1", 3), ("prune", 3)):
        code = finish(processes, run_and_stop, tmp_path, work, stage, rename, signal.SIGKILL, *how)
        assert code == -signal.SIGKILL, f"not stopped in {stage} at rename {rename}"
    assert finish(processes, run_whole, tmp_path, work, None, *how) == 0
    assert fingerprint(work) == fingerprint(whole)
