# SPDX-License-Identifier: Apache-2.0
"""Ask a fleet of real processes while they are killed, stopped, cut off and started again at random, seeded.

    python benchmarks/runtime/fleet_faults.py --requests 5000

Three `edvit worker` processes on loopback, each behind a link that can be cut; sub-model 1 has a replica. Writes
`fleet_faults.json` among the results: what came of the requests, answers that were not those of the local engine for
the sub-models that took part (none may be), how long after its deadline any request ended, how long a killed device's
sub-model was missing, and what was done to the devices. Run it on a quiet machine: times are compared with limits.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from harness import command_line, judged, write_results

from edvit_hf.errors import EDViTError, QuorumError
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from edvit_hf.runtime.engines.oip import OIPEngine
from support.cut_link import CutLink
from support.device_shares import copy_share
from support.tiny_ensemble import TASK_GROUPS, write_tiny_ensemble
from support.worker_processes import WorkerProcess

HELD = ([0], [1], [2, 1])
KINDS = ("killed", "stopped", "cut")
LIMITS = {"ms after the deadline": 10.0, "wrong answers": 0.0, "neither answered nor rejected": 0.0}
EVERY = 25  # requests between two events


class Device:
    """A worker, the link to it, and what was done to them."""

    def __init__(self, share: Path, stack: ExitStack) -> None:
        self.worker = WorkerProcess(share)
        stack.callback(self.worker.close)
        self.link = stack.enter_context(CutLink(self.worker.port))
        self.state = "up"

    def spoil(self, kind: str) -> None:
        """Kill it, stop it, or cut its link."""
        self.state = kind
        if kind == "cut":
            self.link.cut()
        else:
            self.worker.send(signal.SIGKILL if kind == "killed" else signal.SIGSTOP)

    def mend(self) -> None:
        """Start it again, let it go on, or mend its link."""
        if self.state == "cut":
            self.link.mend()
        elif self.state == "stopped":
            self.worker.send(signal.SIGCONT)
        elif self.state == "killed":
            self.worker.start()
        self.state = "up"


def placement(root: Path, local: EDViTRuntime) -> PlacementFile:
    """Sub-model i on device i, and device 2 stands in for 1."""
    entry = local.manifest.ensemble
    placed = {f"pi{n}": PlacedDevice(profile="x", sub_models=[PlacedFile(index=n)]) for n in range(3)}
    placed["pi2"].replicas.append(PlacedFile(index=1))
    identity = EnsembleIdentity(id=entry.id, content_hash=entry.content_hash)
    return PlacementFile(ensemble=identity, fleet="faults", num_sub_models=3, devices=placed)


def campaign(runtime: EDViTRuntime, local: EDViTRuntime, devices: list[Device], arguments: Any) -> dict[str, Any]:
    """Ask, disturb, and count."""
    rng = random.Random(arguments.seed)
    image = np.random.default_rng(0).integers(0, 256, (20, 9, 3), dtype=np.uint8)
    inputs = local.transform.inputs(image)
    expected: dict[tuple[int, ...], np.ndarray] = {}
    results, events, wrong, overshoot = Counter[str](), Counter[str](), 0, 0.0
    for number in range(arguments.requests):
        if number % EVERY == EVERY - 1:
            down = [device for device in devices if device.state != "up"]
            if down:
                down[0].mend()
            else:
                kind = rng.choice(KINDS)
                events[kind] += 1
                rng.choice(devices).spoil(kind)
        begin = time.monotonic()
        try:
            answer = runtime.predict(inputs)
        except QuorumError:
            results["rejected"] += 1
        except EDViTError as error:
            results[f"failed: {type(error).__name__}"] += 1
        else:
            results["degraded" if answer.missing else "whole"] += 1
            key = tuple(sorted(answer.missing))
            if key not in expected:
                expected[key] = local.predict(inputs, absent=key).probabilities
            wrong += not np.array_equal(answer.probabilities, expected[key])
        overshoot = max(overshoot, 1e3 * (time.monotonic() - begin) - arguments.deadline_ms)
    lost = sum(count for name, count in results.items() if name.startswith("failed"))
    found = {"ms after the deadline": round(max(0.0, overshoot), 2), "wrong answers": float(wrong)}
    found["neither answered nor rejected"] = float(lost)
    return {"results": dict(results), "events": dict(events), "targets": judged(found, LIMITS)}


def recovery(runtime: EDViTRuntime, local: EDViTRuntime, device: Device) -> float:
    """Seconds from the kill of a device with a replica to the next whole answer."""
    inputs = local.transform.inputs(np.zeros((20, 9, 3), np.uint8))
    device.spoil("killed")
    begin = time.monotonic()
    while runtime.predict(inputs).missing:
        pass
    seconds = time.monotonic() - begin
    device.mend()
    return seconds


def main() -> None:
    """Start the fleet, run the campaign, and write."""
    add, read = command_line(__doc__)
    add("--requests", type=int, default=5000)
    add("--deadline-ms", type=float, default=150.0)
    add("--seed", type=int, default=0)
    arguments = read()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder) / "ensemble"
        write_tiny_ensemble(root, TASK_GROUPS)
        shares = [copy_share(root, Path(folder) / f"pi{n}", *held) for n, held in enumerate(HELD)]
        devices = [Device(share, stack) for share in shares]
        addresses = {f"pi{n}": f"127.0.0.1:{device.link.port}" for n, device in enumerate(devices)}
        local = stack.enter_context(EDViTRuntime.from_pretrained(root, num_threads=1))
        engine = OIPEngine(addresses, placement=placement(root, local), keepalive_s=0.5)
        config = CoordinatorConfig(deadline_ms=arguments.deadline_ms, probe_pause_s=0.2, longest_probe_pause_s=1.0)
        runtime = stack.enter_context(EDViTRuntime.from_pretrained(root, engine=engine, config=config))
        seconds = recovery(runtime, local, devices[1])
        found = campaign(runtime, local, devices, arguments)
        for device in devices:
            device.mend()
    found["targets"] |= judged(
        {"s from kill -9 to a whole answer, replica": round(seconds, 3)},
        {"s from kill -9 to a whole answer, replica": 3.0},
    )
    content = {"engine": "oip", "load_average": round(load, 2), "requests": arguments.requests, **found}
    write_results(__file__, arguments, content, "requests", "deadline_ms", "seed")
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
