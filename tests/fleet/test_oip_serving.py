# SPDX-License-Identifier: Apache-2.0
"""The HTTP server over devices: the same replies and metrics as over one process, and 503 when too few are left."""

import re
from functools import partial

import pytest

from edvit_hf.fleet.exposure import ListenConfig
from edvit_hf.fleet.worker import Worker
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.engines.oip import OIPEngine
from edvit_hf.serving import Limits, ServeConfig, Service
from support.device_shares import copy_share
from support.serving_setup import assert_refused, make_client, make_service, png
from support.tiny_ensemble import TASK_GROUPS, write_tiny_ensemble

PICTURE = {"content": png(), "headers": {"content-type": "image/png"}}


@pytest.fixture
def fleet(tmp_path):
    """An ensemble's folder, and a worker in this process for each sub-model."""
    root = tmp_path / "ensemble"
    write_tiny_ensemble(root, TASK_GROUPS)
    workers = []
    for index in range(3):
        share = copy_share(root, tmp_path / f"share{index}", index)
        workers.append(Worker(partial(DeviceHost.load, num_threads=1), [share], ListenConfig(listen="127.0.0.1:0")))
    yield root, workers
    for worker in workers:
        worker.stop()


def names_of(metrics):
    return set(re.findall(r"^# TYPE (\w+)", metrics.text, re.MULTILINE))


def test_replies_and_metrics_are_those_of_one_process_and_too_few_devices_are_a_503(fleet):
    root, workers = fleet
    addresses = {f"pi{n}": f"127.0.0.1:{worker.start()}" for n, worker in enumerate(workers)}
    runtime = EDViTRuntime.from_pretrained(root, engine=OIPEngine(addresses))
    service = Service(runtime, ServeConfig(limits=Limits(rate=0), decode_in_process=True))
    local = make_service(root)
    try:
        client, own = make_client(service), make_client(local)
        found, expected = (each.post("/predict", **PICTURE).json() for each in (client, own))
        assert found["probabilities"] == expected["probabilities"]
        assert names_of(client.get("/metrics")) == names_of(own.get("/metrics"))
        workers[2].stop()
        reply = client.post("/predict", **PICTURE).json()
        assert [each["missing"] for each in reply["sub_models"]] == [None, None, "unavailable"]
        workers[0].stop()
        assert_refused(client.post("/predict", **PICTURE), 503, "too_few_sub_models")
        counted = client.get("/metrics").text
        assert 'edvit_sub_model_missing_total{reason="unavailable",sub_model="2"}' in counted
    finally:
        service.close()
        local.close()
