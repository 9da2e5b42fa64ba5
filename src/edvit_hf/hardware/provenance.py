# SPDX-License-Identifier: Apache-2.0
"""Where a number comes from: machine, versions, commit, date and peak memory, for every results file."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from edvit_hf.hardware.machine import memory_mib, usable_cores

PACKAGES = (
    *("edvit_hf", "torch", "transformers", "huggingface_hub", "datasets", "accelerate", "evaluate", "optimum"),
    *("onnx", "onnxruntime", "numpy", "scikit-learn"),
)


def environment() -> dict[str, Any]:
    """Machine, package versions, commit of the source checkout (None outside one) and date."""
    return {
        "commit": source_commit(),
        "machine": machine(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """Processor name, cores usable by this process, memory in GiB, architecture."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "memory_gib": round(pages / 2**30, 1),
    }


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor (x86: `model name`) or of the board (ARM: `Model`)."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()


def source_commit() -> str | None:
    """Commit of the checkout this package runs from, with `+changes` if files differ; None outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def reset_peak_memory() -> None:
    """Start measuring the peak anew, where the kernel can (Linux); elsewhere the peak stays that of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mib() -> float:
    """Largest resident memory of this process since `reset_peak_memory` (or its start), in MiB."""
    if (found := memory_mib("VmHWM")) is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
