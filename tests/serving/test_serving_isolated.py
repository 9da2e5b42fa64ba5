# SPDX-License-Identifier: Apache-2.0
"""A server whose inputs are read by processes of their own: hostile ones cost themselves, and `/ready` is truthful."""

import os
import signal
import threading
import time

import pytest

from edvit_hf.isolation.decoding import Decoders, DecodersInProcess
from edvit_hf.serving import Limits
from support.bombs import IMAGES
from support.serving_setup import IMAGE, TASKS, assert_refused, encoded, make_client, make_folders, make_service, png


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory)


@pytest.fixture(scope="module")
def serving(folders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoders, "entry", "support.isolated_jobs:Decoder")
        patch.setattr("edvit_hf.isolation.pool.STUCK_SECONDS", 0.1)
        service = make_service(folders[IMAGE], limits=Limits(rate=0, decode_seconds=0.8), decode_in_process=False)
        yield service, make_client(service)
        service.close()


def ask(client, content):
    return client.post("/predict", files={"file": content})


def wait_until_ready(client, status=200):
    end = time.monotonic() + 20
    while client.get("/ready").status_code != status:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_a_server_that_reads_inputs_itself(folders, task):
    found = []
    for in_process in (True, False):
        service = make_service(folders[task], decode_in_process=in_process)
        assert isinstance(service._decoders, DecodersInProcess) is in_process
        found.append(make_client(service).post("/predict", files={"file": encoded(task)}).json()["probabilities"])
        service.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("content", [b"do:crash", b"do:panic", b"do:sleep", b"do:swell", b"do:say_much_too_much"])
def test_an_input_that_harms_its_reader_is_refused_and_the_next_is_answered(serving, content):
    client = serving[1]
    assert_refused(ask(client, content), 422, "unreadable_input")
    assert ask(client, png()).status_code == 200
    wait_until_ready(client)


@pytest.mark.parametrize(
    "name", ["gif: a comment of one-byte blocks", "jpeg: overlapping exif", "webp: a large canvas"]
)
def test_a_bomb_is_refused_at_once(serving, name):
    begin = time.monotonic()
    assert_refused(ask(serving[1], IMAGES[name]()), 422, "unreadable_input")
    assert time.monotonic() - begin < 0.7


def test_ready_is_503_while_all_readers_are_stuck_and_comes_back(serving):
    client = serving[1]
    wait_until_ready(client)
    hostile = [threading.Thread(target=ask, args=(client, b"do:sleep")) for _ in range(2)]
    for thread in hostile:
        thread.start()
    wait_until_ready(client, 503)
    assert_refused(client.get("/ready"), 503, "not_ready")
    assert "edvit_ready 0.0" in client.get("/metrics").text
    for thread in hostile:
        thread.join()
    assert ask(client, png()).status_code == 200
    wait_until_ready(client)
    assert "edvit_ready 1.0" in client.get("/metrics").text


def test_readers_that_somebody_ends_are_replaced(serving):
    service, client = serving
    wait_until_ready(client)
    for pid in service._decoders.pool.pids():
        os.kill(pid, signal.SIGKILL)
    wait_until_ready(client)
    assert ask(client, png()).status_code == 200
