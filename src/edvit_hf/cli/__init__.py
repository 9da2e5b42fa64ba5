# SPDX-License-Identifier: Apache-2.0
"""`edvit`: thin commands over the library's functions. A command line comes in, text and an exit code go out.

The console script and `python -m edvit_hf.cli` call `main`; nothing in the library does.
"""

import os
import sys

from edvit_hf.cli import exporting, fleet, hub, init, machine, measure, recipe, serve, simulate, space, trip, worker
from edvit_hf.cli.app import app, check_current_folder, ended_by_signals
from edvit_hf.cli.output import checked_output, end_at_once

__all__ = ["app", "main"]

# As `edvit --help` lists them.
_TRIP_AND_HUB = ("init", "run", "plan", "simulate", "export", "push", "pull", "zoo")
_ORDER = (*_TRIP_AND_HUB, "evaluate", "predict", "serve", "worker", "bench", "card", "doctor", "profile")
app.registered_commands.sort(key=lambda command: _ORDER.index(getattr(command.callback, "__name__", "")))


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with checked_output(), ended_by_signals():
            check_current_folder()
            app()
    except SystemExit as ended:
        _end_at_once_if_stuck(ended.code)
        raise


def _end_at_once_if_stuck(code: object) -> None:
    """End here and now where an operator of a graph does not stop: torn out of it, the process would abort."""
    lanes = sys.modules.get("edvit_hf.runtime.engines.lanes")  # without it, no graph was run
    if lanes is not None and not lanes.stop_everything(lanes.EXIT_SECONDS):
        end_at_once(code)
