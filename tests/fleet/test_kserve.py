# SPDX-License-Identifier: Apache-2.0
"""A server that no one here wrote: KServe's, on loopback, gives the same answers as the local engine.

It pins other packages than this checkout, so it has an environment of its own, which `make test-fleet` makes.
"""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from edvit_hf.runtime.engines.oip import OIPEngine
from support.device_shares import copy_share
from support.tiny_ensemble import SIZE, TASK_GROUPS, write_tiny_ensemble

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("EDVIT_KSERVE_PYTHON", ROOT / "work" / "kserve" / "bin" / "python"))
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 9, 3), dtype=np.uint8)
SECONDS = 120.0

pytestmark = pytest.mark.skipif(
    not (PYTHON.parent.parent / ".installed").is_file() and os.environ.get("EDVIT_REQUIRE_FLEET") != "1",
    reason="`make test-fleet` installs KServe's server",
)


@contextlib.contextmanager
def kserve(share, log):
    """KServe's server with the sub-models of a share: its gRPC address. It listens on loopback's ports alone here."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
    line = [PYTHON, "-m", "edvit_hf.fleet.kserve_server", share, "--workers", "1"]
    line += ["--http_port", str(ports[0]), "--grpc_port", str(ports[1])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen([*map(str, line)], stdout=file, stderr=file, env=environment)
    try:
        yield f"127.0.0.1:{ports[1]}", process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def whole(runtime, process, log):
    """Ask until every sub-model answers."""
    until = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(Exception):
            if not runtime(IMAGE).missing:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


@pytest.mark.timeout(300)
def test_kserves_own_server_gives_the_local_engines_answers_beside_a_worker_of_ours(tmp_path):
    root = tmp_path / "ensemble"
    write_tiny_ensemble(root, TASK_GROUPS)
    share, log = copy_share(root, tmp_path / "share", 0, 1, 2), tmp_path / "log"
    config = CoordinatorConfig(quorum=1, misses_to_open=None)
    with kserve(share, log) as (address, process), EDViTRuntime.from_pretrained(root, num_threads=1) as local:
        engine = OIPEngine({"kserve": address})
        with EDViTRuntime.from_pretrained(root, engine=engine, config=config) as runtime:
            whole(runtime, process, log)
            pixels = np.random.default_rng(1).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
            made = local.transform.inputs(IMAGE)["pixel_values"]
            for inputs in (made, np.concatenate([made, made]), pixels):
                found, expected = runtime.predict(inputs), local.predict(inputs)
                np.testing.assert_array_equal(found.probabilities, expected.probabilities)
                assert found.missing == {}
            for served in engine._links[address].served.values():
                assert served.key == "pixel_values:UINT8"
                assert served.package is None  # it is no worker of ours
