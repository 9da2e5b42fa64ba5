# SPDX-License-Identifier: Apache-2.0
"""Real processes as devices that only wait, behind a real link: what a simulated fleet is compared with.

Each device is a process that reads inputs from a TCP connection, runs them one after another (it sleeps for a drawn
time) and answers; it is away when it is told to be. Where the machine lets us, devices stand in a network namespace of
their own and the way there is shaped to a rate; else they are on loopback, and there is no limit. Not run by itself.
"""

import contextlib
import json
import queue
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from edvit_hf.manifest import Manifest
from edvit_hf.runtime.engines import ProbeResponse, SubModelRequest, SubModelResponse

HEAD = struct.Struct("<IdI")  # number of the message, deadline on the monotonic clock, bytes that follow
REPLY = struct.Struct("<Id")  # its number, milliseconds of the run
FOREVER = 1e18
SPACE, NEAR, FAR = "edvit-sim", "edvit-sim0", "edvit-sim1"
NEAR_ADDRESS, FAR_ADDRESS = "10.77.3.1", "10.77.3.2"

DEVICE = """
import json, queue, random, socket, struct, sys, threading, time
HEAD, REPLY = struct.Struct("<IdI"), struct.Struct("<Id")
settings = json.loads(sys.argv[1])
listener = socket.create_server((settings["address"], 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
draw, jobs, sending = random.Random(settings["seed"]), queue.SimpleQueue(), threading.Lock()
zero, outages = float(sys.stdin.readline()), settings["outages"]

def away(begin, end):
    begin, end = 1e3 * (begin - zero), 1e3 * (end - zero)
    return any(a < end and begin < b for a, b in outages)

def answer(number, ms):
    with sending:
        connection.sendall(REPLY.pack(number, ms))

def serve():
    while True:
        number, deadline, arrived = jobs.get()
        begin = time.monotonic()
        if begin >= deadline:
            continue
        z = draw.gauss(0, 1)
        seconds = settings["median_ms"] / 1e3 * 2.718281828 ** (z * settings["spread"][z > 0])
        time.sleep(min(seconds, deadline - begin))
        end = time.monotonic()
        if seconds <= deadline - begin and not away(arrived, end):
            answer(number, 1e3 * (end - begin))

def read(size):
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(1 << 20, size - len(parts)))
        if not part:
            sys.exit()
        parts += part
    return parts

threading.Thread(target=serve, daemon=True).start()
while True:
    number, deadline, size = HEAD.unpack(read(HEAD.size))
    read(size)
    now = time.monotonic()
    if away(now, now):
        continue
    if size:
        jobs.put((number, deadline, now))
    else:
        answer(number, 0.0)
"""


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


class StubFleet:
    """An engine over devices that are processes: one connection to each, inputs sent at once to all.

    `compute_ms` of its answers is what the device measured of its own run.
    """

    def __init__(
        self,
        manifest: Manifest,
        address: str,
        start: Sequence[str],
        medians_ms: Sequence[float],
        spread: tuple[float, float],
        outages: Mapping[int, Sequence[tuple[float, float]]],
        *,
        seed: int,
        payload: int,
    ) -> None:
        """Start the devices; their outages count in milliseconds from `begin`."""
        self.sub_models = tuple(range(len(medians_ms)))
        self._manifest, self._payload = manifest, bytes(payload)
        self._waiting: dict[int, dict[int, tuple[str, Future[Any]]]] = {i: {} for i in self.sub_models}
        self._numbers = dict.fromkeys(self.sub_models, 0)
        self._lock = threading.Lock()
        self.compute_ms: dict[int, list[float]] = {i: [] for i in self.sub_models}
        self._processes, self._sockets, self._queues = [], [], []
        for index, median in enumerate(medians_ms):
            settings = {"address": address, "seed": 1000 * seed + index, "median_ms": median, "spread": spread}
            settings["outages"] = list(outages.get(index, ()))
            words = [*start, sys.executable, "-c", DEVICE, json.dumps(settings)]
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            connection = socket.create_connection((address, int(process.stdout.readline())))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line: queue.SimpleQueue[tuple[bytes, bytes, float]] = queue.SimpleQueue()
            self._processes.append(process)
            self._sockets.append(connection)
            self._queues.append(line)
            for work, arguments in ((self._send, (connection, line)), (self._receive, (index, connection))):
                threading.Thread(target=work, args=arguments, daemon=True).start()

    def begin(self) -> float:
        """Tell the devices that time counts from now on; that moment of the monotonic clock."""
        now = time.monotonic()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{now!r}\n")
            process.stdin.flush()
        return now

    def submit(self, index: int, request: SubModelRequest, /) -> "Future[SubModelResponse]":
        """See `Engine`."""
        deadline = FOREVER if request.budget_ms is None else time.monotonic() + request.budget_ms / 1e3
        return self._sent(index, request.request_id, self._payload, deadline)

    def probe(self, index: int, /) -> "Future[ProbeResponse]":
        """See `Engine`."""
        return self._sent(index, "", b"", FOREVER)

    def _sent(self, index: int, name: str, payload: bytes, deadline: float) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # what is on its way cannot be taken back
        with self._lock:
            self._numbers[index] += 1
            number = self._numbers[index]
            self._waiting[index][number] = (name, future)
        self._queues[index].put((HEAD.pack(number, deadline, len(payload)), payload, deadline))
        return future

    def _send(self, connection: socket.socket, line: "queue.SimpleQueue[tuple[bytes, bytes, float]]") -> None:
        with contextlib.suppress(OSError):
            while True:
                head, payload, deadline = line.get()
                if time.monotonic() < deadline:
                    connection.sendall(head)
                    connection.sendall(payload)

    def _receive(self, index: int, connection: socket.socket) -> None:
        entry, about = self._manifest.sub_models[index], self._manifest.ensemble
        features = np.asarray([entry.feature_mean], np.float32)
        logits = np.zeros((1, self._manifest.vote_sizes[index]), np.float32)
        with contextlib.suppress(OSError, struct.error):
            while True:
                number, taken = REPLY.unpack(connection.recv(REPLY.size, socket.MSG_WAITALL))
                name, future = self._waiting[index].pop(number)
                same = {"sub_model": index, "content_hash": about.content_hash}
                if not name:
                    future.set_result(ProbeResponse(**same))
                    continue
                self.compute_ms[index].append(taken)
                found = {"features": features, "logits": logits, "compute_ms": taken, "request_id": name}
                future.set_result(SubModelResponse(**same, **found))

    def status(self) -> dict[str, object]:
        """See `Engine`."""
        return {"engine": "stub fleet"}

    def close(self) -> None:
        """See `Engine`."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for process in self._processes:
            process.kill()
            process.wait()
