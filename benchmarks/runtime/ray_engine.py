# SPDX-License-Identifier: Apache-2.0
"""Measure what the Ray engine adds to the slowest sub-model, and the memory of a device that is in a Ray fleet.

    python benchmarks/runtime/ray_engine.py

Three devices, each a network namespace of this machine with its own link where that is allowed (root, ip, tc), else
processes on loopback, and a head beside the coordinator. Sub-models are stubs that wait 20, 25 and 30 ms, so that cores
that all devices share here do not hide the engine; an image of 150 KB goes to each of them. Whole requests of the
coordinator are timed, the way back to uint8 pixels included, against the time of the slowest stub's own run; the
figures are ratios inside one run. Writes `benchmarks/results/ray_engine.json`. Run it with nothing else running; where
something is, `--first` has the cores serve this benchmark's processes first while it measures (root's alone).
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from harness import ROOT, command_line, judged, write_results

from edvit_hf.errors import EDViTError
from edvit_hf.fleet.cluster import start_head, stop_head
from edvit_hf.fleet.joining import NodeConfig
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime import Coordinator, CoordinatorConfig
from edvit_hf.runtime.engines.ray import RayEngine
from edvit_hf.runtime.opening import transform_of
from edvit_hf.transforms.travelling import travelling
from support.machines import Machines, free_port
from support.stub_actor import MILLISECONDS, StubActor
from support.tiny_ensemble import write_tiny_ensemble

TOKEN = "the-token-of-this-benchmark-0123"
LIMITS = {"median": 1.20, "p95": 1.30}
SIDE = 224
NAMES = tuple(f"pi{i}" for i in range(len(MILLISECONDS)))


class StubEngine(RayEngine):
    """Its devices wait instead of computing."""

    actor = StubActor


def memory_of(processes: list[int]) -> dict[str, float]:
    """MiB of a device's processes by what they are: pages that several share are counted in parts."""
    found: dict[str, float] = {}
    for process in processes:
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode().replace("\0", " ")
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        kib = next((float(line.split()[1]) for line in lines if line.startswith("Pss:")), 0.0)
        known = ("raylet/raylet", "DashboardAgent", "RuntimeEnvAgent", "ray::StubActor", "ray::IDLE", "ray.scripts")
        kind = next((name for name in known if name in words), "edvit device join")
        found[kind] = round(found.get(kind, 0.0) + kib / 1024, 1)
    return {**found, "all": round(sum(found.values()), 1)}


def timed(coordinator: Coordinator, inputs: dict[str, np.ndarray], count: int) -> dict[str, Any]:
    """Whole requests, and the slowest stub's own run in each."""
    whole, slowest = [], []
    for _ in range(20):
        coordinator.gather(inputs)
    for _ in range(count):
        begin = time.perf_counter()
        gathered = coordinator.gather(inputs)
        whole.append(1e3 * (time.perf_counter() - begin))
        if gathered.missing:
            raise SystemExit(f"a device did not answer: {gathered.missing}")
        slowest.append(max(response.compute_ms for response in gathered.responses.values()))
    base = float(np.median(slowest))
    figures = {"median": float(np.median(whole)), "p95": float(np.percentile(whole, 95))}
    return {
        "requests": count,
        "slowest_sub_model_ms": round(base, 2),
        "ms": {name: round(value, 2) for name, value in figures.items()},
        "ratio": {name: round(value / base, 3) for name, value in figures.items()},
    }


def first(processes: list[int]) -> None:
    """Have every thread of these, and what they start, run before what is scheduled as usual."""
    for process in processes:
        for thread in Path(f"/proc/{process}/task").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(1))


def recovered(coordinator: Coordinator, engine: RayEngine, inputs: dict[str, np.ndarray]) -> float:
    """Seconds from the end of a sub-model's process until an answer has all of them again; asked all the while."""
    os.kill(engine.call(2, "pi2", "alive", group="life").result(10)["pid"], signal.SIGKILL)
    begin = time.monotonic()
    while time.monotonic() - begin < 60.0:
        with contextlib.suppress(EDViTError):  # on a busy machine others may be late too
            is_whole = not coordinator.gather(inputs, deadline_ms=250.0).missing
            if is_whole and time.monotonic() - begin > 0.1:
                break
        time.sleep(0.02)
    return time.monotonic() - begin


def main() -> None:
    """Start a fleet, ask it, look at its memory, end it, write."""
    add, read = command_line(__doc__)
    add("--requests", type=int, default=300)
    add("--kills", type=int, default=3)
    add("--first", action="store_true", help="real-time scheduling of this benchmark's processes")
    add("--settle", type=float, default=10.0, help="seconds for new processes to come to rest")
    arguments = read()
    tests = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as name, Machines(Path(name), NAMES) as machines:
        folder = Path(name)
        os.environ["EDVIT_CACHE_DIR"] = str(folder / "cache")
        manifest = write_tiny_ensemble(folder / "ensemble", [[0], [1], [2]])
        own = EnsembleIdentity(id=manifest.ensemble.id, content_hash=manifest.ensemble.content_hash)
        devices = {n: PlacedDevice(profile="x86-avx2", sub_models=[PlacedFile(index=i)]) for i, n in enumerate(NAMES)}
        placement = PlacementFile(ensemble=own, fleet="stubs", num_sub_models=len(NAMES), devices=devices)
        head = f"{machines.coordinator}:{free_port(machines.coordinator)}"
        config = NodeConfig(
            name=None, head=head, is_head=True, first_port=None, spare_process=False, temp_dir=machines.shared
        )
        os.environ.update(tests)
        start_head(config, TOKEN)
        with contextlib.ExitStack() as stack:
            stack.callback(stop_head, head)
            for device in NAMES:
                words = ["--name", device, "--address", machines.address(device)]
                words += ["--first-port", str(machines.first_port(device) or 0)]
                join = [sys.executable, "-m", "edvit_hf.cli", "device", "join", head, *words]
                machines.start(device, join, {"EDVIT_FLEET_TOKEN": TOKEN, **tests})
            where = dict.fromkeys(NAMES, str(folder / "ensemble"))
            engine = StubEngine(head, placement=placement, token=TOKEN, folders=where, start_seconds=180)
            transform = transform_of(manifest, folder / "ensemble")
            engine.bind(manifest, transform)
            pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            inputs = {"pixel_values": transform.normalised(pixels).transpose(2, 0, 1)[None].copy()}
            sent = sum(values.nbytes for values in travelling(transform, inputs).values())
            coordinator = Coordinator(manifest, engine, CoordinatorConfig(max_deviations=None))
            stack.callback(coordinator.close)  # before its head is ended: Ray waits for it
            time.sleep(arguments.settle)
            if arguments.first:
                first([os.getpid(), *(p for each in machines.processes.values() for p in machines.members(each.pid))])
            row = timed(coordinator, inputs, arguments.requests)
            memory = memory_of(machines.members(machines.processes["pi2"].pid))
            recovery = [round(recovered(coordinator, engine, inputs), 2) for _ in range(arguments.kills)]
    content = {
        "machines": machines.kind,
        "stubs_ms": list(MILLISECONDS),
        "bytes_to_each_device": sent,
        "ray": row,
        "device_memory_mib": memory,
        "seconds_until_whole_after_kill_9": recovery,
        "targets": judged(row["ratio"], LIMITS),
    }
    write_results(__file__, arguments, content, "requests", "kills", "settle", "first")
    print(content)


if __name__ == "__main__":
    main()
