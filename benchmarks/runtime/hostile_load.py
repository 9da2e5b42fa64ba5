# SPDX-License-Identifier: Apache-2.0
"""Measure what hostile requests to a real `edvit serve` process cost the honest ones.

    python benchmarks/runtime/hostile_load.py [--requests N] [--rounds R]

For each task a server with its default options but for the rate of one client. An honest client asks one request after
the other (files, forms and JSON in turn), and so does a hostile one in a process of its own: files that cost their
reader far more than they weigh, damaged and cut ones, the largest that are allowed, forms and JSON made to harm. Rounds
without and with the hostile client take turns, so that whatever else the machine does meets both. In the end all
processes that read inputs are stopped while they hold a request, then all are killed: `/ready`, asked all the time,
must say 503 until honest requests are answered again. Memory is that of the server and its children.
Writes results/hostile_load.json.
"""

import base64
import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, judged, memory_mib, write_results

from support.bombs import IMAGES, saved
from support.serving_setup import GROUPS, encoded, jpeg, media
from support.tiny_ensemble import write_tiny_ensemble

TASKS = {"image-classification": "image", "audio-classification": "audio", "text-classification": "text"}
LIMITS = {"honest_p95_over_without": 1.5, "honest_failed": 0.0, "memory_end_over_start": 1.05, "ready_untrue": 0.0}
PAUSE = 0.02
DECODE_SECONDS = 4.0
OPTIONS = ("--rate", "0", "--num-threads", "1", "--quiet", "--decode-seconds", f"{DECODE_SECONDS:g}")

Body = tuple[str, bytes]  # content type, content


def form(content: bytes, name: str = "file") -> Body:
    """A form with one file."""
    head = f'--b\r\ncontent-disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode()
    return "multipart/form-data; boundary=b", head + content + b"\r\n--b--\r\n"


def as_json(task: str, content: bytes) -> Body:
    """The JSON that a program sends."""
    if TASKS[task] == "text":
        return "application/json", json.dumps({"text": content.decode()}).encode()
    return "application/json", json.dumps({f"{TASKS[task]}_base64": base64.b64encode(content).decode()}).encode()


def honest_bodies(task: str) -> list[Body]:
    """One input, in the three ways to send it."""
    content = jpeg(224, 224) if TASKS[task] == "image" else encoded(task)
    return [(media(task), content), form(content), as_json(task, content)]


def hostile_bodies(task: str) -> list[Body]:
    """What a hostile client sends in turn."""
    raw, whole = media(task), encoded(task)
    files = [b"", os.urandom(50_000), whole[: len(whole) // 2], b"\xff" * 1000]
    if TASKS[task] == "image":
        files += [make() for make in IMAGES.values()]
        files += [saved("PNG", (5000, 5000)), saved("JPEG", (5000, 5000)), jpeg(4000, 3000)]
    elif TASKS[task] == "audio":
        tag = b"ID3\4\0\0" + bytes([2, 0x31, 0x1A, 0]) + bytes(4_000_000)
        files += [tag + whole, whole[:36] + b"abcd\0\0\0\0" * 300_000 + whole[36:], b"OggS" * 100_000, b"fLaC" * 10_000]
        files += [whole[:40] + (0x7FFFF000).to_bytes(4, "little") + os.urandom(5_000_000), b"\xff\xfb" * 500_000]
    else:
        files += [b"word1 " * 16_000, "ﷺ".encode() * 30_000, b"a" * 99_000, "\u0301".encode() * 40_000, b" " * 90_000]
    names = b", ".join(b'"%d": 0' % number for number in range(60_000))
    bodies = [("application/json", b"{" + names + b', "59999": 0}'), ("application/json", b"[" * 1_000_000)]
    bodies += [
        ("application/json", b'{"top_k": ' + b"9" * 100_000 + b"}"),
        ("application/json", b'{"absent": [' + b"0," * 300_000),
    ]
    bodies += [form(b"x" * 1000, "file\x1b[31m"), ("multipart/form-data; boundary=b", b"--b\r\n" * 300_000)]
    bodies += [("multipart/form-data", b"--"), ("text/html", b"<script>"), (raw, os.urandom(11 << 20))]
    return [*((raw, file) for file in files), *(form(file) for file in files[:12]), *bodies]


class Client:
    """Asks over one connection that is opened again when the server closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None
        self.last = b""

    def ask(self, method: str, path: str, body: Body | None = None) -> int:
        """The status; 0 where there was none."""
        for _ in range(2):  # an idle connection may have been closed
            connection = self._connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            was_open, self._connection = self._connection is not None, connection
            try:
                headers = {} if body is None else {"content-type": body[0]}
                connection.request(method, path, None if body is None else body[1], headers)
                response = connection.getresponse()
                self.last = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self._connection = None
                if was_open:
                    continue
                return 0
            if response.will_close:
                connection.close()
                self._connection = None
            return response.status
        return 0


def be_hostile(port: int, task: str, count: Any, done: Any, counts: Any) -> None:
    """In a process of its own: send so many requests whenever told to."""
    client, bodies = Client(port), itertools.cycle(hostile_bodies(task))
    counts.put("ready")
    while (number := count.get()) is not None:
        found: Counter[int] = Counter()
        for _ in range(number):
            found[client.ask("POST", "/predict", next(bodies))] += 1
            time.sleep(PAUSE)
        done.set()
        counts.put(dict(found))


class Ready(threading.Thread):
    """Asks `/ready` all the time."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._client, self._is_over = Client(port), threading.Event()
        self.seen: list[tuple[float, int]] = []

    def run(self) -> None:
        """See `threading.Thread`."""
        while not self._is_over.wait(0.1):
            begin = time.monotonic()
            self.seen.append((begin, self._client.ask("GET", "/ready")))

    def end(self) -> None:
        """Stop asking."""
        self._is_over.set()
        self.join()

    def between(self, begin: float, end: float) -> list[int]:
        """What it said then."""
        return [status for at, status in self.seen if begin <= at <= end]


@contextlib.contextmanager
def server(ensemble: Path) -> Iterator[tuple[int, int]]:
    """A server in a process of its own; yields its port and process id."""
    command = [sys.executable, "-m", "edvit_hf.cli", "serve", str(ensemble), "--port", "0", *OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"on http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.wait(30)


def children(pid: int) -> list[int]:
    """Process ids of the children of all its threads."""
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [
        child for child in found if "Z" not in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    ]


def memory(pid: int) -> float:
    """Resident MiB of a server and its children."""
    return round(sum(memory_mib(each)["resident"] for each in (pid, *children(pid))), 1)


def honest_round(
    client: Client, bodies: Iterator[Body], count: int, is_over: Callable[[], bool]
) -> tuple[list[float], Counter[str]]:
    """Milliseconds of honest requests, `count` at least, and until the round is over; and their statuses."""
    took, statuses = [], Counter[str]()
    while len(took) < count or not is_over():
        begin = time.perf_counter()
        status = client.ask("POST", "/predict", next(bodies))
        statuses[
            "ok" if status == 200 else json.loads(client.last or b'{"error": {"code": "none"}}')["error"]["code"]
        ] += 1
        took.append(1e3 * (time.perf_counter() - begin))
        time.sleep(PAUSE)
    return took, statuses


def wait_for(is_so: Callable[[], bool], seconds: float) -> bool:
    """Whether it came to be so in time."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def drill(port: int, pid: int, ready: Ready, body: Body) -> dict[str, Any]:
    """Stop all readers while they hold requests, then kill all: what `/ready` says, and when answers come again."""
    probe = Client(port)
    is_ready = lambda: probe.ask("GET", "/ready") == 200  # noqa: E731
    stopped = children(pid)
    for child in stopped:
        os.kill(child, signal.SIGSTOP)
    begin = time.monotonic()
    asking = [threading.Thread(target=Client(port).ask, args=("POST", "/predict", body)) for _ in range(2)]
    for thread in asking:
        thread.start()
    told = wait_for(lambda: not is_ready(), 10)
    told_s = time.monotonic() - begin
    for thread in asking:
        thread.join()
    for child in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGCONT)
    back = wait_for(is_ready, 30) and probe.ask("POST", "/predict", body) == 200
    back_s = time.monotonic() - begin
    for child in children(pid):
        os.kill(child, signal.SIGKILL)
    begin = time.monotonic()
    again = wait_for(lambda: probe.ask("POST", "/predict", body) == 200, 30)
    return {
        "stuck": {"told": told, "after_s": round(told_s, 2), "answers_again": back, "after_all_s": round(back_s, 2)},
        "killed": {"answers_again": again, "after_s": round(time.monotonic() - begin, 2)},
        "untrue": int(not told) + int(not back) + int(not again) + int(not wait_for(is_ready, 10)),
    }


def measure(task: str, ensemble: Path, requests: int, rounds: int) -> dict[str, Any]:
    """One server: rounds without and with the hostile client, then the drill."""
    each, context = max(1, requests // (2 * rounds)), multiprocessing.get_context("spawn")
    count, done, counts = context.Queue(), context.Event(), context.Queue()
    alone, beside, failed, looks = [], [], Counter[str](), []
    hostile: Counter[int] = Counter()
    with server(ensemble) as (port, pid):
        worker = context.Process(target=be_hostile, args=(port, task, count, done, counts), daemon=True)
        worker.start()
        counts.get()
        client, bodies, ready = Client(port), itertools.cycle(honest_bodies(task)), Ready(port)
        honest_round(client, bodies, 20, lambda: True)
        ready.start()
        begin = time.monotonic()
        for number in range(rounds):
            took, statuses = honest_round(client, bodies, each, lambda: True)
            alone += took
            failed += statuses
            done.clear()
            count.put(each)
            took, statuses = honest_round(client, bodies, each, done.is_set)
            beside += took
            failed += statuses
            hostile += Counter(counts.get())
            if number >= rounds // 5:
                looks.append(memory(pid))
        told = Counter(ready.between(begin, time.monotonic()))
        count.put(None)
        drilled = drill(port, pid, ready, honest_bodies(task)[0])
        ready.end()
    del failed["ok"]
    return {
        "honest_without": percentiles(alone),
        "honest_with": percentiles(beside),
        "honest_p95_over_without": round(float(np.percentile(beside, 95) / np.percentile(alone, 95)), 3),
        "honest_failed": sum(failed.values()),
        "honest_refusals": dict(failed),
        "hostile_statuses": {str(k): v for k, v in sorted(hostile.items())},
        "memory_mib": looks,
        "memory_end_over_start": round(max(looks[-3:]) / max(looks[:3]), 4),
        "ready": {str(k): v for k, v in told.items()},
        "drill": drilled,
        # It said 503 although every honest request was answered, or did not say so in the drill.
        "ready_untrue": drilled["untrue"] + sum(number for status, number in told.items() if status != 200),
    }


def percentiles(milliseconds: list[float]) -> dict[str, float | int]:
    """Of some latencies."""
    shares = {f"p{p}_ms": round(float(np.percentile(milliseconds, p)), 3) for p in (50, 95, 99)}
    return {"count": len(milliseconds), **shares, "max_ms": round(max(milliseconds), 3)}


def main() -> None:
    """Serve, ask, write."""
    add, parse = command_line(__doc__)
    add("--requests", type=int, default=3000, help="honest and hostile ones beside each other, of all tasks")
    add("--rounds", type=int, default=10, help="with and without the hostile client, for each task")
    arguments = parse()
    found = {}
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            write_tiny_ensemble(Path(folder), GROUPS, task=task)
            found[TASKS[task]] = measure(task, Path(folder), arguments.requests // len(TASKS), arguments.rounds)
        print(TASKS[task], json.dumps(found[TASKS[task]], indent=1))
    worst = {name: max(each[name] for each in found.values()) for name in LIMITS}
    content = {"server_options": list(OPTIONS), "reached": judged(worst, LIMITS), "tasks": found}
    print(json.dumps(content["reached"], indent=1))
    write_results(__file__, arguments, content, "requests", "rounds")


if __name__ == "__main__":
    main()
