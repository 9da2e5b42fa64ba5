# SPDX-License-Identifier: Apache-2.0
"""Changing to another version of an ensemble while its devices are switched one by one, with no mixed answer.

A version is changed as a whole: manifest, transform, fusion head and the content hash that every response must carry
belong to one runtime, and each request goes through one of them.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np

from edvit_hf.errors import EDViTError
from edvit_hf.runtime.answers import Answer
from edvit_hf.runtime.engines import Engine
from edvit_hf.runtime.ensemble import EDViTRuntime
from edvit_hf.runtime.inputs import Inputs

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.2  # between looks at who is ready
_LAST_SECONDS = 60.0  # for requests that are under way when the version changes


@runtime_checkable
class RollingEngine(Protocol):
    """What an engine needs besides the methods of `Engine`, to change versions."""

    def again(self) -> Engine:
        """An engine to the same devices, bound to no version."""
        ...

    def ready(self) -> frozenset[int]:
        """Sub-models of its version that some device has and runs, asked now."""
        ...


class RollingRuntime:
    """Answers with one version of an ensemble, until enough devices have another one. Safe to share between threads."""

    def __init__(self, runtime: EDViTRuntime) -> None:
        """Take over a runtime whose engine reaches other machines; it is closed with this one.

        Raises:
            EDViTError: Its engine cannot change versions: the local one has nothing to wait for.
        """
        _rolling(runtime)
        self._current = runtime
        self._in_flight: dict[int, int] = {}  # by the identity of a runtime
        self._changed = threading.Condition()
        self._changing = threading.Lock()

    @property
    def current(self) -> EDViTRuntime:
        """The runtime of the version that new requests go to."""
        return self._current

    def __call__(self, source: Any, absent: Sequence[int] = (), *, deadline_ms: float | None = None) -> Answer:
        """See `EDViTRuntime`."""
        with self._taken() as runtime:
            return runtime(source, absent, deadline_ms=deadline_ms)

    def predict(
        self, inputs: Inputs | np.ndarray, absent: Sequence[int] = (), *, deadline_ms: float | None = None
    ) -> Answer:
        """See `EDViTRuntime`. What was prepared for one version may not fit another: better call with the source."""
        with self._taken() as runtime:
            return runtime.predict(inputs, absent, deadline_ms=deadline_ms)

    def status(self) -> dict[str, Any]:
        """See `EDViTRuntime`; `version` is the content hash of the version that answers."""
        runtime = self._current
        return {**runtime.status(), "version": runtime.manifest.ensemble.content_hash}

    def change_to(
        self, source: str | Path, *, revision: str | None = None, timeout_s: float = 600.0, engine: Engine | None = None
    ) -> EDViTRuntime:
        """Change to another version, once it can answer at least as well as the present one; blocks until then.

        That is when its quorum is ready, and no fewer of its sub-models than of the present version. Where workers hold
        both versions for a while (`edvit worker` after SIGHUP) no answer is degraded; where a device drops the old one,
        the change comes about half-way.

        Args:
            source: Folder or Hub id of the version to change to; only its manifest, processor and fusion head are used.
            revision: Of the repository.
            timeout_s: Give up after so long, and go on with the present version.
            engine: To reach the devices with. Default: as the present one does.

        Returns:
            The runtime of the new version.

        Raises:
            EDViTError: Too few were ready in time. And what `EDViTRuntime.from_pretrained` raises.
        """
        with self._changing:
            old, until = self._current, time.monotonic() + timeout_s
            carrier = _rolling(old).again() if engine is None else engine
            try:
                fresh = EDViTRuntime.from_pretrained(
                    source, revision=revision, engine=carrier, config=old.coordinator.config
                )
            except BaseException:
                carrier.close()
                raise
            try:
                self._await_ready(old, fresh, until)
            except BaseException:
                fresh.close()
                raise
            with self._changed:
                self._current = fresh
                self._changed.wait_for(lambda: not self._in_flight.get(id(old)), _LAST_SECONDS)
            old.close()
            logger.info("changed to version %s", fresh.manifest.ensemble.content_hash)
            return fresh

    def close(self) -> None:
        """Close the runtime that answers."""
        self._current.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _taken(self) -> Iterator[EDViTRuntime]:
        """The present runtime, which is not closed before the block ends."""
        with self._changed:
            runtime = self._current
            self._in_flight[id(runtime)] = self._in_flight.get(id(runtime), 0) + 1
        try:
            yield runtime
        finally:
            with self._changed:
                self._in_flight[id(runtime)] -= 1
                if not self._in_flight[id(runtime)]:
                    del self._in_flight[id(runtime)]
                self._changed.notify_all()

    def _await_ready(self, old: EDViTRuntime, fresh: EDViTRuntime, until: float) -> None:
        count = len(fresh.manifest.sub_models)
        quorum = old.coordinator.config.quorum or max(1, math.ceil(count / 2))
        while True:
            before, now = _rolling(old).ready(), _rolling(fresh).ready()
            needed = max(quorum, min(len(before), count))
            if len(now) >= needed:
                return
            if time.monotonic() >= until:
                raise EDViTError(
                    f"Expected at least {needed} of {count} sub-models of the new version to be ready, got "
                    f"{sorted(now)}. The answers would be worse than those of the present version, "
                    "which goes on. Bring the new version to the devices that lack it, and call again."
                )
            time.sleep(_PAUSE_SECONDS)


def _rolling(runtime: EDViTRuntime) -> RollingEngine:
    engine = runtime.coordinator.engine
    if not isinstance(engine, RollingEngine):
        raise EDViTError(
            f"Expected an engine that reaches devices and can change versions, got {type(engine).__name__}. With "
            "sub-models in this process there is nothing to wait for: load the new version and close the old one."
        )
    return cast(RollingEngine, engine)
