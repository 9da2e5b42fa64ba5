# SPDX-License-Identifier: Apache-2.0
"""A benchmark as a table for the terminal."""

import textwrap
from collections.abc import Sequence

from rich.table import Table

from edvit_hf.bench.measure import BenchReport, BenchRow
from edvit_hf.bench.selection import FUSION
from edvit_hf.storage import MIB

_CAPTION_WIDTH = 110


def bench_table(report: BenchReport) -> Table:
    """Every file with its latency, spread, load time and memory; below, sums over sub-models and what was left out."""
    protocol = report.protocol
    machine, batch, threads = protocol["environment"]["machine"], protocol["batch"], protocol["threads"]
    words = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}, {protocol['repeats']} fresh processes each"
    table = Table(
        title=f"{report.ensemble[:16]} on {machine['cpu']} ({protocol['isa'] or 'unknown instruction set'}): {words}",
        caption="\n".join(_caption(report)),
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("variant")
    for name in ("MiB", "median ms", "p90", "min to max of medians", "load ms", "peak MiB (idle)"):
        table.add_column(name, justify="right")
    for row in [*report.rows, *report.beside]:
        memory = "" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f} ({row.idle_memory_mib:.0f})"
        table.add_row(
            row.owner, row.name, f"{row.bytes / MIB:.2f}", f"{row.median:.3f}", f"{row.p90:.3f}",
            f"{row.min:.3f} to {row.max:.3f}", f"{row.load_ms:.1f}", memory,
        )  # fmt: skip
    return table


def _caption(report: BenchReport) -> list[str]:
    lines = [line for name, rows in _complete(report.rows).items() for line in _sums(name, rows, report.rows)]
    share = max(row.disturbed_share for row in [*report.rows, *report.beside])
    lines.append(f"runs disturbed by other programs: at most {share:.0%} of a file's, their waiting left out")
    by_reason: dict[str, list[str]] = {}
    for one in report.left_out:
        by_reason.setdefault(one.reason, []).append(one.file)
    lines += [f"left out, {reason}: {_listed(files)}" for reason, files in by_reason.items()]
    return [part for line in lines for part in textwrap.wrap(line, _CAPTION_WIDTH)]


def _listed(files: Sequence[str], limit: int = 2) -> str:
    """The first of many names, and how many more there are; `--format json` has all."""
    more = f" and {len(files) - limit} more" if len(files) > limit else ""
    return ", ".join(files[:limit]) + more


def _complete(rows: Sequence[BenchRow]) -> dict[str, list[BenchRow]]:
    """Variant name -> its rows, for the variants that every measured sub-model has."""
    owners = {row.owner for row in rows if row.owner.startswith("sub-model")}
    found: dict[str, list[BenchRow]] = {}
    for row in rows:
        if row.owner in owners:
            found.setdefault(row.name, []).append(row)
    return {name: own for name, own in found.items() if len(own) == len(owners) > 1}


def _sums(name: str, rows: Sequence[BenchRow], all_rows: Sequence[BenchRow]) -> list[str]:
    """The sub-models of one variant in turn and side by side; links between devices are not in it."""
    fusion = next((row.median for row in all_rows if row.owner == FUSION), None)
    if fusion is None:
        return []
    medians = [row.median for row in rows]
    return [
        f"{name}, sums of medians: {len(rows)} sub-models in turn and the fusion head {sum(medians) + fusion:.3f} ms, "
        f"slowest sub-model and the fusion head {max(medians) + fusion:.3f} ms (links not counted)"
    ]
