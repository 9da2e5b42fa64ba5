# SPDX-License-Identifier: Apache-2.0
"""Real `edvit serve` processes on loopback: signals, connections, certificates, and the command line."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import EDViTError
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.serving import ServeConfig
from edvit_hf.serving import serve as serve_forever
from edvit_hf.serving.server import _Server
from support.serving_setup import GROUPS, IMAGE, TOKEN, png
from support.tiny_ensemble import write_tiny_ensemble

pytestmark = pytest.mark.slow

PATHS = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "EDVIT_NUM_THREADS": "1", "PYTHONPATH": PATHS}
SLOW = """
import logging, os, sys
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import EDViTRuntime, MonotonicClock
from edvit_hf.serving import Limits, ServeConfig, serve
from support.drills import Faults, FaultyEngine, StubEngine
folder, milliseconds, grace_seconds, send_seconds = sys.argv[1], *map(float, sys.argv[2:])
logging.basicConfig(level=logging.INFO)
logging.getLogger("edvit_hf.serving.access").setLevel(logging.WARNING)  # it would fill the pipe that nobody reads
class Telling(FaultyEngine):
    def submit(self, index, request):
        if index == 0 and self.faults:  # not yet while it warms up
            print("asked", flush=True)
        return super().submit(index, request)
def load():
    engine = Telling(StubEngine(Manifest.load(folder)), MonotonicClock())
    return EDViTRuntime.from_pretrained(folder, engine=engine)
def listening(url, service):
    service.runtime.coordinator.engine.faults = {i: Faults(latency_ms=milliseconds) for i in range(3)}
    print("on", url, flush=True)
config = ServeConfig(
    port=0, deadline_ms=3_600_000, grace_seconds=grace_seconds,
    limits=Limits(send_seconds=send_seconds, max_connections=3, max_bytes=50_000),
)
has_ended = serve(load, config, on_listening=listening)
print(has_ended, flush=True)
if not has_ended:
    os._exit(1)
"""
LONG, SHORT = 300, 0.4  # seconds: what no test waits for on any machine, and what some do


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    write_tiny_ensemble(root, GROUPS, task=IMAGE)
    return root


class Process:
    """A server in a process of its own."""

    def __init__(self, *command, lines=1):
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
        )
        self.told = "".join(self.process.stdout.readline() for _ in range(lines))
        found = re.search(r"on (https?)://127\.0\.0\.1:(\d+)", self.told)
        assert found, self.told + self.process.stderr.read()
        self.port = int(found[2])
        self.url = f"{found[1]}://127.0.0.1:{self.port}"

    def ask(self, path="/predict", data=None, headers=None, context=None):
        """Status, document and headers."""
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=LONG / 3, context=context) as response:
                return response.status, json.load(response), response.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers

    def predict(self, **options):
        return self.ask(data=png(), headers={"content-type": "image/png"}, **options)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=LONG / 3)

    def end(self, number=signal.SIGTERM):
        """Exit code and what was written."""
        self.process.send_signal(number)
        return (*self.process.communicate(timeout=LONG / 3), self.process.returncode)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def one_reply(connection):
    """Head and document of a reply on a connection that stays open."""
    head, reply = b"", b""
    while not head or len(reply) - len(head) - 4 < int(re.search(rb"content-length: (\d+)", head)[1]):
        reply += connection.recv(65536)
        head = reply.partition(b"\r\n\r\n")[0] if b"\r\n\r\n" in reply else b""
    return head, json.loads(reply[len(head) + 4 :])


def in_flight(server):
    """Send a request, and return what will hold its reply, once it is being answered."""
    replies = []

    def ask():
        try:
            replies.append(server.predict())
        except OSError as error:
            replies.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert server.process.stdout.readline().strip() == "asked"
    return thread, replies


def received(connection):
    """Everything until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_a_request_in_flight_end_and_then_the_process_ends_well(folder, number):
    with Process("-c", SLOW, folder, 700, LONG, LONG) as server:
        thread, replies = in_flight(server)
        stdout, stderr, code = server.end(number)  # which does not wait for so long as the grace period
        thread.join()
        assert replies[0][0] == 200
        assert len(replies[0][1]["present"]) == 3
        assert code == 0
        assert stdout.strip() == "True"
        assert "Traceback" not in stderr
        with pytest.raises(ConnectionRefusedError):
            server.connect()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_command_lets_a_request_in_flight_end_too(folder, number):
    with Process("-m", "edvit_hf.cli", "serve", folder, "--port", 0, "--decode-in-process", lines=3) as server:
        body, connection = png(), server.connect()
        connection.sendall(START + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
        assert b" 100 " in connection.recv(65536)  # it is being read
        server.process.send_signal(number)
        assert any("once more stops at once" in line for line in iter(server.process.stderr.readline, ""))
        connection.sendall(body)
        assert received(connection).startswith(b"HTTP/1.1 200 ")
        _, stderr = server.process.communicate(timeout=LONG / 3)
        assert "Traceback" not in stderr
        assert server.process.returncode == 0


@pytest.mark.parametrize("former", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
def test_a_hang_up_is_taken_over_unless_it_is_ignored_and_given_back(former):
    before = signal.signal(signal.SIGHUP, former)
    try:
        server = _Server(uvicorn.Config(None), None, None)
        with server.capture_signals():
            assert signal.getsignal(signal.SIGHUP) == (former if former is signal.SIG_IGN else server.handle_exit)
        assert signal.getsignal(signal.SIGHUP) is former
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_stops_at_once(folder):
    with Process("-c", SLOW, folder, 1e3 * LONG, LONG, LONG) as server:
        thread, _ = in_flight(server)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert any("once more stops at once" in line for line in iter(server.process.stderr.readline, ""))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stdout.readline().strip() == "False"
        assert time.monotonic() - begin < LONG / 2  # the answer would have taken longer
        server.process.kill()
        thread.join()


def test_a_request_that_outlasts_the_grace_period_is_told_so(folder):
    with Process("-c", SLOW, folder, 1e3 * LONG, 1, LONG) as server:
        thread, replies = in_flight(server)
        _, stderr, _ = server.end()
        thread.join()
        assert "Traceback" not in stderr  # a stop is no fault of the server
        status, document, _ = replies[0]
        assert status == 503
        assert document["error"]["code"] == "stopping"


START = b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\n"
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n"
CHUNK = b"6000\r\n" + b"x" * 24_576 + b"\r\n"


def assert_told(reply, expected, sent):
    """It ended with a status and a sentence."""
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % expected), (sent[:80], reply[:300])
    assert set(json.loads(body)) == {"error"}
    assert b"connection: close" in head.lower()


def test_connections_that_are_slow_are_closed_with_a_sentence(folder):
    cases = (
        b"",  # nothing comes
        b"GET /health HTTP/1.1\r\nhost: 127",  # headers that never end
        START + b"content-length: 100\r\n\r\nabc",  # a body that never ends
        CHUNKED + CHUNK,
    )
    with Process("-c", SLOW, folder, 0, LONG, SHORT) as server:
        for some in (cases[:2], cases[2:]):  # three is the most
            with contextlib.ExitStack() as stack:
                connections = [stack.enter_context(server.connect()) for _ in some]
                for connection, sent in zip(connections, some, strict=True):
                    connection.sendall(sent)
                for connection, sent in zip(connections, some, strict=True):
                    assert_told(received(connection), 408, sent)


def test_connections_that_are_broken_or_too_many_are_closed_with_a_sentence(folder):
    with Process("-c", SLOW, folder, 0, LONG, LONG) as server:
        status, _, headers = server.predict()
        assert status == 200
        assert "server" not in headers
        cases = {
            START + b"content-length: 900000\r\n\r\n" + b"x" * 900_000: 413,  # read on, or it would never see why
            CHUNKED + CHUNK * 3: 413,
            CHUNKED + b"3\r\nabc\r\nno length\r\n": 400,
            START + b"content-length: 3\r\ncontent-length: 5\r\n\r\nabcde": 400,
            b"NONSENSE\r\n\r\n": 400,
            b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * 40_000: 400,
        }
        for sent, expected in cases.items():
            with server.connect() as connection:
                connection.sendall(sent)
                assert_told(received(connection), expected, sent)
        held = [server.connect() for _ in range(3)]
        with server.connect() as connection:
            reply = received(connection)
            assert reply.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in reply
        for connection in held:
            connection.close()
        until_answered(server)
        # A kept connection is used again, also after a body that was turned away unread.
        with server.connect() as connection:
            for _ in range(2):
                connection.sendall(START + b"content-length: 5\r\norigin: http://other\r\n\r\nabcde")
                assert one_reply(connection)[0].startswith(b"HTTP/1.1 403 ")
        assert server.predict()[0] == 200
        assert server.end()[2] == 0


def until_answered(server):
    """Ask until there is a connection. Who is still sending when they are too many may only see the end of theirs."""
    until = time.monotonic() + LONG / 2
    while True:
        with contextlib.suppress(OSError):
            if server.predict()[0] == 200:
                return
        assert time.monotonic() < until
        time.sleep(0.05)


def test_whoever_does_not_read_the_replies_holds_no_connection_for_long(folder):
    with Process("-c", SLOW, folder, 0, LONG, SHORT) as server:
        held = []
        for _ in range(3):  # as many as are taken
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.setblocking(False)
            held.append(connection)
            with contextlib.suppress(BlockingIOError):
                while connection.send(b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 200):
                    pass
        until_answered(server)
        assert server.predict()[0] == 200, "their places are free again"
        for connection in held:
            connection.close()


def certificates(folder):
    """A CA, and certificates of it: for the server, for a client, and for one whose time is over."""

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", 2, "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name, days in (("server", 2), ("client", 2), ("late", -1)):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            f"{name}.pem",
            "-days",
            days,
            "-extfile",
            "names",
        )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_tls_with_client_certificates_refuses_strangers_and_what_has_expired(folder, tmp_path):
    certificates(tmp_path)
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    with Process(
        "-m",
        "edvit_hf.cli",
        "serve",
        folder,
        "--port",
        0,
        "--schedule",
        "in_turn",
        "--token-file",
        token_file,
        "--tls-cert",
        tmp_path / "server.pem",
        "--tls-key",
        tmp_path / "server.key",
        "--tls-client-ca",
        tmp_path / "ca.pem",
        lines=3,
    ) as server:
        assert server.url.startswith("https://")
        for name in (None, "late"):
            if name:
                context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
            with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
                server.predict(context=context)
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        assert server.predict(context=context)[0] == 401  # a certificate is no token where both are asked for
        headers = {"content-type": "image/png", "authorization": f"Bearer {TOKEN}"}
        assert server.ask(data=png(), headers=headers, context=context)[0] == 200
        with server.connect() as connection:  # no TLS at all
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert not received(connection).startswith(b"HTTP")
        stdout, stderr, code = server.end()
        assert code == 0
        assert "curl -H" in server.told
        assert TOKEN not in server.told + stdout + stderr
        assert "Traceback" not in stderr
        assert re.search(r"POST /predict 401 unauthorized", stderr)


def serve(*arguments):
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def test_the_command_line_refuses_before_it_loads_anything(tmp_path):
    missing, folder = tmp_path / "none", Path("never/loaded")
    for arguments, told in (
        (["--host", "0.0.0.0"], "Configure a token"),
        (["--token-file", missing], "readable text file with tokens"),
        (["--tls-key", missing], "Expected a TLS certificate"),
        (["--tls-cert", missing], "Expected a certificate chain"),
        (["--max-bytes", 0], "Expected limits above zero"),
        (["--deadline-ms", -1], "Expected a positive deadline"),
    ):
        done = serve(folder, *arguments)
        assert done.exit_code == 1, done.output
        text = " ".join(done.output.split())
        assert told in text
        assert "Traceback" not in text
    assert "--token " not in serve("--help").output


def test_an_address_that_somebody_takes_while_the_ensemble_is_loaded(folder):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port, runtimes = other.getsockname()[1], []

        def load():
            other.listen()
            runtimes.append(EDViTRuntime.from_pretrained(folder, schedule="in_turn"))
            return runtimes[0]

        with pytest.raises(EDViTError, match="Expected a free address, got one that is taken now"):
            serve_forever(load, ServeConfig(port=port))
    assert runtimes[0].coordinator.is_closed


def test_what_is_no_ensemble_is_told(tmp_path):
    done = serve(tmp_path, "--port", 0)
    assert done.exit_code == 1
    assert "manifest.json" in done.output


def test_without_the_extra_the_error_names_it():
    from support.fresh import run_without

    code = """
import edvit_hf.serving
from edvit_hf.errors import MissingExtraError
try:
    edvit_hf.serving.serve
except MissingExtraError as error:
    print(error)
"""
    for package in ("fastapi", "uvicorn", "prometheus-client", "python-multipart"):
        text = run_without({package.replace("-", "_")}, code)
        assert text.startswith(f"Serving an ensemble needs the package `{package}`")
        assert text.endswith("pip install 'edvit_hf[serve]'")


def test_serving_loads_neither_torch_nor_transformers():
    from support.fresh import run_fresh

    heavy = ("torch", "transformers", "huggingface_hub", "safetensors")
    code = f"import edvit_hf.serving as s, sys; s.serve; s.create_app; print(set({heavy!r}) & set(sys.modules))"
    assert run_fresh(code) == "set()"
    assert run_fresh("import edvit_hf.serving, sys; print('fastapi' in sys.modules)") == "False"
