# SPDX-License-Identifier: Apache-2.0
"""The figures of a model card: accuracy against size and latency, with sub-models absent, per class group.

Colours are those of Okabe and Ito (readable with every form of colour blindness) and never the only mark:
shapes and labels carry the same distinction. A figure without any measured value is not drawn.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edvit_hf.card.canvas import INK, OTHER_STYLE, STYLES, canvas, legend_below, save, style_of, title
from edvit_hf.card.exports import absent_entries, accuracy_by_name, latency_ms, same_graph, variants_by_name
from edvit_hf.card.markup import shortened
from edvit_hf.card.rival_figures import accuracy_of_rivals, gap_recovered
from edvit_hf.card.rows import result_row
from edvit_hf.card.sources import figure_source
from edvit_hf.card.tables import group_names
from edvit_hf.errors import named_extra
from edvit_hf.manifest import Manifest
from edvit_hf.storage import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_figures(results: Mapping[str, Any], assets_dir: Path, manifest: Manifest | None = None) -> dict[str, Path]:
    """Draw what the results allow into `assets_dir`; returns figure name -> PNG path.

    Names: `size` (accuracy against size), `latency` (accuracy against latency, by exported variant), `absent`
    (accuracy with k sub-models absent), `groups` (accuracy per class group), `rivals` (accuracy of every row with k
    devices absent), `gap` (the share of the gap that every row recovers). A figure of an earlier drawing that has
    nothing to show any more is removed. Files appear by write-then-rename.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    with named_extra("Drawing the figures of a model card", "train"):
        import matplotlib
    with matplotlib.rc_context({"text.parse_math": False}):  # a dollar in the name of a class begins no formula
        return _drawn(results, assets_dir, manifest)


def _drawn(results: Mapping[str, Any], assets_dir: Path, manifest: Manifest | None) -> dict[str, Path]:
    drawings = {
        "size": accuracy_against_size(results),
        "latency": accuracy_against_latency(manifest),
        "absent": accuracy_with_absent(results, manifest),
        "groups": accuracy_per_group(results),
        "rivals": accuracy_of_rivals(results),
        "gap": gap_recovered(results),
    }
    paths = {}
    for name, figure in drawings.items():
        path = assets_dir / f"accuracy_{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            save(figure, path)
            paths[name] = path
    return paths


def accuracy_against_size(results: Mapping[str, Any]) -> "Figure | None":
    """Accuracy against the size one device holds (logarithmic); the ensemble also with its total size.

    Bars are the 95 % interval of the paired difference to the teacher, drawn around the row's own accuracy.
    """
    rows = [row for row in results["rows"] if row.get("accuracy") is not None and row.get("bytes")]
    if not rows:
        return None
    figure, axes = canvas(7.2, 4.4)
    has_interval = any(_interval(row) for row in rows)
    places = _spread([(row.get("bytes_per_device") or row["bytes"]) / MIB for row in rows])
    for row, place in zip(rows, places, strict=True):
        _draw_row(axes, row, place)
    sizes = [row.get("bytes_per_device") or row["bytes"] for row in rows] + [row["bytes"] for row in rows]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / MIB / 1.7, max(sizes) / MIB * 1.7)
    _size_ticks(axes)
    axes.margins(y=0.16)
    axes.set_xlabel("size on one device, MiB of float32 weights (logarithmic; equal sizes side by side)")
    axes.set_ylabel("accuracy on the test split, %")
    bars = " Bars: 95 % interval of the difference to the teacher (may pass 100)." if has_interval else ""
    title(axes, "Accuracy against size per device", f"Hollow: the whole ensemble.{bars}")
    legend_below(figure, figure_source(results))
    return figure


def accuracy_against_latency(manifest: Manifest | None) -> "Figure | None":
    """The ensemble's accuracy by variant against the time of its slowest sub-model, which the answer waits for.

    A bar leads from the fastest sub-model to the slowest. Hollow: the whole ensemble in one graph.
    """
    found = _timed(manifest) if manifest else []
    if not found:
        return None
    figure, axes = canvas(7.2, 4.2)
    shapes = ["o", "s", "^", "D", "v", "P", "X", "*"]
    colours = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000", "#56B4E9", "#7f7f7f"]
    for place, (name, times, accuracy, is_whole) in enumerate(found):
        colour, shape = colours[place % len(colours)], shapes[place % len(shapes)]
        axes.plot([min(times), max(times)], [accuracy, accuracy], color=colour, linewidth=1.4, zorder=1)
        face = "white" if is_whole else colour
        axes.scatter(
            max(times), accuracy, marker=shape, facecolor=face, edgecolor=colour, s=70, linewidth=1.5, label=name
        )
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    heights = [accuracy for _, _, accuracy, _ in found]
    middle, half = (max(heights) + min(heights)) / 2, (max(heights) - min(heights)) / 2
    axes.set_ylim(middle - max(1.0, 1.3 * half), middle + max(1.0, 1.3 * half))  # hundredths must not look like much
    axes.set_xlabel("median time of one input on the slowest sub-model, ms")
    axes.set_ylabel("accuracy on the test split, %")
    title(axes, "Accuracy against latency", "Bars: fastest to slowest sub-model. Hollow: whole ensemble, one graph.")
    legend_below(figure)
    return figure


def _timed(manifest: Manifest) -> list[tuple[str, list[float], float, bool]]:
    """Name, times in ms, accuracy in per cent and whether it is the whole ensemble, of what has both.

    A file with the preprocessing inside, and a graph of the whole ensemble, has the accuracy of the variant whose
    graphs it holds (`same_graph`).
    """
    accuracies, found = accuracy_by_name(manifest), []
    named = [(name, files, False) for name, files in variants_by_name(manifest).items()]
    for name, files, is_whole in [*named, *((file.file, [file], True) for file in manifest.whole)]:
        times = [ms for file in files if (ms := latency_ms(file)) is not None]
        own = files[0].accuracy if is_whole else accuracies.get(name)
        row = own or accuracies.get(same_graph(files[0], manifest) or "")
        if len(times) == len(files) and row and row.get("accuracy") is not None:
            found.append((name, times, 100 * float(row["accuracy"]), is_whole))
    return found


def accuracy_with_absent(results: Mapping[str, Any], manifest: Manifest | None = None) -> "Figure | None":
    """Mean accuracy and min-max band with 0, 1, 2, ... sub-models absent, in fp32."""
    entries = [entry for entry in absent_entries(results, manifest) if entry.get("accuracy_mean") is not None]
    if not entries:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, axes = canvas(7.2, 4.0)
    colour = STYLES[1][1]
    absent = [entry["num_absent"] for entry in entries]
    mean = [100 * entry["accuracy_mean"] for entry in entries]
    low = [100 * entry.get("accuracy_min", entry["accuracy_mean"]) for entry in entries]
    high = [100 * entry.get("accuracy_max", entry["accuracy_mean"]) for entry in entries]
    axes.fill_between(absent, low, high, color=colour, alpha=0.18, linewidth=0, label="lowest to highest subset")
    axes.plot(absent, mean, color=colour, marker="o", linewidth=2, label="mean over subsets")
    for x, y in zip(absent, mean, strict=True):
        axes.annotate(f"{y:.1f}", (x, y), (0, 8), textcoords="offset points", ha="center", color=INK, fontsize=9)
    chance = 100 / len({label for group in results["class_groups"] for label in group})
    axes.axhline(chance, color=INK, linewidth=1, linestyle=":", label=f"guessing ({chance:.0f} %)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 106)
    axes.set_xlabel(f"sub-models absent, of {len(results['class_groups'])}")
    axes.set_ylabel("accuracy on the test split, %")
    is_average = manifest is not None and manifest.fusion.kind == "average"
    told = (
        "The votes of those present are averaged." if is_average else "The fusion head is told which ones are missing."
    )
    title(axes, "Accuracy with sub-models absent", told)
    legend_below(figure, figure_source(results))
    return figure


def accuracy_per_group(results: Mapping[str, Any]) -> "Figure | None":
    """One line per class group: teacher, ensemble and the own vote of the group's sub-model."""
    votes = {entry["index"]: entry.get("group_accuracy") for entry in results.get("sub_models") or []}
    names = [shortened(name) for name in group_names(results)]
    series: list[tuple[str, str, str, list[float | None]]] = [
        (name, colour, marker, list(result_row(results, name).get("per_group_accuracy") or []))
        for name, colour, marker in STYLES[:2]
    ]
    series.append(("own vote of its sub-model", *OTHER_STYLE, [votes.get(index) for index in range(len(names))]))
    series = [line for line in series if any(value is not None for value in line[3])]
    if not series:
        return None
    figure, axes = canvas(7.2, 1.9 + 0.42 * len(names))
    measured = [[v for *_, values in series if (v := values[i]) is not None] for i in range(len(names))]
    for place, found in enumerate(measured):
        if found:
            ends = [100 * min(found), 100 * max(found)]
            axes.plot(ends, [place, place], color="#b0b0b0", linewidth=2, zorder=1)
    shifts = [0.16 * (index - (len(series) - 1) / 2) for index in range(len(series))]
    for (name, colour, marker, values), shift in zip(series, shifts, strict=True):
        places = [place for place, value in enumerate(values) if value is not None]
        shares = [100 * value for value in values if value is not None]
        axes.scatter(shares, [p + shift for p in places], color=colour, marker=marker, s=52, label=name, zorder=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("accuracy on the test items of these classes, %")
    title(axes, "Accuracy per class group", "Each line is one sub-model's classes.")
    legend_below(figure, figure_source(results))
    return figure


def _draw_row(axes: "Axes", row: Mapping[str, Any], place: float) -> None:
    """One row: a filled mark at `place` MiB; a hollow one at the total size if that differs."""
    name = str(row.get("name", "unnamed"))
    colour, marker = style_of(name)
    accuracy, whole = 100 * row["accuracy"], row["bytes"] / MIB
    if row.get("bytes_per_device") not in (None, row["bytes"]):
        axes.plot([place, whole], [accuracy, accuracy], color=colour, linewidth=1.2, linestyle="--", zorder=1)
        axes.scatter(whole, accuracy, marker=marker, facecolor="white", edgecolor=colour, s=70, linewidth=1.5, zorder=4)
    interval = _interval(row)
    if interval:
        errors = [[accuracy - interval[0]], [interval[1] - accuracy]]
        axes.errorbar(place, accuracy, yerr=errors, fmt="none", ecolor=colour, capsize=4, elinewidth=1.4, zorder=2)
    axes.scatter(place, accuracy, color=colour, marker=marker, s=70, label=name, zorder=3)


def _spread(sizes: list[float], step: float = 1.1) -> list[float]:
    """Places on a logarithmic axis: sizes closer than `step` are set side by side, in order."""
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    clusters: list[list[int]] = []
    for index in order:
        if clusters and sizes[index] < step * sizes[clusters[-1][-1]]:
            clusters[-1].append(index)
        else:
            clusters.append([index])
    places = list(sizes)
    for cluster in clusters:
        centre = math.exp(sum(math.log(sizes[index]) for index in cluster) / len(cluster))
        for rank, index in enumerate(cluster):
            places[index] = centre * step ** (rank - (len(cluster) - 1) / 2)
    return places


def _interval(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Accuracy in per cent at both ends of the interval to the teacher, around the row's own accuracy."""
    paired = row.get("against_teacher")
    if not paired or paired.get("low") is None or paired.get("high") is None:
        return None
    accuracy, difference = row["accuracy"], paired["difference"]
    return 100 * (accuracy + paired["low"] - difference), 100 * (accuracy + paired["high"] - difference)


def _size_ticks(axes: "Axes") -> None:
    """Plain numbers at 1, 2, 5 of every decade instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
