# SPDX-License-Identifier: Apache-2.0
"""Measure the memory of a device's process: `edvit worker` with one sub-model of a ViT-Base, 2 of 12 heads kept.

    python benchmarks/runtime/device_memory.py

An ensemble with random weights is exported, one sub-model's share of it pulled, and a worker started on it in a process
of its own, which is then asked over the Open Inference Protocol. Writes `device_memory.json` among the results:
resident memory in MiB after so many requests, its parts, what the process has loaded that no device needs (nothing),
and the share's size. `proportional` counts a page that several processes share in parts; on a device that runs nothing
else of the kind it comes to `resident`. Memory does not depend on what else this machine does.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from harness import BASE, command_line, judged, memory_mib, write_results

from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hub import pull
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from edvit_hf.runtime.engines.oip import OIPEngine
from runtime.cut_fleet import export_fleet
from support.worker_processes import WorkerProcess, workers_of

LIMITS = {"int8, one thread": 140.0}  # MiB resident
HEAVY = ("torch", "pandas", "kubernetes", "scipy", "transformers")
IMAGE_SIZE = 224


def parts_mib(process_id: int) -> dict[str, float]:
    """Resident memory and its parts, now."""
    text = Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii")
    kib = {line.split(":")[0]: float(line.split()[1]) for line in text.splitlines()[1:]}
    status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii")
    found = {line.split(":")[0]: float(line.split()[1]) for line in status.splitlines() if line.startswith("Rss")}
    return {
        "proportional": round(kib["Pss"] / 1024, 1),
        "anonymous": round(found["RssAnon"] / 1024, 1),
        "files": round(found["RssFile"] / 1024, 1),
    }


def loaded(process_id: int) -> list[str]:
    """Packages among `HEAVY` that a process has mapped a library of."""
    maps = Path(f"/proc/{process_id}/maps").read_text(encoding="utf-8")
    return [name for name in HEAVY if f"/{name}/" in maps]


def measured(root: Path, share: Path, threads: int | None, requests: int) -> dict[str, Any]:
    """Start a worker on the share, ask it, and read its memory."""
    options = [] if threads is None else ["--num-threads", str(threads)]
    worker = WorkerProcess(share, options=options)
    with workers_of(worker) as workers:
        idle = memory_mib(worker.process.pid)["resident"]
        image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        config = CoordinatorConfig(quorum=1, misses_to_open=None)
        with EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers), config=config) as runtime:
            for _ in range(requests):
                answer = runtime(image, absent=[1, 2])
        if set(answer.missing) != {1, 2}:
            raise SystemExit(f"the worker did not answer: {answer.missing}")
        found = memory_mib(worker.process.pid)
        rounded = {name: round(value, 1) for name, value in {"before_requests": idle, **found}.items()}
        return {**rounded, **parts_mib(worker.process.pid), "heavy_packages": loaded(worker.process.pid)}


def main() -> None:
    """Export, pull, start, ask, and write."""
    add, read = command_line(__doc__)
    add("--requests", type=int, default=50)
    add("--seed", type=int, default=0)
    arguments = read()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ensemble"
        export_fleet(root, BASE, IMAGE_SIZE, arguments.seed)
        rows, bytes_of = {}, {}
        for precision in ("int8", "fp32"):
            share = Path(folder) / f"share-{precision}"
            profile = detect_profile() if precision == "int8" else None
            pull(str(root), sub_models=[0], precision=precision, profile=profile, output=share)
            bytes_of[precision] = sum(path.stat().st_size for path in share.rglob("*.onnx"))
            rows[f"{precision}, one thread"] = measured(root, share, 1, arguments.requests)
    base = subprocess.run(
        [sys.executable, "-c", "import os; print(open(f'/proc/{os.getpid()}/status').read())"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
    ).stdout
    python = next(float(line.split()[1]) / 1024 for line in base.splitlines() if line.startswith("VmRSS"))
    content = {
        "what": f"edvit worker with one sub-model of a ViT-Base, 2 of 12 heads, {IMAGE_SIZE} px, random weights",
        "mib": rows,
        "graph_bytes": bytes_of,
        "python_alone_mib": round(python, 1),
        "targets": judged({name: rows[name]["resident"] for name in LIMITS}, LIMITS),
    }
    write_results(__file__, arguments, content, "requests", "seed")
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
