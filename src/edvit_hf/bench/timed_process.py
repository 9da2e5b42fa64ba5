# SPDX-License-Identifier: Apache-2.0
"""One fresh process of a benchmark: opens one ONNX file, times it, prints JSON. Run as a file, never imported.

It imports numpy and onnxruntime alone: what it takes and holds is then the file's doing. Its only argument is a JSON
object: `file`, `threads`, `sizes` (axis name -> size), `vocabulary` (token ids are below it), `seed`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

WARM_UP_RUNS, WARM_UP_SECONDS, MAX_WARM_UPS = 3, 0.02, 30
RUNS, SECONDS, MAX_RUNS = 11, 0.1, 200  # counted: at least so many and for so long, but no more than that
UNDISTURBED_SHARE = 0.95  # processor time over passed time of a run that had its core to itself
MIN_UNDISTURBED, MAX_FACTOR = 3, 3
KIB = 2**10


def memory_mib(field: str) -> float | None:
    """`VmRSS` (resident now) or `VmHWM` (at most so far) of this process in MiB; None where the kernel does not tell.

    Not getrusage: its maximum starts at what the parent held.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.is_file() else []
    found = next((line for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else round(int(found.split()[1]) / KIB, 1)


def open_session(file: str, threads: int) -> onnxruntime.InferenceSession:
    """A session as the runtime opens it: a fixed number of threads that do not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what fails is raised, and said once
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def made_up_inputs(
    session: onnxruntime.InferenceSession, sizes: dict[str, int], vocabulary: int, seed: int
) -> dict[str, np.ndarray]:
    """Random inputs of the sizes asked for: full-length texts, all sub-models present, pixels of every level."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for entry in session.get_inputs():
        shape = [size if isinstance(size, int) else sizes[size] for size in entry.shape]
        if entry.name in ("mask", "attention_mask"):
            feeds[entry.name] = np.ones(shape, np.float32 if entry.type == "tensor(float)" else np.int64)
        elif entry.type == "tensor(int64)":
            feeds[entry.name] = rng.integers(0, vocabulary, shape)
        elif entry.type == "tensor(uint8)":
            feeds[entry.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            values = rng.standard_normal(shape, dtype=np.float32)
            feeds[entry.name] = values.astype(np.float16) if entry.type == "tensor(float16)" else values
    return feeds


def time_runs(
    session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], threads: int
) -> tuple[list[float], int, int]:
    """Milliseconds of the counted runs, how many were disturbed, and how many there were in all.

    On one thread the run is this thread's own: processor time short of the time that passed tells that another
    program had the core. Such runs are repeated; where too few are left, they count with their processor time. On
    several threads nothing tells, and every run counts.
    """
    begin = time.perf_counter()
    for count in range(1, MAX_WARM_UPS + 1):
        session.run(None, feeds)
        if count >= WARM_UP_RUNS and time.perf_counter() - begin > WARM_UP_SECONDS:
            break
    passed: list[float] = []
    own: list[float] = []
    undisturbed: list[float] = []
    begin = time.perf_counter()
    while len(passed) < MAX_RUNS and len(passed) < MAX_FACTOR * max(RUNS, len(undisturbed)):
        start, start_own = time.perf_counter(), time.thread_time()
        session.run(None, feeds)
        own.append(1e3 * (time.thread_time() - start_own))
        passed.append(1e3 * (time.perf_counter() - start))
        if threads > 1 or own[-1] >= UNDISTURBED_SHARE * passed[-1]:
            undisturbed.append(passed[-1])
        if len(undisturbed) >= RUNS and time.perf_counter() - begin > SECONDS:
            break
    counted = undisturbed if len(undisturbed) >= MIN_UNDISTURBED else own
    return counted, len(passed) - len(undisturbed), len(passed)


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Load and time what was asked for."""
    idle, begin = memory_mib("VmRSS"), time.perf_counter()
    session = open_session(asked["file"], asked["threads"])
    load_ms = 1e3 * (time.perf_counter() - begin)
    feeds = made_up_inputs(session, asked["sizes"], asked["vocabulary"], asked["seed"])
    milliseconds, disturbed, runs = time_runs(session, feeds, asked["threads"])
    return {
        "runs_ms": [round(value, 5) for value in milliseconds],
        **{"disturbed": disturbed, "num_runs": runs, "load_ms": round(load_ms, 3)},
        **{"idle_memory_mib": idle, "peak_memory_mib": memory_mib("VmHWM")},
        "inputs": {name: list(values.shape) for name, values in feeds.items()},
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(json.loads(sys.argv[1]))))
