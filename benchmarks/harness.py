# SPDX-License-Identifier: Apache-2.0
"""Give benchmarks what they share: a command line, a results file, provenance, cells done once, fresh processes.

A script puts this folder on the path and imports from here; this file is not run by itself.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edvit_hf.hardware.provenance import environment
from edvit_hf.storage import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SPLITS = ("validation", "test")
for folder in ("tests", "space_app"):  # doubles of tests/support, and what the Space answers with
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))


def sizes_of(width: int, *, heads: int, layers: int, ffn: int | None = None, **image: int) -> dict[str, int]:
    """The sizes of a ViT as its config names them; the FFN is four times as wide as the model unless given."""
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": layers}
    return {**sizes, "intermediate_size": ffn or 4 * width, **image}


BASE = sizes_of(768, heads=12, layers=12)
TINY = sizes_of(96, heads=12, layers=2, ffn=192)


def command_line(doc: str | None) -> tuple[Callable[..., argparse.Action], Callable[[], argparse.Namespace]]:
    """What adds an option to a command line that a script's docstring describes, and what reads it."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=RESULTS, help="default: benchmarks/results")
    return parser.add_argument, parser.parse_args


def command(
    script: str, options: argparse.Namespace | Mapping[str, Any], *names: str, places: str = "", **instead: Any
) -> str:
    """The command that makes a results file again.

    Args:
        script: `__file__` of the script.
        options: Holds the values.
        names: Options that are named, in this order; those that are None, False or an empty list are left out.
        places: What comes first, such as words that stand for the reader's own folders.
        **instead: Values to write in place of those in `options`.
    """
    values = {**(options if isinstance(options, Mapping) else vars(options)), **instead}
    words = ["python", Path(script).resolve().relative_to(ROOT).as_posix(), *places.split()]
    for name in names:
        value = values[name]
        if value is None or value is False or value == []:
            continue
        given = value if isinstance(value, list | tuple) else [] if value is True else [value]
        words += [f"--{name.replace('_', '-')}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in given)]
    return " ".join(words)


def write_results(
    script: str,
    arguments: argparse.Namespace,
    content: Mapping[str, Any],
    *names: str,
    name: str | None = None,
    version: int = 1,
    **instead: Any,
) -> None:
    """Write a results file with its command, machine, versions, commit and date; whole or not at all.

    Args:
        script: `__file__` of the script.
        arguments: The command line; the file goes into its `results_dir`.
        content: What was found.
        names: Options that the command names.
        name: Of the file, without .json; default: that of the script.
        version: Of the file's schema.
        **instead: Values to write in place of those in `arguments`, and `places`: as `command` takes them.
    """
    arguments.results_dir.mkdir(parents=True, exist_ok=True)
    path = arguments.results_dir / f"{name or Path(script).stem}.json"
    made_by = command(script, arguments, *names, **instead)
    write_json(path, {"schema_version": version, "command": made_by, "environment": environment(), **content})
    print(f"written: {path}")


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What the file of a cell holds; made and written first if it is missing, so that a benchmark goes on."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return read_json(path)


def judged(found: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Every figure with the limit that it must not pass."""
    return {name: {"at_most": limits[name], "found": v, "reached": v <= limits[name]} for name, v in found.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def fresh(code: str, *arguments: Any, env: Mapping[str, str] | None = None, **options: Any) -> str:
    """What `code` prints in a process of its own; `env` replaces the environment."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env, **options)
    return done.stdout.strip()


def threads(count: int) -> dict[str, str]:
    """The environment of a process whose libraries use so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "EDVIT_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(count))}


def memory_mib(process_id: int) -> dict[str, float]:
    """Resident memory of a process, now and at most."""
    lines = Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")}
    return {"resident": found["VmRSS"], "peak": found["VmHWM"]}
