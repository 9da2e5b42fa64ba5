# SPDX-License-Identifier: Apache-2.0
"""The HTML page of the server: how to ask, and a form to try it; no script or style comes from elsewhere."""

import base64
import hashlib

from edvit_hf.tasks import Task

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid; border-radius: .4rem; }
label { display: block; margin: .6rem 0 .2rem; } input, textarea, button { font: inherit; max-width: 100%; }
"""
_SCRIPT = """
const curl = document.getElementById("curl");
curl.textContent = curl.textContent.replace("http://127.0.0.1:8000", location.origin);
const show = (text) => { document.getElementById("reply").textContent = text; };
document.getElementById("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target), headers = {};
  const token = form.get("token"); form.delete("token");
  if (token) headers.Authorization = "Bearer " + token;
  show("...");
  try {
    const reply = await fetch("predict", { method: "POST", body: form, headers });
    show(reply.status + " " + JSON.stringify(await reply.json(), null, 2));
  } catch (error) { show("No answer: the server cannot be reached."); }
});
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS = {
    "content-security-policy": f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
"""The page runs its own script and asks its own server: a browser refuses anything else."""

_INPUTS: dict[Task, tuple[str, str]] = {
    "image-classification": (
        '<label for="file">Image</label><input id="file" type="file" name="file" accept="image/*" required>',
        "-F file=@picture.jpg",
    ),
    "audio-classification": (
        '<label for="file">Sound</label><input id="file" type="file" name="file" accept="audio/*" required>',
        "-F file=@sound.wav",
    ),
    "text-classification": (
        '<label for="text">Text</label><textarea id="text" name="text" rows="3" cols="60" required></textarea>',
        '--json \'{"text": "What is a fusion head?"}\'',
    ),
}


def curl_line(task: Task, url: str, *, needs_token: bool) -> str:
    """How to ask from a shell."""
    token = '-H "Authorization: Bearer $TOKEN" ' if needs_token else ""
    return f"curl {token}{_INPUTS[task][1]} {url}/predict"


def page(task: Task, *, needs_token: bool) -> str:
    """The page, for an ensemble of this task."""
    token = '<label for="token">Token</label><input id="token" name="token" type="password" autocomplete="off">'
    curl = curl_line(task, "http://127.0.0.1:8000", needs_token=needs_token).replace("&", "&amp;").replace("<", "&lt;")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>edvit serve</title><style>{_STYLE}</style></head><body>
<h1>edvit serve</h1>
<p>One ensemble, for {task}. <a href="openapi.json">openapi.json</a> describes everything that can be asked here;
<code>/info</code> tells what is served, <code>/ready</code> whether it can answer, <code>/metrics</code> is for
Prometheus.</p>
<h2>Ask from a shell</h2><pre id="curl">{curl}</pre>
<h2>Ask here</h2>
<form id="ask">{_INPUTS[task][0]}{token if needs_token else ""}
<label for="top_k">Labels to show</label><input id="top_k" name="top_k" type="number" min="1" value="3">
<p><button>Ask</button></p></form>
<pre id="reply" aria-live="polite">No answer yet.</pre>
<script>{_SCRIPT}</script></body></html>
"""
