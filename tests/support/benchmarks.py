# SPDX-License-Identifier: Apache-2.0
"""Scripts of benchmarks/ as modules, for the tests that run their functions."""

import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def benchmark(name):
    """A script by its folder and name: `benchmark("trips.grid")`."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)
