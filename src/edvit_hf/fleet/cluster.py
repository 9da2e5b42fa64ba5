# SPDX-License-Identifier: Apache-2.0
"""A Ray fleet as a whole: start its head and its actors, tell how it is, end what was started here.

Comes in: a placement and a token. Goes out: rows on each device. `edvit fleet` calls it, on the machine of the
coordinator, which is the head.
"""

import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf.errors import EDViTError
from edvit_hf.fleet.joining import NodeConfig, end_session, node_environment, ray_line
from edvit_hf.hub.pulling import CACHE_VARIABLE
from edvit_hf.manifest.placement import PlacementFile
from edvit_hf.runtime.engines import ray_connection as connection
from edvit_hf.runtime.engines.ray import find_actor, start_actor
from edvit_hf.runtime.engines.ray_plan import check_cluster, joined, mismatches, seats
from edvit_hf.storage import read_json, write_json

logger = logging.getLogger(__name__)

HEAD_SECONDS = 60.0
ASK_SECONDS = 5.0
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class DeviceStatus:
    """One device of a placement, as it is now: JSON-able.

    Attributes:
        device: Its name.
        joined: Whether its machine is in the fleet.
        address: Of the machine.
        reach_ms: Of a connection to it, from here.
        sub_models: Sub-model -> "ready", or what is wrong.
        observed: Sub-model -> figures of the answers it gave: `compute_ms`, `network_ms`.
    """

    device: str
    joined: bool
    address: str | None = None
    reach_ms: float | None = None
    sub_models: dict[int, str] = field(default_factory=dict)
    observed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether everything planned for it answers."""
        return all(told == "ready" for told in self.sub_models.values())


def content_hash_of(placement: PlacementFile) -> str:
    """The version of the ensemble that a placement is of.

    Raises:
        EDViTError: It does not tell.
    """
    if placement.ensemble is None:
        raise EDViTError(
            "Expected a placement that names its ensemble, got one of a plan without files. Devices would not know "
            "what to load. Plan the exported ensemble: edvit plan REPO_OR_DIR --fleet FLEET."
        )
    return placement.ensemble.content_hash


def start_head(config: NodeConfig, token: str | None, *, insecure: bool = False) -> str:
    """Start a head that outlives this process, unless one is there; its address.

    Raises:
        EDViTError: No token, or it does not start; the message quotes what Ray said.
    """
    connection.need_ray("A Ray fleet")
    environment = {**os.environ, **node_environment(config, token, insecure=insecure)}
    host, port = connection.split_address(config.head)
    address = f"{host}:{port}"
    if _is_there(host, port):
        logger.info("a head is there already: %s", address)
        return address
    log = _state_file(address).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as said:
        process = subprocess.Popen(
            ray_line(config),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    write_json(_state_file(address), {"process": process.pid, "started": _start_of(process.pid), "address": address})
    until = time.monotonic() + HEAD_SECONDS
    while not _is_there(host, port):
        if process.poll() is not None or time.monotonic() > until:
            end_session(process.pid)
            told = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            raise EDViTError(
                f"Expected a head at {address}, got {(told or ['nothing'])[0][:300]}. There is no fleet without one. "
                f"Check the address and whether the port is free; all that Ray said is in {log}."
            )
        time.sleep(0.1)
    return address


def stop_head(address: str) -> bool:
    """End the head that `start_head` started at an address, and nothing else. Whether there was one."""
    path = _state_file(address)
    if not path.is_file():
        return False
    state = read_json(path)
    process = state["process"]
    found = _start_of(process) == state["started"]
    if found:
        end_session(process)
    path.unlink(missing_ok=True)
    return found


def bring_up(
    placement: PlacementFile,
    *,
    source: str | None = None,
    revision: str | None = None,
    wait_seconds: float = 60.0,
    strict: bool = False,
    spares: bool = False,
    on_change: Callable[[Sequence[DeviceStatus]], None] = lambda _: None,
) -> list[DeviceStatus]:
    """Start what a placement says, on the cluster that this process is connected to, and wait until it is ready.

    Args:
        placement: Which device runs what.
        source: Hub id from which a device pulls what its folder does not have.
        revision: Of it.
        wait_seconds: For devices to join and to load; what is late starts when it comes.
        spares: Start a second process beside each, as far as the devices' memory budgets allow.
        strict: Raise if not everything is ready by then.
        on_change: Called whenever a device changed.

    Raises:
        PlacementMismatchError: The cluster is not as planned.
        EDViTError: `strict`, and a device is not ready.
    """
    import ray

    content_hash = content_hash_of(placement)
    check_cluster(placement, ray.nodes())
    for seat in seats(placement, spares=spares):
        start_actor(seat, content_hash, source=source, revision=revision)
    until = time.monotonic() + wait_seconds
    before: list[DeviceStatus] = []
    while True:
        found = statuses(placement)
        if [_state(each) for each in found] != [_state(each) for each in before]:
            on_change(found)
        before = found
        if all(each.is_ready for each in found) or time.monotonic() > until:
            break
        time.sleep(_PAUSE_SECONDS)
    check_cluster(placement, ray.nodes())
    lacking = [each for each in found if not each.is_ready]
    if strict and lacking:
        told = "; ".join(f"{each.device}: {', '.join(set(each.sub_models.values()))}" for each in lacking)
        raise EDViTError(
            f"Expected every device to be ready within {wait_seconds:.0f} s, got {told[:2000]}. Answers would be "
            "degraded. See `edvit doctor --fleet`, or leave --strict out."
        )
    return found


def take_down(placement: PlacementFile) -> int:
    """End the actors of a placement on the cluster that this process is connected to; how many there were."""
    import ray

    content_hash, count = content_hash_of(placement), 0
    for seat in seats(placement, spares=True):
        handle = find_actor(seat, content_hash)
        if handle is not None:
            ray.kill(handle, no_restart=True)
            count += 1
    return count


def statuses(placement: PlacementFile) -> list[DeviceStatus]:
    """How each device of a placement is, in its order."""
    import ray

    content_hash = content_hash_of(placement)
    there = joined(ray.nodes())
    asked: dict[str, dict[int, Any]] = {name: {} for name in placement.devices}
    for seat in seats(placement):
        handle = find_actor(seat, content_hash)
        if handle is not None and seat.device in there:
            asked[seat.device][seat.index] = handle.alive.options(concurrency_group="life").remote()
        else:
            asked[seat.device][seat.index] = None
    until = time.monotonic() + ASK_SECONDS
    return [_status(name, there.get(name, []), asked[name], until) for name in placement.devices]


def status_report(placement: PlacementFile, address: str) -> dict[str, Any]:
    """All of a fleet's state: what `edvit fleet status --format json` prints and `edvit plan --from-status` reads."""
    import ray

    return {
        "fleet": placement.fleet,
        "address": address,
        "ensemble": None if placement.ensemble is None else asdict(placement.ensemble),
        "mismatches": mismatches(placement, ray.nodes()),
        "devices": [{**asdict(each), "ready": each.is_ready} for each in statuses(placement)],
    }


def _status(name: str, nodes: Sequence[Mapping[str, Any]], asked: Mapping[int, Any], until: float) -> DeviceStatus:
    if not nodes:
        return DeviceStatus(device=name, joined=False, sub_models=dict.fromkeys(asked, "its device has not joined"))
    node = nodes[0]
    told, observed = {}, []
    for index, reference in asked.items():
        answer = _told(reference, until)
        told[index] = answer if isinstance(answer, str) else answer["problem"] or "ready"
        if not isinstance(answer, str) and answer.get("compute_ms") is not None:
            figures = {key: answer[key] for key in ("answers", "compute_ms", "network_ms") if key in answer}
            observed.append({"sub_model": index, "device": name, **figures})
    address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
    reach_ms = _reach_ms(address, port)
    return DeviceStatus(
        device=name, joined=True, address=address, reach_ms=reach_ms, sub_models=told, observed=observed
    )


def _told(reference: Any, until: float) -> Any:
    """What an actor said of itself, or why it said nothing."""
    import ray

    if reference is None:
        return "not started"
    try:
        return ray.get(reference, timeout=max(0.05, until - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return "it is being started, or hangs"
    except Exception as error:  # Ray's many kinds
        return str(error).strip().partition("\n")[0][:300]


def _state(status: DeviceStatus) -> tuple[bool, tuple[str, ...]]:
    return status.joined, tuple(status.sub_models.values())


def _reach_ms(host: str, port: int) -> float | None:
    begin = time.perf_counter()
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return None
    return round(1e3 * (time.perf_counter() - begin), 3)


def _is_there(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _state_file(address: str) -> Path:
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "edvit_hf")
    return cache / "fleet" / f"head-{address.replace(':', '-')}.json"


def _start_of(process: int) -> str | None:
    """When a process began, as the system counts: with its number, it is no other."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
