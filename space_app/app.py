# SPDX-License-Identifier: Apache-2.0
"""The Space: layout and events only. What events do is in page/visits.py, what they compute in answers/."""

import contextlib
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

from page.safety import Guard, bound_log, private_folder

private_folder()  # before gradio, which reads its settings when it is imported

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from answers import ensembles, inputs, isolation, turns  # noqa: E402
from answers.opened import OpenEnsemble  # noqa: E402
from edvit_hf.errors import EDViTError, OverloadedError  # noqa: E402
from page import figures, scripts, visits  # noqa: E402
from page.hosts import Hosts  # noqa: E402
from page.uploads import Uploads  # noqa: E402

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
MAX_BODY_BYTES = inputs.MAX_FILE_BYTES + 2**20  # of one request: a file and what is around it
MAX_WAITING = 64  # requests in the queue; further ones are turned away
# Answered and opened at a time. What may take long has fewer places than there are, so that the others stay free.
ANSWERS, OPENINGS_AT_ONCE = isolation.MAX_ASKED + isolation.MAX_READING + 4, ensembles.MAX_WAITING + 2
ANSWERS_EACH = ANSWERS // 2  # of one address
MAX_THREADS = ANSWERS + OPENINGS_AT_ONCE + 8
STATE_SECONDS = 3600  # after which a visitor who does nothing is forgotten
FILE_SECONDS = (600, 3600)  # how often uploads are looked through, and how old they become
TITLE = "edvit_hf: one transformer, several small devices"
FONTS = ["Inter", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # none is fetched
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def html(value: str = "", *, script: str | None = None, **settings: Any) -> gr.HTML:
    """HTML as it stands, without gradio's own styles."""
    return gr.HTML(value, apply_default_css=False, js_on_load=script, **settings)


class Page:
    """The components, in order, and how events change them."""

    def __init__(self, first: str | None) -> None:
        self.first = first
        opened = None if first is None else ensembles.open_bundle(first)
        panels = visits.show(visits.start(first))
        fresh = dict(zip(INPUTS, for_ensemble(opened), strict=True))
        html(figures.HEADER, script=scripts.ENGLISH)
        self.visit = gr.State(None, time_to_live=STATE_SECONDS)
        # The ensemble that the browser shows, told with every event: a visit may be forgotten, an event may come late.
        self.shown = gr.Textbox(visible=False, **fresh["shown"])
        chosen, self.takes_folders = figures.OTHER_SOURCE if first is None else first, "SPACE_ID" not in os.environ
        choices = figures.ensemble_choices(ensembles.bundles(), chosen, takes_folders=self.takes_folders)
        self.choices = html(choices, script=scripts.PICK, elem_id="ensembles")
        self._source(visible=first is None)
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(elem_id="input", min_width=320):
                self._inputs(fresh, panels.seen)
            with gr.Column(elem_id="output", min_width=320):
                self.answer = html(panels.answer, elem_id="answer")
        self.devices = html(panels.devices, script=scripts.PLUG, elem_id="devices")
        with gr.Column(elem_id="timeline"):
            html(figures.TIMELINE_HEADING)
            self.fleet = gr.Dropdown(label="Predict for this fleet", elem_id="fleet", **fresh["fleet"])
            self.timelines = html(panels.timelines)
        self.comparison = html(elem_id="comparison", **fresh["comparison"])
        self.code = html(script=scripts.COPY, elem_id="code", **fresh["code"])
        self.card_box = gr.Accordion("Model card of this ensemble", open=False, elem_id="card", **fresh["card_box"])
        with self.card_box:
            self.card = gr.Markdown(**fresh["card"])
        self.license = html(elem_id="license", **fresh["license"])
        self.credits = gr.Markdown(elem_id="credits", **fresh["credits"])

    def _source(self, *, visible: bool) -> None:
        self.source = gr.Textbox(
            label="Hub id or folder" if self.takes_folders else "Hub id",
            placeholder="owner/name",
            max_lines=1,
            max_length=500,
            submit_btn="Open",
            visible=visible,
            elem_id="source",
        )
        self.notice = html(figures.notice(""), elem_id="notice")

    def _inputs(self, fresh: dict[str, dict[str, Any]], seen: str) -> None:
        self.heading = html(**fresh["heading"])
        self.text = gr.Textbox(
            label="Type a text and press Enter",
            placeholder="Who wrote the first novel?",
            max_lines=4,
            submit_btn="Ask",
            elem_id="text",
            **fresh["text"],
        )
        with gr.Row(elem_id="sources"):
            self.pad = html(script=scripts.DRAW, elem_id="pad", **fresh["pad"])
            self.microphone = gr.Audio(
                label="Record a sound",
                sources=["microphone"],
                type="filepath",
                elem_id="microphone",
                buttons=[],
                **fresh["microphone"],
            )
            with gr.Column(elem_id="beside", min_width=180):
                self.file = gr.File(type="filepath", height=156, elem_id="file", **fresh["file"])
                self.seen = html(seen, elem_id="seen")
        self.examples = html(script=scripts.EXAMPLE, elem_id="examples", **fresh["examples"])

    def connect(self, page: gr.Blocks) -> None:
        """Events. Those of one visitor come in turn; those of many at once, so that nobody holds up all others."""
        panels = [self.visit, self.answer, self.seen, self.devices, self.timelines]
        everything = [*panels, self.source, self.notice, *(getattr(self, name) for name in INPUTS)]
        answers = {
            "outputs": panels,
            "show_progress": "hidden",
            "concurrency_id": "answer",
            "concurrency_limit": ANSWERS,
        }
        opens = {
            "outputs": everything,
            "show_progress": "minimal",
            "concurrency_id": "open",
            "concurrency_limit": OPENINGS_AT_ONCE,
        }
        hidden: dict[str, Any] = {"api_visibility": "private"}
        always: dict[str, Any] = {**answers, **hidden, "trigger_mode": "multiple"}

        # Bundles are open already: those who choose one need not wait for those who fetch others.
        picks = {**opens, **hidden, "concurrency_id": "pick"}
        known = [self.visit, self.shown]
        page.load(self._visit, known, [self.visit], queue=False, show_progress="hidden", **hidden)
        self.choices.pick(self._chosen, known, **picks, trigger_mode="multiple")
        self.source.submit(self._other, [self.visit, self.source], api_name="open", **opens)
        self.pad.draw(self._event(visits.draw, "png"), known, **always)
        self.pad.wipe(self._event(visits.clear), known, **always)
        self.examples.example(self._event(visits.take_example, "index"), known, **always)
        self.devices.plug(self._event(visits.plug, "device", "out"), known, **always)
        take_file = self._value(visits.take_file)
        self.file.upload(take_file, [self.visit, self.file, self.shown], api_name="file", **answers)
        self.microphone.stop_recording(take_file, [self.visit, self.microphone, self.shown], **always)
        gr.on([self.file.clear, self.microphone.clear], self._event(visits.clear), known, **always)
        asked = [self.visit, self.text, self.shown]
        self.text.submit(self._value(visits.type_text), asked, api_name="text", **answers)
        self.fleet.input(self._value(visits.predict_for), [self.visit, self.fleet, self.shown], **always)

    def _visit(
        self, visit: visits.Visit | None, shown: str | None = None, request: gr.Request | None = None
    ) -> visits.Visit:
        if visit is None:
            visit = visits.resume(shown) if shown else visits.start(self.first)
        visit.session, visit.address = told_by(request)
        return visit

    def _event(self, act: Callable[..., visits.Panels], *names: str) -> Callable[..., tuple[Any, ...]]:
        """An event of one of the page's own controls, which sends what is named; one from before a choice is late."""

        def run(
            visit: visits.Visit | None, shown: str | None, event: gr.EventData, request: gr.Request | None = None
        ) -> tuple[Any, ...]:
            visit = self._visit(visit, shown, request)
            data = event._data if isinstance(event._data, dict) else {}
            is_late = shown != (visit.source or "")
            panels = in_turn(
                visit, lambda: visits.show(visit) if is_late else act(visit, *(data.get(name) for name in names))
            )
            return visit, *astuple(panels)

        return run

    def _value(self, act: Callable[..., visits.Panels]) -> Callable[..., tuple[Any, ...]]:
        """An event of one of gradio's components, with its value."""

        def run(
            visit: visits.Visit | None, value: Any, shown: str | None = None, request: gr.Request | None = None
        ) -> tuple[Any, ...]:
            visit = self._visit(visit, shown, request)
            return visit, *astuple(in_turn(visit, lambda: act(visit, value)))

        return run

    def _chosen(
        self, visit: visits.Visit | None, shown: str | None, event: gr.EventData, request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        visit = self._visit(visit, shown, request)
        name = event._data.get("name") if isinstance(event._data, dict) else None
        return visit, *changes(visits.choose_bundle(visit, name))

    def _other(self, visit: visits.Visit | None, source: str, request: gr.Request | None = None) -> tuple[Any, ...]:
        visit = self._visit(visit, None, request)
        return visit, *changes(visits.choose_other(visit, source))


TURNS = turns.Turns()
PLACES = turns.Places(ANSWERS, ANSWERS_EACH)


def told_by(request: gr.Request | None) -> tuple[str | None, str | None]:
    """The session, as the browser calls it, and the address, as `Guard` found it."""
    if request is None:
        return None, None
    address = request.client.host if request.client else None
    return request.session_hash or address, address


def in_turn(visit: visits.Visit, act: Callable[[], visits.Panels]) -> visits.Panels:
    """Act when this session's turn comes; refuse where too many of the same session or address wait."""
    try:
        with PLACES.hold(visit.address), TURNS.enter(visit.session), turns.asking(visit.address):
            return act()
    except OverloadedError:
        return visits.show(visit, visits.TOO_MANY)


FILE_LABELS = {
    "image-classification": "Upload a picture (PNG, JPEG, WebP)",
    "audio-classification": "Upload a sound (WAV, FLAC, MP3)",
}
OPENINGS = itertools.count()  # of ensembles in browsers: each has a field of its own to draw on
_GIVEN = ("heading", "pad", "microphone", "file", "text", "examples", "fleet")
_TOLD = ("comparison", "code", "card", "card_box", "license", "credits", "shown")
INPUTS = (*_GIVEN, *_TOLD)


def for_ensemble(opened: OpenEnsemble | None) -> tuple[dict[str, Any], ...]:
    """Settings of the components that depend on the ensemble, in the order of `INPUTS`."""
    task = None if opened is None else opened.task
    fleets = [] if opened is None else list(opened.plans)
    said = {} if opened is None else _texts(opened)
    values: dict[str, dict[str, Any]] = {
        "pad": {"value": scripts.pad(next(OPENINGS)), "visible": opened is not None and opened.can_draw},
        "microphone": {"value": None, "visible": task == "audio-classification"},
        "file": {"value": None, "visible": task in FILE_LABELS, "label": FILE_LABELS.get(task or "", "Upload a file")},
        "text": {"value": "", "visible": task == "text-classification"},
        "fleet": {"choices": fleets, "value": next(iter(fleets), None), "visible": len(fleets) > 0},
        "card_box": {"visible": bool(said.get("card"))},
    }
    return tuple(values.get(name, {"value": said.get(name, "")}) for name in INPUTS)


def _texts(opened: OpenEnsemble) -> dict[str, str]:
    """What the components say of an ensemble that only say something."""
    return {
        "shown": opened.name,
        "heading": figures.input_heading(opened.title, opened.hint),
        "examples": figures.examples(opened.examples, opened.task),
        "comparison": figures.comparison(opened.models, opened.verdict),
        "code": figures.code(opened.code),
        "card": figures.card_markdown(opened.card),
        "license": figures.license_line(opened.license),
        "credits": figures.card_markdown(opened.credits),
    }


def changes(choice: visits.Choice) -> tuple[Any, ...]:
    """A choice of an ensemble as values of the components, but for the visit."""
    if choice.opened is None:
        inputs: Sequence[Any] = [gr.skip()] * len(INPUTS)
    else:
        inputs = [gr.update(**settings) for settings in for_ensemble(choice.opened)]
    return *astuple(choice.panels), gr.update(visible=choice.asks_source), choice.notice, *inputs


def first_bundle() -> str | None:
    """The first of the bundled ensembles that opens; the page lives without one that does not."""
    for bundle in ensembles.bundles():
        try:
            return ensembles.open_bundle(bundle.name).name
        except EDViTError as error:
            logger.error("%s", error)
    return None


def build_page() -> gr.Blocks:
    """The page, with the first of the bundled ensembles open."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=FILE_SECONDS, fill_width=False) as page:
        Page(first_bundle()).connect(page)
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)


def launch(page: gr.Blocks, *, prevent_thread_lock: bool = False, **settings: Any) -> None:
    """Serve the page, on this machine alone unless GRADIO_SERVER_NAME says otherwise, as it does on a Space.

    gradio is quiet: it would advise a public link. Once the page is there, its address is printed here.
    """
    bound = settings.get("server_name") or os.environ.get("GRADIO_SERVER_NAME", "")
    hosts = Hosts({**os.environ, "GRADIO_SERVER_NAME": bound})
    uploads = Uploads(Path(os.environ["GRADIO_TEMP_DIR"]))
    guard = Middleware(Guard, max_bytes=MAX_BODY_BYTES, hosts=hosts, uploads=uploads)
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)
    fixed: dict[str, Any] = {
        **dict.fromkeys(("share", "ssr_mode", "mcp_server", "enable_monitoring", "pwa"), False),
        "theme": theme,
        "css_paths": HERE / "page" / "style.css",
        "max_file_size": inputs.MAX_FILE_BYTES,
        "footer_links": ["gradio", "settings"],
        "max_threads": MAX_THREADS,
        "state_session_capacity": 500,
        "quiet": True,
        "allowed_paths": [],
        "app_kwargs": {"middleware": [guard]},
    }
    _, address, _ = page.launch(prevent_thread_lock=True, **{**fixed, **settings})
    sys.stdout.write(f"The page is at {address} (Ctrl-C ends it)\n")
    sys.stdout.flush()
    if not prevent_thread_lock:
        page.block_thread()


def start_isolation() -> None:
    """Give strangers' files and ensembles processes of their own, unless EDVIT_SPACE_ISOLATION says "off".

    Raises:
        EDViTError: They do not start.
    """
    if os.environ.get("EDVIT_SPACE_ISOLATION", "on") == "off":
        logger.warning("isolation is off: files and ensembles that visitors name are opened in this process")
        return
    isolation.start()


def main(**settings: Any) -> None:
    """Build the page and serve it."""
    bound_log()
    logging.basicConfig(level=logging.INFO)
    with contextlib.suppress(ImportError):  # where it is installed gradio would at the first event, beside an answer
        importlib.import_module("matplotlib")
    with ThreadPoolExecutor(1) as other:  # both take a second or two
        starting = other.submit(start_isolation)
        page = build_page()
        starting.result()
    launch(page, **settings)


if __name__ == "__main__":
    main()
