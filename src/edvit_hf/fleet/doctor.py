# SPDX-License-Identifier: Apache-2.0
"""`edvit doctor --fleet`: what is wrong with a fleet, device by device, and what to do about it.

Comes in: a placement and a cluster that this process is connected to. Goes out: findings. Each device is asked for its
facts by a small task that runs there; nothing is changed.
"""

import contextlib
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edvit_hf import __version__
from edvit_hf.errors import EDViTError
from edvit_hf.fleet.cluster import content_hash_of
from edvit_hf.fleet.joining import ports_of
from edvit_hf.manifest import Manifest, verify_file
from edvit_hf.manifest.placement import PlacedDevice, PlacementFile
from edvit_hf.runtime.engines import ray_connection as connection
from edvit_hf.runtime.engines.ray_actor import SHARE_VARIABLE
from edvit_hf.runtime.engines.ray_plan import DEVICE_LABEL, joined, mismatches
from edvit_hf.storage import MIB

CLOCK_SECONDS = 2.0  # deadlines count on each machine's own clock; certificates and logs do not
LEAST_FREE_MIB = 200.0  # beside the weights: the runtime's arena and activations of one sub-model, and the system
FACTS_SECONDS = 30.0
_SLOW_REACH_MS = 50.0

Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True, kw_only=True)
class FleetFinding:
    """One line: where, what was seen, and what to do where it is not `ok`."""

    level: Level
    device: str
    subject: str
    text: str


def examine_fleet(placement: PlacementFile, address: str, *, insecure: bool = False) -> dict[str, Any]:
    """Findings on the head and on every device of a placement: JSON-able; `healthy` unless one is bad."""
    import ray

    nodes = ray.nodes()
    findings = [*_of_head(address, insecure), *(_planned(text) for text in mismatches(placement, nodes))]
    there = joined(nodes)
    asked = {name: _ask(name, files_of(device)) for name, device in placement.devices.items() if name in there}
    for name, device in placement.devices.items():
        if name not in there:
            is_needed = bool(device.sub_models)
            text = f"it has not joined. On it: edvit device join {address} --name {name} --share FOLDER"
            findings.append(_finding("bad" if is_needed else "note", name, "joined", text))
            continue
        findings += _of_reach(name, there[name][0])
        findings += _of_facts(name, device, content_hash_of(placement), _answer(asked[name]))
    return {
        "address": address,
        "fleet": placement.fleet,
        "findings": [asdict(each) for each in findings],
        "healthy": all(each.level != "bad" for each in findings),
    }


def files_of(device: PlacedDevice) -> list[str]:
    """Files that a device is planned to hold."""
    return [entry.file for entry in [*device.sub_models, *device.replicas] if entry.file is not None]


def device_facts(files: Sequence[str]) -> dict[str, Any]:
    """What a machine knows of itself: runs on the device. Plain values alone."""
    import onnxruntime
    import ray

    share = os.environ.get(SHARE_VARIABLE)
    return {
        "edvit_hf": __version__,
        "ray": ray.__version__,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "clock": time.time(),
        "free_mib": free_memory_mib(),
        "asks_for_token": os.environ.get("RAY_AUTH_MODE") == "token",
        "share": share,
        "content_hash": _content_hash(share),
        "files": {file: file_problem(share, file) for file in files},
        "open_ports": sorted(set(listening_ports())),
    }


def free_memory_mib() -> float | None:
    """Memory that a new process could have; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return round(int(line.split()[1]) / 1024, 1)
    return None


def file_problem(share: str | None, file: str) -> str | None:
    """What is wrong with a file of a share, by its hash; None: nothing."""
    if share is None:
        return "no folder was named where it joined"
    try:
        manifest = Manifest.load(Path(share), only_to_run=True)
        variant = next((v for e in manifest.sub_models for v in e.variants if v.file == file), None)
        if variant is None:
            return "its manifest does not know it"
        verify_file(Path(share), variant)
    except (EDViTError, OSError) as error:
        return str(error)
    return None


def listening_ports() -> Iterator[int]:
    """Ports on which this machine listens to others than itself."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                address, _, port = local.partition(":")
                is_loopback = address in ("0100007F", "00000000000000000000000001000000")
                if state == "0A" and not is_loopback:
                    yield int(port, 16)


def _of_head(address: str, insecure: bool) -> Iterator[FleetFinding]:
    if insecure:
        yield _finding("note", "head", "token", "--insecure: whoever reaches it runs any code on every device")
    elif connection.is_open(address):
        yield _finding("bad", "head", "token", f"{address} lets everybody in: start it with a token (--token-file)")
    else:
        yield _finding("ok", "head", "token", f"{address} asks for a token")
    told = ", ".join(f"{name} {version}" for name, version in connection.versions().items())
    yield _finding("ok", "head", "versions", told)


def _of_reach(name: str, node: Mapping[str, Any]) -> Iterator[FleetFinding]:
    where = (node["NodeManagerAddress"], node["NodeManagerPort"])
    begin = time.perf_counter()
    try:
        socket.create_connection(where, timeout=2.0).close()
    except OSError as error:
        text = f"{where[0]}:{where[1]} gives no connection ({error}): check the link and the device's firewall"
        yield _finding("bad", name, "reach", text)
        return
    ms = 1e3 * (time.perf_counter() - begin)
    slow = f"; slow for a local network: look at the link of {where[0]}" if ms > _SLOW_REACH_MS else ""
    yield _finding("note" if slow else "ok", name, "reach", f"{where[0]} in {ms:.1f} ms{slow}")


def _of_facts(
    name: str, device: PlacedDevice, content_hash: str, answer: tuple[dict[str, Any], float] | str
) -> Iterator[FleetFinding]:
    if isinstance(answer, str):
        text = f"it tells nothing of itself: {answer}. Join it again, with the same packages as here"
        yield _finding("bad", name, "facts", text)
        return
    facts, offset = answer
    own = connection.versions()
    wrong = [f"{key} {facts[key]} (here {version})" for key, version in own.items() if facts[key] != version]
    if wrong:
        yield _finding("bad", name, "versions", f"{', '.join(wrong)}: install there what is here")
    else:
        yield _finding("ok", name, "versions", ", ".join(f"{key} {facts[key]}" for key in (*own, "onnxruntime")))
    off = abs(offset) > CLOCK_SECONDS
    advice = ": switch its time service on (timedatectl set-ntp true)" if off else ""
    yield _finding("note" if off else "ok", name, "clock", f"{offset:+.1f} s from here{advice}")
    yield _of_memory(name, device, facts["free_mib"])
    if not facts["asks_for_token"]:
        yield _finding("bad", name, "token", "its ports let everybody in: join it again with --token-file")
    yield from _of_files(name, content_hash, facts)
    yield _of_ports(name, facts["open_ports"])


def _of_memory(name: str, device: PlacedDevice, free: float | None) -> FleetFinding:
    held = sum(entry.bytes or 0 for entry in [*device.sub_models, *device.replicas]) / MIB
    if free is None:
        return _finding("note", name, "memory", "the system does not tell how much is free")
    if free < LEAST_FREE_MIB:
        text = f"{free:.0f} MiB free, {LEAST_FREE_MIB:.0f} are needed: close other programs, or place less on it"
        return _finding("bad", name, "memory", text)
    return _finding("ok", name, "memory", f"{free:.0f} MiB free; its files take {held:.1f} MiB")


def _of_files(name: str, content_hash: str, facts: Mapping[str, Any]) -> Iterator[FleetFinding]:
    pull = f"On it: edvit pull REPO --placement placement.json --device {name}"
    if facts["content_hash"] not in (None, content_hash):
        text = f"it holds version {facts['content_hash'][:12]}..., the plan is of {content_hash[:12]}.... {pull}"
        yield _finding("bad", name, "files", text)
        return
    for file, problem in facts["files"].items():
        if problem is not None:
            yield _finding("bad", name, "files", f"{file}: {problem}. {pull}")
    if not any(facts["files"].values()) and facts["files"]:
        yield _finding("ok", name, "files", f"{len(facts['files'])} with the right hashes in {facts['share']}")


def _of_ports(name: str, ports: Sequence[int]) -> FleetFinding:
    """Ray listens on all interfaces, whatever address it is given: only a firewall narrows that."""
    told = ", ".join(map(str, ports[:12])) + ("..." if len(ports) > 12 else "")
    text = (
        f"listens to every network on {told}: let in only the head and the other devices (docs/guides/many_devices.md)"
    )
    return _finding("note", name, "ports", text)


def usual_ports(first_port: int, head: str) -> str:
    """The ports of a fleet in the words of a firewall's rule."""
    own = ports_of(first_port)
    return f"{connection.split_address(head)[1]}, {first_port}-{own['max-worker-port']}"


def _content_hash(share: str | None) -> str | None:
    if share is None:
        return None
    try:
        return Manifest.load(Path(share), only_to_run=True).ensemble.content_hash
    except (EDViTError, OSError):
        return None


def _ask(name: str, files: Sequence[str]) -> tuple[Any, float]:
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(device_facts)
    return task.options(label_selector={DEVICE_LABEL: name}).remote(list(files)), time.time()


def _answer(asked: tuple[Any, float]) -> tuple[dict[str, Any], float] | str:
    """The facts and how far the device's clock is from here; or why there are none."""
    import ray

    reference, _ = asked
    try:
        facts: dict[str, Any] = ray.get(reference, timeout=FACTS_SECONDS)
    except Exception as error:  # Ray's many kinds
        return str(error).strip().partition("\n")[0][:300] or type(error).__name__
    now = time.time()
    # It was read at some time between asking and now: what lies between is no fault of the clock.
    offset = max(0.0, facts["clock"] - now) + min(0.0, facts["clock"] - asked[1])
    return facts, offset


def _planned(text: str) -> FleetFinding:
    return _finding("bad", "plan", "budgets", text)


def _finding(level: Level, device: str, subject: str, text: str) -> FleetFinding:
    return FleetFinding(level=level, device=device, subject=subject, text=text)
