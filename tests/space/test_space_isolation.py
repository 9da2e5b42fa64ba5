# SPDX-License-Identifier: Apache-2.0
"""The Space: files and ensembles of strangers get processes of their own, and what one of them does delays nobody."""

import contextlib
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

import app
from answers import answering, ensembles, inputs, isolation, turns
from answers.isolation import IsolatedEnsemble
from answers.runtimes import VisitorError
from edvit_hf.errors import DataError
from edvit_hf.isolation import ChildLimits
from support.hostile_graphs import FUSION, make_endless, make_heavy
from support.space_ensembles import drawn, write_digits, write_each
from support.tiny_ensemble import write_tiny_ensemble

IMAGE, SOUND, TEXT = "image-classification", "audio-classification", "text-classification"
GROUPS = [[0, 3], [1], [2, 4]]
PATIENCE = 2.0  # seconds that a hostile visitor may cost an honest one


@pytest.fixture(scope="module", autouse=True)
def _isolated():
    """As app.py does it, with fewer processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "READERS", 2)
        patch.setattr(isolation, "SPARE_READERS", 0)
        digits = ensembles.open_bundle("digits")
        isolation.start([(digits.folder, digits.taker)])
        yield
        isolation.stop()
        ensembles.openings.clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_each(tmp_path_factory)


def picture(tmp_path, side=300):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "picture.png").write_bytes(buffer.getvalue())
    return tmp_path / "picture.png"


def in_this_process(monkeypatch, folder):
    """The same ensemble, opened and asked here."""
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "is_on", lambda: False)
        return ensembles._open_source(str(folder), name=str(folder), may_be_folder=True)


def test_an_ensemble_that_a_visitor_names_answers_from_its_own_process_as_it_would_here(folders, monkeypatch, tmp_path):
    for task in (IMAGE, TEXT):
        opened, here = ensembles.open_other(str(folders[task])), in_this_process(monkeypatch, folders[task])
        assert isinstance(opened.runtime, IsolatedEnsemble)
        prepare = inputs.prepare_image if task == IMAGE else inputs.prepare_text
        given = picture(tmp_path) if task == IMAGE else "word1 word2"
        prepared, expected = prepare(opened, given), prepare(here, given)
        for name, values in expected.inputs.items():
            np.testing.assert_array_equal(prepared.inputs[name], values)
        assert (prepared.tokens, prepared.caution) == (expected.tokens, expected.caution)
        for unplugged in ((), (1,)):
            shown = answering.view(opened, prepared, unplugged)
            wanted = answering.view(here, expected, unplugged)
            assert shown.state == wanted.state == ("degraded" if unplugged else "answered")
            assert dict(shown.probabilities) == pytest.approx(dict(wanted.probabilities))
            assert [d.vote for d in shown.devices] == [d.vote for d in wanted.devices]
            assert [d.answer_without for d in shown.devices] == [d.answer_without for d in wanted.devices]


def test_drawings_are_read_there_too(tmp_path):
    opened = ensembles.open_other(str(write_digits(tmp_path / "digits")))
    assert opened.can_draw
    view = answering.view(opened, inputs.prepare_drawing(opened, drawn(7)), ())
    assert (view.state, view.label) == ("answered", "7")


def test_a_file_for_an_ensemble_of_the_page_is_read_in_a_process_and_a_refusal_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "read", lambda *_: pytest.fail("it was read here"))
    opened = ensembles.open_bundle("digits")
    prepared = inputs.prepare_image(opened, picture(tmp_path))
    assert answering.view(opened, prepared, ()).state == "answered"
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable picture"):
        inputs.prepare_image(opened, tmp_path / "x.png")


class Honest:
    """A visitor of the page's own ensemble who asks again and again, and how long each answer took."""

    def __init__(self, path):
        self.seconds, self._path, self._end = [], path, threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self):
        opened = ensembles.open_bundle("digits")
        while not self._end.is_set():
            begin = time.monotonic()
            view = answering.view(opened, inputs.prepare_image(opened, self._path), ())
            self.seconds.append(time.monotonic() - begin)
            assert view.state == "answered"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join(30)
        assert self.seconds
        assert max(self.seconds) < PATIENCE


KINDS = {
    "an endless fusion head": lambda root: make_endless(root, FUSION, spares_zeros=True),
    "an operator that does not stop": lambda root: make_heavy(root, FUSION, 5000, spares_zeros=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_that_hangs_costs_its_visitor_an_answer_and_nobody_else(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "DEADLINE_MS", 600)
    monkeypatch.setattr(isolation, "ASK_SECONDS", 2.0)
    write_tiny_ensemble(tmp_path / "hostile", GROUPS)
    KINDS[kind](tmp_path / "hostile")
    hostile = ensembles.open_other(str(tmp_path / "hostile"))
    prepared = inputs.prepare_image(hostile, picture(tmp_path))
    with Honest(picture(tmp_path)):
        begin = time.monotonic()
        view = answering.view(hostile, prepared, ())
        assert time.monotonic() - begin < 6
    assert view.state == "refused"
    if kind == "an operator that does not stop":
        assert view.sentence == isolation.GONE
        with pytest.raises(VisitorError, match="Open it again"):
            ensembles.open_named(str(tmp_path / "hostile"))
        assert ensembles.open_other(str(tmp_path / "hostile")) is not hostile


def test_one_that_never_opens_is_told_and_frees_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "OPEN_SECONDS", 1.5)
    write_tiny_ensemble(tmp_path / "hostile", GROUPS)
    make_heavy(tmp_path / "hostile", FUSION, 9000)
    with Honest(picture(tmp_path)), pytest.raises(VisitorError, match="too long or too much memory to be opened"):
        ensembles.open_other(str(tmp_path / "hostile"), "a visitor")
    assert not ensembles.openings._opening


def test_one_that_takes_too_much_memory_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "ENSEMBLE_LIMITS", ChildLimits(memory_bytes=200 << 20, may_start_threads=True))
    write_tiny_ensemble(tmp_path / "hostile", GROUPS)
    make_heavy(tmp_path / "hostile", FUSION, 20_000)
    with pytest.raises(VisitorError):
        ensembles.open_other(str(tmp_path / "hostile"))


def test_whoever_asks_an_ensemble_that_many_wait_for_is_told_at_once(folders, tmp_path):
    opened = ensembles.open_other(str(folders[IMAGE]))
    prepared = inputs.prepare_image(opened, picture(tmp_path))
    with contextlib.ExitStack() as held:
        for _ in range(isolation.MAX_ASKED):
            held.enter_context(isolation._asked.hold(None))
        assert answering.view(opened, prepared, ()).sentence == answering.BUSY
    assert answering.view(opened, prepared, ()).state == "answered"


def test_for_own_files_alone_it_can_be_switched_off(monkeypatch, caplog):
    monkeypatch.setenv("EDVIT_SPACE_ISOLATION", "off")
    monkeypatch.setattr(isolation, "start", lambda: pytest.fail("it was started"))
    app.start_isolation()
    assert "isolation is off" in caplog.text


def test_whoever_sends_a_file_while_many_are_read_is_told_at_once(tmp_path):
    opened = ensembles.open_bundle("digits")
    with contextlib.ExitStack() as held:
        for _ in range(isolation.MAX_READING):
            held.enter_context(isolation._reading.hold(None))
        with pytest.raises(DataError) as refused:
            inputs.prepare_image(opened, picture(tmp_path))
        assert str(refused.value) == isolation.READERS_BUSY
        assert inputs.prepare_image(opened, opened.examples[0].value).seen is not None, "an example is the page's own"


def test_one_address_holds_no_more_than_its_part_of_the_places_whatever_it_calls_its_sessions(folders, tmp_path):
    named, bundle = ensembles.open_other(str(folders[IMAGE])), ensembles.open_bundle("digits")
    given, prepared = picture(tmp_path), inputs.prepare_image(named, picture(tmp_path))
    with contextlib.ExitStack() as held:
        for places in (isolation._asked, isolation._reading):
            for _ in range(isolation.MAX_EACH):
                held.enter_context(places.hold("192.0.2.1"))
        with turns.asking("192.0.2.1"):
            assert answering.view(named, prepared, ()).sentence == answering.BUSY
            with pytest.raises(DataError, match="Many files are read"):
                inputs.prepare_image(bundle, given)
        with turns.asking("192.0.2.2"):
            assert answering.view(named, prepared, ()).state == "answered"
            assert inputs.prepare_image(bundle, given).seen is not None
    assert len(isolation._asked) == len(isolation._reading) == 0


def test_a_file_that_hangs_its_reader_is_refused_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "READ_SECONDS", 0.0)
    opened = ensembles.open_bundle("digits")
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.jpg")  # reading it takes longer than waking a timer
    with pytest.raises(DataError) as refused:
        inputs.prepare_image(opened, str(tmp_path / "large.jpg"))
    assert str(refused.value) == isolation.TOO_MUCH
    monkeypatch.setattr(isolation, "READ_SECONDS", 5.0)
    assert inputs.prepare_image(opened, picture(tmp_path)).seen is not None
