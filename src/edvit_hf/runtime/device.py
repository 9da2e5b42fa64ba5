# SPDX-License-Identifier: Apache-2.0
"""`DeviceHost`: what the process on a device holds, whichever engine reaches it: sub-models, transform, identity.

Comes in: the folder of an ensemble or one device's share of it, then inputs as they travelled. Goes out: responses.
The Open Inference Protocol worker (`fleet.worker`) and Ray's actors (`engines.ray`) hold one each.
"""

import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from edvit_hf import __version__
from edvit_hf.errors import DataError, ManifestError
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.hashes import hash_of_content
from edvit_hf.runtime.arguments import as_indices, check_indices, check_num_threads
from edvit_hf.runtime.engines import (
    LateError,
    ProbeResponse,
    SubModelRequest,
    SubModelResponse,
    UnavailableError,
    VersionError,
)
from edvit_hf.runtime.engines.local import LocalEngine
from edvit_hf.runtime.engines.schedules import Schedule
from edvit_hf.runtime.inputs import check_inputs
from edvit_hf.runtime.opening import shape_of_inputs, transform_of
from edvit_hf.runtime.sessions import check_profile, check_share, held_variants
from edvit_hf.tasks import PROCESSOR_FILES
from edvit_hf.transforms import Transform
from edvit_hf.transforms.travelling import arrived, travelling_types

Reply = TypeVar("Reply")

PROBE_SECONDS = 10.0  # a whole run on an empty input; whoever asks usually stops waiting earlier


@dataclass(frozen=True, kw_only=True)
class DeviceIdentity:
    """What a device says of itself before it is asked anything. Plain values: it can be sent as it is.

    Attributes:
        ensemble_id: Of the manifest.
        content_hash: The version of the ensemble.
        preprocessing: See `preprocessing_hash`.
        sub_models: Those that it holds.
        package: Version of edvit_hf.
        python: Version of Python.
        inputs: Name -> the type in which it wants it to travel; the prepared type is taken too.
    """

    ensemble_id: str
    content_hash: str
    preprocessing: str
    sub_models: tuple[int, ...]
    package: str
    python: str
    inputs: dict[str, str]


def preprocessing_hash(manifest: Manifest) -> str:
    """Hex SHA-256 over the files that say how inputs are prepared: devices and coordinator must have the same."""
    return hash_of_content({name: file for name, file in manifest.content.items() if name in PROCESSOR_FILES})


class DeviceHost:
    """The sub-models of one device, opened and ready. Safe to call from several threads.

    Attributes:
        identity: What it tells of itself.
        manifest: Of the ensemble, all of it.
        transform: Prepares what travelled.
        input_shape: Of one item of the main input; None where any size goes.
    """

    def __init__(self, manifest: Manifest, transform: Transform, engine: LocalEngine) -> None:
        self.manifest, self.transform = manifest, transform
        self._engine = engine
        self.input_shape = shape_of_inputs(manifest, transform, engine)
        self.identity = DeviceIdentity(
            ensemble_id=manifest.ensemble.id,
            content_hash=manifest.ensemble.content_hash,
            preprocessing=preprocessing_hash(manifest),
            sub_models=tuple(sorted(engine.sub_models)),
            package=__version__,
            python=platform.python_version(),
            inputs=travelling_types(transform),
        )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        sub_models: Sequence[int] | None = None,
        precision: Literal["fp32", "fp16", "int8"] | None = None,
        profile: str | None = None,
        num_threads: int | None = None,
        schedule: Literal["auto"] | Schedule = "in_turn",
    ) -> "DeviceHost":
        """Open what a folder holds of an ensemble, after checking every file against the manifest, and run it once.

        Args:
            folder: A whole export, or what `edvit pull` fetched for one device; the fusion head is not needed.
            sub_models: Load these. Default: all that the folder holds.
            precision: Of the files. Default: that of each file there is; of several the first of fp32, fp16, int8.
            profile: Kind of hardware whose files are preferred. Default: this one.
            num_threads: See `EDViTRuntime.from_pretrained`.
            schedule: How several sub-models share the cores, see there; "auto" takes a second to find out.

        Raises:
            ManifestError: A file is missing or altered, or there is none that suits; the message tells what there is.
            EDViTError: An index or a profile is unknown.
        """
        root = Path(folder)
        manifest = Manifest.load(root, only_to_run=True)
        check_profile(manifest, profile)
        check_num_threads(num_threads)
        held = held_variants(root, manifest, precision, profile)
        wanted = held if sub_models is None else as_indices(sub_models, "sub_models")
        check_indices(wanted, len(manifest.sub_models), "sub_models")
        lacking = sorted(set(wanted) - held.keys())
        if lacking or not wanted:
            check_share(root, manifest, lacking or range(len(manifest.sub_models)), precision or "fp32", profile)
            raise ManifestError(f"Expected a file of a sub-model in {root}, got none. Fetch the share again.")
        transform = transform_of(manifest, root)
        variants = {index: held[index] for index in wanted}
        engine = LocalEngine.of_files(root, manifest, variants, num_threads=num_threads, schedule=schedule)
        return cls(manifest, transform, engine)

    def run(
        self,
        index: int,
        content_hash: str,
        request_id: str,
        inputs: Mapping[str, np.ndarray],
        budget_ms: float | None = None,
    ) -> SubModelResponse:
        """Run one sub-model, and wait for it until the budget is over; then it is stopped at its next operator.

        Args:
            index: Of the sub-model.
            content_hash: The version of the ensemble that the answer is wanted of.
            request_id: Comes back with the response.
            inputs: As `travelling` made them, or prepared; B rows each.
            budget_ms: What is left until nobody waits any more; None: there is no end.

        Raises:
            DataError: The inputs cannot be run.
            VersionError: This device holds another version of the ensemble.
            UnavailableError: It does not hold this sub-model.
            LateError: The budget is over.
            EDViTError: The sub-model failed.
        """
        self._check_held(index)
        if content_hash != self.identity.content_hash:
            raise VersionError(
                f"Expected a device with version {content_hash[:12]}... of the ensemble, got one with "
                f"{self.identity.content_hash[:12]}.... Answers of two versions do not fit together. Fetch the same "
                "version everywhere: edvit pull."
            )
        if not inputs:
            raise DataError("Expected the inputs by name, got none. There is nothing to classify. Send them.")
        feeds = check_inputs(self.manifest.ensemble.task, self.input_shape, arrived(self.transform, inputs))
        request = SubModelRequest(request_id=request_id, content_hash=content_hash, budget_ms=budget_ms, inputs=feeds)
        seconds = None if budget_ms is None else max(0.0, budget_ms / 1e3)
        return _within(seconds, index, self._engine.submit(index, request))

    def probe(self, index: int) -> ProbeResponse:
        """Run one sub-model on an empty input: a sign of life. Raises what `run` raises."""
        self._check_held(index)
        return _within(PROBE_SECONDS, index, self._engine.probe(index))

    def close(self) -> None:
        """Stop what runs and free the sub-models. Calling it again does nothing."""
        self._engine.close()

    def _check_held(self, index: int) -> None:
        if index not in self.identity.sub_models:
            raise UnavailableError(
                f"Expected a device with sub-model {index}, got one with {list(self.identity.sub_models)}. It cannot "
                "answer for another. Correct the placement, or fetch the device's share again."
            )


def _within(seconds: float | None, index: int, pending: "Future[Reply]") -> Reply:
    """What comes of a run, unless it takes longer; then it is stopped."""
    try:
        return pending.result(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
    except TimeoutError as error:
        pending.cancel()
        raise LateError(
            f"Expected sub-model {index} to answer within {1e3 * (seconds or 0):.0f} ms, got nothing. Nobody waits for "
            "it any more. Allow more time, or take a quicker device or a smaller sub-model."
        ) from error
    except CancelledError as error:
        raise UnavailableError(f"Sub-model {index} was closed while it was asked. Start its device again.") from error
    except BaseException:
        pending.cancel()
        raise
