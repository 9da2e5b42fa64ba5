# SPDX-License-Identifier: Apache-2.0
"""Times the exported files of an ensemble in fresh processes, in rounds whose order is shuffled, and sums up."""

import json
import logging
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from edvit_hf.bench.report import BenchReport, BenchRow
from edvit_hf.bench.selection import Candidate, Hardware, choose, input_sizes, vocabulary_size
from edvit_hf.errors import EDViTError, ManifestError
from edvit_hf.hardware.machine import check_repeats, check_threads
from edvit_hf.hardware.provenance import environment
from edvit_hf.hardware.timing import disturbance
from edvit_hf.manifest import Manifest, Parity, Variant, file_sha256
from edvit_hf.manifest.graphs import verify_graph
from edvit_hf.strict import whole_number
from edvit_hf.terminal import progress_bar

logger = logging.getLogger(__name__)

REPEATS = 5
PROCESS_SECONDS = 900.0  # for one process; more than any file that is worth timing takes
_SCRIPT = Path(__file__).with_name("timed_process.py")
_METHOD = (
    "a fresh process for each file and repeat, all files once a round in shuffled order, warm-up runs not counted; "
    "median, min and max over the processes' medians, p90 over all runs; on one thread, runs in which another program "
    "had the core are repeated; memory is the process's largest resident set, Python and onnxruntime included"
)


def bench_ensemble(
    root: Path | str,
    *,
    sub_models: Sequence[int] | None = None,
    precisions: Sequence[str] | None = None,
    threads: int = 1,
    repeats: int = REPEATS,
    batch: int = 1,
    tokens: int | None = None,
    seed: int = 0,
    command: str | None = None,
    beside: Mapping[str, Path] | None = None,
    progress: bool = True,
) -> BenchReport:
    """Time every exported file of an ensemble that is made for this machine. Changes nothing in the folder.

    Args:
        root: A folder with `manifest.json`.
        sub_models: Only these, without fusion head and whole graphs; default: everything.
        precisions: Only these of "fp32", "fp16", "int8"; default: all.
        threads: Of onnxruntime, within an operator.
        repeats: Fresh processes for each file.
        batch: Inputs per call.
        tokens: Of a text; default: as many as the model reads, but at most 128.
        seed: Of the order and of the made-up inputs.
        command: Recorded as what reproduces the figures.
        beside: Further fp32 graphs with the same inputs, by name, timed in the same rounds.
        progress: Whether to draw a bar on standard error.

    Raises:
        ManifestError: If there is no manifest, it is damaged, a file is missing or altered, or cannot be run.
        DataError: If the processor's files are damaged, or no text may have so many `tokens`.
        EDViTError: If a number is out of its range or nothing is left to be timed.
    """
    root = Path(root)
    check_threads(threads)
    _check_numbers(repeats, batch, tokens)
    manifest, hardware = Manifest.load(root), Hardware.here()
    own, left_out = choose(manifest, hardware, sub_models=sub_models, precisions=precisions, root=root)
    for one in own:
        verify_graph(root, one.variant)
    candidates = [*own, *(_beside(name, path) for name, path in (beside or {}).items())]
    sizes = input_sizes(root, manifest, batch=batch, tokens=tokens)
    asked = {"threads": threads, "sizes": sizes, "vocabulary": vocabulary_size(root), "seed": seed}
    with progress_bar(is_shown=progress) as bar:
        task = bar.add_task("bench", total=repeats * len(candidates))

        def advance(label: str) -> None:
            bar.update(task, advance=1, description=label, refresh=True)  # between processes: it must not disturb them

        results = _run_rounds(root, candidates, asked, repeats, advance)
    rows = [_row(one, found) for one, found in zip(candidates, results, strict=True)]
    if (warning := disturbance("bench", statistics.mean(row.disturbed_share for row in rows))) is not None:
        logger.warning(warning)
    protocol = {
        "engine": f"onnxruntime {onnxruntime.__version__}",
        **{"threads": threads, "batch": batch, "repeats": repeats, "seed": seed},
        **({"tokens": sizes["sequence"]} if "sequence" in sizes else {}),
        **{"profile": hardware.profile, "isa": hardware.isa, "method": _METHOD, "command": command},
        "environment": environment(),
    }
    entry = manifest.ensemble
    return BenchReport(
        ensemble=entry.id,
        content_hash=entry.content_hash,
        protocol=protocol,
        rows=rows[: len(own)],
        left_out=left_out,
        beside=rows[len(own) :],
    )


def _beside(name: str, path: Path) -> Candidate:
    nothing = Parity(max_abs=0.0, relative_to_largest_logit=0.0, argmax_agreement=1.0, num_items=1)
    variant = Variant(
        file=path.name,
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        precision="fp32",
        opset=20,
        parity=nothing,
        accuracy_note="only its time counts",
        latency_note="being measured",
    )
    return Candidate(name, variant, path)


def _check_numbers(repeats: int, batch: int, tokens: int | None) -> None:
    why = f"it is the number of fresh processes per file; {REPEATS} or more give a median that no slow spell moves"
    check_repeats(repeats, why)
    whole_number("batch", batch, 1, "it is the number of inputs per call", EDViTError)
    if tokens is not None:
        whole_number("tokens", tokens, 1, "it is the length of a text", EDViTError)


def _run_rounds(
    root: Path, candidates: Sequence[Candidate], asked: dict[str, Any], repeats: int, after_each: Callable[[str], None]
) -> list[list[dict[str, Any]]]:
    """What each process found, by candidate. Every file once a round: a slow spell falls on all of them."""
    shuffler, order = random.Random(asked["seed"]), list(range(len(candidates)))
    results: list[list[dict[str, Any]]] = [[] for _ in candidates]
    for _ in range(repeats):
        shuffler.shuffle(order)
        for index in order:
            results[index].append(_run_process(root, candidates[index], asked))
            after_each(candidates[index].label)
    return results


def _run_process(root: Path, candidate: Candidate, asked: dict[str, Any]) -> dict[str, Any]:
    """Time one file in a process of its own, which ends with this one if that is interrupted."""
    file = candidate.variant.file
    arguments = json.dumps({**asked, "file": str(candidate.path or root / file)})
    # -P: modules beside the script must not shadow others of their name.
    command = [sys.executable, "-P", str(_SCRIPT), arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ManifestError(
            f"{file}: expected a graph that is opened and timed within {PROCESS_SECONDS:.0f} s, got one that is still "
            "at it. It computes without end, or this machine is far too slow for it. Fetch or export the ensemble "
            "again, or measure on a faster machine."
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ManifestError(
            f"{file} has the promised hash, but onnxruntime {onnxruntime.__version__} cannot run it: "
            f"{lines[-1] if lines else f'its process ended with {done.returncode}'}. It has no latency here. Upgrade "
            f"onnxruntime, or export again with a lower opset (this file: {candidate.variant.opset})."
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _row(candidate: Candidate, found: Sequence[dict[str, Any]]) -> BenchRow:
    """Sum up the processes of one file."""
    variant = candidate.variant
    medians = [statistics.median(one["runs_ms"]) for one in found]
    runs = [value for one in found for value in one["runs_ms"]]

    def middle(key: str) -> float | None:
        values = [one[key] for one in found]
        return None if None in values else round(statistics.median(values), 3)

    return BenchRow(
        owner=candidate.owner,
        name=variant.name,
        file=variant.file,
        precision=variant.precision,
        bytes=variant.bytes,
        inputs=found[0]["inputs"],
        median=round(statistics.median(medians), 4),
        p90=round(statistics.quantiles(runs, n=10, method="inclusive")[-1], 4),
        min=round(min(medians), 4),
        max=round(max(medians), 4),
        repeats_ms=[round(value, 4) for value in medians],
        runs=len(runs),
        disturbed_share=round(sum(one["disturbed"] for one in found) / sum(one["num_runs"] for one in found), 4),
        load_ms=middle("load_ms") or 0.0,
        peak_memory_mib=middle("peak_memory_mib"),
        idle_memory_mib=middle("idle_memory_mib"),
    )
