# SPDX-License-Identifier: Apache-2.0
"""The Space: by what names it may be called and from what pages, and how much visitors may leave there."""

import asyncio
import os
import threading
import time
import types

import numpy as np
import pytest

import app as space
from answers import turns
from answers.reading import Reading
from edvit_hf.errors import OverloadedError
from page import safety, uploads, visits
from page.hosts import Hosts
from page.visitors import visitor_address

SPACE = {
    "SPACE_ID": "owner/name",
    "SPACE_HOST": "owner-name.hf.space,pictures.example.org",
    "GRADIO_SERVER_NAME": "0.0.0.0",
}
PLACES = {
    "here": {},
    "localhost": {"GRADIO_SERVER_NAME": "localhost"},
    "the network": {"GRADIO_SERVER_NAME": "0.0.0.0"},
    "IPv6": {"GRADIO_SERVER_NAME": "::"},
    "a proxy": {"EDVIT_SPACE_HOSTS": " pictures.example.org, b.example "},
    "a Space": SPACE,
}
NAMES = {
    "127.0.0.1:7860": list(PLACES),
    "[::1]:7860": list(PLACES),
    "localhost": list(PLACES),
    "LOCALHOST:1": list(PLACES),
    "192.168.1.7:7860": ["the network", "IPv6", "a Space"],
    "owner-name.hf.space": ["a Space"],
    "owner-name--dev.hf.space": ["a Space"],
    "pictures.example.org": ["a proxy", "a Space"],
    "evil.example": [],
    "evil.example:7860": [],
    "evilhf.space": [],
    "hf.space.evil.example": [],
    "localhost.evil.example": [],
    "127.0.0.1.evil.example": [],
    "": [],
    "[": [],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_called_by_its_own_names_alone(name):
    taken = [place for place, environment in PLACES.items() if Hosts(environment).takes(name)]
    assert taken == [place for place in PLACES if place in NAMES[name]]


def test_a_request_without_a_name_is_refused():
    assert not Hosts({}).takes(None)


@pytest.mark.parametrize(
    ("origin", "is_foreign", "is_foreign_to_a_space"),
    [
        (None, False, False),
        ("http://localhost:7860", False, True),
        ("http://localhost:7861", True, True),
        ("https://evil.example", True, True),
        ("null", True, True),
        ("http://[", True, True),
        ("https://huggingface.co", True, False),
        ("https://owner-name.hf.space", True, False),
        ("https://evilhuggingface.co", True, True),
    ],
)
def test_pages_of_other_sites_may_not_ask(origin, is_foreign, is_foreign_to_a_space):
    assert Hosts({}).is_foreign(origin, "localhost:7860") == is_foreign
    assert Hosts(SPACE).is_foreign(origin, "owner-name.hf.space") == is_foreign_to_a_space


def asked(guard, *, method="POST", path="/gradio_api/upload", chunks=(), client="10.0.0.1", kind="http", **headers):
    """The status that a request gets, or what a websocket is told."""
    sent, pieces = [], [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]

    async def receive():
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "client": (client, 1)}
    scope["headers"] = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard(scope, receive, send))
    return sent[0].get("status", sent[0]["type"])


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    while (await receive())["type"] == "http.request":
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_the_guard_asks_both_and_lets_pictures_of_the_page_be_shown_anywhere():
    guard = safety.Guard(app, max_bytes=100, hosts=Hosts({}))
    assert asked(guard, host="localhost:7860", origin="http://localhost:7860") == 200
    assert asked(guard, host="localhost:7860") == 200
    assert asked(guard, host="evil.example") == 403
    assert asked(guard, method="GET", host="evil.example") == 403
    assert asked(guard) == 403
    assert asked(guard, host="localhost:7860", origin="http://evil.example") == 403
    assert asked(guard, method="GET", host="localhost:7860", origin="http://evil.example") == 200
    assert asked(guard, kind="websocket", host="localhost:7860") == "websocket.accept"
    assert asked(guard, kind="websocket", host="evil.example") == "websocket.close"
    assert asked(guard, kind="websocket", host="localhost:7860", origin="http://evil.example") == "websocket.close"


def part(name=b"a.png", size=10):
    return b'--x\r\ncontent-disposition: form-data; name="files"; filename="' + name + b'"\r\n\r\n' + b"x" * size


@pytest.fixture
def clock():
    return [0.0]


def guarded(tmp_path, clock, **limits):
    counted = uploads.Uploads(tmp_path, uploads.UploadLimits(**limits), now=lambda: clock[0])
    return safety.Guard(app, max_bytes=10_000, uploads=counted)


def test_one_visitor_may_leave_so_many_bytes_and_others_still_may(tmp_path, clock):
    guard = guarded(tmp_path, clock, each_bytes=1000, seconds=60)
    for _ in range(9):
        assert asked(guard, chunks=[part(size=30)]) == 200
    assert asked(guard, content_length="400", chunks=[]) == 429
    while asked(guard, chunks=[b"x" * 100]) == 200:
        pass
    assert asked(guard, chunks=[part()]) == 429
    assert asked(guard, chunks=[part()], client="10.0.0.2") == 200
    assert asked(guard, method="GET", chunks=[]) == 200
    clock[0] = 61
    assert asked(guard, chunks=[part()]) == 200


def test_on_a_space_visitors_are_told_apart_though_all_come_through_its_proxy(tmp_path, clock):
    guard = guarded(tmp_path, clock, each_files=1)
    for hosts, taken in ((Hosts(SPACE), 200), (Hosts({}), 429)):
        guard.hosts, guard.uploads = hosts, uploads.Uploads(tmp_path, uploads.UploadLimits(each_files=1))
        for number, status in ((1, 200), (1, 429), (2, taken)):
            name = "owner-name.hf.space" if taken == 200 else "localhost"
            assert asked(guard, chunks=[part()], host=name, x_forwarded_for=f"192.0.2.{number}, 10.0.0.1") == status


CHAINS = {
    "one address": (["192.0.2.1"], "192.0.2.1"),
    "through private hops": (["192.0.2.1, 10.0.0.1, 172.16.3.4,192.168.1.1, 100.64.0.9, fd00::1"], "192.0.2.1"),
    "a first entry of the sender's": (["198.51.100.7, 192.0.2.1, 10.0.0.1"], "192.0.2.1"),
    "a private first entry of the sender's": (["10.9.9.9, 192.0.2.1"], "192.0.2.1"),
    "nonsense of the sender's": (["x, , <b>, 192.0.2.1"], "192.0.2.1"),
    "a line of the sender's": (["198.51.100.7", "192.0.2.1, 10.0.0.1"], "192.0.2.1"),
    "a port": (["192.0.2.1:4711"], "192.0.2.1"),
    "IPv4 written as IPv6": (["::ffff:192.0.2.1"], "192.0.2.1"),
    "IPv6": (["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::"),
    "IPv6 of the same network": (["2001:db8:1:2:ffff::1, 10.0.0.1"], "2001:db8:1:2::"),
    "private hops alone": (["10.9.9.9, 10.0.0.7"], "10.0.0.7"),
    "nonsense alone": (["nobody"], "10.0.0.1"),
    "nothing": ([], "10.0.0.1"),
}


def who_asks(guard, lines, host):
    """The address that the application is told."""
    found = []

    async def telling(scope, receive, send):
        found.append(scope["client"])
        await app(scope, receive, send)

    async def end():
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    headers = [(b"host", host.encode()), *((b"x-forwarded-for", line.encode()) for line in lines)]
    guard.app = telling
    scope = {"type": "http", "method": "POST", "path": "/", "client": ("10.0.0.1", 1), "headers": headers}
    asyncio.run(guard(scope, end, send))
    return found[0][0]


@pytest.mark.parametrize("chain", CHAINS)
def test_who_asks_is_what_the_hubs_proxy_saw_and_not_what_the_sender_says(chain):
    lines, expected = CHAINS[chain]
    assert who_asks(safety.Guard(app, 100, Hosts(SPACE)), lines, "owner-name.hf.space") == expected
    assert who_asks(safety.Guard(app, 100, Hosts({})), lines, "localhost") == "10.0.0.1", "nobody is believed there"


def test_an_unknown_sender_is_nobody():
    assert visitor_address(None, [], is_space=True) is None
    assert visitor_address("/a/socket", [], is_space=False) == "/a/socket"


def test_a_made_up_first_entry_makes_no_other_visitor(tmp_path, clock):
    guard = guarded(tmp_path, clock, each_files=2)
    guard.hosts = Hosts(SPACE)
    told = [f"198.51.100.{number}, 192.0.2.1, 10.0.0.1" for number in range(3)]
    statuses = [asked(guard, chunks=[part()], host="owner-name.hf.space", x_forwarded_for=each) for each in told]
    assert statuses == [200, 200, 429]


class Asked:
    """A request as gradio passes it on."""

    def __init__(self, session, address):
        self.session_hash, self.client = session, types.SimpleNamespace(host=address)


def test_a_new_session_for_each_event_takes_no_more_places():
    def visit(session, address):
        visit = visits.Visit(None)
        visit.session, visit.address = space.told_by(Asked(session, address))
        return visit

    taken, too_many = [], visits.show(visits.Visit(None), visits.TOO_MANY)

    def ask(number=0):
        """One event inside another, as if that went on meanwhile."""
        if number > space.ANSWERS:
            return too_many
        taken.append(number)
        return space.in_turn(visit(f"session {number}", "192.0.2.1"), lambda: ask(number + 1))

    assert ask() == too_many
    assert len(taken) == space.ANSWERS_EACH + 1, "the last one was refused"
    answered = visits.show(visits.Visit(None))
    assert space.in_turn(visit("session 0", "192.0.2.2"), lambda: answered) == answered
    assert len(space.PLACES) == len(space.TURNS) == 0
    assert space.told_by(None) == (None, None)


def test_one_visitor_may_leave_so_many_files(tmp_path, clock):
    guard = guarded(tmp_path, clock, each_files=5)
    for _ in range(5):
        assert asked(guard, chunks=[part()]) == 200
    assert asked(guard, chunks=[part()]) == 429


@pytest.mark.parametrize("cut", [0, 1, 30, 61, 65, 70])
def test_many_files_in_one_request_are_not_read_on(tmp_path, clock, cut):
    body, got = part() * 30, []

    async def counting(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            got.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guard = guarded(tmp_path, clock)
    guard.app = counting
    size = len(part())
    pieces = [body[:cut], *(body[start : start + size] for start in range(cut, len(body), size))]
    asked(guard, chunks=[piece for piece in pieces if piece])
    assert b"".join(got).count(b"filename=") <= uploads.MAX_FILES_AT_ONCE


def test_the_oldest_files_make_room_for_new_ones_and_young_ones_stay(tmp_path, clock):
    folder = tmp_path / "hash"
    folder.mkdir()
    for number in range(6):
        path = folder / f"{number}.png"
        path.write_bytes(b"x" * 100)
        age = 1000 - number if number < 5 else 0
        os.utime(path, (time.time() - age,) * 2)
    guard = guarded(tmp_path, clock, all_bytes=250)
    assert asked(guard, chunks=[part()]) == 200
    assert sorted(path.name for path in folder.iterdir()) == ["4.png", "5.png"]
    os.utime(folder / "4.png", (time.time(),) * 2)
    assert asked(guarded(tmp_path, clock, all_files=0), chunks=[part()]) == 200
    assert sorted(path.name for path in folder.iterdir()) == ["4.png", "5.png"], "they are still to be read"


def test_events_of_one_visitor_come_in_turn_and_those_of_others_meanwhile():
    line, order, first, begun = turns.Turns(), [], threading.Event(), threading.Event()

    def ask(number):
        with line.enter("slow"):
            begun.set()
            first.wait(30)
            order.append(number)

    asking = []
    for number in range(1 + turns.MAX_WAITING):
        asking.append(threading.Thread(target=ask, args=(number,), daemon=True))
        asking[-1].start()
        begun.wait(30)
        while number and line._lines["slow"][0].status()["queued"] < number:
            time.sleep(0.001)
    with pytest.raises(OverloadedError), line.enter("slow"):
        pass
    with line.enter("quick"), line.enter(None):
        assert len(line) == 2
    first.set()
    for thread in asking:
        thread.join(30)
    assert order == sorted(order)
    assert len(order) == len(asking)
    assert len(line) == 0


def test_the_inputs_of_whoever_did_nothing_for_longest_are_forgotten_where_all_are_too_large():
    held, kept = visits.Held(1000), [visits.Visit("digits") for _ in range(3)]
    for visit in kept:
        visit.prepared = Reading(inputs={"x": np.zeros(400, np.uint8)})
        held.keep(visit)
    assert [visit.prepared is None for visit in kept] == [True, False, False]
    kept[0].prepared = Reading(inputs={"x": np.zeros(5000, np.uint8)})
    held.keep(kept[0])
    assert [visit.prepared is None for visit in kept] == [False, True, True], "the one that is asked stays"
