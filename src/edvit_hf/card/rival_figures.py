# SPDX-License-Identifier: Apache-2.0
"""Figures of the rivals: what every row answers with devices absent, and how much of the gap it recovers.

Of results that do not state them nothing is drawn.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edvit_hf.card.canvas import INK, canvas, legend_below, style_of, title
from edvit_hf.card.rows import LARGE, REPLICAS
from edvit_hf.card.sources import figure_source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_of_rivals(results: Mapping[str, Any]) -> "Figure | None":
    """Accuracy of every row with 0, 1 and 2 devices absent; what answers only when it is there, as a dashed line."""
    rows = [row for row in results["rows"] if row.get("absent")]
    last = max((entry["num_absent"] for row in rows for entry in row["absent"]), default=0)
    if last == 0:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, axes = canvas(7.2, 4.6)
    for row in rows:
        name, entries = str(row.get("name", "unnamed")), row["absent"]
        colour, marker = style_of(name)
        heights = [100 * entry["accuracy"] for entry in entries]
        if len(entries) == 1:
            axes.plot([0, last], heights * 2, color=colour, linestyle="--", linewidth=1.2, zorder=1)
            axes.scatter(0, heights[0], color=colour, marker=marker, s=52, label=name, zorder=3)
            continue
        places = [entry["num_absent"] for entry in entries]
        width = 2.4 if row.get("kind") == "ensemble" else 1.4
        axes.plot(places, heights, color=colour, marker=marker, linewidth=width, markersize=7, label=name, zorder=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.set_xlabel("devices absent (mean over the measured subsets)")
    axes.set_ylabel("accuracy on the test split, %")
    title(
        axes,
        "Accuracy with devices absent",
        "Dashed: on one machine, which must be there. Axis does not begin at zero.",
    )
    legend_below(figure, figure_source(results))
    return figure


def gap_recovered(results: Mapping[str, Any]) -> "Figure | None":
    """How much of the gap between the small and the large plain model every other row recovers, in per cent."""
    gap = results.get("gap") or {}
    shares = {name: share for name, share in (gap.get("share") or {}).items() if name not in (REPLICAS, LARGE)}
    if not shares:
        return None
    figure, axes = canvas(7.2, 1.9 + 0.36 * len(shares))
    names = sorted(shares, key=lambda name: shares[name])
    for place, name in enumerate(names):
        share = 100 * shares[name]
        axes.barh(place, share, color=style_of(name)[0], height=0.62, zorder=2)
        beside, side = (6, "left") if share >= 0 else (-6, "right")
        text = axes.annotate(f"{share:.0f}", (share, place), (beside, 0), textcoords="offset points", color=INK)
        text.set(ha=side, va="center", fontsize=9)
    axes.axvline(0, color=INK, linewidth=1, label=f"plain model of a device's size ({100 * gap['plain']:.1f} %)")
    large = f"plain model of all devices' size ({100 * gap['large']:.1f} %)"
    axes.axvline(100, color="#7f7f7f", linewidth=1.4, linestyle=":", label=large, zorder=3)
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.14)
    axes.set_xlabel("share of the gap recovered with all present, %")
    title(axes, "How much of the gap is recovered", f"The gap is {gap['points']:.1f} points of accuracy.")
    legend_below(figure, figure_source(results))
    return figure
