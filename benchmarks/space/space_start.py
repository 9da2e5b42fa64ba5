# SPDX-License-Identifier: Apache-2.0
"""Measure how soon the Space answers, how much memory it holds, and how long one answer takes.

    python benchmarks/space/space_start.py [--rounds N] [--repeats N]

Every round starts `python app.py` of space_app/ in a fresh process and asks it over HTTP as a browser's page would,
through gradio's client: seconds from the start of the process to the first answer for a picture, resident memory of
the server then and after further answers, milliseconds of these (upload, queue, answer and the page's HTML included).
"Inside the app" is what an event's function takes, from the uploaded file to the HTML of the page, in a process that
has loaded the app. Writes results/space_start.json.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import ROOT, command_line, fresh, judged, memory_mib, write_results

LIMITS = {"first_answer_s": 6.0, "resident_mib": 400.0, "inside_ms": 50.0}
START_SECONDS = 60
INSIDE = """
import json, sys, time
import app
from answers import ensembles
from page import visits
kinds, repeats, found = json.loads(sys.argv[1]), int(sys.argv[2]), {}
for name in kinds:
    visit, times = visits.start(name), []
    values = [example.value for example in ensembles.open_bundle(name).examples]
    act = visits.type_text if name == "question_type" else visits.take_file
    for number in range(repeats + 5):
        begin = time.perf_counter()
        panels = act(visit, values[number % len(values)])
        times.append(1e3 * (time.perf_counter() - begin))
        assert "ed-answered" in panels.answer, panels.answer
    found[name] = times[5:]
    times = []
    for number in range(repeats):
        begin = time.perf_counter()
        panels = visits.plug(visit, 0, True)
        times.append(1e3 * (time.perf_counter() - begin))
        assert "ed-degraded" in panels.answer, panels.answer
    found[name + ", one device unplugged"] = times
print("FOUND", json.dumps(found))
"""


def settings(folder: Path) -> dict[str, str]:
    """What the Space runs with: no Hub to ask, its caches in a folder of its own."""
    return {**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    """Until the page is served."""
    begin = time.monotonic()
    while time.monotonic() - begin < START_SECONDS and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.02)
    raise SystemExit("the Space did not start")


def one_round(picture: Path, repeats: int, folder: Path) -> dict[str, Any]:
    """Start, answer, answer again, stop."""
    from gradio_client import Client, handle_file

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    begin = time.perf_counter()
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = {**settings(folder), "GRADIO_SERVER_PORT": str(port)}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT / "space_app", env=env, **silent)
    try:
        wait_for(address, server)
        served = time.perf_counter() - begin
        client = Client(address, verbose=False, analytics_enabled=False)
        times = []
        for _ in range(repeats + 1):
            asked = time.perf_counter()
            if "ed-answered" not in client.predict(handle_file(picture), api_name="/file")[0]:
                raise SystemExit("the Space did not answer")
            times.append(1e3 * (time.perf_counter() - asked))
            if len(times) == 1:
                first, then = time.perf_counter() - begin, memory_mib(server.pid)
        end = memory_mib(server.pid)
        found = {"served_s": served, "first_answer_s": first, "resident_mib": then["resident"]}
        found |= {"resident_mib_at_the_end": end["resident"], "peak_mib": end["peak"]}
        return {**found, "http_ms": statistics.median(times[1:]) if repeats else None}
    finally:
        server.terminate()
        server.wait()


def inside(repeats: int, folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of one event's function, by ensemble."""
    kinds = [path.parent.name for path in sorted((ROOT / "space_app/model").glob("*/manifest.json"))]
    where = {"cwd": ROOT / "space_app", "env": settings(folder), "stderr": subprocess.DEVNULL}
    printed = fresh(INSIDE, json.dumps(kinds), repeats, **where)
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("FOUND "))[6:])
    return {
        name: {"median_ms": round(statistics.median(times), 2), "p95_ms": round(float(np.percentile(times, 95)), 2)}
        for name, times in found.items()
    }


def main() -> None:
    """Start, time, write."""
    add, parse = command_line(__doc__)
    add("--rounds", type=int, default=7, help="fresh processes of the server")
    add("--repeats", type=int, default=50, help="further answers of each")
    arguments = parse()
    picture = sorted((ROOT / "space_app/examples/digits").glob("*.png"))[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rounds = [one_round(picture, arguments.repeats, folder) for _ in range(arguments.rounds)]
        in_app = inside(arguments.repeats, folder)
    middle = {name: round(statistics.median(row[name] for row in rounds), 3) for name in rounds[0]}
    values = {"first_answer_s": middle["first_answer_s"], "resident_mib": middle["resident_mib_at_the_end"]}
    values["inside_ms"] = max(found["p95_ms"] for found in in_app.values())
    result = {
        "seed": None,
        "reached": judged(values, LIMITS),
        "median": middle,
        "inside_the_app": in_app,
        "rounds": [{name: round(value, 3) for name, value in row.items()} for row in rounds],
    }
    print(json.dumps({name: result[name] for name in ("reached", "median", "inside_the_app")}, indent=1))
    write_results(__file__, arguments, result, "rounds", "repeats")


if __name__ == "__main__":
    main()
