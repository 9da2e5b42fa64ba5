# SPDX-License-Identifier: Apache-2.0
"""The scripts that run in the browser, and the field to draw on with the drawing that comes back, checked.

Each script belongs to one gr.HTML component: `element` is its element, `trigger` sends an event to app.py. They listen
on that element, for what is in it changes with every answer.
"""

import base64
import binascii
import io
from typing import Any

import numpy as np
from PIL import Image

from edvit_hf.errors import DataError
from edvit_hf.transforms.containers import scan_png

SIDE = 280  # px
MAX_CHARACTERS = 300_000  # of the drawing as it comes: strokes of one colour take a few thousand
_PREFIX = "data:image/png;base64,"
_UNREADABLE = "The drawing did not arrive whole. Clear the field and draw again."

# gradio's own few words follow the browser's language, and with them what the page says its language is: a screen
# reader would read the page's English as if it were that. So the page says English whenever gradio says otherwise.
ENGLISH = """const page = document.documentElement;
const tell = () => { if (page.lang !== 'en') page.lang = 'en'; };
new MutationObserver(tell).observe(page, {attributeFilter: ['lang']});
tell();"""
PICK = "element.addEventListener('change', e => trigger('pick', {name: e.target.value}));"
EXAMPLE = """element.addEventListener('click', e => {
  const button = e.target.closest('[data-example]');
  if (!button) return;
  trigger('example', {index: Number(button.dataset.example)});
  if (button.dataset.sound) new Audio(button.dataset.sound).play().catch(() => {});
});"""
# Each click tells its own device alone: what the page shows of the others may still be the answer to an older click.
PLUG = """element.addEventListener('click', e => {
  const plug = e.target.closest('[data-device]'), all = e.target.closest('[data-all]');
  if (all) { element.querySelector('[data-device]').focus(); trigger('plug', {device: null}); }
  if (!plug) return;
  const out = plug.dataset.unplugged !== '1';
  plug.dataset.unplugged = out ? '1' : '0';
  trigger('plug', {device: Number(plug.dataset.device), out});
});"""
COPY = """element.addEventListener('click', async e => {
  const button = e.target.closest('[data-copy]');
  if (!button) return;
  const text = button.closest('.ed-code').querySelector('code').textContent, said = element.querySelector('.ed-copied');
  try { await navigator.clipboard.writeText(text); }
  catch (refused) {
    const field = document.createElement('textarea');
    field.value = text; document.body.append(field); field.select(); document.execCommand('copy'); field.remove();
  }
  said.textContent = ''; requestAnimationFrame(() => { said.textContent = 'Copied.'; });
  button.textContent = 'Copied'; setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});"""

_PAD = f"""<div class="ed-pad" data-opening="%d"><div class="ed-paper"><canvas width="{SIDE}" height="{SIDE}" role="img"
aria-label="Field to draw one digit on, with mouse, pen or finger. Without one of them take an example below."></canvas>
<span class="ed-pad-hint" aria-hidden="true">Draw a digit here</span></div>
<button type="button" class="ed-quiet" data-clear="1">Clear the field</button></div>"""

# Strokes are drawn as they come; what is drawn is sent a moment after the pen is lifted, the field as a PNG. The field
# stays when another ensemble is opened that reads drawings too: what was drawn for the one before must not.
DRAW = """
const canvas = element.querySelector('canvas'), hint = element.querySelector('.ed-pad-hint');
const pen = canvas.getContext('2d');
pen.lineWidth = 22; pen.lineCap = 'round'; pen.lineJoin = 'round'; pen.strokeStyle = '#16202c';
let last = null, waiting = null;
const at = (event) => {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
canvas.addEventListener('pointerdown', (event) => {
  if (event.button !== 0) return;
  event.preventDefault(); canvas.setPointerCapture(event.pointerId); clearTimeout(waiting);
  hint.hidden = true; last = at(event);
  pen.beginPath(); pen.moveTo(...last); pen.lineTo(last[0] + 0.1, last[1]); pen.stroke();
});
canvas.addEventListener('pointermove', (event) => {
  if (!last) return;
  for (const piece of event.getCoalescedEvents ? [...event.getCoalescedEvents(), event] : [event]) {
    const next = at(piece);
    pen.beginPath(); pen.moveTo(...last); pen.lineTo(...next); pen.stroke(); last = next;
  }
});
const lift = () => {
  if (!last) return;
  last = null; clearTimeout(waiting);
  waiting = setTimeout(() => { if (canvas.isConnected) trigger('draw', {png: canvas.toDataURL('image/png')}); }, 120);
};
canvas.addEventListener('pointerup', lift);
canvas.addEventListener('pointercancel', lift);
const wipe = () => {
  clearTimeout(waiting); last = null; pen.clearRect(0, 0, canvas.width, canvas.height); hint.hidden = false;
};
element.querySelector('[data-clear]').addEventListener('click', () => { wipe(); trigger('wipe', {}); });
watch('value', wipe);
"""


def pad(opening: int) -> str:
    """The field, empty; it is wiped where it is there already and `opening` is another number than before."""
    return _PAD % opening


def read_drawing(png: Any) -> dict[str, Any]:
    """A drawing as it comes from the browser, as the mapping that `answers.inputs.prepare_drawing` takes.

    Raises:
        DataError: If it is no PNG of the field's size.
    """
    if not isinstance(png, str) or not png.startswith(_PREFIX) or len(png) > MAX_CHARACTERS:
        raise DataError(_UNREADABLE)
    try:
        file = io.BytesIO(base64.b64decode(png[len(_PREFIX) :], validate=True))
        scan_png(file, "a drawing", SIDE * SIDE)
        file.seek(0)
        with Image.open(file, formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                raise DataError(_UNREADABLE)
            pixels = np.asarray(image.convert("RGBA"))
    except (DataError, binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(_UNREADABLE) from error
    return {"layers": [pixels], "composite": None}
