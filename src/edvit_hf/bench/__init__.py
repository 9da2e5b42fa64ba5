# SPDX-License-Identifier: Apache-2.0
"""Times every exported file of an ensemble on this machine, with onnxruntime and without torch.

Comes in: an ensemble's folder. Goes out: a `BenchReport`, as JSON, table, figure, or latencies in the manifest. The
command line and what compares published ensembles call it.
"""

from edvit_hf.bench.measure import REPEATS, bench_ensemble
from edvit_hf.bench.report import BenchReport, BenchRow, bench_table, check_drawing, save_bench_figure, save_latencies

__all__ = [
    "REPEATS",
    "BenchReport",
    "BenchRow",
    "bench_ensemble",
    "bench_table",
    "check_drawing",
    "save_bench_figure",
    "save_latencies",
]
