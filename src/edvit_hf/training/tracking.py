# SPDX-License-Identifier: Apache-2.0
"""Figures of every epoch for a trackio project, if the recipe names one."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from edvit_hf.errors import CheckpointError, MissingExtraError
from edvit_hf.storage import read_json, write_json
from edvit_hf.training.config import TrainConfig

TRACKED_FILE = "tracked.json"


class Tracker:
    """One run in a trackio project on this machine; without a project it does nothing.

    The run is called by its description and the first digits of its identity, so that runs of other values, models or
    numbers of items have other names. A resumed run goes on under its name. An epoch that it does again is not filed
    again: which were, is kept beside the checkpoints. Once that folder is deleted, the run is filed from its start.

    Args:
        config (`TrainConfig`): Its `track` names the project; its values are filed with the run.
        description (`str`): What trains.
        identity (`str`): `run_identity` of the run.
        checkpoint_dir (`Path`): Folder of the run's checkpoints.
        is_active (`bool`): False on all processes but one.

    Raises:
        CheckpointError: If the note on what was filed is damaged.
        MissingExtraError: If a project is named and trackio is not installed.
    """

    def __init__(
        self, config: TrainConfig, description: str, identity: str, checkpoint_dir: Path, *, is_active: bool = True
    ) -> None:
        self._run: Any = None
        if config.track is None or not is_active:
            return
        try:
            trackio = importlib.import_module("trackio")
        except ModuleNotFoundError as error:
            if error.name != "trackio":
                raise
            raise MissingExtraError("Tracking a training run (`track`)", "track", "trackio") from error
        self._note, self._key = checkpoint_dir / TRACKED_FILE, [config.track, identity]
        self._last_epoch = _last_epoch(self._note, self._key)
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        name, values = f"{description} {identity[:8]}", dataclasses.asdict(config)
        self._run = trackio.init(project=config.track, name=name, config=values, resume="allow", **quiet)

    def log(self, entry: dict[str, float]) -> None:
        """File the figures of one epoch; `entry` is one of `TrainLog.epochs`."""
        if self._run is None or entry["epoch"] <= self._last_epoch:
            return
        figures = {name: value for name, value in entry.items() if name != "epoch"}
        self._last_epoch = int(entry["epoch"])
        self._run.log(figures, step=self._last_epoch)
        self._note.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._note, {"run": self._key, "epoch": self._last_epoch})

    def close(self) -> None:
        """Write out what is waiting."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def _last_epoch(note: Path, key: list[str]) -> int:
    """The newest epoch of this run that was filed; 0 for none."""
    if not note.is_file():
        return 0
    try:
        values = read_json(note)
        return int(values["epoch"]) if values["run"] == key else 0
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"Expected in {note} which epochs were filed with trackio, got: {error}. Epochs could be filed twice. "
            "Delete the file and run again."
        ) from error
