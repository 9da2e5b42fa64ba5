# SPDX-License-Identifier: Apache-2.0
"""Measure a real `edvit serve` process while five times as much comes as it can answer.

    python benchmarks/runtime/serve_load.py [--ensemble DIR]

* unloaded: one request after the other, with a pause: latency as a client sees it.
* capacity: two clients that ask without a pause: answers a second.
* overload: requests arrive at random (Poisson, seeded) at five times the capacity, whatever becomes of those before;
  each latency counts from when its request was due. Every rejection must carry Retry-After; the server's resident
  memory is read every second.
The server has one core and one thread of onnxruntime, this client another core, so that neither takes the other's time.
The server's options are its defaults but for the rate of one client, which all requests come from. Without --ensemble
three cut ViT-Base with random weights are exported, as for runtime_local.py. Writes results/serve_load.json.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import BASE, TINY, command_line, judged, memory_mib, write_results

LIMITS = {"accepted_p95_over_unloaded": 2.0, "memory_at_end_over_at_start": 1.05, "rejected_without_retry_after": 0.0}
MEMORY_FROM_S = 10.0
SERVER_OPTIONS = ("--rate", "0", "--num-threads", "1")


class Client:
    """Requests over kept connections, as few as are needed at a time."""

    def __init__(self, port: int, body: bytes) -> None:
        self.port = port
        head = "POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/jpeg\r\n"
        self.request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.connections = 0

    async def ask(self) -> tuple[int, bool]:
        """Status, and whether there was a Retry-After."""
        while self.free:
            reader, writer = self.free.pop()
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # it was idle for too long
                head = await self._head(reader, writer)
                break
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.connections += 1
            head = await self._head(reader, writer)
        found = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(found[1]) if found else 0)
        if b"connection: close" in head:
            writer.close()
        else:
            self.free.append((reader, writer))
        return int(head[9:12]), b"retry-after: " in head

    async def _head(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(self.request)
        return await reader.readuntil(b"\r\n\r\n")


def picture(seed: int) -> bytes:
    """A smooth 224 x 224 picture as JPEG."""
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((224, 224)).save(file, "JPEG", quality=90)
    return file.getvalue()


@contextlib.contextmanager
def server(ensemble: Path, cores: list[int]) -> Iterator[tuple[int, int]]:
    """A server in a process of its own, pinned; yields its port and process id."""
    command = [sys.executable, "-m", "edvit_hf.cli", "serve", str(ensemble), "--port", "0", *SERVER_OPTIONS]
    pinned = f"import os, sys\nos.sched_setaffinity(0, {set(cores)})\nos.execv(sys.argv[1], sys.argv[1:])"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", pinned, *command], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            found = re.search(r"on http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            if found is None:
                log.seek(0)
                raise SystemExit(f"the server did not start: {log.read().decode(errors='replace')[-2000:]}")
            yield int(found[1]), process.pid
        finally:
            process.terminate()
            if process.wait(30):
                raise SystemExit(f"the server ended with {process.returncode}")


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    return round(memory_mib(pid)["resident"], 1)


def percentiles(milliseconds: list[float]) -> dict[str, float | int]:
    """Of some latencies; nothing of none."""
    if not milliseconds:
        return {"count": 0}
    shares = {f"p{p}_ms": round(float(np.percentile(milliseconds, p)), 3) for p in (50, 95, 99)}
    return {"count": len(milliseconds), **shares, "max_ms": round(max(milliseconds), 3)}


async def unloaded(client: Client, count: int) -> dict[str, Any]:
    """One at a time."""
    found = []
    for number in range(count + 10):
        begin = time.perf_counter()
        status, _ = await client.ask()
        if status != 200:
            raise SystemExit(f"the unloaded server answered {status}")
        if number >= 10:
            found.append(1e3 * (time.perf_counter() - begin))
        await asyncio.sleep(0.01)
    return percentiles(found)


async def capacity(client: Client, seconds: float) -> float:
    """Answers a second to two clients that ask again at once."""
    answered, end = 0, time.perf_counter() + seconds

    async def ask_again() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            status, _ = await client.ask()
            answered += status == 200

    begin = time.perf_counter()
    await asyncio.gather(ask_again(), ask_again())
    return answered / (time.perf_counter() - begin)


async def overload(client: Client, rate: float, seconds: float, pid: int, seed: int) -> dict[str, Any]:
    """Arrivals that do not care whether the server keeps up."""
    chance, accepted, rejected, tasks = random.Random(seed), [], [], set()
    statuses: dict[int, int] = {}
    without_hint, memory = 0, []
    begin = time.perf_counter()

    async def one(due: float) -> None:
        nonlocal without_hint
        status, has_hint = await client.ask()
        took = 1e3 * (time.perf_counter() - due)
        statuses[status] = statuses.get(status, 0) + 1
        (accepted if status == 200 else rejected).append(took)
        without_hint += status != 200 and not has_hint

    due, late, next_look = begin, 0.0, begin
    while due < begin + seconds:
        now = time.perf_counter()
        if now >= next_look:
            memory.append((round(now - begin, 1), resident_mib(pid)))
            next_look += 1.0
        if due > now:
            await asyncio.sleep(due - now)
        late = max(late, time.perf_counter() - due)
        task = asyncio.create_task(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += chance.expovariate(rate)
    await asyncio.gather(*tasks)
    took = time.perf_counter() - begin
    memory.append((round(took, 1), resident_mib(pid)))
    return {
        "offered_per_s": round(rate, 2),
        "seconds": seconds,
        "statuses": {str(k): v for k, v in statuses.items()},
        "accepted": percentiles(accepted),
        "accepted_per_s": round(len(accepted) / took, 2),
        "rejected": percentiles(rejected),
        "rejected_share": round(len(rejected) / (len(accepted) + len(rejected)), 4),
        "rejected_without_retry_after": without_hint,
        "client_latest_ms": round(1e3 * late, 3),
        "connections": client.connections,
        "resident_mib": memory,
    }


async def measure(arguments: argparse.Namespace, port: int, pid: int) -> dict[str, Any]:
    """All three, against one server."""
    client = Client(port, picture(arguments.seed))
    alone = await unloaded(client, arguments.unloaded_requests)
    answers = await capacity(client, arguments.capacity_seconds)
    flood = await overload(client, arguments.times * answers, arguments.seconds, pid, arguments.seed)
    start = next((m for s, m in flood["resident_mib"] if s >= min(MEMORY_FROM_S, arguments.seconds / 2)), None)
    flood["memory_at_end_over_at_start"] = round(flood["resident_mib"][-1][1] / start, 4)
    flood["accepted_p95_over_unloaded"] = round(flood["accepted"]["p95_ms"] / alone["p95_ms"], 4)
    flood["rejected_p50_over_unloaded"] = round(flood["rejected"]["p50_ms"] / alone["p50_ms"], 4)
    return {"unloaded": alone, "capacity_per_s": round(answers, 2), "overload": flood}


def main() -> None:
    """Export, serve, flood, write."""
    add, parse = command_line(__doc__)
    add("--ensemble", type=Path, help="exported ensemble of images. Default: one with random weights")
    add("--seconds", type=float, default=60.0, help="of overload")
    add("--times", type=float, default=5.0, help="the capacity")
    add("--unloaded-requests", type=int, default=200)
    add("--capacity-seconds", type=float, default=10.0)
    add("--seed", type=int, default=0, help="of weights and arrivals")
    add("--tiny", action="store_true", help="toy sizes, to try the script")
    arguments = parse()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        ensemble = arguments.ensemble
        if ensemble is None:
            from runtime.cut_fleet import export_fleet

            ensemble = Path(temporary) / "ensemble"
            export_fleet(ensemble, *((TINY, 32) if arguments.tiny else (BASE, 224)), arguments.seed)
        os.sched_setaffinity(0, {cores[-1]})
        with server(ensemble.resolve(), cores[:1]) as (port, pid):
            found = asyncio.run(measure(arguments, port, pid))
        os.sched_setaffinity(0, cores)
    result = {
        "seed": arguments.seed,
        "server_options": list(SERVER_OPTIONS),
        "cores": {"server": 1, "client": 1, "same": len(cores) == 1},
        "reached": judged({name: found["overload"][name] for name in LIMITS}, LIMITS),
        **found,
    }
    shown = {**found, "overload": {k: v for k, v in found["overload"].items() if k != "resident_mib"}}
    print(json.dumps({**shown, "reached": result["reached"]}, indent=1))
    names = ("seconds", "times", "unloaded_requests", "capacity_seconds", "seed", "ensemble", "tiny")
    write_results(__file__, arguments, result, *names, ensemble="DIR" if arguments.ensemble else None)


if __name__ == "__main__":
    main()
