# SPDX-License-Identifier: Apache-2.0
"""The figure of a plan: per device, memory against its budget and predicted milliseconds.

Colours are those of Okabe and Ito (readable with every form of colour blindness) and never the only mark.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edvit_hf.architectures.costs import BYTES_PER_PARAMETER
from edvit_hf.errors import named_extra
from edvit_hf.planning.plan import DevicePlan, Plan
from edvit_hf.storage import MIB, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME_LENGTH, _TITLE_LENGTH, _RUNS = 18, 90, 6
_EDGE = 0.3  # points: thinner than the smallest bar, which a wide white edge would hide
_INK, _GRID = "#222222", "#d9d9d9"
_BUDGET = "#D55E00"
# Colour and hatch of the pieces of a bar.
_LOOKS = {"sub-model": ("#56B4E9", ""), "replica": ("#F0E442", "//")}
_LOOKS |= {"fusion head": ("#009E73", ""), "link": ("#CC79A7", "")}


def save_plan_figure(plan: Plan, path: Path) -> Path:
    """Write the figure as PNG, by write-then-rename.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    return write_figure(path, draw_plan(plan))


def draw_plan(plan: Plan) -> "Figure":
    """Two panels that share one row per device: MiB of weights and predicted milliseconds, each in its parts."""
    with named_extra("Drawing a plan", "train"):
        from matplotlib.figure import Figure
        from matplotlib.text import Text

    height = 1.9 + 0.34 * len(plan.devices)
    figure = Figure(figsize=(9, height), layout="constrained")
    memory, latency = figure.subplots(1, 2, sharey=True)
    _memory_panel(memory, plan)
    _latency_panel(latency, plan)
    for axes in (memory, latency):
        axes.set_ylim(len(plan.devices) - 0.4, -0.6)
        axes.grid(axis="x", color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(colors=_INK, length=0, labelsize=8)
    memory.set_yticks(range(len(plan.devices)), [_label(device) for device in plan.devices])
    memory.set_ylabel("device (its sub-models)", fontsize=9, color=_INK)
    ratio = "" if plan.size_ratio is None else f", {plan.size_ratio:.1f} times smaller than the teacher"
    title = f"{_shortened(plan.fleet, 2 * _NAME_LENGTH)}: {plan.keep_text}{ratio}"
    figure.suptitle(textwrap.fill(title, _TITLE_LENGTH), fontsize=10, color=_INK)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar in the name of a device begins no formula
    return figure


def _label(device: DevicePlan) -> str:
    held = device.sub_models or device.replicas
    names = ", ".join(map(str, held[:_RUNS])) + (", …" if len(held) > _RUNS else "")
    runs = names if device.sub_models else f"copy of {names}" if held else "spare"
    return f"{_shortened(device.name, _NAME_LENGTH)} ({runs})"


def _shortened(name: str, length: int) -> str:
    """Both ends of a long name: they are what tells names apart."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - half]}…{name[-half:]}"


def _memory_panel(axes: "Axes", plan: Plan) -> None:
    sizes = {s.index: s.held_bytes / MIB for s in plan.sub_models}
    copies = {(r.index, r.device): r.held_bytes / MIB for r in plan.replicas}
    parts = set[str]()
    for row, device in enumerate(plan.devices):
        pieces = [("sub-model", sizes[i]) for i in device.sub_models]
        pieces += [("replica", copies[i, device.name]) for i in device.replicas]
        if device.name == plan.coordinator:
            pieces.append(("fusion head", BYTES_PER_PARAMETER * plan.fusion_parameters / MIB))
        _bar(axes, row, pieces, parts)
        budget = device.budgets["memory_mib"]
        if budget is not None:
            label = None if "budget" in parts else "budget"
            axes.plot([budget, budget], [row - 0.4, row + 0.4], color=_BUDGET, linewidth=2, label=label)
            parts.add("budget")
    total = "" if plan.total_mib is None else f"; all together at most {plan.total_mib:g}"
    axes.set_xlabel(f"weights in MiB{total}", fontsize=8, color=_INK)
    _legend(axes, parts)


def _latency_panel(axes: "Axes", plan: Plan) -> None:
    parts = set[str]()
    times = {s.index: s.predicted_ms for s in plan.sub_models}
    for row, device in enumerate(plan.devices):
        if device.sub_models and device.compute_ms is None:
            axes.text(0, row, " speed not known", va="center", fontsize=8, color=_INK)
            continue
        pieces = [("sub-model", times[i] or 0.0) for i in device.sub_models]
        pieces = [piece for piece in [*pieces, ("link", device.link_ms)] if piece[1] > 0]
        _bar(axes, row, pieces, parts)
    answer = "not predicted" if plan.latency_ms is None else f"{plan.latency_ms:.1f} ms"
    shared = plan.uplink_ms + (plan.fusion_ms or 0.0)
    detail = "" if plan.latency_ms is None else f"\n(uplink and fusion head: {shared:.1f} ms of it)"
    axes.set_xlabel(f"predicted ms\nfrom input to answer {answer}{detail}", fontsize=8, color=_INK)
    _legend(axes, parts)


def _bar(axes: "Axes", row: int, pieces: Sequence[tuple[str, float]], parts: set[str]) -> None:
    """One bar of pieces (name, width) side by side; `parts` are the names that the legend has."""
    left = 0.0
    for name, width in pieces:
        colour, hatch = _LOOKS[name]
        look: dict[str, Any] = {
            "color": colour,
            "hatch": hatch,
            "edgecolor": "white",
            "linewidth": _EDGE,
            "height": 0.6,
        }
        axes.barh(row, width, left=left, label=None if name in parts else name, **look)
        parts.add(name)
        left += width


def _legend(axes: "Axes", parts: set[str]) -> None:
    if parts:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(parts), fontsize=8, frameon=False)
