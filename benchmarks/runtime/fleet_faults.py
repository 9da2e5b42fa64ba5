# SPDX-License-Identifier: Apache-2.0
"""Ask a fleet of real processes while they are killed, stopped, cut off, slowed and restarted at random, seeded.

    python benchmarks/runtime/fleet_faults.py --requests 5000

Four processes with the server of `edvit worker`, whose sub-models sleep 4, 6 and 8 ms; the fourth stands in for
sub-models 0 and 1. Each is in a network namespace of its own whose link goes down and is shaped (`tc tbf`); where that
is not allowed all are on loopback, and links stay as they are: which it was is among the results. Devices also come
back with another version of the ensemble, and with values that are no numbers. Writes `fleet_faults.json`: what came
of the requests, answers that are not those of the local engine for the sub-models that took part, how long after their
deadline requests ended, beside a plain wait of that length on the same machine meanwhile, how long a killed device's
sub-model was missing, and what an answer takes while a breaker is open. Run it on a quiet machine.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np

from harness import command_line, judged, threads, write_results

from edvit_hf.errors import DeadlineError, EDViTError, OverloadedError, QuorumError
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from edvit_hf.runtime.engines.oip import OIPEngine
from runtime.runtime_faults import Sleeper
from runtime.stub_devices import IMAGE_SIZE, MILLISECONDS, engine_of, write_ensemble
from support.tiny_ensemble import bless_processor

HELD = ([0], [1], [2], [0, 1])  # by device; what the fourth holds are replicas
QUICK_MS = (4.0, 6.0, 8.0)
TOKEN = "token-of-a-benchmark-on-one-machine"
ON_LINKS, ON_PROCESSES = ("cut", "slowed"), ("killed", "stopped", "outdated", "damaged")
SLOW = "tbf rate 4mbit burst 32kb latency 500ms"  # an input of 150 KB takes 300 ms
EVERY, MOST_DOWN, PAUSE_S, BEYOND_MS = 70, 2, 0.01, 10.0
LONG_MS = 10_000.0
LIMITS = {
    "requests that ended later than 10 ms after their deadline": 0.0,
    "ms after the deadline, 99.9th percentile": BEYOND_MS,
    "wrong answers": 0.0,
    "answers that are not finite": 0.0,
    "neither answered nor rejected": 0.0,
    "s from kill -9 to the replica's answer, worst": 3.0,
    "degraded answers over the slowest live sub-model, breaker open": 1.2,
}


def privileged(line: str) -> None:
    """Run one command of the network; raises where the machine does not allow it."""
    subprocess.run(line.split(), check=True, capture_output=True)


class Way:
    """The network to one device: a namespace of its own with a link, or loopback."""

    def __init__(self, number: int, *, has_link: bool) -> None:
        self.name, self.address, self.start = f"edvit-ff{number}", "127.0.0.1", list[str]()
        if not has_link:
            return
        far, self.start = f"{self.name}b", ["ip", "netns", "exec", self.name]
        self.address, inside = f"10.77.{40 + number}.2", " ".join(self.start)
        self.close()
        privileged(f"ip netns add {self.name}")
        privileged(f"ip link add {self.name}a type veth peer name {far}")
        privileged(f"ip link set {far} netns {self.name}")
        privileged(f"ip addr add 10.77.{40 + number}.1/24 dev {self.name}a")
        privileged(f"ip link set {self.name}a up")
        for rest in (f"addr add {self.address}/24 dev {far}", f"link set {far} up", "link set lo up"):
            privileged(f"{inside} ip {rest}")

    def spoil(self, kind: str) -> None:
        """Cut the link at its far end, or shape it at the near one."""
        if kind == "cut":
            privileged(f"{' '.join(self.start)} ip link set {self.name}b down")
        else:
            privileged(f"tc qdisc replace dev {self.name}a root {SLOW}")

    def mend(self, kind: str) -> None:
        """Undo it."""
        if kind == "cut":
            privileged(f"{' '.join(self.start)} ip link set {self.name}b up")
        else:
            privileged(f"tc qdisc del dev {self.name}a root")

    def close(self) -> None:
        """Remove it."""
        for line in (f"ip link del {self.name}a", f"ip netns del {self.name}"):
            with contextlib.suppress(subprocess.CalledProcessError, OSError):
                privileged(line)


class Device:
    """A worker's process, the way there, and what was done to them."""

    def __init__(self, roots: Sequence[Path], held: Sequence[int], milliseconds: Sequence[float], way: Way) -> None:
        self._roots, self._held, self._milliseconds, self._way = roots, held, milliseconds, way
        self.port, self.state = 0, "up"
        self.start()

    def start(self, state: str = "up", *, wait: bool = True) -> None:
        """Start it; outdated: with another version; damaged: with features that are no numbers."""
        how: dict[str, Any] = {"listen": f"{self._way.address}:{self.port}", "tokens": [TOKEN]}
        how |= {"milliseconds": self._milliseconds} | ({"value": float("nan")} if state == "damaged" else {})
        words = [str(Path(__file__).with_name("stub_devices.py")), str(self._roots[state == "outdated"])]
        words += [",".join(map(str, self._held)), json.dumps(how)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*self._way.start, sys.executable, *words], env=threads(1), **pipes)
        if wait:
            assert self.process.stdout is not None
            self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        """As `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def spoil(self, kind: str) -> None:
        """Do to it what the word says."""
        self.state = kind
        if kind in ON_LINKS:
            self._way.spoil(kind)
        elif kind == "stopped":
            self.process.send_signal(signal.SIGSTOP)
        else:
            self.kill()
            if kind != "killed":
                self.start(kind, wait=False)

    def mend(self) -> None:
        """Start it again as it was, let it go on, or mend its link; without waiting for it."""
        kind, self.state = self.state, "up"
        if kind in ON_LINKS:
            self._way.mend(kind)
        elif kind == "stopped":
            self.process.send_signal(signal.SIGCONT)
        elif kind != "up":
            self.kill()
            self.start(wait=False)


def placed_on(manifest: Manifest) -> PlacementFile:
    """Sub-model i on device i; the last device stands in."""
    placed = {f"pi{n}": PlacedDevice(profile="x", sub_models=[PlacedFile(index=n)]) for n in range(3)}
    placed["pi3"] = PlacedDevice(profile="x", sub_models=[], replicas=[PlacedFile(index=i) for i in HELD[3]])
    entry = manifest.ensemble
    identity = EnsembleIdentity(id=entry.id, content_hash=entry.content_hash)
    return PlacementFile(ensemble=identity, fleet="faults", num_sub_models=3, devices=placed)


@contextlib.contextmanager
def fleet_of(
    roots: Sequence[Path], milliseconds: Sequence[float], config: CoordinatorConfig, *, has_links: bool
) -> Iterator[tuple[EDViTRuntime, list[Device]]]:
    """Devices that hold `HELD`, and the runtime that asks them; connected."""
    with ExitStack() as stack:
        devices, addresses = [], {}
        for number, held in enumerate(HELD):
            way = Way(number, has_link=has_links)
            stack.callback(way.close)
            devices.append(Device(roots, held, milliseconds, way))
            stack.callback(devices[-1].kill)
            addresses[f"pi{number}"] = f"{way.address}:{devices[-1].port}"
        placement = placed_on(Manifest.load(roots[0]))
        engine = OIPEngine(addresses, placement=placement, token=TOKEN, keepalive_s=0.5, probe_pause_s=0.2)
        runtime = stack.enter_context(EDViTRuntime.from_pretrained(roots[0], engine=engine, config=config))
        until_whole(runtime)
        yield runtime, devices


def feed(runtime: EDViTRuntime) -> dict[str, np.ndarray]:
    """One prepared image; it travels as 150,528 bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return runtime.transform.inputs(pixels)


def until_whole(runtime: EDViTRuntime, *, of: Sequence[int] = (0, 1, 2), all_up: bool = True) -> float:
    """Seconds until an answer holds these sub-models, and, with `all_up`, until no device of any is down."""
    begin, inputs = time.monotonic(), feed(runtime)
    while time.monotonic() < begin + 60:
        with contextlib.suppress(EDViTError):
            if not set(of) & set(runtime.predict(inputs, deadline_ms=LONG_MS).missing):
                seconds = time.monotonic() - begin
                routes: Any = runtime.status()["engine"]["routes"]
                if not all_up or all(each["health"] == "up" for found in routes.values() for each in found):
                    return seconds
        time.sleep(PAUSE_S)
    raise SystemExit("expected the fleet to be whole within a minute, it was not")


def recoveries(runtime: EDViTRuntime, devices: Sequence[Device], count: int) -> list[float]:
    """Seconds from kill -9 of a device to the next answer with its sub-model, which its replica gives."""
    found = []
    for number in range(count):
        devices[number % 2].spoil("killed")
        found.append(until_whole(runtime, of=[number % 2], all_up=False))
        devices[number % 2].mend()
        until_whole(runtime)
    return found


class Asked:
    """What came of each request."""

    def __init__(self, root: Path, inputs: dict[str, np.ndarray]) -> None:
        """Compute what each set of sub-models must give."""
        engine = engine_of(Manifest.load(root), 0, 1, 2, milliseconds=(0.0, 0.0, 0.0))
        with EDViTRuntime.from_pretrained(root, engine=engine, config=CoordinatorConfig(quorum=1)) as local:
            sets = [s for size in range(3) for s in itertools.combinations(range(3), size)]
            self._expected = {s: local.predict(inputs, absent=s).probabilities for s in sets}
        self._inputs = inputs
        self.outcomes, self.missing, self.ms = Counter[str](), Counter[str](), list[float]()
        self.wrong = self.not_finite = 0

    def ask(self, runtime: EDViTRuntime) -> None:
        """Ask once, and compare."""
        answer, begin = None, time.monotonic()
        try:
            answer = runtime.predict(self._inputs)
        except (QuorumError, OverloadedError, DeadlineError) as error:
            outcome = f"rejected: {type(error).__name__}"
        except Exception as error:  # none may come
            outcome = f"failed: {type(error).__name__}"
        else:
            outcome = "degraded" if answer.missing else "whole"
        self.ms.append(1e3 * (time.monotonic() - begin))
        self.outcomes[outcome] += 1
        if answer is not None:
            self.missing.update(answer.missing.values())
            self.not_finite += not np.isfinite(answer.probabilities).all()
            self.wrong += not np.array_equal(answer.probabilities, self._expected[tuple(sorted(answer.missing))])


def campaign(
    runtime: EDViTRuntime, devices: Sequence[Device], asked: Asked, arguments: argparse.Namespace, kinds: Sequence[str]
) -> dict[str, Any]:
    """Ask, disturb, and count."""
    rng, events = random.Random(arguments.seed), Counter[str]()
    begin = time.monotonic()
    with Sleeper(arguments.deadline_ms) as sleeper:
        for number in range(arguments.requests):
            if number % EVERY == EVERY - 1:
                down = [device for device in devices if device.state != "up"]
                if down and (len(down) == MOST_DOWN or rng.random() < 0.5):
                    rng.choice(down).mend()
                else:
                    kind = rng.choice(kinds)
                    rng.choice([device for device in devices if device.state == "up"]).spoil(kind)
                    events[kind] += 1
            asked.ask(runtime)
            time.sleep(PAUSE_S)
    seconds = time.monotonic() - begin
    for device in devices:
        device.mend()
    beyond = np.array(asked.ms) - arguments.deadline_ms
    late = np.array(sleeper.late_ms)
    return {
        "seconds": round(seconds, 1),
        "events": dict(events),
        "results": dict(asked.outcomes),
        "missing": dict(asked.missing),
        "p50_ms": round(statistics.median(asked.ms), 2),
        "beyond_deadline_p99_9_ms": round(float(np.percentile(beyond, 99.9)), 2),
        "beyond_deadline_max_ms": round(float(beyond.max()), 2),
        "requests_beyond": int((beyond > BEYOND_MS).sum()),
        "share_within": float((beyond <= BEYOND_MS).mean()),
        "plain_waits": len(late),
        "plain_waits_beyond": int((late > BEYOND_MS).sum()),
        "plain_wait_beyond_p99_9_ms": round(float(np.percentile(late, 99.9)), 2),
        "plain_wait_beyond_max_ms": round(float(late.max()), 2),
        "seconds_until_whole_afterwards": round(until_whole(runtime), 2),
    }


def with_open_breaker(runtime: EDViTRuntime, device: Device, requests: int) -> dict[str, float]:
    """What a degraded answer takes while the breaker of a stopped device's sub-model is open."""
    inputs, total, slowest = feed(runtime), [], []
    device.spoil("stopped")
    while len(total) < requests:
        answer = runtime.predict(inputs)
        if set(answer.missing.values()) == {"breaker"}:
            total.append(answer.total_milliseconds)
            slowest.append(max(filter(None, answer.milliseconds)))
    device.mend()
    ratio = statistics.median(total) / statistics.median(slowest)
    figures = {"answers": len(total), "median_ms": statistics.median(total), "degraded_over_slowest_live": ratio}
    figures["slowest_live_ms"] = statistics.median(slowest)
    return {name: round(value, 4) for name, value in figures.items()}


def links_allowed() -> bool:
    """Whether namespaces and shaped links can be made here."""
    with contextlib.ExitStack() as stack:
        try:
            way = Way(9, has_link=True)
            stack.callback(way.close)
            way.spoil("slowed")
        except (subprocess.CalledProcessError, OSError):
            return False
    return True


def main() -> None:
    """Start the fleets, run the three parts, and write."""
    add, read = command_line(__doc__)
    add("--requests", type=int, default=5000)
    add("--deadline-ms", type=float, default=100.0)
    add("--kills", type=int, default=6)
    add("--seed", type=int, default=0)
    arguments = read()
    load, has_links = os.getloadavg()[0], links_allowed()
    kinds = (*ON_PROCESSES, *(ON_LINKS if has_links else ()))
    config = CoordinatorConfig(deadline_ms=arguments.deadline_ms, probe_pause_s=0.2, longest_probe_pause_s=1.0)
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder) / name for name in ("ensemble", "outdated")]
        for root in roots:
            write_ensemble(root)
        processor = roots[1] / "preprocessor_config.json"
        processor.write_text(processor.read_text().replace("0.5", "0.4", 1))
        bless_processor(roots[1])
        with fleet_of(roots, QUICK_MS, config, has_links=has_links) as (runtime, devices):
            seconds = recoveries(runtime, devices, arguments.kills)
            asked = Asked(roots[0], feed(runtime))
            found = campaign(runtime, devices, asked, arguments, kinds)
        with fleet_of(roots, MILLISECONDS, config, has_links=has_links) as (runtime, devices):
            breaker = with_open_breaker(runtime, devices[2], max(20, arguments.requests // 25))
    lost = sum(count for name, count in asked.outcomes.items() if name.startswith("failed"))
    values = [found["requests_beyond"], found["beyond_deadline_p99_9_ms"], asked.wrong, asked.not_finite, lost]
    values += [round(max(seconds), 3), breaker["degraded_over_slowest_live"]]
    content = {
        "engine": "oip",
        "ran_on": "network namespaces with shaped links" if has_links else "loopback",
        "load_average": round(load, 2),
        "requests": arguments.requests,
        "deadline_ms": arguments.deadline_ms,
        "sub_models_ms": QUICK_MS,
        "breaker_sub_models_ms": MILLISECONDS,
        "campaign": found,
        "recovery_s": [round(each, 3) for each in seconds],
        "breaker": breaker,
        "targets": judged(dict(zip(LIMITS, map(float, values), strict=True)), LIMITS),
    }
    write_results(__file__, arguments, content, "requests", "deadline_ms", "kills", "seed")
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
