"""How long `import edvit_hf` and `import edvit_hf.runtime` take in a fresh interpreter.

    python benchmarks/runtime/import_time.py

Writes `benchmarks/results/import_time.json`: median and range in seconds over fresh processes, interpreter start
subtracted by measuring inside the process.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from edvit_hf.hardware.provenance import environment
from edvit_hf.storage import write_json
from harness import RESULTS

REPEATS = 10
CODE = "import time; begin = time.perf_counter(); import {module}; print(time.perf_counter() - begin)"


def seconds(module: str) -> float:
    """One fresh process."""
    command = [sys.executable, "-c", CODE.format(module=module)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    """Measure in turn and write the results."""
    modules = ("edvit_hf", "edvit_hf.runtime", "edvit_hf.auto")
    samples: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(REPEATS):
        for module in modules:
            samples[module].append(seconds(module))
    rows = {
        module: {"median": statistics.median(values), "min": min(values), "max": max(values), "repeats": REPEATS}
        for module, values in samples.items()
    }
    path = RESULTS / "import_time.json"
    write_json(
        path, {"command": "python benchmarks/runtime/import_time.py", "environment": environment(), "seconds": rows}
    )
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
