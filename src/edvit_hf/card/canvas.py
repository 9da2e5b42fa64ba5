# SPDX-License-Identifier: Apache-2.0
"""What every figure of a card shares: canvas, colours and marks of the rows, title, legend, and how it is saved.

Colours are those of Okabe and Ito (readable with every form of colour blindness) and never the only mark.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from edvit_hf.card.rows import (
    ALL_PASSES,
    COPIES,
    DEVICE_COPIES,
    LARGE,
    PLAIN_DEVICE_SIZE,
    PLAIN_TOTAL_SIZE,
    REPLICAS,
    SMALL_CNN,
    TFIDF,
    TFIDF_DEVICE_SIZE,
)
from edvit_hf.errors import named_extra
from edvit_hf.storage import DPI, whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = 64  # of the saved palette: a drawing has few, and a card is read over the network
INK, _GRID = "#222222", "#d9d9d9"
STYLES: tuple[tuple[str, str, str], ...] = (
    ("teacher", "#000000", "D"),
    ("ensemble", "#0072B2", "o"),
    (PLAIN_DEVICE_SIZE, "#D55E00", "s"),
    (PLAIN_TOTAL_SIZE, "#E69F00", "^"),
    (REPLICAS, "#D55E00", "s"),
    (LARGE, "#E69F00", "^"),
    (ALL_PASSES, "#CC79A7", "P"),
    (COPIES, "#56B4E9", "X"),
    (DEVICE_COPIES, "#7f7f7f", "*"),
    (SMALL_CNN, "#009E73", "v"),
    (TFIDF, "#009E73", "v"),  # never beside the small CNN
    (TFIDF_DEVICE_SIZE, "#CC79A7", "P"),  # as before: beside the one without a limit
)
OTHER_STYLE = ("#CC79A7", "P")


def canvas(width: float, height: float) -> tuple["Figure", "Axes"]:
    """A figure on the Agg canvas (no display, no global pyplot state) and its axes."""
    with named_extra("Drawing the figures of a model card", "train"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def title(axes: "Axes", text: str, subtitle: str) -> None:
    """A title over a smaller line."""
    axes.set_title(f"{text}\n", loc="left", fontsize=13, fontweight="bold", color=INK)
    note = axes.text(0, 1.025, subtitle, transform=axes.transAxes, fontsize=9, color="#555555")
    note.set_in_layout(False)  # a long line must not squeeze the axes


def legend_below(figure: "Figure", source: str = "") -> None:
    """Legend under the axes and, above its entries, what measured the figure: it may be seen without the card."""
    legend = figure.legend(
        loc="outside lower left", ncols=3, frameon=False, fontsize=9, title=source, title_fontsize=7, alignment="left"
    )
    legend.get_title().set_color("#767676")


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG with few colours; the same results give the same bytes."""
    from PIL import Image  # comes with matplotlib

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(buffer) as drawn, whole_file(path) as partial:
        drawn.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(partial, format="png", optimize=True)


def style_of(name: str) -> tuple[str, str]:
    """Colour and mark of a row."""
    return next(((colour, marker) for known, colour, marker in STYLES if known == name), OTHER_STYLE)
