# SPDX-License-Identifier: Apache-2.0
"""Writes what the page shows as HTML: pure functions of the data of answers/views.py.

Every text that a visitor, a card or an ensemble supplies is escaped here, for the page inserts the result as it is.
Elements keep their order whatever the state, so that the page changes them in place: the keyboard's focus stays.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from answers.documents import plain_markdown
from answers.views import Device, Model, View, percent
from page.texts import escape

MAX_BARS = 10
MAX_TOKENS = 64
MAX_CLASSES = 12  # of a device that its card names; the rest is counted
NO_LICENSE = (
    "This ensemble has no card that states a licence which this page can read: ask whoever made it before you use it "
    "elsewhere."
)
OTHER_SOURCE = ""  # the choice "another ensemble"
PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}
SOUNDS = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
MAX_EMBEDDED_BYTES = 300_000  # of one example: it travels inside the page

_ICONS = {
    "image": '<rect x="3" y="4" width="18" height="16" rx="3"/><circle cx="9" cy="10" r="2"/>'
    '<path d="m4 18 5-4 3 2 4-4 4 4"/>',
    "audio": '<path d="M4 10v4M8 6v12M12 9v6M16 4v16M20 9v6"/>',
    "text": '<path d="M4 5h16v11H10l-5 4v-4H4z"/><path d="M8 9h8M8 12h5"/>',
    "": '<path d="M10 14a4 4 0 0 0 6 .5l3-3a4 4 0 0 0-6-6l-1 1"/>'
    '<path d="M14 10a4 4 0 0 0-6-.5l-3 3a4 4 0 0 0 6 6l1-1"/>',
    "plug": '<path d="M9 3v5M15 3v5M6 8h12v3a6 6 0 0 1-12 0zM12 17v4"/>',
    "sound": '<path d="M8 5v14l11-7z"/>',
}

HEADER = """<header class="ed-header">
<svg class="ed-mark" viewBox="0 0 64 64" aria-hidden="true"><path class="links" d="M32 34 14 14M32 34 50 14M32 34 8 40
M32 34 56 40M32 34V58"/><g class="devices"><rect x="7" y="7" width="14" height="14" rx="4"/>
<rect x="43" y="7" width="14" height="14" rx="4"/><rect x="1" y="33" width="14" height="14" rx="4"/>
<rect x="49" y="33" width="14" height="14" rx="4"/><rect x="25" y="49" width="14" height="14" rx="4"/></g>
<circle class="head" cx="32" cy="33" r="9"/></svg>
<div><h1>One transformer, split over several small devices</h1>
<p>Unplug some and watch the answer degrade instead of fail. Every device holds one small <b>sub-model</b> that knows a
few classes and says &ldquo;other&rdquo; to the rest, or knows them all; a <b>fusion</b> joins what they send.</p></div>
</header>"""


# Shown while there is no answer: an input goes to every device, what they send to the fusion head.
_ROWS = (28, 76, 124, 172)
_SKETCH = (
    '<svg class="ed-sketch" viewBox="0 0 420 200" aria-hidden="true"><g class="wires">'
    + "".join(f'<path d="M76 100C120 100 120 {y} 158 {y}M222 {y}C262 {y} 262 100 300 100"/>' for y in _ROWS)
    + '<path d="M344 100h34"/></g><rect class="input" x="28" y="76" width="48" height="48" rx="10"/>'
    + "".join(f'<rect class="device" x="158" y="{y - 16}" width="64" height="32" rx="9"/>' for y in _ROWS)
    + '<circle class="head" cx="322" cy="100" r="22"/><path class="input" d="M378 90l16 10-16 10z"/></svg>'
)

TIMELINE_HEADING = """<div class="ed-section"><h2>How one answer comes about</h2>
<p>Measured on the machine that serves this page, and predicted for a fleet where every sub-model has a device of its
own.</p></div>"""


def ensemble_choices(bundles: Iterable[Any], chosen: str, *, takes_folders: bool = True) -> str:
    """The bundled ensembles and "another ensemble" as cards, one of which is chosen."""
    cards = [(b.name, _kind(b.task), b.title, b.hint) for b in bundles]
    where = (
        "A Hub id, or a folder on the machine that runs this page." if takes_folders else "Any of the Hub, by its id."
    )
    cards.append((OTHER_SOURCE, "", "Another ensemble", where))
    found = []
    for name, kind, title, hint in cards:
        checked = " checked" if name == chosen else ""
        found.append(
            f'<label class="ed-choice"><input type="radio" name="ed-ensemble" value="{escape(name)}"{checked}>'
            f'{_icon(kind)}<span class="ed-choice-text"><b>{escape(title)}</b><span>{escape(hint)}</span></span>'
            "</label>"
        )
    return f'<fieldset class="ed-choices"><legend>Choose an ensemble</legend>{"".join(found)}</fieldset>'


def input_heading(title: str, hint: str) -> str:
    """Whose input is asked for, and what it is."""
    return f'<div class="ed-section"><h2>Your input</h2><p><b>{escape(title)}.</b> {escape(hint)}</p></div>'


def examples(items: Sequence[Any], task: str) -> str:
    """One button per example: a thumbnail, a sound that is also heard, or the text. Empty without examples."""
    if not items:
        return ""
    buttons = []
    for index, item in enumerate(items):
        label, value, heard = escape(str(item.label)), str(item.value), ""
        if task == "text-classification":
            inner = f"<span>{escape(value)}</span>"
        elif task == "audio-classification":
            inner, heard = f"{_icon('sound')}<span>{label}</span>", f' data-sound="{_file_uri(Path(value), SOUNDS)}"'
        else:
            inner = f'<img src="{_file_uri(Path(value), PICTURES)}" alt=""><span>{label}</span>'
        buttons.append(
            f'<button type="button" data-example="{index}"{heard} aria-label="Example: {label}">{inner}</button>'
        )
    kind = _kind(task)
    return (
        f'<div class="ed-examples ed-examples-{kind}" role="group" aria-label="Examples">'
        f"<h3>Or take an example</h3><div>{''.join(buttons)}</div></div>"
    )


def answer(view: View) -> str:
    """The label, the sentence, the card's note and the most probable classes; an alert if there is no answer."""
    label = escape(view.label) or ("" if view.state == "refused" else "Ready")
    share = f"{_percent(view.probabilities[0][1])}" if view.probabilities else ""
    role = 'role="alert"' if view.state == "refused" else 'role="status" aria-live="polite"'
    heading = {"refused": "No answer", "degraded": "Answer, degraded"}.get(view.state, "Answer")
    said = (
        f'<div class="ed-said" {role}><p class="ed-kicker">{heading}</p>'
        f'<p class="ed-label"><span>{label}</span> <small>{share}</small></p>'
        f'<p class="ed-sentence">{escape(view.sentence)}</p></div>'
    )
    note = f'<p class="ed-note"{"" if view.card_note else " hidden"}>{escape(view.card_note)}</p>'
    below = f"<div>{_SKETCH}</div>"
    if view.probabilities:
        below = _bars(view.probabilities)
    heading = '<h2 class="ed-spoken">Answer</h2>'  # for who jumps from heading to heading; what is said below has none
    return f'<section class="ed-answer ed-{view.state}" aria-label="Answer">{heading}{said}{note}{below}</section>'


def seen(view: View, task: str) -> str:
    """What the sub-models see: pixels enlarged, a spectrogram, or tokens."""
    if view.tokens:
        shown = "".join(f"<li>{escape(token)}</li>" for token in view.tokens[:MAX_TOKENS])
        more = len(view.tokens) - MAX_TOKENS
        shown += f'<li class="more">and {more} more</li>' if more > 0 else ""
        return f'<div class="ed-seen"><h3>What the sub-models see</h3><ol class="ed-tokens">{shown}</ol></div>'
    if view.seen is None:
        return ""
    height, width = view.seen.shape[:2]
    what = "a spectrogram" if task == "audio-classification" else "an image"
    kind = "sound" if task == "audio-classification" else "image"
    return (
        '<div class="ed-seen"><h3>What the sub-models see</h3>'
        f'<img class="ed-pixels ed-{kind}" src="{png_uri(view.seen)}" alt="{what} of {width} by {height} pixels">'
        f"<p>{what}, {width} &times; {height}</p></div>"
    )


def devices(view: View) -> str:
    """One card per device, each with its control to unplug it or to plug it in again, and the answer beside them."""
    items = view.devices
    left = sum(device.state != "unplugged" for device in items)
    cards = "".join(_device(device) for device in items)
    share = f" <small>{_percent(view.probabilities[0][1])}</small>" if view.probabilities else ""
    now = {"empty": "no input yet", "refused": "no answer"}.get(view.state, f"<b>{escape(view.label)}</b>{share}")
    joined = f'<p class="ed-joined">{escape(view.joined)}</p>' if view.joined else ""
    return (
        f'<section class="ed-devices" aria-label="Devices"><div class="ed-section"><h2>Devices</h2>'
        f"<p>{left} of {len(items)} plugged in. Unplug any of them: the page answers again at once.</p>"
        f'<span class="ed-now ed-now-{view.state}" aria-hidden="true">Answer: {now}</span>'
        f'<button type="button" class="ed-quiet" data-all="1"{" hidden" if left == len(items) else ""}>'
        f"Plug all in</button></div>{joined}<ul>{cards}</ul></section>"
    )


def comparison(models: Sequence[Model], verdict: str = "") -> str:
    """Size, accuracy and latency next to the teacher and plain small models, and what to deploy; empty without rows."""
    if not models:
        return ""
    per_device = max((m.bytes_per_device or 0 for m in models), default=0)
    total = max((m.bytes_total or 0 for m in models), default=0)
    slowest = max((m.milliseconds or 0 for m in models), default=0)
    rows = []
    for model in models:
        note = f"<small>{escape(model.note)}</small>" if model.note else ""
        cells = [
            _cell("Per device", _bytes(model.bytes_per_device), _share(model.bytes_per_device, per_device)),
            _cell("All devices", _bytes(model.bytes_total), _share(model.bytes_total, total)),
            _cell("Accuracy", None if model.accuracy is None else _percent(model.accuracy), model.accuracy),
            _cell("One answer", _milliseconds(model.milliseconds), _share(model.milliseconds, slowest)),
        ]
        head = f'<th role="rowheader" scope="row">{escape(model.name)}{note}</th>'
        rows.append(f'<tr role="row">{head}{"".join(cells)}</tr>')
    names = ("Model", "Per device", "All devices", "Accuracy", "One answer")
    heads = "".join(f'<th role="columnheader" scope="col">{name}</th>' for name in names)
    said = f"<p>What its run says: {escape(verdict)}.</p>" if verdict else ""
    return (
        '<section class="ed-comparison" aria-label="Comparison"><div class="ed-section"><h2>Is it worth it?</h2>'
        f"<p>The ensemble beside its teacher and plain small models, from the model card.</p>{said}</div>"
        f'<table role="table"><thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table></section>'
    )


def code(blocks: Mapping[str, str]) -> str:
    """Lines that load this ensemble elsewhere, each with a button that copies them."""
    if not blocks:
        return ""
    shown = "".join(
        f'<div class="ed-code"><div><h3>{escape(heading)}</h3><button type="button" class="ed-quiet" data-copy="1" '
        f'aria-label="Copy: {escape(heading)}">Copy</button></div>'
        f'<pre tabindex="0" aria-label="{escape(heading)}"><code>{escape(text)}</code></pre></div>'
        for heading, text in blocks.items()
    )
    return (
        '<section class="ed-codes" aria-label="Code"><div class="ed-section"><h2>Take it with you</h2>'
        f"<p>Lines that load this ensemble elsewhere.</p></div><div>{shown}</div>"
        '<p role="status" class="ed-copied"></p></section>'
    )


def card_markdown(text: str) -> str:
    """A model card for the page: no front matter, pictures or markup that would load something from elsewhere."""
    text = re.sub(r"\A---\r?\n.*?\r?\n---\r?\n", "", text, flags=re.DOTALL)
    parts = re.split(r"(^```.*?^```[^\n]*$)", text, flags=re.DOTALL | re.MULTILINE)
    for index in range(0, len(parts), 2):  # the odd ones are code
        parts[index] = plain_markdown(parts[index]).replace("<", "&lt;")
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip()


def license_line(name: str) -> str:
    """The license that the card states, or what to do where there is none that can be read."""
    said = f"Licence of this ensemble, as its card states it: <b>{escape(name)}</b>." if name else NO_LICENSE
    return f'<p class="ed-license">{said}</p>'


def notice(sentence: str, *, is_alert: bool = False) -> str:
    """A sentence about what was chosen; empty without one. Its places are always there: only those are announced."""
    said = f'<p class="ed-notice ed-{"refused" if is_alert else "opened"}">{escape(sentence)}</p>' if sentence else ""
    places = ('role="status"', "" if is_alert else said), ('role="alert"', said if is_alert else "")
    return "".join(f"<div {role}>{text}</div>" for role, text in places)


def png_uri(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as an address that holds the picture itself."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _device(device: Device) -> str:
    told = device.focus or device.classes  # of a device that votes over all, what it was cut for
    known = told[:MAX_CLASSES]
    more = len(told) - len(known)
    chips = "".join(_chip(name, name in device.shared and not device.focus) for name in known) + (
        f'<li class="more">+{more}</li>' if more else ""
    )
    if device.focus:
        chips += f'<li class="more">votes over {len(device.classes)}</li>'
    unplugged = device.state == "unplugged"
    spoken = escape(", ".join(known) + (f" and {more} more" if more else ""))
    verb, knows = "Plug in" if unplugged else "Unplug", "cut for" if device.focus else "knows"
    heading = "Cut for" if device.focus else "Its classes"
    return (
        f'<li class="ed-device ed-{device.state}"><div class="ed-device-head"><h3>Device {device.index}</h3>'
        f'<button type="button" class="ed-plug" data-device="{device.index}" data-unplugged="{int(unplugged)}" '
        f'aria-label="{verb} device {device.index} ({knows} {spoken})">{_icon("plug")}<span>{verb}</span></button>'
        f'</div><ul class="ed-classes" aria-label="{heading}">{chips}</ul>{_device_body(device)}</li>'
    )


def _chip(name: str, is_shared: bool) -> str:
    """A class of a device; marked, and said to who cannot see the mark, where another device knows it too."""
    if not is_shared:
        return f"<li>{escape(name)}</li>"
    return f'<li class="shared" title="Another device knows it too">{escape(name)}</li>'


def _device_body(device: Device) -> str:
    if device.state in ("unplugged", "failed"):
        reason = device.reason or ("unplugged" if device.state == "unplugged" else "gave nothing usable")
        return (
            f'<p class="ed-vote"><b>Missing</b><span>{escape(reason)}</span></p>'
            '<p class="ed-note">The others go on without it.</p>'
        )
    if device.state == "waiting" or device.vote is None:
        return '<p class="ed-vote"><b>Ready</b><span>waiting for an input</span></p>'
    share, kind = device.vote_share or 0.0, "ed-vote ed-other" if device.vote == "other" else "ed-vote"
    vote = (
        f'<p class="{kind}"><b>{escape(device.vote)}</b><span>own vote, {_percent(share)}</span></p>'
        f'<div class="ed-track" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></div>'
    )
    facts = (
        f"<dl><div><dt>Measured here</dt><dd>{_milliseconds(device.milliseconds) or 'not measured'}</dd></div>"
        f"<div><dt>Would send</dt><dd>{_bytes(device.bytes_sent)}</dd></div></dl>"
    )
    if device.answer_without is None:
        without = '<p class="ed-without">Without it, nobody is left to answer.</p>'
    else:
        verdict = "the answer changes" if device.changes_answer else "the answer stays"
        changes = " ed-changes" if device.changes_answer else ""
        without = f'<p class="ed-without{changes}">Without it: <b>{escape(device.answer_without)}</b>, {verdict}</p>'
    return vote + facts + without


def _bars(probabilities: Sequence[tuple[str, float]]) -> str:
    shown = "".join(
        f'<li><span>{escape(label)}</span><div class="ed-track" aria-hidden="true">'
        f'<i style="width:{100 * share:.1f}%"></i></div><b>{_percent(share)}</b></li>'
        for label, share in probabilities[:MAX_BARS]
    )
    more = len(probabilities) - MAX_BARS
    rest = f'<li class="more">and {more} less probable classes</li>' if more > 0 else ""
    return f'<ol class="ed-bars" aria-label="Most probable classes">{shown}{rest}</ol>'


def _cell(name: str, text: str | None, share: float | None) -> str:
    if text is None:
        return f'<td role="cell" data-name="{name}"><span class="ed-none">not measured</span></td>'
    bar = f'<i class="ed-mini" aria-hidden="true"><i style="width:{100 * (share or 0):.1f}%"></i></i>'
    return f'<td role="cell" data-name="{name}"><span>{text}</span>{bar}</td>'


def _share(value: float | None, largest: float) -> float | None:
    return None if value is None or largest <= 0 else value / largest


def _percent(share: float) -> str:
    return escape(percent(share)).replace(" ", "&nbsp;")


def _milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f}&nbsp;ms"


def _bytes(count: int | None) -> str | None:
    if count is None:
        return None
    if count < 1000:
        return f"{count}&nbsp;bytes"
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f}&nbsp;{unit}"
    raise AssertionError(count)


def _kind(task: str | None) -> str:
    return (task or "").partition("-")[0] if (task or "").endswith("-classification") else ""


def _icon(name: str) -> str:
    return f'<svg class="ed-icon" viewBox="0 0 24 24" aria-hidden="true">{_ICONS.get(name, _ICONS[""])}</svg>'


def _file_uri(path: Path, kinds: Mapping[str, str]) -> str:
    """A bundled example as an address that holds it; nothing of another kind is read, and nothing large."""
    kind = kinds.get(path.suffix.lower())
    if kind is None or not path.is_file() or path.stat().st_size > MAX_EMBEDDED_BYTES:
        return "data:,"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
