# SPDX-License-Identifier: Apache-2.0
"""The Ray engine: one actor per sub-model, pinned to its device by a label; the coordinator holds the handles itself.

Weights never travel: each device loads its own files by hash. A call is made once and never repeated by Ray. Comes in:
requests of the coordinator. Goes out: responses; who cannot be reached is told at once, who hangs is replaced.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.errors import EDViTError
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import PlacementFile, load_placement
from edvit_hf.runtime.device import preprocessing_hash
from edvit_hf.runtime.engines import ProbeResponse, SubModelRequest, SubModelResponse
from edvit_hf.runtime.engines.ray_actor import SubModelActor
from edvit_hf.runtime.engines.ray_asked import Asked, Probing
from edvit_hf.runtime.engines.ray_connection import connect, disconnect, versions
from edvit_hf.runtime.engines.ray_plan import (
    DEVICE_LABEL,
    NAMESPACE,
    Seat,
    check_cluster,
    joined,
    seats,
    unknown_devices,
)
from edvit_hf.runtime.engines.ray_watch import Watch
from edvit_hf.runtime.engines.routes import Prober, Routes
from edvit_hf.transforms import Transform
from edvit_hf.transforms.travelling import travelling

logger = logging.getLogger(__name__)

MAX_PENDING_CALLS = 8
"""Calls that may wait at one device; one more fails at once."""
START_SECONDS = 60.0
# Threads of their own in each actor, so that a run does not hold up a sign of life.
_GROUPS = {"probe": 1, "life": 1, "hello": 1}
_KEPT_TIMES = 128
_REACH_SECONDS = 0.5


class RayEngine:
    """Carries requests to the actors of a fleet. Safe to call from several threads.

    It is complete once `bind` has told it of which ensemble it is; `EDViTRuntime.from_pretrained` does that.

    Attributes:
        actor: The class that each device runs.
    """

    actor: type[SubModelActor] = SubModelActor

    def __init__(
        self,
        address: str = "auto",
        *,
        placement: PlacementFile | str | Path,
        source: str | None = None,
        revision: str | None = None,
        folders: Mapping[str, str] | None = None,
        token: str | None = None,
        insecure: bool = False,
        local_spares: bool = False,
        start_seconds: float = START_SECONDS,
    ) -> None:
        """Connect to a cluster.

        Args:
            address: Of the head, HOST:PORT; "auto": the one that runs on this machine.
            placement: Which device runs what, or its file.
            source: Hub id from which a device pulls what its folder does not have.
            revision: Of that repository.
            folders: Device -> folder on it that holds its share. Default: what the device joined with.
            token: Of the cluster.
            insecure: Go on without a token.
            local_spares: Start a second process beside each, on the same device, that answers while the first is
                restarted; twice the memory. Those that `edvit fleet up --spares` started are used anyway.
            start_seconds: How long `bind` waits for devices that are not ready.

        Raises:
            EDViTError: No token, a refused one, or no cluster there.
        """
        self.placement = placement if isinstance(placement, PlacementFile) else load_placement(Path(placement))
        self._source, self._revision, self._folders = source, revision, dict(folders or {})
        self._start_seconds, self._local_spares = start_seconds, local_spares
        self._seats = {(seat.index, seat.endpoint): seat for seat in seats(self.placement)}
        self.routes = Routes(endpoints_of(self._seats.values()))
        self._handles: dict[tuple[int, str], Any] = {}
        self._transform: Transform | None = None
        self._prepared: tuple[str, dict[str, np.ndarray]] | None = None  # of the newest request
        self._times: dict[tuple[int, str], deque[tuple[float, float]]] = {}
        self._identities: dict[tuple[int, str], dict[str, Any]] = {}
        self._is_closed = False
        self._lock = threading.Lock()
        self.address = connect(address, token, insecure=insecure)
        self._watch, self._prober = Watch(self), Prober(self.routes, self.probe_endpoint, pause_s=1.0)

    def bind(self, manifest: Manifest, transform: Transform | None) -> None:
        """Start (or find) the actors of an ensemble, and wait until the devices are ready or the time is over.

        A device that is not ready by then is missing from answers until it is.

        Raises:
            PlacementMismatchError: The cluster is not as planned.
            EDViTError: The placement is of another ensemble, a device runs other versions, or none is ready.
        """
        import ray

        check_same_ensemble(self.placement, manifest)
        check_cluster(self.placement, ray.nodes())
        self._transform = transform
        content_hash = manifest.ensemble.content_hash
        for seat in seats(self.placement, spares=True):
            key = (seat.index, seat.endpoint)
            if not seat.is_spare or self._local_spares:
                self._handles[key] = self.start_actor(seat, content_hash)
            elif (there := find_actor(seat, content_hash)) is not None:
                self._handles[key] = there
            if key in self._handles:
                self._seats[key] = seat
        for index, endpoints in endpoints_of(self._seats.values()).items():
            self.routes.change(index, endpoints)
        problems = self._greet(manifest)
        for (index, device), problem in problems.items():
            self.routes.failed(index, device)
            logger.warning("sub-model %d on device %r is not ready: %s", index, device, problem)
        if len(problems) == len(self._expected()):
            told = "; ".join(f"{device}: {problem}" for (_, device), problem in problems.items())
            away = unknown_devices(self.placement, ray.nodes())
            raise EDViTError(
                f"Expected devices that answer, got none within {self._start_seconds:.0f} s"
                f"{f' ({away} have not joined)' if away else ''}: {told[:2000]}. There is nobody to ask. Join them: "
                "`edvit device join`, and see `edvit doctor --fleet`."
            )

    def start_actor(self, seat: Seat, content_hash: str) -> Any:
        """The handle of an actor: found by its name, or started where its device is (as soon as it has joined)."""
        folder = self._folders.get(seat.device)
        where = {"folder": folder, "source": self._source, "revision": self._revision}
        return start_actor(seat, content_hash, **where, actor=self.actor)

    @property
    def sub_models(self) -> Sequence[int]:
        """See `Engine`."""
        return self.routes.sub_models

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def submit(self, index: int, request: SubModelRequest, /) -> Future[SubModelResponse]:
        """See `Engine`."""
        asked = Asked(self, index, request)
        asked.ask()
        return asked

    def probe(self, index: int, /) -> Future[ProbeResponse]:
        """See `Engine`: a whole run on an empty input; whichever endpoint of the sub-model is well answers."""
        probing = Probing(self, index)
        probing.ask()
        return probing

    def probe_endpoint(self, index: int, device: str) -> Future[Any]:
        """Ask one endpoint for a whole run on an empty input."""
        probing = Probing(self, index, (device,), tries=1)
        probing.ask()
        return probing

    def call(self, index: int, device: str, method: str, *arguments: Any, group: str | None = None) -> Future[Any]:
        """Call a method of an actor, once. Raises what Ray raises where that cannot be sent."""
        handle = self._handles.get((index, device))
        if handle is None or self._is_closed:
            raise EDViTError("Expected an engine that is bound to an ensemble and open, got one that is not.")
        bound = getattr(handle, method)
        remote = bound if group is None else bound.options(concurrency_group=group)
        future: Future[Any] = remote.remote(*arguments).future()
        return future

    def travelling(self, request: SubModelRequest) -> dict[str, np.ndarray]:
        """The inputs of a request as they travel; made once for all its sub-models."""
        known = self._prepared
        if known is not None and known[0] == request.request_id:
            return known[1]
        inputs = dict(request.inputs)
        made = inputs if self._transform is None else travelling(self._transform, inputs)
        self._prepared = (request.request_id, made)
        return made

    def missed(self, index: int, device: str) -> None:
        """Note that an endpoint did not answer in time: it is looked after."""
        self.routes.missed(index, device)
        self._watch.doubt(index, device)

    def note(self, index: int, device: str, compute_ms: float, total_ms: float) -> None:
        """Note how long an answer took: what plans are made better with."""
        self._times.setdefault((index, device), deque(maxlen=_KEPT_TIMES)).append((compute_ms, total_ms))

    def restart(self, index: int, device: str) -> bool:
        """Have Ray replace an actor that hangs.

        False where its machine cannot be reached, for then it is the link, and where Ray is replacing it already.
        """
        import ray

        if not _is_alive(self._handles[index, device]) or not self._is_reachable(self._seats[index, device].device):
            return False
        ray.kill(self._handles[index, device], no_restart=False)
        return True

    def status(self) -> dict[str, object]:
        """See `Engine`: routes, what was observed of each device, who was restarted."""
        observed = []
        for (index, device), times in sorted(self._times.items()):
            compute, total = (float(np.median([pair[k] for pair in list(times)])) for k in (0, 1))
            row = {"sub_model": index, "device": device, "answers": len(times), "compute_ms": round(compute, 3)}
            observed.append({**row, "network_ms": round(max(0.0, total - compute), 3)})
        return {
            "engine": "ray",
            "address": self.address,
            "sub_models": list(self.sub_models),
            "routes": self.routes.status(),
            "observed": observed,
            "restarted": self._watch.restarted(),
        }

    def close(self) -> None:
        """See `Engine`. The actors stay: `edvit fleet down` ends them."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            self._watch.close()
            self._prober.close()
            self._handles.clear()
            disconnect()

    def _greet(self, manifest: Manifest) -> dict[tuple[int, str], str]:
        """Ask every actor who it is; why each that is not ready is not."""
        until = time.monotonic() + self._start_seconds
        pending = {key: self.call(*key, "identity", self._start_seconds, group="hello") for key in self._expected()}
        problems = {}
        for key, future in pending.items():
            try:
                sent = future.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                problems[key] = "the device has not joined, or does not answer"
                continue
            except Exception as error:  # Ray's many kinds
                problems[key] = str(error).strip().partition("\n")[0]
                continue
            if sent[0] != "ok":
                problems[key] = sent[1]
                continue
            self._identities[key] = sent[1]
            check_versions(key[1], sent[1], manifest)
        return problems

    def _expected(self) -> list[tuple[int, str]]:
        """Endpoints that `bind` waits for: a spare for which a device has no memory is no reason to wait."""
        return [key for key, seat in self._seats.items() if not seat.is_spare]

    def _is_reachable(self, device: str) -> bool:
        import ray

        for node in joined(ray.nodes()).get(device, []):
            try:
                address = (node["NodeManagerAddress"], node["NodeManagerPort"])
                socket.create_connection(address, timeout=_REACH_SECONDS).close()
            except OSError:
                continue
            return True
        return False


def _is_alive(handle: Any) -> bool:
    """Whether an actor has started and not ended, as the head knows; one that starts gives no sign of life yet."""
    from ray._private.state import actors

    told = actors(handle._actor_id.hex())
    return bool(told) and told.get("State") == "ALIVE"


def endpoints_of(found: Any) -> dict[int, list[str]]:
    """Sub-model -> where it can be asked, its own device first."""
    endpoints: dict[int, list[str]] = {}
    for seat in sorted(found, key=lambda seat: (seat.index, seat.is_replica, seat.is_spare)):
        endpoints.setdefault(seat.index, []).append(seat.endpoint)
    return endpoints


def find_actor(seat: Seat, content_hash: str) -> Any:
    """The handle of a seat's actor; None where it was not started."""
    import ray

    try:
        return ray.get_actor(seat.actor_name(content_hash), namespace=NAMESPACE)
    except ValueError:
        return None


def start_actor(
    seat: Seat,
    content_hash: str,
    *,
    folder: str | None = None,
    source: str | None = None,
    revision: str | None = None,
    actor: type[SubModelActor] = SubModelActor,
) -> Any:
    """The handle of a detached, restarting actor of a seat: found by its name, or started."""
    import ray

    options: dict[str, Any] = {
        "name": seat.actor_name(content_hash),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,  # at most once: a late duplicate must not happen
        "max_pending_calls": MAX_PENDING_CALLS,
        "num_cpus": 0,
        "resources": {key: amount for key, amount in seat.resources.items() if amount},
        "label_selector": {DEVICE_LABEL: seat.device},
    }
    kind = ray.remote(concurrency_groups=_GROUPS)(actor)
    where = {"file": seat.file, "folder": folder, "source": source, "revision": revision, "profile": seat.profile}
    return kind.options(**options).remote(seat.index, content_hash, **where)


def check_same_ensemble(placement: PlacementFile, manifest: Manifest) -> None:
    """Raise `EDViTError` if a placement is of another ensemble than the manifest, or of another version of it."""
    own, planned = manifest.ensemble, placement.ensemble
    found = placement.num_sub_models
    is_same = planned is None or planned.content_hash == own.content_hash
    if is_same and found == len(manifest.sub_models):
        return
    version = "" if planned is None else f" {planned.id!r}, version {planned.content_hash[:12]}..."
    raise EDViTError(
        f"Expected a placement of ensemble {own.id!r}, version {own.content_hash[:12]}..., with "
        f"{len(manifest.sub_models)} sub-models, got one of{version} {found} sub-models. Devices would answer for "
        "another ensemble. Plan again: edvit plan REPO_OR_DIR --fleet FLEET."
    )


def check_versions(device: str, identity: Mapping[str, Any], manifest: Manifest) -> None:
    """Raise `EDViTError` if a device prepares inputs otherwise or runs another version of this package."""
    own, there = versions()["edvit_hf"], identity["package"]
    if own != there:
        raise EDViTError(
            f"Expected edvit_hf {own} on device {device!r} as here, got {there}. Two versions may not understand each "
            f"other. Install the same: pip install edvit_hf=={own}"
        )
    if identity["preprocessing"] != preprocessing_hash(manifest):
        raise EDViTError(
            f"Expected device {device!r} to prepare inputs by the files of this ensemble, got others. Its answers "
            "would be about other inputs. Fetch its share again: edvit pull."
        )
