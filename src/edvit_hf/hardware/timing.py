# SPDX-License-Identifier: Apache-2.0
"""Opens onnxruntime sessions that leave no core busy, and times their runs: shuffled rounds, medians, their spread.

It imports numpy and onnxruntime alone: a process that loads it to measure one file holds little else.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

WARM_UP_SECONDS, MAX_WARM_UPS = 0.005, 20  # what ran before has filled the caches: bring this one's weights back
UNDISTURBED_SHARE = 0.95  # processor time over passed time of a run that had its core to itself
MIN_UNDISTURBED, MAX_ROUNDS_FACTOR = 3, 3
DISTURBED_LIMIT = 0.2


def quiet_options(threads: int, *, spin: bool = False) -> onnxruntime.SessionOptions:
    """Options of a session whose fixed number of threads leaves no core busy after a run.

    Args:
        threads: Threads within an operator; 0: as many as onnxruntime thinks best.
        spin: Whether they spin instead of sleeping between operators' work while a run lasts.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # graphs of other formats are not checked
    options.log_severity_level = 4  # what fails is raised, and said once
    return options


def open_session(graph: bytes | Path, threads: int, *, trace: Path | None = None) -> onnxruntime.InferenceSession:
    """A session on one graph, as `EDViTRuntime` opens it.

    Args:
        graph: The model, or its file.
        threads: Threads within an operator.
        trace: Start of the name of the file to which onnxruntime writes the time of every kernel; None: no trace,
            which is faster.
    """
    options = quiet_options(threads)
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    source = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def random_feed(
    session: onnxruntime.InferenceSession, *, sizes: Mapping[str, int] | None = None, vocabulary: int = 2, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs of a session: full-length texts, all sub-models present, pixels of every level.

    Args:
        session: On the graph.
        sizes: Axis name -> size, for every axis that the graph leaves open; None: 1 each.
        vocabulary: Token ids lie below it.
        seed: Of the values.
    """
    generator = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {}
    for entry in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 if sizes is None else sizes[size] for size in entry.shape]
        if entry.name in ("mask", "attention_mask"):
            feed[entry.name] = np.ones(shape, np.float32 if entry.type == "tensor(float)" else np.int64)
        elif entry.type == "tensor(int64)":
            feed[entry.name] = generator.integers(0, vocabulary, shape)
        elif entry.type == "tensor(uint8)":
            feed[entry.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            values = generator.standard_normal(shape, dtype=np.float32)
            feed[entry.name] = values.astype(np.float16) if entry.type == "tensor(float16)" else values
    return feed


@dataclass(frozen=True)
class TimedRun:
    """One timed run."""

    milliseconds: float
    own_milliseconds: float  # of the processor, spent in this thread
    is_disturbed: bool  # another program had this thread's core for part of the time


@dataclass
class TimedRuns:
    """Timed runs of one session."""

    runs: list[TimedRun] = field(default_factory=list)

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


def warm_up(
    session: onnxruntime.InferenceSession,
    feed: Mapping[str, np.ndarray],
    *,
    at_least: int = 1,
    seconds: float = WARM_UP_SECONDS,
    at_most: int = MAX_WARM_UPS,
) -> None:
    """Run a session a few times: `at_least` so often, and more of a model that takes no time."""
    begin = time.perf_counter()
    for count in range(1, at_most + 1):
        session.run(None, feed)
        if count >= at_least and time.perf_counter() - begin > seconds:
            break


def timed_run(session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray], *, threads: int = 1) -> TimedRun:
    """One timed run, and whether it was disturbed.

    On one thread the run is this thread's own, so that processor time short of the time that passed tells of other
    programs. On several threads nothing tells, and no run counts as disturbed.
    """
    begin, begin_own = time.perf_counter(), time.thread_time()
    session.run(None, feed)
    own, passed = time.thread_time() - begin_own, time.perf_counter() - begin
    return TimedRun(1e3 * passed, 1e3 * own, threads == 1 and own < UNDISTURBED_SHARE * passed)


def time_rounds(
    sessions: Sequence[onnxruntime.InferenceSession],
    *,
    rounds: int,
    threads: int = 1,
    seed: int = 0,
    after_each: Callable[[], None] = lambda: None,
) -> list[TimedRuns]:
    """Time every session `rounds` times, once per round in an order that is shuffled anew.

    A slow spell of the machine so falls on all of them and not on one. A disturbed run is repeated in a later
    round, of which there are at most `MAX_ROUNDS_FACTOR` times as many.
    """
    feeds = [random_feed(session) for session in sessions]
    samples = [TimedRuns() for _ in sessions]
    shuffler = random.Random(seed)
    for _ in range(MAX_ROUNDS_FACTOR * rounds):
        order = [index for index, one in enumerate(samples) if len(one.undisturbed) < rounds]
        shuffler.shuffle(order)
        for index in order:
            warm_up(sessions[index], feeds[index])
            samples[index].runs.append(timed_run(sessions[index], feeds[index], threads=threads))
            if not samples[index].runs[-1].is_disturbed:
                after_each()
    return samples


def disturbance(what: str, share: float) -> str | None:
    """What to warn of after timing `what`, if other programs disturbed more than a fifth of its runs; else None."""
    if share <= DISTURBED_LIMIT:
        return None
    return (
        f"{what}: other programs had the core in {100 * share:.0f} % of the timed runs; their waiting is left out, but "
        "shared caches make latencies too long. Measure again when nothing else runs."
    )


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and smallest of the samples in ms, and their number."""
    quarters = np.quantile(samples, (0.25, 0.5, 0.75)).tolist()
    row = {"median_ms": quarters[1], "lower_ms": quarters[0], "upper_ms": quarters[2], "min_ms": min(samples)}
    return {**{name: round(value, 4) for name, value in row.items()}, "repeats": len(samples)}
