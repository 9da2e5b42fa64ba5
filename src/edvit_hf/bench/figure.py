# SPDX-License-Identifier: Apache-2.0
"""A benchmark as a figure: one line per file, every process a dot.

Colours are those of Okabe and Ito (readable with every form of colour blindness) and never the only mark.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from edvit_hf.bench.measure import BenchReport
from edvit_hf.errors import named_extra
from edvit_hf.storage import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _GRID = "#222222", "#d9d9d9"
_STYLES = {"fp32": ("#0072B2", "o"), "fp16": ("#009E73", "s"), "int8": ("#D55E00", "^")}
_LOG_FROM = 20.0  # slowest over fastest file from which the axis is logarithmic


def save_bench_figure(report: BenchReport, path: Path) -> Path:
    """Write the figure as PNG, by write-then-rename.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    return write_figure(path, draw_bench(report))


def draw_bench(report: BenchReport) -> "Figure":
    """One line per file: a bar to the median, a dot for the median of each process, a tick at p90."""
    with named_extra("Drawing a benchmark", "train"):
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
    axes.set_xlabel(
        f"ms per call, batch {protocol['batch']}, {protocol['threads']} thread(s), {protocol['engine']}"
        f"{', logarithmic' if is_log else ''}", fontsize=9, color=_INK,
    )  # fmt: skip
    cpu = protocol["environment"]["machine"]["cpu"]
    figure.suptitle(f"{cpu} ({protocol['isa']}): each dot one fresh process, bars to the median", fontsize=10)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)
    return figure
