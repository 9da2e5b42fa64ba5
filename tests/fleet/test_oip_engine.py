# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol's engine against workers in this process: equal answers, routes, refusals, versions."""

import threading
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import pytest

from edvit_hf.errors import DataError, EDViTError, QuorumError
from edvit_hf.fleet.exposure import ListenConfig
from edvit_hf.fleet.worker import Worker
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime, SubModelRequest, UnavailableError
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.engines.oip import OIPEngine
from edvit_hf.runtime.engines.oip_links import Link, Sent
from edvit_hf.tasks import TASKS
from support.device_shares import copy_share
from support.tiny_ensemble import SIZE, TASK_GROUPS, bless_processor, write_tiny_ensemble

TOKEN = "a-token-of-the-tests-0123456789"
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 9, 3), dtype=np.uint8)
SOURCES = {
    "image-classification": IMAGE,
    "audio-classification": np.sin(np.arange(4000, dtype=np.float32) / 5),
    "text-classification": "word3 word1 unheard-of word9",
}
OPEN = partial(DeviceHost.load, num_threads=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for task in TASKS:
        found[task] = tmp_path_factory.mktemp(task)
        write_tiny_ensemble(found[task], TASK_GROUPS, task=task)
    return found


@pytest.fixture(scope="module")
def root(folders):
    return folders["image-classification"]


@contextmanager
def fleet(root, tmp_path, *held, config=None):
    """Workers in this process that hold these sub-models each: addresses by name."""
    with ExitStack() as stack:
        addresses = {}
        for number, indices in enumerate(held):
            share = copy_share(root, tmp_path / f"share{number}-{'-'.join(map(str, indices))}", *indices)
            worker = Worker(OPEN, [share], config or ListenConfig(listen="127.0.0.1:0"))
            addresses[f"pi{number}"] = f"127.0.0.1:{worker.start()}"
            stack.callback(worker.stop)
        yield addresses


def another_version(folder):
    """The same ensemble with another processor, and so another content hash."""
    write_tiny_ensemble(folder, TASK_GROUPS)
    content = folder / "preprocessor_config.json"
    content.write_text(content.read_text().replace("0.5", "0.4", 1))
    bless_processor(folder)
    return folder


def placement_of(root, devices):
    manifest = Manifest.load(root)
    identity = EnsembleIdentity(id=manifest.ensemble.id, content_hash=manifest.ensemble.content_hash)
    placed = {
        name: PlacedDevice(
            profile="raspberry-pi-4b",
            sub_models=[PlacedFile(index=index) for index in own],
            replicas=[PlacedFile(index=index) for index in spare],
        )
        for name, (own, spare) in devices.items()
    }
    return PlacementFile(ensemble=identity, fleet="test", num_sub_models=3, devices=placed)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_the_local_engines_to_the_bit(folders, tmp_path, task):
    root, source = folders[task], SOURCES[task]
    with (
        EDViTRuntime.from_pretrained(root, num_threads=1) as local,
        fleet(root, tmp_path, [0], [1], [2]) as workers,
        EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers)) as runtime,
    ):
        for absent in ((), (1,)):
            answer, expected = runtime(source, absent=absent), local(source, absent=absent)
            np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
            assert answer.missing == expected.missing
        assert answer.milliseconds[0] > 0
        prepared = {name: np.concatenate([v, v]) for name, v in local.transform.inputs(source).items()}
        np.testing.assert_array_equal(runtime.predict(prepared).probabilities, local.predict(prepared).probabilities)


def test_prepared_arrays_that_no_transform_made_travel_as_floats(root, tmp_path):
    pixels = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    with (
        EDViTRuntime.from_pretrained(root, num_threads=1) as local,
        fleet(root, tmp_path, [0, 1, 2]) as workers,
        EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers)) as runtime,
    ):
        found, expected = runtime.predict(pixels), local.predict(pixels)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_images_travel_as_bytes_and_only_once_packed(root, tmp_path, monkeypatch):
    from edvit_hf.runtime.engines import oip_links

    sent = []
    of = oip_links.Packed.of.__func__

    def noted(cls, values):
        sent.append(values.dtype.name)
        return of(cls, values)

    with (
        fleet(root, tmp_path, [0], [1], [2]) as workers,
        EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers)) as runtime,
    ):
        monkeypatch.setattr(oip_links.Packed, "of", classmethod(noted))
        runtime(IMAGE)
    assert sent.count("uint8") == 1  # the others are answers: features and votes


def test_a_placement_says_whom_to_ask_and_who_stands_in(root, tmp_path):
    with fleet(root, tmp_path, [0, 1], [2, 0]) as workers:
        placement = placement_of(root, {"pi0": ([0, 1], []), "pi1": ([2], [0])})
        engine = OIPEngine(workers, placement=placement)
        with EDViTRuntime.from_pretrained(root, engine=engine) as runtime:
            assert runtime(IMAGE).missing == {}
            routes = {int(i): [e["endpoint"] for e in found] for i, found in engine.status()["routes"].items()}
    assert routes == {0: [workers["pi0"], workers["pi1"]], 1: [workers["pi0"]], 2: [workers["pi1"]]}


def test_a_placement_and_workers_that_do_not_fit_are_told_with_both_names(root, tmp_path):
    other = another_version(tmp_path / "other")
    workers = {"pi0": "127.0.0.1:1", "pi9": "127.0.0.1:2"}
    for placed, message in (
        (placement_of(root, {"pi0": ([0, 1], []), "pi1": ([2], [])}), r"no worker for pi1 and worker 'pi9'"),
        (placement_of(other, {"pi0": ([0, 1], []), "pi9": ([2], [])}), "Expected a placement of tiny"),
    ):
        with pytest.raises(EDViTError, match=message):
            EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers, placement=placed))


def test_a_sub_model_that_nobody_has_is_missing_and_counts_against_the_quorum(root, tmp_path):
    with (
        fleet(root, tmp_path, [0], [1]) as workers,
        EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers)) as runtime,
    ):
        assert runtime.loaded == (0, 1, 2)
        assert runtime(IMAGE).missing == {2: "unavailable"}
        with (
            EDViTRuntime.from_pretrained(root, engine=OIPEngine({"pi1": workers["pi1"]})) as runtime,
            pytest.raises(QuorumError, match="Only 1 of 3"),
        ):
            runtime(IMAGE)


def test_a_device_without_its_file_is_unavailable_and_one_of_another_version_is_told(root, tmp_path):
    other = another_version(tmp_path / "other")
    with fleet(root, tmp_path, [0], [1]) as workers, fleet(other, tmp_path / "o", [2]) as stale:
        workers = {**workers, "pi2": stale["pi0"]}
        placement = placement_of(root, {"pi0": ([0], []), "pi1": ([1], []), "pi2": ([2], [])})
        with EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers, placement=placement)) as runtime:
            assert runtime(IMAGE).missing == {2: "version"}
        swapped = placement_of(root, {"pi0": ([1], []), "pi1": ([0], []), "pi2": ([2], [])})
        config = CoordinatorConfig(quorum=1)
        engine = OIPEngine(workers, placement=swapped)
        with (
            EDViTRuntime.from_pretrained(root, engine=engine, config=config) as runtime,
            pytest.raises(QuorumError) as told,
        ):
            runtime(IMAGE)
    assert told.value.missing == {0: "unavailable", 1: "unavailable", 2: "version"}


def test_a_token_is_asked_for_and_never_shown(root, tmp_path, caplog):
    config = ListenConfig(listen="127.0.0.1:0", tokens=(TOKEN,))
    with fleet(root, tmp_path, [0, 1, 2], config=config) as workers:
        for token in (None, "another-token-0123456789"):
            with (
                EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers, token=token)) as runtime,
                pytest.raises(QuorumError),
            ):
                runtime(IMAGE)
        engine = OIPEngine(workers, token=TOKEN)
        with EDViTRuntime.from_pretrained(root, engine=engine) as runtime:
            assert runtime(IMAGE).missing == {}
            assert TOKEN not in str(runtime.status())
    assert "refused a request without a right token" in caplog.text
    assert TOKEN not in caplog.text
    assert "another-token" not in caplog.text


def test_an_input_at_fault_fails_the_request_and_costs_no_sub_model(folders, tmp_path):
    root = folders["text-classification"]
    with (
        fleet(root, tmp_path, [0], [1], [2]) as workers,
        EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers)) as runtime,
    ):
        with pytest.raises(DataError, match="INVALID_ARGUMENT"):
            runtime.predict({"input_ids": np.array([[10**6]])})
        assert runtime("word1").missing == {}


def test_whoever_submits_starts_no_thread_and_so_waits_for_none(root, tmp_path, monkeypatch):
    version = Manifest.load(root).ensemble.content_hash
    with (
        fleet(root, tmp_path, [0, 1, 2]) as workers,
        EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers)) as runtime,
    ):
        inputs, engine = runtime.transform.inputs(IMAGE), runtime.coordinator.engine
        start, starters = threading.Thread.start, []

        def noted(thread):
            starters.append(threading.current_thread())
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", noted)
        for number in range(3):  # the channel is idle before each
            request = SubModelRequest(request_id=str(number), content_hash=version, budget_ms=None, inputs=inputs)
            assert engine.submit(0, request).result(30).sub_model == 0
            assert engine.probe(0).result(30).sub_model == 0
        assert threading.current_thread() not in starters


def test_what_a_closed_link_is_asked_ends_at_once_as_unavailable():
    link = Link("127.0.0.1:1", token=None, tls=None)
    link.close()
    with pytest.raises(UnavailableError, match="closed"):
        link.ready("any", 30.0).result(30)


def test_a_call_that_is_given_up_before_it_was_made_is_never_made():
    made = []
    call = Sent(lambda: made.append("call"))
    assert call.cancel()
    call.go()
    assert made == []


def test_a_worker_of_another_release_is_not_asked(root, tmp_path, monkeypatch):
    from edvit_hf.runtime.engines import oip_links

    with fleet(root, tmp_path, [0, 1, 2]) as workers:
        monkeypatch.setattr(oip_links, "__version__", "9.9.0")
        config = CoordinatorConfig(quorum=1)
        with (
            EDViTRuntime.from_pretrained(root, engine=OIPEngine(workers), config=config) as runtime,
            pytest.raises(QuorumError) as told,
        ):
            runtime(IMAGE)
    assert set(told.value.missing.values()) == {"version"}


def test_an_engine_is_bound_to_one_version_and_useless_before(root, tmp_path):
    engine = OIPEngine({"pi0": "127.0.0.1:1"})
    with pytest.raises(UnavailableError, match="not bound to any ensemble"):
        engine.probe(0)
    with EDViTRuntime.from_pretrained(root, engine=engine) as runtime:
        other = another_version(tmp_path / "other")
        with pytest.raises(EDViTError, match=r"engine.again\(\)"):
            EDViTRuntime.from_pretrained(other, engine=engine)
        assert runtime.status()["engine"]["engine"] == "oip"
    with pytest.raises(EDViTError, match="closed"):
        runtime(IMAGE)


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({}, "at least one worker"),
        ({"pi0": "10.0.0.1"}, "HOST:PORT"),
        ({"pi0": "http://10.0.0.1:80"}, "HOST:PORT"),
        ({"pi0": "10.0.0.1:99999"}, "HOST:PORT"),
        ({"pi0": "10.0.0.1:80", "pi1": "10.0.0.1:80"}, "'pi0' and 'pi1' both at 10.0.0.1:80"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(workers, message):
    with pytest.raises(EDViTError, match=message):
        OIPEngine(workers)
