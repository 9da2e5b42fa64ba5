# SPDX-License-Identifier: Apache-2.0
"""A trip launched as several processes: who does what, and who waits for whom.

The teacher trains data-parallel and independent sub-models are spread over the processes; every other stage is the main
process's work, while the others wait at a barrier.
"""

import contextlib
import os
from collections.abc import Iterator

from edvit_hf.training import process_state


def num_processes() -> int:
    """Processes of this launch, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes what all of them need."""
    return int(os.environ.get("RANK", "0")) == 0


def start_processes() -> None:
    """Meet the other processes, before any stage has begun; nothing to do for a single one."""
    if num_processes() > 1:
        process_state()


def wait_for_everyone() -> None:
    """Return when every process has come here."""
    if num_processes() > 1:
        process_state().wait_for_everyone()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The block runs in the main process, then in all the others."""
    if not is_main_process():
        wait_for_everyone()
    yield
    if is_main_process():
        wait_for_everyone()
