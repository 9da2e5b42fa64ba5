# SPDX-License-Identifier: Apache-2.0
"""What the processes of test_resume.py do: they run the tiny trip and are stopped, or come to its end."""

import itertools
import os
import resource
import signal
import sys
from pathlib import Path

from support.tiny_recipe import tiny_recipe, write_tiny_recipe

REFUSED = 17  # exit code of a run that ended with the expected error


def _before_every_rename(then) -> None:
    """Call `then(target)` before a file or folder appears under its name, as every one of the library's does."""
    replace = os.replace

    def counted(source, target, **keywords):
        then(target)
        return replace(source, target, **keywords)

    os.replace = counted
    Path.replace = lambda self, target: counted(self, target) or Path(target)


def run_and_stop(folder, work, stage, rename, number, changes, stages=None):
    """Run the trip; send this process a signal just before its `rename`-th rename inside `stage`."""
    from edvit_hf.recipe import run

    now = {"stage": "", "count": 0}

    def stop(_):
        now["count"] += now["stage"] == stage
        if now["stage"] == stage and now["count"] == rename:
            signal.raise_signal(number)  # to this thread: `os.kill` may choose another, and the moment passes

    _before_every_rename(stop)
    observer = lambda name, what: now.update(stage=name, count=0)  # noqa: E731
    run(tiny_recipe(Path(folder), **changes), Path(work), stages=stages, observer=observer)


def run_to_the_end(folder, work, changes, stages=None):
    """Run the trip, or these stages of it."""
    from edvit_hf.recipe import run

    run(tiny_recipe(Path(folder), **changes), Path(work), stages=stages)


def run_on_a_full_disk(folder, work, largest):
    """Run the trip where no file may have more than `largest` bytes."""
    from edvit_hf.errors import WorkDirError
    from edvit_hf.recipe import run

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        run(tiny_recipe(Path(folder)), Path(work))
    except WorkDirError as error:
        os._exit(REFUSED if "Free space" in str(error) else 1)


def command(folder, work, stages, checkpoint=None):
    """`edvit run`, which is sent SIGTERM just before the teacher's n-th file appears."""
    from edvit_hf.cli import main

    count = itertools.count(1)

    def stop(target):
        if "01_teacher" in str(target) and next(count) == checkpoint:
            signal.raise_signal(signal.SIGTERM)

    _before_every_rename(stop)
    sys.argv = ["edvit", "run", str(write_tiny_recipe(Path(folder))), "--work-dir", str(work), "--stages", stages]
    main()
