# SPDX-License-Identifier: Apache-2.0
"""Code run by a fresh interpreter, where packages may be hidden as if they were not installed."""

import os
import subprocess
import sys
from pathlib import Path

import edvit_hf

SOURCE = Path(edvit_hf.__file__).parents[1]


def run_fresh(code):
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


WITHOUT = """
import sys

class Hidden:
    \"\"\"Finds everything but the hidden packages, so that importing one fails as where it is not installed.\"\"\"

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, *arguments)

    def find_distributions(self, context):
        found = getattr(self.finder, "find_distributions", lambda context: [])(context)
        return (d for d in found if d.name.replace("-", "_") not in HIDDEN)

sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
"""


def run_without(hidden, code):
    return run_fresh(f"HIDDEN = {set(hidden)!r}{WITHOUT}{code}")
