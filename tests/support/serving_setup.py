# SPDX-License-Identifier: Apache-2.0
"""Toy ensembles behind HTTP, for the tests that serve."""

import io
import re
import wave

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from edvit_hf.manifest import Manifest
from edvit_hf.runtime import Coordinator, CoordinatorConfig, EDViTRuntime, MonotonicClock
from edvit_hf.serving import Limits, ServeConfig, Service, create_app
from edvit_hf.tasks import TASKS
from support.drills import Faults, FaultyEngine, StubEngine
from support.tiny_ensemble import write_tiny_ensemble

GROUPS = [[0, 3], [1], [2, 4]]
IMAGE, AUDIO, TEXT_TASK = TASKS
TEXT = "word3 word1 unheard-of word9"
URL = "http://127.0.0.1"
TOKEN = "0123456789abcdef-token"
INSIDE = re.compile(r"Traceback|/\w+/|\.py\b|[a-z]Error\b|object at 0x|PIL|pydantic|numpy|soundfile|onnx|\d\.\d+\.\d")
"""What would tell of the inside: paths, classes and names of libraries, versions."""


def make_folders(tmp_path_factory):
    """A folder with an ensemble for each task."""
    found = {task: tmp_path_factory.mktemp(task) for task in TASKS}
    for task, folder in found.items():
        write_tiny_ensemble(folder, GROUPS, task=task)
    return found


def png(width=20, height=9):
    file, rng = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def jpeg(width, height):
    """A picture that takes long to decode for what it weighs, as a telephone sends it."""
    file = io.BytesIO()
    small = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST).save(file, "JPEG", quality=60)
    return file.getvalue()


def wav(seconds=0.4, rate=8000):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        samples = np.random.default_rng(0).normal(size=round(seconds * rate)) * 3000
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def encoded(task):
    """What an input of this kind looks like as bytes."""
    return {IMAGE: png, AUDIO: wav, TEXT_TASK: TEXT.encode}[task]()


def media(task):
    return {IMAGE: "image/png", AUDIO: "audio/wav", TEXT_TASK: "text/plain"}[task]


def make_service(folder, *, faults=None, limits=None, quorum=None, clock=None, decode_in_process=True, **config):
    """A service over the local engine, or over stubs that misbehave as told, if need be on a clock of the test's.

    It reads inputs in this process unless told otherwise.
    """
    engine, clock = "local", clock or MonotonicClock()
    if faults is not None:
        engine = FaultyEngine(StubEngine(Manifest.load(folder)), clock, faults)
    settings = CoordinatorConfig(quorum=quorum, max_queued=config.get("max_queued", 8))
    runtime = EDViTRuntime.from_pretrained(folder, engine=engine, schedule="in_turn", config=settings)
    runtime.coordinator = Coordinator(runtime.manifest, runtime.coordinator.engine, settings, clock=clock)
    config |= {"limits": limits or Limits(rate=0), "decode_in_process": decode_in_process}
    return Service(runtime, ServeConfig(**config))


def make_client(service, *, base_url=URL, is_local=True, **options):
    app = create_app(service, is_local=is_local)
    return TestClient(app, base_url=base_url, client=("127.0.0.1", 50000), **options)


def slow(milliseconds):
    """All sub-models of the toy ensembles answer after so long."""
    return {index: Faults(latency_ms=milliseconds) for index in range(len(GROUPS))}


def assert_refused(response, status, code):
    """It is an error of ours, in our shape, and tells nothing of the inside."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == ("retry_after_ms" in error)
    if "retry_after_ms" in error:
        assert int(response.headers["retry-after"]) >= max(1, error["retry_after_ms"] / 1e3)
    assert "server" not in response.headers
    assert not INSIDE.search(error["message"]), error
    return error
