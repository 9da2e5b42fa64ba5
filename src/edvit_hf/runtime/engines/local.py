# SPDX-License-Identifier: Apache-2.0
"""The local engine: all sub-models in this process, in turn on all threads, or each on a worker of its own."""

import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.hardware.machine import usable_cores
from edvit_hf.manifest import Manifest, Variant
from edvit_hf.runtime.arguments import check_indices, check_num_threads
from edvit_hf.runtime.engines import ProbeResponse, SubModelRequest, SubModelResponse, schedules
from edvit_hf.runtime.engines.lanes import CLOSE_SECONDS, Job, Lane, close_all, join_all
from edvit_hf.runtime.engines.schedules import AT_ONCE, SCHEDULES, Schedule
from edvit_hf.runtime.inputs import probe_inputs
from edvit_hf.runtime.sessions import (
    FILES_AT_THEIR_LIMIT,
    OPEN_SECONDS,
    OpeningTime,
    SlowGraphError,
    check_share,
    check_sub_model,
    chosen_variants,
    open_verified,
    share_variants,
)
from edvit_hf.strict import one_of
from edvit_hf.tasks import MAIN_INPUT

logger = logging.getLogger(__name__)

WARM_UP_SECONDS = 10.0  # more than any first run that is worth waiting for
MEASURE_SECONDS = 60.0  # usually one; more than a dozen slow requests of every schedule


class LocalEngine:
    """Runs sub-models in this process.

    In turn there is one thread that runs them one after the other, so that every run has all cores; at once there is
    one for each core or for each sub-model. A run that nobody waits for any more is stopped at its next operator, and
    the session stays usable.
    """

    def __init__(
        self,
        sessions: Mapping[int, onnxruntime.InferenceSession],
        *,
        content_hash: str,
        probe: Mapping[str, np.ndarray],
        schedule: Schedule = "in_turn",
        sizes: Mapping[int, int] | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Start the threads.

        Args:
            sessions: Sub-model -> what runs it, in the order in which they are to be asked.
            content_hash: Version of the ensemble that the sessions were checked against.
            probe: Inputs of one item that every sub-model can run.
            schedule: How they share the cores; what its threads do was settled when the sessions were opened.
            sizes: What each has to do, in any unit, for sharing them out; None: all the same.
            num_threads: Cores to share; None: all.
        """
        self.schedule = schedule
        self.sessions = dict(sessions)
        self.sub_models = tuple(self.sessions)
        self._content_hash = content_hash
        self._probe = probe
        self._all_lanes = lanes = [
            Lane() for _ in range(schedules.num_lanes(schedule, len(self.sessions), num_threads))
        ]
        work = {index: 1 if sizes is None else sizes[index] for index in self.sessions}
        share = schedules.shared_out(work, len(lanes))
        self._lanes = {index: lanes[lane] for index, lane in share.items()}
        for number, lane in enumerate(lanes):
            lane.start(f"edvit-local-{number}")
        self._stop = weakref.finalize(self, close_all, lanes)  # threads end with the engine, closed or not

    @classmethod
    def load(
        cls,
        root: Path,
        manifest: Manifest,
        *,
        precision: Literal["fp32", "fp16", "int8"] | None = None,
        sub_models: Sequence[int] | None = None,
        num_threads: int | None = None,
        profile: str | None = None,
        schedule: Literal["auto"] | Schedule = "auto",
    ) -> "LocalEngine":
        """Open the exported files of an ensemble's folder, after checking their hashes, and run each once.

        The arguments and errors are those of `EDViTRuntime.from_pretrained`. While "auto" times the schedules, every
        sub-model is in memory once per schedule; with one thread there is nothing to choose: they run in turn. Those
        whose files are not open in time are left out.
        """
        one_of("schedule", schedule, ("auto", *SCHEDULES), "it is how sub-models share the cores", EDViTError)
        num = len(manifest.sub_models)
        chosen = range(num) if sub_models is None else sorted(set(sub_models))
        check_indices(chosen, num, "sub_models")
        if not chosen:
            raise EDViTError("`sub_models` is empty: without any sub-model there is no answer. Name at least one.")
        check_num_threads(num_threads)
        if precision is None:
            variants = share_variants(root, manifest, None if sub_models is None else chosen, profile)
        else:
            check_share(root, manifest, chosen, precision, profile)
            variants = chosen_variants([manifest.sub_models[i] for i in chosen], precision, profile)
        return cls.of_files(root, manifest, variants, num_threads=num_threads, schedule=schedule)

    @classmethod
    def of_files(
        cls,
        root: Path,
        manifest: Manifest,
        variants: Mapping[int, Variant],
        *,
        num_threads: int | None = None,
        schedule: Literal["auto"] | Schedule = "auto",
    ) -> "LocalEngine":
        """As `load`, of files that were chosen already: sub-model -> its own, of any precision."""
        cores = num_threads or usable_cores()
        if schedule == "auto" and (cores == 1 or len(variants) == 1):
            schedule = "in_turn"
        opened = partial(cls._open, root, manifest, variants, num_threads)
        # With a core for each, one worker per core is one per sub-model.
        tried = [each for each in SCHEDULES if each != "per_core" or cores < len(variants)]
        first, *others = tried if schedule == "auto" else [schedule]
        until = time.monotonic() + OPEN_SECONDS
        engines = {first: opened(first, OpeningTime(OPEN_SECONDS, FILES_AT_THEIR_LIMIT * OPEN_SECONDS))}
        engines |= _opened_in_time(opened, others, until)
        if len(engines) == 1:
            engines[first].run_all(time.monotonic() + WARM_UP_SECONDS)  # what fails or hangs is found when it is asked
            return engines[first]
        best = _quickest(engines)
        for each, engine in engines.items():
            if each != best:
                engine.close()
        return engines[best]

    @classmethod
    def _open(
        cls,
        root: Path,
        manifest: Manifest,
        variants: Mapping[int, Variant],
        num_threads: int | None,
        schedule: Schedule,
        within: OpeningTime,
    ) -> "LocalEngine":
        options = schedules.options_for(schedule, len(variants), num_threads)
        # At once the answer waits for the largest; in turn, a deadline leaves out fewer if the small ones come first.
        order = sorted(variants, key=lambda index: variants[index].bytes, reverse=schedule in AT_ONCE)
        sessions = {}
        for index in order:
            sessions[index] = open_verified(root, variants[index], options, within=within)
            check_sub_model(manifest, index, sessions[index])
        task = manifest.ensemble.task
        return cls(
            sessions,
            content_hash=manifest.ensemble.content_hash,
            probe=probe_inputs(task, input_shape(sessions[order[0]], MAIN_INPUT[task])),
            schedule=schedule,
            sizes={index: variants[index].bytes for index in order},
            num_threads=num_threads,
        )

    def request(self, inputs: Mapping[str, np.ndarray]) -> SubModelRequest:
        """A request of this engine's own, for timing it without a coordinator."""
        return SubModelRequest(request_id="own", content_hash=self._content_hash, budget_ms=None, inputs=inputs)

    def submit(self, index: int, request: SubModelRequest, /) -> Future[SubModelResponse]:
        """See `Engine`. A request for another version of the ensemble is answered too: the coordinator judges."""

        def work(options: onnxruntime.RunOptions) -> SubModelResponse:
            begin = time.perf_counter()
            try:
                features, logits = _run(self.sessions[index], index, request.inputs, options)
            except DataError:
                _run_probe(self.sessions[index], index, self._probe, options)  # raises if the input is not at fault
                raise
            return SubModelResponse(
                request_id=request.request_id,
                sub_model=index,
                content_hash=self._content_hash,
                features=features,
                logits=logits,
                compute_ms=1e3 * (time.perf_counter() - begin),
            )

        return self._put(index, work)

    def submit_all(self) -> list[Future[SubModelResponse]]:
        """Have every sub-model run an empty input: a first run takes several times as long as those after it."""
        request = self.request(self._probe)
        return [self.submit(index, request) for index in self.sessions]

    def run_all(self, until: float | None = None) -> bool:
        """Run every sub-model once. What one of them cannot run is found when it is asked, and costs no other.

        Runs that have not ended at `until`, a time of the monotonic clock, are stopped. Whether all have ended.
        """
        late = wait(self.submit_all(), None if until is None else max(0.0, until - time.monotonic())).not_done
        for pending in late:
            pending.cancel()
        return not late

    def probe(self, index: int, /) -> Future[ProbeResponse]:
        """See `Engine`: a whole run on an empty input."""

        def work(options: onnxruntime.RunOptions) -> ProbeResponse:
            features, logits = _run_probe(self.sessions[index], index, self._probe, options)
            if not (np.isfinite(features).all() and np.isfinite(logits).all()):
                raise EDViTError(f"Sub-model {index} gives values that are not finite. Export it again.")
            return ProbeResponse(sub_model=index, content_hash=self._content_hash)

        return self._put(index, work)

    def status(self) -> dict[str, object]:
        """See `Engine`."""
        return {"engine": "local", "schedule": self.schedule, "sub_models": list(self.sessions)}

    def close(self) -> None:
        """See `Engine`: what waits is cancelled, what runs is stopped at its next operator and waited for a while."""
        self._stop()
        join_all(self._all_lanes, CLOSE_SECONDS)

    def _put(self, index: int, work: Callable[[onnxruntime.RunOptions], Any]) -> Job:
        lane = self._lanes[index]
        job = Job(index, lane, work)
        lane.add(job)
        if not self._stop.alive:
            job.cancel()
        return job


def _opened_in_time(
    opened: Callable[[Schedule, OpeningTime], LocalEngine], others: Sequence[Schedule], until: float
) -> dict[Schedule, LocalEngine]:
    """Engines of other schedules, as far as their files are open at `until`, a time of the monotonic clock.

    An engine is there already: a choice of them is not worth losing it, or waiting for longer.
    """
    engines: dict[Schedule, LocalEngine] = {}
    for each in others:
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise SlowGraphError("No time is left for another schedule.")
            engines[each] = opened(each, OpeningTime(left, left))
        except SlowGraphError as error:
            logger.warning("the schedule %s and those after it are not tried: %s", each, error)
            break
    return engines


def _quickest(engines: Mapping[Schedule, LocalEngine]) -> Schedule:
    """Try out what engine answers soonest; where a sub-model hangs, the one that lets it hold up the fewest others."""
    patient = list(engines)[-1]  # in the order of `SCHEDULES`
    until = time.monotonic() + MEASURE_SECONDS
    late: list[Schedule] = []

    def run(each: Schedule) -> None:
        if not late and not engines[each].run_all(until):
            late.append(each)

    if not next(iter(engines.values())).run_all(time.monotonic() + WARM_UP_SECONDS):
        return patient
    best = schedules.quickest(schedules.measure_schedules({each: partial(run, each) for each in engines}))
    return patient if late else best


def _run(
    session: onnxruntime.InferenceSession, index: int, feeds: Mapping[str, np.ndarray], options: onnxruntime.RunOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Features (B, d) and logits (B, |group| + 1)."""
    try:
        features, logits = session.run(["features", "logits"], feeds, options)
    except Exception as error:  # onnxruntime raises bare types of its own extension module
        if options.terminate:
            raise EDViTError(
                f"Sub-model {index} was stopped: nobody waits for it any more, or the runtime was closed."
            ) from error
        shapes = ", ".join(f"{name} {values.shape}" for name, values in feeds.items())
        raise DataError(
            f"Expected an input that sub-model {index} can run, got {shapes}: {error}. A token number beyond "
            "the vocabulary or a text longer than the model reads does this. Prepare inputs with `transform`."
        ) from error
    return features, logits


def _run_probe(
    session: onnxruntime.InferenceSession, index: int, feeds: Mapping[str, np.ndarray], options: onnxruntime.RunOptions
) -> tuple[np.ndarray, np.ndarray]:
    """As `_run`, on inputs that every sub-model can run: where this fails, the sub-model is at fault."""
    try:
        return _run(session, index, feeds, options)
    except DataError as error:
        raise EDViTError(
            f"Expected sub-model {index} to run an empty input, got {error.__cause__}. It can answer nothing here: "
            "its file is damaged, or there is too little memory. Export it again, or free memory."
        ) from error


def input_shape(session: Any, name: str) -> tuple[int | None, ...]:
    """Shape of one item of a graph's input; None where any size goes."""
    shape = next(each.shape for each in session.get_inputs() if each.name == name)[1:]
    return tuple(size if isinstance(size, int) else None for size in shape)
