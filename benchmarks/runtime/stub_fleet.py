# SPDX-License-Identifier: Apache-2.0
"""Workers in processes of their own whose sub-models only wait: what a simulated fleet is compared with.

Each device is a process with the server of `edvit worker`, asked by `OIPEngine`; in place of a sub-model it sleeps for
a drawn time, one request after another, and is away when it is told to be. Where the machine lets us, devices stand in
a network namespace and the way there is shaped to a rate; else they are on loopback, and there is no limit. Not run by
itself.
"""

import contextlib
import json
import math
import platform
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import ROOT

from edvit_hf import __version__
from edvit_hf.fleet.exposure import ListenConfig
from edvit_hf.fleet.worker import Worker
from edvit_hf.manifest import Manifest
from edvit_hf.runtime.device import DeviceIdentity, preprocessing_hash
from edvit_hf.runtime.engines import LateError, ProbeResponse, SubModelResponse, UnavailableError
from edvit_hf.runtime.engines.oip import OIPEngine
from edvit_hf.transforms import ImageTransform
from edvit_hf.transforms.travelling import travelling_types
from runtime.runtime_faults import toy_manifest

SPACE, NEAR, FAR = "edvit-sim", "edvit-sim0", "edvit-sim1"
NEAR_ADDRESS, FAR_ADDRESS = "10.77.3.1", "10.77.3.2"
PROBE_SECONDS = 1.5  # longer than the coordinator waits for a sign of life
TOKEN = "token-of-a-benchmark-on-one-machine"
TRANSFORM = ImageTransform(size=(224, 224))
CHILD = """
import sys
sys.path[:0] = sys.argv[2:]
from runtime.stub_fleet import work
work(sys.argv[1])
"""


def image(size: int) -> dict[str, np.ndarray]:
    """One prepared image of so many pixels a side; it travels as 3 x size x size bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return {"pixel_values": np.ascontiguousarray(TRANSFORM.normalised(pixels).transpose(2, 0, 1)[None])}


class StubHost:
    """Stands in for a `DeviceHost`: waits instead of computing, and is away by a schedule in milliseconds."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Hold one sub-model; the schedule counts from when `zero` is set."""
        self.manifest = manifest = toy_manifest(settings["count"])
        self.input_shape = (3, None, None)
        self.zero = math.inf
        self._index, self._median_ms, self._spread = settings["index"], settings["median_ms"], settings["spread"]
        self._outages, self._draw = settings["outages"], random.Random(settings["seed"])
        self._lane = ThreadPoolExecutor(1)  # first come, first served
        self.identity = DeviceIdentity(
            ensemble_id=manifest.ensemble.id,
            content_hash=manifest.ensemble.content_hash,
            preprocessing=preprocessing_hash(manifest),
            sub_models=(self._index,),
            package=__version__,
            python=platform.python_version(),
            inputs=travelling_types(TRANSFORM),
        )

    def run(
        self, index: int, content_hash: str, request_id: str, inputs: Mapping[str, np.ndarray], budget_ms: float | None
    ) -> SubModelResponse:
        """See `DeviceHost`."""
        arrived = time.monotonic()
        deadline = math.inf if budget_ms is None else arrived + budget_ms / 1e3
        seconds, begin, end = self._lane.submit(self._wait, deadline).result()
        if seconds > deadline - begin or self._is_away(arrived, end):
            time.sleep(max(0.0, min(deadline, end + 60) - time.monotonic()))  # who is away says nothing
            raise LateError("away or late")
        entry = self.manifest.sub_models[index]
        return SubModelResponse(
            request_id=request_id,
            sub_model=index,
            content_hash=content_hash,
            features=np.asarray([entry.feature_mean], np.float32),
            logits=np.zeros((1, self.manifest.vote_sizes[index]), np.float32),
            compute_ms=1e3 * (end - begin),
        )

    def _wait(self, deadline: float) -> tuple[float, float, float]:
        """Sleep for a drawn time, no longer than anybody waits: what was drawn, and begin and end."""
        begin, normal = time.monotonic(), self._draw.gauss(0, 1)
        seconds = self._median_ms / 1e3 * math.exp(normal * self._spread[normal > 0])
        time.sleep(max(0.0, min(seconds, deadline - begin)))
        return seconds, begin, time.monotonic()

    def probe(self, index: int) -> ProbeResponse:
        """See `DeviceHost`."""
        now = time.monotonic()
        if self._is_away(now, now):
            time.sleep(PROBE_SECONDS)  # says nothing until nobody waits any more
            raise UnavailableError("away")
        return ProbeResponse(sub_model=index, content_hash=self.identity.content_hash)

    def close(self) -> None:
        """See `DeviceHost`."""

    def _is_away(self, begin: float, end: float) -> bool:
        first, last = 1e3 * (begin - self.zero), 1e3 * (end - self.zero)
        return any((a < last and first < b) or a <= first < b for a, b in self._outages)


def work(text: str) -> None:
    """A worker process: prints its port, then reads the moment from which its schedule counts."""
    settings = json.loads(text)
    host: Any = StubHost(settings)
    worker = Worker(lambda _: host, [Path()], ListenConfig(listen=f"{settings['address']}:0", tokens=(TOKEN,)))
    print(worker.start(), flush=True)
    for line in sys.stdin:
        host.zero = float(line)
    worker.stop()


@contextlib.contextmanager
def link(mbit_per_s: float) -> Iterator[tuple[str, list[str], str]]:
    """A way to a namespace, shaped to a rate: address there, words that start a process there, and what ran.

    On loopback, unshaped, where the machine does not allow it.
    """
    run = ["ip", "netns", "exec", SPACE]
    commands = [
        f"ip netns add {SPACE}",
        f"ip link add {NEAR} type veth peer name {FAR}",
        f"ip link set {FAR} netns {SPACE}",
        f"ip addr add {NEAR_ADDRESS}/24 dev {NEAR}",
        f"ip link set {NEAR} up",
        f"{' '.join(run)} ip addr add {FAR_ADDRESS}/24 dev {FAR}",
        f"{' '.join(run)} ip link set {FAR} up",
        f"tc qdisc add dev {NEAR} root tbf rate {mbit_per_s:g}mbit burst 8kb limit 16mb",
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"loopback: no network namespace on this machine ({error})")
        _remove_link()
        yield "127.0.0.1", [], "loopback"
        return
    print(f"network namespace, the way there shaped to {mbit_per_s:g} Mbit/s")
    try:
        yield FAR_ADDRESS, run, "network namespace"
    finally:
        _remove_link()


def _remove_link() -> None:
    if shutil.which("ip"):
        subprocess.run(["ip", "link", "del", NEAR], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", SPACE], capture_output=True, check=False)


SINK = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
left, size = 0, int(sys.argv[2])
while part := connection.recv(1 << 20):
    left += len(part)
    if left >= size:
        left -= size
        connection.sendall(b".")
"""


def milliseconds_of(size: int, way: tuple[str, list[str], str], repeats: int = 30) -> float:
    """So many bytes on the way over a plain connection, the answer of one byte included; the quickest tenth."""
    address, start, _ = way
    words = [*start, sys.executable, "-c", SINK, address, str(size)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with socket.create_connection((address, int(process.stdout.readline()))) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times, content = [], bytes(size)
            for _ in range(repeats):
                begun = time.perf_counter()
                connection.sendall(content)
                connection.recv(1)
                times.append(1e3 * (time.perf_counter() - begun))
        return float(np.percentile(times, 10))
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def stub_fleet(
    manifest: Manifest,
    way: tuple[str, list[str], str],
    medians_ms: Sequence[float],
    spread: tuple[float, float] = (0.0, 0.0),
    outages: Mapping[int, Sequence[tuple[float, float]]] | None = None,
    *,
    seed: int = 0,
) -> "Iterator[tuple[OIPEngine, list[subprocess.Popen[str]]]]":
    """Workers, one for each sub-model, and the engine that asks them, bound. They end with the block.

    Args:
        manifest: Of `toy_manifest`.
        way: See `link`.
        medians_ms: What each waits for.
        spread: See `FleetModel`.
        outages: By sub-model, in milliseconds from what `begin` tells.
        seed: Of what is drawn.
    """
    address, start, _ = way
    processes = []
    folders = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    try:
        for index, median in enumerate(medians_ms):
            settings = {"address": address, "seed": 1000 * seed + index, "median_ms": median, "spread": spread}
            settings |= {"outages": (outages or {}).get(index, []), "count": len(medians_ms), "index": index}
            words = [*start, sys.executable, "-c", CHILD, json.dumps(settings), *folders]
            processes.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        workers = {}
        for index, process in enumerate(processes):
            assert process.stdout is not None
            workers[f"stub{index}"] = f"{address}:{int(process.stdout.readline())}"
        engine = OIPEngine(workers, token=TOKEN)
        engine.bind(manifest, TRANSFORM)
        yield engine, processes
        engine.close()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def begin(processes: "Sequence[subprocess.Popen[str]]") -> float:
    """Tell the workers that time counts from now on; that moment of the monotonic clock."""
    now = time.monotonic()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{now!r}\n")
        process.stdin.flush()
    return now
