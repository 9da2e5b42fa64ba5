# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a tiny exported ensemble for every task, and a runtime on each, for modules that name this as a plugin."""

import pytest

from edvit_hf.runtime import EDViTRuntime
from edvit_hf.tasks import TASKS
from support.tiny_ensemble import TASK_GROUPS, write_tiny_ensemble


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with an ensemble for each task."""
    found = {task: tmp_path_factory.mktemp(task) for task in TASKS}
    for task, folder in found.items():
        write_tiny_ensemble(folder, TASK_GROUPS, task=task)
    return found


@pytest.fixture(scope="module")
def runtimes(folders):
    return {task: EDViTRuntime.from_pretrained(folder, num_threads=1) for task, folder in folders.items()}
