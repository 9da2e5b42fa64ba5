# SPDX-License-Identifier: Apache-2.0
"""Measure what each engine adds to the slowest device: three that sleep 20, 25 and 30 ms, inputs of 150 KB, loopback.

    python benchmarks/runtime/engines.py

The devices of a network engine are processes of their own (see `stub_devices`). Requests go to the engines in turn, in
blocks, so that what else the machine does hits all of them. Writes `engines.json` among the results: by engine the
median and the 95th percentile of a request, and both over the median of the slowest sub-model's own run as the devices
report it; whether answers are equal; and the limits that the ratios must keep. Run it on a quiet machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from harness import command_line, judged, threads, write_results

from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.engines.oip import OIPEngine
from runtime.stub_devices import IMAGE_SIZE, MILLISECONDS, engine_of, write_ensemble

LIMITS = {"oip median": 1.15}
BLOCK = 20
WARM_UP = 10


@contextmanager
def workers(root: Path) -> Iterator[dict[str, str]]:
    """A worker process for each sub-model: addresses by name."""
    script = Path(__file__).with_name("stub_devices.py")
    with ExitStack() as stack:
        found = {}
        for index in range(len(MILLISECONDS)):
            process = subprocess.Popen(
                [sys.executable, str(script), str(root), str(index)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=threads(1),
            )
            stack.callback(process.wait, 30)
            assert process.stdin is not None
            assert process.stdout is not None
            stack.callback(process.stdin.close)
            found[f"pi{index}"] = f"127.0.0.1:{int(process.stdout.readline())}"
        yield found


def ask(runtime: EDViTRuntime, inputs: dict[str, np.ndarray], count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of so many requests, and of the slowest sub-model in each."""
    answers = [runtime.predict(inputs) for _ in range(count)]
    degraded = [answer.missing for answer in answers if answer.missing]
    if degraded:
        raise SystemExit(f"expected whole answers, got {degraded[0]}")
    return [a.total_milliseconds for a in answers], [max(filter(None, a.milliseconds)) for a in answers]


def row(total: list[float], slowest: list[float]) -> dict[str, Any]:
    """Figures of one engine."""
    typical, p95 = statistics.median(slowest), float(np.percentile(total, 95))
    median = statistics.median(total)
    return {
        "requests": len(total),
        "slowest_ms": round(typical, 3),
        "median_ms": round(median, 3),
        "p95_ms": round(p95, 3),
        "median_ratio": round(median / typical, 4),
        "p95_ratio": round(p95 / typical, 4),
    }


def main() -> None:
    """Ask every engine in turn, and write."""
    add, read = command_line(__doc__)
    add("--requests", type=int, default=400, help="of each engine")
    arguments = read()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder) / "ensemble"
        manifest = write_ensemble(root)
        engines: dict[str, Any] = {"local": engine_of(manifest, 0, 1, 2)}
        engines["oip"] = OIPEngine(stack.enter_context(workers(root)))
        runtimes = {
            name: stack.enter_context(EDViTRuntime.from_pretrained(root, engine=engine))
            for name, engine in engines.items()
        }
        image = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
        inputs = runtimes["local"].transform.inputs(image)
        expected = runtimes["local"].predict(inputs).probabilities
        equal = {name: bool(np.array_equal(r.predict(inputs).probabilities, expected)) for name, r in runtimes.items()}
        samples: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runtimes}
        for runtime in runtimes.values():
            ask(runtime, inputs, WARM_UP)
        for _ in range(-(-arguments.requests // BLOCK)):
            for name, runtime in runtimes.items():
                for kept, new in zip(samples[name], ask(runtime, inputs, BLOCK), strict=True):
                    kept.extend(new)
    rows = {name: row(*found) for name, found in samples.items()}
    content = {
        "what": f"devices that sleep {', '.join(f'{ms:g}' for ms in MILLISECONDS)} ms; {image.nbytes} bytes of input",
        "load_average": round(load, 2),
        "engines": rows,
        "answers_equal": equal,
        "targets": judged({"oip median": rows["oip"]["median_ratio"]}, LIMITS),
    }
    write_results(__file__, arguments, content, "requests")
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
