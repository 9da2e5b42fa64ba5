# SPDX-License-Identifier: Apache-2.0
"""How a machine becomes part of a Ray fleet: the exact line, the systemd unit, and a process that keeps it there.

Comes in: the head's address, the device's name, and the placement that says what it may hold. Goes out: `ray start`
with the labels and numbers of `engines.ray_plan`, under the settings of `engines.ray_connection`.
"""

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edvit_hf.errors import EDViTError
from edvit_hf.manifest.placement import PlacementFile
from edvit_hf.runtime.engines import ray_connection as connection
from edvit_hf.runtime.engines.ray_actor import SHARE_VARIABLE
from edvit_hf.runtime.engines.ray_plan import DEVICE_LABEL, node_labels, node_resources

logger = logging.getLogger(__name__)

STORE_BYTES = 80_000_000  # Ray's least, in /dev/shm, taken when used; nothing of ours goes through it
FIRST_PORT = 6400
NUM_WORKER_PORTS = 50
RETRY_SECONDS = (1.0, 15.0)  # first and longest pause before the head is tried again
_SETTLED_SECONDS = 30.0
_NEVER_MENDED = ("Version mismatch", "InvalidAuthToken", "No such option")
_TAIL = 4000


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """One machine of a fleet.

    Attributes:
        name: Of the device; None for a head that is none.
        head: Address of the head, HOST:PORT.
        is_head: Whether this is the head itself.
        placement: What the fleet was planned as; None where no device has a budget.
        share: Folder with this device's files.
        address: Of this machine, as the others reach it. Default: Ray finds it.
        first_port: Of those that this node listens on: five, and 50 from the tenth on. None: any that are free.
        spare_process: Keep one idle process, so that a sub-model whose process ended is back a second sooner, for
            about 60 MiB.
        temp_dir: Where the head keeps sockets and logs. Default: /tmp/ray.
    """

    name: str | None
    head: str
    is_head: bool = False
    placement: PlacementFile | None = None
    share: Path | None = None
    address: str | None = None
    first_port: int | None = FIRST_PORT
    spare_process: bool = True
    temp_dir: Path | None = None


def ray_line(config: NodeConfig) -> list[str]:
    """The words of `ray start` for a machine; the token is not among them: it is in the environment."""
    host, port = connection.split_address(config.head)
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    if config.is_head:
        words += ["--head", f"--port={port}", f"--node-ip-address={config.address or host}"]
        words += ["--include-dashboard=false"]
    else:
        words += [f"--address={host}:{port}"]
        words += [] if config.address is None else [f"--node-ip-address={config.address}"]
    words += ["--include-log-monitor=false", f"--object-store-memory={STORE_BYTES}"]
    words += [f"--num-cpus={int(config.spare_process)}", "--num-gpus=0"]
    words += [] if config.temp_dir is None else [f"--temp-dir={config.temp_dir}"]
    if config.first_port is not None:
        words += [f"--{name}={port}" for name, port in ports_of(config.first_port).items()]
    if config.name is not None:
        labels = node_labels(config.name)
        words.append("--labels=" + ",".join(f"{key}={value}" for key, value in labels.items()))
        resources = node_resources(config.placement, config.name)
        words += [f"--resources={json.dumps(resources, separators=(',', ':'))}"] if resources else []
    return words


def ports_of(first: int) -> dict[str, int]:
    """Option of `ray start` -> port that a node listens on."""
    names = ("node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port")
    ports = {name: first + place for place, name in enumerate((*names, "dashboard-agent-listen-port"))}
    return {**ports, "min-worker-port": first + 10, "max-worker-port": first + 10 + NUM_WORKER_PORTS - 1}


def node_environment(config: NodeConfig, token: str | None, *, insecure: bool) -> dict[str, str]:
    """The environment of a node, which its actors inherit. Raises `EDViTError` without a token."""
    own = connection.environment(token, insecure=insecure)
    share = {} if config.share is None else {SHARE_VARIABLE: str(config.share.resolve())}
    return {**own, **share, "RAY_raylet_start_wait_time_s": "60"}


def printed_line(config: NodeConfig, *, insecure: bool = False) -> str:
    """The line that joins a device, for a shell of that device; the token is read from EDVIT_FLEET_TOKEN there."""
    environment = node_environment(config, None if insecure else "x" * 16, insecure=insecure)
    words = [f"{key}={shlex.quote(value)}" for key, value in environment.items() if key != "RAY_AUTH_TOKEN"]
    words += [] if insecure else ['RAY_AUTH_TOKEN="$EDVIT_FLEET_TOKEN"']
    return " ".join([*words, *map(shlex.quote, ray_line(config))])


def systemd_unit(
    config: NodeConfig, *, token_file: Path | None = None, placement_file: Path | None = None, insecure: bool = False
) -> str:
    """A unit that joins at boot, and again whenever the head was away: /etc/systemd/system/edvit-device.service."""
    words = [sys.executable, "-m", "edvit_hf.cli", "device", "join", config.head, "--name", config.name or ""]
    words += [] if config.share is None else ["--share", str(config.share.resolve())]
    words += [] if config.address is None else ["--address", config.address]
    words += [] if placement_file is None else ["--placement", str(placement_file.resolve())]
    words += ["--insecure"] if insecure else []
    words += [] if token_file is None else ["--token-file", str(token_file.resolve())]
    words += [] if config.first_port == FIRST_PORT else ["--first-port", str(config.first_port or 0)]
    line = " ".join(map(shlex.quote, words))
    return (
        f"[Unit]\nDescription=edvit device {config.name}\nWants=network-online.target\nAfter=network-online.target\n\n"
        f"[Service]\nExecStart={line}\nRestart=always\nRestartSec=5\nKillMode=control-group\nNoNewPrivileges=yes\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def join(config: NodeConfig, token: str | None, *, insecure: bool = False, rejoin: bool = True) -> None:
    """Join and stay until this process is ended; when the head goes away, join again as soon as it is back.

    Raises:
        EDViTError: No token or a refused one, another version of Ray or Python, a head that lets everybody in, or
            another device with this name.
    """
    connection.need_ray("A device of a Ray fleet")
    environment = {**os.environ, **node_environment(config, token, insecure=insecure)}
    os.environ.update({key: environment[key] for key in environment if key.startswith("RAY_")})
    pause, longest = RETRY_SECONDS
    is_first = True
    while True:
        begin = time.monotonic()
        try:
            connection.check_reachable(config.head)
            connection.check_admitted(config.head)
            if not insecure:
                connection.refuse_open(config.head)
            _check_name(config)
            problem = run_node(config, environment)
        except EDViTError as error:
            if is_first and "got no connection" not in str(error):
                raise
            problem = str(error)
        if any(word in problem for word in _NEVER_MENDED):
            raise EDViTError(
                f"Expected to join the fleet at {config.head}, got {_telling(problem)}. Devices and head must run the "
                "same Ray and the same Python, down to its patch level. Install what the head has: `edvit doctor "
                "--fleet` there names both."
            )
        if not rejoin:
            raise EDViTError(f"Expected to stay in the fleet at {config.head}, got {_telling(problem)}. Join again.")
        settled = time.monotonic() - begin > _SETTLED_SECONDS
        pause, is_first = (RETRY_SECONDS[0] if settled else min(longest, 2 * pause)), is_first and not settled
        logger.warning("not in the fleet: %s; tried again in %.0f s", _telling(problem), pause)
        time.sleep(pause)


def run_node(config: NodeConfig, environment: Mapping[str, str]) -> str:
    """Run `ray start` until it ends; what it said last. Its processes end with this call, however it ends."""
    with tempfile.TemporaryFile() as said, _child(ray_line(config), environment, said) as process:
        process.wait()
        said.seek(max(0, said.tell() - _TAIL))
        return said.read().decode(errors="replace")


@contextlib.contextmanager
def _child(words: list[str], environment: Mapping[str, str], said: object) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        words,
        env=dict(environment),
        stdout=said,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_session(process.pid)


def end_session(process: int, seconds: float = 5.0) -> None:
    """End `ray start --block` and all that it started: kindly, and after some seconds for good.

    Ray's processes share its session, so that none of another fleet on this machine is touched.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    until = time.monotonic() + seconds
    while (left := session_members(process)) and time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, os.WNOHANG)
        time.sleep(0.1)
    for member in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGKILL)


def session_members(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _check_name(config: NodeConfig) -> None:
    """Raise `EDViTError` if another machine has joined under this device's name."""
    for node in connection.directory(config.head).get_all_node_info(timeout=5).values():
        address = node.node_manager_address
        if node.state == 0 and node.labels.get(DEVICE_LABEL) == config.name and address != config.address:
            raise EDViTError(
                f"Expected the name {config.name!r} to be free in the fleet at {config.head}, got one that {address} "
                "has. Which of the two answers would be chance. Join under the name that the placement gives this "
                "device; a device that has just gone is forgotten after about half a minute."
            )


def _telling(problem: str) -> str:
    """The line of Ray's output that says most."""
    before, mismatch, rest = problem.partition(_NEVER_MENDED[0])
    if mismatch:
        return mismatch + " ".join(rest.split())[:400]
    lines = [line.strip() for line in before.splitlines() if line.strip()]
    told = [line for line in lines if any(word in line for word in (*_NEVER_MENDED, "Error", "Exception"))]
    return (told or lines or ["nothing"])[-1][:400]
