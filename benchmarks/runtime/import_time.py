# SPDX-License-Identifier: Apache-2.0
"""Measure how long `import edvit_hf`, `edvit_hf.runtime` and `edvit_hf.auto` take in a fresh interpreter.

    python benchmarks/runtime/import_time.py

Writes `benchmarks/results/import_time.json`: median and range in seconds over fresh processes, interpreter start
subtracted by measuring inside the process.
"""

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, fresh, write_results

REPEATS = 10
CODE = "import time; begin = time.perf_counter(); import {module}; print(time.perf_counter() - begin)"


def main() -> None:
    """Measure in turn and write the results."""
    arguments = command_line(__doc__)[1]()
    modules = ("edvit_hf", "edvit_hf.runtime", "edvit_hf.auto")
    samples: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(REPEATS):
        for module in modules:
            samples[module].append(float(fresh(CODE.format(module=module))))
    rows = {
        module: {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": REPEATS}
        for module, values in samples.items()
    }
    write_results(__file__, arguments, {"seconds": rows})
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
