"""How many threads run a sub-model, and what they do between runs: never onnxruntime's defaults.

onnxruntime gives every session a pool of threads as large as the machine, and they go on spinning after a run: with
several sub-models in one process they take the cores from each other. Here a pool either waits (sleeps between
operators' work) or spins only while its own session runs (`session.force_spinning_stop`).

onnxruntime's global pool, shared by all sessions, is not used although it was meant for this: once a process has
asked for it, every session with threads of its own is refused ("use_per_session_threads must be false", 1.31.1), those
of other libraries and our own one-thread workers included. A library cannot do that to its host. Sub-models that run
in turn do not need it: at any time only one pool is awake.
"""

from collections.abc import Mapping
from typing import Literal

import onnxruntime

from edvit_hf.hardware.machine import usable_cores
from edvit_hf.runtime.sessions import MAX_DEFAULT_THREADS, session_options

Schedule = Literal["in_turn", "in_turn_spinning", "per_core", "workers"]
SCHEDULES: tuple[Schedule, ...] = ("in_turn", "in_turn_spinning", "per_core", "workers")
"""One after the other on all threads, which sleep or spin while they wait for work; as many workers as there are cores,
each with its share of the sub-models; or one worker for each sub-model."""
AT_ONCE: tuple[Schedule, ...] = ("per_core", "workers")
"""Those under which sub-models run at the same time."""


def num_lanes(schedule: Schedule, num_sub_models: int, num_threads: int | None) -> int:
    """Sub-models that run at a time."""
    if schedule == "per_core":
        return min(num_sub_models, num_threads or usable_cores())
    return num_sub_models if schedule == "workers" else 1


def shared_out(sizes: Mapping[int, int], lanes: int) -> dict[int, int]:
    """Sub-model -> lane: each in its turn to the lane with the least to do. With the largest first, as good as sorted.

    (Longest processing time first: at most 4/3 of the best makespan, Graham 1969.)

    Args:
        sizes: What each has to do, in any unit, in the order in which they are asked.
        lanes: How many there are.
    """
    load, found = [0] * lanes, {}
    for index, size in sizes.items():
        found[index] = lane = min(range(lanes), key=load.__getitem__)
        load[lane] += size
    return found


def threads_for(schedule: Schedule, num_sub_models: int, num_threads: int | None) -> int:
    """Threads of one sub-model's run.

    Args:
        schedule: How sub-models share the cores.
        num_sub_models: That run here.
        num_threads: Of the caller's choice for a run in turn, or for all workers together; None: the cores, with at
            most 4 for one run: small matrices gain nothing from more.
    """
    if schedule in AT_ONCE:
        return max(1, min(MAX_DEFAULT_THREADS, (num_threads or usable_cores()) // num_sub_models))
    return num_threads or min(MAX_DEFAULT_THREADS, usable_cores())


def options_for(schedule: Schedule, num_sub_models: int, num_threads: int | None) -> onnxruntime.SessionOptions:
    """Options of one sub-model's session. Raises EDViTError for a number of threads below 1."""
    if num_threads is not None:
        session_options(num_threads)  # refuses what is no number of threads
    return session_options(threads_for(schedule, num_sub_models, num_threads), spin=schedule == "in_turn_spinning")
