# SPDX-License-Identifier: Apache-2.0
"""Measure what one hostile visitor of the Space costs the others.

    python benchmarks/space/hostile_visitor.py [--seconds S] [--visitors N]

Serves `python app.py` of space_app/ in a fresh process. Honest visitors upload digits to the bundled ensemble, each the
next one as soon as the answer is there and a pause is over, first alone, then beside a visitor who opens ensembles that
never end (in the fusion head, in a sub-model, in one operator, while they are opened), asks them, and uploads pictures
that are made to cost time, several at once. Milliseconds of the honest answers as they see them: upload, queue, answer
and the page's HTML. Writes results/hostile_visitor.json.
"""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import ROOT, command_line, judged, memory_mib, write_results

from support.hostile_graphs import FUSION, SUB_MODEL, make_endless, make_heavy
from support.tiny_ensemble import write_tiny_ensemble

LIMITS = {"beside_max_ms": 2000.0, "beside_failed": 0.0}
START_SECONDS, PAUSE_SECONDS, AT_ONCE, SIDE = 60, 0.1, 4, 6000
GROUPS = [[0, 3], [1], [2, 4]]
ENSEMBLES: dict[str, Callable[[Path], None]] = {
    "endless_fusion": lambda root: make_endless(root, FUSION, spares_zeros=True),
    "endless_sub_model": lambda root: make_endless(root, SUB_MODEL, spares_zeros=True),
    "heavy_fusion": lambda root: make_heavy(root, FUSION, SIDE, spares_zeros=True),
    "never_opens": lambda root: make_heavy(root, FUSION, SIDE),
}


def hostile_pictures(folder: Path) -> list[Path]:
    """Files that cost much more than they hold."""
    comment = b"\x21\xfe" + b"\x01a" * 4_000_000 + b"\x00"
    screen = b"GIF89a\x08\x00\x08\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    gif = screen + comment + b"\x2c\x00\x00\x00\x00\x08\x00\x08\x00\x00\x02\x02\x44\x01\x00\x3b"
    png = io.BytesIO()
    Image.new("L", (2, 2)).save(png, "PNG")
    header = bytearray(png.getvalue())
    header[16:24] = (4800).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    large = io.BytesIO()
    Image.new("RGB", (4800, 4800)).save(large, "PNG")
    contents = {"comment.gif": gif, "header.png": bytes(header), "large.png": large.getvalue()}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


@contextlib.contextmanager
def served(folder: Path) -> Any:
    """The address of a Space that runs as long as the block, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "GRADIO_SERVER_PORT": str(port)}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT / "space_app", env=environment, **silent)
    try:
        begin = time.monotonic()
        while time.monotonic() - begin < START_SECONDS and server.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
                break
            time.sleep(0.05)
        yield address, server
    finally:
        server.terminate()
        server.wait()


def visitor(address: str, number: int) -> Any:
    """One visitor: a session of gradio's client, from an address of its own, as a proxy would tell it."""
    from gradio_client import Client

    own = {"X-Forwarded-For": f"192.0.2.{number}"}
    return Client(address, verbose=False, analytics_enabled=False, headers=own)


class Honest:
    """One who asks again and again until told to end."""

    def __init__(self, address: str, number: int, picture: Path, end: threading.Event) -> None:
        from gradio_client import handle_file

        self.milliseconds: list[float] = []
        self.failed = 0
        self._client, self._file, self._end = visitor(address, number), handle_file(picture), end
        self._client.predict(self._file, api_name="/file")  # the first one is slower: what is imported when it comes
        self.thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        while not self._end.is_set():
            begin = time.perf_counter()
            try:
                is_answered = "ed-answered" in self._client.predict(self._file, api_name="/file")[0]
            except Exception:  # whatever the client raises: there was no answer
                is_answered = False
            self.milliseconds.append(1e3 * (time.perf_counter() - begin))
            self.failed += not is_answered
            time.sleep(PAUSE_SECONDS)


def be_hostile(
    address: str, ensembles: list[Path], pictures: list[Path], end: threading.Event, done: list[str]
) -> None:
    """Open what never ends, and ask it and the page as often as it takes, several times at once."""
    from gradio_client import handle_file

    client = visitor(address, 200)
    while not end.is_set():
        for ensemble in ensembles:
            with contextlib.suppress(Exception):
                client.predict(str(ensemble), api_name="/open")
                done.append(f"opened {ensemble.name}")
            jobs = [client.submit(handle_file(path), api_name="/file") for path in pictures * AT_ONCE]
            for job in jobs:
                with contextlib.suppress(Exception):
                    job.result(timeout=30)
                    done.append("asked")
            if end.is_set():
                return
        with contextlib.suppress(Exception):
            client.predict("digits", api_name="/open")
        jobs = [client.submit(handle_file(path), api_name="/file") for path in pictures * AT_ONCE]
        for job in jobs:
            with contextlib.suppress(Exception):
                job.result(timeout=30)
                done.append("uploaded")


def measured(address: str, picture: Path, visitors: int, seconds: float) -> dict[str, Any]:
    """What honest visitors see for so long."""
    end = threading.Event()
    honest = [Honest(address, 2 + number, picture, end) for number in range(visitors)]
    for one in honest:
        one.thread.start()
    time.sleep(seconds)
    end.set()
    for one in honest:
        one.thread.join(60)
    times = [each for one in honest for each in one.milliseconds]
    percentiles = {f"p{share}_ms": round(float(np.percentile(times, share)), 1) for share in (50, 95)}
    return {
        "answers": len(times),
        "failed": sum(one.failed for one in honest),
        **percentiles,
        "max_ms": round(max(times), 1),
    }


def main() -> None:
    """Serve, ask alone, ask beside a hostile visitor, write."""
    add, parse = command_line(__doc__)
    add("--seconds", type=float, default=30.0, help="of asking, alone and then beside the hostile visitor")
    add("--visitors", type=int, default=2, help="honest ones")
    arguments = parse()
    picture = sorted((ROOT / "space_app/examples/digits").glob("*.png"))[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        roots = []
        for name, make in ENSEMBLES.items():
            roots.append(folder / name)
            write_tiny_ensemble(roots[-1], GROUPS)
            make(roots[-1])
        pictures = [*hostile_pictures(folder), picture]
        with served(folder) as (address, server):
            alone = measured(address, picture, arguments.visitors, arguments.seconds)
            before = memory_mib(server.pid)["resident"]
            end, done = threading.Event(), list[str]()
            hostile = threading.Thread(target=be_hostile, args=(address, roots, pictures, end, done), daemon=True)
            hostile.start()
            beside = measured(address, picture, arguments.visitors, arguments.seconds)
            end.set()
            after = memory_mib(server.pid)["resident"]
    result = {
        "seed": None,
        "reached": judged({"beside_max_ms": beside["max_ms"], "beside_failed": beside["failed"]}, LIMITS),
        "alone": alone,
        "beside": beside,
        "hostile_requests": len(done),
        "resident_mib": {"alone": round(before, 1), "beside": round(after, 1)},
    }
    print(json.dumps({name: result[name] for name in ("reached", "alone", "beside", "hostile_requests")}, indent=1))
    write_results(__file__, arguments, result, "seconds", "visitors")


if __name__ == "__main__":
    main()
