# SPDX-License-Identifier: Apache-2.0
"""Routes to sub-models: the device that runs each, its replicas, and which of them are worth asking first.

Comes in: endpoints by sub-model, then what became of each request. Goes out: the order in which to ask. Engines that
reach several machines share it; an endpoint is any text that they know it by.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edvit_hf.runtime.engines import Pending

logger = logging.getLogger(__name__)

Health = Literal["up", "late", "unreachable"]


@dataclass
class _Endpoint:
    name: str
    health: Health = "up"
    since: float = 0.0  # of the monotonic clock: when it was last found wanting


class Routes:
    """Who runs which sub-model, first its own device and then its replicas. Safe to call from several threads.

    An endpoint that was late, or cannot be reached, is asked after the others until it answers or a probe finds it
    well. Nobody is left out: where all are in doubt, the one that was found wanting the longest ago comes first.
    """

    def __init__(self, endpoints: Mapping[int, Sequence[str]]) -> None:
        """Take for each sub-model its endpoints, that of its own device first."""
        self._lock = threading.Lock()
        self._routes = {index: [_Endpoint(name) for name in names] for index, names in endpoints.items()}

    @property
    def sub_models(self) -> tuple[int, ...]:
        """Those that have a route or had one."""
        return tuple(self._routes)

    def order(self, index: int) -> tuple[str, ...]:
        """Endpoints of a sub-model in the order in which to ask them; empty where there is none."""
        with self._lock:
            found = self._routes.get(index, [])
            return tuple(each.name for each in sorted(found, key=lambda each: (each.health != "up", each.since)))

    def change(self, index: int, endpoints: Sequence[str]) -> None:
        """Give a sub-model other endpoints; what is known of those that it keeps stays."""
        with self._lock:
            known = {each.name: each for each in self._routes.get(index, [])}
            self._routes[index] = [known.get(name) or _Endpoint(name) for name in endpoints]

    def add(self, index: int, endpoint: str, among: Sequence[str]) -> None:
        """Give a sub-model one more endpoint, in the order in which `among` names them all."""
        with self._lock:
            known = {each.name: each for each in self._routes.get(index, [])}
            known.setdefault(endpoint, _Endpoint(endpoint))
            self._routes[index] = sorted(known.values(), key=lambda each: among.index(each.name))

    def answered(self, index: int, endpoint: str) -> None:
        """Note an answer, or a sign of life."""
        self._note(index, endpoint, "up")

    def failed(self, index: int, endpoint: str, why: object = "") -> None:
        """Note that an endpoint is known not to be reachable, or not to have the sub-model."""
        self._note(index, endpoint, "unreachable", why)

    def missed(self, index: int, endpoint: str) -> None:
        """Note that an endpoint did not answer by the deadline: it may hang."""
        self._note(index, endpoint, "late")

    def doubtful(self) -> list[tuple[int, str]]:
        """Sub-models and endpoints that are to be probed: they are not well, and another one stands in for them.

        Where none does, the coordinator's breaker sees to the probes.
        """
        with self._lock:
            several = {index: found for index, found in self._routes.items() if len(found) > 1}
            return [(index, each.name) for index, found in several.items() for each in found if each.health != "up"]

    def status(self) -> dict[str, list[dict[str, str]]]:
        """Health of each endpoint by sub-model: JSON-able."""
        with self._lock:
            return {
                str(index): [{"endpoint": each.name, "health": each.health} for each in found]
                for index, found in sorted(self._routes.items())
            }

    def _note(self, index: int, endpoint: str, health: Health, why: object = "") -> None:
        with self._lock:
            found = next((each for each in self._routes.get(index, []) if each.name == endpoint), None)
            if found is None:  # it was given up meanwhile
                return
            changed, found.health = found.health != health, health
            found.since = 0.0 if health == "up" else time.monotonic()
        if changed:
            logger.log(
                logging.INFO if health == "up" else logging.WARNING,
                "sub-model %d at %s: %s %s",
                index,
                endpoint,
                health,
                why,
            )


class Prober:
    """A thread that asks doubtful endpoints for a sign of life, so that a device that is back is asked first again."""

    def __init__(
        self, routes: Routes, probe: Callable[[int, str], Pending[Any]], *, pause_s: float, name: str = "edvit-routes"
    ) -> None:
        """Begin. `probe` asks without waiting, and fails by itself when it takes too long.

        The thread holds no reference to whoever `probe` is a method of; it ends with it.
        """
        self._ended = threading.Event()
        method: Callable[[], Callable[[int, str], Pending[Any]] | None] = (
            weakref.WeakMethod(probe) if hasattr(probe, "__self__") else lambda: probe
        )
        threading.Thread(target=_serve, args=(routes, method, pause_s, self._ended), name=name, daemon=True).start()

    def close(self) -> None:
        """End the thread, after its pause at the latest."""
        self._ended.set()


def _serve(
    routes: Routes,
    method: Callable[[], Callable[[int, str], Pending[Any]] | None],
    pause_s: float,
    ended: threading.Event,
) -> None:
    while not ended.wait(pause_s):
        for index, endpoint in routes.doubtful():
            probe = method()
            if probe is None:
                return
            try:
                probe(index, endpoint).add_done_callback(_noted(routes, index, endpoint))
            except Exception as error:  # it is no sign of life
                logger.debug("sub-model %d at %s cannot be probed: %s", index, endpoint, error)
            del probe


def _noted(routes: Routes, index: int, endpoint: str) -> Callable[[Any], None]:
    def arrived(pending: Any) -> None:
        try:
            pending.result()
        except BaseException as error:  # whatever it is, it is no sign of life
            logger.debug("sub-model %d at %s did not answer a probe: %s", index, endpoint, error)
            return
        routes.answered(index, endpoint)

    return arrived
