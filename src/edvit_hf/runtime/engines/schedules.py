# SPDX-License-Identifier: Apache-2.0
"""Schedules of the local engine: how sub-models share the cores, on how many threads, and which is quickest here.

onnxruntime gives every session a pool of threads as large as the machine, and they go on spinning after a run: with
several sub-models in one process they take the cores from each other. Here a pool either waits (sleeps between
operators' work) or spins only while its own session runs (`session.force_spinning_stop`).

onnxruntime's global pool, shared by all sessions, is not used although it was meant for this: once a process has
asked for it, every session with threads of its own is refused ("use_per_session_threads must be false", 1.31.1), those
of other libraries and our own one-thread workers included. A library cannot do that to its host. Sub-models that run
in turn do not need it: at any time only one pool is awake.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import onnxruntime

from edvit_hf.hardware.machine import usable_cores
from edvit_hf.hardware.timing import quiet_options

logger = logging.getLogger(__name__)

Schedule = Literal["in_turn", "in_turn_spinning", "per_core", "workers"]
SCHEDULES: tuple[Schedule, ...] = ("in_turn", "in_turn_spinning", "per_core", "workers")
"""One after the other on all threads, which sleep or spin while they wait for work; as many workers as there are cores,
each with its share of the sub-models; or one worker for each sub-model."""
AT_ONCE: tuple[Schedule, ...] = ("per_core", "workers")
"""Those under which sub-models run at the same time."""

_MAX_DEFAULT_THREADS = 4
_WARM_UPS = 2
_ROUNDS = 40  # no more are needed for a 95th percentile
_PERCENTILE = 95


def num_lanes(schedule: Schedule, num_sub_models: int, num_threads: int | None) -> int:
    """Sub-models that run at a time."""
    if schedule == "per_core":
        return min(num_sub_models, num_threads or usable_cores())
    return num_sub_models if schedule == "workers" else 1


def shared_out(sizes: Mapping[int, int], lanes: int) -> dict[int, int]:
    """Sub-model -> lane: each in its turn to the lane with the least to do, by `sizes` in any unit.

    With the largest first (longest processing time first) at most 4/3 of the best makespan (Graham 1969).
    """
    load, lane_of = [0] * lanes, {}
    for index, size in sizes.items():
        lane_of[index] = lane = min(range(lanes), key=load.__getitem__)
        load[lane] += size
    return lane_of


def threads_for(schedule: Schedule, num_sub_models: int, num_threads: int | None) -> int:
    """Threads of one sub-model's run.

    `num_threads` is the caller's choice for a run in turn, or for all workers together; None: the cores, with at most 4
    for one run: small matrices gain nothing from more.
    """
    if schedule in AT_ONCE:
        return max(1, min(_MAX_DEFAULT_THREADS, (num_threads or usable_cores()) // num_sub_models))
    return num_threads or min(_MAX_DEFAULT_THREADS, usable_cores())


def options_for(schedule: Schedule, num_sub_models: int, num_threads: int | None) -> onnxruntime.SessionOptions:
    """Options of one sub-model's session."""
    return quiet_options(threads_for(schedule, num_sub_models, num_threads), spin=schedule == "in_turn_spinning")


def measure_schedules(
    runs: Mapping[Schedule, Callable[[], object]], *, seconds: float = 1.0
) -> dict[Schedule, list[float]]:
    """Milliseconds of whole requests under each schedule, in turns, so that a slow spell falls on all of them.

    Each of `runs` runs every sub-model once. It stops after `seconds` or 40 rounds; two runs of each are not counted.
    """
    for run in runs.values():
        for _ in range(_WARM_UPS):
            run()
    milliseconds: dict[Schedule, list[float]] = {schedule: [] for schedule in runs}
    end = time.perf_counter() + seconds
    for _ in range(_ROUNDS):
        for schedule, run in runs.items():
            begin = time.perf_counter()
            run()
            milliseconds[schedule].append(1e3 * (time.perf_counter() - begin))
        if time.perf_counter() >= end:
            break
    return milliseconds


def quickest(milliseconds: Mapping[Schedule, list[float]]) -> Schedule:
    """The schedule with the lowest 95th percentile.

    The median would choose threads that help on an idle machine and hang on each other's cores on a busy one.
    """
    percentiles = {each: float(np.percentile(times, _PERCENTILE)) for each, times in milliseconds.items()}
    best = min(percentiles, key=lambda schedule: percentiles[schedule])
    told = ", ".join(f"{each} {value:.2f} ms" for each, value in percentiles.items())
    logger.info("schedule %s: 95th percentiles of %d runs here are %s", best, len(milliseconds[best]), told)
    return best
