# SPDX-License-Identifier: Apache-2.0
"""Several machines on this one: network namespaces on a bridge where root and the tools allow it, else loopback.

Each machine has its own address, link, file system for Ray's sockets, and processes. Links can be cut and slowed.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from edvit_hf.fleet.joining import session_members


def have_namespaces():
    """Whether this machine lets us make hosts of our own."""
    if os.geteuid() or not all(shutil.which(tool) for tool in ("ip", "tc", "unshare", "mount")):
        return False
    name = f"edvprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], check=False)
    return made


@dataclass
class Machines:
    """Hosts by name. `folder` is where their private folders lie."""

    folder: Path
    names: tuple[str, ...]
    is_real: bool = field(default_factory=have_namespaces)
    processes: dict = field(default_factory=dict)

    def __post_init__(self):
        self.tag = f"{os.getpid() % 100000}"
        self.net = 100 + os.getpid() % 100
        self.shared = self.folder / "ray"
        self.shared.mkdir()

    @property
    def kind(self):
        return "network namespaces with shaped links" if self.is_real else "processes on loopback"

    @property
    def coordinator(self):
        return f"10.{self.net}.0.1" if self.is_real else "127.0.0.1"

    def address(self, name):
        return f"10.{self.net}.0.{10 + self.names.index(name)}" if self.is_real else "127.0.0.1"

    def first_port(self, name):
        return 6400 if self.is_real else None

    def __enter__(self):
        if self.is_real:
            bridge = f"edvb{self.tag}"
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"{self.coordinator}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for name in self.names:
                space, link = self._space(name), self._link(name)
                _ip("netns", "add", space)
                _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("link", "set", link, "master", bridge, "up")
                for words in (("addr", "add", f"{self.address(name)}/24", "dev", "eth0"), *_UP):
                    _ip("-n", space, *words)
        return self

    def __exit__(self, *_):
        for name in list(self.processes):
            self.kill(name)
        if self.is_real:
            for name in self.names:
                _ip("link", "del", self._link(name), check=False)
                _ip("netns", "del", self._space(name), check=False)
            _ip("link", "del", f"edvb{self.tag}", check=False)

    def start(self, name, words, env=None):
        """Run a command as that machine; its processes are in a session of their own."""
        if self.is_real:
            own = self.folder / f"disk-{name}"
            own.mkdir(exist_ok=True)
            inside = 'mount --bind "$0" "$1" && shift && exec "$@"'
            words = [
                "ip",
                "netns",
                "exec",
                self._space(name),
                "unshare",
                "-m",
                "sh",
                "-c",
                inside,
                own,
                self.shared,
                *words,
            ]
        log = self.folder / f"{name}.log"
        with log.open("ab") as said:
            process = subprocess.Popen(
                [str(word) for word in words],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name):
        """As if its power were cut: every process of the machine ends at once."""
        process = self.processes.pop(name)
        for member in self.members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.wait(10)

    def members(self, leader):
        """Processes below one, whatever sessions they made."""
        found, parents = {leader}, _parents()
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found | {other for each in list(found) for other in session_members(each)})

    def cut(self, name):
        _ip("link", "set", self._link(name), "down")

    def mend(self, name):
        _ip("link", "set", self._link(name), "up")

    def slow(self, name):
        """Have all that goes to the machine come a second later where the kernel can, else at 20 kbit/s; says which."""
        base = ["tc", "qdisc", "replace", "dev", self._link(name), "root"]
        if subprocess.run([*base, "netem", "delay", "1000ms"], capture_output=True, check=False).returncode == 0:
            return "netem, 1 s later"
        subprocess.run([*base, "tbf", "rate", "20kbit", "burst", "1600", "latency", "5s"], check=True)
        return "tbf, 20 kbit/s (this kernel has no netem)"

    def quicken(self, name):
        subprocess.run(["tc", "qdisc", "del", "dev", self._link(name), "root"], check=True)

    def _space(self, name):
        return f"edv{self.tag}{name}"

    def _link(self, name):
        return f"ev{self.tag}{name}"[:15]


_UP = (("link", "set", "eth0", "up"), ("link", "set", "lo", "up"))


def _ip(*words, check=True):
    subprocess.run(["ip", *map(str, words)], check=check, capture_output=not check)


def _parents():
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def free_port(host="127.0.0.1"):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def eventually(condition, seconds, pause=0.05):
    """What `condition` returns once it is true; fails after so long."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(pause)
    return found
