# SPDX-License-Identifier: Apache-2.0
"""Figures in a trackio project: each run under its own name, each epoch once."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from test_training import (  # noqa: F401
    CONFIG,
    _every_epoch_is_saved,
    _one_thread,
    assert_same_run,
    interrupting,
    make_model,
    run,
    uninterrupted,
)

from edvit_hf.errors import CheckpointError, MissingExtraError
from edvit_hf.training import TrainConfig, classify_objective
from support.ready import run_ready

TRACKED = dataclasses.replace(CONFIG, track="a project")


class FakeTrackio:
    """What `Tracker` calls of trackio."""

    def __init__(self):
        self.inits, self.logs, self.finished = [], [], 0

    def init(self, **options):
        self.inits.append(options)
        return self

    def log(self, figures, step):
        self.logs.append((step, figures))

    def finish(self):
        self.finished += 1


@pytest.fixture
def trackio(monkeypatch):
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return fake


def stopped(folder, call, config=TRACKED):
    with pytest.raises(ZeroDivisionError):
        run(make_model(), folder, config, interrupting(classify_objective(0.1), call, ZeroDivisionError()))


def test_a_named_project_gets_the_figures_of_every_epoch_and_changes_nothing(tmp_path, trackio, uninterrupted):  # noqa: F811
    stopped(tmp_path, 7)
    model = make_model()
    log = run(model, tmp_path, TRACKED)
    assert_same_run(model, log, *uninterrupted)
    assert [(i["project"], i["resume"]) for i in trackio.inits] == [("a project", "allow")] * 2
    assert trackio.inits[0]["name"] == trackio.inits[1]["name"]
    assert trackio.inits[0]["name"].startswith("teacher ")
    assert [step for step, _ in trackio.logs] == [1, 2, 3]
    assert trackio.logs[2][1] == {name: value for name, value in log.epochs[2].items() if name != "epoch"}
    assert trackio.finished == 2


def test_runs_of_other_values_have_other_names_and_what_changes_no_result_does_not_count(tmp_path, trackio):
    configs = [
        dataclasses.replace(TRACKED, epochs=1, **change)
        for change in ({}, {"seed": 8}, {"learning_rate": 1e-3}, {"checkpoint_every_steps": 3})
    ]
    for number, config in enumerate(configs):
        run(make_model(), tmp_path / str(number), config)
    names = [options["name"] for options in trackio.inits]
    assert len(set(names[:3])) == 3
    assert names[3] == names[0]


# Twice an epoch is done again from an older checkpoint; 15 batches in all, 5 an epoch.
def test_an_epoch_that_is_done_again_after_an_interruption_is_filed_once(tmp_path, trackio, monkeypatch, uninterrupted):  # noqa: F811
    monkeypatch.setattr("edvit_hf.training.loop.EPOCH_CHECKPOINT_SECONDS", 1e9)
    stopped(tmp_path, 7)
    assert [step for step, _ in trackio.logs] == [1]
    stopped(tmp_path, 13)
    assert [step for step, _ in trackio.logs] == [1, 2]
    model = make_model()
    log = run(model, tmp_path, TRACKED)
    assert_same_run(model, log, *uninterrupted)
    assert [step for step, _ in trackio.logs] == [1, 2, 3]
    (note,) = tmp_path.glob("*.json")
    whole = note.read_text()
    note.write_text(whole[:-10])
    with pytest.raises(CheckpointError, match=r"tracked\.json which epochs were filed.*Delete the file"):
        run(make_model(), tmp_path, TRACKED)
    note.write_text(whole)
    # Another run in the same folder starts anew, under its own name.
    run(make_model(), tmp_path, dataclasses.replace(TRACKED, seed=1))
    assert [step for step, _ in trackio.logs] == [1, 2, 3, 1, 2, 3]


REAL_TRACKIO = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
import test_tracking as t
config = t.dataclasses.replace(t.TRACKED, epochs=2)
t.run(t.make_model(), t.Path(sys.argv[2]), config)
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("a project")
rows = SQLiteStorage.get_logs("a project", name)
assert name.startswith("teacher ")
assert [row["step"] for row in rows] == [1, 2], rows
assert all({"loss", "accuracy", "samples_per_second"} <= set(row) for row in rows), rows
"""


@pytest.mark.slow
def test_trackio_itself_takes_what_it_is_given(tmp_path):
    pytest.importorskip("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = run_ready(REAL_TRACKIO, Path(__file__).parent, tmp_path / "run", env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tracking_without_trackio_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match=r"edvit_hf\[track\]"):
        run(make_model(), tmp_path, TRACKED)


def test_without_a_project_nothing_is_written(tmp_path, trackio):
    run(make_model(), tmp_path, TrainConfig(epochs=1, batch_size=24))
    assert not trackio.inits
    assert not list(tmp_path.glob("*.json"))
