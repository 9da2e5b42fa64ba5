# SPDX-License-Identifier: Apache-2.0
"""Timelines as SVG: lanes above each other, what happens in them told apart by colour, pattern and words."""

from collections.abc import Sequence

from answers.views import Span, Timeline
from page.texts import escape

ROW, BAR, TOP = 36, 14, 4  # px
NARROWEST = 0.5  # percent of the width, so that a short span is still seen
KINDS = {"input": "sending the input", "compute": "compute", "transfer": "transfer", "fusion": "fusion"}

_PATTERNS = {  # what is laid over the colour; a span is told apart without colour too
    "transfer": '<path d="M-2 2 2-2M0 8 8 0M6 10l4-4"/>',
    "fusion": '<circle cx="2" cy="2" r="1.3"/><circle cx="6" cy="6" r="1.3"/>',
    "input": '<path d="M0 4h8"/>',
    "compute": "",
}


def timelines(items: Sequence[Timeline]) -> str:
    """Every timeline in a figure of its own, and one legend."""
    if not items:
        return '<div class="ed-timelines"><p class="ed-wait">A timeline appears with the first answer.</p></div>'
    kinds = [kind for kind in KINDS if any(span.kind == kind for item in items for span in item.spans)]
    legend = "".join(f"<li>{_swatch(kind)}{KINDS[kind]}</li>" for kind in kinds)
    shown = "".join(timeline(item, f"ed-line-{number}") for number, item in enumerate(items))
    return f'<div class="ed-timelines"><ul class="ed-legend" aria-label="Legend">{legend}</ul>{shown}</div>'


def timeline(item: Timeline, name: str) -> str:
    """One timeline; `name` is unique on the page."""
    kind = "measured" if item.is_measured else "predicted"
    return (
        f'<figure class="ed-line"><figcaption><b class="ed-badge ed-{kind}">{kind}</b> '
        f"<strong>{escape(item.title)}</strong><span>{_ms(item.total_ms)} from input to answer</span></figcaption>"
        f'{_svg(item, name, kind)}<p class="ed-note">{escape(item.note)}</p></figure>'
    )


def spoken(item: Timeline) -> str:
    """What a timeline shows, in words: each span in order."""
    parts = [f"{span.lane}: {KINDS[span.kind]} from {_ms(span.start_ms)} to {_ms(span.end_ms)}" for span in item.spans]
    return "; ".join(parts) + "." if parts else "No device took part."


def ticks(total_ms: float, most: int = 5) -> list[float]:
    """Round times from 0 to at most the total, evenly spaced, at most `most` and one."""
    if not total_ms > 0:
        return [0.0]
    step = 10.0**-3
    while True:
        for factor in (1, 2, 5):
            if total_ms / (step * factor) <= most:
                size = step * factor
                return [size * i for i in range(int(total_ms / size + 1e-9) + 1)]
        step *= 10


def _svg(item: Timeline, name: str, kind: str) -> str:
    lanes = list(dict.fromkeys(span.lane for span in item.spans))
    longest = max([item.total_ms, *(span.end_ms for span in item.spans)], default=0.0) or 1.0
    height = TOP + ROW * len(lanes)
    parts = [
        f'<svg class="ed-svg" width="100%" height="{height + 22}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(item.title)}, {kind}: {_ms(item.total_ms)}</title>',
        f'<desc id="{name}-desc">{escape(spoken(item))}</desc><defs>',
        *(_pattern(f"{name}-{key}", key) for key in _PATTERNS),
        "</defs>",
    ]
    for time in ticks(longest):
        place = 100 * time / longest
        anchor = "start" if place < 4 else "end" if place > 96 else "middle"
        parts.append(f'<line class="ed-grid" x1="{place:.2f}%" x2="{place:.2f}%" y1="0" y2="{height}"/>')
        where = f'x="{place:.2f}%" y="{height + 16}" text-anchor="{anchor}"'
        parts.append(f'<text class="ed-tick" {where}>{time:g} ms</text>')
    for row, lane in enumerate(lanes):
        top = TOP + ROW * row
        parts.append(f'<text class="ed-lane" x="0" y="{top + 11}">{escape(lane)}</text>')
        parts.append(f'<rect class="ed-rail" x="0" y="{top + 16}" width="100%" height="{BAR}" rx="3"/>')
        parts += [_bar(span, name, top + 16, longest) for span in item.spans if span.lane == lane]
    return "".join(parts) + "</svg>"


def _bar(span: Span, name: str, top: int, longest: float) -> str:
    start = 100 * span.start_ms / longest
    width = max(NARROWEST, 100 * (span.end_ms - span.start_ms) / longest)
    start = max(0.0, min(start, 100 - width))
    words = f"{span.lane}: {KINDS[span.kind]}, {_ms(span.end_ms - span.start_ms)}"
    return (
        f'<rect class="ed-span" x="{start:.2f}%" y="{top}" width="{width:.2f}%" height="{BAR}" rx="2" '
        f'fill="url(#{name}-{span.kind})"><title>{escape(words)}</title></rect>'
    )


def _pattern(name: str, kind: str) -> str:
    return (
        f'<pattern id="{name}" class="ed-fill ed-{kind}" width="8" height="8" patternUnits="userSpaceOnUse">'
        f'<rect width="8" height="8"/>{_PATTERNS[kind]}</pattern>'
    )


def _swatch(kind: str) -> str:
    name = f"ed-legend-{kind}"
    return (
        f'<svg class="ed-swatch" width="22" height="14" aria-hidden="true"><defs>{_pattern(name, kind)}</defs>'
        f'<rect width="22" height="14" rx="2" fill="url(#{name})"/></svg>'
    )


def _ms(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} ms"
