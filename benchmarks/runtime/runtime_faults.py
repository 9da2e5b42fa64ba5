# SPDX-License-Identifier: Apache-2.0
"""Run the coordinator over devices that lose, hang, repeat, damage and outdate answers, and check every answer.

    python benchmarks/runtime/runtime_faults.py

Three parts, over `FaultyEngine` with seeded faults and a real fusion head:
* simulated: 10,000 requests under an injected clock; each must be answered or refused by its deadline.
* real: as many on the machine's clock, several callers at once; the 99.9th percentile must stay within 10 ms of the
  deadline.
* breaker: with one sub-model hung, what a degraded answer costs once its breaker is open, against the slowest live one.
In all of them every answer is checked: only features of the right version, finite, and of this request's own
sub-model may have been fused, and the probabilities must be those that they give. Writes results/runtime_faults.json.
"""

import argparse
import dataclasses
import json
import logging
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.errors import OverloadedError, QuorumError
from edvit_hf.hardware.timing import open_session
from edvit_hf.manifest import (
    ContentFile,
    EnsembleEntry,
    FusionEntry,
    Manifest,
    Parity,
    SubModelEntry,
    Variant,
    hash_of_content,
)
from edvit_hf.runtime import Clock, Coordinator, CoordinatorConfig, Gathered, MonotonicClock, SubModelRequest
from edvit_hf.runtime.answers import Fusion
from support.drills import Faults, FaultyEngine, SimulatedClock, StubEngine

NUM_SUB_MODELS, CLASSES_EACH, FEATURES = 5, 2, 16
INPUTS = {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}
LATENCY_MS = 2.0
RETRY_S = 0.01
ALLOWED_BEYOND_MS, ALLOWED_RATIO = 10.0, 1.2
SPOILT = {"not_finite": 0.004, "wrong_shape": 0.002, "wrong_scale": 0.002, "stale": 0.004, "swapped": 0.002}
LOST, TWICE = 0.004, 0.05


def toy_manifest(num_sub_models: int = NUM_SUB_MODELS) -> Manifest:
    """Sub-models of two classes; nothing is on disk but what the fusion head needs."""
    parity = Parity(max_abs=0.0, relative_to_largest_logit=0.0, argmax_agreement=1.0, num_items=1)
    content = {"config.json": ContentFile(sha256="0" * 64, bytes=1)}
    groups = [list(range(CLASSES_EACH * i, CLASSES_EACH * (i + 1))) for i in range(num_sub_models)]

    def variant(file: str) -> Variant:
        notes = {"accuracy_note": "toy", "latency_note": "toy"}
        return Variant(file=file, sha256="0" * 64, bytes=1, precision="fp32", opset=20, parity=parity, **notes)

    def sub_model(index: int) -> SubModelEntry:
        path = f"sub_models/{index:02d}"
        files = {"path": path, "variants": [variant(f"{path}/onnx/model.onnx")]}
        statistics_ = {"feature_mean": [0.1 * index] * FEATURES, "feature_std": [1.0] * FEATURES}
        return SubModelEntry(index=index, class_group=groups[index], feature_size=FEATURES, **statistics_, **files)

    return Manifest(
        ensemble=EnsembleEntry(id="toy", task="image-classification", content_hash=hash_of_content(content)),
        label_names=[f"class_{i}" for i in range(num_sub_models * CLASSES_EACH)],
        class_groups=groups,
        preprocessing="preprocessor_config.json",
        sub_models=[sub_model(index) for index in range(num_sub_models)],
        fusion=FusionEntry(variants=[variant("onnx/fusion.onnx")]),
        content=content,
    )


def toy_fusion(manifest: Manifest, seed: int) -> Fusion:
    """A real graph with random weights: features and mask -> logits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows, labels = NUM_SUB_MODELS * (FEATURES + 1), len(manifest.label_names)
    weight = np.random.default_rng(seed).normal(size=(rows, labels)).astype(np.float32)
    joined = helper.make_node("Concat", ["features", "mask"], ["joined"], axis=1)
    product = helper.make_node("MatMul", ["joined", "weight"], ["logits"])

    def values(name: str, size: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])

    inputs = [values("features", NUM_SUB_MODELS * FEATURES), values("mask", NUM_SUB_MODELS)]
    stored = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph([joined, product], "fusion", inputs, [values("logits", labels)], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "fusion.onnx")
        return Fusion(manifest, open_session(Path(folder) / "fusion.onnx", 1))


class Witness:
    """Knows the true features, and fuses: counts answers that hold anything else."""

    def __init__(self, manifest: Manifest, fusion: Fusion) -> None:
        self._manifest, self._fusion = manifest, fusion
        stub = StubEngine(manifest)
        request = SubModelRequest(request_id="", content_hash="", budget_ms=None, inputs=INPUTS)
        self._responses = {i: stub.submit(i, request).result() for i in stub.sub_models}
        self.wrong: Counter[str] = Counter()
        self._lock = threading.Lock()

    def look_at(self, found: Gathered) -> np.ndarray:
        """Fuse as the runtime does, and compare with what should come out."""
        present = [index in found.responses for index in range(NUM_SUB_MODELS)]
        joined = self._fusion.join(found.responses)
        probabilities = self._fusion.probabilities(joined, present)
        expected = self._fusion.probabilities(self._fusion.join(self._responses), present)
        responses = found.responses.values()
        faults = {
            "version": any(r.content_hash != self._manifest.ensemble.content_hash for r in responses),
            "request": any(r.request_id != found.request_id for r in responses),
            "sub-model": any(response.sub_model != index for index, response in found.responses.items()),
            "not finite": not np.isfinite(probabilities).all(),
            "other features": not np.array_equal(probabilities, expected),
        }
        with self._lock:
            self.wrong.update(name for name, is_wrong in faults.items() if is_wrong)
        return probabilities


def fleet(clock: Clock, arguments: argparse.Namespace, manifest: Manifest, in_flight: int) -> tuple[Any, Any]:
    """A coordinator over devices of which each fails in several ways now and then."""
    faults = {}
    for index in range(NUM_SUB_MODELS):
        spoilt = {name: share for place, (name, share) in enumerate(SPOILT.items()) if place % 2 == index % 2}
        faults[index] = Faults(latency_ms=LATENCY_MS, jitter_ms=LATENCY_MS, loss=LOST, duplicate=TWICE, **spoilt)
    engine = FaultyEngine(StubEngine(manifest), clock, faults, seed=arguments.seed)
    probes = {"probe_pause_s": 0.2, "longest_probe_pause_s": 1.0, "probe_timeout_s": 0.2}
    line = {"max_in_flight": in_flight, "max_queued": 4 * in_flight}
    config = CoordinatorConfig(deadline_ms=arguments.deadline_ms, **probes, **line)
    return Coordinator(manifest, engine, config, clock=clock), engine


def hang_now_and_then(engine: FaultyEngine, number: int, total: int) -> None:
    """Every sub-model in turn stops answering for a hundredth of the run, five times over."""
    index, place = divmod(number % (total // 5), max(1, total // (5 * NUM_SUB_MODELS)))
    if index < NUM_SUB_MODELS:
        is_hung = place < total // (20 * NUM_SUB_MODELS)
        engine.faults[index] = dataclasses.replace(engine.faults[index], is_hung=is_hung)


def ask(coordinator: Coordinator, witness: Witness, clock: Clock) -> tuple[str, float]:
    """What became of one request, and after how many ms."""
    begin = clock.now()
    try:
        found = coordinator.gather(INPUTS)
        witness.look_at(found)
        result = "degraded" if found.missing else "whole"
    except QuorumError:
        result = "no quorum"
    except OverloadedError:
        result = "turned away"
    return result, 1e3 * (clock.now() - begin)


def row(
    results: list[tuple[str, float]],
    coordinator: Coordinator,
    engine: FaultyEngine,
    witness: Witness,
    deadline_ms: float,
) -> dict[str, Any]:
    """What a part found."""
    taken = [ms for _, ms in results]
    return {
        "requests": len(results),
        "results": dict(Counter(result for result, _ in results)),
        "p50_ms": round(statistics.median(taken), 3),
        "p99_9_ms": round(float(np.percentile(taken, 99.9)), 3),
        "max_ms": round(max(taken), 3),
        "beyond_deadline": sum(ms > deadline_ms + 1e-6 for ms in taken),
        "faults_done": dict(sorted(engine.done.items())),
        "missing": coordinator.status()["missing"],
        "dropped_messages": coordinator.status()["requests"]["dropped"],
        "wrong_answers": dict(witness.wrong),
    }


def simulated(arguments: argparse.Namespace, manifest: Manifest, fusion: Fusion) -> dict[str, Any]:
    """One caller on a clock that passes only while somebody waits."""
    clock = SimulatedClock()
    coordinator, engine = fleet(clock, arguments, manifest, 1)
    witness, results = Witness(manifest, fusion), []
    for number in range(arguments.requests):
        hang_now_and_then(engine, number, arguments.requests)
        results.append(ask(coordinator, witness, clock))
        clock.advance(0.005)
    return row(results, coordinator, engine, witness, arguments.deadline_ms)


def real(arguments: argparse.Namespace, manifest: Manifest, fusion: Fusion) -> dict[str, Any]:
    """Several callers on the machine's clock."""
    clock = MonotonicClock()
    coordinator, engine = fleet(clock, arguments, manifest, arguments.callers)
    witness = Witness(manifest, fusion)
    counter, lock = iter(range(arguments.requests)), threading.Lock()

    def caller(_: int) -> list[tuple[str, float]]:
        results = []
        while True:
            with lock:
                number = next(counter, None)
                if number is None:
                    return results
                hang_now_and_then(engine, number, arguments.requests)
            results.append(ask(coordinator, witness, clock))
            if results[-1][0] == "no quorum":
                time.sleep(RETRY_S)  # as a caller would: breakers are open, and refusals cost nothing

    with Sleeper(arguments.deadline_ms) as sleeper, ThreadPoolExecutor(arguments.callers) as pool:
        results = [each for found in pool.map(caller, range(arguments.callers)) for each in found]
    found = row(results, coordinator, engine, witness, arguments.deadline_ms)
    return {
        **found,
        "callers": arguments.callers,
        "beyond_deadline_p99_9_ms": round(found["p99_9_ms"] - arguments.deadline_ms, 3),
        "plain_wait_beyond_p99_9_ms": round(float(np.percentile(sleeper.late_ms, 99.9)), 3),
        "plain_waits": len(sleeper.late_ms),
    }


class Sleeper:
    """How late this machine wakes a thread that only waits for the same time: what no coordinator can better."""

    def __init__(self, wait_ms: float) -> None:
        self.late_ms: list[float] = []
        self._wait, self._stop = wait_ms / 1e3, threading.Event()
        self._thread = threading.Thread(target=self._sleep)

    def _sleep(self) -> None:
        while not self._stop.is_set():
            begin = time.monotonic()
            self._stop.wait(self._wait)
            if not self._stop.is_set():
                self.late_ms.append(1e3 * (time.monotonic() - begin - self._wait))

    def __enter__(self) -> "Sleeper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def breaker(arguments: argparse.Namespace, manifest: Manifest, fusion: Fusion) -> dict[str, Any]:
    """Sub-model 0 hangs: cost of answers before and after its breaker opens, in turns with the sound fleet."""
    clock, slowest_ms = MonotonicClock(), 10.0
    sound = {i: Faults(latency_ms=slowest_ms * (i + 1) / NUM_SUB_MODELS) for i in range(NUM_SUB_MODELS)}
    broken = {**sound, 0: Faults(is_hung=True)}
    # The whole pause of a probe lies beyond the measurement: every timed answer meets an open breaker.
    config = CoordinatorConfig(deadline_ms=5 * slowest_ms, probe_pause_s=600, longest_probe_pause_s=600)
    witness = Witness(manifest, fusion)
    fleets = [
        Coordinator(manifest, FaultyEngine(StubEngine(manifest), clock, faults), config, clock=clock)
        for faults in (sound, broken)
    ]
    opening = [ask(fleets[1], witness, clock)[1] for _ in range(2)]
    times: list[list[float]] = [[], []]
    for _ in range(arguments.rounds):
        for place, coordinator in enumerate(fleets):
            begin = time.perf_counter()
            witness.look_at(coordinator.gather(INPUTS))
            times[place].append(1e3 * (time.perf_counter() - begin))
    whole, degraded = (statistics.median(each) for each in times)
    assert fleets[1].status()["breakers"][0] == "open"
    return {
        "slowest_live_ms": slowest_ms,
        "rounds": arguments.rounds,
        "answers_until_open_ms": [round(ms, 2) for ms in opening],
        "whole_median_ms": round(whole, 3),
        "degraded_median_ms": round(degraded, 3),
        "degraded_p95_ms": round(float(np.percentile(times[1], 95)), 3),
        "degraded_over_slowest_live": round(degraded / slowest_ms, 4),
        "degraded_over_whole": round(degraded / whole, 4),
    }


def main() -> None:
    """Run the three parts, judge, write."""
    add, parse = command_line(__doc__)
    add("--requests", type=int, default=10_000, help="in each of the first two parts")
    add("--deadline-ms", type=float, default=25.0)
    add("--callers", type=int, default=4, help="at once, on the machine's clock")
    add("--rounds", type=int, default=300, help="answers timed for the breaker, with and without the hung sub-model")
    add("--seed", type=int, default=0)
    arguments = parse()
    logging.getLogger("edvit_hf").setLevel(logging.ERROR)  # thousands of faults on purpose
    manifest = toy_manifest()
    fusion = toy_fusion(manifest, arguments.seed)
    parts = {part.__name__: part(arguments, manifest, fusion) for part in (simulated, real, breaker)}
    reached = {
        "simulated: all by their deadline": parts["simulated"]["beyond_deadline"] == 0,
        f"real: p99.9 within deadline + {ALLOWED_BEYOND_MS:g} ms": parts["real"]["p99_9_ms"]
        <= arguments.deadline_ms + ALLOWED_BEYOND_MS,
        "nothing wrong was fused": not parts["simulated"]["wrong_answers"] and not parts["real"]["wrong_answers"],
        f"open breaker: at most {ALLOWED_RATIO} times the slowest live": parts["breaker"]["degraded_over_slowest_live"]
        <= ALLOWED_RATIO,
    }
    result = {
        "seed": arguments.seed,
        "what": f"{NUM_SUB_MODELS} stub sub-models of {LATENCY_MS:g} to {2 * LATENCY_MS:g} ms, seeded faults, a real "
        "fusion head on onnxruntime",
        "deadline_ms": arguments.deadline_ms,
        "reached": reached,
        **parts,
    }
    for part in (parts["simulated"], parts["real"]):
        print({key: value for key, value in part.items() if key not in ("missing", "faults_done")})
    print(parts["breaker"])
    print(json.dumps(reached, indent=1))
    write_results(__file__, arguments, result, "requests", "deadline_ms", "callers", "rounds", "seed")


if __name__ == "__main__":
    main()
