# SPDX-License-Identifier: Apache-2.0
"""How this package runs and reaches Ray: settings, token, and a connection that is refused quickly and in words.

Comes in: the address of a head and a token. Goes out: a connected process, or an error that says what to do. The
engine, the commands of a fleet and its doctor share it.
"""

import importlib
import logging
import os
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from edvit_hf.errors import EDViTError, named_extra, need
from edvit_hf.runtime.engines.ray_plan import NAMESPACE

logger = logging.getLogger(__name__)

DEFAULT_PORT = 6379
CONNECT_SECONDS = 3.0
SETTINGS: Mapping[str, str] = {
    "RAY_max_direct_call_object_size": "1000000",  # an image of 150 KB by the store costs 10 ms more
    "RAY_timeout_ms_task_wait_for_death_info": "10",  # or a call to a process that died fails a second later
    "RAY_kill_worker_timeout_milliseconds": "500",  # of a stopped process that is to be replaced
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment of every process that uses Ray, as measured; whoever sets one of them otherwise keeps it."""
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_lock, _users = threading.Lock(), 0


def need_ray(purpose: str) -> None:
    """Raise `MissingExtraError` where Ray is not installed."""
    need(purpose, "ray", "ray")


def environment(token: str | None, *, insecure: bool) -> dict[str, str]:
    """What Ray reads from the environment.

    Raises:
        EDViTError: There is no token, and nobody said that none is wanted.
    """
    if token is None and not insecure:
        raise EDViTError(
            "Expected a token, got none. Whoever reaches a Ray cluster without one runs any code on every device. Make "
            "one with `openssl rand -hex 32`, give it to every device by --token-file or EDVIT_FLEET_TOKEN; or say "
            "--insecure, where nobody else can reach the network."
        )
    own = {key: os.environ.get(key, value) for key, value in SETTINGS.items()}
    return {**own, _MODE: "disabled"} if token is None else {**own, _MODE: "token", _TOKEN: token}


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a head, "HOST" or "HOST:PORT".

    Raises:
        EDViTError: It is neither.
    """
    host, separator, port = address.rpartition(":")
    if not separator:
        host, port = address, str(DEFAULT_PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or "://" in address:
        raise EDViTError(
            f"Expected the address of a head as HOST or HOST:PORT, got {address!r:.200}. Nothing can be reached there. "
            f"It stands in what `edvit fleet up` prints; the port is usually {DEFAULT_PORT}."
        )
    return host, int(port)


def check_reachable(address: str, what: str = "the head of the fleet", seconds: float = CONNECT_SECONDS) -> None:
    """Raise `EDViTError` unless something listens there: Ray itself would wait for half a minute and say less."""
    host, port = split_address(address)
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        raise EDViTError(
            f"Expected {what} at {address}, got no connection ({error}). Nobody can be asked. Start it with `edvit "
            "fleet up`, or check the address, the link and the firewall: `edvit doctor --fleet` names the ports."
        ) from error


def check_admitted(address: str) -> None:
    """Raise `EDViTError` unless the head at an address takes this process's token; at once, and in words."""
    with named_extra("Ray", "ray"):
        from ray.exceptions import AuthenticationError, RayError
    try:
        directory(address)
    except AuthenticationError as error:
        raise EDViTError(
            f"Expected the head at {address} to take this token, got a refusal. Whoever has no token or another one is "
            "not let in. Use the token that `edvit fleet up` was given: --token-file or EDVIT_FLEET_TOKEN."
        ) from error
    except (RayError, RuntimeError) as error:
        raise EDViTError(
            f"Expected a Ray head at {address}, got {_first_line(error)}. It cannot be joined. Check that the port is "
            "that of the head and that both run the same version of Ray."
        ) from error


def directory(address: str) -> Any:
    """A client of a head's directory of nodes: refused at once, where `ray.init` would wait for half a minute."""
    with named_extra("Ray", "ray"):
        return _core().GcsClient(address=address)


def is_open(address: str) -> bool:
    """Whether a head lets in who shows no token. Asked from a process of its own, which has none."""
    code = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
    bare = {key: value for key, value in os.environ.items() if key not in (_TOKEN, _TOKEN_PATH)} | {_MODE: "disabled"}
    done = subprocess.run([sys.executable, "-c", code, address], env=bare, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def refuse_open(address: str) -> None:
    """Raise `EDViTError` if a head lets in who shows no token."""
    if is_open(address):
        raise EDViTError(
            f"Expected the head at {address} to ask for a token, got one that lets everybody in. Whoever reaches it "
            "runs any code on every device. Start it with a token: `edvit fleet up --token-file F`; or say --insecure."
        )


def found_address(address: str) -> str:
    """The address itself; of "auto", the head that RAY_ADDRESS names or that runs on this machine.

    Raises:
        EDViTError: There is none.
    """
    if address != "auto":
        host, port = split_address(address)
        return f"{host}:{port}"
    named = os.environ.get("RAY_ADDRESS")
    if named:
        return found_address(named)
    with named_extra("Ray", "ray"):
        from ray._private.services import find_gcs_addresses
    addresses = sorted(find_gcs_addresses())
    if len(addresses) != 1:
        there = ", ".join(addresses) or "none"
        raise EDViTError(
            f"Expected one Ray head on this machine, got {there}. Which fleet is meant is unknown. Start one with "
            "`edvit fleet up`, or name it: --address HOST:PORT."
        )
    return addresses[0]


def connect(address: str, token: str | None, *, insecure: bool = False) -> str:
    """Connect this process to the cluster of a head, as one of its users; returns the address.

    A machine that is connected must run a node of the cluster: the head itself, or a device that has joined.

    Raises:
        EDViTError: No token, a refused one, no head there, or a head that lets everybody in.
    """
    global _users
    need_ray("The Ray engine")
    settings = environment(token, insecure=insecure)
    with _lock:
        os.environ.update(settings)
        import ray

        found = found_address(address)
        if not ray.is_initialized():
            _reread_token()
            check_reachable(found)
            check_admitted(found)
            if not insecure:
                refuse_open(found)
            _start(found)
        _users += 1
        return found


def disconnect() -> None:
    """Undo one `connect`; the last one leaves the cluster."""
    global _users
    with _lock:
        _users = max(0, _users - 1)
        if not _users:
            import ray

            ray.shutdown()


def versions() -> dict[str, str]:
    """Of what must be the same on every machine."""
    import ray

    from edvit_hf import __version__

    return {"edvit_hf": __version__, "ray": ray.__version__, "python": platform.python_version()}


def _start(address: str) -> None:
    import ray

    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
    try:
        ray.init(address=address, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises many kinds, of its own and not
        raise EDViTError(
            f"Expected to become a member of the cluster at {address}, got {_first_line(error)}. Nobody can be asked. "
            "This machine must run the head or have joined (`edvit device join`), with the same Ray and Python: "
            "`edvit doctor --fleet` compares them."
        ) from error


def _reread_token() -> None:
    """Have Ray read the environment again: it keeps the first token that it saw."""
    _core().Config.initialize("")
    _core().AuthenticationTokenLoader.instance().reset_cache()


def _core() -> Any:
    """Ray's compiled module, of which no type checker knows the names."""
    return importlib.import_module("ray._raylet")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
