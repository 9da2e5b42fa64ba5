# SPDX-License-Identifier: Apache-2.0
"""How many threads torch may use: all physical cores of this process, unless the user says otherwise."""

import functools
import logging
import os

from edvit_hf.errors import RecipeError
from edvit_hf.hardware.machine import usable_cores

logger = logging.getLogger(__name__)

THREADS_VARIABLE = "EDVIT_NUM_THREADS"


def use_all_cores() -> int:
    """Let torch use every physical core this process may use; returns the number of threads set.

    `accelerate launch` exports OMP_NUM_THREADS=1 unless its config says `use_cpu: true` (there is no config key for
    threads), and torchrun does so for several processes: training on a CPU then runs on one core without a word. In
    order: EDVIT_NUM_THREADS; OMP_NUM_THREADS, except a 1 that a launcher may have set; otherwise the physical cores
    within the CPU affinity and the cgroup quota, divided by the number of processes on this machine.

    Raises:
        RecipeError: If EDVIT_NUM_THREADS is not a whole number of at least 1.
    """
    import torch

    threads, reason = _threads_wanted()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _announce(threads, reason, _local_processes())
    return threads


@functools.cache
def _announce(threads: int, reason: str, processes: int) -> None:
    """Log what is used, once."""
    logger.info("threads: %d per process (%s), %d process(es) on this machine", threads, reason, processes)


def _threads_wanted() -> tuple[int, str]:
    explicit = os.environ.get(THREADS_VARIABLE, "")
    if explicit:
        if not explicit.isdecimal() or int(explicit) < 1:
            raise RecipeError(f"{THREADS_VARIABLE} must be a whole number of at least 1, got {explicit!r}. Unset it.")
        return int(explicit), THREADS_VARIABLE
    omp = os.environ.get("OMP_NUM_THREADS", "")
    if omp.isdecimal() and int(omp) >= 1 and (int(omp) > 1 or not _is_launched()):
        return int(omp), "OMP_NUM_THREADS"
    return max(1, usable_physical_cores() // _local_processes()), "physical cores"


def _is_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this process: both may set OMP_NUM_THREADS to 1."""
    return any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"))


def _local_processes() -> int:
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def usable_physical_cores() -> int:
    """Physical cores of the machine, at most the logical ones that this process may use.

    Without psutil, which comes with the extra `train`, the logical cores stand in for the physical ones.
    """
    return min(_physical_cores() or os.cpu_count() or 1, usable_cores())


def _physical_cores() -> int | None:
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    cores: int | None = psutil.cpu_count(logical=False)
    return cores
