# SPDX-License-Identifier: Apache-2.0
"""Real `edvit worker` processes on loopback, which tests kill, stop, start again and ask."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TOKEN = "a-token-of-the-tests-0123456789"


class WorkerProcess:
    """`edvit worker SHARE...` in a process of its own. It has the same port when it is started again."""

    def __init__(
        self, *shares: Path, listen: str = "127.0.0.1:0", token: str | None = None, options: Sequence[str] = ()
    ):
        self._shares, self._options = shares, list(options)
        self._environment = {k: v for k, v in os.environ.items() if k != "EDVIT_FLEET_TOKEN"}
        self._environment |= {"OMP_NUM_THREADS": "1"} | ({} if token is None else {"EDVIT_FLEET_TOKEN": token})
        self._host, _, port = listen.rpartition(":")
        self.port = int(port)
        self.lines: list[str] = []
        self.start()

    def start(self, *, wait: bool = True) -> None:
        """Start it; with `wait`, return when it listens."""
        line = [sys.executable, "-m", "edvit_hf.cli", "worker", *map(str, self._shares), "--num-threads", "1"]
        line += ["--listen", f"{self._host}:{self.port}", *self._options]
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment
        )
        self._listens = threading.Event()
        threading.Thread(target=self._read, args=(self.process, self._listens), daemon=True).start()
        if wait:
            self.await_listening()

    def await_listening(self) -> None:
        """Wait until it has told its port."""
        assert self._listens.wait(60), self.output
        assert self.process.poll() is None, self.output

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def await_line(self, text: str, seconds: float = 30.0) -> None:
        """Wait until it has printed that."""
        until = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < until, self.output
            time.sleep(0.01)

    def send(self, number: int) -> None:
        """Send a signal: SIGKILL, SIGSTOP, SIGCONT, SIGHUP, SIGTERM."""
        self.process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.process.wait(30)
        if number == signal.SIGSTOP:  # all of its threads, or one may answer once more
            tasks = Path(f"/proc/{self.process.pid}/task")
            while any(_state(task) not in "Tt" for task in tasks.iterdir()):
                time.sleep(0.005)

    def close(self) -> None:
        """End it whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)

    def _read(self, process: subprocess.Popen, listens: threading.Event) -> None:
        for line in process.stdout:
            self.lines.append(line)
            found = re.search(r"listening on .*:(\d+);", line)
            if found:
                self.port = int(found[1])
                listens.set()
        listens.set()


def _state(task: Path) -> str:
    """State of a thread, as the kernel names it: T where it is stopped; T too once it is gone."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "T"


@contextlib.contextmanager
def workers_of(*processes: WorkerProcess) -> Iterator[dict[str, str]]:
    """Their addresses as `pi0`, `pi1`, ...; they are ended afterwards."""
    try:
        yield {f"pi{number}": each.address for number, each in enumerate(processes)}
    finally:
        for each in processes:
            each.close()


def start_all(*calls) -> list[WorkerProcess]:
    """Start several at once: each takes a second to load."""
    found: list[WorkerProcess | None] = [None] * len(calls)

    def make(place, call):
        found[place] = call()

    threads = [threading.Thread(target=make, args=(place, call)) for place, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each for each in found if each is not None]
