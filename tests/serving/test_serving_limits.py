# SPDX-License-Identifier: Apache-2.0
"""Who may ask `edvit serve`, how much, how often, and what happens when more comes than can be answered."""

import asyncio
import os
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from edvit_hf.errors import EDViTError
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.serving import Limits, ServeConfig, bodies, create_app, serve
from edvit_hf.serving.exposure import open_socket
from edvit_hf.serving.refusals import RefusedError
from edvit_hf.serving.server import _uvicorn_config
from edvit_hf.serving.throttle import Line, Rates, client_of
from edvit_hf.tokens import Tokens, read_tokens
from support.hostile_graphs import FUSION, make_endless
from support.serving_setup import (
    AUDIO,
    GROUPS,
    IMAGE,
    TEXT_TASK,
    TOKEN,
    URL,
    assert_refused,
    make_client,
    make_folders,
    make_service,
    png,
    slow,
    wav,
)
from support.tiny_ensemble import write_tiny_ensemble


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory)


@pytest.fixture
def serving(folders):
    """Makes clients; closes what they ask."""
    services = []

    def make(task=IMAGE, *, client=None, **config):
        services.append(make_service(folders[task], **config))
        return make_client(services[-1], **(client or {}))

    yield make
    for service in services:
        service.close()


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self):
        return self.now


def test_a_body_is_refused_at_its_first_byte_too_many(serving):
    client = serving(limits=Limits(max_bytes=1000, rate=0))
    raw = {"content-type": "image/png"}
    assert_refused(client.post("/predict", content=b"x" * 1001, headers=raw), 413, "too_large")
    assert_refused(client.post("/predict", content=b"x" * 1000, headers=raw), 422, "unreadable_input")
    lying = {**raw, "content-length": "10"}
    assert_refused(client.post("/predict", content=b"x" * 1001, headers=lying), 413, "too_large")
    assert_refused(client.post("/predict", content=b"x", headers={**raw, "content-length": "1x"}), 400, "bad_request")
    chunked = iter([b"x" * 400] * 3)  # no length is promised
    assert_refused(client.post("/predict", content=chunked, headers=raw), 413, "too_large")


def test_all_bodies_together_are_bounded(serving):
    client = serving(limits=Limits(rate=0))
    client.app._service.budget.limit = 2000
    raw = {"content-type": "image/png"}
    assert_refused(client.post("/predict", content=b"x" * 2001, headers=raw), 503, "overloaded")
    assert client.app._service.budget.held == 0
    held, service = [], client.app._service
    answer = service._answer
    service._answer = lambda *arguments: held.append(service.budget.held) or answer(*arguments)
    assert client.post("/predict", content=png(), headers=raw).status_code == 200
    assert held == [0]  # what waits for its turn holds no body any more


@pytest.mark.parametrize(("others", "rests"), [([], 0), ([("other", 1)], 10), ([("own", 1)], 0)])
def test_a_large_body_rests_between_its_pieces_while_others_ask(monkeypatch, others, rests):
    slept, real = [], asyncio.sleep

    async def sleep(seconds):
        slept.append(seconds)
        await real(0)

    class Asked:
        client, headers, left = ("own", 1), {}, 11

        async def receive(self):
            self.left -= 1
            return {"type": "http.request", "body": b"x" * (1 << 16), "more_body": self.left > 0}

    async def read():
        turns, limits = bodies.Turns(), Limits()
        for other in others:
            turns.begin(other)
        with bodies.Budget(limits.max_held_bytes).share() as share:
            return await bodies.read_body(Asked(), limits, share, turns)

    monkeypatch.setattr(bodies.asyncio, "sleep", sleep)
    assert len(asyncio.run(read())) == 11 << 16
    assert len(slept) == rests


def test_of_several_large_bodies_one_rests_after_the_other(monkeypatch):
    monkeypatch.setattr(bodies, "_REST_SECONDS", 0.02)

    async def rest():
        turns = bodies.Turns()
        for client in range(3):
            turns.begin(client)
        begin = asyncio.get_running_loop().time()
        await asyncio.gather(*(turns.rest(client) for client in range(3)))
        return asyncio.get_running_loop().time() - begin

    assert asyncio.run(rest()) >= 0.06


def test_pixels_seconds_and_characters_have_limits_of_their_own(serving):
    limits = Limits(max_pixels=10_000, max_seconds=2, max_characters=50, rate=0)
    image, audio, text = (serving(task, limits=limits) for task in (IMAGE, AUDIO, TEXT_TASK))
    assert image.post("/predict", files={"file": png(100, 100)}).status_code == 200
    error = assert_refused(image.post("/predict", files={"file": png(101, 100)}), 422, "unreadable_input")
    assert "at most 0.01 Mpx, got 101 x 100 px" in error["message"]
    assert audio.post("/predict", files={"file": wav(2.0)}).status_code == 200
    error = assert_refused(audio.post("/predict", files={"file": wav(2.1)}), 422, "unreadable_input")
    assert "at most 0.0333 minutes" in error["message"]
    assert_refused(text.post("/predict", json={"text": "x" * 51}), 422, "text_too_long")


def test_headers_that_are_too_long_or_sent_twice_are_refused(serving):
    client = serving()
    assert_refused(client.get("/info", headers={"x-much": "x" * 17_000}), 431, "headers_too_large")
    twice = [("authorization", "Bearer a"), ("authorization", "Bearer b")]
    assert_refused(client.get("/info", headers=twice), 400, "bad_request")


def test_without_the_token_there_is_no_answer_and_it_is_counted(serving):
    client = serving(tokens=(TOKEN, "another-token-0123456789"))
    for wrong in (None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xe9"):
        headers = {} if wrong is None else {"authorization": wrong.encode("latin-1")}
        for path in ("/info", "/metrics"):
            assert_refused(client.get(path, headers=headers), 401, "unauthorized")
        response = client.post("/predict", files={"file": png()}, headers=headers)
        assert_refused(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    for token in (TOKEN, "another-token-0123456789"):
        right = {"authorization": f"Bearer {token}"}
        assert client.post("/predict", files={"file": png()}, headers=right).status_code == 200
    scraped = client.get("/metrics", headers=right).text
    assert 'edvit_requests_total{result="unauthorized"} 8.0' in scraped
    assert 'edvit_refused_requests_total{code="unauthorized"} 16.0' in scraped


def test_tokens_are_read_from_a_file_or_the_environment_and_never_short(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    file.write_text(f"# for the camera\n{TOKEN}\n\nanother-token-0123456789\n")
    assert read_tokens(file) == (TOKEN, "another-token-0123456789")
    monkeypatch.delenv("EDVIT_SERVE_TOKEN", raising=False)
    assert read_tokens(None) == ()
    monkeypatch.setenv("EDVIT_SERVE_TOKEN", TOKEN)
    assert read_tokens(None) == (TOKEN,)
    monkeypatch.setenv("EDVIT_SERVE_TOKEN", f"#{TOKEN}\n")  # a comment only where there are lines
    assert read_tokens(None) == (f"#{TOKEN}",)
    for empty in ("", " \n"):  # `EDVIT_SERVE_TOKEN=$(cat no-such-file)` must not let in everybody
        monkeypatch.setenv("EDVIT_SERVE_TOKEN", empty)
        with pytest.raises(EDViTError, match="Expected a token in the variable EDVIT_SERVE_TOKEN, got none"):
            read_tokens(None)
    for content in ("", "# nothing", "short", "with spaces in it, but long", "\xe9" * 20):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(EDViTError, match=r"Expected .*got "):
            read_tokens(file)
    with pytest.raises(EDViTError, match="readable text file with tokens"):
        read_tokens(tmp_path / "none")
    assert TOKEN not in repr(ServeConfig(tokens=(TOKEN,)))
    assert Tokens([TOKEN]).find(b"bearer " + TOKEN.encode()) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_world_is_not_listened_to_without_a_token_or_tls(host, tmp_path):
    with pytest.raises(EDViTError, match=r"Expected a loopback address .*Configure a token"):
        open_socket(ServeConfig(host=host, port=0))
    opened, is_local = open_socket(ServeConfig(host="0.0.0.0", port=0, tokens=(TOKEN,)))
    with opened:
        assert not is_local
    opened, is_local = open_socket(ServeConfig(host="localhost", port=0))
    with opened:
        assert is_local
        opened.listen()
        with pytest.raises(EDViTError, match="Expected a free address"):
            open_socket(ServeConfig(host=opened.getsockname()[0], port=opened.getsockname()[1]))
    with pytest.raises(EDViTError, match="Expected an address or name of this machine"):
        open_socket(ServeConfig(host="no such host"))


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs IPv6")
def test_an_ipv6_address_may_stand_in_brackets_as_in_a_url():
    opened, is_local = open_socket(ServeConfig(host="[::1]", port=0))
    with opened:
        assert is_local
        assert opened.getsockname()[0] == "::1"


def test_a_name_of_a_web_page_that_points_here_is_not_answered(serving):
    client = serving(allowed_hosts=("ensemble.example",))
    for host in ("127.0.0.1:8000", "localhost", "[::1]:8000", "ENSEMBLE.example:443"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "[", "localhost@evil.example", ""):
        assert_refused(client.get("/health", headers={"host": host}), 421, "wrong_host")
    everybody = serving(tokens=(TOKEN,), client={"is_local": False})
    assert everybody.get("/health", headers={"host": "any.example"}).status_code == 200
    named = serving(tokens=(TOKEN,), allowed_hosts=("ensemble.example",), client={"is_local": False})
    assert named.get("/health", headers={"host": "ensemble.example"}).status_code == 200
    assert_refused(named.get("/health", headers={"host": "any.example"}), 421, "wrong_host")


def test_pages_of_other_sites_may_not_ask(serving):
    client = serving()
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9", "http://["):
        response = client.post("/predict", files={"file": png()}, headers={"origin": origin})
        assert_refused(response, 403, "cross_origin")
        assert not any(name.startswith("access-control") for name in response.headers)
    own = {"origin": URL, "host": "127.0.0.1"}
    assert client.post("/predict", files={"file": png()}, headers=own).status_code == 200


def test_a_client_that_asks_too_often_is_told_when_to_come_back(serving):
    client = serving(limits=Limits(rate=0.001))
    assert client.get("/info").status_code == 200
    response = client.post("/predict", files={"file": png()})
    error = assert_refused(response, 429, "too_many_requests")
    assert 900_000 < error["retry_after_ms"] <= 1_000_000  # a request takes no 100 s
    assert 900 < int(response.headers["retry-after"]) <= 1000
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(("trusted", "second"), [((), 429), (("10.0.0.1",), 200), (("10.0.0.2",), 429)])
def test_only_a_trusted_proxy_says_who_asks(folders, trusted, second):
    service = make_service(folders[IMAGE], trusted_proxies=trusted, limits=Limits(rate=0.001))
    config = _uvicorn_config(service.config, service, is_local=True)
    config.load()
    client = TestClient(config.loaded_app, base_url=URL, client=("10.0.0.1", 50000))
    for address, status in (("192.0.2.1", 200), ("192.0.2.2", second), ("192.0.2.1", 429)):
        assert client.get("/info", headers={"x-forwarded-for": address}).status_code == status
    service.close()


def test_guessing_tokens_takes_nothing_from_those_who_have_one(serving):
    client = serving(limits=Limits(rate=0.001), tokens=(TOKEN,))
    assert_refused(client.get("/info"), 401, "unauthorized")
    assert_refused(client.get("/info"), 429, "too_many_requests")
    assert client.get("/info", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_buckets_fill_again_and_the_table_stays_small():
    clock = Clock()
    rates = Rates(2, burst=3, max_clients=10, clock=clock)
    assert [rates.take("a") for _ in range(4)] == [None, None, None, 0.5]
    clock.now += 0.5
    assert [rates.take("a"), rates.take("a")] == [None, 0.5]
    assert rates.take("b") is None
    clock.now += 100
    assert [rates.take("a") for _ in range(4)] == [None, None, None, 0.5]
    for number in range(100):
        rates.take(number)
    assert len(rates) == 10
    assert Rates(0).take("anybody") is None


def test_one_machine_cannot_have_many_addresses():
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:10.0.0.1") == client_of("10.0.0.1")
    assert client_of("testclient") == "testclient"
    assert client_of(None) == "None"


def fill(line, count):
    places = [line.place() for _ in range(count)]
    for place in places:
        place.__enter__()
    return places


def test_a_burst_waits_but_under_lasting_overload_nobody_does():
    clock = Clock()
    line = Line(3, clock=clock)
    line.service = 0.1
    places = []
    for _ in range(4):
        line.arrive()
        places += fill(line, 1)
    with pytest.raises(RefusedError) as refused:
        line.arrive()
    assert refused.value.retry_after_ms == pytest.approx(400)
    assert line.rejected == 1
    # Ten arrivals a second are all that can be answered: with half as many more there is no waiting.
    for _ in range(11):
        with pytest.raises(RefusedError):
            line.arrive()
    assert line.load > 1.5
    line.inside = 1
    with pytest.raises(RefusedError):
        line.check()
    line.inside = 0
    line.check()
    clock.now += 2.5  # nothing came for so long
    line.inside = 3
    line.check()
    assert line.load == 0
    assert places


def test_a_few_clients_that_wait_for_their_answers_are_never_turned_away():
    clock = Clock()
    line = Line(3, clock=clock)
    places = fill(line, 4)
    for _ in range(500):  # four clients, each of which asks again as soon as it was answered
        clock.now += 0.1
        places.pop(0).__exit__(None, None, None)
        line.arrive()
        places += fill(line, 1)
    assert line.rejected == 0
    assert line.load == pytest.approx(1, abs=0.15)


def test_one_that_takes_long_turns_nobody_else_away():
    clock = Clock()
    line = Line(4, clock=clock)
    for _ in range(40):  # one client sends what takes long, another what does not
        line.arrive()
        slow = fill(line, 1)
        for _ in range(20):
            clock.now += 0.002
            line.arrive()
            quick = fill(line, 1)
            clock.now += 0.003
            quick[0].__exit__(None, None, None)
        clock.now += 0.1
        slow[0].__exit__(None, None, None)
    assert line.rejected == 0
    assert line.load < 1


def test_the_line_learns_how_long_an_answer_takes_without_the_waiting():
    clock = Clock()
    line = Line(8, clock=clock)
    places = fill(line, 3)
    for place in places:
        clock.now += 0.2
        place.__exit__(None, None, None)
    assert line.service == pytest.approx(0.2)


def test_64_clients_at_once_get_right_answers_or_a_hint_and_decoding_is_spared(folders, monkeypatch):
    service = make_service(folders[IMAGE], faults=slow(20), max_queued=2)
    expected = EDViTRuntime.from_pretrained(folders[IMAGE], engine=service.runtime.coordinator.engine)(png())
    decoded, inputs = [], service._decoders.inputs

    def counting(source):
        decoded.append(source)
        return inputs(source)

    monkeypatch.setattr(service._decoders, "inputs", counting)

    async def ask_all():
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            return await asyncio.gather(*(client.post("/predict", files={"file": png()}) for _ in range(64)))

    responses = asyncio.run(ask_all())
    answered = [response.json() for response in responses if response.status_code == 200]
    assert 1 <= len(answered) <= 6
    assert {reply["label"] for reply in answered} == {expected.label}
    for response in responses:
        if response.status_code != 200:
            assert_refused(response, 503, "overloaded")
    assert len(decoded) == len(answered)
    assert service.line.rejected == 64 - len(answered)
    assert service.line.inside == 0
    service.close()


def test_the_coordinator_judges_what_the_line_let_in(serving):
    client = serving(faults=slow(1000), deadline_ms=5000)
    service = client.app._service
    service.runtime.coordinator._line._service.mean = 60.0  # it expects a minute an answer
    service.runtime.coordinator._line._in_flight = 1
    response = client.post("/predict", files={"file": png()})
    error = assert_refused(response, 503, "overloaded")
    assert error["retry_after_ms"] >= 30_000
    assert int(response.headers["retry-after"]) >= 30


@pytest.mark.parametrize(
    "wrong", [{"max_bytes": 0}, {"rate": -1}, {"send_seconds": float("inf")}, {"max_held_bytes": 1}, {"max_pixels": -5}]
)
def test_limits_that_limit_nothing_are_refused(wrong):
    with pytest.raises(EDViTError, match="Expected limits above zero"):
        Limits(**wrong)


@pytest.mark.parametrize("wrong", [{"deadline_ms": 0}, {"max_queued": -1}, {"port": 65536}, {"grace_seconds": -1}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(EDViTError, match="Expected a positive deadline"):
        ServeConfig(**wrong)


def test_a_fusion_head_that_is_late_is_503_with_a_hint(tmp_path):
    write_tiny_ensemble(tmp_path, GROUPS)
    make_endless(tmp_path, FUSION, spares_zeros=True)
    service = make_service(tmp_path)
    with make_client(service) as client:
        response = client.post("/predict?deadline_ms=300", files={"file": png()})
        error = assert_refused(response, 503, "too_late")
        assert error["retry_after_ms"] > 0
        assert 'edvit_requests_total{result="too_late"} 1.0' in client.get("/metrics").text
    service.close()


def test_a_server_that_cannot_be_made_leaves_no_process(tmp_path, monkeypatch):
    write_tiny_ensemble(tmp_path, GROUPS)
    pids = []

    def fail(config, service, is_local):
        pids.extend(service._decoders.pool.pids())
        raise EDViTError("no")

    monkeypatch.setattr("edvit_hf.serving.server._uvicorn_config", fail)
    with pytest.raises(EDViTError, match="no"):
        serve(lambda: EDViTRuntime.from_pretrained(tmp_path, schedule="in_turn"), ServeConfig(port=0))
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
