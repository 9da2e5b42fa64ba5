# SPDX-License-Identifier: Apache-2.0
"""Timing ONNX graphs: sessions as the runtime opens them, shuffled rounds, medians with their spread."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

WARM_UP_SECONDS, MAX_WARM_UPS = 0.005, 20  # what ran before has filled the caches: bring this one's weights back
UNDISTURBED_SHARE = 0.95  # processor time over passed time of a run that had its core to itself
MIN_UNDISTURBED, MAX_ROUNDS_FACTOR = 3, 3


def open_session(graph: bytes | Path, threads: int, *, trace: Path | None = None) -> onnxruntime.InferenceSession:
    """A session on one graph with a fixed number of threads that do not spin, as `EDViTRuntime` opens it.

    Args:
        graph: The model, or its file.
        threads: Threads within an operator.
        trace: Start of the name of the file to which onnxruntime writes the time of every kernel; None: no trace,
            which is faster.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def random_feed(session: onnxruntime.InferenceSession, *, seed: int = 0) -> dict[str, np.ndarray]:
    """One random row for every input of a session; what is dynamic has size 1."""
    generator = np.random.default_rng(seed)
    feed = {}
    for entry in session.get_inputs():
        sizes = [size if isinstance(size, int) else 1 for size in entry.shape]
        feed[entry.name] = generator.standard_normal(sizes, dtype=np.float32)
    return feed


@dataclass(frozen=True)
class Sample:
    """One timed run."""

    milliseconds: float
    own_milliseconds: float  # of the processor, spent in this thread
    is_disturbed: bool  # another program had this thread's core for part of the time


@dataclass
class Samples:
    """Timed runs of one session."""

    runs: list[Sample] = field(default_factory=list)

    @property
    def undisturbed(self) -> list[float]:
        """Milliseconds of the runs that had their core to themselves."""
        return [run.milliseconds for run in self.runs if not run.is_disturbed]

    @property
    def milliseconds(self) -> list[float]:
        """What counts: the undisturbed runs. Where they are too few for a median, each run without its waiting."""
        if len(self.undisturbed) >= min(MIN_UNDISTURBED, len(self.runs)):
            return self.undisturbed
        return [run.own_milliseconds if run.is_disturbed else run.milliseconds for run in self.runs]

    @property
    def disturbed_share(self) -> float:
        """Share of the runs that were disturbed."""
        return 1 - len(self.undisturbed) / len(self.runs)


def timed_run(session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray], *, threads: int = 1) -> Sample:
    """One timed run, after a few that are not counted: one, or more of a model that takes no time.

    On one thread the run is this thread's own, so that processor time short of the time that passed tells of other
    programs. On several threads nothing tells, and no run counts as disturbed.
    """
    begin = time.perf_counter()
    for _ in range(MAX_WARM_UPS):
        session.run(None, feed)
        if time.perf_counter() - begin > WARM_UP_SECONDS:
            break
    begin, begin_own = time.perf_counter(), time.thread_time()
    session.run(None, feed)
    own, passed = time.thread_time() - begin_own, time.perf_counter() - begin
    return Sample(1e3 * passed, 1e3 * own, threads == 1 and own < UNDISTURBED_SHARE * passed)


def time_rounds(
    sessions: Sequence[onnxruntime.InferenceSession],
    *,
    rounds: int,
    threads: int = 1,
    seed: int = 0,
    after_each: Callable[[], None] = lambda: None,
) -> list[Samples]:
    """Time every session `rounds` times, once per round in an order that is shuffled anew.

    A slow spell of the machine so falls on all of them and not on one. A disturbed run is repeated in a later
    round, of which there are at most `MAX_ROUNDS_FACTOR` times as many.
    """
    feeds = [random_feed(session) for session in sessions]
    samples = [Samples() for _ in sessions]
    shuffler = random.Random(seed)
    for _ in range(MAX_ROUNDS_FACTOR * rounds):
        order = [index for index, one in enumerate(samples) if len(one.undisturbed) < rounds]
        shuffler.shuffle(order)
        for index in order:
            samples[index].runs.append(timed_run(sessions[index], feeds[index], threads=threads))
            if not samples[index].runs[-1].is_disturbed:
                after_each()
    return samples


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and smallest of the samples in ms, and their number."""
    quarters = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    row = {"median_ms": quarters[1], "lower_ms": quarters[0], "upper_ms": quarters[2], "min_ms": min(samples)}
    return {**{name: round(value, 4) for name, value in row.items()}, "repeats": len(samples)}
