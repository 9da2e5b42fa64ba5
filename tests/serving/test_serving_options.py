# SPDX-License-Identifier: Apache-2.0
"""What `ServeConfig` and `Limits` refuse before anything is loaded, and what of it is meant."""

import math
import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from edvit_hf.errors import EDViTError
from edvit_hf.serving import Limits, ServeConfig
from edvit_hf.serving.exposure import allowed_hosts, callable_name, open_socket
from edvit_hf.serving.proxies import Proxies
from edvit_hf.serving.server import _uvicorn_config
from edvit_hf.tokens import read_tokens
from support.serving_setup import IMAGE, TOKEN, URL, make_client, make_service, png
from support.tiny_ensemble import write_tiny_ensemble


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("options")
    write_tiny_ensemble(root, [[0, 3], [1], [2, 4]], task=IMAGE)
    return root


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        (["10.0.0.0/8"], ["192.0.2.1"], "192.0.2.1"),
        (["10.0.0.0/8"], ["1.2.3.4, 192.0.2.1"], "192.0.2.1"),  # the left one is made up
        (["10.0.0.0/8"], ["1.2.3.4", "192.0.2.1"], "192.0.2.1"),
        (["10.0.0.0/8"], ["192.0.2.1, 10.0.0.7", "10.0.0.8"], "192.0.2.1"),
        (["10.0.0.0/8"], ["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
        (["*"], ["1.2.3.4, 192.0.2.1"], "192.0.2.1"),
        (["*"], ["1.2.3.4", "192.0.2.1:4711"], "192.0.2.1"),
        (["*"], ["[2001:DB8::1]:80"], "2001:db8::1"),
        (["*"], ["2001:DB8:0::1"], "2001:db8::1"),
        (["*"], ["::ffff:192.0.2.1"], "192.0.2.1"),
        (["*"], [], "10.0.0.1"),
        *(
            (["*"], [text], "10.0.0.1")
            for text in ("", ",", "unknown", "_hidden", "a.example", "1.2.3", "\x1b[31m1.2.3.4")
        ),
        *((["*"], [text], "10.0.0.1") for text in ("fe80::1%\x1b[31m", "[::1", "[::1]x", "1.2.3.4:x", "1.2.3.4, ")),
        (["10.0.0.0/8"], ["192.0.2.1, nonsense, 10.0.0.7"], "10.0.0.7"),
        (["10.0.0.2"], ["192.0.2.1"], "10.0.0.1"),
    ],
)
def test_the_client_is_the_nearest_that_no_trusted_proxy_is(trusted, forwarded, client):
    assert Proxies(trusted).client("10.0.0.1", [each.encode("latin-1") for each in forwarded]) == client


def test_made_up_addresses_free_nobody_from_the_rate_and_reach_no_log(folder, caplog):
    service = make_service(folder, trusted_proxies=("*",), limits=Limits(rate=0.001))
    client = make_client(service)
    with caplog.at_level("INFO", logger="edvit_hf.serving.access"):
        for number, status in ((1, 200), (2, 429), (3, 429)):
            headers = {"x-forwarded-for": f"198.51.100.{number}, 192.0.2.1"}
            assert client.get("/info", headers=headers).status_code == status
        client.get("/info", headers={"x-forwarded-for": b"\x1b[31m\xe4"})
        client.request("GE\x1b[31mT", "/a%1b%5b31m%0ab")
    lines = [record.getMessage() for record in caplog.records if record.name == "edvit_hf.serving.access"]
    assert [line.split()[0] for line in lines] == ["192.0.2.1"] * 3 + ["127.0.0.1"] * 2
    assert all(line.isascii() and line.isprintable() for line in lines)
    service.close()


def test_a_fault_in_the_log_quotes_nothing_that_moves_the_cursor(folder, caplog, monkeypatch):
    service = make_service(folder)
    monkeypatch.setattr(service, "_answer", lambda *_: 1 / 0 if "\x1b[31m" else None)
    monkeypatch.setattr("traceback.format_exc", lambda: "ValueError: \x1b[2J\nforged \u202e")
    make_client(service).post("/predict", files={"file": png()})
    assert "ValueError: \\x1b[2J\nforged \\u202e" in caplog.text
    service.close()


def believed(folder, proxies, peer):
    """Whether a server with these proxies believes what a peer says of who asks: each then has a rate of its own."""
    service = make_service(folder, trusted_proxies=proxies, limits=Limits(rate=0.001))
    config = _uvicorn_config(service.config, service, is_local=True)
    config.load()
    client = TestClient(config.loaded_app, base_url=URL, client=(peer, 50000))
    codes = [client.get("/info", headers={"x-forwarded-for": f"192.0.2.{i}"}).status_code for i in (1, 2)]
    service.close()
    assert codes in ([200, 200], [200, 429])
    return codes == [200, 200]


@pytest.mark.parametrize(
    ("proxies", "peer", "expected"),
    [
        (("10.0.0.0/8",), "10.1.2.3", True),
        (("10.0.0.0/8",), "11.1.2.3", False),
        (("2001:DB8:0::1",), "2001:db8::1", True),
        (("2001:db8::/32", "10.0.0.1"), "2001:db8::5", True),
        (("*",), "203.0.113.9", True),
        (("*", "*"), "203.0.113.9", True),
        (("10.0.0.1",), "::ffff:10.0.0.1", True),  # how a socket of both kinds (--host ::) shows it
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("10.0.0.0/8",), "::ffff:11.1.2.3", False),
        (("::ffff:10.0.0.1",), "10.0.0.1", True),  # and how a socket for IPv4 alone shows what is written like that
        (("::ffff:10.0.0.1",), "::ffff:10.0.0.1", True),
        (("::FFFF:a00:0/104",), "10.1.2.3", True),
        (("::ffff:10.0.0.0/104",), "11.1.2.3", False),
        (("::/0",), "10.1.2.3", False),  # more than the IPv4 addresses: whoever means these too names them
    ],
)
def test_proxies_are_addresses_networks_or_anybody(folder, proxies, peer, expected):
    assert believed(folder, proxies, peer) is expected


@pytest.mark.parametrize(
    "proxies",
    [
        ("nonsense",),
        ("localhost",),
        ("",),
        (" 10.0.0.1",),
        ("10.0.0.1, 10.0.0.2",),
        ("10.0.0.300",),
        ("10.0.0.1:80",),
        ("10.0.0.1/8",),
        ("10.0.0.0/33",),
        ("[::1]",),
        ("*", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.*"),
        ("http://10.0.0.1",),
    ],
)
def test_a_proxy_that_could_never_be_one_is_refused(proxies):
    with pytest.raises(EDViTError, match="Expected addresses of trusted proxies") as refused:
        ServeConfig(trusted_proxies=proxies)
    assert any(repr(each) in str(refused.value) for each in proxies)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "http://ensemble.example",
        "ensemble.example:8000",
        "ensemble.example/",
        "*",
        "*.example",
        "a@b",
        "ä",
        "[::1",
        "::1]",
        "[10.0.0.1]",
        ".",
        "..",
        "a..b",
        ".example",
    ],
)
def test_a_name_that_no_client_could_call_is_refused(name):
    with pytest.raises(EDViTError, match="Expected names or addresses by which clients call"):
        ServeConfig(allowed_hosts=(name,))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("Ensemble.Example", "ensemble.example:80"),
        ("10.0.0.7", "10.0.0.7"),
        ("[2001:DB8::7]", "[2001:db8::7]:443"),
        ("2001:db8::7", "[2001:db8::7]"),
        ("my_host", "my_host"),
        ("a.example.", "a.example."),
    ],
)
def test_a_name_that_is_allowed_is_answered(folder, name, header):
    service = make_service(folder, allowed_hosts=(name,))
    assert make_client(service).get("/health", headers={"host": header}).status_code == 200
    service.close()
    assert "localhost" in (allowed_hosts(service.config, is_local=True) or ())


@pytest.mark.parametrize("host", ["", "[]"])
def test_an_empty_address_is_not_all_addresses(host):
    """A variable that is not set, as in `--host "$HOST"`, must not open the server to a network."""
    with pytest.raises(EDViTError, match="Expected an address or name of this machine, got '"):
        open_socket(ServeConfig(host=host, port=0, tokens=(TOKEN,)))


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("127.0.0.1", (), "127.0.0.1"),
        ("::1", ("a.example",), "[::1]"),
        ("fe80::1%eth0", (), "[fe80::1%eth0]"),
        ("0.0.0.0", (), "device"),
        ("::", (), "device"),
        ("0.0.0.0", ("a.example", "b.example"), "a.example"),
        ("::", ("[2001:db8::7]",), "[2001:db8::7]"),
    ],
)
def test_the_address_that_is_told_can_be_called(monkeypatch, host, names, expected):
    monkeypatch.setattr("edvit_hf.serving.exposure.socket.gethostname", lambda: "device")
    assert callable_name(host, names) == expected


@pytest.mark.skipif(os.name != "posix", reason="modes of files mean little here")
@pytest.mark.parametrize(("mode", "is_told"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_token_file_that_others_may_read_is_warned_of(tmp_path, caplog, mode, is_told):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    assert read_tokens(file) == (TOKEN,)
    assert [f"(mode {mode:o})" in record.getMessage() for record in caplog.records] == [True] * is_told
    assert TOKEN not in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_token_file_that_is_no_ordinary_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path, Path(os.devnull)):
        with pytest.raises(EDViTError, match="Expected a readable text file with tokens, got"):
            read_tokens(file)


@pytest.mark.parametrize("name", sorted(vars(Limits())))
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 10**400])
def test_limits_that_cannot_be_are_refused(name, value):
    with pytest.raises(EDViTError, match=rf"Expected limits above zero .*{name}="):
        Limits(**{name: value})


@pytest.mark.parametrize("name", ["deadline_ms", "max_queued", "grace_seconds", "port"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 10**400])
def test_settings_that_cannot_be_are_refused(name, value):
    with pytest.raises(EDViTError, match=rf"Expected a positive deadline.*{name}="):
        ServeConfig(**{name: value})


def test_the_largest_settings_answer(folder):
    service = make_service(
        folder,
        deadline_ms=1e300,
        grace_seconds=1e300,
        limits=Limits(send_seconds=1e300, max_seconds=1e300, max_pixels=10**30, max_connections=10**30, rate=1e300),
    )
    _uvicorn_config(service.config, service, is_local=True)
    service.warm_up()
    response = make_client(service).post("/predict", files={"file": png()})
    service.close()
    assert response.status_code == 200, response.text
