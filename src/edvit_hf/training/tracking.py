# SPDX-License-Identifier: Apache-2.0
"""Figures of every epoch for a trackio project, if the recipe names one."""

import dataclasses
import importlib
from typing import Any

from edvit_hf.errors import MissingExtraError
from edvit_hf.training.config import TrainConfig


class Tracker:
    """One run in a trackio project on this machine; without a project it does nothing.

    Args:
        config (`TrainConfig`): Its `track` names the project; its values are filed with the run.
        description (`str`): Name of the run.
        is_active (`bool`): False on all processes but one.

    Raises:
        MissingExtraError: If a project is named and trackio is not installed.
    """

    def __init__(self, config: TrainConfig, description: str, *, is_active: bool = True) -> None:
        self._run: Any = None
        if config.track is None or not is_active:
            return
        try:
            trackio = importlib.import_module("trackio")
        except ModuleNotFoundError as error:
            if error.name != "trackio":
                raise
            raise MissingExtraError("Tracking a training run (`track`)", "track", "trackio") from error
        # A run that goes on after an interruption goes on under its name.
        self._run = trackio.init(
            project=config.track, name=description, config=dataclasses.asdict(config), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, entry: dict[str, float]) -> None:
        """File the figures of one epoch; `entry` is one of `TrainLog.epochs`."""
        if self._run is not None:
            figures = {name: value for name, value in entry.items() if name != "epoch"}
            self._run.log(figures, step=int(entry["epoch"]))

    def close(self) -> None:
        """Write out what is waiting."""
        if self._run is not None:
            self._run.finish()
            self._run = None
