# SPDX-License-Identifier: Apache-2.0
"""A launch of several processes: who trains together or alone, who does what, and who waits for whom.

On a trip, the teacher trains data-parallel and independent sub-models are spread over the processes; every other stage
is the main process's work, while the others wait at a barrier.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, parse_flag_from_env

from edvit_hf.training.config import MixedPrecision

# Independent runs end at different times, and whoever is done waits for the rest: the usual limit is half an hour.
WAIT = datetime.timedelta(days=1)


def process_state() -> PartialState:
    """Accelerate's state of this launch: number of processes, index of this one, device.

    The first call starts the process group; without an accelerator on this machine, processes talk by gloo (left to
    itself, accelerate would then take every process for the only one).
    """
    is_on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return PartialState(cpu=is_on_cpu)
    return PartialState(cpu=is_on_cpu or not torch.accelerator.is_available(), timeout=WAIT)


def my_share(count: int) -> list[int]:
    """Which of `count` independent runs are this process's: every n-th of n processes; all of them in one process.

    Train them with `train(..., distributed=False)`; `process_state().wait_for_everyone()` then gathers the processes.
    """
    state = process_state()
    return list(range(state.process_index, count, state.num_processes))


def make_accelerator(mixed_precision: MixedPrecision) -> Accelerator:
    """An accelerator of this precision, over all processes of the launch, or inside `alone` over this one."""
    process_state()
    # Accelerate keeps one global precision per process and refuses another; stages of one trip may differ.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block, Accelerate takes this process for the only one; its device stays.

    Nothing is wrapped, gathered or waited for, so processes of one launch may do different things.
    """
    if process_state().num_processes == 1:
        yield
        return
    together = dict(PartialState._shared_state)
    lonely = {"distributed_type": DistributedType.NO, "num_processes": 1, "process_index": 0, "local_process_index": 0}
    AcceleratorState._reset_state()
    PartialState._shared_state.update(lonely | {"backend": None})
    try:
        yield
    finally:
        AcceleratorState._reset_state()
        PartialState._shared_state.clear()
        PartialState._shared_state.update(together)


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
