"""Which schedule is quickest on this machine as it is now: all are timed in turns, and the 95th percentile decides.

The median would choose threads that help on an idle machine and hang on each other's cores on a busy one.
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import wait
from typing import TYPE_CHECKING

import numpy as np

from edvit_hf.runtime.messages import SubModelRequest
from edvit_hf.runtime.pools import Schedule

if TYPE_CHECKING:
    from edvit_hf.runtime.engines.local import LocalEngine

logger = logging.getLogger(__name__)

CALIBRATION_SECONDS = 1.0
WARM_UP_SECONDS = 10.0  # more than any first run that is worth waiting for
_WARM_UPS = 2
_ROUNDS = 40  # no more are needed for a 95th percentile
_PERCENTILE = 95


def measure_schedules(
    engines: "Mapping[Schedule, LocalEngine]", request: SubModelRequest, *, seconds: float
) -> dict[Schedule, list[float]]:
    """Milliseconds of whole requests under each schedule, in turns, so that a slow spell falls on all of them.

    Args:
        engines: One for each schedule.
        request: What every sub-model runs.
        seconds: Stop then, if not after 40 rounds before; two runs of each are not counted, one always is.
    """
    for engine in engines.values():
        for _ in range(_WARM_UPS):
            _time(engine, request)
    found: dict[Schedule, list[float]] = {schedule: [] for schedule in engines}
    end = time.perf_counter() + seconds
    while len(found[next(iter(engines))]) < _ROUNDS:
        for schedule, engine in engines.items():
            found[schedule].append(_time(engine, request))
        if time.perf_counter() >= end:
            break
    return found


def quickest(milliseconds: Mapping[Schedule, list[float]]) -> Schedule:
    """The schedule with the lowest 95th percentile."""
    percentiles = {each: float(np.percentile(times, _PERCENTILE)) for each, times in milliseconds.items()}
    best = min(percentiles, key=lambda schedule: percentiles[schedule])
    logger.info(
        "schedule %s: 95th percentiles of %d runs here are %s", best, len(milliseconds[best]),
        ", ".join(f"{each} {value:.2f} ms" for each, value in percentiles.items()),
    )  # fmt: skip
    return best


def warm_up(engine: "LocalEngine", request: SubModelRequest, *, seconds: float = WARM_UP_SECONDS) -> None:
    """Run every sub-model once: a first run takes several times as long as those after it.

    What fails or hangs here is found when it is asked; it must not cost the others.
    """
    waiting = [engine.submit(index, request) for index in engine.sub_models]
    for pending in wait(waiting, timeout=seconds).not_done:
        pending.cancel()


def _time(engine: "LocalEngine", request: SubModelRequest) -> float:
    begin = time.perf_counter()
    for pending in [engine.submit(index, request) for index in engine.sub_models]:
        pending.exception()  # what a sub-model cannot run is found when it is asked; it must not cost the others
    return 1e3 * (time.perf_counter() - begin)
