# SPDX-License-Identifier: Apache-2.0
"""The page of the Space without a browser: HTML that escapes, honest figures, bounded requests, visits that live on."""

import asyncio
import base64
import copy
import html
import io
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import app
from answers import documents, ensembles, inputs
from answers.views import Device, Model, Span, Timeline, View, percent
from edvit_hf.errors import DataError
from page import charts, figures, safety
from page.scripts import MAX_CHARACTERS, SIDE, read_drawing
from support.bombs import chunk, png

SPACE = Path(__file__).resolve().parents[2] / "space_app"
VOID = {"img", "input", "br"}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """The elements of a piece of HTML, which must be closed in order, and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.open, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


MODEL = Model(name="", accuracy=None, bytes_per_device=5, bytes_total=None, milliseconds=1)


class Item:
    """A bundle or an example."""

    def __init__(self, **values):
        self.__dict__.update(values)


def view_of(text, state="degraded"):
    span = Span(lane=text, kind="transfer", start_ms=0, end_ms=2)
    devices = [
        Device(
            index=0,
            classes=(text,),
            state="answered",
            vote=text,
            vote_share=0.5,
            milliseconds=1.5,
            bytes_sent=96,
            answer_without=text,
            changes_answer=True,
        ),
        Device(index=1, classes=(text, "b"), state="unplugged", reason=text),
        Device(index=2, classes=(text,) * 30, state="failed", reason=text),
        Device(index=3, classes=("c",), state="waiting"),
    ]
    return View(
        state=state,
        sentence=text,
        label=text,
        probabilities=((text, 0.7), ("b", 0.3)),
        devices=tuple(devices),
        timelines=(Timeline(title=text, is_measured=False, spans=(span,), total_ms=2.0, note=text),),
        tokens=(text,),
        card_note=text,
    )


def everything(text):
    view = view_of(text)
    bundle = Item(name=text, title=text, hint=text, task="image-classification")
    return "".join(
        [
            figures.answer(view),
            figures.seen(view, "text-classification"),
            figures.devices(view),
            charts.timelines(view.timelines),
            figures.ensemble_choices([bundle], text),
            figures.notice(text, is_alert=True),
            figures.examples([Item(label=text, value=text)], "text-classification"),
            figures.examples([Item(label=text, value="/no/such.png")], "image-classification"),
            figures.input_heading(text, text),
            figures.code({text: text}),
            figures.license_line(text),
            figures.comparison([replace(MODEL, name=text, note=text)]),
        ]
    )


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>\"'&;=/ script${}`{{}}\nimgonerror"), min_size=1, max_size=40))
def test_no_text_becomes_markup(text):
    plain, found = Tags(everything("plain")), Tags(everything(text))
    assert found.names == plain.names
    assert [name for name, _ in found.attributes] == [name for name, _ in plain.attributes]


def test_a_hostile_name_is_shown_as_it_is():
    tags = Tags(everything(HOSTILE))
    assert "script" not in tags.names
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    assert any(HOSTILE in text for text in tags.text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[digit 6]", "[digit 6]"),
        ("[/x]", "[/x]"),
        ("<unk>", "<unk>"),
        ("_silence_", "_silence_"),
        ("&lt;", "&lt;"),
        ("\x1b[31mred\x1b[0m", r"\u001b[31mred\u001b[0m"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2066b\u2069", r"a\u2066b\u2069"),
        ("a\x00b\x7f\x9b", r"a\u0000b\u007f\u009b"),
        ("\u0646\u0645\u0627\u06cc\u200c\u0634", "\u0646\u0645\u0627\u06cc\u200c\u0634"),
        ("x\ny\tz", "x\ny\tz"),
    ],
)
def test_a_label_is_shown_as_it_is_and_nothing_in_it_is_obeyed(text, shown):
    page = everything(text)
    assert len([each for each in Tags(page).text if shown in each]) >= 10
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


@pytest.mark.parametrize(("state", "role"), [("refused", "alert"), ("answered", "status"), ("empty", "status")])
def test_an_answer_is_announced_and_a_refusal_is_an_alert(state, role):
    assert f'class="ed-said" role="{role}"' in figures.answer(view_of("x", state))


def test_the_license_of_the_card_is_told_and_where_there_is_none_that_is():
    assert "as its card states it: <b>mit</b>." in figures.license_line("mit")
    assert "no card that states a licence" in figures.license_line("")
    places = {}
    for name in ("digits", "own"):
        opened = replace(ensembles.open_bundle("digits"), license={"digits": "apache-2.0", "own": ""}[name])
        places[name] = app.for_ensemble(opened)[app.INPUTS.index("license")]["value"]
    assert "<b>apache-2.0</b>" in places["digits"]
    assert figures.NO_LICENSE in places["own"]


def test_what_is_said_of_a_choice_comes_into_places_that_were_there_before():
    said = {"": figures.notice(""), "status": figures.notice("Opened."), "alert": figures.notice("No.", is_alert=True)}
    for place in ("status", "alert"):
        for kind, text in said.items():
            found = re.search(rf'<div role="{place}">(.*?)</div>', text)[1]
            assert bool(found) == (place == kind), "announced is what changes, not what appears"


def test_a_device_says_what_its_button_does_and_whether_the_answer_would_change():
    shown = figures.devices(view_of("5"))
    assert 'aria-label="Unplug device 0 (knows 5)"' in shown
    assert 'aria-label="Plug in device 1 (knows 5, b)"' in shown
    assert "the answer changes" in shown
    assert "and 18 more" in shown
    assert shown.count("<button") == 5
    whole = figures.devices(
        View(state="empty", sentence="", devices=(Device(index=0, classes=("a",), state="waiting"),))
    )
    assert 'data-all="1" hidden' in whole


def test_the_structure_stays_when_a_device_is_unplugged_so_that_the_focus_does():
    def buttons(state):
        device = Device(index=0, classes=("a", "b"), state=state, vote="a", vote_share=0.9, milliseconds=1.0)
        names = Tags(figures.devices(View(state="answered", sentence="", devices=(device,)))).names
        return names[: names.index("span", names.index("li"))]

    assert buttons("answered") == buttons("unplugged") == buttons("waiting")


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100.0"), (0.9999, "99.9"), (0.9994, "99.9"), (0.955, "95.5"), (0.00001, "< 0.1"), (0.0, "0.0")],
)
def test_a_share_is_never_rounded_to_certainty(share, text):
    assert percent(share) == f"{text} %"
    assert figures._percent(share) == f"{html.escape(text)} %".replace(" ", "&nbsp;")


def test_the_comparison_ends_its_words_with_what_to_deploy_where_the_results_say_it():
    said = "deploy: one plain model on every device because <b>nothing</b> is better"
    assert documents.verdict_of({"choice": {"verdict": said}}) == said
    for other in ({}, {"choice": None}, {"choice": []}, {"choice": {"verdict": 7}}):
        assert documents.verdict_of(other) == ""
    assert len(documents.verdict_of({"choice": {"verdict": "x" * 10_000}})) < 1000
    shown = figures.comparison([MODEL], said)
    assert "<p>What its run says: deploy: one plain model on every device because &lt;b&gt;nothing" in shown
    assert "What its run says" not in figures.comparison([MODEL])


def test_figures_of_the_comparison_that_are_missing_are_said_to_be_and_bars_relate_to_the_largest():
    rows = [
        Model(name="teacher", accuracy=0.97, bytes_per_device=2_000_000, bytes_total=2_000_000, milliseconds=None),
        Model(name="ensemble", accuracy=0.95, bytes_per_device=500_000, bytes_total=2_000_000, milliseconds=4.0),
    ]
    shown = figures.comparison(rows)
    assert shown.count("not measured") == 1
    assert "width:25.0%" in shown
    assert "2.0&nbsp;MB" in shown
    assert "500&nbsp;kB" in shown
    assert figures.comparison([]) == ""


def test_what_is_seen_is_the_same_pixels():
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    shown = figures.seen(View(state="answered", sentence="", seen=pixels), "image-classification")
    data = re.search(r'src="data:image/png;base64,([^"]+)"', shown)[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
    assert "6 by 8 pixels" in shown


def test_only_small_pictures_and_sounds_are_put_into_the_page(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    for task in ("image-classification", "audio-classification"):
        shown = figures.examples([Item(label="x", value=str(tmp_path / "secret.txt"))], task)
        assert base64.b64encode(b"secret").decode() not in shown
    for name in ("sound.wav", "large.wav"):
        (tmp_path / name).write_bytes(b"sound" * (1 if name == "sound.wav" else figures.MAX_EMBEDDED_BYTES))
    shown = [
        figures.examples([Item(label="x", value=str(tmp_path / n))], "audio-classification")
        for n in ("sound.wav", "large.wav")
    ]
    assert ['data-sound="data:audio/wav' in text for text in shown] == [True, False]


@settings(max_examples=80, deadline=None)
@given(st.floats(1e-3, 1e7))
def test_ticks_are_round_and_few(total):
    found = charts.ticks(total)
    assert found[0] == 0
    assert 2 <= len(found) <= 6
    assert found[-1] <= total * (1 + 1e-9)
    np.testing.assert_allclose(np.diff(found), found[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=6))
def test_spans_stay_inside_the_drawing_and_are_told_in_words(times):
    spans = tuple(
        Span(lane=f"device {i}", kind="compute", start_ms=min(pair), end_ms=max(pair)) for i, pair in enumerate(times)
    )
    item = Timeline(title="t", is_measured=True, spans=spans, total_ms=max(s.end_ms for s in spans), note="")
    shown = charts.timeline(item, "x")
    assert "measured" in shown
    for x, width in re.findall(r'class="ed-span" x="([\d.]+)%" y="\d+" width="([\d.]+)%"', shown):
        assert float(x) + float(width) <= 100.02
    assert charts.spoken(item).count("compute from") == len(spans)


def test_a_timeline_of_nothing_and_an_empty_page_have_words_too():
    assert "first answer" in charts.timelines(())
    item = Timeline(title="t", is_measured=False, spans=(), total_ms=0.0, note="")
    assert "predicted" in charts.timeline(item, "x")


def drawn(size=(SIDE, SIDE), mode="RGBA", kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size, 7).save(buffer, kind)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


DRAWN_WITH_TEXTS = "data:image/png;base64," + base64.b64encode(png(chunk(b"tEXt", b"a\0b") * 4000)).decode()


def test_a_drawing_of_many_pieces_is_not_given_to_a_decoder(monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("a decoder was given it"))
    with pytest.raises(DataError):
        read_drawing(DRAWN_WITH_TEXTS)


def test_a_drawing_comes_back_as_it_was():
    pixels = read_drawing(drawn())["layers"][0]
    assert pixels.shape == (SIDE, SIDE, 4)


@pytest.mark.parametrize(
    "png",
    [
        None,
        5,
        [],
        "",
        "data:image/png;base64,",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,&&",
        drawn()[:-40],
        drawn((SIDE, SIDE + 1)),
        drawn((3000, 3000)),
        drawn(kind="JPEG", mode="RGB"),
        drawn() + "A" * MAX_CHARACTERS,
    ],
)
def test_a_drawing_that_is_none_is_refused(png):
    with pytest.raises(DataError, match="draw again"):
        read_drawing(png)


async def _asked(guard, headers, chunks):
    """The status that a request gets, its headers, and the bytes that the app read."""
    sent, pieces = [], [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]

    async def receive():
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await guard({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])


def test_requests_are_bounded_with_and_without_a_told_length():
    read = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append(len(message["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guard = safety.Guard(app, max_bytes=100)
    status, headers = asyncio.run(_asked(guard, [(b"content-length", b"101")], []))
    assert (status, read) == (413, [])
    assert b"content-security-policy" in headers
    assert asyncio.run(_asked(guard, [(b"content-length", b"-5")], []))[0] == 413
    status, headers = asyncio.run(_asked(guard, [(b"content-length", b"100")], [b"x" * 100]))
    assert status == 200
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    read.clear()
    asyncio.run(_asked(guard, [], [b"x" * 60] * 50))
    assert sum(read) <= 100


def test_what_is_written_to_the_log_at_once_is_bounded():
    kept = io.StringIO()
    log = safety.BoundedLog(kept)
    whole = "x" * (2 * safety.LOGGED_CHARACTERS)
    assert log.write(whole) == len(whole)
    assert kept.getvalue() == whole
    kept.seek(kept.truncate(0))
    print("begin" + "x\n" * 10**6 + "end", file=log, end="")
    assert kept.getvalue().startswith("begin")
    assert kept.getvalue().endswith("end")
    assert " characters left out] " in kept.getvalue()
    assert len(kept.getvalue()) < len(whole) + 50
    assert log.getvalue() == kept.getvalue(), "else it is the stream behind"
    kept.seek(kept.truncate(0))
    log.writelines(["x" * 10**6, "y\n"])
    assert kept.getvalue().endswith("xy\n")
    assert len(kept.getvalue()) < len(whole) + 50
    assert copy.copy(log).stream is kept
    kept.seek(kept.truncate(0))
    assert log.write("\x1b[2Ja\x9bb\r\n\tc") == 11
    assert kept.getvalue() == "\\x1b[2Ja\\x9bb\r\n\tc", "nothing that a terminal obeys"


def test_a_process_without_streams_gets_none_to_bound(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    safety.bound_log()
    assert (sys.stdout, sys.stderr) == (None, None)
    kept = io.StringIO()
    monkeypatch.setattr(sys, "stderr", kept)
    safety.bound_log()
    assert sys.stdout is None
    assert sys.stderr.stream is kept


SERVED = """
import sys
import app
app.main(prevent_thread_lock=True)
assert not {"torch", "transformers"} & set(sys.modules)
print("[served]", flush=True)
sys.stdin.read()
"""


def test_the_served_page_keeps_to_itself(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "TMPDIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(home),
    }
    for name in ("EDVIT_CACHE_DIR", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    log = tmp_path / "log.txt"
    with log.open("w") as written:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVED],
            cwd=SPACE,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
        )
    try:
        lines = iter(server.stdout.readline, "")
        said = list(itertools.takewhile(lambda line: not line.startswith("["), lines))
        assert said == [f"The page is at {base}/ (Ctrl-C ends it)\n"], "and no advice to share it publicly"
        with urllib.request.urlopen(base) as page:
            assert "default-src 'self'" in page.headers["content-security-policy"]
        for path in (SPACE / "app.py", SPACE / "model/digits/manifest.json", "/etc/passwd"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{base}/gradio_api/file={path}")
            assert refused.value.code in (403, 404)
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            foreign = urllib.request.Request(f"{base}/gradio_api/upload", data=b"x", headers=headers)
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(foreign)
        huge = urllib.request.Request(f"{base}/gradio_api/upload", data=b"x" * (inputs.MAX_FILE_BYTES + 2**21))
        with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as refused:
            urllib.request.urlopen(huge)
        assert getattr(refused.value, "code", 413) == 413
        assert list(tmp_path.glob("edvit_space_*"))
        malformed = json.dumps({"data": ["x" * 1_000_000], "fn_index": 0, "session_hash": "a"}).encode()
        asked = urllib.request.Request(
            f"{base}/gradio_api/run/predict", malformed, {"content-type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(asked)
        server.terminate()  # as a container is ended
        server.wait(20)
    finally:
        server.stdin.close()
        server.kill()
        server.wait(20)
    assert not list(tmp_path.glob("edvit_space_*"))
    assert "characters left out" in log.read_text(), "gradio logs what a malformed request held"
    assert log.stat().st_size < 50_000
    assert "fontManager" not in log.read_text(), "gradio's matplotlib would work on for seconds beside the first answer"
    assert not list(home.iterdir()), "nothing is written outside the temporary folder"
