# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: as JSON, as a table, as a figure, and as latencies in the ensemble's manifest.

The figure's colours are those of Okabe and Ito (readable with every form of colour blindness) and never the only mark.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edvit_hf.bench.selection import FUSION, UntimedFile
from edvit_hf.errors import ManifestError, named_extra
from edvit_hf.manifest import Manifest, Variant
from edvit_hf.manifest.document import joined_protocols, protocol_numbers, renumbered
from edvit_hf.storage import MIB, held_folder, write_figure
from edvit_hf.terminal import PlainTable, new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTION_WIDTH = 110
_INK, _GRID = "#222222", "#d9d9d9"
_STYLES = {"fp32": ("#0072B2", "o"), "fp16": ("#009E73", "s"), "int8": ("#D55E00", "^")}
_LOG_FROM = 20.0  # slowest over fastest file from which the axis is logarithmic
_SAVED = ("median", "p90", "min", "max", "runs", "load_ms", "peak_memory_mib")


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """What was measured of one file. Milliseconds of one call, on a batch of the report's size."""

    owner: str  # "sub-model 3", "fusion head" or "whole ensemble"
    name: str  # of the variant
    file: str
    precision: str
    bytes: int
    inputs: dict[str, list[int]]  # name -> shape
    median: float  # of the processes' medians
    p90: float  # of all runs
    min: float  # of the processes' medians
    max: float
    repeats_ms: list[float]  # each process's median
    runs: int  # counted, in all processes
    disturbed_share: float  # of the runs
    load_ms: float  # opening the file, median over the processes
    peak_memory_mib: float | None  # median over the processes; null where the system does not tell
    idle_memory_mib: float | None  # of the same processes before they opened the file

    @property
    def label(self) -> str:
        """Label that is unique in a report."""
        return f"{self.owner}, {self.name}"


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All files of an ensemble on one machine."""

    ensemble: str
    content_hash: str
    protocol: dict[str, Any]
    rows: list[BenchRow]
    left_out: list[UntimedFile]
    beside: list[BenchRow] = field(default_factory=list)  # of files that are not the ensemble's

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"schema_version": 1, **asdict(self)}


def bench_table(report: BenchReport) -> PlainTable:
    """Every file with its latency, spread, load time and memory; below, sums over sub-models and what was left out."""
    protocol = report.protocol
    machine, batch, threads = protocol["environment"]["machine"], protocol["batch"], protocol["threads"]
    words = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}, {protocol['repeats']} fresh processes each"
    figures = ("MiB", "median ms", "p90", "min to max of medians", "load ms", "peak MiB (idle)")
    table = new_table(
        ("", "variant", *(f">{name}" for name in figures)),
        title=f"{report.ensemble[:16]} on {machine['cpu']} ({protocol['isa'] or 'unknown instruction set'}): {words}",
        caption=_caption(report),
    )
    for row in [*report.rows, *report.beside]:
        memory = "" if row.peak_memory_mib is None else f"{row.peak_memory_mib:.0f} ({row.idle_memory_mib:.0f})"
        times = (f"{row.median:.3f}", f"{row.p90:.3f}", f"{row.min:.3f} to {row.max:.3f}", f"{row.load_ms:.1f}")
        table.add_row(row.owner, row.name, f"{row.bytes / MIB:.2f}", *times, memory)
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


def save_bench_figure(report: BenchReport, path: Path) -> Path:
    """Write the figure as PNG, by write-then-rename.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    return write_figure(path, draw_bench(report))


def check_drawing() -> None:
    """Refuse a figure that could not be drawn, before anything is measured for it.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with named_extra("Drawing a benchmark", "train"):
        import matplotlib.figure  # noqa: F401


def draw_bench(report: BenchReport) -> "Figure":
    """One line per file: a bar to the median, a dot for the median of each process, a tick at p90."""
    check_drawing()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    rows = report.rows
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    lowest = min(row.min for row in rows)
    is_log = max(row.median for row in rows) > _LOG_FROM * lowest
    seen: set[str] = set()
    for place, row in enumerate(rows):
        colour, marker = _STYLES[row.precision]
        label = None if row.precision in seen else row.precision
        seen.add(row.precision)
        start = lowest / 2 if is_log else 0.0
        axes.plot([start, row.median], [place, place], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
        axes.scatter(row.repeats_ms, [place] * len(row.repeats_ms), color=colour, marker=marker, s=22, label=label)
        axes.scatter([row.p90], [place], color=_INK, marker="|", s=60, label="p90" if place == 0 else None)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log" if is_log else "linear")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(left=lowest / 2 if is_log else 0.0)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=_INK, length=0, labelsize=8)
    protocol = report.protocol
    words = f"ms per call, batch {protocol['batch']}, {protocol['threads']} thread(s), {protocol['engine']}"
    axes.set_xlabel(words + (", logarithmic" if is_log else ""), fontsize=9, color=_INK)
    cpu = protocol["environment"]["machine"]["cpu"]
    figure.suptitle(f"{cpu} ({protocol['isa']}): each dot one fresh process, bars to the median", fontsize=10)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)
    return figure


def save_latencies(report: BenchReport, root: Path | str) -> Manifest:
    """Write the figures of a report into the manifest of the ensemble it was measured on, whole or not at all.

    `latency_ms` of every measured file then holds the figures (ms of one call) and the number of their protocol, and
    replaces what was there: one machine's, the last that was asked. Files that were not measured keep what they have.
    A protocol stands once in the manifest, which every device fetches, and goes when no figure is of it any more. The
    content hash is over other files and stays.

    Raises:
        ManifestError: If the folder holds another ensemble by now, or a measured file has been exported anew.
    """
    root = Path(root)
    Manifest.load(root)
    with held_folder(root):  # what another process changes meanwhile is read first
        changed = _with_report(report, Manifest.load(root), root)
        changed.save(root)
    return changed


def _with_report(report: BenchReport, manifest: Manifest, root: Path) -> Manifest:
    rows = {row.file: row for row in report.rows}
    files = {variant.file: variant for variant in manifest.variants}
    stale = [f for f, row in rows.items() if f not in files or files[f].bytes != row.bytes]
    if manifest.ensemble.content_hash != report.content_hash or stale:
        raise ManifestError(
            f"Expected the ensemble that was measured, got another one in {root}"
            f"{f' (changed: {stale[0]})' if stale else ''}. The figures would be of other files. Measure again."
        )
    used = protocol_numbers(v for v in manifest.variants if v.file not in rows)
    kept = [manifest.latency_protocols[number] for number in used]
    protocols, added = joined_protocols(kept, [dict(report.protocol)])
    numbers = {old: position for position, old in enumerate(used)}

    def with_latency(variants: list[Variant]) -> list[Variant]:
        return [
            _with_latency(v, rows[v.file], report, added[0]) if v.file in rows else renumbered(v, numbers)
            for v in variants
        ]

    return replace(
        manifest,
        latency_protocols=protocols,
        sub_models=[replace(entry, variants=with_latency(entry.variants)) for entry in manifest.sub_models],
        fusion=replace(manifest.fusion, variants=with_latency(manifest.fusion.variants)),
        whole=with_latency(manifest.whole),
    )


def _with_latency(variant: Variant, row: BenchRow, report: BenchReport, protocol: int) -> Variant:
    figures = {name: getattr(row, name) for name in _SAVED}
    measured = {**figures, "profile": report.protocol["profile"], "protocol": protocol}
    return replace(variant, latency_ms=measured, latency_note=None)
