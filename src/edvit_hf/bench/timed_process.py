# SPDX-License-Identifier: Apache-2.0
"""Opens one ONNX file in a fresh process, times it and prints JSON. Run as a file, never imported by the package.

It loads numpy, onnxruntime and two small modules of this package: what the process takes and holds is then the file's
doing. Its only argument is a JSON object: `file`, `threads`, `sizes` (axis name -> size), `vocabulary` (token ids are
below it), `seed`.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edvit_hf.hardware.machine import memory_mib
from edvit_hf.hardware.timing import TimedRuns, open_session, random_feed, timed_run, warm_up

WARM_UP_RUNS, WARM_UP_SECONDS, MAX_WARM_UPS = 3, 0.02, 30
RUNS, SECONDS, MAX_RUNS = 11, 0.1, 200  # undisturbed: at least so many and for so long; in all no more than that
MAX_FACTOR = 3


def time_runs(session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], threads: int) -> TimedRuns:
    """Timed runs after those that warm up. Disturbed ones are repeated, up to three times as many in all."""
    warm_up(session, feed, at_least=WARM_UP_RUNS, seconds=WARM_UP_SECONDS, at_most=MAX_WARM_UPS)
    samples, begin = TimedRuns(), time.perf_counter()
    while len(samples.runs) < min(MAX_RUNS, MAX_FACTOR * max(RUNS, len(samples.undisturbed))):
        samples.runs.append(timed_run(session, feed, threads=threads))
        if len(samples.undisturbed) >= RUNS and time.perf_counter() - begin > SECONDS:
            break
    return samples


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Load and time what was asked for."""
    idle, begin = memory_mib("VmRSS"), time.perf_counter()
    session = open_session(Path(asked["file"]), asked["threads"])
    load_ms = 1e3 * (time.perf_counter() - begin)
    feed = random_feed(session, sizes=asked["sizes"], vocabulary=asked["vocabulary"], seed=asked["seed"])
    samples = time_runs(session, feed, asked["threads"])
    runs = len(samples.runs)
    return {
        "runs_ms": [round(value, 5) for value in samples.milliseconds],
        **{"disturbed": runs - len(samples.undisturbed), "num_runs": runs, "load_ms": round(load_ms, 3)},
        **{"idle_memory_mib": idle, "peak_memory_mib": memory_mib("VmHWM")},
        "inputs": {name: list(values.shape) for name, values in feed.items()},
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.loads(sys.argv[1]))))
