# SPDX-License-Identifier: Apache-2.0
"""Looks after actors that were late: Ray notices a process that ends, but not one that hangs.

Comes in: endpoints in doubt. Goes out: a sign of life, or a restart of the process after several pings without one. A
machine that cannot be reached is left alone: its process may be well, and is back with the link.
"""

import logging
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edvit_hf.runtime.engines.ray import RayEngine

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.25
PING_SECONDS = 0.75
PINGS_TO_RESTART = 3
STUCK_SECONDS = 10.0  # of one run: an operator that does not end, in a process that still speaks
SETTLE_SECONDS = 10.0  # after a restart, until it may be restarted again


@dataclass
class _Doubt:
    ping: Future[Any] | None = None
    asked_at: float = 0.0
    misses: int = 0
    quiet_until: float = 0.0


class Watch:
    """A thread that pings endpoints in doubt. It holds its engine only while it works, and ends with it."""

    def __init__(self, engine: "RayEngine") -> None:
        self._engine = weakref.ref(engine)
        self._doubts: dict[tuple[int, str], _Doubt] = {}
        self._restarted: Counter[tuple[int, str]] = Counter()
        self._ended = threading.Event()
        threading.Thread(target=self._serve, name="edvit-ray-watch", daemon=True).start()

    def doubt(self, index: int, device: str) -> None:
        """Look after an endpoint from now on."""
        self._doubts.setdefault((index, device), _Doubt())

    def restarted(self) -> list[dict[str, object]]:
        """How often each endpoint was restarted: JSON-able."""
        return [{"sub_model": i, "device": device, "count": n} for (i, device), n in sorted(self._restarted.items())]

    def close(self) -> None:
        """End the thread."""
        self._ended.set()

    def _serve(self) -> None:
        while not self._ended.wait(PAUSE_SECONDS):
            engine = self._engine()
            if engine is None or engine.is_closed:
                return
            for key, doubt in list(self._doubts.items()):
                try:
                    self._look(engine, key, doubt)
                except Exception as error:  # Ray's many kinds; the next round tries again
                    logger.debug("sub-model %d at %s cannot be looked after: %s", *key, error)
            del engine

    def _look(self, engine: "RayEngine", key: tuple[int, str], doubt: _Doubt) -> None:
        now = time.monotonic()
        if now < doubt.quiet_until:
            return
        if doubt.ping is None:
            doubt.ping, doubt.asked_at = engine.call(*key, "alive", group="life"), now
            return
        if not doubt.ping.done():
            if now - doubt.asked_at < PING_SECONDS:
                return
            doubt.misses, doubt.ping = doubt.misses + 1, None
            if doubt.misses >= PINGS_TO_RESTART:
                self._restart(engine, key, doubt, "it gave no sign of life")
            return
        ping, doubt.ping = doubt.ping, None
        if ping.cancelled() or ping.exception() is not None:  # it ended, and Ray restarts it
            doubt.misses = 0
            return
        told = ping.result()
        if told["busy_s"] > STUCK_SECONDS:
            self._restart(engine, key, doubt, f"one run has taken {told['busy_s']:.0f} s")
        elif told["problem"] is None:
            self._doubts.pop(key, None)

    def _restart(self, engine: "RayEngine", key: tuple[int, str], doubt: _Doubt, why: str) -> None:
        doubt.misses = 0
        if engine.restart(*key):
            self._restarted[key] += 1
            doubt.quiet_until = time.monotonic() + SETTLE_SECONDS
            logger.warning("sub-model %d at %s was restarted: %s", *key, why)
