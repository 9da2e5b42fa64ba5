# SPDX-License-Identifier: Apache-2.0
"""A new version of an ensemble reaches its devices one by one under load: no mixed answer, none lost, none degraded."""

import shutil
import threading
from functools import partial

import numpy as np
import pytest

from edvit_hf.errors import EDViTError
from edvit_hf.fleet.exposure import ListenConfig
from edvit_hf.fleet.worker import Worker
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.engines.oip import OIPEngine
from edvit_hf.runtime.rolling import RollingRuntime
from support.device_shares import copy_share
from support.tiny_ensemble import TASK_GROUPS, bless_processor, write_tiny_ensemble

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 9, 3), dtype=np.uint8)


@pytest.fixture
def versions(tmp_path):
    """Two versions that answer differently: the second sees darker pixels."""
    folders = [tmp_path / name for name in ("first", "second")]
    write_tiny_ensemble(folders[0], TASK_GROUPS)
    shutil.copytree(*folders)
    content = folders[1] / "preprocessor_config.json"
    content.write_text(content.read_text().replace("0.5", "0.4"))
    bless_processor(folders[1])
    return folders


@pytest.fixture
def fleet(versions, tmp_path):
    """A worker for each sub-model of the first version, and the folder of its share."""
    workers = {}
    for index in range(3):
        share = copy_share(versions[0], tmp_path / f"share{index}", index)
        worker = Worker(partial(DeviceHost.load, num_threads=1), [share], ListenConfig(listen="127.0.0.1:0"))
        workers[f"pi{index}"] = (worker, share, f"127.0.0.1:{worker.start()}")
    yield workers
    for worker, _, _ in workers.values():
        worker.stop()


def switch(fleet, name, version):
    """What happens on one device: its share is replaced, and the worker hung up on."""
    worker, share, _ = fleet[name]
    shutil.rmtree(share)
    copy_share(version, share, int(name[-1]))
    worker.reload()


def test_the_version_changes_at_once_for_everybody_and_no_answer_is_mixed_degraded_or_lost(versions, fleet):
    old, new = (EDViTRuntime.from_pretrained(folder, num_threads=1)(IMAGE).probabilities for folder in versions)
    assert not np.array_equal(old, new)
    addresses = {name: address for name, (_, _, address) in fleet.items()}
    found, errors, ended = [], [], threading.Event()

    def ask(runtime):
        while not ended.is_set():
            try:
                found.append(runtime(IMAGE))
            except Exception as error:
                errors.append(error)

    with RollingRuntime(EDViTRuntime.from_pretrained(versions[0], engine=OIPEngine(addresses))) as runtime:
        threads = [threading.Thread(target=ask, args=(runtime,)) for _ in range(2)]
        changing = threading.Thread(target=runtime.change_to, args=(versions[1],))
        for thread in threads:
            thread.start()
        changing.start()
        for name in fleet:
            switch(fleet, name, versions[1])
        changing.join(60)
        assert not changing.is_alive()
        after = len(found)
        while len(found) < after + 5:
            assert not errors
        ended.set()
        for thread in threads:
            thread.join()
        assert runtime.status()["version"] == runtime.current.manifest.ensemble.content_hash
    assert errors == []
    assert {tuple(answer.missing.items()) for answer in found} == {()}
    kinds = [0 if np.array_equal(a.probabilities, old) else 1 for a in found]
    assert all(np.array_equal(a.probabilities, new) for a, kind in zip(found, kinds, strict=True) if kind)
    assert {0, 1} == set(kinds)
    np.testing.assert_array_equal(found[-1].probabilities, new)


def test_until_enough_devices_have_it_the_present_version_goes_on(versions, fleet):
    addresses = {name: address for name, (_, _, address) in fleet.items()}
    with RollingRuntime(EDViTRuntime.from_pretrained(versions[0], engine=OIPEngine(addresses))) as runtime:
        switch(fleet, "pi0", versions[1])
        with pytest.raises(EDViTError, match=r"at least 3 of 3 .* got \[0\]"):
            runtime.change_to(versions[1], timeout_s=0.0)
        assert runtime(IMAGE).missing == {}
        assert runtime.current.manifest.ensemble.content_hash == runtime.status()["version"]


def test_in_one_process_there_is_nothing_to_wait_for(versions):
    with (
        EDViTRuntime.from_pretrained(versions[0], num_threads=1) as runtime,
        pytest.raises(EDViTError, match="load the new version and close the old one"),
    ):
        RollingRuntime(runtime)
