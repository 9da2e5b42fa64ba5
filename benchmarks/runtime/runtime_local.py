# SPDX-License-Identifier: Apache-2.0
"""Measure what the local runtime costs beside its sub-models, and how well it uses the cores.

    python benchmarks/runtime/runtime_local.py [--ensemble DIR ...]

Ratios are taken inside one run, between processes or calls that take turns:
* overhead: the runtime over stub sub-models that sleep, against the slowest of them; on images of 224 px, which it has
  to look through (600 kB), and of 32 px.
* schedules: three real sub-models (ViT-Base cut to 2, 2 and 3 of 12 heads, random weights) on two cores: the runtime as
  it loads by default, against onnxruntime as it comes (default sessions, run at once by three threads) and against
  schedules tuned by hand, the best of which is only known afterwards; the same with one core busy.
* device: a fresh process with one int8 sub-model: resident memory, and seconds from its start to its first answer.
* agreement: for every ensemble given, the runtime against the torch ensemble on the whole test split, fp32.
Writes results/runtime_local.json. Each round begins with a probe of the machine: how long work that needs both cores
takes against work on one; rounds in which another program had a core are told apart in the results.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import BASE, TINY, command_line, fresh, judged, seconds_of, threads, write_results

from runtime.cut_fleet import export_fleet

STUB_MS = (20.0, 25.0, 30.0)
CORES = 2
LIMITS = {"overhead": 1.02, "against_defaults": 0.6, "against_best": 1.05, "against_best_busy": 1.1}
LIMITS |= {"resident_mib": 90.0, "cold_start_s": 0.8, "differs": 1e-3}

# Hand-tuned candidates: how sessions are opened, and whether they run at once. "global" is onnxruntime's own shared
# pool, which a process can only have for all of its sessions.
HAND_TUNED: dict[str, dict[str, Any]] = {
    "in turn, waiting": {"threads": CORES, "spin": "0", "at_once": False},
    "in turn, spinning while they run": {"threads": CORES, "spin": "1", "stop": "1", "at_once": False},
    "in turn, one thread": {"threads": 1, "spin": "0", "at_once": False},
    "in turn, onnxruntime's global pool": {"pool": CORES, "at_once": False},
    "at once, one thread each": {"threads": 1, "spin": "0", "at_once": True},
    "shared out by size, one thread a core": {"threads": 1, "spin": "0", "at_once": True, "shares": [[2], [0, 1]]},
}
DEFAULTS: dict[str, Any] = {"at_once": True}

CLIENT = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import onnxruntime
how, files, repeats = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
if "pool" in how:
    onnxruntime.set_default_logger_severity(4)
    onnxruntime.set_global_thread_pool_sizes(how["pool"], 1)
    options.use_per_session_threads = False
if "threads" in how:
    options.intra_op_num_threads, options.inter_op_num_threads = how["threads"], 1
    options.add_session_config_entry("session.intra_op.allow_spinning", how["spin"])
if "stop" in how:
    options.add_session_config_entry("session.force_spinning_stop", how["stop"])
sessions = [onnxruntime.InferenceSession(f, options, providers=["CPUExecutionProvider"]) for f in files]
feed = {"pixel_values": np.random.default_rng(0).standard_normal([1, 3, *json.loads(sys.argv[4])], dtype=np.float32)}
pool, schedule = ThreadPoolExecutor(len(sessions)), None
shares = how.get("shares", [[place] for place in range(len(sessions))])
def run_share(share):
    for place in share:
        sessions[place].run(None, feed)
def once():
    if how["at_once"]:
        list(pool.map(run_share, shares))
    else:
        for session in sessions:
            session.run(None, feed)
"""
RUNTIME = """
import json, sys
import numpy as np
from edvit_hf.runtime import EDViTRuntime
runtime = EDViTRuntime.from_pretrained(sys.argv[1])
feed = np.random.default_rng(0).standard_normal([1, 3, *json.loads(sys.argv[4])], dtype=np.float32)
repeats, once = int(sys.argv[3]), lambda: runtime.predict(feed)
schedule = runtime.status()["engine"]["schedule"]
"""
TIMED = """
import time
for _ in range(3):
    once()
found = []
for _ in range(repeats):
    begin = time.perf_counter()
    once()
    found.append(1e3 * (time.perf_counter() - begin))
    time.sleep(0.005)
print(json.dumps([found, schedule]))
"""
BUSY = "import time\nwhile True:\n    sum(range(10_000))\n"
DEVICE = """
import sys, time
import numpy as np
from edvit_hf.runtime import EDViTRuntime
runtime = EDViTRuntime.from_pretrained(
    sys.argv[1], precision="int8", sub_models=[0], num_threads=1, schedule="in_turn"
)
answer = runtime(np.zeros((480, 640, 3), np.uint8))
assert answer.present[0]
print("answered", flush=True)
status = open("/proc/self/status").read()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
print(time.process_time())
"""


def overhead(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Answers over sleeping stubs, each on its worker, in turns with the slowest stub alone."""
    from edvit_hf.manifest import Manifest
    from edvit_hf.runtime import EDViTRuntime, LocalEngine
    from edvit_hf.runtime.inputs import probe_inputs

    class Stub:
        def __init__(self, index: int) -> None:
            entry = Manifest.load(root).sub_models[index]
            self.features = np.asarray([entry.feature_mean], np.float32)
            self.logits = np.zeros((1, len(entry.class_group) + 1), np.float32)
            self.seconds = STUB_MS[index] / 1e3

        def run(self, *_: Any) -> list[np.ndarray]:
            time.sleep(self.seconds)
            return [self.features, self.logits]

    about, stubs = Manifest.load(root).ensemble, {i: Stub(i) for i in (2, 1, 0)}
    probe = probe_inputs(about.task, (3, 8, 8))
    engine = LocalEngine(stubs, content_hash=about.content_hash, schedule="workers", probe=probe)
    runtime = EDViTRuntime.from_pretrained(root, engine=engine)
    feed = {"pixel_values": np.zeros((1, *(size or 8 for size in runtime.input_shape)), np.float32)}
    slowest, found = Stub(2), {"runtime": [], "slowest": []}  # type: ignore[var-annotated]
    for _ in range(arguments.stub_requests):
        for name, call in (("slowest", slowest.run), ("runtime", lambda: runtime.predict(feed))):
            feed["pixel_values"] = feed["pixel_values"].copy()  # just made, as the transform leaves it
            found[name].append(1e3 * seconds_of(call))
    medians = {name: statistics.median(times) for name, times in found.items()}
    return {
        "stub_ms": STUB_MS,
        "requests": arguments.stub_requests,
        **{f"{name}_median_ms": round(value, 4) for name, value in medians.items()},
        "ratio": round(medians["runtime"] / medians["slowest"], 4),
        "ratio_of_p95": round(float(np.percentile(found["runtime"], 95) / np.percentile(found["slowest"], 95)), 4),
    }


def on_two_cores(code: str, *arguments: str) -> str:
    """What `code` prints in a process of its own, whose libraries choose their threads themselves."""
    pinned = "import os\nif hasattr(os, 'sched_setaffinity'):\n    " + (
        f"os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{CORES}])\n"
    )
    own = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    return fresh(pinned + code, *arguments, env=own, stderr=subprocess.DEVNULL)


def steal() -> float:
    """Share of two cores that other programs leave: two processes of pure work, against one of them alone."""
    code = "import time; b = time.perf_counter(); sum(range(3_000_000)); print(time.perf_counter() - b)"

    def run(count: int) -> float:
        started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(count)]
        return max(float(process.communicate()[0]) for process in started)

    return round(min(1.0, min(run(1) for _ in range(2)) / run(CORES)), 3)


def time_schedules(arguments: argparse.Namespace, root: Path, image_size: int, *, busy: bool) -> dict[str, Any]:
    """Every schedule in fresh processes that take turns."""
    files = json.dumps([str(root / f"sub_models/{i:02d}/onnx/model.onnx") for i in range(3)])
    shape = json.dumps([image_size, image_size])
    clients = {"onnxruntime defaults": DEFAULTS, **HAND_TUNED}
    rounds: list[dict[str, Any]] = []
    order, shuffler = [*clients, "runtime"], random.Random(arguments.seed)
    hog = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        for _ in range(arguments.rounds):
            shuffler.shuffle(order)
            row: dict[str, Any] = {"free_share": None if busy else steal()}
            for name in order:
                code, what = (RUNTIME, str(root)) if name == "runtime" else (CLIENT, json.dumps(clients[name]))
                printed = on_two_cores(code + TIMED, what, files, str(arguments.repeats), shape)
                times, schedule = json.loads(printed.splitlines()[-1])
                row[name] = round(statistics.median(times), 3)
                row[f"{name}, p95"] = round(float(np.percentile(times, 95)), 3)
                if schedule:
                    row["schedule"] = schedule
            rounds.append(row)
    finally:
        if hog is not None:
            hog.kill()
            hog.wait()
    medians = {name: statistics.median(row[name] for row in rounds) for name in (*clients, "runtime")}
    best = min(HAND_TUNED, key=lambda name: medians[name])

    def over(name: str) -> float:
        return round(statistics.median(row["runtime"] / row[name] for row in rounds), 4)

    return {
        "median_ms": {name: round(value, 3) for name, value in medians.items()},
        "p95_ms": {name: round(statistics.median(row[f"{name}, p95"] for row in rounds), 3) for name in medians},
        "schedules_chosen": [row["schedule"] for row in rounds],
        "best_hand_tuned": best,
        "runtime_over_defaults": over("onnxruntime defaults"),
        "runtime_over_best": over(best),
        "free_share_of_cores": [row["free_share"] for row in rounds],
        "rounds": rounds,
    }


def device(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Fresh processes that load one int8 sub-model and the fusion head and answer once."""
    seconds, own, resident, peak = [], [], [], []
    for _ in range(arguments.device_rounds):
        begin = time.perf_counter()
        words = [sys.executable, "-c", DEVICE, str(root)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=threads(1))
        assert process.stdout is not None
        answered = process.stdout.readline()
        seconds.append(time.perf_counter() - begin)
        rest = process.communicate()[0].split()
        own.append(float(rest[2]))
        if answered.strip() != "answered" or process.returncode:
            raise SystemExit("the device process failed")
        resident.append(int(rest[0]) / 1024)
        peak.append(int(rest[1]) / 1024)
    files = sorted(root.glob("sub_models/00/onnx/model_q*.onnx"))
    return {
        "processes": arguments.device_rounds,
        "int8_files": {path.name: path.stat().st_size for path in files},
        "resident_mib": round(statistics.median(resident), 1),
        "peak_resident_mib": round(statistics.median(peak), 1),
        "cold_start_s": round(statistics.median(seconds), 3),
        "cold_start_s_each": [round(s, 3) for s in seconds],
        "cold_start_processor_s": round(statistics.median(own), 3),
    }


def agreement(folder: Path) -> dict[str, Any]:
    """Items of the test split whose label the runtime and the torch ensemble give differently."""
    import torch

    from edvit_hf.auto import ensemble_class
    from edvit_hf.data import Augmentation, iterate_batches, load_task
    from edvit_hf.published.data import recorded_dataset
    from edvit_hf.runtime import EDViTRuntime

    runtime = EDViTRuntime.from_pretrained(folder, schedule="in_turn")
    model = ensemble_class(runtime.task).from_pretrained(folder).eval()
    processor = folder if runtime.task == "text-classification" else None
    data = load_task(recorded_dataset(folder), Augmentation(), task=runtime.task, processor_dir=processor)
    differs, largest, count = 0, 0.0, 0
    for batch in iterate_batches(data.test, 128):
        inputs = {name: np.asarray(values) for name, values in batch["inputs"].items()}
        answer = runtime.predict(inputs)
        with torch.no_grad():
            logits = model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits
        expected = torch.softmax(logits.double(), -1).numpy()
        differs += int((answer.probabilities.argmax(1) != expected.argmax(1)).sum())
        largest = max(largest, float(np.abs(answer.probabilities - expected).max()))
        count += len(expected)
    name = folder.name if folder.name != "ensemble" else folder.parent.parent.name
    found = {"ensemble": name, "task": runtime.task, "items": count, "differ": differs}
    return {**found, "largest_difference_of_a_probability": largest}


def reached(found: dict[str, Any]) -> dict[str, Any]:
    """What was to be reached, and whether it was; only of the parts that ran."""
    values: dict[str, float] = {}
    if "overhead" in found:
        values["overhead"] = found["overhead"]["ratio"]
    if "schedules" in found:
        values["against_defaults"] = found["schedules"]["runtime_over_defaults"]
        values["against_best"] = found["schedules"]["runtime_over_best"]
        values["against_best_busy"] = found["schedules_busy"]["runtime_over_best"]
    if "device" in found:
        values |= {name: found["device"][name] for name in ("resident_mib", "cold_start_s")}
    if found.get("agreement"):
        values["differs"] = max(row["differ"] / row["items"] for row in found["agreement"])
    return judged(values, LIMITS)


def main() -> None:
    """Export, time, compare, write."""
    add, parse = command_line(__doc__)
    add("--ensemble", type=Path, action="append", default=[], help="exported ensemble for the agreement; repeatable")
    add("--rounds", type=int, default=5, help="fresh processes of every schedule, in shuffled order")
    add("--repeats", type=int, default=40, help="timed requests per process")
    add("--device-rounds", type=int, default=7, help="fresh processes of the device")
    add("--stub-requests", type=int, default=100)
    add("--seed", type=int, default=0, help="of weights and orders")
    add("--tiny", action="store_true", help="toy sizes, to try the script")
    add("--parts", default="overhead,schedules,device,agreement", help="which of them, separated by commas")
    arguments = parse()
    parts = arguments.parts.split(",")
    sizes, image_size = (TINY, 32) if arguments.tiny else (BASE, 224)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "ensemble"
        if set(parts) - {"agreement"}:
            export_fleet(root, sizes, image_size, arguments.seed)
        if "overhead" in parts:
            small = Path(temporary) / "small"
            export_fleet(small, TINY, 32, arguments.seed)
            found["overhead"] = overhead(arguments, root) | {"small_input": overhead(arguments, small)}
        if "schedules" in parts:
            found["schedules"] = time_schedules(arguments, root, image_size, busy=False)
            found["schedules_busy"] = time_schedules(arguments, root, image_size, busy=True)
        if "device" in parts:
            found["device"] = device(arguments, root)
        shutil.rmtree(root, ignore_errors=True)
    if "agreement" in parts:
        found["agreement"] = [agreement(folder.resolve()) for folder in arguments.ensemble]
    result = {"seed": arguments.seed, "reached": reached(found), **found}
    for name in ("schedules", "schedules_busy"):
        if name in found:
            print(name, json.dumps(found[name]["median_ms"], indent=1), found[name]["schedules_chosen"])
    print(json.dumps(result["reached"], indent=1))
    names = ("rounds", "repeats", "device_rounds", "stub_requests", "seed", "parts", "tiny")
    ensembles = " ".join(["--ensemble DIR"] * len(arguments.ensemble))
    write_results(__file__, arguments, result, *names, places=ensembles)


if __name__ == "__main__":
    main()
