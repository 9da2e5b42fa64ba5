"""What every benchmark shares: where its results go.

A script puts the folder above its own on the path and imports from here; this file is not run by itself.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
for folder in ("tests", "space_app"):  # doubles of tests/support, and what the Space answers with
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))
