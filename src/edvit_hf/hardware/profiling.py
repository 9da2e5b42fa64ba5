# SPDX-License-Identifier: Apache-2.0
"""`edvit profile`: measure this machine and describe it as a device profile. Needs onnx and onnxruntime, no torch."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import EDViTError, named_extra
from edvit_hf.hardware.latency import fit, fit_quality, total_ms
from edvit_hf.hardware.machine import check_repeats, check_threads, detect_profile, usable_cores
from edvit_hf.hardware.profiles import DeviceProfile, load_profiles
from edvit_hf.hardware.profiling_graphs import encoder_graph, matmul_graph, shapes_to_measure
from edvit_hf.hardware.provenance import environment
from edvit_hf.hardware.timing import disturbance, open_session, summary, time_rounds
from edvit_hf.storage import MIB
from edvit_hf.strict import is_finite
from edvit_hf.terminal import progress_bar

logger = logging.getLogger(__name__)

REPEATS, QUICK_REPEATS = 15, 7
_MATMUL_SIZE, _QUICK_MATMUL_SIZE = 1024, 512
_SOURCES = {
    "memory_mib": "measured: physical memory as the operating system reports it",
    "cores": "measured: cores that this process may use",
}
_MATMUL_SOURCE = "measured: fp32 MatMul, {size} x {size} twice, onnxruntime, {threads} threads"
_METHOD = (
    "onnxruntime fp32, one input; median over shuffled rounds, each sample after uncounted ones; on one thread samples "
    "in which another program had the core are taken again, or else counted by processor time; non-negative least "
    "squares on relative errors, coefficients in ms per unit of each feature"
)


@dataclass(frozen=True)
class _Fit:
    """The latency model, fitted on one number of threads."""

    coefficients: dict[str, float]
    quality: dict[str, Any]
    rows: list[dict[str, Any]]


def profile_machine(
    name: str,
    *,
    threads: int | None = None,
    repeats: int | None = None,
    quick: bool = False,
    shapes: Sequence[ModelShape] | None = None,
    watts: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DeviceProfile:
    """Time a handful of encoders and one large product here, and fit the latency model to them.

    Args:
        name: Of the profile.
        threads: Threads of the measurement beside the one on a single thread; default: all usable cores.
        repeats: Timed runs of every encoder, one per shuffled round; default 15, quick 7.
        quick: Fewer and smaller measurements: seconds instead of a minute, and a coarser model.
        shapes: Encoders to measure instead of `shapes_to_measure`.
        watts: Its power while it computes, from a meter; default: the published figure of a board that is recognised.
        seed: Of weights, inputs and orders.
        progress: Whether to draw a bar on standard error.

    Raises:
        EDViTError: If `threads` or `repeats` is below 1, `name` is empty, or `watts` is not positive.
        MissingExtraError: If onnx is not installed.
    """
    usable = usable_cores()
    threads = usable if threads is None else threads
    repeats = (QUICK_REPEATS if quick else REPEATS) if repeats is None else repeats
    _check(name, threads, repeats, watts)
    with named_extra("Profiling a machine", "profile"):
        import onnx  # noqa: F401  (before any work; the graphs are built with it)
    chosen = list(shapes_to_measure(quick=quick) if shapes is None else shapes)
    thread_counts = (1, threads) if threads > 1 else (1,)
    size = _QUICK_MATMUL_SIZE if quick else _MATMUL_SIZE
    with progress_bar(is_shown=progress) as bar:
        task = bar.add_task("profile", total=(len(thread_counts) * len(chosen) + 1) * repeats)

        def advance() -> None:
            bar.update(task, advance=1, refresh=True)  # between runs: a bar that redraws itself would disturb them

        fits = [_fitted(chosen, count, repeats, seed, advance) for count in thread_counts]
        gflops = _matmul_gflops(size, threads, repeats, seed, advance)
    kind = load_profiles()[detect_profile()]
    power, source = _power(watts, kind)
    return DeviceProfile(
        name=name,
        isa=kind.isa,
        quantization=kind.quantization,
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB,
        cores=usable,
        sustained_gflops=gflops,
        watts=power,
        sources={**_SOURCES, "watts": source, "sustained_gflops": _MATMUL_SOURCE.format(size=size, threads=threads)},
        latency=fits[0].coefficients,
        latency_all_cores=fits[1].coefficients if len(fits) > 1 else None,
        provenance={
            "kind": kind.name,
            **environment(),
            "method": _METHOD,
            **{"repeats": repeats, "quick": quick, "seed": seed},
            "fits": [
                {"threads": count, **one.quality, "measurements": one.rows}
                for count, one in zip(thread_counts, fits, strict=True)
            ],
        },
    )


def _power(given: float | None, kind: DeviceProfile) -> tuple[float | None, str]:
    """Watts and where they come from."""
    if given is not None:
        return given, "given by the user"
    if kind.watts is not None:
        return kind.watts, f"published, of the profile {kind.name}: {kind.sources['watts']}"
    return None, "null: not measured; this machine has no power meter"


def _check(name: str, threads: int, repeats: int, watts: float | None) -> None:
    if not name:
        raise EDViTError("Expected a name for the profile, got an empty one. Fleets name devices by it. Pass `--name`.")
    check_threads(threads)
    check_repeats(repeats, "it is the number of timed runs of every encoder; 5 or more")
    if watts is not None and not (is_finite(watts) and watts > 0):
        raise EDViTError(
            f"`watts` must be a positive number, got {watts}. Energy budgets are watts times milliseconds. Give what a "
            f"meter showed while the device computed, or leave it out."
        )


def _fitted(
    shapes: Sequence[ModelShape], threads: int, repeats: int, seed: int, after_each: Callable[[], None]
) -> _Fit:
    """Measure every shape on so many threads and fit the latency model."""
    graphs = (encoder_graph(shape, seed=seed) for shape in shapes)
    sessions = [open_session(graph.SerializeToString(), threads) for graph in graphs]
    samples = time_rounds(sessions, rounds=repeats, threads=threads, seed=seed, after_each=after_each)
    results = [summary(one.milliseconds) for one in samples]
    disturbed = sum(one.disturbed_share for one in samples) / len(samples)
    if (warning := disturbance("profile", disturbed)) is not None:
        logger.warning(warning)
    medians = [result["median_ms"] for result in results]
    coefficients = {key: float(f"{value:.6g}") for key, value in fit(shapes, medians).items()}
    rows = []
    for shape, result in zip(shapes, results, strict=True):
        w = shape.widths
        sizes = {"residual": w.residual, "heads": w.heads, "head_dim": w.head_dim, "ffn": w.ffn, "layers": w.layers}
        predicted = round(total_ms(shape, coefficients), 4)
        rows.append({**sizes, "tokens": shape.tokens, "macs": shape.macs, **result, "predicted_ms": predicted})
    quality = {**fit_quality(shapes, medians), "disturbed_share": round(disturbed, 4)}
    return _Fit(coefficients, quality, rows)


def _matmul_gflops(size: int, threads: int, repeats: int, seed: int, after_each: Callable[[], None]) -> float:
    """GFLOP/s of one large product, two operations per multiply-accumulate."""
    session = open_session(matmul_graph(size, seed=seed).SerializeToString(), threads)
    samples = time_rounds([session], rounds=repeats, threads=threads, seed=seed, after_each=after_each)[0]
    return round(2 * size**3 / summary(samples.milliseconds)["median_ms"] / 1e6, 2)
