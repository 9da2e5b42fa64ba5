# SPDX-License-Identifier: Apache-2.0
"""What runs on a device under Ray: one process with one sub-model, which it loads from its own disk or pulls itself.

Comes in: arrays as they travelled. Goes out: plain tuples; no exception of ours is sent, so that a device with another
version of this package is understood. The class knows nothing of Ray: `engines.ray` makes an actor of it.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edvit_hf.errors import DataError, EDViTError, ManifestError
from edvit_hf.hub.pulling import ensemble_folder
from edvit_hf.manifest import Manifest
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.engines import LateError, UnavailableError, VersionError

logger = logging.getLogger(__name__)

SHARE_VARIABLE = "EDVIT_SHARE"
"""Set where the device joined: the folder that `edvit pull` fetched."""
_KEPT_TIMES = 128
RETRY_SECONDS = 5.0  # between looks for a file that is not there

Sent = tuple[Any, ...]
"""What travels back: "ok" and values, or a word from `ERRORS` and a text."""
ERRORS: dict[str, type[EDViTError]] = {
    "data": DataError,
    "version": VersionError,
    "unavailable": UnavailableError,
    "late": LateError,
    "failed": EDViTError,
}


class SubModelActor:
    """Holds one sub-model of one device. Methods may be called while another runs."""

    def __init__(
        self,
        index: int,
        content_hash: str,
        *,
        file: str | None = None,
        folder: str | None = None,
        source: str | None = None,
        revision: str | None = None,
        num_threads: int | None = None,
        profile: str | None = None,
    ) -> None:
        """Begin to load, on a thread of its own: an actor that fails here would be dead for good.

        Args:
            index: Of the sub-model.
            content_hash: The version of the ensemble.
            file: The one that the plan chose, inside the ensemble folder; None: whatever suits.
            folder: On this device. Default: what `EDVIT_SHARE` names here.
            source: Hub id (or a folder of this device) to pull from where the folder does not have the file.
            revision: Of that repository.
            num_threads: Of a run. Default: as cores.
            profile: Kind of hardware, for what is pulled.
        """
        self._index, self._content_hash, self._file = index, content_hash, file
        self._folder = folder or os.environ.get(SHARE_VARIABLE)
        self._source, self._revision = source, revision
        self._num_threads, self._profile = num_threads, profile
        self._host: DeviceHost | None = None
        self._problem = f"sub-model {index} is being loaded"
        self._busy_since: float | None = None
        self._times: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._ready = threading.Event()
        threading.Thread(target=self._load, name="edvit-load", daemon=True).start()

    def run(
        self, content_hash: str, request_id: str, inputs: Mapping[str, np.ndarray], budget_ms: float | None
    ) -> Sent:
        """See `DeviceHost.run`: ("ok", sub-model, version, request, features, logits, ms), or a word and a text."""

        def answer(host: DeviceHost) -> Sent:
            self._busy_since = time.monotonic()
            try:
                found = host.run(self._index, content_hash, request_id, inputs, budget_ms)
            finally:
                self._busy_since = None
            self._times.append(found.compute_ms)
            values = (found.features, found.logits, found.compute_ms)
            return ("ok", found.sub_model, found.content_hash, found.request_id, *values)

        return self._told(answer)

    def probe(self) -> Sent:
        """A whole run on an empty input: ("ok", sub-model, version), or a word and a text."""

        def answer(host: DeviceHost) -> Sent:
            found = host.probe(self._index)
            return ("ok", found.sub_model, found.content_hash)

        return self._told(answer)

    def alive(self) -> dict[str, Any]:
        """Whether the process can speak, what keeps it from answering, and for how long a run has taken."""
        since = self._busy_since
        busy = 0.0 if since is None else time.monotonic() - since
        told = {"pid": os.getpid(), "problem": None if self._host else self._problem, "busy_s": busy}
        times = list(self._times)
        return {**told, "answers": len(times), "compute_ms": round(float(np.median(times)), 3) if times else None}

    def identity(self, wait_seconds: float = 0.0) -> Sent:
        """What the device says of itself, once it has loaded: ("ok", the identity as a dict), or a word and a text."""
        self._ready.wait(wait_seconds)
        return self._told(lambda host: ("ok", asdict(host.identity)))

    def _told(self, answer: Callable[[DeviceHost], Sent]) -> Sent:
        host = self._host
        if host is None:
            return ("unavailable", self._problem)
        try:
            return answer(host)
        except EDViTError as error:
            kind = next((word for word, kind in ERRORS.items() if isinstance(error, kind)), "failed")
            return (kind, str(error))
        except Exception as error:  # whatever it is, it costs this sub-model alone
            logger.exception("sub-model %d failed", self._index)
            return ("failed", f"{type(error).__name__}: {error}")

    def _load(self) -> None:
        """Load as soon as there is something to load."""
        while self._host is None:
            try:
                self._host = self._opened()
            except Exception as error:  # told to whoever asks; the file may come later
                self._problem = f"sub-model {self._index} is not loaded here: {error}"
                logger.warning("%s", self._problem)
                time.sleep(RETRY_SECONDS)
        self._ready.set()

    def _opened(self) -> DeviceHost:
        problem = (
            f"Expected a folder with sub-model {self._index} on this device, got none: {SHARE_VARIABLE} is not set and "
            "no repository is named. It has nothing to answer with. Fetch it: edvit pull REPO --placement ... "
            "--device ..., and join with --share FOLDER."
        )
        if self._folder is not None:
            try:
                return self._host_of(Path(self._folder))
            except EDViTError as error:
                problem = f"{self._folder}: {error}"
        if self._source is None:
            raise ManifestError(problem)
        precision: Any = self._precision_in(self._source) or "fp32"
        where = {"precision": precision, "profile": self._profile, "sub_models": [self._index]}
        return self._host_of(Path(ensemble_folder(self._source, revision=self._revision, **where)))

    def _host_of(self, folder: Path) -> DeviceHost:
        manifest = Manifest.load(folder, only_to_run=True)
        found = manifest.ensemble.content_hash
        if found != self._content_hash:
            raise VersionError(
                f"Expected version {self._content_hash[:12]}... of the ensemble, got {found[:12]}.... Answers of two "
                "versions do not fit together. Fetch the share again: edvit pull."
            )
        variant = next((v for v in manifest.sub_models[self._index].variants if v.file == self._file), None)
        precision: Any = None if variant is None or not (folder / variant.file).is_file() else variant.precision
        return DeviceHost.load(
            folder,
            sub_models=[self._index],
            precision=precision,
            profile=self._profile if variant is not None and variant.profiles else None,
            num_threads=self._num_threads,
        )

    def _precision_in(self, source: str) -> str | None:
        """Of the planned file, told by its name alone: the manifest is not here yet."""
        name = "" if self._file is None else Path(self._file).stem
        return "int8" if "int8" in name else "fp16" if "fp16" in name else None
