# SPDX-License-Identifier: Apache-2.0
"""`edvit bench`: how long every exported file of an ensemble takes on this machine. Needs onnxruntime, no torch."""

from edvit_hf.bench.figure import save_bench_figure
from edvit_hf.bench.measure import REPEATS, BenchReport, BenchRow, bench_ensemble
from edvit_hf.bench.record import save_latencies
from edvit_hf.bench.table import bench_table

__all__ = ["REPEATS", "BenchReport", "BenchRow", "bench_ensemble", "bench_table", "save_bench_figure", "save_latencies"]
