# SPDX-License-Identifier: Apache-2.0
"""What a visitor's event does to the page: the visitor's state and the page's parts as HTML. No gradio here."""

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from answers import answering, ensembles, inputs
from answers.opened import OpenEnsemble
from answers.views import View
from edvit_hf.errors import DataError, EDViTError
from page import figures
from page.charts import timelines
from page.scripts import read_drawing

logger = logging.getLogger(__name__)

NO_ENSEMBLE = (
    "There is no bundled ensemble beside this page. Name a folder or a Hub id of an exported one, "
    "or fill model/ as space_app/README.md tells."
)
BROKEN = "Something went wrong on this machine. The page lives on: try again, or try another input."
GONE = "This example is not there any more. Choose another one."
TOO_MANY = "You ask faster than the page can answer. Wait for the answer, then go on."
MAX_DEVICES = 10_000
MAX_HELD_BYTES = 256 * 2**20
"""Of the inputs of all visits together."""


@dataclass
class Visit:
    """What one visitor does. Ensembles are shared by all, so only the name of theirs is kept.

    `session` is the browser's, whose events are answered in order. `address` is where they come from: one cannot take
    the places of all. None where nothing is known.
    """

    source: str | None
    prepared: inputs.PreparedInput | None = None
    unplugged: tuple[int, ...] = ()
    fleet: str | None = None
    session: str | None = None
    address: str | None = None


class Held:
    """The inputs that visits hold: those of whoever did nothing for longest are forgotten where all are too large."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._lock = max_bytes, threading.Lock()
        self._visits: OrderedDict[int, tuple[weakref.ref[Visit], int]] = OrderedDict()

    def keep(self, visit: Visit) -> None:
        """Count what this visit holds now."""
        with self._lock:
            self._visits.pop(id(visit), None)
            if visit.prepared is not None:
                self._visits[id(visit)] = weakref.ref(visit), visit.prepared.num_bytes
            for key in [key for key, (found, _) in self._visits.items() if found() is None]:
                del self._visits[key]
            while len(self._visits) > 1 and sum(size for _, size in self._visits.values()) > self._max_bytes:
                _, (oldest, _) = self._visits.popitem(last=False)
                if (found := oldest()) is not None:
                    found.prepared = None


held = Held(MAX_HELD_BYTES)


@dataclass(frozen=True, kw_only=True)
class Panels:
    """The parts of the page that every event changes, as HTML."""

    answer: str
    seen: str
    devices: str
    timelines: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What choosing an ensemble led to.

    Attributes:
        panels: The page now.
        opened: The ensemble; None if the page keeps the one it had.
        notice: Why, or what was opened, as HTML; without a sentence if there is nothing to say.
        asks_source: Whether to show the field for a Hub id or folder.
    """

    panels: Panels
    opened: OpenEnsemble | None = None
    notice: str = figures.notice("")
    asks_source: bool = False


def start(name: str | None) -> Visit:
    """A new visitor, at the bundled ensemble of that name."""
    return Visit(None if name is None else ensembles.open_bundle(name).name)


def resume(source: str) -> Visit:
    """A visitor whose visit was forgotten, at the ensemble that the browser still shows; the input is gone."""
    return Visit(source)


def show(visit: Visit, refusal: str = "") -> Panels:
    """The page as the visit stands; with a refusal, without an answer and with the reason."""
    opened = None
    if visit.source is not None:
        try:
            opened = ensembles.open_named(visit.source)
        except EDViTError as error:
            refusal = str(error)
    if opened is None:
        view, task = View(state="refused" if refusal else "empty", sentence=refusal or NO_ENSEMBLE), ""
    else:
        task = opened.task
        view = answering.view(opened, None if refusal else visit.prepared, visit.unplugged, visit.fleet)
        if refusal:
            view = replace(view, state="refused", sentence=refusal, card_note="")
    return Panels(
        answer=figures.answer(view),
        seen=figures.seen(view, task),
        devices=figures.devices(view),
        timelines=timelines(view.timelines),
    )


def answer(visit: Visit, prepare: Callable[[OpenEnsemble], inputs.PreparedInput | None]) -> Panels:
    """Take an input and answer; whatever is wrong with it becomes a sentence on the page."""
    try:
        visit.prepared = None if visit.source is None else prepare(ensembles.open_named(visit.source))
        held.keep(visit)
        return show(visit)
    except EDViTError as error:
        return _refuse(visit, str(error))
    except Exception:
        logger.exception("an input was not answered")
        return _refuse(visit, BROKEN)


def draw(visit: Visit, png: Any) -> Panels:
    """A drawing, as the browser sends it."""
    return answer(visit, lambda opened: inputs.prepare_drawing(opened, read_drawing(png)))


def take_file(visit: Visit, path: str | None) -> Panels:
    """An uploaded picture, or an uploaded or recorded sound; None clears the input."""

    def prepare(opened: OpenEnsemble) -> inputs.PreparedInput:
        if opened.task == "audio-classification":
            return inputs.prepare_sound(opened, path)
        return inputs.prepare_image(opened, path)

    return clear(visit) if path is None else answer(visit, prepare)


def type_text(visit: Visit, text: str) -> Panels:
    """A text."""
    return answer(visit, lambda opened: inputs.prepare_text(opened, text))


def take_example(visit: Visit, index: Any) -> Panels:
    """A bundled example, by its place."""

    def prepare(opened: OpenEnsemble) -> inputs.PreparedInput:
        if not isinstance(index, int) or not 0 <= index < len(opened.examples):
            raise DataError(GONE)
        value = opened.examples[index].value
        if opened.task == "text-classification":
            return inputs.prepare_text(opened, str(value))
        return (inputs.prepare_sound if opened.task == "audio-classification" else inputs.prepare_image)(opened, value)

    return answer(visit, prepare)


def clear(visit: Visit) -> Panels:
    """No input again."""
    return answer(visit, lambda _: None)


def plug(visit: Visit, device: Any, is_out: Any) -> Panels:
    """Answer again for the same input with one device unplugged or plugged in again; no device: with all plugged in."""
    if device is None:
        visit.unplugged = ()
    elif isinstance(device, int) and 0 <= device < MAX_DEVICES:
        others = set(visit.unplugged) - {device}
        visit.unplugged = tuple(sorted(others | {device} if is_out else others))
    return answer(visit, lambda _: visit.prepared)


def predict_for(visit: Visit, fleet: str | None) -> Panels:
    """Another fleet in the predicted timeline."""
    visit.fleet = fleet
    return answer(visit, lambda _: visit.prepared)


def choose_bundle(visit: Visit, name: Any) -> Choice:
    """One of the bundled ensembles; "another ensemble" only asks for its name."""
    if name == figures.OTHER_SOURCE:
        return Choice(panels=show(visit), asks_source=True)
    return _choose(visit, lambda: ensembles.open_bundle(str(name)), is_bundle=True)


def choose_other(visit: Visit, source: str | None) -> Choice:
    """An ensemble of the Hub or of a folder."""
    return _choose(visit, lambda: ensembles.open_other(source or "", visit.address), is_bundle=False)


def _choose(visit: Visit, opening: Callable[[], OpenEnsemble], *, is_bundle: bool) -> Choice:
    """Open, forget the input of the old one, show; where that fails the page keeps what it had and says why."""
    try:
        opened = opening()
        visit.source, visit.prepared, visit.unplugged, visit.fleet = opened.name, None, (), None
        panels = show(visit)
    except EDViTError as error:
        reason = str(error)
    except Exception:
        logger.exception("an ensemble was not opened")
        reason = BROKEN
    else:
        count = len(opened.devices)
        said = f"Opened {opened.title}, {count} device{'s' if count > 1 else ''}."
        notice = figures.notice("" if is_bundle else said)
        return Choice(panels=panels, opened=opened, notice=notice, asks_source=not is_bundle)
    return Choice(panels=show(visit), notice=figures.notice(reason, is_alert=True), asks_source=not is_bundle)


def _refuse(visit: Visit, sentence: str) -> Panels:
    visit.prepared = None
    return show(visit, sentence)
