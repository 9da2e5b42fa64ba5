# SPDX-License-Identifier: Apache-2.0
"""`edvit worker` as a process, and the commands that ask it: tokens, certificates, addresses, reloading, refusals."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import EDViTError, QuorumError
from edvit_hf.fleet.exposure import ListenConfig
from edvit_hf.fleet.worker import Worker
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.engines.oip import OIPEngine
from edvit_hf.runtime.engines.oip_links import ClientTls
from edvit_hf.runtime.engines.oip_wire import model_name
from support.certificates import HAS_OPENSSL, make_certificates
from support.device_shares import copy_share
from support.tiny_ensemble import TASK_GROUPS, bless_processor, write_tiny_ensemble
from support.worker_processes import TOKEN, WorkerProcess, start_all, workers_of

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 9, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    write_tiny_ensemble(folder, TASK_GROUPS)
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def asked(root, workers, **options):
    with EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers, **options)) as runtime:
        return runtime(IMAGE)


def test_one_line_on_the_device_and_one_on_the_coordinator_with_a_token_from_a_file(root, tmp_path, monkeypatch):
    copy_share(root, tmp_path / "share", 0, 1, 2)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    worker = WorkerProcess(tmp_path / "share", options=["--token-file", str(token)])
    with workers_of(worker) as workers:
        assert "sub-models 0, 1, 2 of tiny" in worker.output
        assert "a token is asked for" in worker.output
        line = ["predict", str(root), str(tmp_path / "image.png"), "--workers", f"pi0={workers['pi0']}"]
        line += ["--format", "json"]
        result = CliRunner().invoke(app, [*line, "--fleet-token-file", str(token)])
        assert result.exit_code == 0, result.output
        local = CliRunner().invoke(app, ["predict", str(root), str(tmp_path / "image.png"), "--format", "json"])
        found, expected = (json.loads(each.stdout) for each in (result, local))
        assert found["label"] == expected["label"]
        assert found["probabilities"] == expected["probabilities"]
        refused = CliRunner().invoke(app, line)
        assert refused.exit_code == 1
        assert "unavailable" in refused.output
        monkeypatch.setenv("EDVIT_FLEET_TOKEN", TOKEN)
        timed = CliRunner().invoke(app, ["bench", str(root), "--workers", f"pi0={workers['pi0']}", "--format", "json"])
        assert timed.exit_code == 0, timed.output
        report = json.loads(timed.stdout)
        assert report["engine"] == "oip"
        assert [each["missing"] for each in report["sub_models"].values()] == [0, 0, 0]
        assert report["over_slowest"] >= 1
        assert CliRunner().invoke(app, line).exit_code == 0
        worker.send(signal.SIGTERM)
        assert worker.process.returncode == 0
        assert TOKEN not in worker.output
        assert "Traceback" not in worker.output


@pytest.mark.skipif(not HAS_OPENSSL, reason="openssl makes the certificates")
def test_certificates_are_checked_on_both_sides_and_one_that_has_expired_lets_nobody_ask(root, tmp_path, certificates):
    share = copy_share(root, tmp_path / "share", 0, 1, 2)
    (cert, key), (own, own_key) = certificates("server"), certificates("client")
    mutual = ["--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(certificates.ca)]
    old, old_key = certificates("expired")
    good, expired = start_all(
        lambda: WorkerProcess(share, options=mutual),
        lambda: WorkerProcess(share, options=["--tls-cert", str(old), "--tls-key", str(old_key)]),
    )
    with workers_of(good, expired):
        tls = ClientTls(ca=certificates.ca, cert=own, key=own_key)
        assert asked(root, {"pi0": good.address}, tls=tls).missing == {}
        for workers, other in (
            ({"pi0": good.address}, ClientTls(ca=certificates.ca)),  # shows none
            ({"pi0": good.address}, ClientTls()),  # does not know the authority
            ({"pi0": good.address}, None),  # speaks no TLS
            ({"pi0": expired.address}, ClientTls(ca=certificates.ca)),
        ):
            with pytest.raises(QuorumError, match="unavailable"):
                asked(root, workers, tls=other)
        assert "Traceback" not in good.output + expired.output


def test_an_open_address_without_a_token_is_refused_before_anything_is_loaded(tmp_path):
    for listen in ("0.0.0.0:0", "[::]:0"):
        result = CliRunner().invoke(app, ["worker", str(tmp_path / "nowhere"), "--listen", listen])
        assert result.exit_code == 1
        assert "Everybody who reaches this device could use it" in result.output
    ListenConfig(listen="0.0.0.0:0", insecure=True).check()
    ListenConfig(listen="0.0.0.0:0", tokens=(TOKEN,)).check()
    for listen in ("", "8500", "127.0.0.1:", "127.0.0.1:99999", "no such host:1"):
        with pytest.raises(EDViTError):
            ListenConfig(listen=listen).check()
    with pytest.raises(EDViTError, match="certificate with its private key"):
        ListenConfig(tls_cert=tmp_path / "a.pem").check()


def test_a_share_that_lacks_its_file_or_holds_an_altered_one_or_an_address_in_use_ends_with_one_message(root, tmp_path):
    share = copy_share(root, tmp_path / "share", 0)
    (share / "sub_models/00/onnx/model.onnx").write_bytes(b"x")
    for folder, message in ((share, "expected 1"), (copy_share(root, tmp_path / "none"), "got no sub-model")):
        result = CliRunner().invoke(app, ["worker", str(folder), "--listen", "127.0.0.1:0"])
        assert result.exit_code == 1
        assert message in result.output or "bytes" in result.output
        assert "Traceback" not in result.output
    share = copy_share(root, tmp_path / "good", 0)
    worker = Worker(lambda folder: DeviceHost.load(folder, num_threads=1), [share], ListenConfig(listen="127.0.0.1:0"))
    port = worker.start()
    try:
        result = CliRunner().invoke(app, ["worker", str(share), "--listen", f"127.0.0.1:{port}"])
        assert result.exit_code == 1
        assert "Expected a free address" in result.output
    finally:
        worker.stop()


def test_two_shares_stand_side_by_side_and_hanging_up_keeps_the_version_before_beside_the_new_one(root, tmp_path):
    def versioned(name, mean):
        folder = tmp_path / name
        shutil.copytree(root, folder)
        content = folder / "preprocessor_config.json"
        content.write_text(content.read_text().replace("0.5", mean, 1))
        bless_processor(folder)
        return folder

    versions = [root, versioned("second", "0.4"), versioned("third", "0.3")]
    share = copy_share(root, tmp_path / "share", 0, 1, 2)
    both = copy_share(versions[1], tmp_path / "other", 0, 1, 2)

    def load(folder):
        return DeviceHost.load(folder, num_threads=1)

    with pytest.raises(EDViTError, match="in two"):
        Worker(load, [share, share], ListenConfig(listen="127.0.0.1:0"))
    side = Worker(load, [share, both], ListenConfig(listen="127.0.0.1:0"))
    names = [model_name(Manifest.load(each).ensemble.content_hash, 1) for each in versions]
    assert {names[0], names[1]} <= set(side.models)
    side.stop()

    process = WorkerProcess(share)
    with workers_of(process) as workers:
        for number, newer in enumerate(versions[1:], start=1):
            shutil.rmtree(share)
            copy_share(newer, share, 0, 1, 2)
            process.lines.clear()
            process.send(signal.SIGHUP)
            process.await_line("loaded again")
            assert asked(newer, workers).missing == {}
            assert asked(versions[number - 1], workers).missing == {}
        with pytest.raises(QuorumError):
            asked(root, workers)  # two loads ago
        (share / "manifest.json").write_text("{}")
        process.send(signal.SIGHUP)
        process.await_line("the shares are not loaded again")
        assert asked(versions[2], workers).missing == {}


def test_contradictions_on_the_command_line_are_told(root, tmp_path):
    file = str(tmp_path / "i.png")
    Image.fromarray(IMAGE).save(file)
    for options, message in (
        (["--engine", "oip"], "Expected --workers with --engine oip"),
        (["--placement", "p.json"], "no options of a fleet"),
        (["--workers", "pi0"], "NAME=HOST:PORT"),
        (["--workers", "pi0=a:1,pi0=b:2"], "got 'pi0' twice"),
        (["--workers", "pi0=a:1", "--sub-model", "1"], "leave sub-models out of an answer with --absent"),
        (["--workers", "pi0=127.0.0.1:1", "--fleet-tls-cert", "a.pem"], "one without the other"),
        (["--workers", "pi0=127.0.0.1:1", "--placement", str(tmp_path / "none.json")], "placement"),
    ):
        result = CliRunner().invoke(app, ["predict", str(root), file, *options])
        assert result.exit_code == 1, result.output
        assert message in " ".join(result.output.split()), result.output


def test_a_device_loads_neither_torch_nor_pandas_nor_a_web_server():
    code = (
        "import sys, edvit_hf.cli.worker, edvit_hf.fleet.worker, edvit_hf.runtime.device;"
        "print(sorted({'torch','transformers','pandas','fastapi','uvicorn','scipy','kubernetes'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
